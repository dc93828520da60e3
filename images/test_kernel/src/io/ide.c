/* The disk: primary IDE master, bus-master DMA where the controller has it, else PIO; always
 * polled. Sources: ATA/ATAPI-6 (T13 1410D) for commands and registers; Intel 82371SB (PIIX3) for
 * the bus master. All state is in the device, so a saved and restored machine goes on polling. */
#include "ki.h"

enum {
    DATA = 0x1F0,
    COUNT = 0x1F2,
    LBA_LOW,
    LBA_MIDDLE,
    LBA_HIGH,
    DEVICE,
    COMMAND,
    CONTROL = 0x3F6
};
enum { STATUS_ERR = 0x01, STATUS_DRQ = 0x08, STATUS_DF = 0x20, STATUS_BSY = 0x80 };
enum { CONTROL_NIEN = 0x02, CONTROL_SRST = 0x04 };
enum { BM_COMMAND, BM_STATUS = 2, BM_TABLE = 4 }; /* offsets from the bus master's base */
enum {
    BM_START = 0x01,
    BM_TO_MEMORY = 0x08,
    BM_ACTIVE = 0x01,
    BM_FAILED = 0x02,
    BM_INTERRUPT = 0x04
};
enum { MAXIMUM_LBA28 = 256, MAXIMUM_LBA48 = 1024 }; /* sectors in one command */
#define LBA28_LIMIT (1ULL << 28)
/* Of the time stamp counter: about a minute and a half at 3 GHz. The host's disk may stall long; a
 * paused or saved machine's counter stands still. */
#define TIMEOUT (1ULL << 38)

typedef struct _PRD {
    ULONG Address, Count; /* bytes, 0 = 64 KiB; bit 31: last */
} PRD;
/* Worst case: 512 KiB in single pages that start in mid-page, none crossing 64 KiB. */
static volatile PRD PrdTable[256] __attribute__((aligned(4096)));
static USHORT BusMaster;
static BOOLEAN Lba48;
static ULONG64 Capacity;
static KI_MUTEX DiskMutex;

/* Waits for BSY to go and DRQ to be as `Drq`; an error of the drive ends a wait for data. */
static NTSTATUS IdeWait(UCHAR Drq) {
    ULONG64 Start = KiReadTsc();
    do {
        UCHAR Status = __inbyte(CONTROL);
        if (!(Status & STATUS_BSY) && Drq && Status & (STATUS_ERR | STATUS_DF))
            return STATUS_IO_DEVICE_ERROR;
        if ((Status & (STATUS_DRQ | STATUS_BSY)) == Drq) return STATUS_SUCCESS;
    } while (KiReadTsc() - Start < TIMEOUT);
    return STATUS_IO_TIMEOUT;
}
static NTSTATUS IdeFinish(void) {
    NTSTATUS Status = IdeWait(0);
    if (NT_SUCCESS(Status) && __inbyte(CONTROL) & (STATUS_ERR | STATUS_DF))
        Status = STATUS_IO_DEVICE_ERROR;
    return Status;
}

/* Every command here has a form for 28 and one for 48 bits of address. */
static NTSTATUS IdeCommand(UCHAR Short, UCHAR Long, ULONG64 Lba, ULONG Sectors) {
    BOOLEAN Wide = Lba48 && (Lba + Sectors > LBA28_LIMIT || Sectors > MAXIMUM_LBA28);
    NTSTATUS Status = IdeWait(0);
    if (!NT_SUCCESS(Status)) return Status;
    __outbyte(DEVICE, 0xE0 | (Wide ? 0 : Lba >> 24 & 15));
    Status = IdeWait(0);
    if (!NT_SUCCESS(Status)) return Status;
    if (Wide) { /* each register takes two bytes, the high one first */
        __outbyte(COUNT, Sectors >> 8);
        __outbyte(LBA_LOW, Lba >> 24);
        __outbyte(LBA_MIDDLE, Lba >> 32);
        __outbyte(LBA_HIGH, Lba >> 40);
    }
    __outbyte(COUNT, Sectors);
    __outbyte(LBA_LOW, Lba);
    __outbyte(LBA_MIDDLE, Lba >> 8);
    __outbyte(LBA_HIGH, Lba >> 16);
    __outbyte(COMMAND, Wide ? Long : Short);
    for (int Delay = 0; Delay < 4; Delay++) /* 400 ns before the status is good */
        __inbyte(CONTROL);
    return STATUS_SUCCESS;
}

/* FALSE where the bus master cannot reach the buffer: odd, unmapped, or above 4 GiB. */
static BOOLEAN IdeDescribe(const UCHAR *Buffer, ULONG Bytes) {
    ULONG Entries = 0;
    if (!BusMaster || (ULONG64)Buffer & 1) return FALSE;
    while (Bytes) {
        ULONG Part = MIN(Bytes, PAGE_SIZE - ((ULONG64)Buffer & (PAGE_SIZE - 1)));
        PHYSICAL Address = HalPhysicalAddress(Buffer);
        if (!Address || Address + Part > 1ULL << 32) return FALSE;
        volatile PRD *Last = &PrdTable[Entries ? Entries - 1 : 0];
        if (Entries && Last->Address + Last->Count == Address && Address & 0xFFFF)
            Last->Count += Part;
        else if (Entries < ARRAY_SIZE(PrdTable))
            PrdTable[Entries++] = (PRD){Address, Part};
        else
            return FALSE;
        Buffer += Part;
        Bytes -= Part;
    }
    for (ULONG Index = 0; Index < Entries; Index++) PrdTable[Index].Count &= 0xFFFF;
    PrdTable[Entries - 1].Count |= 0x80000000;
    return TRUE;
}

static NTSTATUS IdeDma(BOOLEAN Write, ULONG64 Lba, ULONG Sectors) {
    UCHAR Direction = Write ? 0 : BM_TO_MEMORY, Master, Drive;
    __outbyte(BusMaster + BM_COMMAND, 0);
    __outdword(BusMaster + BM_TABLE, HalPhysicalAddress((const void *)PrdTable));
    __outbyte(BusMaster + BM_STATUS, BM_FAILED | BM_INTERRUPT); /* written ones clear */
    __outbyte(BusMaster + BM_COMMAND, Direction);
    NTSTATUS Status = IdeCommand(Write ? 0xCA : 0xC8, Write ? 0x35 : 0x25, Lba, Sectors);
    if (!NT_SUCCESS(Status)) return Status;
    __outbyte(BusMaster + BM_COMMAND, Direction | BM_START);
    ULONG64 Start = KiReadTsc();
    do {
        Master = __inbyte(BusMaster + BM_STATUS);
        Drive = __inbyte(CONTROL);
        Status = KiReadTsc() - Start < TIMEOUT ? STATUS_SUCCESS : STATUS_IO_TIMEOUT;
    } while (NT_SUCCESS(Status) && !(Master & BM_FAILED) &&
             (Drive & STATUS_BSY ||
                 (!(Drive & STATUS_ERR) && (Master & BM_ACTIVE || Drive & STATUS_DRQ))));
    __outbyte(BusMaster + BM_COMMAND, 0);
    if (Master & BM_FAILED || Drive & (STATUS_ERR | STATUS_DF)) Status = STATUS_IO_DEVICE_ERROR;
    return Status;
}

static NTSTATUS IdePio(BOOLEAN Write, ULONG64 Lba, ULONG Sectors, PUCHAR Buffer) {
    NTSTATUS Status = IdeCommand(Write ? 0x30 : 0x20, Write ? 0x34 : 0x24, Lba, Sectors);
    for (; NT_SUCCESS(Status) && Sectors; Sectors--) {
        ULONG64 Words = 256;
        Status = IdeWait(STATUS_DRQ);
        if (NT_SUCCESS(Status) && Write)
            __asm__ volatile("rep outsw" : "+S"(Buffer), "+c"(Words) : "d"(DATA) : "memory");
        else if (NT_SUCCESS(Status))
            __asm__ volatile("rep insw" : "+D"(Buffer), "+c"(Words) : "d"(DATA) : "memory");
    }
    return NT_SUCCESS(Status) ? IdeFinish() : Status;
}

static NTSTATUS IdeTransfer(BOOLEAN Write, ULONG64 Lba, ULONG Sectors, PUCHAR Buffer) {
    NTSTATUS Status = STATUS_SUCCESS;
    if (Lba > Capacity || Sectors > Capacity - Lba) return STATUS_INVALID_PARAMETER;
    KiAcquireMutex(&DiskMutex);
    while (NT_SUCCESS(Status) && Sectors) {
        ULONG Count = MIN(Sectors, Lba48 ? MAXIMUM_LBA48 : MAXIMUM_LBA28);
        Status = IdeDescribe(Buffer, Count * 512) ? IdeDma(Write, Lba, Count)
                                                  : IdePio(Write, Lba, Count, Buffer);
        Lba += Count;
        Sectors -= Count;
        Buffer += Count * 512;
    }
    if (!NT_SUCCESS(Status))
        HalDiskReset(); /* whatever is half done must not meet the next command */
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
    NTSTATUS Status = IdeCommand(0xE7, 0xE7, 0, 0);
    if (NT_SUCCESS(Status)) Status = IdeFinish();
    KiReleaseMutex(&DiskMutex);
    return Status;
}

void HalDiskReset(void) {
    if (BusMaster) __outbyte(BusMaster + BM_COMMAND, 0);
    __outbyte(CONTROL, CONTROL_SRST | CONTROL_NIEN);
    for (int Delay = 0; Delay < 64; Delay++) /* 5 us at the pace of a port */
        __inbyte(CONTROL);
    __outbyte(CONTROL, CONTROL_NIEN);
    IdeWait(0);
}

NTSTATUS HalDiskInitialize(void) {
    USHORT Identity[256];
    KiInitializeMutex(&DiskMutex);
    if (__inbyte(CONTROL) == 0xFF) /* a floating bus */
        return STATUS_NO_SUCH_DEVICE;
    for (ULONG Slot = 0; Slot < 256 && !BusMaster; Slot++) { /* class 01/01: IDE controller */
        ULONG Device = Slot / 8, Function = Slot % 8;
        if (HalPciRead(0, Device, Function, 8) >> 16 != 0x0101) continue;
        BusMaster = HalPciRead(0, Device, Function, 0x20) & 0xFFF0; /* BAR4 */
        HalPciWrite(0, Device, Function, 4, (HalPciRead(0, Device, Function, 4) & 0xFFFF) | 5);
    }
    HalDiskReset();
    Capacity = 1;
    NTSTATUS Status = IdeCommand(0xEC, 0xEC, 0, 0); /* IDENTIFY DEVICE */
    if (!NT_SUCCESS(Status) || !__inbyte(CONTROL)) return STATUS_NO_SUCH_DEVICE;
    Status = IdeWait(STATUS_DRQ);
    if (!NT_SUCCESS(Status)) return Status;
    for (ULONG Word = 0; Word < 256; Word++) Identity[Word] = __inword(DATA);
    Lba48 = Identity[83] >> 10 & 1;
    Capacity = Lba48 ? *(PULONG64)&Identity[100] : *(PULONG)&Identity[60];
    return STATUS_SUCCESS;
}
