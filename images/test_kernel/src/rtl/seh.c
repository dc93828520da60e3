/* Structured exception handling for x64 kernel code: a search pass up the stack for a filter that
 * takes the exception, then an unwind pass that runs __finally blocks down to the one that did.
 * Semantics: Windows Internals, and "x64 exception handling" in Microsoft's C++ documentation. */
#include "ki.h"

#define STATUS_UNWIND               STATUS(0xC0000027)
#define STATUS_BAD_STACK            STATUS(0xC0000028)
#define KMODE_EXCEPTION_NOT_HANDLED 0x1E

typedef struct _SCOPE_TABLE {
    ULONG Count;
    struct {
        ULONG BeginAddress, EndAddress, HandlerAddress, JumpTarget; /* JumpTarget 0: __finally */
    } Scope[];
} SCOPE_TABLE, *PSCOPE_TABLE;
typedef LONG EXCEPTION_FILTER(PEXCEPTION_POINTERS Pointers, PVOID Frame);
typedef void TERMINATION_HANDLER(BOOLEAN Abnormal, PVOID Frame);

/* context.S: call the dispatcher context's handler, in a frame whose own handler is one of the two
 * below */
EXCEPTION_ROUTINE RtlpExecuteHandlerForException, RtlpExecuteHandlerForUnwind;
EXCEPTION_ROUTINE RtlpExceptionHandler, RtlpUnwindHandler;
#define RTL_SAVED_DISPATCHER(Frame) (*(PDISPATCHER_CONTEXT *)((PUCHAR)(Frame) + 0x20))

/* An exception inside a handler that was called for an exception. */
EXCEPTION_DISPOSITION RtlpExceptionHandler(
    PEXCEPTION_RECORD Record, PVOID Frame, PCONTEXT Context, PDISPATCHER_CONTEXT Dispatcher) {
    UNREFERENCED(Context);
    if (Record->ExceptionFlags & EXCEPTION_UNWIND) return ExceptionContinueSearch;
    Dispatcher->EstablisherFrame = RTL_SAVED_DISPATCHER(Frame)->EstablisherFrame;
    return ExceptionNestedException;
}

/* An exception, or another unwind, inside a handler that was called for an unwind: it goes on where
 * that unwind was, so that no __finally runs twice. */
EXCEPTION_DISPOSITION RtlpUnwindHandler(
    PEXCEPTION_RECORD Record, PVOID Frame, PCONTEXT Context, PDISPATCHER_CONTEXT Dispatcher) {
    ULONG64 TargetIp = Dispatcher->TargetIp;
    UNREFERENCED(Record);
    UNREFERENCED(Context);
    *Dispatcher = *RTL_SAVED_DISPATCHER(Frame);
    Dispatcher->TargetIp = TargetIp;
    return ExceptionCollidedUnwind;
}

/* Unwinds Context by one frame and describes that frame. FALSE where the stack makes no sense: it
 * must go up, and stay in the thread's stack once there (an interrupt stack is left only for it).
 */
static BOOLEAN RtlpStep(ULONG HandlerType, PDISPATCHER_CONTEXT Dispatcher, PCONTEXT Context) {
    PETHREAD Thread = PsGetCurrentThread_();
    ULONG64 Low = Thread != NULL ? (ULONG64)Thread->Tcb.StackLimit : 0;
    ULONG64 High = Thread != NULL ? (ULONG64)Thread->Tcb.StackBase : 0;
    ULONG64 Old = Context->Rsp;
    if (Context->Rip == 0) return FALSE;
    Dispatcher->ControlPc = Context->Rip;
    Dispatcher->FunctionEntry = RtlLookupFunctionEntry(Context->Rip, &Dispatcher->ImageBase, NULL);
    Dispatcher->LanguageHandler = RtlVirtualUnwind(HandlerType, Dispatcher->ImageBase, Context->Rip,
        Dispatcher->FunctionEntry, Context, &Dispatcher->HandlerData, &Dispatcher->EstablisherFrame,
        NULL);
    Dispatcher->ScopeIndex = 0;
    Dispatcher->HistoryTable = NULL;
    ULONG64 Frame = Dispatcher->EstablisherFrame, New = Context->Rsp;
    BOOLEAN OnThread = Old >= Low && Old < High, ToThread = New >= Low && New <= High;
    return Context->Rip != 0 && Frame % 8 == 0 && New % 8 == 0 && Frame >= Old &&
           MiIsAddressValid((PVOID)Frame) &&
           (New > Frame ? ToThread || !OnThread : ToThread && !OnThread);
}

/* After a collided unwind: the frame that Dispatcher tells of is left again, without a handler. */
static void RtlpResume(PDISPATCHER_CONTEXT Dispatcher, PCONTEXT Context) {
    PVOID Data;
    ULONG64 Frame;
    *Context = *Dispatcher->ContextRecord;
    RtlVirtualUnwind(UNW_FLAG_NHANDLER, Dispatcher->ImageBase, Dispatcher->ControlPc,
        Dispatcher->FunctionEntry, Context, &Data, &Frame, NULL);
}

/* TRUE: a filter wants execution to go on at Context, which it may have changed. FALSE: nobody took
 * it. Does not come back when a filter took it: its __except block runs. */
NTSYSAPI BOOLEAN RtlDispatchException(PEXCEPTION_RECORD Record, PCONTEXT Context) {
    CONTEXT Walk = *Context;
    DISPATCHER_CONTEXT Dispatcher = {0};
    ULONG64 NestedFrame = 0;
    ULONG Flags = Record->ExceptionFlags & EXCEPTION_NONCONTINUABLE;
    while (RtlpStep(UNW_FLAG_EHANDLER, &Dispatcher, &Walk)) {
        while (Dispatcher.LanguageHandler != NULL) {
            ULONG64 Frame = Dispatcher.EstablisherFrame;
            Dispatcher.ContextRecord = Context;
            Record->ExceptionFlags = Flags;
            EXCEPTION_DISPOSITION Disposition =
                RtlpExecuteHandlerForException(Record, (PVOID)Frame, Context, &Dispatcher);
            if (Disposition == ExceptionContinueExecution)
                return !((Flags | Record->ExceptionFlags) & EXCEPTION_NONCONTINUABLE);
            if (NestedFrame == Frame) Flags &= ~EXCEPTION_NESTED_CALL;
            if (Disposition == ExceptionNestedException) {
                Flags |= EXCEPTION_NESTED_CALL;
                NestedFrame = MAX(NestedFrame, Dispatcher.EstablisherFrame);
            }
            if (Disposition != ExceptionCollidedUnwind) break;
            RtlpResume(&Dispatcher, &Walk);
        }
    }
    return FALSE;
}

/* Leaves every frame below TargetFrame, running their __finally blocks, then goes on in that frame
 * at TargetIp with ReturnValue in rax. Context is scratch space. */
NTSYSAPI void RtlUnwindEx(PVOID TargetFrame, PVOID TargetIp, PEXCEPTION_RECORD Record,
    PVOID ReturnValue, PCONTEXT Context, PVOID History) {
    CONTEXT Caller;
    DISPATCHER_CONTEXT Dispatcher = {0};
    EXCEPTION_RECORD Local = {.ExceptionCode = STATUS_UNWIND};
    UNREFERENCED(History);
    RtlCaptureContext(Context);
    Caller = *Context;
    if (Record == NULL) Record = &Local;
    ULONG Flags = (Record->ExceptionFlags & EXCEPTION_NONCONTINUABLE) | EXCEPTION_UNWINDING |
                  (TargetFrame == NULL ? EXCEPTION_EXIT_UNWIND : 0);
    while (RtlpStep(UNW_FLAG_UHANDLER, &Dispatcher, &Caller)) {
        for (ULONG Collided = 0; Dispatcher.LanguageHandler != NULL;
             Collided = EXCEPTION_COLLIDED_UNWIND) {
            PVOID Frame = (PVOID)Dispatcher.EstablisherFrame;
            Context->Rax = (ULONG64)ReturnValue;
            Dispatcher.TargetIp = (ULONG64)TargetIp;
            Dispatcher.ContextRecord = Context;
            Record->ExceptionFlags =
                Flags | Collided | (Frame == TargetFrame ? EXCEPTION_TARGET_UNWIND : 0);
            if (RtlpExecuteHandlerForUnwind(Record, Frame, Context, &Dispatcher) !=
                ExceptionCollidedUnwind)
                break;
            *Context = *Dispatcher.ContextRecord;
            RtlpResume(&Dispatcher, &Caller);
        }
        if ((PVOID)Dispatcher.EstablisherFrame == TargetFrame) {
            Context->Rax = (ULONG64)ReturnValue;
            Context->Rip = (ULONG64)TargetIp;
            RtlRestoreContext(Context, Record);
        }
        *Context = Caller;
    }
    KeBugCheckEx(KMODE_EXCEPTION_NOT_HANDLED, STATUS_BAD_STACK, Dispatcher.ControlPc,
        (ULONG64)TargetFrame, 0);
}

/* The handler that compilers name for C functions with __try. */
NTSYSAPI EXCEPTION_DISPOSITION __C_specific_handler(
    PEXCEPTION_RECORD Record, PVOID Frame, PCONTEXT Context, PDISPATCHER_CONTEXT Dispatcher) {
    PSCOPE_TABLE Table = Dispatcher->HandlerData;
    ULONG64 Base = Dispatcher->ImageBase;
    ULONG Pc = (ULONG)(Dispatcher->ControlPc - Base);
    ULONG Target = (ULONG)(Dispatcher->TargetIp - Base);
    BOOLEAN IsTarget = (Record->ExceptionFlags & EXCEPTION_TARGET_UNWIND) != 0;
    EXCEPTION_POINTERS Pointers = {Record, Context};
    for (ULONG At = Dispatcher->ScopeIndex; At < Table->Count; At++) {
        ULONG Begin = Table->Scope[At].BeginAddress, End = Table->Scope[At].EndAddress;
        ULONG Handler = Table->Scope[At].HandlerAddress, Jump = Table->Scope[At].JumpTarget;
        if (Pc < Begin || Pc >= End) continue;
        if (Record->ExceptionFlags & EXCEPTION_UNWIND) {
            /* the scope to go on in, or its own __except, ends the unwind of this frame */
            if (IsTarget && ((Target >= Begin && Target < End) || (Jump != 0 && Jump == Target)))
                break;
            if (Jump == 0) {
                Dispatcher->ScopeIndex = At + 1;
                ((TERMINATION_HANDLER *)(Base + Handler))(TRUE, Frame);
            }
        } else if (Jump != 0) { /* 1 in place of a filter: EXCEPTION_EXECUTE_HANDLER */
            LONG Answer =
                Handler == 1 ? 1 : ((EXCEPTION_FILTER *)(Base + Handler))(&Pointers, Frame);
            if (Answer < 0) return ExceptionContinueExecution;
            if (Answer > 0)
                RtlUnwindEx(Frame, (PVOID)(Base + Jump), Record,
                    (PVOID)(ULONG64)(ULONG)Record->ExceptionCode, Dispatcher->ContextRecord, NULL);
        }
    }
    return ExceptionContinueSearch;
}
