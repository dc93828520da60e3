/* Private to the hardware layer. */
#pragma once
#include "ki.h"

static inline ULONG64 HalpDisableInterrupts(void) {
    ULONG64 Flags;
    __asm__ volatile("pushfq; popq %0; cli" : "=r"(Flags)::"memory");
    return Flags;
}
static inline void HalpRestoreInterrupts(ULONG64 Flags) {
    if (Flags & 0x200) KiEnable();
}
