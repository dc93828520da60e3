/* From a fault to a handler or a bug check. */
#include "ke.h"
#include "mm.h"

/* A fault no handler may see: the address lies in system space, where a pointer has no business
 * being wrong. The raw third parameter is the trap frame; KeBugCheck2 shows its instruction
 * pointer. */
static NOINLINE void MiSystemFault(ULONG64 FaultCode, ULONG64 Address, PKTRAP_FRAME TrapFrame) {
    ULONG64 Access = FaultCode & 0x10 ? 0x10 : FaultCode & 2;
    if (FaultCode & 1 && FaultCode & 0x10) /* ATTEMPTED_EXECUTE_OF_NOEXECUTE_MEMORY */
        KeBugCheckEx(0xFC, Address, MiGetPhysicalAddress((PVOID)Address), (ULONG64)TrapFrame, 2);
    if (FaultCode & 1 && FaultCode & 2) /* ATTEMPTED_WRITE_TO_READONLY_MEMORY */
        KeBugCheckEx(0xBE, Address, MiGetPhysicalAddress((PVOID)Address), (ULONG64)TrapFrame, 0xB);
    KeBugCheckEx(0x50, Address, Access, (ULONG64)TrapFrame, 2); /* PAGE_FAULT_IN_NONPAGED_AREA */
}

/* Called by KiPageFault; a failure status becomes an exception, or with IRQL too high a bug check.
 */
NTSTATUS MmAccessFault(ULONG64 FaultCode, ULONG64 Address, CHAR Mode, PKTRAP_FRAME TrapFrame) {
    UNREFERENCED(Mode);
    if (TrapFrame->PreviousIrql >= DISPATCH_LEVEL || !(TrapFrame->EFlags & 0x200))
        return STATUS(0xD0000006); /* STATUS_IN_PAGE_ERROR: paging is not possible here */
    if (Address < MI_USER_LIMIT) return STATUS_ACCESS_VIOLATION;
    MiSystemFault(FaultCode, Address, TrapFrame);
    return STATUS_SUCCESS;
}

static void KiContextFromFrames(PCONTEXT Context, PKEXCEPTION_FRAME Frame, PKTRAP_FRAME Trap) {
    memset(Context, 0, sizeof(*Context));
    Context->ContextFlags = CONTEXT_FULL | CONTEXT_SEGMENTS;
    Context->MxCsr = Trap->MxCsr;
    Context->SegCs = Trap->SegCs;
    Context->SegSs = Trap->SegSs;
    Context->SegDs = Context->SegEs = 0x2b;
    Context->EFlags = Trap->EFlags;
    Context->Rax = Trap->Rax, Context->Rcx = Trap->Rcx, Context->Rdx = Trap->Rdx;
    Context->Rbx = Trap->Rbx, Context->Rsp = Trap->Rsp, Context->Rbp = Trap->Rbp;
    Context->Rsi = Trap->Rsi, Context->Rdi = Trap->Rdi;
    Context->R8 = Trap->R8, Context->R9 = Trap->R9, Context->R10 = Trap->R10;
    Context->R11 = Trap->R11, Context->R12 = Frame->R12, Context->R13 = Frame->R13;
    Context->R14 = Frame->R14, Context->R15 = Frame->R15, Context->Rip = Trap->Rip;
    memcpy(&Context->Xmm[0], &Trap->Xmm0, 6 * sizeof(M128A));
    memcpy(&Context->Xmm[6], Frame->Xmm6To15, sizeof(Frame->Xmm6To15));
}

static void KiContextToFrames(const CONTEXT *Context, PKEXCEPTION_FRAME Frame, PKTRAP_FRAME Trap) {
    Trap->Rax = Context->Rax, Trap->Rcx = Context->Rcx, Trap->Rdx = Context->Rdx;
    Trap->Rbx = Context->Rbx, Trap->Rsp = Context->Rsp, Trap->Rbp = Context->Rbp;
    Trap->Rsi = Context->Rsi, Trap->Rdi = Context->Rdi, Trap->R8 = Context->R8;
    Trap->R9 = Context->R9, Trap->R10 = Context->R10, Trap->R11 = Context->R11;
    Trap->Rip = Context->Rip, Trap->EFlags = Context->EFlags;
    Frame->R12 = Context->R12, Frame->R13 = Context->R13;
    Frame->R14 = Context->R14, Frame->R15 = Context->R15;
}

/* Returns only when a handler asked to continue at the (perhaps changed) context. */
void KiDispatchException(PEXCEPTION_RECORD Record, PKEXCEPTION_FRAME Frame, PKTRAP_FRAME Trap) {
    CONTEXT Context;
    if (Trap->PreviousIrql < DISPATCH_LEVEL && Trap->EFlags & 0x200) KiEnable();
    KiContextFromFrames(&Context, Frame, Trap);
    if (!RtlDispatchException(Record, &Context)) /* KMODE_EXCEPTION_NOT_HANDLED */
        KeBugCheckEx(0x1E,
            (ULONG)Record->ExceptionCode | 0xffffffff00000000ULL * (Record->ExceptionCode < 0),
            (ULONG64)Record->ExceptionAddress, Record->ExceptionInformation[0],
            Record->ExceptionInformation[1]);
    KiContextToFrames(&Context, Frame, Trap);
}

void KiProcessNMI(PKTRAP_FRAME TrapFrame) {
    UNREFERENCED(TrapFrame);
    if (KiCrashing) /* the dump is being written: let it */
        return;
    KeBugCheckEx(0x80, 0x4F4454, 0, 0, 0); /* NMI_HARDWARE_FAILURE, as HAL's "OEM" handler */
}

/* The filter around every system thread. */
static LONG PspUnhandledExceptionInSystemThread(PEXCEPTION_POINTERS Pointers) {
    PEXCEPTION_RECORD Record = Pointers->ExceptionRecord;
    KeBugCheckEx(0x7E, (ULONG64)(LONG64)Record->ExceptionCode, (ULONG64)Record->ExceptionAddress,
        (ULONG64)Record, (ULONG64)Pointers->ContextRecord);
}

NORETURN void PspSystemThreadStartup(KSTART_ROUTINE *Start, PVOID Context) {
    __try {
        Start(Context);
    } __except (PspUnhandledExceptionInSystemThread((PEXCEPTION_POINTERS)_exception_info())) {}
    PsTerminateSystemThread(STATUS_SUCCESS);
}
