/* After a crash: the first boot that gets this far renames pagefile.sys with its dump to
 * DUMPxxxx.tmp, makes a new page file, and copies the dump to CrashControl\DumpFile in the
 * background. Each step can be cut short; the next boot finds the DUMPxxxx.tmp and goes on, the
 * copy from its beginning. */
#include "dump.h"

enum { PIECE_PAGES = 64 };
static FAT_FILE IopDumpSource;

/* Whether the file starts with a dump's header, how long that dump is and when it was written. */
static BOOLEAN IopReadDumpHeader(PFAT_FILE File, PULONG64 Size, LONG64 *Time) {
    UCHAR Start[offsetof(DUMP_HEADER64, Comment)];
    const DUMP_HEADER64 *Header = (PVOID)Start;
    ULONG Count = 0;
    FatRead(File, 0, Start, sizeof(Start), &Count);
    if (Count != sizeof(Start) || !IopIsDumpHeader(Header)) return FALSE;
    *Size = Header->RequiredDumpSpace;
    *Time = Header->SystemTime;
    return TRUE;
}

static NTSTATUS IopCreatePagefile(ULONG Size) {
    static const UCHAR NoDump[512];
    FAT_FILE File;
    ULONG Count;
    NTSTATUS Status = FatOpen("pagefile.sys", &File);
    if (Status == STATUS_OBJECT_NAME_NOT_FOUND) Status = FatCreate("pagefile.sys", FALSE, &File);
    if (NT_SUCCESS(Status)) /* the clusters it gets may have held a dump before */
        Status = FatWrite(&File, 0, NoDump, sizeof(NoDump), &Count);
    if (NT_SUCCESS(Status)) Status = FatSetSize(&File, Size);
    return Status;
}

static void IopRenamePagefile(void) {
    FAT_FILE File, Other;
    ULONG64 Size;
    LONG64 Time;
    CHAR Name[16];
    if (!NT_SUCCESS(FatOpen("pagefile.sys", &File)) || !IopReadDumpHeader(&File, &Size, &Time) ||
        Size > File.Size)
        return;
    do RtlFormat(Name, sizeof(Name), "DUMP%04x.tmp", (ULONG)(KiRandom() & 0xFFFF));
    while (NT_SUCCESS(FatOpen(Name, &Other)));
    NTSTATUS Status = FatRename(&File, Name);
    DbgPrint("io: dump of the last crash: pagefile.sys renamed to %s, status %08x\n", Name, Status);
}

/* Finds the newest DUMPxxxx.tmp and its length; older ones, which it would overwrite, are deleted.
 */
static BOOLEAN IopFindDump(PFAT_FILE Found, PULONG64 FoundSize) {
    FAT_FILE Root, Entry;
    LONG64 FoundTime = 0, Time;
    ULONG64 Size;
    BOOLEAN Any = FALSE;
    if (!NT_SUCCESS(FatOpen("", &Root))) return FALSE;
    for (ULONG Cursor = 0; NT_SUCCESS(FatReadDirectory(&Root, &Cursor, &Entry));) {
        if (RtlCompareTextInsensitiveN(Entry.Name, "DUMP", 4) != 0 || strlen(Entry.Name) != 12 ||
            RtlCompareTextInsensitive(Entry.Name + 8, ".tmp") != 0 ||
            !IopReadDumpHeader(&Entry, &Size, &Time) || Size > Entry.Size)
            continue;
        if (Any) FatDelete(Time > FoundTime ? Found : &Entry);
        if (!Any || Time > FoundTime) {
            *Found = Entry;
            *FoundSize = Size;
            FoundTime = Time;
        }
        Any = TRUE;
    }
    return Any;
}

/* Makes way for the copy. FALSE when DumpFile is another dump that must not be overwritten. */
static BOOLEAN IopReplaceTarget(PCSTR Path) {
    FAT_FILE Target;
    ULONG64 Size;
    LONG64 OldTime = 0, Time = 0;
    if (!NT_SUCCESS(FatOpen(Path, &Target))) return TRUE;
    IopReadDumpHeader(&IopDumpSource, &Size, &Time);
    BOOLEAN HalfCopy = Target.Size == 0 || (IopReadDumpHeader(&Target, &Size, &OldTime) &&
                                               OldTime == Time && Size > Target.Size);
    if (!HalfCopy && !CmQueryDword(CM_CRASH_CONTROL, "Overwrite", 1)) return FALSE;
    FatDelete(&Target);
    return TRUE;
}

static NTSTATUS IopCopyPieces(PFAT_FILE Source, PFAT_FILE Target, PVOID Buffer) {
    NTSTATUS Status = STATUS_SUCCESS;
    ULONG Count;
    for (ULONG Offset = 0; NT_SUCCESS(Status) && Offset < Source->Size; Offset += Count) {
        Status = FatRead(Source, Offset, Buffer, PIECE_PAGES * PAGE_SIZE, &Count);
        if (NT_SUCCESS(Status)) Status = FatWrite(Target, Offset, Buffer, Count, &Count);
        KiSleep(0); /* others first */
    }
    return NT_SUCCESS(Status) ? HalDiskFlush() : Status;
}

static void IopCopyDumpThread(PVOID Context) {
    CHAR Setting[260] = "%SystemRoot%\\MEMORY.DMP", Path[260];
    FAT_FILE Target;
    UNREFERENCED(Context);
    CmQueryString(CM_CRASH_CONTROL, "DumpFile", Setting, sizeof(Setting));
    NTSTATUS Status = IopVolumePath(Setting, Path, sizeof(Path));
    PHYSICAL Buffer = NT_SUCCESS(Status) ? MiAllocatePages(PIECE_PAGES) : 0;
    if (Buffer && !IopReplaceTarget(Path)) {
        DbgPrint(
            "io: %s exists and CrashControl\\Overwrite is 0: the new dump is dropped\n", Setting);
        FatDelete(&IopDumpSource);
    } else if (Buffer) {
        Status = FatCreate(Path, FALSE, &Target);
        if (NT_SUCCESS(Status))
            Status = IopCopyPieces(&IopDumpSource, &Target, MiPhysicalToVirtual(Buffer));
        DbgPrint("io: %s copied to %s, status %08x\n", IopDumpSource.Name, Setting, Status);
        if (NT_SUCCESS(Status)) /* else it stays for the next boot */
            FatDelete(&IopDumpSource);
    } else {
        DbgPrint(
            "io: the dump cannot be copied to %s: status %08x or no memory\n", Setting, Status);
    }
    if (Buffer) MiFreePages(Buffer, PIECE_PAGES);
}

void IopCopyCrashDump(void) {
    FAT_FILE Pagefile;
    ULONG64 Size;
    IopRenamePagefile();
    if (!IopFindDump(&IopDumpSource, &Size)) return;
    /* The dump's file keeps the length of the page file until there is a new one of that length. */
    ULONG Whole = IopDumpSource.Size;
    BOOLEAN Missing =
        !NT_SUCCESS(FatOpen("pagefile.sys", &Pagefile)) || (Whole > Size && Pagefile.Size < Whole);
    NTSTATUS Status = Missing ? IopCreatePagefile(Whole) : STATUS_SUCCESS;
    IopLocatePagefile();
    FatSetSize(&IopDumpSource, (ULONG)Size);
    if (!NT_SUCCESS(Status)) { /* there is more room now */
        Status = IopCreatePagefile(Whole);
        IopLocatePagefile();
    }
    if (!NT_SUCCESS(Status))
        DbgPrint("io: no new pagefile.sys of %u bytes: status %08x\n", Whole, Status);
    KiStartThread(IopCopyDumpThread, NULL, NULL);
}
