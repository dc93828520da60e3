/* The crash dump: from memory into the sectors of pagefile.sys, looked up at boot. Nothing is
 * allocated or locked here; a fault ends in KeBugCheck2, which does not try again. */
#include "dump.h"
#include "mm.h"

enum { SECTOR = 512, PIECE_PAGES = 32, MAXIMUM_EXTENTS = 256 };

PVOID KiDumpHeader;
void (*IopDumpProgress)(ULONG Percent);
static CHAR IopFailureText[160] = "The crash dump was not set up.";
PCSTR IopDumpFailure = IopFailureText;
extern struct _KDDEBUGGER_DATA64 KdDebuggerDataBlock;
static PBITMAP_DUMP IopBitmap;
static ULONG IopBitmapBytes, IopSetting; /* CrashDumpEnabled; 3, small dumps, works as 7 here */
static FAT_EXTENT IopExtents[2][MAXIMUM_EXTENTS], *IopPagefile = IopExtents[0];
static ULONG IopPagefileExtents, IopPagefileBytes;

static BOOLEAN IopFail(PCSTR Format, ...) {
    va_list Arguments;
    va_start(Arguments, Format);
    RtlFormatV(IopFailureText, sizeof(IopFailureText), Format, Arguments);
    va_end(Arguments);
    return FALSE;
}

void IopLocatePagefile(void) {
    FAT_FILE File = {.Size = 0};
    ULONG Count = 0;
    FAT_EXTENT *Next = IopPagefile == IopExtents[0] ? IopExtents[1] : IopExtents[0];
    NTSTATUS Status = FatOpen("pagefile.sys", &File);
    if (!NT_SUCCESS(Status) && NT_SUCCESS(FatOpen("pagefile.new", &File)))
        Status = FatRename(&File, "pagefile.sys"); /* the old one was moved aside as a dump */
    if (NT_SUCCESS(Status)) Status = FatGetExtents(&File, Next, MAXIMUM_EXTENTS, &Count);
    KiDisable(); /* looking takes long: a crash until now goes to where it was */
    IopPagefile = Next;
    IopPagefileBytes = File.Size;
    IopPagefileExtents = NT_SUCCESS(Status) ? Count : 0;
    KiEnable();
    if (!NT_SUCCESS(Status))
        IopFail("No crash dump: C:\\pagefile.sys cannot be used, status %08x.", Status);
}

ULONG IopCrashDumpType(void) { return IopSetting; }

/* Marks the pages a dump holds: all memory, or what is in use. */
static void IopFillBitmap(BOOLEAN All) {
    const PHYSICAL_MEMORY_DESCRIPTOR *Memory = &MmPhysicalMemoryBlock;
    IopBitmap->Signature = 0x504D4453; /* "SDMP" */
    IopBitmap->ValidDump = 0x504D5544; /* "DUMP" */
    IopBitmap->FirstPage = DUMP_HEADER_BYTES + (All ? 0 : IopBitmapBytes);
    IopBitmap->TotalPresentPages = 0;
    memset(IopBitmap->Bitmap, 0, IopBitmap->Pages / 8);
    for (ULONG i = 0; i < Memory->NumberOfRuns; i++)
        for (PFN_NUMBER n = 0, Page; n < Memory->Run[i].PageCount; n++) {
            Page = Memory->Run[i].BasePage + n;
            if (!All && !MiIsPageInUse(Page)) continue;
            IopBitmap->Bitmap[Page / 64] |= 1ULL << Page % 64;
            IopBitmap->TotalPresentPages++;
        }
}

/* From KiBugcheckData and the context in the PRCB. */
static void IopFillHeader(BOOLEAN All) {
    PDUMP_HEADER64 Header = KiDumpHeader;
    const CONTEXT *Context = &KiPcr.Prcb.ProcessorState.ContextFrame;
    for (ULONG i = 0; i < DUMP_HEADER_BYTES / 4; i++) ((PULONG)Header)[i] = DUMP_SIGNATURE;
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
    Header->DumpType = All ? DUMP_TYPE_FULL : DUMP_TYPE_BITMAP_KERNEL;
    IopFillBitmap(All);
    Header->RequiredDumpSpace = IopBitmap->FirstPage + IopBitmap->TotalPresentPages * PAGE_SIZE;
    Header->SystemTime = KiQuerySystemTime();
    Header->SystemUpTime = KiQueryInterruptTime();
    Header->ProductType = 1;   /* NtProductWinNt: workstation */
    Header->SuiteMask = 0x110; /* terminal services, single user */
}

void IopInitializeCrashDump(void) {
    ULONG Bits = (ULONG)(MmHighestPhysicalPage + 64) & ~63U;
    IopBitmapBytes = (ULONG)ROUND_TO_PAGES(sizeof(BITMAP_DUMP) + Bits / 8);
    PHYSICAL Memory = MiAllocatePages(2 + (ULONG)BYTES_TO_PAGES(IopBitmapBytes));
    if (Memory == 0) /* PHASE1_INITIALIZATION_FAILED */
        KeBugCheckEx(0x32, (ULONG)STATUS_INSUFFICIENT_RESOURCES, 0, 0, 0);
    KiDumpHeader = MiPhysicalToVirtual(Memory);
    IopBitmap = MiPhysicalToVirtual(Memory + DUMP_HEADER_BYTES);
    IopBitmap->Pages = Bits;
    IopSetting = CmQueryDword(CM_CRASH_CONTROL, "CrashDumpEnabled", 0);
    IopLocatePagefile();
    IopFillHeader(TRUE); /* for the hypervisor's dump of a running machine */
}

/* Whole sectors at an offset in the pagefile, wherever on the disk its pieces lie. */
static NTSTATUS IopWritePagefile(ULONG64 Offset, const void *Buffer, ULONG Bytes) {
    ULONG64 Sector = Offset / SECTOR;
    ULONG Left = Bytes / SECTOR;
    for (ULONG i = 0; i < IopPagefileExtents && Left; i++) {
        const FAT_EXTENT *Extent = &IopPagefile[i];
        if (Sector < Extent->Sectors) {
            ULONG Part = (ULONG)MIN(Left, Extent->Sectors - Sector);
            TRY(HalDiskWrite(Extent->Lba + Sector, Part, Buffer));
            Buffer = (const UCHAR *)Buffer + Part * SECTOR;
            Left -= Part;
            Sector += Part;
        }
        Sector -= Extent->Sectors;
    }
    return Left ? STATUS_DISK_FULL : STATUS_SUCCESS;
}

/* The pages in the bitmap, as many at a time as lie side by side. */
static NTSTATUS IopWritePages(void) {
    ULONG64 Done = 0, Total = IopBitmap->TotalPresentPages;
    for (PFN_NUMBER Page = 0, Count; Page < IopBitmap->Pages; Page += MAX(Count, 1)) {
        for (Count = 0; Count < PIECE_PAGES && Page + Count < IopBitmap->Pages; Count++)
            if (!(IopBitmap->Bitmap[(Page + Count) / 64] >> (Page + Count) % 64 & 1)) break;
        if (Count == 0) continue;
        TRY(IopWritePagefile(IopBitmap->FirstPage + Done * PAGE_SIZE,
            MiPhysicalToVirtual(Page << PAGE_SHIFT), (ULONG)(Count * PAGE_SIZE)));
        Done += Count;
        IopDumpProgress((ULONG)(Done * 100 / Total));
    }
    return STATUS_SUCCESS;
}

/* The first sector makes the dump: an old one goes first, the new one comes last. Whatever stops
 * the writing in between, nobody takes the rest for a dump. */
static NTSTATUS IopWriteDump(BOOLEAN All) {
    static UCHAR Zeros[SECTOR];
    HalDiskReset();
    TRY(IopWritePagefile(0, Zeros, SECTOR));
    TRY(HalDiskFlush());
    if (!All) TRY(IopWritePagefile(DUMP_HEADER_BYTES, IopBitmap, IopBitmapBytes));
    TRY(IopWritePages());
    TRY(IopWritePagefile(SECTOR, (PUCHAR)KiDumpHeader + SECTOR, DUMP_HEADER_BYTES - SECTOR));
    TRY(HalDiskFlush());
    TRY(IopWritePagefile(0, KiDumpHeader, SECTOR));
    return HalDiskFlush();
}

BOOLEAN IopWriteCrashDump(void) {
    PDUMP_HEADER64 Header = KiDumpHeader;
    BOOLEAN All = IopSetting == 1;
    if (IopSetting == 0) return IopFail("No crash dump: CrashControl\\CrashDumpEnabled is 0.");
    if (!IopPagefileExtents) return FALSE;
    IopFillHeader(All);
    if (IopPagefileBytes < Header->RequiredDumpSpace)
        return IopFail("No crash dump: C:\\pagefile.sys has %u KiB, the dump needs %llu KiB.",
            IopPagefileBytes / 1024, Header->RequiredDumpSpace / 1024);
    NTSTATUS Status = IopWriteDump(All);
    return NT_SUCCESS(Status) ||
           IopFail("No crash dump: writing to C:\\pagefile.sys failed, status %08x.", Status);
}
