/* FAT32 with long file names on the first FAT32 partition. Source: Microsoft, "FAT: General
 * Overview of On-Disk Format", 1.03 (2000), section numbers below. Times on disk are kept as UTC.
 *
 * Writes are ordered so that a power cut leaves at worst lost clusters, or a chain longer than its
 * file says: new clusters are chained up before anything points at them, an entry forgets its
 * clusters before they are freed, and the directory entries of one file share a sector wherever
 * they fit into one, so that making, renaming and deleting a file is one sector write. */
#include "ki.h"

#define SECTOR          512
#define LINE_SECTORS    32 /* the cache reads 16 KiB at a time, and writes single sectors */
#define ENTRIES         (SECTOR / 4) /* of a sector of the FAT */
#define CHAIN_END       0x0FFFFFFF
#define CLUSTER_MASK    0x0FFFFFFF
#define ROOT_ENTRY      0xFFFFFFFF /* EntryIndex of the root directory, which has no entry */
#define SLOT_LIMIT      65536      /* entries of a directory */
#define SLOTS           (SECTOR / sizeof(DIRENT))
#define SLOT_FREE       0xE5
#define LONG_LAST       0x40
#define LONG_CHARS      13
#define LONG_SLOTS      20
#define LOWER_BASE      0x08 /* case flags, as Windows NT writes them */
#define LOWER_EXTENSION 0x10
#define LABEL           0x08 /* attributes */
#define LONG_NAME       0x0F
#define DIRECTORY       0x10
#define ARCHIVE         0x20
#define UNKNOWN         0xFFFFFFFF

typedef struct __attribute__((packed)) _BOOT_SECTOR { /* section 3 */
    UCHAR Jump[11];
    USHORT BytesPerSector;
    UCHAR SectorsPerCluster;
    USHORT ReservedSectors;
    UCHAR FatCount;
    USHORT RootEntries, Sectors16;
    UCHAR Media;
    USHORT FatSectors16, Geometry[2];
    ULONG HiddenSectors, Sectors, FatSectors, FlagsAndVersion, RootCluster;
    USHORT InfoSector;
} BOOT_SECTOR;
ASSERT_OFFSET(BOOT_SECTOR, InfoSector, 48);
typedef struct _DIRENT { /* section 6; a long name's slots overlay it (section 7) */
    UCHAR Name[11], Attributes, CaseFlags, CreateTenMs;
    USHORT CreateTime, CreateDate, AccessDate, ClusterHigh, WriteTime, WriteDate, ClusterLow;
    ULONG Size;
} DIRENT, *PDIRENT;
ASSERT_SIZE(DIRENT, 32);
static const UCHAR LongOffsets[LONG_CHARS] = {1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30};

static UCHAR BootData[SECTOR] __attribute__((aligned(16)));
static BOOT_SECTOR *const Boot = (BOOT_SECTOR *)BootData;
static struct {
    ULONG64 Lba; /* of the partition; all sectors below count from here */
    ULONG DataStart, ClusterBytes, LastCluster, Free, NextFree; /* Free: UNKNOWN until counted */
    BOOLEAN HasInfo;
} Volume;
static KI_MUTEX FatMutex;
static struct {
    ULONG Line, Used; /* Line + 1, 0 = empty */
    UCHAR Data[LINE_SECTORS * SECTOR] __attribute__((aligned(16)));
} Cache[8];
static ULONG CacheClock, PlaceClock;
/* The last places looked up in chains, so that going on from there is cheap. */
static struct { ULONG First, Index, Cluster; } Places[16];

static void FatUnlock(int *Unused) { KiReleaseMutex((UNREFERENCED(Unused), &FatMutex)); }
#define LOCK_UNTIL_RETURN                                                                          \
    __attribute__((cleanup(FatUnlock))) int Locked = (KiAcquireMutex(&FatMutex), 0);               \
    UNREFERENCED(Locked)

/* A sector in the cache, good until a few other lines were used; NULL when it cannot be read. */
static PUCHAR FatSector(ULONG Sector) {
    ULONG Line = Sector / LINE_SECTORS, Start = Line * LINE_SECTORS, Slot = 0;
    for (ULONG Index = 0; Index < ARRAY_SIZE(Cache) && Cache[Slot].Line != Line + 1; Index++) {
        if (Cache[Index].Line == Line + 1 || Cache[Index].Used < Cache[Slot].Used) Slot = Index;
    }
    Cache[Slot].Used = ++CacheClock;
    if (Cache[Slot].Line != Line + 1) {
        Cache[Slot].Line = 0;
        ULONG Count = MIN(LINE_SECTORS, Boot->Sectors - Start);
        if (!NT_SUCCESS(HalDiskRead(Volume.Lba + Start, Count, Cache[Slot].Data))) return NULL;
        Cache[Slot].Line = Line + 1;
    }
    return Cache[Slot].Data + Sector % LINE_SECTORS * SECTOR;
}
/* Writes the changed sector that `Changed` points into, and the same sector of the other FATs. */
static NTSTATUS FatCommit(const void *Changed) {
    ULONG Slot = ((ULONG64)Changed - (ULONG64)Cache) / sizeof(Cache[0]);
    ULONG Within = ((ULONG64)Changed - (ULONG64)Cache[Slot].Data) / SECTOR;
    ULONG Sector = (Cache[Slot].Line - 1) * LINE_SECTORS + Within;
    BOOLEAN InFat = Sector - Boot->ReservedSectors < Boot->FatSectors;
    NTSTATUS Status = STATUS_SUCCESS;
    for (ULONG Copy = 0; NT_SUCCESS(Status) && Copy < (InFat ? Boot->FatCount : 1); Copy++)
        Status = HalDiskWrite(
            Volume.Lba + Sector + Copy * Boot->FatSectors, 1, Cache[Slot].Data + Within * SECTOR);
    if (!NT_SUCCESS(Status)) { /* what the disk holds now is not known */
        memset(Cache, 0, sizeof(Cache));
        Volume.Free = UNKNOWN;
    }
    return Status;
}

/* -- clusters ---------------------------------------------------------------------------------- */
static ULONG FatClusterSector(ULONG Cluster) {
    return Volume.DataStart + (Cluster - 2) * Boot->SectorsPerCluster;
}
static PULONG FatEntry(ULONG Cluster) {
    PUCHAR Data = FatSector(Boot->ReservedSectors + Cluster / ENTRIES);
    return Data ? (PULONG)Data + Cluster % ENTRIES : NULL;
}
/* The next cluster of a chain; 0 at its end, 1 where it is broken or unreadable. */
static ULONG FatNextCluster(ULONG Cluster) {
    PULONG Entry = FatEntry(Cluster);
    ULONG Next = Entry ? *Entry & CLUSTER_MASK : 1;
    return Next > CHAIN_END - 8 ? 0 : Next < 2 || Next > Volume.LastCluster ? 1 : Next;
}
/* The cluster *Index places into a chain, or its last with *Index corrected; 0, 1: as above. */
static ULONG FatWalk(ULONG First, PULONG Index) {
    ULONG At = 0, Cluster = First, Next;
    if (First < 2 || First > Volume.LastCluster) return First ? 1 : 0;
    for (ULONG Slot = 0; Slot < ARRAY_SIZE(Places); Slot++) {
        if (Places[Slot].First == First && Places[Slot].Index <= *Index &&
            Places[Slot].Index > At) {
            At = Places[Slot].Index;
            Cluster = Places[Slot].Cluster;
        }
    }
    ULONG Known = At;
    for (; At < *Index && (Next = FatNextCluster(Cluster)) != 0; At++, Cluster = Next) {
        if (Next == 1) return 1;
    }
    *Index = At;
    if (At == Known) return Cluster;
    ULONG Slot = PlaceClock++ % ARRAY_SIZE(Places);
    Places[Slot].First = First;
    Places[Slot].Index = At;
    return Places[Slot].Cluster = Cluster;
}
static ULONG FatClusterAt(ULONG First, ULONG Index) {
    ULONG At = Index, Cluster = FatWalk(First, &At);
    return Cluster == 1 || At == Index ? Cluster : 0;
}
static NTSTATUS FatSetNext(ULONG Cluster, ULONG Next) {
    PULONG Entry = FatEntry(Cluster);
    if (!Entry) return STATUS_IO_DEVICE_ERROR;
    *Entry = (*Entry & ~CLUSTER_MASK) | Next;
    return FatCommit(Entry);
}
/* The count in FSInfo is a hint that a power cut leaves wrong: count, once a mount. */
static NTSTATUS FatCountFree(void) {
    ULONG Free = 0;
    if (Volume.Free != UNKNOWN) return STATUS_SUCCESS;
    for (ULONG Cluster = 0; Cluster <= Volume.LastCluster; Cluster += ENTRIES) {
        PULONG Entry = FatEntry(Cluster);
        if (!Entry) return STATUS_IO_DEVICE_ERROR;
        for (ULONG Index = 0; Index < MIN(ENTRIES, Volume.LastCluster + 1 - Cluster); Index++)
            Free += !(Entry[Index] & CLUSTER_MASK); /* the first two are never 0 */
    }
    Volume.Free = Free;
    return STATUS_SUCCESS;
}
static void FatWriteInfo(void) { /* section 5; advisory, so a failure does not matter */
    PUCHAR Info = Volume.HasInfo ? FatSector(Boot->InfoSector) : NULL;
    if (!Info) return;
    memcpy(Info + 488, &Volume.Free, 4);
    memcpy(Info + 492, &Volume.NextFree, 4);
    FatCommit(Info);
}
static NTSTATUS FatFreeChain(ULONG Cluster) {
    TRY(FatCountFree());
    memset(Places, 0, sizeof(Places));
    while (Cluster >= 2) {
        ULONG Next = FatNextCluster(Cluster);
        PULONG Entry = FatEntry(Cluster);
        if (!Entry) return STATUS_IO_DEVICE_ERROR;
        *Entry &= ~CLUSTER_MASK;
        Volume.Free++;
        if (Next < 2 || Next / ENTRIES != Cluster / ENTRIES) TRY(FatCommit(Entry));
        Cluster = Next;
    }
    FatWriteInfo();
    return STATUS_SUCCESS;
}
/* A new chain of `Count` clusters, next fit, best right behind `Near`. Nothing points at it yet. */
static NTSTATUS FatAllocateChain(ULONG Count, ULONG Near, PULONG First) {
    ULONG Tail = 0, Cluster = Near ? Near + 1 : Volume.NextFree;
    TRY(FatCountFree());
    if (Count > Volume.Free) return STATUS_DISK_FULL;
    for (ULONG Left = Count; Left; Cluster++) {
        if (Cluster < 2 || Cluster > Volume.LastCluster) Cluster = 2;
        PULONG Entry = FatEntry(Cluster);
        if (!Entry) return STATUS_IO_DEVICE_ERROR;
        if (*Entry & CLUSTER_MASK) continue;
        ULONG Start = Cluster; /* of a free run inside this sector: chain it, then link it */
        for (BOOLEAN More = TRUE; More; Entry++) {
            More = --Left && Cluster < Volume.LastCluster && (Cluster + 1) % ENTRIES &&
                   !(Entry[1] & CLUSTER_MASK);
            *Entry = (*Entry & ~CLUSTER_MASK) | (More ? ++Cluster : CHAIN_END);
            Volume.Free--;
        }
        TRY(FatCommit(Entry - 1));
        if (Tail)
            TRY(FatSetNext(Tail, Start));
        else
            *First = Start;
        Tail = Cluster;
    }
    Volume.NextFree = Cluster;
    FatWriteInfo();
    return STATUS_SUCCESS;
}
/* Moves `Length` bytes that lie inside the chain; a NULL buffer writes zeros. */
static NTSTATUS FatTransfer(ULONG First, ULONG Offset, PUCHAR Buffer, ULONG Length, BOOLEAN Write) {
    static UCHAR Zeros[8 * SECTOR], Bounce[SECTOR] __attribute__((aligned(16)));
    for (ULONG Run; Length; Offset += Run, Length -= Run) {
        ULONG Cluster = FatClusterAt(First, Offset / Volume.ClusterBytes), Next = Cluster;
        if (Cluster < 2) return STATUS_DISK_CORRUPT_ERROR;
        ULONG Within = Offset % Volume.ClusterBytes, Skip = Offset % SECTOR;
        ULONG64 Lba = Volume.Lba + FatClusterSector(Cluster) + Within / SECTOR;
        for (Run = Volume.ClusterBytes - Within; Run < Length; Run += Volume.ClusterBytes) {
            if (FatNextCluster(Next) != Next + 1) break;
            Next++;
        }
        Run = MIN(Run, Buffer ? Length : MIN(Length, sizeof(Zeros)));
        PUCHAR Data = Buffer ? Buffer : Zeros;
        if (Skip || Run < SECTOR) {
            Run = MIN(Run, SECTOR - Skip);
            TRY(HalDiskRead(Lba, 1, Bounce));
            memcpy(Write ? Bounce + Skip : Data, Write ? Data : Bounce + Skip, Run);
            if (Write) TRY(HalDiskWrite(Lba, 1, Bounce));
        } else {
            Run -= Run % SECTOR;
            TRY(Write ? HalDiskWrite(Lba, Run / SECTOR, Data)
                      : HalDiskRead(Lba, Run / SECTOR, Data));
        }
        if (Buffer) Buffer += Run;
    }
    return STATUS_SUCCESS;
}
/* Makes a chain at least `Bytes` long; *First may become the first cluster of an empty file. What
 * directories get is zeroed before it is linked. */
static NTSTATUS FatReserve(PULONG First, ULONG Bytes, BOOLEAN ForDirectory) {
    ULONG Wanted = Bytes / Volume.ClusterBytes + !!(Bytes % Volume.ClusterBytes);
    ULONG At = Wanted - 1, New, Tail = FatWalk(*First, &At);
    if (Tail == 1) return STATUS_DISK_CORRUPT_ERROR;
    if (!Wanted || (Tail && At == Wanted - 1)) return STATUS_SUCCESS;
    ULONG Missing = Tail ? Wanted - 1 - At : Wanted;
    TRY(FatAllocateChain(Missing, Tail, &New));
    if (ForDirectory) {
        TRY(FatTransfer(New, 0, NULL, Missing * Volume.ClusterBytes, TRUE));
        memset(Cache, 0, sizeof(Cache)); /* it may hold what was there before */
    }
    if (Tail) return FatSetNext(Tail, New);
    *First = New;
    return STATUS_SUCCESS;
}

/* -- directories ------------------------------------------------------------------------------- */
static NTSTATUS FatSlot(ULONG Directory, ULONG Index, PDIRENT *Slot) {
    ULONG Offset = Index * sizeof(DIRENT);
    ULONG Cluster = Index < SLOT_LIMIT ? FatClusterAt(Directory, Offset / Volume.ClusterBytes) : 0;
    if (Cluster < 2) return Cluster ? STATUS_DISK_CORRUPT_ERROR : STATUS_NO_MORE_FILES;
    PUCHAR Data = FatSector(FatClusterSector(Cluster) + Offset % Volume.ClusterBytes / SECTOR);
    *Slot = (PDIRENT)(Data + Offset % SECTOR);
    return Data ? STATUS_SUCCESS : STATUS_IO_DEVICE_ERROR;
}
static LONG64 FatTimeFromDisk(USHORT Date, USHORT Time, UCHAR TenMs) {
    KI_DATE Value = {1980 + (Date >> 9), Date >> 5 & 15, Date & 31, Time >> 11, Time >> 5 & 63,
        (Time & 31) * 2 + TenMs / 100, TenMs % 100 * 10, 0};
    return Value.Month && Value.Day ? KiDateToTime(&Value) : 0;
}
static void FatTimeToDisk(LONG64 SystemTime, PUSHORT Date, PUSHORT Time) {
    KI_DATE Value;
    KiTimeToDate(SystemTime, &Value);
    if (Value.Year < 1980) Value = (KI_DATE){1980, 1, 1, 0, 0, 0, 0, 0};
    *Date = (Value.Year - 1980) << 9 | Value.Month << 5 | Value.Day;
    *Time = Value.Hour << 11 | Value.Minute << 5 | Value.Second / 2;
}
static PCHAR FatShortPart(const UCHAR *Name, ULONG Length, BOOLEAN Lower, PCHAR Text) {
    while (Length && Name[Length - 1] == ' ') Length--;
    for (; Length; Length--, Name++)
        *Text++ = *Name > 0x7E ? '?' : Lower && *Name >= 'A' && *Name <= 'Z' ? *Name + 32 : *Name;
    return Text;
}
static void FatShortText(const UCHAR *Name, ULONG CaseFlags, PCHAR Text) {
    Text = FatShortPart(Name, 8, CaseFlags & LOWER_BASE, Text);
    if (Name[8] != ' ') *Text++ = '.';
    *FatShortPart(Name + 8, 3, CaseFlags & LOWER_EXTENSION, Text) = 0;
}
static UCHAR FatChecksum(const UCHAR *Name) { /* section 7.2 */
    UCHAR Sum = 0;
    for (int Index = 0; Index < 11; Index++) Sum = (Sum << 7 | Sum >> 1) + Name[Index];
    return Sum;
}
static void FatSetCluster(PDIRENT Entry, ULONG Cluster) {
    Entry->ClusterHigh = Cluster >> 16;
    Entry->ClusterLow = Cluster;
}
static void FatLoadEntry(const DIRENT *Entry, PFAT_FILE File) {
    File->FirstCluster = (ULONG)Entry->ClusterHigh << 16 | Entry->ClusterLow;
    File->Size = Entry->Size;
    File->Attributes = Entry->Attributes;
    File->WriteTime = FatTimeFromDisk(Entry->WriteDate, Entry->WriteTime, 0);
    File->CreateTime = FatTimeFromDisk(Entry->CreateDate, Entry->CreateTime, Entry->CreateTenMs);
    memcpy(File->ShortName, Entry->Name, sizeof(File->ShortName));
}
/* The next file at or behind *Cursor, which is left on its 8.3 entry. Volume labels, "." and ".."
 * are passed over. */
static NTSTATUS FatScan(ULONG Directory, PULONG Cursor, PFAT_FILE File) {
    ULONG Expected = UNKNOWN; /* ordinal of the next slot of a long name, 0: of its 8.3 entry */
    UCHAR Checksum = 0;
    for (;; ++*Cursor) {
        PDIRENT Entry;
        TRY(FatSlot(Directory, *Cursor, &Entry));
        PUCHAR Slot = (PUCHAR)Entry;
        BOOLEAN Long = (Entry->Attributes & 0x3F) == LONG_NAME;
        if (!Slot[0]) return STATUS_NO_MORE_FILES;
        if (Slot[0] == SLOT_FREE || Slot[0] == '.' || (!Long && Entry->Attributes & LABEL)) {
            Expected = UNKNOWN;
            continue;
        }
        if (!Long) {
            if (Expected || Checksum != FatChecksum(Slot))
                FatShortText(Slot, Entry->CaseFlags, File->Name);
            FatLoadEntry(Entry, File);
            File->DirectoryCluster = Directory;
            File->EntryIndex = *Cursor;
            return STATUS_SUCCESS;
        }
        if (Slot[0] & LONG_LAST) {
            Expected = Slot[0] & ~LONG_LAST;
            Checksum = Slot[13];
            memset(File->Name, 0, sizeof(File->Name));
        }
        BOOLEAN Good = Expected && Expected <= LONG_SLOTS && (Slot[0] & ~LONG_LAST) == Expected &&
                       Slot[13] == Checksum;
        Expected = Good ? Expected - 1 : UNKNOWN;
        for (ULONG Index = 0; Good && Index < LONG_CHARS; Index++) {
            USHORT Character = Slot[LongOffsets[Index]] | Slot[LongOffsets[Index] + 1] << 8;
            ULONG At = Expected * LONG_CHARS + Index;
            if (At < sizeof(File->Name) - 1 && Character != 0xFFFF)
                File->Name[At] = Character > 0x7E ? '?' : Character;
        }
    }
}
/* By long or by 8.3 name, without case. NO_MORE_FILES: there is none. */
static NTSTATUS FatFind(ULONG Directory, PCSTR Name, PFAT_FILE File) {
    CHAR Alias[13];
    for (ULONG Cursor = 0;; Cursor++) {
        TRY(FatScan(Directory, &Cursor, File));
        FatShortText(File->ShortName, 0, Alias);
        if (!RtlCompareTextInsensitive(File->Name, Name) || !RtlCompareTextInsensitive(Alias, Name))
            return STATUS_SUCCESS;
    }
}
/* With `Leaf` (256 bytes) finds the directory a path's last part lies in, and copies that part. */
static NTSTATUS FatResolve(PCSTR Path, PFAT_FILE File, PCHAR Leaf) {
    CHAR Name[256];
    *File = (FAT_FILE){
        .FirstCluster = Boot->RootCluster, .EntryIndex = ROOT_ENTRY, .Attributes = DIRECTORY};
    for (;;) {
        ULONG Length = 0;
        while (*Path == '\\') Path++;
        while (*Path && *Path != '\\' && Length < sizeof(Name) - 1) Name[Length++] = *Path++;
        Name[Length] = 0;
        if ((*Path && *Path != '\\') || (!Length && Leaf)) return STATUS_OBJECT_NAME_INVALID;
        if (!Length) return STATUS_SUCCESS;
        while (*Path == '\\') Path++;
        if (!(File->Attributes & DIRECTORY)) return STATUS_OBJECT_PATH_NOT_FOUND;
        if (Leaf && !*Path) {
            memcpy(Leaf, Name, sizeof(Name));
            return STATUS_SUCCESS;
        }
        NTSTATUS Status = FatFind(File->FirstCluster, Name, File);
        if (Status == STATUS_NO_MORE_FILES)
            Status = *Path ? STATUS_OBJECT_PATH_NOT_FOUND : STATUS_OBJECT_NAME_NOT_FOUND;
        TRY(Status);
    }
}
/* Reads a file's entry again: another handle may have grown, replaced or deleted it. */
static NTSTATUS FatRefresh(PFAT_FILE File) {
    PDIRENT Entry;
    if (File->EntryIndex == ROOT_ENTRY) return STATUS_SUCCESS;
    TRY(FatSlot(File->DirectoryCluster, File->EntryIndex, &Entry));
    if (memcmp(Entry->Name, File->ShortName, sizeof(File->ShortName))) return STATUS_NO_SUCH_FILE;
    FatLoadEntry(Entry, File);
    return STATUS_SUCCESS;
}
static NTSTATUS FatRefreshData(PFAT_FILE File) {
    TRY(FatRefresh(File));
    return File->Attributes & DIRECTORY ? STATUS_FILE_IS_A_DIRECTORY : STATUS_SUCCESS;
}
/* Writes first cluster and size of a file that changed now. */
static NTSTATUS FatUpdate(PFAT_FILE File, ULONG First, ULONG Size) {
    PDIRENT Entry;
    TRY(FatSlot(File->DirectoryCluster, File->EntryIndex, &Entry));
    FatSetCluster(Entry, First);
    Entry->Size = Size;
    Entry->Attributes |= ARCHIVE;
    FatTimeToDisk(KiQuerySystemTime(), &Entry->WriteDate, &Entry->WriteTime);
    Entry->AccessDate = Entry->WriteDate;
    FatLoadEntry(Entry, File);
    return FatCommit(Entry);
}
/* Writes slots, or frees them (`Set` NULL): the last sector first, each once. */
static NTSTATUS FatWriteSlots(ULONG Directory, ULONG Start, ULONG Count, const DIRENT *Set) {
    for (ULONG Index = Count; Index--;) {
        PDIRENT Entry;
        TRY(FatSlot(Directory, Start + Index, &Entry));
        if (Set)
            *Entry = Set[Index];
        else
            Entry->Name[0] = SLOT_FREE;
        if (Index == 0 || (Start + Index) % SLOTS == 0) TRY(FatCommit(Entry));
    }
    return STATUS_SUCCESS;
}
/* Where the slots of a file begin: its long name's go before its 8.3 entry, ordinals rising. */
static NTSTATUS FatFirstSlot(PFAT_FILE File, PULONG First) {
    UCHAR Checksum = FatChecksum(File->ShortName), Ordinal = 0;
    *First = File->EntryIndex;
    while (*First && !(Ordinal & LONG_LAST)) {
        PDIRENT Entry;
        TRY(FatSlot(File->DirectoryCluster, *First - 1, &Entry));
        PUCHAR Slot = (PUCHAR)Entry;
        if (Slot[11] != LONG_NAME || Slot[13] != Checksum || (Slot[0] & ~LONG_LAST) != Ordinal + 1)
            break;
        Ordinal = Slot[0];
        --*First;
    }
    return STATUS_SUCCESS;
}

/* Whether a name may be given to the entry `Self`, or UNKNOWN: a new one. */
static NTSTATUS FatCheckName(ULONG Directory, PCSTR Name, ULONG Self) {
    FAT_FILE Other;
    ULONG Length = strlen(Name);
    if (!Length || Length > 255 || Name[Length - 1] == '.' || Name[Length - 1] == ' ')
        return STATUS_OBJECT_NAME_INVALID;
    for (PCSTR At = Name; *At; At++)
        if (*At < ' ' || *At > 0x7E || strchr("\"*/:<>?\\|", *At))
            return STATUS_OBJECT_NAME_INVALID;
    NTSTATUS Status = FatFind(Directory, Name, &Other);
    if (Status == STATUS_NO_MORE_FILES) return STATUS_SUCCESS;
    TRY(Status);
    return Other.EntryIndex == Self ? STATUS_SUCCESS : STATUS_OBJECT_NAME_COLLISION;
}
/* A name's 8.3 form (section 7.4 and as Windows NT does it: four numbered tails, then two
 * characters and four digits of a hash, which is our own). *Long: the name needs long slots as
 * well. `Self` is the entry being renamed, whose old alias is free. */
static NTSTATUS FatMakeAlias(
    ULONG Directory, PCSTR Name, ULONG Self, PDIRENT Entry, BOOLEAN *Long) {
    ULONG Length = strlen(Name), Dot = Length, Parts[2] = {0, 0}, Hash = 0;
    BOOLEAN Lossy = FALSE, Lower[2] = {FALSE, FALSE}, Upper[2] = {FALSE, FALSE};
    CHAR Text[13], Base[8];
    memset(Entry->Name, ' ', sizeof(Entry->Name));
    for (ULONG Index = 1; Index < Length; Index++) {
        if (Name[Index] == '.') Dot = Index;
    }
    for (ULONG Index = 0; Index < Length; Index++) {
        BOOLEAN Part = Index > Dot; /* 0 base, 1 extension */
        CHAR Character = Name[Index];
        Hash = Hash * 31 + Character;
        if (Index == Dot) continue;
        BOOLEAN Dropped = Character == ' ' || Character == '.' || Parts[Part] == (Part ? 3 : 8);
        BOOLEAN Replaced = strchr("+,;=[]", Character) != NULL;
        Lossy |= Dropped || Replaced;
        if (Dropped) continue;
        Lower[Part] |= Character >= 'a' && Character <= 'z';
        Upper[Part] |= Character >= 'A' && Character <= 'Z';
        if (Character >= 'a' && Character <= 'z') Character -= 32;
        Entry->Name[Part * 8 + Parts[Part]++] = Replaced ? '_' : Character;
    }
    *Long = Lossy || (Lower[0] && Upper[0]) || (Lower[1] && Upper[1]);
    Entry->CaseFlags = *Long ? 0 : Lower[0] * LOWER_BASE | Lower[1] * LOWER_EXTENSION;
    memcpy(Base, Entry->Name, sizeof(Base));
    for (ULONG Try = 1; Lossy; Try++) {
        ULONG Kept = MIN(Parts[0], Try <= 4 ? 6 : 2);
        memset(Entry->Name, ' ', sizeof(Base));
        memcpy(Entry->Name, Base, Kept);
        for (int Digit = 12; Try > 4 && Digit >= 0; Digit -= 4)
            Entry->Name[Kept++] = "0123456789ABCDEF"[(Hash + Try) >> Digit & 15];
        Entry->Name[Kept++] = '~';
        Entry->Name[Kept] = '0' + (Try <= 4 ? Try : 1);
        FatShortText(Entry->Name, 0, Text);
        NTSTATUS Status = FatCheckName(Directory, Text, Self);
        if (Status != STATUS_OBJECT_NAME_COLLISION) return Status;
    }
    return STATUS_SUCCESS;
}
/* Finds `Count` free slots together, in one sector if they fit into one; those of the file being
 * renamed, SelfFirst to Self, count as free. *Gap: slots from there to the new ones must be marked
 * free afterwards, as they lie between the directory's old end and its new one. */
static NTSTATUS FatFindSlots(
    ULONG Directory, ULONG Count, ULONG SelfFirst, ULONG Self, PULONG Start, PULONG Gap) {
    ULONG Run = 0, End = UNKNOWN;
    PDIRENT Entry;
    /* A rename looks in its own sector first: replaced there, the name changes in one write. */
    for (ULONG Index = Self == UNKNOWN ? 0 : Self - Self % SLOTS; Run < Count; Index++) {
        if (Index == SLOT_LIMIT) return STATUS_DISK_FULL;
        TRY(FatReserve(&Directory, (Index + 1) * sizeof(DIRENT), TRUE));
        TRY(FatSlot(Directory, Index, &Entry));
        if (!Entry->Name[0] && End == UNKNOWN) End = Index;
        if (Index % SLOTS == 0 && Count <= SLOTS) Run = 0;
        BOOLEAN Own = Self != UNKNOWN && Index >= SelfFirst && Index <= Self;
        Run = End != UNKNOWN || Entry->Name[0] == SLOT_FREE || Own ? Run + 1 : 0;
        *Start = Index + 1 - Run;
    }
    *Gap = MIN(End, *Start);
    return STATUS_SUCCESS;
}
/* Enters `Name` with what `Short` says of it; in place of `Old` where that is given. */
static NTSTATUS FatAddEntry(
    ULONG Directory, PCSTR Name, PDIRENT Short, PFAT_FILE Old, PFAT_FILE File) {
    DIRENT Set[LONG_SLOTS + 1], Image[SLOTS], *Entry;
    ULONG Self = Old ? Old->EntryIndex : UNKNOWN, First = UNKNOWN, Count = 1, Start, Gap;
    ULONG Length = strlen(Name);
    BOOLEAN Long;
    TRY(FatMakeAlias(Directory, Name, Self, Short, &Long));
    if (Old) TRY(FatFirstSlot(Old, &First));
    if (Long) Count += (Length + LONG_CHARS - 1) / LONG_CHARS;
    for (ULONG Ordinal = 1; Ordinal < Count; Ordinal++) { /* the last part comes first */
        PUCHAR Slot = memset(&Set[Count - 1 - Ordinal], 0, sizeof(DIRENT));
        Slot[0] = Ordinal | (Ordinal == Count - 1 ? LONG_LAST : 0);
        Slot[11] = LONG_NAME;
        Slot[13] = FatChecksum(Short->Name);
        for (ULONG Index = 0; Index < LONG_CHARS; Index++) {
            ULONG At = (Ordinal - 1) * LONG_CHARS + Index;
            Slot[LongOffsets[Index]] = At < Length ? Name[At] : At == Length ? 0 : 0xFF;
            Slot[LongOffsets[Index] + 1] = At <= Length ? 0 : 0xFF;
        }
    }
    Set[Count - 1] = *Short;
    TRY(FatFindSlots(Directory, Count, First, Self, &Start, &Gap));
    ULONG Sector = Start / SLOTS;
    if (Old && First / SLOTS == Sector && Self / SLOTS == Sector &&
        (Start + Count - 1) / SLOTS == Sector) {
        TRY(FatSlot(Directory, Sector * SLOTS, &Entry));
        memcpy(Image, Entry, sizeof(Image));
        for (ULONG Index = First; Index <= Self; Index++) Image[Index % SLOTS].Name[0] = SLOT_FREE;
        memcpy(&Image[Start % SLOTS], Set, Count * sizeof(DIRENT));
        TRY(FatWriteSlots(Directory, Sector * SLOTS, SLOTS, Image));
    } else {
        if (Old) TRY(FatWriteSlots(Directory, First, Self - First + 1, NULL));
        TRY(FatWriteSlots(Directory, Start, Count, Set));
        TRY(FatWriteSlots(Directory, Gap, Start - Gap, NULL));
    }
    *File = (FAT_FILE){.DirectoryCluster = Directory, .EntryIndex = Start + Count - 1};
    memcpy(File->Name, Name, Length + 1);
    FatLoadEntry(Short, File);
    return STATUS_SUCCESS;
}
static NTSTATUS FatCreateEntry(PCSTR Path, BOOLEAN Directory, PFAT_FILE File) {
    DIRENT Short = {.Attributes = Directory ? DIRECTORY : ARCHIVE};
    FAT_FILE Parent;
    CHAR Name[256];
    ULONG First = 0;
    TRY(FatResolve(Path, &Parent, Name));
    TRY(FatCheckName(Parent.FirstCluster, Name, UNKNOWN));
    FatTimeToDisk(KiQuerySystemTime(), &Short.WriteDate, &Short.WriteTime);
    Short.CreateDate = Short.AccessDate = Short.WriteDate;
    Short.CreateTime = Short.WriteTime;
    if (Directory) {
        DIRENT Dots[2] = {Short, Short};
        TRY(FatReserve(&First, 1, TRUE));
        memcpy(Dots[0].Name, ".          ", 11);
        memcpy(Dots[1].Name, "..         ", 11);
        FatSetCluster(&Short, First);
        FatSetCluster(&Dots[0], First);
        FatSetCluster(&Dots[1], Parent.EntryIndex == ROOT_ENTRY ? 0 : Parent.FirstCluster);
        TRY(FatWriteSlots(First, 0, 2, Dots));
    }
    NTSTATUS Status = FatAddEntry(Parent.FirstCluster, Name, &Short, NULL, File);
    if (!NT_SUCCESS(Status)) FatFreeChain(First);
    return Status;
}

/* -- what ki.h declares ------------------------------------------------------------------------ */
NTSTATUS FatMount(void) {
    ULONG Start;
    KiInitializeMutex(&FatMutex);
    LOCK_UNTIL_RETURN;
    memset(Cache, 0, sizeof(Cache));
    memset(Places, 0, sizeof(Places));
    memset(&Volume, 0, sizeof(Volume));
    TRY(HalDiskRead(0, 1, BootData));
    for (PUCHAR Entry = BootData + 0x1BE; !Volume.Lba; Entry += 16) {
        if (Entry == BootData + 0x1FE) return STATUS_UNRECOGNIZED_VOLUME;
        memcpy(&Start, Entry + 8, sizeof(Start));
        if (Entry[4] == 0x0B || Entry[4] == 0x0C) Volume.Lba = Start;
    }
    TRY(HalDiskRead(Volume.Lba, 1, BootData));
    ULONG64 DataStart = Boot->ReservedSectors + (ULONG64)Boot->FatCount * Boot->FatSectors;
    if (BootData[0x1FE] != 0x55 || BootData[0x1FF] != 0xAA || Boot->BytesPerSector != SECTOR ||
        !Boot->SectorsPerCluster || Boot->RootEntries || Boot->FatSectors16 || !Boot->FatCount ||
        DataStart >= Boot->Sectors)
        return STATUS_UNRECOGNIZED_VOLUME;
    Volume.DataStart = DataStart;
    Volume.ClusterBytes = Boot->SectorsPerCluster * SECTOR;
    Volume.LastCluster = MIN((Boot->Sectors - DataStart) / Boot->SectorsPerCluster + 1,
        Boot->FatSectors * (ULONG64)ENTRIES - 1);
    Volume.Free = UNKNOWN;
    PUCHAR Info = FatSector(Boot->InfoSector);
    Volume.HasInfo = Info && !memcmp(Info, "RRaA", 4) && !memcmp(Info + 484, "rrAa", 4);
    if (Volume.HasInfo) memcpy(&Volume.NextFree, Info + 492, sizeof(Volume.NextFree));
    return STATUS_SUCCESS;
}

NTSTATUS FatOpen(PCSTR Path, PFAT_FILE File) {
    LOCK_UNTIL_RETURN;
    return FatResolve(Path, File, NULL);
}
NTSTATUS FatCreate(PCSTR Path, BOOLEAN Directory, PFAT_FILE File) {
    LOCK_UNTIL_RETURN;
    return FatCreateEntry(Path, Directory, File);
}
NTSTATUS FatRead(PFAT_FILE File, ULONG Offset, PVOID Buffer, ULONG Length, PULONG Done) {
    LOCK_UNTIL_RETURN;
    *Done = 0;
    TRY(FatRefreshData(File));
    if (Offset >= File->Size) return Length ? STATUS_END_OF_FILE : STATUS_SUCCESS;
    Length = MIN(Length, File->Size - Offset);
    TRY(FatTransfer(File->FirstCluster, Offset, Buffer, Length, FALSE));
    *Done = Length;
    return STATUS_SUCCESS;
}
NTSTATUS FatWrite(PFAT_FILE File, ULONG Offset, const void *Buffer, ULONG Length, PULONG Done) {
    LOCK_UNTIL_RETURN;
    *Done = 0;
    TRY(FatRefreshData(File));
    if (Length > 0xFFFFFFFF - Offset) return STATUS_DISK_FULL;
    if (!Length) return STATUS_SUCCESS;
    ULONG First = File->FirstCluster;
    TRY(FatReserve(&First, Offset + Length, FALSE));
    if (Offset > File->Size) TRY(FatTransfer(First, File->Size, NULL, Offset - File->Size, TRUE));
    TRY(FatTransfer(First, Offset, (PUCHAR)Buffer, Length, TRUE));
    TRY(FatUpdate(File, First, MAX(File->Size, Offset + Length)));
    *Done = Length;
    return STATUS_SUCCESS;
}
NTSTATUS FatSetSize(PFAT_FILE File, ULONG Size) {
    LOCK_UNTIL_RETURN;
    TRY(FatRefreshData(File));
    ULONG First = File->FirstCluster;
    TRY(FatReserve(&First, Size, FALSE));
    ULONG Tail = Size ? FatClusterAt(First, (Size - 1) / Volume.ClusterBytes) : 0;
    ULONG Rest = Tail ? FatNextCluster(Tail) : First;
    TRY(FatUpdate(File, Size ? First : 0, Size));
    if (Rest < 2) return STATUS_SUCCESS;
    if (Tail) TRY(FatSetNext(Tail, CHAIN_END));
    return FatFreeChain(Rest);
}
NTSTATUS FatRename(PFAT_FILE File, PCSTR NewName) {
    LOCK_UNTIL_RETURN;
    PDIRENT Entry;
    if (File->EntryIndex == ROOT_ENTRY) return STATUS_ACCESS_DENIED;
    TRY(FatRefresh(File));
    TRY(FatCheckName(File->DirectoryCluster, NewName, File->EntryIndex));
    TRY(FatSlot(File->DirectoryCluster, File->EntryIndex, &Entry));
    DIRENT Short = *Entry;
    FAT_FILE Old = *File;
    return FatAddEntry(Old.DirectoryCluster, NewName, &Short, &Old, File);
}
NTSTATUS FatDelete(PFAT_FILE File) {
    LOCK_UNTIL_RETURN;
    FAT_FILE Child;
    ULONG First, Cursor = 0;
    if (File->EntryIndex == ROOT_ENTRY) return STATUS_ACCESS_DENIED;
    TRY(FatRefresh(File));
    if (File->Attributes & DIRECTORY) {
        NTSTATUS Status = FatScan(File->FirstCluster, &Cursor, &Child);
        if (Status != STATUS_NO_MORE_FILES)
            return NT_SUCCESS(Status) ? STATUS_DIRECTORY_NOT_EMPTY : Status;
    }
    TRY(FatFirstSlot(File, &First));
    TRY(FatWriteSlots(File->DirectoryCluster, First, File->EntryIndex - First + 1, NULL));
    return FatFreeChain(File->FirstCluster);
}
NTSTATUS FatReadDirectory(PFAT_FILE Directory, PULONG Cursor, PFAT_FILE Entry) {
    LOCK_UNTIL_RETURN;
    if (!(Directory->Attributes & DIRECTORY)) return STATUS_NOT_A_DIRECTORY;
    TRY(FatScan(Directory->FirstCluster, Cursor, Entry));
    ++*Cursor;
    return STATUS_SUCCESS;
}
/* Covers the file's size in whole sectors. *Count is what is needed, even with BUFFER_TOO_SMALL. */
NTSTATUS FatGetExtents(PFAT_FILE File, FAT_EXTENT *Extents, ULONG Maximum, PULONG Count) {
    LOCK_UNTIL_RETURN;
    *Count = 0;
    TRY(FatRefreshData(File));
    ULONG Left = File->Size / SECTOR + !!(File->Size % SECTOR), Previous = 0, Sectors;
    for (ULONG Cluster = File->FirstCluster; Left; Left -= Sectors) {
        if (Cluster < 2 || Cluster > Volume.LastCluster) return STATUS_DISK_CORRUPT_ERROR;
        Sectors = MIN(Left, Boot->SectorsPerCluster);
        if ((!Previous || Cluster != Previous + 1) && ++*Count <= Maximum)
            Extents[*Count - 1] = (FAT_EXTENT){Volume.Lba + FatClusterSector(Cluster), 0};
        if (*Count <= Maximum) Extents[*Count - 1].Sectors += Sectors;
        Previous = Cluster;
        Cluster = FatNextCluster(Cluster);
    }
    return *Count > Maximum ? STATUS_BUFFER_TOO_SMALL : STATUS_SUCCESS;
}
ULONG64 FatFreeBytes(void) {
    LOCK_UNTIL_RETURN;
    return NT_SUCCESS(FatCountFree()) ? (ULONG64)Volume.Free * Volume.ClusterBytes : 0;
}
NTSTATUS FatLoadFile(PCSTR Path, PVOID *Buffer, PULONG Size) {
    FAT_FILE File;
    TRY(FatOpen(Path, &File));
    PCHAR Data = KiAllocate(File.Size + 1ULL);
    if (!Data) return STATUS_INSUFFICIENT_RESOURCES;
    NTSTATUS Status = FatRead(&File, 0, Data, File.Size, Size);
    if (!NT_SUCCESS(Status)) KiFree(Data);
    TRY(Status);
    Data[*Size] = 0;
    *Buffer = Data;
    return STATUS_SUCCESS;
}
/* Old or new, never half: one sector write takes in the new contents when they are on the disk. */
NTSTATUS FatStoreFile(PCSTR Path, const void *Buffer, ULONG Size) {
    LOCK_UNTIL_RETURN;
    FAT_FILE File;
    ULONG New = 0;
    NTSTATUS Status = FatResolve(Path, &File, NULL);
    TRY(Status == STATUS_OBJECT_NAME_NOT_FOUND ? FatCreateEntry(Path, FALSE, &File) : Status);
    if (File.Attributes & DIRECTORY) return STATUS_FILE_IS_A_DIRECTORY;
    ULONG Old = File.FirstCluster;
    TRY(FatReserve(&New, Size, FALSE));
    TRY(FatTransfer(New, 0, (PUCHAR)Buffer, Size, TRUE));
    TRY(FatUpdate(&File, New, Size));
    return FatFreeChain(Old);
}
NTSTATUS IopVolumePath(PCSTR NtPath, PCHAR Path, ULONG Size) {
    static const struct {
        PCSTR Prefix, Volume;
    } Roots[] = {{"\\SystemRoot", "Windows"}, {"%SystemRoot%", "Windows"}, {"\\??\\C:", ""},
        {"\\DosDevices\\C:", ""}, {"C:", ""}, {"System32", "Windows\\System32"}};
    for (ULONG Index = 0; Index < ARRAY_SIZE(Roots); Index++) {
        SIZE_T Length = strlen(Roots[Index].Prefix), Start = strlen(Roots[Index].Volume);
        PCSTR Rest = NtPath + Length;
        if (RtlCompareTextInsensitiveN(NtPath, Roots[Index].Prefix, Length) ||
            (*Rest && *Rest != '\\'))
            continue;
        if (!Start && *Rest) Rest++;
        if (Start + strlen(Rest) >= Size) return STATUS_BUFFER_TOO_SMALL;
        memcpy(Path, Roots[Index].Volume, Start);
        memcpy(Path + Start, Rest, strlen(Rest) + 1);
        return STATUS_SUCCESS;
    }
    return STATUS_OBJECT_PATH_NOT_FOUND;
}
NTSTATUS IopVolumePathFromUnicode(PCUNICODE_STRING NtPath, PCHAR Path, ULONG Size) {
    CHAR Text[512];
    if (NtPath->Length / sizeof(WCHAR) >= sizeof(Text)) return STATUS_OBJECT_NAME_INVALID;
    RtlUnicodeToText(NtPath, Text, sizeof(Text));
    return IopVolumePath(Text, Path, Size);
}
