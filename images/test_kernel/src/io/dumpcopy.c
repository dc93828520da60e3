/* After a crash: the first boot that gets this far renames pagefile.sys with its dump to
 * DUMPxxxx.tmp, makes a new page file, and copies the dump to CrashControl\DumpFile in the
 * background. The next boot goes on from where this was cut short, with the copy from its start. */
#include "dump.h"

enum { PIECE_PAGES = 64 };
typedef struct _DUMP_FILE {
    FAT_FILE File;
    ULONG64 Size; /* the header's, not the file's */
    LONG64 Time;
} DUMP_FILE;
static DUMP_FILE IopDump; /* the one that is copied */

/* Whether the file holds a whole dump; the time of one that is not is still given, else 0. */
static BOOLEAN IopReadDumpHeader(DUMP_FILE *Dump) {
    UCHAR Start[offsetof(DUMP_HEADER64, Comment)] = {0};
    const DUMP_HEADER64 *Header = (PVOID)Start;
    ULONG Count;
    FatRead(&Dump->File, 0, Start, sizeof(Start), &Count);
    BOOLEAN Good = Header->Signature == DUMP_SIGNATURE && Header->ValidDump == DUMP_VALID;
    Dump->Size = Header->RequiredDumpSpace;
    Dump->Time = Good ? Header->SystemTime : 0;
    return Dump->Time != 0 && Dump->Size <= Dump->File.Size;
}

static NTSTATUS IopCreatePagefile(ULONG Size) {
    static const UCHAR NoDump[512]; /* the clusters it gets may have held a dump before */
    FAT_FILE File;
    ULONG Count;
    NTSTATUS Status = FatOpen("pagefile.sys", &File);
    if (!NT_SUCCESS(Status)) Status = FatCreate("pagefile.sys", FALSE, &File);
    if (NT_SUCCESS(Status)) Status = FatWrite(&File, 0, NoDump, sizeof(NoDump), &Count);
    if (NT_SUCCESS(Status)) Status = FatSetSize(&File, Size);
    IopLocatePagefile();
    return Status;
}

/* Finds the newest DUMPxxxx.tmp; older ones, which it would overwrite, are deleted. */
static BOOLEAN IopFindDump(void) {
    FAT_FILE Root;
    DUMP_FILE Found;
    if (!NT_SUCCESS(FatOpen("", &Root))) return FALSE;
    for (ULONG Cursor = 0; NT_SUCCESS(FatReadDirectory(&Root, &Cursor, &Found.File));) {
        PCSTR Name = Found.File.Name;
        if (RtlCompareTextInsensitiveN(Name, "DUMP", 4) != 0 || strlen(Name) != 12 ||
            RtlCompareTextInsensitive(Name + 8, ".tmp") != 0 || !IopReadDumpHeader(&Found))
            continue;
        BOOLEAN Newer = Found.Time > IopDump.Time;
        if (IopDump.Time) FatDelete(Newer ? &IopDump.File : &Found.File);
        if (Newer) IopDump = Found;
    }
    return IopDump.Time != 0;
}

static NTSTATUS IopCopyDump(PCSTR Path, PVOID Buffer) {
    DUMP_FILE Target;
    if (NT_SUCCESS(FatOpen(Path, &Target.File))) {
        IopReadDumpHeader(&Target);
        BOOLEAN Begun = Target.File.Size == 0 || Target.Time == IopDump.Time; /* by another boot */
        if (!Begun && !CmQueryDword(CM_CRASH_CONTROL, "Overwrite", 1)) {
            DbgPrint("io: C:\\%s stays, Overwrite is 0: the new dump is dropped\n", Path);
            return STATUS_SUCCESS;
        }
        FatDelete(&Target.File);
    }
    TRY(FatCreate(Path, FALSE, &Target.File));
    for (ULONG Offset = 0, Count; Offset < IopDump.Size; Offset += Count) {
        TRY(FatRead(&IopDump.File, Offset, Buffer, PIECE_PAGES * PAGE_SIZE, &Count));
        TRY(FatWrite(&Target.File, Offset, Buffer, Count, &Count));
        KiSleep(0); /* others first */
    }
    return HalDiskFlush();
}

static void IopCopyDumpThread(PVOID Context) {
    CHAR Setting[260] = "%SystemRoot%\\MEMORY.DMP", Path[260];
    PHYSICAL Buffer = MiAllocatePages(PIECE_PAGES);
    UNREFERENCED(Context);
    CmQueryString(CM_CRASH_CONTROL, "DumpFile", Setting, sizeof(Setting));
    NTSTATUS Status = Buffer ? IopVolumePath(Setting, Path, sizeof(Path)) : STATUS_NO_MEMORY;
    if (NT_SUCCESS(Status)) Status = IopCopyDump(Path, MiPhysicalToVirtual(Buffer));
    DbgPrint("io: copy of %s to %s: status %08x\n", IopDump.File.Name, Setting, Status);
    if (NT_SUCCESS(Status)) FatDelete(&IopDump.File); /* else it stays for the next boot */
    if (Buffer) MiFreePages(Buffer, PIECE_PAGES);
}

void IopCopyCrashDump(void) {
    DUMP_FILE Pagefile;
    NTSTATUS Status;
    CHAR Name[16];
    if (NT_SUCCESS(FatOpen("pagefile.sys", &Pagefile.File)) && IopReadDumpHeader(&Pagefile)) {
        do RtlFormat(Name, sizeof(Name), "DUMP%04x.tmp", (ULONG)(KiRandom() & 0xFFFF));
        while ((Status = FatRename(&Pagefile.File, Name)) == STATUS_OBJECT_NAME_COLLISION);
        DbgPrint("io: last crash: pagefile.sys renamed to %s, status %08x\n", Name, Status);
    }
    if (!IopFindDump()) return;
    /* The dump's file keeps the length of the page file until there is a new one of that length. */
    ULONG Whole = IopDump.File.Size;
    Status = FatOpen("pagefile.sys", &Pagefile.File);
    if (!NT_SUCCESS(Status) || Pagefile.File.Size < Whole) Status = IopCreatePagefile(Whole);
    FatSetSize(&IopDump.File, (ULONG)IopDump.Size);
    if (!NT_SUCCESS(Status)) Status = IopCreatePagefile(Whole); /* there is more room now */
    if (!NT_SUCCESS(Status)) DbgPrint("io: no new pagefile.sys: status %08x\n", Status);
    KiStartThread(IopCopyDumpThread, NULL, NULL);
}
