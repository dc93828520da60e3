/* The disk: primary IDE master, bus-master DMA where the controller has it, else PIO; always
 * polled. Sources: ATA/ATAPI-6 (T13 1410D) for commands and registers; Intel 82371SB (PIIX3) for
 * the bus master. All state is in the device, so a saved and restored machine goes on polling. */
#include "ki.h"

enum { DATA = 0x1F0, COUNT = 0x1F2, LBA_LOW, LBA_MIDDLE, LBA_HIGH, DEVICE, COMMAND };
#define CONTROL 0x3F6 /* reads as the status, without acknowledging an interrupt */
enum { ERR = 0x01, DRQ = 0x08, DF = 0x20, BSY = 0x80 }; /* status */
enum { NIEN = 0x02, SRST = 0x04 };                      /* control */
enum { BM_COMMAND, BM_STATUS = 2, BM_TABLE = 4 };       /* offsets from the bus master's base */
enum { BM_START = 0x01, BM_TO_MEMORY = 0x08, BM_ACTIVE = 0x01, BM_FAILED = 0x02, BM_IRQ = 0x04 };
enum { MAXIMUM_LBA28 = 256, MAXIMUM_LBA48 = 1024 }; /* sectors in one command */
/* Of the time stamp counter: about a minute and a half at 3 GHz. The host's disk may stall long; a
 * paused or saved machine's counter stands still. */
#define TIMEOUT (1ULL << 38)

/* Bytes (0 = 64 KiB; bit 31: last) at an address. The worst case is 512 KiB in single pages. */
typedef struct _PRD {
    ULONG Address, Count;
} PRD;
static volatile PRD PrdTable[256] __attribute__((aligned(4096)));
static USHORT BusMaster;
static BOOLEAN Lba48;
static ULONG64 Capacity;
static KI_MUTEX DiskMutex;

/* Waits for BSY to go and DRQ to be as `Wanted`; an error of the drive ends a wait for data. */
static NTSTATUS IdeWait(UCHAR Wanted) {
    for (ULONG64 Start = KiReadTsc(); KiReadTsc() - Start < TIMEOUT;) {
        UCHAR Status = __inbyte(CONTROL);
        if (Wanted && !(Status & BSY) && Status & (ERR | DF)) return STATUS_IO_DEVICE_ERROR;
        if ((Status & (DRQ | BSY)) == Wanted) return STATUS_SUCCESS;
    }
    return STATUS_IO_TIMEOUT;
}
static NTSTATUS IdeFinish(void) {
    TRY(IdeWait(0));
    return __inbyte(CONTROL) & (ERR | DF) ? STATUS_IO_DEVICE_ERROR : STATUS_SUCCESS;
}
/* Every command here has a form for 28 and one for 48 bits of address. */
static NTSTATUS IdeCommand(UCHAR Short, UCHAR Long, ULONG64 Lba, ULONG Sectors) {
    BOOLEAN Wide = Lba48 && (Lba + Sectors > 1ULL << 28 || Sectors > MAXIMUM_LBA28);
    TRY(IdeWait(0));
    __outbyte(DEVICE, 0xE0 | (Wide ? 0 : Lba >> 24 & 15));
    TRY(IdeWait(0));
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
    for (int Delay = 0; Delay < 4; Delay++) __inbyte(CONTROL); /* 400 ns until the status is good */
    return STATUS_SUCCESS;
}
/* FALSE where the bus master cannot reach the buffer: odd, unmapped, or above 4 GiB. */
static BOOLEAN IdeDescribe(const UCHAR *Buffer, ULONG Bytes) {
    ULONG Last = 0;
    if (!BusMaster || (ULONG64)Buffer & 1) return FALSE;
    for (ULONG Done = 0, Part; Done < Bytes; Done += Part, Buffer += Part) {
        PHYSICAL Address = HalPhysicalAddress(Buffer);
        Part = MIN(Bytes - Done, PAGE_SIZE - ((ULONG64)Buffer & (PAGE_SIZE - 1)));
        if (!Address || Address + Part > 1ULL << 32) return FALSE;
        BOOLEAN Follows = Done && PrdTable[Last].Address + PrdTable[Last].Count == Address;
        if (Follows && Address & 0xFFFF) { /* a region must not cross 64 KiB */
            PrdTable[Last].Count += Part;
        } else {
            Last += Done != 0;
            PrdTable[Last] = (PRD){Address, Part};
        }
    }
    for (ULONG Index = 0; Index <= Last; Index++) PrdTable[Index].Count &= 0xFFFF;
    PrdTable[Last].Count |= 0x80000000;
    return TRUE;
}
static NTSTATUS IdeDma(BOOLEAN Write, ULONG64 Lba, ULONG Sectors) {
    UCHAR Direction = Write ? 0 : BM_TO_MEMORY, Master, Drive;
    __outbyte(BusMaster + BM_COMMAND, Direction);
    __outdword(BusMaster + BM_TABLE, HalPhysicalAddress((const void *)PrdTable));
    __outbyte(BusMaster + BM_STATUS, BM_FAILED | BM_IRQ); /* written ones clear */
    TRY(IdeCommand(Write ? 0xCA : 0xC8, Write ? 0x35 : 0x25, Lba, Sectors));
    __outbyte(BusMaster + BM_COMMAND, Direction | BM_START);
    for (ULONG64 Start = KiReadTsc(); KiReadTsc() - Start < TIMEOUT;) {
        Master = __inbyte(BusMaster + BM_STATUS);
        Drive = __inbyte(CONTROL);
        if (Master & BM_FAILED || (!(Drive & BSY) && Drive & (ERR | DF)))
            return STATUS_IO_DEVICE_ERROR;
        if (Master & BM_ACTIVE || Drive & (BSY | DRQ)) continue;
        __outbyte(BusMaster + BM_COMMAND, 0);
        __asm__ volatile("" ::: "memory"); /* the buffer has changed */
        return STATUS_SUCCESS;
    }
    return STATUS_IO_TIMEOUT;
}
static NTSTATUS IdePio(BOOLEAN Write, ULONG64 Lba, ULONG Sectors, PUCHAR Buffer) {
    TRY(IdeCommand(Write ? 0x30 : 0x20, Write ? 0x34 : 0x24, Lba, Sectors));
    for (; Sectors; Sectors--) {
        ULONG64 Words = 256;
        TRY(IdeWait(DRQ));
        if (Write)
            __asm__ volatile("rep outsw" : "+S"(Buffer), "+c"(Words) : "d"(DATA) : "memory");
        else
            __asm__ volatile("rep insw" : "+D"(Buffer), "+c"(Words) : "d"(DATA) : "memory");
    }
    return IdeFinish();
}
static NTSTATUS IdeTransfer(BOOLEAN Write, ULONG64 Lba, ULONG Sectors, PUCHAR Buffer) {
    NTSTATUS Status = STATUS_SUCCESS;
    if (Lba > Capacity || Sectors > Capacity - Lba) return STATUS_INVALID_PARAMETER;
    KiAcquireMutex(&DiskMutex);
    for (ULONG Count; NT_SUCCESS(Status) && Sectors; Sectors -= Count) {
        Count = MIN(Sectors, Lba48 ? MAXIMUM_LBA48 : MAXIMUM_LBA28);
        Status = IdeDescribe(Buffer, Count * 512) ? IdeDma(Write, Lba, Count)
                                                  : IdePio(Write, Lba, Count, Buffer);
        Lba += Count;
        Buffer += Count * 512;
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
    NTSTATUS Status = IdeCommand(0xE7, 0xE7, 0, 0);
    if (NT_SUCCESS(Status)) Status = IdeFinish();
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
    USHORT Identity[256];
    KiInitializeMutex(&DiskMutex);
    if (__inbyte(CONTROL) == 0xFF) return STATUS_NO_SUCH_DEVICE; /* a floating bus */
    for (ULONG Slot = 0; Slot < 256 && !BusMaster; Slot++) {
        ULONG Device = Slot / 8, Function = Slot % 8;
        if (HalPciRead(0, Device, Function, 8) >> 16 != 0x0101) continue; /* class: IDE */
        BusMaster = HalPciRead(0, Device, Function, 0x20) & 0xFFF0;       /* BAR4 */
        HalPciWrite(0, Device, Function, 4, (HalPciRead(0, Device, Function, 4) & 0xFFFF) | 5);
    }
    HalDiskReset();
    TRY(IdeCommand(0xEC, 0xEC, 0, 0));                    /* IDENTIFY DEVICE */
    if (!__inbyte(CONTROL)) return STATUS_NO_SUCH_DEVICE; /* no drive answers */
    TRY(IdeWait(DRQ));
    for (ULONG Word = 0; Word < 256; Word++) Identity[Word] = __inword(DATA);
    Lba48 = Identity[83] >> 10 & 1;
    Capacity = Lba48 ? *(PULONG64)&Identity[100] : *(PULONG)&Identity[60];
    return STATUS_SUCCESS;
}
