/* What the kernel's own code needs of the rest of the kernel when it runs in a test process: pool
 * whose blocks end at a page that cannot be touched, locks that are watched, debug text kept. */
#include "ki.h"

void *mmap(void *Address, unsigned long Bytes, int Protection, int Flags, int File, long Offset);
int munmap(void *Address, unsigned long Bytes);
int mprotect(void *Address, unsigned long Bytes, int Protection);

LONG HarnessPoolBlocks, HarnessLockErrors;
CHAR HarnessDebugText[1 << 16];
static KIRQL Irql;

/* Blocks begin aligned to 8 bytes, as UndefinedBehaviorSanitizer wants: up to 7 bytes of slack at
 * the end. Before them: where the mapping starts and how long it is. */
PVOID ExAllocatePoolWithTag(POOL_TYPE Type, SIZE_T Bytes, ULONG Tag) {
    SIZE_T Usable = ROUND_TO_PAGES(Bytes + 2 * sizeof(ULONG64));
    PUCHAR Memory = mmap(NULL, Usable + PAGE_SIZE, 3, 0x22, -1, 0);
    PULONG64 Block = (PULONG64)(Memory + Usable - ((Bytes + 7) & ~7ULL));
    UNREFERENCED(Type), UNREFERENCED(Tag);
    mprotect(Memory + Usable, PAGE_SIZE, 0);
    memset(Memory, 0xA5, Usable);
    Block[-2] = (ULONG64)Memory;
    Block[-1] = Usable + PAGE_SIZE;
    HarnessPoolBlocks++;
    return Block;
}
PVOID ExAllocatePool2(ULONG64 Flags, SIZE_T Bytes, ULONG Tag) {
    UNREFERENCED(Flags);
    return memset(ExAllocatePoolWithTag(NonPagedPool, Bytes, Tag), 0, Bytes);
}
void ExFreePoolWithTag(PVOID Block, ULONG Tag) {
    UNREFERENCED(Tag);
    HarnessPoolBlocks--;
    munmap((PVOID)((PULONG64)Block)[-2], ((PULONG64)Block)[-1]);
}

void KiInitializeMutex(PKI_MUTEX Mutex) { Mutex->Owner = NULL; }
void KiAcquireMutex(PKI_MUTEX Mutex) {
    HarnessLockErrors += Mutex->Owner != NULL; /* not recursive */
    Mutex->Owner = (PKTHREAD)Mutex;
}
void KiReleaseMutex(PKI_MUTEX Mutex) {
    HarnessLockErrors += Mutex->Owner == NULL;
    Mutex->Owner = NULL;
}
KIRQL KfRaiseIrql(KIRQL NewIrql) {
    KIRQL Old = Irql;
    HarnessLockErrors += NewIrql < Old;
    Irql = NewIrql;
    return Old;
}
void KeLowerIrql(KIRQL NewIrql) {
    HarnessLockErrors += NewIrql >= Irql;
    Irql = NewIrql;
}
KIRQL KeAcquireSpinLockRaiseToDpc(PKSPIN_LOCK Lock) {
    HarnessLockErrors += (*Lock)++ != 0;
    return KfRaiseIrql(DISPATCH_LEVEL);
}
void KeReleaseSpinLock(PKSPIN_LOCK Lock, KIRQL OldIrql) {
    HarnessLockErrors += --*Lock != 0;
    KeLowerIrql(OldIrql);
}
NORETURN void KeBugCheckEx(ULONG Code, ULONG64 P1, ULONG64 P2, ULONG64 P3, ULONG64 P4) {
    UNREFERENCED(Code), UNREFERENCED(P1), UNREFERENCED(P2), UNREFERENCED(P3), UNREFERENCED(P4);
    __builtin_trap();
}
void HalDebugPrint(PCSTR Text) {
    SIZE_T Used = strlen(HarnessDebugText);
    RtlCopyText(HarnessDebugText + Used, sizeof(HarnessDebugText) - Used, Text);
}
