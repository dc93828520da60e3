/* Lets the kernel's io/fat32.c run in a test process: a disk in memory whose power can be cut after
 * any number of sectors. Loaded with ctypes by test_kernel_fat32.py. */
#include "ki.h"

#define EXPORT        __attribute__((visibility("default")))
#define PARTITION_LBA 2048 /* the memory is the partition alone: fsck.fat and mtools want it so */
#define SECTOR        512

void *malloc(unsigned long Bytes);
void free(void *Block);

static PUCHAR Partition;
static ULONG64 Sectors, Written, CutAfter;
static LONG64 Now;
static LONG Locked;
EXPORT LONG HarnessLockErrors, HarnessPoolBlocks;

EXPORT void HarnessAttach(PUCHAR Memory, ULONG64 Count) {
    Partition = Memory;
    Sectors = Count;
    Written = 0;
    CutAfter = ~0ULL;
}
/* The power goes after `Count` more sectors: no write succeeds from there on. */
EXPORT void HarnessCutPower(ULONG64 Count) { CutAfter = Written + Count; }
EXPORT ULONG64 HarnessWritten(void) { return Written; }
EXPORT void HarnessSetTime(LONG64 Time) { Now = Time; }

static BOOLEAN Inside(ULONG64 Lba, ULONG Count) {
    return Lba >= PARTITION_LBA && Lba - PARTITION_LBA + Count <= Sectors;
}
NTSTATUS HalDiskRead(ULONG64 Lba, ULONG Count, PVOID Buffer) {
    if (Lba == 0 && Count == 1) { /* a second partition of type 0x0C, active */
        static const UCHAR Entry[16] = {
            0x80, 0, 0, 0, 0x0C, 0, 0, 0, PARTITION_LBA & 0xFF, PARTITION_LBA >> 8};
        PUCHAR Data = Buffer;
        for (int Index = 0; Index < SECTOR; Index++) Data[Index] = 0;
        memcpy(Data + 0x1CE, Entry, sizeof(Entry));
        Data[0x1FE] = 0x55;
        Data[0x1FF] = 0xAA;
        return STATUS_SUCCESS;
    }
    if (!Inside(Lba, Count) || !Count) return STATUS_INVALID_PARAMETER;
    memcpy(Buffer, Partition + (Lba - PARTITION_LBA) * SECTOR, Count * SECTOR);
    return STATUS_SUCCESS;
}
NTSTATUS HalDiskWrite(ULONG64 Lba, ULONG Count, const void *Buffer) {
    if (!Inside(Lba, Count) || !Count) return STATUS_INVALID_PARAMETER;
    for (ULONG Index = 0; Index < Count; Index++, Written++) {
        if (Written >= CutAfter) return STATUS_IO_DEVICE_ERROR;
        memcpy(Partition + (Lba - PARTITION_LBA + Index) * SECTOR, (PUCHAR)Buffer + Index * SECTOR,
            SECTOR);
    }
    return STATUS_SUCCESS;
}

void KiInitializeMutex(PKI_MUTEX Mutex) { UNREFERENCED(Mutex); }
void KiAcquireMutex(PKI_MUTEX Mutex) {
    UNREFERENCED(Mutex);
    HarnessLockErrors += Locked++ != 0; /* not recursive */
}
void KiReleaseMutex(PKI_MUTEX Mutex) {
    UNREFERENCED(Mutex);
    HarnessLockErrors += --Locked != 0;
}
PVOID ExAllocatePoolWithTag(POOL_TYPE Type, SIZE_T Bytes, ULONG Tag) {
    UNREFERENCED(Type);
    UNREFERENCED(Tag);
    HarnessPoolBlocks++;
    return malloc(Bytes);
}
void ExFreePoolWithTag(PVOID Block, ULONG Tag) {
    UNREFERENCED(Tag);
    HarnessPoolBlocks--;
    free(Block);
}
LONG64 KiQuerySystemTime(void) { return Now; }
void RtlUnicodeToText(PCUNICODE_STRING Source, PCHAR Target, SIZE_T Size) {
    SIZE_T Length = MIN(Source->Length / sizeof(WCHAR), Size - 1);
    for (SIZE_T Index = 0; Index < Length; Index++) Target[Index] = Source->Buffer[Index];
    Target[Length] = 0;
}
