// TEMPLATE_BURST: many processes created within one timer tick.
//
// Criterion: 1 the number of processes that makes a burst.
// The bug: an instance whose Length is 0 is never left behind.
#include "sensor.h"

#pragma pack(push, 1)
typedef struct _BURST_INSTANCE {
    CONTENT_INSTANCE Instance;
    CONTENT_CRITERION Criterion;
    ULONG64 Threshold; // not there when the criterion is a wildcard
} BURST_INSTANCE;
#pragma pack(pop)

// Counts the instances whose threshold was reached. It goes from instance to instance by their
// lengths, which nothing else in the driver reads. No calls: a hang is always in this function.
SENSOR_CHAIN ULONG ScanBurstInstances(const UCHAR *Cursor, const UCHAR *End, ULONG Created) {
    ULONG Reached = 0;
    while (Cursor < End) {
        const BURST_INSTANCE *Burst = (const BURST_INSTANCE *)Cursor;
        if (Burst->Criterion.Operator == CRITERION_NUMBER && Created >= Burst->Threshold)
            Reached++;
        Cursor += Burst->Instance.Length;
    }
    return Reached;
}

SENSOR_CHAIN ULONG CountBursts(const SENSOR_CONTENT *Content, ULONG Created) {
    const UCHAR *File = (const UCHAR *)&Content->Header;
    ULONG Reached = ScanBurstInstances((const UCHAR *)FirstInstance(Content),
                                       File + Content->Header.TotalLength, Created);
    return min(Reached, Content->Header.InstanceCount);
}

// At DISPATCH_LEVEL, from the timer.
DECLSPEC_NOINLINE VOID EvaluateBursts(const SENSOR_CONTENT *Content, ULONG Created) {
    ULONG Reached = CountBursts(Content, Created);
    if (Reached != 0)
        SensorPrint("%u processes in a tick reach %u bursts\n", Created, Reached);
}
