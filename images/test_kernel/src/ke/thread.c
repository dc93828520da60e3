/* Threads on one processor: ready queue, waits, events, timers, DPCs, mutexes. All of it runs at
 * DISPATCH_LEVEL; the clock interrupt preempts only code below that. */
#include "ke.h"
#include "ob.h"

BOOLEAN KiSchedulerRunning;
ETHREAD KiIdleThread;
static LIST_ENTRY KiReadyQueue, KiTimerList;
static ULONG64 KiNextThreadId = 8;
static OBJECT_TYPE KiThreadType = {.Name = "Thread"};
POBJECT_TYPE PsThreadType = &KiThreadType;
static PETHREAD KiDeadThread; /* its stack is freed by the next thread to run */

static PVOID KiFxArea(PKTHREAD Thread) {
    return (PVOID)(((ULONG64)((PETHREAD)Thread)->FxArea + 15) & ~15ULL);
}

void KiInitializeScheduler(void) {
    PETHREAD Idle = &KiIdleThread;
    InitializeListHead(&KiReadyQueue);
    InitializeListHead(&KiTimerList);
    Idle->Tcb.Header.Type = ThreadObject;
    InitializeListHead(&Idle->Tcb.Header.WaitListHead);
    Idle->Tcb.State = ThreadRunning;
    Idle->Tcb.InitialStack = Idle->Tcb.StackBase = (PVOID)KeLoaderBlock->StackTop;
    Idle->Tcb.StackLimit = (PVOID)(KeLoaderBlock->StackTop - 0x8000);
    __asm__ volatile("fxsave64 (%0)" ::"r"(KiFxArea(&Idle->Tcb)) : "memory");
    KiPcr.Prcb.CurrentThread = KiPcr.Prcb.IdleThread = &Idle->Tcb;
}

static void KiReadyThread(PKTHREAD Thread) {
    Thread->State = ThreadReady;
    InsertTailList(&KiReadyQueue, &Thread->WaitListEntry);
}

static void KiReapThread(void) {
    PETHREAD Dead = KiDeadThread;
    KiDeadThread = NULL;
    if (Dead) {
        KiFree(Dead->Tcb.StackLimit);
        ObfDereferenceObject(Dead);
    }
}

/* Gives the processor to the next ready thread. At DISPATCH_LEVEL; the caller has queued or parked
 * the current thread. Comes back when this thread runs again. */
static NOINLINE void KiSwapThread(void) {
    PKPRCB Prcb = KeGetCurrentPrcb();
    PKTHREAD Old = Prcb->CurrentThread;
    PKTHREAD New = IsListEmpty(&KiReadyQueue)
                       ? Prcb->IdleThread
                       : CONTAINING_RECORD(RemoveHeadList(&KiReadyQueue), KTHREAD, WaitListEntry);
    New->State = ThreadRunning;
    New->QuantumTarget = 0;
    if (New == Old) return;
    Prcb->CurrentThread = New;
    KiSwapContext(Old, New, KiFxArea(Old), KiFxArea(New));
    KiReapThread();
}

void KiQuantumEnd(void) { /* clock interrupt, at DISPATCH_LEVEL: time slicing */
    PKTHREAD Thread = KeGetCurrentPrcb()->CurrentThread;
    BOOLEAN Idle = Thread == KeGetCurrentPrcb()->IdleThread;
    if (IsListEmpty(&KiReadyQueue) || (!Idle && ++Thread->QuantumTarget < KI_QUANTUM_TICKS)) return;
    if (!Idle) KiReadyThread(Thread);
    KiSwapThread();
}

NORETURN void KiIdleLoop(void) {
    KiSchedulerRunning = TRUE;
    for (;;) {
        KIRQL Irql = KfRaiseIrql(DISPATCH_LEVEL);
        if (!IsListEmpty(&KiReadyQueue)) KiSwapThread();
        KeLowerIrql(Irql);
        KiDisable();
        if (IsListEmpty(&KiReadyQueue)) __asm__ volatile("sti; hlt" ::: "memory");
        KiEnable();
    }
}

NTSTATUS KiStartThread(KSTART_ROUTINE *Start, PVOID Context, PETHREAD *Result) {
    PETHREAD Thread;
    NTSTATUS Status = ObCreateObject(PsThreadType, sizeof(ETHREAD), (PVOID *)&Thread);
    if (!NT_SUCCESS(Status)) return Status;
    PUCHAR Stack = ExAllocatePool2(0x40, KI_STACK_BYTES, 'tskT'); /* unmapped pages on both sides */
    if (!Stack) return ObfDereferenceObject(Thread), STATUS_NO_MEMORY;
    PULONG64 Top = (PULONG64)(Stack + KI_STACK_BYTES) - 8; /* Top[7] = return address 0 */
    Top[-1] = (ULONG64)KiStartSystemThread;
    Top[-6] = (ULONG64)Start;   /* r12 */
    Top[-7] = (ULONG64)Context; /* r13 */
    Thread->Tcb.KernelStack = Top - 9;
    Thread->Tcb.StackLimit = Stack;
    Thread->Tcb.InitialStack = Thread->Tcb.StackBase = Stack + KI_STACK_BYTES;
    Thread->Tcb.Header.Type = ThreadObject;
    InitializeListHead(&Thread->Tcb.Header.WaitListHead);
    Thread->Tcb.Process = Thread->Tcb.ApcState.Process = PsInitialSystemProcess;
    Thread->StartAddress = Thread->Win32StartAddress = (PVOID)Start;
    Thread->StartContext = Context;
    Thread->CreateTime.QuadPart = KiQuerySystemTime();
    memcpy(KiFxArea(&Thread->Tcb), KiFxArea(&KiIdleThread.Tcb), 512);
    if (Result) ObfReferenceObject(Thread); /* one for the running thread, one for the caller */
    KIRQL Irql = KfRaiseIrql(DISPATCH_LEVEL);
    Thread->Cid.UniqueProcess = PsInitialSystemProcess->UniqueProcessId;
    Thread->Cid.UniqueThread = (HANDLE)(KiNextThreadId += 4);
    InsertTailList(&PsInitialSystemProcess->ThreadListHead, &Thread->ThreadListEntry);
    InsertTailList(&PsInitialSystemProcess->Pcb.ThreadListHead, &Thread->Tcb.ThreadListEntry);
    PsInitialSystemProcess->ActiveThreads++;
    KiReadyThread(&Thread->Tcb);
    KeLowerIrql(Irql);
    if (Result) *Result = Thread;
    return STATUS_SUCCESS;
}

static void KiConsumeSignal(PDISPATCHER_HEADER Object) {
    if (Object->Type == SynchronizationEventObject || Object->Type == TimerSynchronizationObject)
        Object->SignalState = 0;
}

static void KiEndWait(PKTHREAD Thread, NTSTATUS Status) {
    Thread->Timer.Header.Size = 0;
    Thread->WaitObject = NULL;
    Thread->WaitStatus = Status;
    KiReadyThread(Thread);
}

static void KiSatisfyWaiters(PDISPATCHER_HEADER Object) {
    while (!IsListEmpty(&Object->WaitListHead) && Object->SignalState > 0) {
        PLIST_ENTRY Entry = RemoveHeadList(&Object->WaitListHead);
        PKTHREAD Thread = CONTAINING_RECORD(Entry, KTHREAD, WaitListEntry);
        KiConsumeSignal(Object);
        if (Thread->Timer.Header.Size) RemoveEntryList(&Thread->Timer.TimerListEntry);
        KiEndWait(Thread, STATUS_SUCCESS);
    }
}

NORETURN NTSYSAPI NTSTATUS PsTerminateSystemThread(NTSTATUS Status) {
    PETHREAD Thread = PsGetCurrentThread_();
    KfRaiseIrql(DISPATCH_LEVEL);
    KiReapThread(); /* one that ended just before and was not followed by a known thread */
    Thread->ExitStatus = Status;
    Thread->ExitTime.QuadPart = KiQuerySystemTime();
    RemoveEntryList(&Thread->ThreadListEntry);
    RemoveEntryList(&Thread->Tcb.ThreadListEntry);
    PsInitialSystemProcess->ActiveThreads--;
    Thread->Tcb.Header.SignalState = 1;
    KiSatisfyWaiters(&Thread->Tcb.Header);
    Thread->Tcb.State = ThreadTerminated;
    KiDeadThread = Thread;
    KiSwapThread();
    __builtin_unreachable();
}

NORETURN void PspSystemThreadStartup(KSTART_ROUTINE *Start, PVOID Context) {
    Start(Context);
    PsTerminateSystemThread(STATUS_SUCCESS);
}

static void KiInsertTimer(KTIMER *Timer, LONG64 DueTime) {
    ULONG64 Now = KiQueryInterruptTime();
    LONG64 Delta = DueTime < 0 ? -DueTime : DueTime - KiQuerySystemTime();
    Timer->DueTime = Now + (Delta > 0 ? Delta : 0);
    Timer->Header.SignalState = 0;
    InsertTailList(&KiTimerList, &Timer->TimerListEntry);
}

static void KiExpireTimer(KTIMER *Timer) {
    RemoveEntryList(&Timer->TimerListEntry);
    if (Timer->Header.Size) { /* a thread's own wait timer */
        PKTHREAD Thread = CONTAINING_RECORD(Timer, KTHREAD, Timer);
        if (Thread->WaitObject) RemoveEntryList(&Thread->WaitListEntry);
        KiEndWait(Thread, STATUS_TIMEOUT);
        return;
    }
    Timer->Header.Signalling = 0;
    Timer->Header.SignalState = 1;
    KiSatisfyWaiters(&Timer->Header);
    if (Timer->Period) {
        KiInsertTimer(Timer, -(LONG64)Timer->Period * 10000);
        Timer->Header.Signalling = 1;
    }
    if (Timer->Dpc) KeInsertQueueDpc(Timer->Dpc, NULL, NULL);
}

void KiCheckTimers(void) {
    ULONG64 Now = KiQueryInterruptTime();
    for (PLIST_ENTRY Entry = KiTimerList.Flink; Entry != &KiTimerList;) {
        KTIMER *Timer = CONTAINING_RECORD(Entry, KTIMER, TimerListEntry);
        Entry = Entry->Flink;
        if (Timer->DueTime > Now) continue;
        KiExpireTimer(Timer);
        Entry = KiTimerList.Flink; /* others may have left the list with this one */
    }
}

NTSYSAPI NTSTATUS KeWaitForSingleObject(
    PVOID Object, KWAIT_REASON Reason, CHAR Mode, BOOLEAN Alertable, PLARGE_INTEGER Timeout) {
    PDISPATCHER_HEADER Header = Object;
    UNREFERENCED(Reason), UNREFERENCED(Mode), UNREFERENCED(Alertable);
    KIRQL Irql = KfRaiseIrql(DISPATCH_LEVEL);
    NTSTATUS Status = STATUS_SUCCESS;
    if (Header && Header->SignalState > 0) {
        KiConsumeSignal(Header);
    } else if (Timeout && Timeout->QuadPart == 0) {
        Status = STATUS_TIMEOUT;
    } else {
        PKTHREAD Thread = KeGetCurrentPrcb()->CurrentThread;
        /* ATTEMPTED_SWITCH_FROM_DPC, also for a wait under a spin lock */
        if (Irql >= DISPATCH_LEVEL) KeBugCheckEx(0xB8, (ULONG64)Thread, 0, 0, 0);
        Thread->State = ThreadWaiting;
        Thread->WaitObject = Header;
        if (Header) InsertTailList(&Header->WaitListHead, &Thread->WaitListEntry);
        if (Timeout) {
            Thread->Timer.Header.Size = 1;
            KiInsertTimer(&Thread->Timer, Timeout->QuadPart);
        }
        KiSwapThread();
        Status = (NTSTATUS)Thread->WaitStatus;
    }
    KeLowerIrql(Irql);
    return Status;
}

void KiSleep(ULONG Milliseconds) {
    LARGE_INTEGER Interval = {.QuadPart = -(LONG64)MAX(Milliseconds, 1) * 10000};
    KeWaitForSingleObject(NULL, Executive, 0, FALSE, &Interval);
}

NTSYSAPI void KeInitializeEvent(PKEVENT Event, EVENT_TYPE Type, BOOLEAN State) {
    Event->Header = (DISPATCHER_HEADER){.Type = (UCHAR)Type, .SignalState = State};
    InitializeListHead(&Event->Header.WaitListHead);
}

NTSYSAPI LONG KeSetEvent(PKEVENT Event, LONG Increment, BOOLEAN Wait) {
    UNREFERENCED(Increment), UNREFERENCED(Wait);
    KIRQL Irql = KfRaiseIrql(DISPATCH_LEVEL);
    LONG Old = Event->Header.SignalState;
    Event->Header.SignalState = 1;
    KiSatisfyWaiters(&Event->Header);
    KeLowerIrql(Irql);
    return Old;
}

void KiAcquireMutex(PKI_MUTEX Mutex) {
    if (!KiSchedulerRunning || KiCrashing) return;
    KIRQL Irql = KfRaiseIrql(DISPATCH_LEVEL);
    if (!Mutex->Gate.Header.WaitListHead.Flink) /* its first use */
        KeInitializeEvent(&Mutex->Gate, SynchronizationEvent, TRUE);
    KeLowerIrql(Irql);
    KeWaitForSingleObject(&Mutex->Gate, Executive, 0, FALSE, NULL);
    Mutex->Owner = KeGetCurrentPrcb()->CurrentThread;
}

void KiReleaseMutex(PKI_MUTEX Mutex) {
    if (!KiSchedulerRunning || KiCrashing || !Mutex->Owner) return;
    Mutex->Owner = NULL;
    KeSetEvent(&Mutex->Gate, 0, FALSE);
}

NTSYSAPI void KeInitializeTimerEx(KTIMER *Timer, TIMER_TYPE Type) {
    *Timer = (KTIMER){.Header = {.Type = (UCHAR)(TimerNotificationObject + Type)}};
    InitializeListHead(&Timer->Header.WaitListHead);
    InitializeListHead(&Timer->TimerListEntry);
}

NTSYSAPI BOOLEAN KeSetTimerEx(KTIMER *Timer, LARGE_INTEGER DueTime, LONG Period, PKDPC Dpc) {
    KIRQL Irql = KfRaiseIrql(DISPATCH_LEVEL);
    BOOLEAN WasSet = KeCancelTimer(Timer);
    Timer->Period = (ULONG)Period;
    Timer->Dpc = Dpc;
    Timer->Header.Signalling = 1; /* inserted */
    KiInsertTimer(Timer, DueTime.QuadPart);
    KeLowerIrql(Irql);
    return WasSet;
}

NTSYSAPI BOOLEAN KeCancelTimer(KTIMER *Timer) {
    KIRQL Irql = KfRaiseIrql(DISPATCH_LEVEL);
    BOOLEAN WasSet = Timer->Header.Signalling;
    if (WasSet) RemoveEntryList(&Timer->TimerListEntry);
    Timer->Header.Signalling = 0;
    KeLowerIrql(Irql);
    return WasSet;
}

NTSYSAPI void KeInitializeDpc(PKDPC Dpc, KDEFERRED_ROUTINE *Routine, PVOID Context) {
    *Dpc = (KDPC){.Type = 19, .DeferredRoutine = Routine, .DeferredContext = Context};
}

NTSYSAPI BOOLEAN KeInsertQueueDpc(PKDPC Dpc, PVOID Argument1, PVOID Argument2) {
    KIRQL Irql = KfRaiseIrql(DISPATCH_LEVEL);
    PKPRCB Prcb = KeGetCurrentPrcb();
    BOOLEAN Inserted = !Dpc->DpcData;
    if (Inserted) {
        Dpc->SystemArgument1 = Argument1;
        Dpc->SystemArgument2 = Argument2;
        Dpc->DpcListEntry = NULL;
        Dpc->DpcData = Prcb;
        *(Prcb->DpcListTail ? (PKDPC *)&Prcb->DpcListTail->DpcListEntry : &Prcb->DpcListHead) = Dpc;
        Prcb->DpcListTail = Dpc;
    }
    KeLowerIrql(Irql);
    return Inserted;
}

void KiRetireDpcList(void) { /* at DISPATCH_LEVEL, interrupts on */
    PKPRCB Prcb = KeGetCurrentPrcb();
    if (Prcb->NestingLevel++ == 0) /* else a DPC lowered to below DISPATCH_LEVEL: not again */
        while (Prcb->DpcListHead) {
            PKDPC Dpc = Prcb->DpcListHead;
            Prcb->DpcListHead = Dpc->DpcListEntry;
            if (!Prcb->DpcListHead) Prcb->DpcListTail = NULL;
            Dpc->DpcData = NULL;
            Prcb->DpcRoutine = Dpc->DeferredRoutine;
            Prcb->DpcTicks = 0;
            Dpc->DeferredRoutine(
                Dpc, Dpc->DeferredContext, Dpc->SystemArgument1, Dpc->SystemArgument2);
            Prcb->DpcRoutine = NULL;
        }
    Prcb->NestingLevel--;
}

NTSYSAPI void KeFlushQueuedDpcs(void) {
    KIRQL Irql = KfRaiseIrql(DISPATCH_LEVEL);
    KiRetireDpcList();
    KeLowerIrql(Irql);
}

/* -- IRQL, spin locks (one processor: raising IRQL is the lock) -------------------------------- */
NTSYSAPI KIRQL KeGetCurrentIrql(void) {
    ULONG64 Irql;
    __asm__ volatile("movq %%cr8, %0" : "=r"(Irql));
    return (KIRQL)Irql;
}

static inline void KiSetIrql(KIRQL Irql) {
    __asm__ volatile("movq %0, %%cr8" ::"r"((ULONG64)Irql) : "memory");
}

NTSYSAPI KIRQL KfRaiseIrql(KIRQL NewIrql) {
    KIRQL Old = KeGetCurrentIrql();
    if (NewIrql > Old) KiSetIrql(NewIrql);
    return Old;
}

NTSYSAPI void KeLowerIrql(KIRQL NewIrql) {
    if (NewIrql < DISPATCH_LEVEL && KiPcr.Prcb.DpcListHead && KiSchedulerRunning && !KiCrashing &&
        KeGetCurrentIrql() == DISPATCH_LEVEL)
        KiRetireDpcList();
    KiSetIrql(NewIrql);
}

NTSYSAPI void KeInitializeSpinLock(PKSPIN_LOCK Lock) { *Lock = 0; }

NTSYSAPI KIRQL KeAcquireSpinLockRaiseToDpc(PKSPIN_LOCK Lock) {
    KIRQL Irql = KfRaiseIrql(DISPATCH_LEVEL);
    /* Taken twice by its holder it spins for good, as it would. */
    while (*(volatile KSPIN_LOCK *)Lock) __asm__ volatile("pause");
    *Lock = 1;
    return Irql;
}

NTSYSAPI void KeReleaseSpinLock(PKSPIN_LOCK Lock, KIRQL OldIrql) {
    *Lock = 0;
    KeLowerIrql(OldIrql);
}
