/* Primary IDE master, LBA28, polled bus-master DMA; all state is in the device, so a saved machine
 * goes on. Sources: ATA/ATAPI-6 (T13 1410D); Intel 82371SB (PIIX3). */
#include "ki.h"

enum { DATA = 0x1F0, COUNT = 0x1F2, LBA_LOW, LBA_MIDDLE, LBA_HIGH, DEVICE, COMMAND };
enum { CONTROL = 0x3F6, NIEN = 0x02, SRST = 0x04 };     /* reads as the status */
enum { ERR = 0x01, DRQ = 0x08, DF = 0x20, BSY = 0x80 }; /* status */
enum { BM_COMMAND, BM_STATUS = 2, BM_TABLE = 4 };       /* offsets from the bus master's base */
enum { BM_START = 0x01, BM_TO_MEMORY = 0x08, BM_ACTIVE = 0x01, BM_FAILED = 0x02, BM_IRQ = 0x04 };
enum { SECTOR = 512, MAXIMUM_SECTORS = 256 }; /* in one command */
#define TIMEOUT (1ULL << 38) /* of the TSC: 90 s at 3 GHz, as the host's disk may stall long */

/* Bytes at an address, none across a page; bit 31 of the count: the last. */
static volatile struct { ULONG Address, Count; } Regions[64] __attribute__((aligned(512)));
static UCHAR Bounce[PAGE_SIZE] __attribute__((aligned(PAGE_SIZE)));
static USHORT BusMaster;
static ULONG Capacity;
static KI_MUTEX DiskMutex;

/* Waits for BSY to go and DRQ to be as `Wanted`. */
static NTSTATUS IdeWait(UCHAR Wanted) {
    for (ULONG64 Start = KiReadTsc(); KiReadTsc() - Start < TIMEOUT;) {
        UCHAR Status = __inbyte(CONTROL);
        if (!(Status & BSY) && Status & (ERR | DF)) return STATUS_IO_DEVICE_ERROR;
        if ((Status & (DRQ | BSY)) == Wanted) return STATUS_SUCCESS;
    }
    return STATUS_IO_TIMEOUT;
}
static NTSTATUS IdeCommand(UCHAR Command, ULONG Lba, ULONG Sectors) {
    TRY(IdeWait(0));
    __outbyte(DEVICE, 0xE0 | Lba >> 24);
    __outbyte(COUNT, Sectors); /* 0 means 256 */
    __outbyte(LBA_LOW, Lba);
    __outbyte(LBA_MIDDLE, Lba >> 8);
    __outbyte(LBA_HIGH, Lba >> 16);
    __outbyte(COMMAND, Command);
    for (int Delay = 0; Delay < 4; Delay++) __inbyte(CONTROL); /* 400 ns until the status is good */
    return STATUS_SUCCESS;
}
/* FALSE where the bus master cannot reach the buffer: odd, unmapped, or above 4 GiB. */
static BOOLEAN IdeDescribe(const UCHAR *Buffer, ULONG Bytes) {
    for (ULONG Index = 0, Part; Bytes; Index++, Bytes -= Part, Buffer += Part) {
        PHYSICAL Address = HalPhysicalAddress(Buffer);
        Part = MIN(Bytes, PAGE_SIZE - ((ULONG64)Buffer & (PAGE_SIZE - 1)));
        if (!Address || Address & 1 || Address + Part > 1ULL << 32) return FALSE;
        Regions[Index].Address = Address;
        Regions[Index].Count = Part | (Part == Bytes ? 0x80000000 : 0);
    }
    return TRUE;
}
static NTSTATUS IdeDma(BOOLEAN Write, ULONG Lba, ULONG Sectors) {
    __outbyte(BusMaster + BM_COMMAND, 0); /* stops the transfer before */
    __outdword(BusMaster + BM_TABLE, HalPhysicalAddress((const void *)Regions));
    __outbyte(BusMaster + BM_STATUS, BM_FAILED | BM_IRQ); /* written ones clear */
    TRY(IdeCommand(Write ? 0xCA : 0xC8, Lba, Sectors));
    __outbyte(BusMaster + BM_COMMAND, BM_START | (Write ? 0 : BM_TO_MEMORY));
    TRY(IdeWait(0));                   /* DRQ is set until all is moved */
    __asm__ volatile("" ::: "memory"); /* the buffer has changed */
    BOOLEAN Failed = __inbyte(BusMaster + BM_STATUS) & (BM_ACTIVE | BM_FAILED);
    return Failed ? STATUS_IO_DEVICE_ERROR : STATUS_SUCCESS;
}
static NTSTATUS IdeTransfer(BOOLEAN Write, ULONG64 Lba, ULONG Sectors, PUCHAR Buffer) {
    NTSTATUS Status = STATUS_SUCCESS;
    if (Lba > Capacity || Sectors > Capacity - Lba) return STATUS_INVALID_PARAMETER;
    KiAcquireMutex(&DiskMutex);
    for (ULONG Count; NT_SUCCESS(Status) && Sectors; Sectors -= Count, Lba += Count) {
        Count = MIN(Sectors, MAXIMUM_SECTORS);
        PUCHAR Target = Buffer;
        if (!IdeDescribe(Buffer, Count * SECTOR)) {
            Count = MIN(Count, sizeof(Bounce) / SECTOR);
            Target = memcpy(Bounce, Buffer, Count * SECTOR);
            IdeDescribe(Bounce, Count * SECTOR);
        }
        Status = IdeDma(Write, Lba, Count);
        if (Target == Bounce && !Write) memcpy(Buffer, Bounce, Count * SECTOR);
        Buffer += Count * SECTOR;
    }
    if (!NT_SUCCESS(Status)) HalDiskReset(); /* what is half done must not meet the next command */
    KiReleaseMutex(&DiskMutex);
    return Status;
}

NTSTATUS HalDiskRead(ULONG64 Lba, ULONG Sectors, PVOID Buffer) {
    return IdeTransfer(FALSE, Lba, Sectors, Buffer);
}
NTSTATUS HalDiskWrite(ULONG64 Lba, ULONG Sectors, const void *Buffer) {
    return IdeTransfer(TRUE, Lba, Sectors, (PUCHAR)Buffer);
}
NTSTATUS HalDiskFlush(void) {
    KiAcquireMutex(&DiskMutex);
    NTSTATUS Status = IdeCommand(0xE7, 0, 0);
    if (NT_SUCCESS(Status)) Status = IdeWait(0);
    KiReleaseMutex(&DiskMutex);
    return Status;
}
void HalDiskReset(void) {
    if (BusMaster) __outbyte(BusMaster + BM_COMMAND, 0);
    __outbyte(CONTROL, SRST | NIEN);
    for (int Delay = 0; Delay < 64; Delay++) __inbyte(CONTROL); /* 5 us at the pace of a port */
    __outbyte(CONTROL, NIEN);
    IdeWait(0);
}
NTSTATUS HalDiskInitialize(void) {
    ULONG Device, Function;
    USHORT Identity[256];
    if (!HalPciFind(0x8086, 0x7010, &Device, &Function)) return STATUS_NO_SUCH_DEVICE; /* PIIX3 */
    BusMaster = HalPciRead(0, Device, Function, 0x20) & 0xFFF0;                        /* BAR4 */
    HalPciWrite(0, Device, Function, 4, (HalPciRead(0, Device, Function, 4) & 0xFFFF) | 5);
    HalDiskReset();
    TRY(IdeCommand(0xEC, 0, 0));                          /* IDENTIFY DEVICE */
    if (!__inbyte(CONTROL)) return STATUS_NO_SUCH_DEVICE; /* no drive answers */
    TRY(IdeWait(DRQ));
    for (ULONG Word = 0; Word < 256; Word++) Identity[Word] = __inword(DATA);
    Capacity = Identity[60] | (ULONG)Identity[61] << 16; /* 2^28 at most: 128 GiB */
    return STATUS_SUCCESS;
}
