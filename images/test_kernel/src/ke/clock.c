/* Time: the PIT interrupts 100 times a second, the time stamp counter says how much time has passed
 * (a slow host loses ticks, never time). Also the DPC watchdog of bug check 0x133. */
#include "ke.h"

ULONG KeDpcTimeoutTicks = 100;
PKTRAP_FRAME KiWatchdogTrapFrame; /* the interrupted code, when the watchdog fires */
static struct {                   /* DPC_WATCHDOG_GLOBAL_TRIAGE_BLOCK, as debuggers show it */
    ULONG Signature;
    USHORT Revision, Size;
    ULONG DpcWatchdogProfileOffset, DpcWatchdogProfileLength;
} KeDpcTriageBlock = {0xAEBECEDE, 1, 0x10, 0, 0};
ULONG64 KiTscFrequency;
static ULONG64 KiBaseTsc, KiInterruptTime, KiTscTo100ns; /* 32.32 fixed point */
static LONG64 KiSystemTimeBase;
static ULONG KeTickCount;

static void KiPublishTime(ULONG Offset, ULONG64 Value) {
    volatile ULONG *Time = (PVOID)(MI_SHARED + Offset); /* a KSYSTEM_TIME: low, high, high again */
    Time[2] = (ULONG)(Value >> 32);                     /* readers retry while the two differ */
    Time[0] = (ULONG)Value;
    Time[1] = (ULONG)(Value >> 32);
}

ULONG64 KiQueryInterruptTime(void) {
    ULONG64 Ticks = KiReadTsc() - KiBaseTsc;
    return (Ticks >> 32) * KiTscTo100ns + ((Ticks & 0xffffffff) * KiTscTo100ns >> 32);
}

LONG64 KiQuerySystemTime(void) { return KiSystemTimeBase + (LONG64)KiQueryInterruptTime(); }

void KiSetSystemTime(LONG64 SystemTime) {
    KiSystemTimeBase = SystemTime - (LONG64)KiQueryInterruptTime();
}

void KiStallMicroseconds(ULONG Microseconds) {
    ULONG64 Start = KiReadTsc(), Wait = KiTscFrequency / 1000000 * Microseconds;
    while (KiReadTsc() - Start < Wait) __asm__ volatile("pause");
}

NTSYSAPI LARGE_INTEGER KeQueryPerformanceCounter(PLARGE_INTEGER Frequency) {
    if (Frequency) Frequency->QuadPart = 10000000;
    return (LARGE_INTEGER){.QuadPart = (LONG64)KiQueryInterruptTime()};
}

void KiSetWatchdog(void) {
    ULONG Milliseconds = CmQueryDword(
        "HKEY_LOCAL_MACHINE\\SYSTEM\\CurrentControlSet\\Control\\Session Manager\\Kernel",
        "DpcTimeout", 1000);
    KeDpcTimeoutTicks = Milliseconds / 10;
}

/* One tick more in a DPC or under a spin lock: past the limit it is DPC_WATCHDOG_VIOLATION. */
static NOINLINE void KeAccumulateTicks(PKTRAP_FRAME TrapFrame) {
    PKPRCB Prcb = KeGetCurrentPrcb();
    if (TrapFrame->PreviousIrql < DISPATCH_LEVEL) {
        Prcb->DpcTicks = 0;
    } else if (++Prcb->DpcTicks > KeDpcTimeoutTicks && KeDpcTimeoutTicks) {
        KiWatchdogTrapFrame = TrapFrame;
        KeBugCheckEx(0x133, 0, Prcb->DpcTicks, KeDpcTimeoutTicks, (ULONG64)&KeDpcTriageBlock);
    }
}

static NOINLINE void KeClockInterruptNotify(PKTRAP_FRAME TrapFrame) {
    KiInterruptTime = KiQueryInterruptTime();
    KeTickCount++;
    KiPublishTime(0x8, KiInterruptTime);
    KiPublishTime(0x14, (ULONG64)KiSystemTimeBase + KiInterruptTime);
    KiPublishTime(0x320, KeTickCount);
    KeAccumulateTicks(TrapFrame);
}

void KiInterruptDispatch(ULONG Line, PKTRAP_FRAME TrapFrame) {
    KiPcr.Prcb.InterruptCount++;
    if (Line >= 8) __outbyte(0xA0, 0x20);
    __outbyte(0x20, 0x20);
    if (KiCrashing) return; /* it ends the pause of the emergency console */
    if (Line == 1 && HalKeyboardInterrupt() && KiCrashOnCtrlScroll)
        KeBugCheckEx(0xE2, 0, 0, 0, 0); /* MANUALLY_INITIATED_CRASH */
    if (Line != 0) return;
    KeClockInterruptNotify(TrapFrame);
    if (TrapFrame->PreviousIrql >= DISPATCH_LEVEL || !KiSchedulerRunning) return;
    KfRaiseIrql(DISPATCH_LEVEL);
    KiEnable();
    KiCheckTimers();
    KiRetireDpcList();
    KiQuantumEnd();
    KiDisable();
}

/* The ACPI timer and the TSC of that moment: of 8 pairs the one with the shortest pause between. */
static ULONG KiReadTimers(PULONG64 Tsc) {
    ULONG Timer = 0;
    for (ULONG64 i = 0, Best = ~0ULL, Start, End; i < 8; i++) {
        Start = KiReadTsc();
        ULONG Now = HalReadPmTimer();
        if ((End = KiReadTsc()) - Start < Best) Best = End - Start, Timer = Now, *Tsc = Start;
    }
    return Timer;
}

void KiInitializeClock(void) {
    /* The TSC over 10 ms or more of the ACPI timer (24 bits, 3.579545 MHz). */
    ULONG64 Now;
    ULONG Start = KiReadTimers(&KiBaseTsc), Passed = 0;
    while (Passed < 35795) Passed = (KiReadTimers(&Now) - Start) & 0xFFFFFF;
    KiTscFrequency = (Now - KiBaseTsc) * 3579545 / Passed;
    KiTscTo100ns = (10000000ULL << 32) / KiTscFrequency;
    KiSystemTimeBase = HalReadRtc();
    /* PIC: interrupts at vectors 0x30 up; clock and keyboard only. PIT channel 0 at 100 Hz. */
    static const UCHAR Setup[][2] = {{0x20, 0x11}, {0xA0, 0x11}, {0x21, 0x30}, {0xA1, 0x38},
        {0x21, 4}, {0xA1, 2}, {0x21, 1}, {0xA1, 1}, {0x21, 0xFC}, {0xA1, 0xFF}};
    for (ULONG i = 0; i < ARRAY_SIZE(Setup); i++) __outbyte(Setup[i][0], Setup[i][1]);
    __outbyte(0x43, 0x34);
    __outbyte(0x40, 11932 & 255);
    __outbyte(0x40, 11932 >> 8);
}
