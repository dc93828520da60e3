/* Lets the kernel's cm/registry.c and ob/object.c run in a test process: one file in memory stands
 * for SYSTEM.reg. Pool blocks end at a page that cannot be touched. Loaded with ctypes by
 * test_kernel_registry.py. */
#include "ob.h"

#define EXPORT __attribute__((visibility("default")))

void *mmap(void *Address, unsigned long Bytes, int Protection, int Flags, int File, long Offset);
int munmap(void *Address, unsigned long Bytes);
int mprotect(void *Address, unsigned long Bytes, int Protection);

EXPORT CHAR HarnessFile[1 << 20], HarnessDebugText[1 << 16];
EXPORT ULONG HarnessFileSize;
EXPORT NTSTATUS HarnessStoreStatus;
EXPORT LONG HarnessPoolBlocks, HarnessLockErrors;
static LONG Locked;

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

void KiAcquireMutex(PKI_MUTEX Mutex) {
    UNREFERENCED(Mutex);
    HarnessLockErrors += Locked++ != 0; /* not recursive */
}
void KiReleaseMutex(PKI_MUTEX Mutex) {
    UNREFERENCED(Mutex);
    HarnessLockErrors += --Locked != 0;
}
KIRQL KeAcquireSpinLockRaiseToDpc(PKSPIN_LOCK Lock) {
    HarnessLockErrors += (*Lock)++ != 0;
    return 0;
}
void KeReleaseSpinLock(PKSPIN_LOCK Lock, KIRQL OldIrql) {
    UNREFERENCED(OldIrql);
    HarnessLockErrors += --*Lock != 0;
}
NORETURN void KeBugCheckEx(ULONG Code, ULONG64 P1, ULONG64 P2, ULONG64 P3, ULONG64 P4) {
    UNREFERENCED(Code), UNREFERENCED(P1), UNREFERENCED(P2), UNREFERENCED(P3), UNREFERENCED(P4);
    __builtin_trap();
}
ULONG DbgPrint(PCSTR Format, ...) {
    SIZE_T Used = strlen(HarnessDebugText);
    va_list Arguments;
    va_start(Arguments, Format);
    RtlFormatV(HarnessDebugText + Used, sizeof(HarnessDebugText) - Used, Format, Arguments);
    va_end(Arguments);
    return 0;
}

static BOOLEAN IsRegistry(PCSTR Path) {
    return strcmp(Path, "Windows\\System32\\config\\SYSTEM.reg") == 0;
}
NTSTATUS FatLoadFile(PCSTR Path, PVOID *Buffer, PULONG Size) {
    if (!IsRegistry(Path) || !HarnessFileSize) return STATUS_OBJECT_NAME_NOT_FOUND;
    *Buffer = ExAllocatePoolWithTag(NonPagedPool, HarnessFileSize + 1, 0);
    memcpy(*Buffer, HarnessFile, HarnessFileSize);
    ((PCHAR)*Buffer)[HarnessFileSize] = 0;
    *Size = HarnessFileSize;
    return STATUS_SUCCESS;
}
NTSTATUS FatStoreFile(PCSTR Path, const void *Buffer, ULONG Size) {
    if (!IsRegistry(Path) || Size > sizeof(HarnessFile)) return STATUS_DISK_FULL;
    if (!NT_SUCCESS(HarnessStoreStatus)) return HarnessStoreStatus;
    memcpy(HarnessFile, Buffer, Size);
    HarnessFileSize = Size;
    return STATUS_SUCCESS;
}
NTSTATUS HalDiskFlush(void) { return STATUS_SUCCESS; }
void HalDebugPrint(PCSTR Text) { UNREFERENCED(Text); }
