/* From a fault to a handler or a bug check. */
#include "ke.h"
#include "mm.h"

/* A bad address in system space, which no handler may see. The raw third parameter is the trap
 * frame; KeBugCheck2 shows its instruction pointer. */
NORETURN static NOINLINE void MiSystemFault(
    ULONG64 FaultCode, ULONG64 Address, PKTRAP_FRAME TrapFrame) {
    ULONG64 Access = FaultCode & 0x10 ? 0x10 : FaultCode & 2;
    if (FaultCode & 1 && FaultCode & 0x10) /* ATTEMPTED_EXECUTE_OF_NOEXECUTE_MEMORY */
        KeBugCheckEx(0xFC, Address, MiGetPhysicalAddress((PVOID)Address), (ULONG64)TrapFrame, 2);
    if (FaultCode & 1 && FaultCode & 2) /* ATTEMPTED_WRITE_TO_READONLY_MEMORY */
        KeBugCheckEx(0xBE, Address, MiGetPhysicalAddress((PVOID)Address), (ULONG64)TrapFrame, 0xB);
    KeBugCheckEx(0x50, Address, Access, (ULONG64)TrapFrame, 2); /* PAGE_FAULT_IN_NONPAGED_AREA */
}

/* Called by KiPageFault: a failure becomes an exception, or with IRQL too high a bug check. */
NTSTATUS MmAccessFault(ULONG64 FaultCode, ULONG64 Address, PKTRAP_FRAME TrapFrame) {
    if (TrapFrame->PreviousIrql >= DISPATCH_LEVEL || !(TrapFrame->EFlags & 0x200))
        return STATUS(0xD0000006); /* STATUS_IN_PAGE_ERROR: paging is not possible here */
    if (Address < MI_USER_LIMIT) return STATUS_ACCESS_VIOLATION;
    MiSystemFault(FaultCode, Address, TrapFrame);
}

/* A fault as CONTEXT and EXCEPTION_RECORD. No frame can have a handler (an import of
 * __C_specific_handler is refused) and every thread is a system thread: what its filter does in
 * Windows follows at once, SYSTEM_THREAD_EXCEPTION_NOT_HANDLED. */
void KiDispatchException(PEXCEPTION_RECORD Record, PKEXCEPTION_FRAME Frame, PKTRAP_FRAME Trap) {
    CONTEXT Context;
    memset(&Context, 0, sizeof(Context));
    Context.ContextFlags = CONTEXT_FULL | CONTEXT_SEGMENTS;
    *(PULONG)(Context.FltSave + 0x18) = Context.MxCsr = Trap->MxCsr;
    Context.SegCs = Trap->SegCs, Context.SegSs = Trap->SegSs;
    Context.SegDs = Context.SegEs = 0x2b;
    Context.EFlags = Trap->EFlags, Context.Rip = Trap->Rip;
    Context.Rax = Trap->Rax, Context.Rcx = Trap->Rcx, Context.Rdx = Trap->Rdx;
    Context.Rbx = Trap->Rbx, Context.Rsp = Trap->Rsp, Context.Rbp = Trap->Rbp;
    Context.Rsi = Trap->Rsi, Context.Rdi = Trap->Rdi;
    memcpy(&Context.R8, &Trap->R8, 4 * sizeof(ULONG64));
    memcpy(&Context.R12, &Frame->R12, 4 * sizeof(ULONG64));
    memcpy(&Context.Xmm[0], &Trap->Xmm0, 6 * sizeof(M128A));
    memcpy(&Context.Xmm[6], Frame->Xmm6To15, sizeof(Frame->Xmm6To15));
    KeBugCheckEx(0x7E, (ULONG64)(LONG64)Record->ExceptionCode, (ULONG64)Record->ExceptionAddress,
        (ULONG64)Record, (ULONG64)&Context);
}

void KiProcessNMI(void) {
    if (KiCrashing) return; /* the dump is being written: let it */
    KeBugCheckEx(
        0x80, 0x4F4454, 0, 0, 0); /* NMI_HARDWARE_FAILURE, as HAL reports an unclaimed one */
}
