/* Lets the kernel's io/fat32.c run in a test process: a disk in memory whose power can be cut, or
 * whose writes can fail, after any number of sectors. Loaded with ctypes by test_kernel_fat32.py. */
#include "ki.h"

#define EXPORT __attribute__((visibility("default")))
#define PARTITION_LBA 2048 /* the memory is the partition alone: fsck.fat and mtools want it so */
#define SECTOR 512

void *malloc(unsigned long Bytes);
void free(void *Block);

static PUCHAR Partition;
static ULONG64 Sectors, Written, CutAfter, FailAfter;
static LONG64 Now;
static LONG Locked;
EXPORT LONG HarnessLockErrors, HarnessPoolBlocks;

EXPORT void HarnessAttach(PUCHAR Memory, ULONG64 Count) {
    Partition = Memory;
    Sectors = Count;
    Written = 0;
    CutAfter = FailAfter = ~0ULL;
}
/* From the sector write after the next `Count` on: dropped silently, or refused. */
EXPORT void HarnessCutPower(ULONG64 Count) { CutAfter = Written + Count; }
EXPORT void HarnessFailWrites(ULONG64 Count) { FailAfter = Written + Count; }
EXPORT ULONG64 HarnessWritten(void) { return Written; }
EXPORT void HarnessSetTime(LONG64 Time) { Now = Time; }

void *memcpy(void *Target, const void *Source, SIZE_T Bytes) {
    void *Start = Target;
    __asm__ volatile("rep movsb" : "+D"(Target), "+S"(Source), "+c"(Bytes)::"memory");
    return Start;
}
static BOOLEAN Inside(ULONG64 Lba, ULONG Count) {
    return Lba >= PARTITION_LBA && Lba - PARTITION_LBA + Count <= Sectors;
}
NTSTATUS HalDiskRead(ULONG64 Lba, ULONG Count, PVOID Buffer) {
    if (Lba == 0 && Count == 1) { /* a second partition of type 0x0C, active */
        static const UCHAR Entry[16] = {0x80, 0, 0, 0, 0x0C, 0, 0, 0, PARTITION_LBA & 0xFF,
                                        PARTITION_LBA >> 8};
        PUCHAR Data = Buffer;
        for (int Index = 0; Index < SECTOR; Index++)
            Data[Index] = 0;
        memcpy(Data + 0x1CE, Entry, sizeof(Entry));
        Data[0x1FE] = 0x55;
        Data[0x1FF] = 0xAA;
        return STATUS_SUCCESS;
    }
    if (!Inside(Lba, Count) || !Count)
        return STATUS_INVALID_PARAMETER;
    memcpy(Buffer, Partition + (Lba - PARTITION_LBA) * SECTOR, Count * SECTOR);
    return STATUS_SUCCESS;
}
NTSTATUS HalDiskWrite(ULONG64 Lba, ULONG Count, const void *Buffer) {
    if (!Inside(Lba, Count) || !Count)
        return STATUS_INVALID_PARAMETER;
    for (ULONG Index = 0; Index < Count; Index++, Written++) {
        if (Written >= FailAfter)
            return STATUS_IO_DEVICE_ERROR;
        if (Written < CutAfter)
            memcpy(Partition + (Lba - PARTITION_LBA + Index) * SECTOR,
                   (PUCHAR)Buffer + Index * SECTOR, SECTOR);
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
/* Days since 1601 from and to a date: the civil calendar in years that begin in March. */
LONG64 KiDateToTime(const KI_DATE *Date) {
    LONG64 Year = Date->Year - (Date->Month <= 2), Month = (Date->Month + 9) % 12;
    LONG64 Days = Year * 365 + Year / 4 - Year / 100 + Year / 400 + (153 * Month + 2) / 5 +
                  Date->Day - 1 - 584694;
    return (((Days * 24 + Date->Hour) * 60 + Date->Minute) * 60 + Date->Second) * 10000000 +
           Date->Milliseconds * 10000LL;
}
void KiTimeToDate(LONG64 Time, KI_DATE *Date) {
    LONG64 Seconds = Time / 10000000, Day = Seconds / 86400;
    KI_DATE Guess = {.Year = 1601, .Month = 1, .Day = 1};
    while (KiDateToTime(&(KI_DATE){.Year = Guess.Year + 1, .Month = 1, .Day = 1}) <= Time)
        Guess.Year++;
    for (ULONG Month = 2; Month <= 12; Month++) {
        if (KiDateToTime(&(KI_DATE){.Year = Guess.Year, .Month = Month, .Day = 1}) <= Time)
            Guess.Month = Month;
    }
    Guess.Day += Day - KiDateToTime(&Guess) / 864000000000;
    Guess.Hour = Seconds / 3600 % 24;
    Guess.Minute = Seconds / 60 % 60;
    Guess.Second = Seconds % 60;
    *Date = Guess;
}
static CHAR Upper(CHAR Character) {
    return Character >= 'a' && Character <= 'z' ? Character - 32 : Character;
}
int RtlCompareTextInsensitiveN(PCSTR A, PCSTR B, SIZE_T Count) {
    for (; Count; A++, B++, Count--) {
        if (Upper(*A) != Upper(*B) || !*A)
            return Upper(*A) - Upper(*B);
    }
    return 0;
}
void RtlUnicodeToText(PCUNICODE_STRING Source, PCHAR Target, SIZE_T Size) {
    SIZE_T Length = MIN(Source->Length / sizeof(WCHAR), Size - 1);
    for (SIZE_T Index = 0; Index < Length; Index++)
        Target[Index] = Source->Buffer[Index];
    Target[Length] = 0;
}
