// TEMPLATE_RATE: process creations over a sliding window.
//
// Criteria: 1 the number of buckets; 2 the lifetime in timer ticks, or a wildcard: for ever.
// The bug: a window retired by its lifetime is still summed in the tick that retires it.
#include "sensor.h"

#define MIN_BUCKETS 512
#define MAX_BUCKETS 4096

// Makes the windows the content asks for. On failure the caller discards the content, and with it
// those already made.
NTSTATUS CreateRateWindows(PSENSOR_CONTENT Content) {
    const CONTENT_INSTANCE *Instance = FirstInstance(Content);
    if (Content->Header.InstanceCount > MAX_RATE_WINDOWS)
        return STATUS_INVALID_PARAMETER;
    for (ULONG Index = 0; Index < Content->Header.InstanceCount; Index++) {
        const CONTENT_CRITERION *Buckets = FirstCriterion(Instance);
        const CONTENT_CRITERION *Lifetime = NextCriterion(Buckets);
        PRATE_WINDOW Window = &Content->RateWindows[Index];
        ULONG64 BucketCount = CriterionNumber(Buckets, MIN_BUCKETS);
        if (BucketCount < MIN_BUCKETS || BucketCount > MAX_BUCKETS)
            return STATUS_INVALID_PARAMETER;
        SIZE_T Bytes = BucketCount * sizeof(*Window->Buckets);
        Window->Buckets = ExAllocatePoolWithTag(NonPagedPoolNx, Bytes, SENSOR_TAG);
        if (Window->Buckets == NULL)
            return STATUS_INSUFFICIENT_RESOURCES;
        memset(Window->Buckets, 0, Bytes);
        Window->InstanceId = Instance->InstanceId;
        Window->BucketCount = (ULONG)BucketCount;
        Window->TicksLeft = (ULONG)CriterionNumber(Lifetime, 0);
        Content->RateWindowCount = Index + 1;
        Instance = (const CONTENT_INSTANCE *)NextCriterion(Lifetime);
    }
    return STATUS_SUCCESS;
}

VOID FreeRateWindows(PSENSOR_CONTENT Content) {
    for (ULONG Index = 0; Index < Content->RateWindowCount; Index++)
        ExFreePoolWithTag(Content->RateWindows[Index].Buckets, SENSOR_TAG);
    Content->RateWindowCount = 0;
}

SENSOR_CHAIN ULONG64 SumBuckets(const ULONG64 *Buckets, ULONG Count) {
    ULONG64 Sum = 0;
    for (ULONG Index = 0; Index < Count; Index++)
        Sum += Buckets[Index];
    return Sum;
}

static VOID RetireRateWindow(PRATE_WINDOW Window) {
    SensorPrint("rate window %u retired\n", Window->InstanceId);
    ExFreePoolWithTag(Window->Buckets, SENSOR_TAG);
}

SENSOR_CHAIN BOOLEAN AgeRateWindow(PRATE_WINDOW Window, ULONG Created) {
    Window->Position = (Window->Position + 1) % Window->BucketCount;
    Window->Buckets[Window->Position] = Created;
    if (Window->TicksLeft != 0 && --Window->TicksLeft == 0)
        RetireRateWindow(Window);
    return SumBuckets(Window->Buckets, Window->BucketCount) > Window->BucketCount;
}

// At DISPATCH_LEVEL, from the timer.
VOID AgeRateWindows(PSENSOR_CONTENT Content, ULONG Created) {
    for (ULONG Index = 0; Index < Content->RateWindowCount; Index++) {
        PRATE_WINDOW Window = &Content->RateWindows[Index];
        if (AgeRateWindow(Window, Created))
            SensorPrint("rate window %u: more than one process a tick\n", Window->InstanceId);
    }
}
