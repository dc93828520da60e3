/* Lets the kernel's Zw file calls (io/file.c) run over its FAT32 in a test process: fat32_harness.c
 * with objects, and locks that are counted one by one. Loaded with ctypes by test_kernel_file.py.
 */
#define KiAcquireMutex CountedTogether
#define KiReleaseMutex ReleasedTogether
#include "fat32_harness.c"
#undef KiAcquireMutex
#undef KiReleaseMutex
#include "ob.h"

void KiAcquireMutex(PKI_MUTEX Mutex) {
    HarnessLockErrors += Mutex->Owner != NULL; /* not recursive */
    Mutex->Owner = (PKTHREAD)Mutex;
}
void KiReleaseMutex(PKI_MUTEX Mutex) {
    HarnessLockErrors += Mutex->Owner == NULL;
    Mutex->Owner = NULL;
}
KIRQL KeAcquireSpinLockRaiseToDpc(PKSPIN_LOCK Lock) {
    HarnessLockErrors += (*Lock)++ != 0;
    return 0;
}
void KeReleaseSpinLock(PKSPIN_LOCK Lock, KIRQL OldIrql) {
    UNREFERENCED(OldIrql);
    HarnessLockErrors += --*Lock != 0;
}
PVOID ExAllocatePool2(ULONG64 Flags, SIZE_T Bytes, ULONG Tag) {
    UNREFERENCED(Flags);
    return memset(ExAllocatePoolWithTag(NonPagedPool, Bytes, Tag), 0, Bytes);
}
ULONG DbgPrint(PCSTR Format, ...) {
    UNREFERENCED(Format);
    HarnessLockErrors++; /* nothing here has a reason to complain */
    return 0;
}
NORETURN void KeBugCheckEx(ULONG Code, ULONG64 P1, ULONG64 P2, ULONG64 P3, ULONG64 P4) {
    UNREFERENCED(Code), UNREFERENCED(P1), UNREFERENCED(P2), UNREFERENCED(P3), UNREFERENCED(P4);
    __builtin_trap();
}
