/* Writing the crash dump: from memory into the sectors of pagefile.sys, which were looked up at
 * boot. At the crash nothing is allocated, locked or looked up in the file system. A fault in here
 * ends in KeBugCheck2, which then does not try again. */
#include "dump.h"
#include "mm.h"

enum { SECTOR = 512, PIECE_PAGES = 32 };

PVOID KiDumpHeader;
PCSTR IopDumpFailure = "The crash dump was not set up.";
void (*IopDumpProgress)(ULONG Percent);
extern struct _KDDEBUGGER_DATA64 KdDebuggerDataBlock;
static PBITMAP_DUMP IopBitmap;
static ULONG IopBitmapBytes, IopSetting; /* CrashDumpEnabled of this boot */
static FAT_EXTENT IopPagefile[256];
static ULONG IopPagefileExtents;
static CHAR IopFailureText[160];

static void IopFail(PCSTR Format, ...) {
    va_list Arguments;
    va_start(Arguments, Format);
    RtlFormatV(IopFailureText, sizeof(IopFailureText), Format, Arguments);
    va_end(Arguments);
    IopDumpFailure = IopFailureText;
}

void IopLocatePagefile(void) {
    FAT_FILE File;
    ULONG Count = 0;
    IopPagefileExtents = 0; /* a crash right now must not write to where it was */
    NTSTATUS Status = FatOpen("pagefile.sys", &File);
    if (NT_SUCCESS(Status))
        Status = FatGetExtents(&File, IopPagefile, ARRAY_SIZE(IopPagefile), &Count);
    if (NT_SUCCESS(Status))
        IopPagefileExtents = Count;
    else
        IopFail("No crash dump: C:\\pagefile.sys %s, status %08x.",
            Count ? "lies in too many pieces" : "cannot be found", Status);
}

ULONG IopCrashDumpType(void) { return IopSetting; }

void IopInitializeCrashDump(void) {
    ULONG Bits = (ULONG)(MmHighestPhysicalPage + 64) & ~63U;
    IopBitmapBytes = (ULONG)ROUND_TO_PAGES(sizeof(BITMAP_DUMP) + Bits / 8);
    PHYSICAL Memory = MiAllocatePages(2 + (ULONG)BYTES_TO_PAGES(IopBitmapBytes));
    if (Memory == 0) /* PHASE1_INITIALIZATION_FAILED */
        KeBugCheckEx(0x32, (ULONG)STATUS_INSUFFICIENT_RESOURCES, 0, 0, 0);
    KiDumpHeader = MiPhysicalToVirtual(Memory);
    IopBitmap = MiPhysicalToVirtual(Memory + DUMP_HEADER_BYTES);
    IopSetting = CmQueryDword(CM_CRASH_CONTROL, "CrashDumpEnabled", 0);
    if (IopSetting == 3) {
        DbgPrint("io: this kernel writes no small memory dumps: CrashDumpEnabled 3 works as 7\n");
        IopSetting = 7;
    }
    IopBitmap->Pages = Bits;
    IopLocatePagefile();
    KiFillDumpHeader(DUMP_TYPE_FULL); /* for the hypervisor's dump of a running machine */
}

/* Marks the pages a kernel dump holds and returns their number. */
static ULONG64 IopFillBitmap(void) {
    const PHYSICAL_MEMORY_DESCRIPTOR *Memory = &MmPhysicalMemoryBlock;
    ULONG64 Count = 0;
    memset(IopBitmap->Bitmap, 0, IopBitmap->Pages / 8);
    for (ULONG i = 0; i < Memory->NumberOfRuns; i++) {
        PFN_NUMBER End = Memory->Run[i].BasePage + Memory->Run[i].PageCount;
        for (PFN_NUMBER Page = Memory->Run[i].BasePage; Page < End; Page++)
            if (MiIsPageInUse(Page)) {
                IopBitmap->Bitmap[Page / 64] |= 1ULL << Page % 64;
                Count++;
            }
    }
    IopBitmap->Signature = 0x504D4453; /* "SDMP" */
    IopBitmap->ValidDump = 0x504D5544; /* "DUMP" */
    IopBitmap->FirstPage = DUMP_HEADER_BYTES + IopBitmapBytes;
    IopBitmap->TotalPresentPages = Count;
    return Count;
}

void KiFillDumpHeader(ULONG DumpType) {
    PDUMP_HEADER64 Header = KiDumpHeader;
    const CONTEXT *Context = &KeGetPcr()->Prcb.ProcessorState.ContextFrame;
    for (ULONG i = 0; i < DUMP_HEADER_BYTES / sizeof(ULONG); i++)
        ((PULONG)Header)[i] = DUMP_SIGNATURE;
    Header->ValidDump = DUMP_VALID;
    Header->MajorVersion = 15; /* free build */
    Header->MinorVersion = 19041;
    Header->DirectoryTableBase = PsInitialSystemProcess->Pcb.DirectoryTableBase;
    Header->PfnDataBase = (ULONG64)MmPfnDatabase;
    Header->PsLoadedModuleList = (ULONG64)&PsLoadedModuleList;
    Header->PsActiveProcessHead = (ULONG64)&PsActiveProcessHead;
    Header->MachineImageType = 0x8664;
    Header->NumberProcessors = 1;
    Header->BugCheckCode = (ULONG)KiBugcheckData[0];
    memcpy(Header->BugCheckParameter, KiBugcheckData + 1, sizeof(Header->BugCheckParameter));
    Header->VersionUser[0] = Header->Comment[0] = 0;
    Header->KdDebuggerDataBlock = (ULONG64)&KdDebuggerDataBlock;
    Header->PhysicalMemoryBlock = MmPhysicalMemoryBlock;
    memcpy(Header->ContextRecord, Context, sizeof(*Context));
    /* Windows says this of every bug check, whatever led to it. */
    Header->Exception = (EXCEPTION_RECORD){.ExceptionCode = STATUS_BREAKPOINT,
        .ExceptionFlags = 1,
        .ExceptionAddress = (PVOID)Context->Rip};
    Header->DumpType = DumpType;
    Header->RequiredDumpSpace =
        DumpType == DUMP_TYPE_FULL
            ? DUMP_HEADER_BYTES + MmPhysicalMemoryBlock.NumberOfPages * PAGE_SIZE
            : DUMP_HEADER_BYTES + IopBitmapBytes + IopFillBitmap() * PAGE_SIZE;
    Header->SystemTime = KiQuerySystemTime();
    Header->SystemUpTime = KiQueryInterruptTime();
    Header->ProductType = 1;   /* NtProductWinNt: workstation */
    Header->SuiteMask = 0x110; /* terminal services, single user */
}

/* Whole sectors at an offset in the pagefile, wherever on the disk its pieces lie. */
static NTSTATUS IopWritePagefile(ULONG64 Offset, const void *Buffer, ULONG Bytes) {
    ULONG64 Sector = Offset / SECTOR;
    ULONG Left = Bytes / SECTOR;
    for (ULONG i = 0; i < IopPagefileExtents && Left; i++) {
        const FAT_EXTENT *Extent = &IopPagefile[i];
        if (Sector < Extent->Sectors) {
            ULONG Part = (ULONG)MIN(Left, Extent->Sectors - Sector);
            NTSTATUS Status = HalDiskWrite(Extent->Lba + Sector, Part, Buffer);
            if (!NT_SUCCESS(Status)) return Status;
            Buffer = (const UCHAR *)Buffer + Part * SECTOR;
            Left -= Part;
            Sector += Part;
        }
        Sector -= Extent->Sectors;
    }
    return Left ? STATUS_DISK_FULL : STATUS_SUCCESS;
}

/* The pages of memory, all or those in the bitmap, as many at a time as lie side by side. */
static NTSTATUS IopWritePages(BOOLEAN All, ULONG64 Offset, ULONG64 Total) {
    const PHYSICAL_MEMORY_DESCRIPTOR *Memory = &MmPhysicalMemoryBlock;
    ULONG64 Done = 0;
    for (ULONG i = 0; i < Memory->NumberOfRuns; i++) {
        PFN_NUMBER Page = Memory->Run[i].BasePage, End = Page + Memory->Run[i].PageCount;
        while (Page < End) {
            ULONG Count = 0;
            while (Count < PIECE_PAGES && Page + Count < End &&
                   (All || IopBitmap->Bitmap[(Page + Count) / 64] >> (Page + Count) % 64 & 1))
                Count++;
            NTSTATUS Status = Count
                                  ? IopWritePagefile(Offset + Done * PAGE_SIZE,
                                        MiPhysicalToVirtual(Page << PAGE_SHIFT), Count * PAGE_SIZE)
                                  : STATUS_SUCCESS;
            if (!NT_SUCCESS(Status)) return Status;
            if (IopDumpProgress && Done * 100 / Total != (Done + Count) * 100 / Total)
                IopDumpProgress((ULONG)((Done + Count) * 100 / Total));
            Done += Count;
            Page += MAX(Count, 1U);
        }
    }
    return STATUS_SUCCESS;
}

BOOLEAN IopWriteCrashDump(void) {
    PDUMP_HEADER64 Header = KiDumpHeader;
    BOOLEAN All = IopSetting == 1;
    ULONG64 Size = 0;
    NTSTATUS Status;
    if (IopSetting == 0) IopFail("No crash dump: CrashControl\\CrashDumpEnabled is 0.");
    if (IopSetting == 0 || !IopPagefileExtents) return FALSE;
    KiFillDumpHeader(All ? DUMP_TYPE_FULL : DUMP_TYPE_BITMAP_KERNEL);
    for (ULONG i = 0; i < IopPagefileExtents; i++) Size += (ULONG64)IopPagefile[i].Sectors * SECTOR;
    if (Size < Header->RequiredDumpSpace) {
        IopFail("No crash dump: C:\\pagefile.sys has %llu KiB, the dump needs %llu KiB.",
            Size / 1024, Header->RequiredDumpSpace / 1024);
        return FALSE;
    }
    /* The first sector makes the dump: an old one goes first, the new one comes last. Whatever
     * stops the writing in between, nobody takes the rest for a dump. */
    static UCHAR Zeros[SECTOR];
    ULONG64 First = All ? DUMP_HEADER_BYTES : IopBitmap->FirstPage;
    HalDiskReset();
    if (!NT_SUCCESS(Status = IopWritePagefile(0, Zeros, SECTOR)) ||
        !NT_SUCCESS(Status = HalDiskFlush()) ||
        (!All &&
            !NT_SUCCESS(Status = IopWritePagefile(DUMP_HEADER_BYTES, IopBitmap, IopBitmapBytes))) ||
        !NT_SUCCESS(
            Status = IopWritePages(All, First, (Header->RequiredDumpSpace - First) / PAGE_SIZE)) ||
        !NT_SUCCESS(Status = IopWritePagefile(
                        SECTOR, (PUCHAR)Header + SECTOR, DUMP_HEADER_BYTES - SECTOR)) ||
        !NT_SUCCESS(Status = HalDiskFlush()) ||
        !NT_SUCCESS(Status = IopWritePagefile(0, Header, SECTOR)) ||
        !NT_SUCCESS(Status = HalDiskFlush())) {
        IopFail("No crash dump: writing to C:\\pagefile.sys failed, status %08x.", Status);
        return FALSE;
    }
    return TRUE;
}
