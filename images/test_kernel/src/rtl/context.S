# Saving and restoring of register contexts, and the frames in which exception handlers are called.
# Offsets: CONTEXT in ntstructs.h, DISPATCHER_CONTEXT in ntapi.h.

    .text
    .globl RtlCaptureContext
    .def RtlCaptureContext; .scl 2; .type 32; .endef
    .p2align 4
RtlCaptureContext:                      # rcx: CONTEXT; the caller's registers after this call
    .seh_proc RtlCaptureContext
    pushfq
    .seh_stackalloc 8
    .seh_endprologue
    movq %rax, 0x78(%rcx)
    movq %rcx, 0x80(%rcx)
    movq %rdx, 0x88(%rcx)
    movq %rbx, 0x90(%rcx)
    leaq 16(%rsp), %rax
    movq %rax, 0x98(%rcx)
    movq %rbp, 0xa0(%rcx)
    movq %rsi, 0xa8(%rcx)
    movq %rdi, 0xb0(%rcx)
    movq %r8, 0xb8(%rcx)
    movq %r9, 0xc0(%rcx)
    movq %r10, 0xc8(%rcx)
    movq %r11, 0xd0(%rcx)
    movq %r12, 0xd8(%rcx)
    movq %r13, 0xe0(%rcx)
    movq %r14, 0xe8(%rcx)
    movq %r15, 0xf0(%rcx)
    movq 8(%rsp), %rax
    movq %rax, 0xf8(%rcx)
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
    movq 0x78(%rcx), %rax
    addq $8, %rsp
    retq
    .seh_endproc

    .globl RtlRestoreContext
    .def RtlRestoreContext; .scl 2; .type 32; .endef
    .p2align 4
RtlRestoreContext:                      # rcx: CONTEXT; rdx: exception record, not needed here
    .seh_proc RtlRestoreContext
    subq $0x28, %rsp                    # room for a machine frame
    .seh_stackalloc 0x28
    .seh_endprologue
    testl $8, 0x30(%rcx)                # CONTEXT_FLOATING_POINT
    jz 1f
    fxrstor 0x100(%rcx)
1:  movq 0xf8(%rcx), %rax
    movq %rax, (%rsp)
    movzwl 0x38(%rcx), %eax
    movq %rax, 8(%rsp)
    movl 0x44(%rcx), %eax
    movq %rax, 16(%rsp)
    movq 0x98(%rcx), %rax
    movq %rax, 24(%rsp)
    movzwl 0x42(%rcx), %eax
    movq %rax, 32(%rsp)
    movq 0x78(%rcx), %rax
    movq 0x88(%rcx), %rdx
    movq 0x90(%rcx), %rbx
    movq 0xa0(%rcx), %rbp
    movq 0xa8(%rcx), %rsi
    movq 0xb0(%rcx), %rdi
    movq 0xb8(%rcx), %r8
    movq 0xc0(%rcx), %r9
    movq 0xc8(%rcx), %r10
    movq 0xd0(%rcx), %r11
    movq 0xd8(%rcx), %r12
    movq 0xe0(%rcx), %r13
    movq 0xe8(%rcx), %r14
    movq 0xf0(%rcx), %r15
    movq 0x80(%rcx), %rcx
    iretq
    .seh_endproc

# (rcx: exception record, rdx: frame, r8: context, r9: dispatcher context) -> disposition
.macro EXECUTE_HANDLER name, handler
    .globl \name
    .def \name; .scl 2; .type 32; .endef
    .p2align 4
\name:
    .seh_proc \name
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
