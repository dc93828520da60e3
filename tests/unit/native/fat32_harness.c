/* Lets the kernel's io/fat32.c run in a test process: a disk in memory whose power can be cut after
 * any number of sectors. */
#include "ki.h"

#define PARTITION_LBA 2048 /* the memory is the partition alone: fsck.fat and mtools want it so */
#define SECTOR        512

static PUCHAR Partition;
static ULONG64 Sectors, Written, CutAfter;
static LONG64 Now;

void HarnessAttach(PUCHAR Memory, ULONG64 Count) {
    Partition = Memory;
    Sectors = Count;
    Written = 0;
    CutAfter = ~0ULL;
}
/* The power goes after `Count` more sectors: no write succeeds from there on. */
void HarnessCutPower(ULONG64 Count) { CutAfter = Written + Count; }
ULONG64 HarnessWritten(void) { return Written; }
void HarnessSetTime(LONG64 Time) { Now = Time; }

static BOOLEAN Inside(ULONG64 Lba, ULONG Count) {
    return Lba >= PARTITION_LBA && Lba - PARTITION_LBA + Count <= Sectors;
}
NTSTATUS HalDiskRead(ULONG64 Lba, ULONG Count, PVOID Buffer) {
    if (Lba == 0 && Count == 1) { /* a second partition of type 0x0C, active */
        static const UCHAR Entry[16] = {
            0x80, 0, 0, 0, 0x0C, 0, 0, 0, PARTITION_LBA & 0xFF, PARTITION_LBA >> 8};
        PUCHAR Data = memset(Buffer, 0, SECTOR);
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

LONG64 KiQuerySystemTime(void) { return Now; }
