/* Kernel internals: scheduler, clock, traps, bug check. */
#pragma once
#include "ki.h"

typedef struct _KEXCEPTION_FRAME {
    ULONG64 P1Home, P2Home, P3Home, P4Home, P5, Spare;
    M128A Xmm6To15[10];
    ULONG64 TrapFrame, OutputBuffer, OutputLength, Spare2, MxCsr, Rbp, Rbx, Rdi, Rsi, R12, R13, R14,
        R15, Return;
} KEXCEPTION_FRAME, *PKEXCEPTION_FRAME;
ASSERT_OFFSET(KEXCEPTION_FRAME, R12, 0x118);
#define KI_TICK          100000 /* 100 ns units: the clock ticks 100 times a second */
#define KI_STACK_BYTES   0x8000
#define KI_QUANTUM_TICKS 2
enum { ThreadReady = 1, ThreadRunning = 2, ThreadTerminated = 4, ThreadWaiting = 5 };
extern ETHREAD KiIdleThread;
extern ULONG KeDpcTimeoutTicks; /* 0: the DPC watchdog is off */
extern PKTRAP_FRAME KiWatchdogTrapFrame;
extern BOOLEAN KiAutoReboot, KiCrashOnCtrlScroll;
extern UCHAR KiIstStacks[2][0x4000]; /* double fault, NMI */
void KiInitializeDebuggerData(void);
void KiInitializeClock(void);
void KiInitializeScheduler(void);
void KiCheckTimers(void); /* at DISPATCH_LEVEL */
void KiRetireDpcList(void);
void KiQuantumEnd(void);
NORETURN void KiIdleLoop(void);
void KiSetWatchdog(void); /* reads DpcTimeout */
NORETURN void KiStartSystemThread(void);
void KiSwapContext(PKTHREAD Old, PKTHREAD New, PVOID OldFx, PVOID NewFx);
NORETURN void PspSystemThreadStartup(KSTART_ROUTINE *Start, PVOID Context);
void PspInitialize(void);
void Phase1Initialization(PVOID Context);
NORETURN void KeBugCheck2(ULONG Code, ULONG64 P1, ULONG64 P2, ULONG64 P3, ULONG64 P4);
static inline PKPRCB KeGetCurrentPrcb(void) { return &KiPcr.Prcb; }
