# Saving and restoring of register contexts, and the frames in which exception handlers are called.
# Offsets: CONTEXT in ntstructs.h, DISPATCHER_CONTEXT in ntapi.h.

    .text
.macro FUNCTION name
    .globl \name
    .def \name; .scl 2; .type 32; .endef
    .p2align 4
\name:
    .seh_proc \name
.endm
.macro SAVE register, offset
    movq %\register, \offset(%rcx)
.endm
.macro LOAD register, offset
    movq \offset(%rcx), %\register
.endm
.macro FOR_REGISTERS action             # all but rax, rcx and rsp
    \action rdx, 0x88; \action rbx, 0x90; \action rbp, 0xa0; \action rsi, 0xa8
    \action rdi, 0xb0; \action r8, 0xb8; \action r9, 0xc0; \action r10, 0xc8
    \action r11, 0xd0; \action r12, 0xd8; \action r13, 0xe0; \action r14, 0xe8
    \action r15, 0xf0
.endm

FUNCTION RtlCaptureContext              # rcx: CONTEXT; the caller's registers after this call
    pushfq
    .seh_stackalloc 8
    .seh_endprologue
    SAVE rax, 0x78
    SAVE rcx, 0x80
    FOR_REGISTERS SAVE
    leaq 16(%rsp), %rax
    SAVE rax, 0x98                      # Rsp
    movq 8(%rsp), %rax
    SAVE rax, 0xf8                      # Rip
    fxsave 0x100(%rcx)
    movl 0x118(%rcx), %eax              # MXCSR as fxsave stored it
    movl %eax, 0x34(%rcx)
    movw %cs, 0x38(%rcx)
    movw %ds, 0x3a(%rcx)
    movw %es, 0x3c(%rcx)
    movw %fs, 0x3e(%rcx)
    movw %gs, 0x40(%rcx)
    movw %ss, 0x42(%rcx)
    movl (%rsp), %eax
    movl %eax, 0x44(%rcx)
    movl $0x10000f, 0x30(%rcx)          # CONTEXT_CONTROL | INTEGER | SEGMENTS | FLOATING_POINT
    LOAD rax, 0x78
    addq $8, %rsp
    retq
    .seh_endproc

FUNCTION RtlRestoreContext              # rcx: CONTEXT; rdx: exception record, not needed here
    subq $0x28, %rsp                    # a machine frame: rip, cs, eflags, rsp, ss
    .seh_stackalloc 0x28
    .seh_endprologue
    testl $8, 0x30(%rcx)                # CONTEXT_FLOATING_POINT
    jz 1f
    fxrstor 0x100(%rcx)
1:  LOAD rax, 0xf8
    movq %rax, (%rsp)
    movzwl 0x38(%rcx), %eax
    movq %rax, 8(%rsp)
    movl 0x44(%rcx), %eax
    movq %rax, 16(%rsp)
    LOAD rax, 0x98
    movq %rax, 24(%rsp)
    movzwl 0x42(%rcx), %eax
    movq %rax, 32(%rsp)
    FOR_REGISTERS LOAD
    LOAD rax, 0x78
    LOAD rcx, 0x80
    iretq
    .seh_endproc

# (rcx: exception record, rdx: frame, r8: context, r9: dispatcher context) -> disposition
.macro EXECUTE_HANDLER name, handler
    FUNCTION \name
    .seh_handler \handler, @except, @unwind
    subq $0x28, %rsp
    .seh_stackalloc 0x28
    .seh_endprologue
    movq %r9, 0x20(%rsp)                # RTL_SAVED_DISPATCHER
    callq *0x30(%r9)                    # LanguageHandler
    nop                                 # the return address must not be the epilogue
    addq $0x28, %rsp
    retq
    .seh_endproc
.endm
    EXECUTE_HANDLER RtlpExecuteHandlerForException, RtlpExceptionHandler
    EXECUTE_HANDLER RtlpExecuteHandlerForUnwind, RtlpUnwindHandler
