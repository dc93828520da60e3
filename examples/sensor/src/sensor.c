// A kernel-mode sensor: start, stop, and what runs it.
#include "sensor.h"

#define TICK_MILLISECONDS   100
#define RESCAN_MILLISECONDS 1000

// Set by a test before a boot, found again in the dump of that boot.
struct {
    CHAR Marker[8];
    CHAR Value[64];
} SensorNonce = {"SNONCE:", ""};

static KTIMER Timer;
static KDPC TimerDpc;
static KEVENT StopEvent;
static PVOID WorkerThread;

static LONGLONG Milliseconds(LONG Count) {
    return Count * 10000LL;
}

// Copies REG_SZ Nonce of the Parameters key, if there is one, as ASCII.
static VOID ReadNonce(PCUNICODE_STRING RegistryPath) {
    WCHAR Buffer[256];
    UNICODE_STRING Path = {0, sizeof(Buffer), Buffer};
    UNICODE_STRING ValueName;
    OBJECT_ATTRIBUTES Attributes;
    HANDLE Key;
    ULONG Length;
    union {
        KEY_VALUE_PARTIAL_INFORMATION Information;
        UCHAR Bytes[sizeof(KEY_VALUE_PARTIAL_INFORMATION) + sizeof(SensorNonce.Value) * 2];
    } Value;
    if (!NT_SUCCESS(RtlAppendUnicodeStringToString(&Path, RegistryPath)) ||
        !NT_SUCCESS(RtlAppendUnicodeToString(&Path, L"\\Parameters")))
        return;
    InitializeObjectAttributes(&Attributes, &Path, OBJ_CASE_INSENSITIVE | OBJ_KERNEL_HANDLE, NULL,
                               NULL);
    if (!NT_SUCCESS(ZwOpenKey(&Key, KEY_READ, &Attributes)))
        return;
    RtlInitUnicodeString(&ValueName, L"Nonce");
    NTSTATUS Result = ZwQueryValueKey(Key, &ValueName, KeyValuePartialInformation, &Value,
                                      sizeof(Value), &Length);
    ZwClose(Key);
    if (!NT_SUCCESS(Result) || Value.Information.Type != REG_SZ)
        return;
    const UCHAR *Text = Value.Information.Data;
    SIZE_T Characters = Value.Information.DataLength / sizeof(WCHAR);
    for (SIZE_T Index = 0; Index < Characters && Index < sizeof(SensorNonce.Value) - 1; Index++)
        SensorNonce.Value[Index] = (CHAR)Text[Index * sizeof(WCHAR)];
}

static VOID SensorTimerDpc(PKDPC Dpc, PVOID Context, PVOID Argument1, PVOID Argument2) {
    UNREFERENCED_PARAMETER(Dpc);
    UNREFERENCED_PARAMETER(Context);
    UNREFERENCED_PARAMETER(Argument1);
    UNREFERENCED_PARAMETER(Argument2);
    ULONG Created = TakeProcessCount();
    PSENSOR_CONTENT Content = AcquireContent(TEMPLATE_RATE);
    if (Content != NULL) {
        AgeRateWindows(Content, Created);
        ReleaseContent(Content);
    }
    Content = AcquireContent(TEMPLATE_BURST);
    if (Content != NULL) {
        EvaluateBursts(Content, Created);
        ReleaseContent(Content);
    }
}

static VOID SensorWorkerThread(PVOID Context) {
    UNREFERENCED_PARAMETER(Context);
    LARGE_INTEGER Timeout = {.QuadPart = -Milliseconds(RESCAN_MILLISECONDS)};
    do {
        RefreshContent();
        PSENSOR_CONTENT Content = AcquireContent(TEMPLATE_OWNER);
        if (Content != NULL) {
            RunOwnerPolicies(Content);
            ReleaseContent(Content);
        }
    } while (KeWaitForSingleObject(&StopEvent, Executive, KernelMode, FALSE, &Timeout) ==
             STATUS_TIMEOUT);
    PsTerminateSystemThread(STATUS_SUCCESS);
}

static NTSTATUS StartWorkerThread(VOID) {
    HANDLE Thread;
    OBJECT_ATTRIBUTES Attributes;
    KeInitializeEvent(&StopEvent, NotificationEvent, FALSE);
    InitializeObjectAttributes(&Attributes, NULL, OBJ_KERNEL_HANDLE, NULL, NULL);
    NTSTATUS Result = PsCreateSystemThread(&Thread, THREAD_ALL_ACCESS, &Attributes, NULL, NULL,
                                           SensorWorkerThread, NULL);
    if (!NT_SUCCESS(Result))
        return Result;
    Result = ObReferenceObjectByHandle(Thread, SYNCHRONIZE, NULL, KernelMode, &WorkerThread, NULL);
    ZwClose(Thread);
    return Result;
}

static VOID StopTimer(VOID) {
    KeCancelTimer(&Timer);
    KeFlushQueuedDpcs();
}

static VOID StopWorkerThread(VOID) {
    KeSetEvent(&StopEvent, IO_NO_INCREMENT, FALSE);
    KeWaitForSingleObject(WorkerThread, Executive, KernelMode, FALSE, NULL);
    ObDereferenceObject(WorkerThread);
}

static VOID SensorUnload(PDRIVER_OBJECT DriverObject) {
    UNREFERENCED_PARAMETER(DriverObject);
    PsSetCreateProcessNotifyRoutineEx(SensorProcessNotify, TRUE);
    StopWorkerThread();
    StopTimer();
    DiscardContent();
    SensorPrint("unloaded\n");
}

NTSTATUS DriverEntry(PDRIVER_OBJECT DriverObject, PUNICODE_STRING RegistryPath) {
    LARGE_INTEGER Due = {.QuadPart = -Milliseconds(TICK_MILLISECONDS)};
    ReadNonce(RegistryPath);
    InitializeContent();
    RefreshContent();

    KeInitializeTimerEx(&Timer, NotificationTimer);
    KeInitializeDpc(&TimerDpc, SensorTimerDpc, NULL);
    KeSetTimerEx(&Timer, Due, TICK_MILLISECONDS, &TimerDpc);
    NTSTATUS Result = StartWorkerThread();
    if (!NT_SUCCESS(Result)) {
        SensorPrint("no worker thread: status %08x\n", Result);
        StopTimer();
        DiscardContent();
        return Result;
    }
    Result = PsSetCreateProcessNotifyRoutineEx(SensorProcessNotify, FALSE);
    if (!NT_SUCCESS(Result)) {
        SensorPrint("no process notifications: status %08x\n", Result);
        StopWorkerThread();
        StopTimer();
        DiscardContent();
        return Result;
    }
    DriverObject->DriverUnload = SensorUnload;
    SensorPrint("started\n");
    return STATUS_SUCCESS;
}
