// The sensor's parts and what they share.
#pragma once
#include "content.h"

#define SENSOR_TAG 'rsnS'

// Errors only: they are the level that Windows shows without a debug filter being set.
#define SensorPrint(...) DbgPrintEx(DPFLTR_IHVDRIVER_ID, DPFLTR_ERROR_LEVEL, "sensor: " __VA_ARGS__)

// The functions a crash is expected to have on its stack. Apart from the variant that shows inline
// frames, each keeps a frame of its own at every level of optimisation.
#if SENSOR_INLINE_CHAIN
#define SENSOR_CHAIN static inline __attribute__((always_inline))
#else
#define SENSOR_CHAIN static DECLSPEC_NOINLINE
#endif

// process.c: TEMPLATE_PROCESS
VOID SensorProcessNotify(PEPROCESS Process, HANDLE ProcessId, PPS_CREATE_NOTIFY_INFO CreateInfo);
ULONG TakeProcessCount(VOID); // processes created since the last call

// rate.c: TEMPLATE_RATE
NTSTATUS CreateRateWindows(PSENSOR_CONTENT Content);
VOID FreeRateWindows(PSENSOR_CONTENT Content);
VOID AgeRateWindows(PSENSOR_CONTENT Content, ULONG Created);

// owner.c: TEMPLATE_OWNER
VOID RunOwnerPolicies(const SENSOR_CONTENT *Content);

// burst.c: TEMPLATE_BURST
VOID EvaluateBursts(const SENSOR_CONTENT *Content, ULONG Created);
