/* Trap and interrupt entries. Each saves what Windows saves, at the same places, with unwind codes
 * that let a debugger walk through it: machine frame, rbp, 0x158 bytes, rbp = rsp + 0x80. */
    .text
#define TRAP(offset) (offset - 0x80)(%rbp)
.macro FUNCTION Name
    .globl \Name
    .seh_proc \Name
\Name:
.endm
/* Machine frame on the stack (with `Code` an error code too) -> KTRAP_FRAME at rsp. */
.macro ENTER_TRAP Code
    .if \Code
    .seh_pushframe @code
    .else
    .seh_pushframe; subq $8, %rsp; .seh_stackalloc 8
    .endif
    pushq %rbp; .seh_pushreg %rbp; subq $0x158, %rsp; .seh_stackalloc 0x158; leaq 0x80(%rsp), %rbp
    .seh_setframe %rbp, 0x80; .seh_endprologue
    movq %rax, TRAP(0x30); movq %rcx, TRAP(0x38); movq %rdx, TRAP(0x40); movq %r8, TRAP(0x48)
    movq %r9, TRAP(0x50); movq %r10, TRAP(0x58); movq %r11, TRAP(0x60); movq %rbx, TRAP(0x140)
    movq %rdi, TRAP(0x148); movq %rsi, TRAP(0x150); stmxcsr TRAP(0x2c)
    movaps %xmm0, TRAP(0x70); movaps %xmm1, TRAP(0x80); movaps %xmm2, TRAP(0x90)
    movaps %xmm3, TRAP(0xa0); movaps %xmm4, TRAP(0xb0); movaps %xmm5, TRAP(0xc0)
    movb $0, TRAP(0x28); movq %cr8, %rax; movb %al, TRAP(0x29); movq %dr7, %rax
    movq %rax, TRAP(0x100); cld
.endm
    FUNCTION KiTrapReturn /* rbp = trap frame + 0x80, interrupts off */
    .seh_pushframe @code; .seh_pushreg %rbp; .seh_stackalloc 0x158; .seh_setframe %rbp, 0x80
    .seh_endprologue; movzbl TRAP(0x29), %eax; movq %rax, %cr8; ldmxcsr TRAP(0x2c)
    movaps TRAP(0x70), %xmm0; movaps TRAP(0x80), %xmm1; movaps TRAP(0x90), %xmm2
    movaps TRAP(0xa0), %xmm3; movaps TRAP(0xb0), %xmm4; movaps TRAP(0xc0), %xmm5
    movq TRAP(0x30), %rax; movq TRAP(0x38), %rcx; movq TRAP(0x40), %rdx; movq TRAP(0x48), %r8
    movq TRAP(0x50), %r9; movq TRAP(0x58), %r10; movq TRAP(0x60), %r11; movq TRAP(0x140), %rbx
    movq TRAP(0x148), %rdi; movq TRAP(0x150), %rsi; leaq 0xd8(%rbp), %rsp; movq (%rsp), %rbp
    addq $0x10, %rsp; iretq
    .seh_endproc

/* A fault that becomes an exception: ecx = status, edx = parameters, r9, r10 = the parameters. */
.macro EXCEPTION_TRAP Name, Code, Status
    FUNCTION \Name
    ENTER_TRAP \Code
    movl $\Status, %ecx; xorl %edx, %edx; movq TRAP(0x168), %r8; call KiExceptionDispatch
    int3
    .seh_endproc
.endm
/* A fault nobody handles: 0x7F with the trap's number. */
.macro FATAL_TRAP Name, Code, Number
    FUNCTION \Name
    ENTER_TRAP \Code
    movl $0x7f, %ecx; movl $\Number, %edx; movq TRAP(0x160), %r8; movq %cr0, %r9
    movq TRAP(0x168), %r10; call KiBugCheckDispatch
    int3
    .seh_endproc
.endm
    EXCEPTION_TRAP KiDivideErrorFault, 0, 0xC0000094
    EXCEPTION_TRAP KiDebugTrapOrFault, 0, 0x80000004; EXCEPTION_TRAP KiBreakpointTrap, 0, 0x80000003
    EXCEPTION_TRAP KiBoundFault, 0, 0xC000008C; EXCEPTION_TRAP KiInvalidOpcodeFault, 0, 0xC000001D
    FATAL_TRAP KiDoubleFaultAbort, 1, 8
    FATAL_TRAP KiInvalidTssFault, 1, 10; FATAL_TRAP KiSegmentNotPresentFault, 1, 11
    FATAL_TRAP KiStackFault, 1, 12; EXCEPTION_TRAP KiFloatingErrorFault, 0, 0xC0000090
    EXCEPTION_TRAP KiAlignmentFault, 1, 0x80000002; FATAL_TRAP KiMcheckAbort, 0, 18
    EXCEPTION_TRAP KiXmmException, 0, 0xC00002B4; FATAL_TRAP KiUnexpectedTrap, 0, 0xff

/* A general protection fault names no address: an access violation at -1, as in Windows. */
    FUNCTION KiGeneralProtectionFault
    ENTER_TRAP 1
    movl $0xC0000005, %ecx; movl $2, %edx; movq TRAP(0x168), %r8; xorl %r9d, %r9d; movq $-1, %r10
    call KiExceptionDispatch
    int3
    .seh_endproc

    FUNCTION KiPageFault
    ENTER_TRAP 1
    movq %cr2, %rdx; movq %rdx, TRAP(0xd0); movq TRAP(0x160), %rcx; leaq -0x80(%rbp), %r8
    call MmAccessFault
    /* access: 0 read, 1 write, 8 execute, from the error code's bits 1 and 4 */
    movl TRAP(0x160), %r9d; movl %r9d, %r10d; shrl $1, %r9d; andl $1, %r9d; shrl $1, %r10d
    andl $8, %r10d; orl %r10d, %r9d; cmpl $0xC0000005, %eax; jne 1f
    movl %eax, %ecx; movl $2, %edx; movq TRAP(0x168), %r8; movq TRAP(0xd0), %r10
    call KiExceptionDispatch
    int3
1:  movl $0xa, %ecx /* IRQL_NOT_LESS_OR_EQUAL; KeBugCheck2 makes it 0xD1 for a driver */
    movq TRAP(0xd0), %rdx; movzbl TRAP(0x29), %r8d; movq TRAP(0x168), %r10; call KiBugCheckDispatch
    int3
    .seh_endproc

    FUNCTION KiNmiInterrupt
    ENTER_TRAP 0
    call KiProcessNMI
    nop; jmp KiTrapReturn /* unwinders take a jump behind a call for the function's end */
    .seh_endproc

.macro INTERRUPT Number
    FUNCTION KiIsrEntry\Number
    ENTER_TRAP 0
    movl $\Number, %ecx; leaq -0x80(%rbp), %rdx; call KiInterruptDispatch
    cli; jmp KiTrapReturn
    .seh_endproc
.endm
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    INTERRUPT \n
    .endr

/* KeBugCheckEx from a trap: the frame a debugger finds between the two is KEXCEPTION_FRAME.
 * ecx = code, rdx, r8, r9, r10 = parameters. */
    FUNCTION KiBugCheckDispatch
    subq $0x138, %rsp; .seh_stackalloc 0x138; .seh_endprologue
    movq %rbx, 0x100(%rsp); movq %rdi, 0x108(%rsp); movq %rsi, 0x110(%rsp); movq %r12, 0x118(%rsp)
    movq %r13, 0x120(%rsp); movq %r14, 0x128(%rsp); movq %r15, 0x130(%rsp); movq %r10, 0x20(%rsp)
    call KeBugCheckEx
    int3
    .seh_endproc

/* ecx = status, edx = number of parameters, r8 = address, r9, r10 = parameters; rbp = trap + 0x80.
 * Builds KEXCEPTION_FRAME (0x138) and EXCEPTION_RECORD (0x98) for the bug check. */
    FUNCTION KiExceptionDispatch
    subq $0x1d8, %rsp; .seh_stackalloc 0x1d8
    movq %r12, 0x118(%rsp); .seh_savereg %r12, 0x118; movq %r13, 0x120(%rsp)
    .seh_savereg %r13, 0x120; movq %r14, 0x128(%rsp); .seh_savereg %r14, 0x128
    movq %r15, 0x130(%rsp); .seh_savereg %r15, 0x130; .seh_endprologue
    movaps %xmm6, 0x30(%rsp); movaps %xmm7, 0x40(%rsp); movaps %xmm8, 0x50(%rsp)
    movaps %xmm9, 0x60(%rsp); movaps %xmm10, 0x70(%rsp); movaps %xmm11, 0x80(%rsp)
    movaps %xmm12, 0x90(%rsp); movaps %xmm13, 0xa0(%rsp); movaps %xmm14, 0xb0(%rsp)
    movaps %xmm15, 0xc0(%rsp); leaq 0x138(%rsp), %rax
    movl %ecx, (%rax); movl $0, 4(%rax); movq $0, 8(%rax); movq %r8, 0x10(%rax)
    movl %edx, 0x18(%rax); movq %r9, 0x20(%rax); movq %r10, 0x28(%rax); movq %rax, %rcx
    movq %rsp, %rdx; leaq -0x80(%rbp), %r8; call KiDispatchException
    int3
    .seh_endproc

/* rcx = CONTEXT: the caller's registers as they will be after this call. */
    FUNCTION RtlCaptureContext
    pushfq; .seh_stackalloc 8; .seh_endprologue
    movq %rax, 0x78(%rcx); movq %rcx, 0x80(%rcx); movq %rdx, 0x88(%rcx); movq %rbx, 0x90(%rcx)
    movq %rbp, 0xa0(%rcx); movq %rsi, 0xa8(%rcx); movq %rdi, 0xb0(%rcx); movq %r8, 0xb8(%rcx)
    movq %r9, 0xc0(%rcx); movq %r10, 0xc8(%rcx); movq %r11, 0xd0(%rcx); movq %r12, 0xd8(%rcx)
    movq %r13, 0xe0(%rcx); movq %r14, 0xe8(%rcx); movq %r15, 0xf0(%rcx)
    leaq 0x10(%rsp), %rax; movq %rax, 0x98(%rcx); movq 8(%rsp), %rax; movq %rax, 0xf8(%rcx)
    fxsave 0x100(%rcx); movl 0x118(%rcx), %eax; movl %eax, 0x34(%rcx) /* MxCsr, at both places */
    movw %cs, 0x38(%rcx); movw %ds, 0x3a(%rcx); movw %es, 0x3c(%rcx); movw %fs, 0x3e(%rcx)
    movw %gs, 0x40(%rcx); movw %ss, 0x42(%rcx); movl (%rsp), %eax; movl %eax, 0x44(%rcx)
    movl $0x10000f, 0x30(%rcx) /* CONTEXT_FULL with segments */
    movq 0x78(%rcx), %rax; addq $8, %rsp
    retq
    .seh_endproc

/* KeBugCheckEx(code, P1..P4): parameters go to their home space, where debuggers look, and
 * the registers at entry to the processor's context, before anything else happens. */
    FUNCTION KeBugCheckEx
    movq %rcx, 8(%rsp); movq %rdx, 0x10(%rsp); movq %r8, 0x18(%rsp); movq %r9, 0x20(%rsp); pushfq
    .seh_stackalloc 8; subq $0x30, %rsp; .seh_stackalloc 0x30; .seh_endprologue; cli
    cmpb $0, KiCrashing(%rip); jne 1f /* one within another keeps the first one's registers */
    movq %gs:0x20, %rcx; movq KiPrcbContextOffset(%rip), %r10; movq (%rcx, %r10), %rcx
    call RtlCaptureContext
    movq %gs:0x20, %rcx; movq KiPrcbContextOffset(%rip), %r10; movq (%rcx, %r10), %rcx
    movq 0x40(%rsp), %rax
    movq %rax, 0x80(%rcx) /* Rcx */
    movq 0x30(%rsp), %rax
    movl %eax, 0x44(%rcx) /* EFlags */
    leaq 0x38(%rsp), %rax
    movq %rax, 0x98(%rcx) /* Rsp */
    leaq KeBugCheckEx(%rip), %rax
    movq %rax, 0xf8(%rcx) /* Rip */
1:  movl 0x40(%rsp), %ecx
    movq 0x48(%rsp), %rdx; movq 0x50(%rsp), %r8; movq 0x58(%rsp), %r9; movq 0x60(%rsp), %rax
    movq %rax, 0x20(%rsp); call KeBugCheck2
    int3
    .seh_endproc

/* KiSwapContext(old, new): rcx, rdx = KTHREAD. Callee-saved registers go on the stack, SSE (drivers
 * use it, the kernel does not) in the FXSAVE areas r8 and r9 point to. */
    FUNCTION KiSwapContext
    pushq %rbp; .seh_pushreg %rbp; pushq %rbx; .seh_pushreg %rbx; pushq %rdi; .seh_pushreg %rdi
    pushq %rsi; .seh_pushreg %rsi; pushq %r12; .seh_pushreg %r12; pushq %r13; .seh_pushreg %r13
    pushq %r14; .seh_pushreg %r14; pushq %r15; .seh_pushreg %r15; .seh_endprologue
    fxsave64 (%r8); movq %rsp, 0x58(%rcx); movq 0x58(%rdx), %rsp; fxrstor64 (%r9); popq %r15
    popq %r14; popq %r13; popq %r12; popq %rsi; popq %rdi; popq %rbx; popq %rbp; retq
    .seh_endproc

/* First instruction of a new thread; the zero return address above it ends every stack walk. */
    FUNCTION KiStartSystemThread
    .seh_stackalloc 0x38; .seh_endprologue; xorl %eax, %eax; movq %rax, %cr8; sti
    movq %r12, %rcx; movq %r13, %rdx; call PspSystemThreadStartup
    int3
    .seh_endproc

    .section .rdata,"dr"
    .globl KiTrapVectors, KiIsrVectors
    .p2align 3
KiTrapVectors:
    .quad KiDivideErrorFault, KiDebugTrapOrFault, KiNmiInterrupt, KiBreakpointTrap
    .quad KiUnexpectedTrap, KiBoundFault, KiInvalidOpcodeFault, KiUnexpectedTrap
    .quad KiDoubleFaultAbort, KiUnexpectedTrap, KiInvalidTssFault, KiSegmentNotPresentFault
    .quad KiStackFault, KiGeneralProtectionFault, KiPageFault
    .quad KiUnexpectedTrap, KiFloatingErrorFault, KiAlignmentFault, KiMcheckAbort, KiXmmException
KiIsrVectors:
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    .quad KiIsrEntry\n
    .endr
