/* After a crash: the first boot to get this far makes pagefile.new, renames pagefile.sys to
 * DUMPxxxx.TMP and .new to .sys, and copies the dump to CrashControl\DumpFile; a later boot
 * resumes. */
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

/* pagefile.new takes the page file's name when that is free (IopLocatePagefile): it takes long to
 * make, and a crash until then goes to the old one. */
static NTSTATUS IopCreatePagefile(PCSTR Name, ULONG Size) {
    static const UCHAR NoDump[512]; /* the clusters it gets may have held a dump before */
    FAT_FILE File;
    ULONG Count;
    if (!NT_SUCCESS(FatOpen(Name, &File))) TRY(FatCreate(Name, FALSE, &File));
    TRY(FatWrite(&File, 0, NoDump, sizeof(NoDump), &Count));
    return FatSetSize(&File, Size);
}

/* Finds the newest DUMPxxxx.TMP: the one that this boot moved aside (by its first cluster), or else
 * by the clock. Older ones, which it would overwrite, are deleted. */
static BOOLEAN IopFindDump(ULONG Moved) {
    FAT_FILE Root;
    DUMP_FILE Found;
    if (!NT_SUCCESS(FatOpen("", &Root))) return FALSE;
    for (ULONG Cursor = 0; NT_SUCCESS(FatReadDirectory(&Root, &Cursor, &Found.File));) {
        PCSTR Name = Found.File.Name;
        if (RtlCompareTextInsensitiveN(Name, "DUMP", 4) != 0 || strlen(Name) != 12 ||
            RtlCompareTextInsensitive(Name + 8, ".tmp") != 0 || !IopReadDumpHeader(&Found))
            continue;
        BOOLEAN Newer = Found.File.FirstCluster == Moved ||
                        (Found.Time > IopDump.Time && IopDump.File.FirstCluster != Moved);
        if (IopDump.Time) FatDelete(Newer ? &IopDump.File : &Found.File);
        if (Newer) IopDump = Found;
    }
    return IopDump.Time != 0;
}

static NTSTATUS IopCopyDump(PCSTR Path, PVOID Buffer) {
    DUMP_FILE Target;
    if (NT_SUCCESS(FatOpen(Path, &Target.File))) {
        BOOLEAN Half = !IopReadDumpHeader(&Target) && Target.Time; /* a copy that was cut short */
        BOOLEAN Begun = !Target.File.Size || Half || Target.Time == IopDump.Time;
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
    ULONG Moved = ~0U;
    CHAR Name[16];
    /* Without room for the next page file the dump stays, for a crash needs a page file. */
    if (NT_SUCCESS(FatOpen("pagefile.sys", &Pagefile.File)) && IopReadDumpHeader(&Pagefile) &&
        NT_SUCCESS(IopCreatePagefile("pagefile.new", Pagefile.File.Size))) {
        do RtlFormat(Name, sizeof(Name), "DUMP%04X.TMP", (ULONG)(KiRandom() & 0xFFFF));
        while ((Status = FatRename(&Pagefile.File, Name)) == STATUS_OBJECT_NAME_COLLISION);
        if (NT_SUCCESS(Status)) Moved = Pagefile.File.FirstCluster;
        DbgPrint("io: last crash: pagefile.sys renamed to %s, status %08x\n", Name, Status);
    }
    IopLocatePagefile();
    if (!IopFindDump(Moved)) return;
    /* The dump's file is as long as the page file. Cut to the dump's, it leaves room for one. */
    ULONG Whole = IopDump.File.Size;
    FatSetSize(&IopDump.File, (ULONG)IopDump.Size);
    Status = FatOpen("pagefile.sys", &Pagefile.File);
    if (!NT_SUCCESS(Status) || Pagefile.File.Size < Whole) {
        Status = IopCreatePagefile("pagefile.sys", Whole);
        IopLocatePagefile();
    }
    if (!NT_SUCCESS(Status)) DbgPrint("io: no new pagefile.sys: status %08x\n", Status);
    KiStartThread(IopCopyDumpThread, NULL, NULL);
}
