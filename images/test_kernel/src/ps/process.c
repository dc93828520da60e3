/* Processes. Only System runs code; the others are entries of a scripted source, in the process
 * list and in notify callbacks like real ones, without address spaces of their own. */
#include "ke.h"
#include "ob.h"

#define NOTIFY_MAX 64

LIST_ENTRY PsActiveProcessHead = {&PsActiveProcessHead, &PsActiveProcessHead};
PEPROCESS PsInitialSystemProcess;
static OBJECT_TYPE PspProcessType = {.Name = "Process"};
POBJECT_TYPE PsProcessType = &PspProcessType;
static CREATE_PROCESS_NOTIFY_EX *PspCreateProcessNotifyRoutine[NOTIFY_MAX];
static ULONG64 PspNextProcessId = 0x1C;
static KI_MUTEX PspNotifyLock;

static PEPROCESS PspAllocateProcess(PCSTR Name, HANDLE Id, HANDLE Parent) {
    PEPROCESS Process;
    if (!NT_SUCCESS(ObCreateObject(PsProcessType, sizeof *Process, (PVOID *)&Process))) return NULL;
    Process->Pcb.Header.Type = ProcessObject;
    InitializeListHead(&Process->Pcb.Header.WaitListHead);
    InitializeListHead(&Process->Pcb.ThreadListHead);
    InitializeListHead(&Process->ThreadListHead);
    Process->Pcb.DirectoryTableBase = KeLoaderBlock->PageTableRoot;
    Process->UniqueProcessId = Id;
    Process->InheritedFromUniqueProcessId = Parent;
    RtlCopyText(Process->ImageFileName, sizeof(Process->ImageFileName), Name);
    KIRQL Irql = KfRaiseIrql(DISPATCH_LEVEL);
    InsertTailList(&PsActiveProcessHead, &Process->ActiveProcessLinks);
    KeLowerIrql(Irql);
    return Process;
}

void PspInitialize(void) {
    PsInitialSystemProcess = PspAllocateProcess("System", (HANDLE)4, NULL);
    KiIdleThread.Tcb.Process = KiIdleThread.Tcb.ApcState.Process = PsInitialSystemProcess;
    KiIdleThread.Cid.UniqueProcess = (HANDLE)4;
}

static NOINLINE void PspCallProcessNotifyRoutines(PEPROCESS Process, PPS_CREATE_NOTIFY_INFO Info) {
    for (ULONG i = 0; i < NOTIFY_MAX; i++)
        if (PspCreateProcessNotifyRoutine[i])
            PspCreateProcessNotifyRoutine[i](Process, Process->UniqueProcessId, Info);
}

PEPROCESS PspCreateProcess(PCSTR ImagePath, PCSTR CommandLine, PEPROCESS Parent, NTSTATUS *Status) {
    PCSTR Name = ImagePath;
    for (PCSTR Part = ImagePath; *Part; Part++)
        if (*Part == '\\') Name = Part + 1;
    KiAcquireMutex(&PspNotifyLock);
    PEPROCESS Process =
        PspAllocateProcess(Name, (HANDLE)(PspNextProcessId += 4), Parent->UniqueProcessId);
    *Status = Process ? STATUS_SUCCESS : STATUS_INSUFFICIENT_RESOURCES;
    if (Process) {
        CHAR NtPath[300];
        UNICODE_STRING Image = {0}, Command = {0};
        RtlFormat(NtPath, sizeof(NtPath), "\\??\\%s", ImagePath);
        RtlTextToUnicode(NtPath, &Image);
        RtlTextToUnicode(CommandLine, &Command);
        Process->CreateTime.QuadPart = KiQuerySystemTime();
        PS_CREATE_NOTIFY_INFO Info = {.Size = sizeof(Info),
            .Flags = 1,
            .ParentProcessId = Parent->UniqueProcessId,
            .CreatingThreadId = PsGetCurrentThread_()->Cid,
            .ImageFileName = &Image,
            .CommandLine = &Command};
        PspCallProcessNotifyRoutines(Process, &Info);
        *Status = Info.CreationStatus;
        RtlFreeUnicodeString(&Image);
        RtlFreeUnicodeString(&Command);
    }
    KiReleaseMutex(&PspNotifyLock);
    if (Process && !NT_SUCCESS(*Status)) { /* a callback forbade it */
        PspExitProcess(Process);
        return NULL;
    }
    return Process;
}

void PspExitProcess(PEPROCESS Process) {
    KiAcquireMutex(&PspNotifyLock);
    PspCallProcessNotifyRoutines(Process, NULL);
    KIRQL Irql = KfRaiseIrql(DISPATCH_LEVEL);
    RemoveEntryList(&Process->ActiveProcessLinks);
    KeLowerIrql(Irql);
    KiReleaseMutex(&PspNotifyLock);
    ObfDereferenceObject(Process);
}

NTSYSAPI NTSTATUS PsSetCreateProcessNotifyRoutineEx(
    CREATE_PROCESS_NOTIFY_EX *Routine, BOOLEAN Remove) {
    NTSTATUS Status = STATUS_INVALID_PARAMETER; /* also for one more than there is room for */
    KiAcquireMutex(&PspNotifyLock); /* a callback under way ends before its driver may go */
    for (ULONG i = 0; i < NOTIFY_MAX && !NT_SUCCESS(Status); i++)
        if (PspCreateProcessNotifyRoutine[i] == (Remove ? Routine : NULL)) {
            PspCreateProcessNotifyRoutine[i] = Remove ? NULL : Routine;
            Status = STATUS_SUCCESS;
        }
    KiReleaseMutex(&PspNotifyLock);
    return Status;
}

NTSYSAPI HANDLE PsGetCurrentProcessId(void) { return PsGetCurrentThread_()->Cid.UniqueProcess; }
NTSYSAPI HANDLE PsGetCurrentThreadId(void) { return PsGetCurrentThread_()->Cid.UniqueThread; }

NTSYSAPI NTSTATUS PsCreateSystemThread(PHANDLE Handle, ULONG Access, POBJECT_ATTRIBUTES Attributes,
    HANDLE Process, PCLIENT_ID ClientId, KSTART_ROUTINE *Start, PVOID Context) {
    PETHREAD Thread;
    UNREFERENCED(Attributes), UNREFERENCED(Process);
    NTSTATUS Status = KiStartThread(Start, Context, &Thread);
    if (!NT_SUCCESS(Status)) return Status;
    if (ClientId) *ClientId = Thread->Cid;
    UNREFERENCED(Access);
    return ObInsertObject(Thread, Handle);
}
