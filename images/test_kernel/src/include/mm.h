/* Memory manager internals shared by pages, pool, stacks and the driver loader. */
#pragma once
#include "ki.h"

void MiInitializePages(void);
void MiInitializePool(void);
NTSTATUS MiMapNewPages(PVOID Virtual, ULONG Pages); /* zeroed, writable, not executable */
void MiUnmapAndFree(PVOID Virtual, ULONG Pages);
extern PUCHAR MmPfnDatabase;
extern ULONG64 MmAvailablePages;
extern ULONG64 MmNonPagedPoolStart, MmNonPagedPoolEnd;
static inline void MiFlushPage(const void *Virtual) {
    __asm__ volatile("invlpg (%0)" ::"r"(Virtual) : "memory");
}
