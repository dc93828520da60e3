/* FAT32 with long file names on the first FAT32 partition. Source: Microsoft, "FAT: General
 * Overview of On-Disk Format", 1.03 (2000), section numbers below. Times on disk are kept as UTC.
 *
 * Writes are ordered so that a power cut leaves at worst lost clusters, or a chain longer than its
 * file says: new clusters are chained up before anything points at them, an entry forgets its
 * clusters before they are freed, and the directory entries of one file share a sector wherever
 * they fit into one, so that making, renaming and deleting a file is one sector write. */
#include "ki.h"

#define SECTOR          512
#define LINE_SECTORS    8 /* the cache reads 4 KiB at a time, and writes single sectors */
#define CHAIN_END       0x0FFFFFFF
#define CLUSTER_MASK    0x0FFFFFFF
#define ROOT_ENTRY      0xFFFFFFFF /* EntryIndex of the root directory, which has no entry */
#define SLOT_LIMIT      65536      /* entries of a directory */
#define SLOTS           16         /* entries of a sector */
#define SLOT_FREE       0xE5
#define LONG_LAST       0x40
#define LONG_CHARS      13
#define LONG_SLOTS      20
#define LOWER_BASE      0x08 /* case flags, as Windows NT writes them */
#define LOWER_EXTENSION 0x10
#define UNKNOWN         0xFFFFFFFF

enum {
    ATTRIBUTE_LABEL = 0x08,
    ATTRIBUTE_LONG = 0x0F,
    ATTRIBUTE_DIRECTORY = 0x10,
    ATTRIBUTE_ARCHIVE = 0x20
};

typedef struct __attribute__((packed)) _BOOT_SECTOR { /* section 3 */
    UCHAR Jump[3], Oem[8];
    USHORT BytesPerSector;
    UCHAR SectorsPerCluster;
    USHORT ReservedSectors;
    UCHAR FatCount;
    USHORT RootEntries, Sectors16;
    UCHAR Media;
    USHORT FatSectors16, Geometry[2];
    ULONG HiddenSectors, Sectors, FatSectors;
    USHORT Flags, Version;
    ULONG RootCluster;
    USHORT InfoSector, BackupSector;
} BOOT_SECTOR;
ASSERT_OFFSET(BOOT_SECTOR, InfoSector, 48);

typedef struct _DIRENT { /* section 6; a long name's slots overlay it (section 7) */
    UCHAR Name[11], Attributes, CaseFlags, CreateTenMs;
    USHORT CreateTime, CreateDate, AccessDate, ClusterHigh, WriteTime, WriteDate, ClusterLow;
    ULONG Size;
} DIRENT, *PDIRENT;
ASSERT_SIZE(DIRENT, 32);
static const UCHAR LongOffsets[LONG_CHARS] = {1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30};

static struct {
    ULONG64 Lba; /* of the partition; all sectors below count from here */
    ULONG Sectors, FatStart, FatSectors, FatCount, DataStart, InfoSector, RootCluster;
    ULONG SectorsPerCluster, ClusterBytes, LastCluster;
    ULONG Free, NextFree; /* Free: UNKNOWN until counted */
} Volume;
static KI_MUTEX FatMutex;
static struct {
    ULONG Line, Used; /* Line + 1, 0 = empty */
    UCHAR Data[LINE_SECTORS * SECTOR] __attribute__((aligned(16)));
} Cache[8];
static ULONG CacheClock;
/* The last places looked up in chains, so that going on from there is cheap. */
static struct { ULONG First, Index, Cluster; } Places[16];
static ULONG PlaceClock;
static UCHAR Bounce[SECTOR] __attribute__((aligned(16)));

static void FatUnlock(int *Unused) {
    UNREFERENCED(Unused);
    KiReleaseMutex(&FatMutex);
}
#define LOCK_UNTIL_RETURN                                                                          \
    __attribute__((cleanup(FatUnlock))) int Locked = (KiAcquireMutex(&FatMutex), 0);               \
    UNREFERENCED(Locked)

/* -- metadata sectors ---------------------------------------------------------------------------
 */
/* A sector in the cache, good until a few other lines were used; NULL when it cannot be read. */
static PUCHAR FatSector(ULONG Sector) {
    ULONG Line = Sector / LINE_SECTORS, Slot = 0;
    for (ULONG Index = 0; Index < ARRAY_SIZE(Cache); Index++) {
        if (Cache[Index].Line == Line + 1) {
            Slot = Index;
            break;
        }
        if (Cache[Index].Used < Cache[Slot].Used) Slot = Index;
    }
    Cache[Slot].Used = ++CacheClock;
    if (Cache[Slot].Line != Line + 1) {
        ULONG Start = Line * LINE_SECTORS, Count = MIN(LINE_SECTORS, Volume.Sectors - Start);
        Cache[Slot].Line = 0;
        if (!NT_SUCCESS(HalDiskRead(Volume.Lba + Start, Count, Cache[Slot].Data))) return NULL;
        Cache[Slot].Line = Line + 1;
    }
    return Cache[Slot].Data + Sector % LINE_SECTORS * SECTOR;
}
/* Writes a sector changed in the cache, and the same sector of the other FATs. */
static NTSTATUS FatCommit(ULONG Sector) {
    PUCHAR Data = FatSector(Sector);
    BOOLEAN InFat = Sector >= Volume.FatStart && Sector < Volume.FatStart + Volume.FatSectors;
    NTSTATUS Status = Data ? STATUS_SUCCESS : STATUS_IO_DEVICE_ERROR;
    for (ULONG Copy = 0; NT_SUCCESS(Status) && Copy < (InFat ? Volume.FatCount : 1); Copy++)
        Status = HalDiskWrite(Volume.Lba + Sector + Copy * Volume.FatSectors, 1, Data);
    if (!NT_SUCCESS(Status)) { /* what the disk holds now is not known */
        memset(Cache, 0, sizeof(Cache));
        Volume.Free = UNKNOWN;
    }
    return Status;
}

/* -- clusters -----------------------------------------------------------------------------------
 */
static ULONG FatClusterSector(ULONG Cluster) {
    return Volume.DataStart + (Cluster - 2) * Volume.SectorsPerCluster;
}
static ULONG FatEntrySector(ULONG Cluster) { return Volume.FatStart + Cluster / (SECTOR / 4); }
static PULONG FatEntry(ULONG Cluster) {
    PUCHAR Data = FatSector(FatEntrySector(Cluster));
    return Data ? (PULONG)Data + Cluster % (SECTOR / 4) : NULL;
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
    ULONG Start = At;
    for (; At < *Index && (Next = FatNextCluster(Cluster)) != 0; At++, Cluster = Next) {
        if (Next == 1) return 1;
    }
    if (At > Start) {
        ULONG Slot = PlaceClock++ % ARRAY_SIZE(Places);
        Places[Slot].First = First;
        Places[Slot].Index = At;
        Places[Slot].Cluster = Cluster;
    }
    *Index = At;
    return Cluster;
}
static ULONG FatClusterAt(ULONG First, ULONG Index) {
    ULONG At = Index, Cluster = FatWalk(First, &At);
    return Cluster == 1 || At == Index ? Cluster : 0;
}
static NTSTATUS FatSetNext(ULONG Cluster, ULONG Next) {
    PULONG Entry = FatEntry(Cluster);
    if (!Entry) return STATUS_IO_DEVICE_ERROR;
    *Entry = (*Entry & ~CLUSTER_MASK) | Next;
    return FatCommit(FatEntrySector(Cluster));
}
/* The count in FSInfo is a hint that a power cut leaves wrong: count, once a mount. */
static NTSTATUS FatCountFree(void) {
    enum { PIECE = 128 };
    if (Volume.Free != UNKNOWN) return STATUS_SUCCESS;
    PULONG Buffer = KiAllocate(PIECE * SECTOR);
    if (!Buffer) return STATUS_INSUFFICIENT_RESOURCES;
    NTSTATUS Status = STATUS_SUCCESS;
    ULONG Free = 0;
    for (ULONG Cluster = 0; NT_SUCCESS(Status) && Cluster <= Volume.LastCluster; Cluster++) {
        ULONG Sector = Cluster / (SECTOR / 4), At = Cluster % (PIECE * SECTOR / 4);
        if (At == 0)
            Status = HalDiskRead(Volume.Lba + Volume.FatStart + Sector,
                MIN(PIECE, Volume.FatSectors - Sector), Buffer);
        Free += NT_SUCCESS(Status) && Cluster >= 2 && !(Buffer[At] & CLUSTER_MASK);
    }
    KiFree(Buffer);
    if (NT_SUCCESS(Status)) Volume.Free = Free;
    return Status;
}
static void FatWriteInfo(void) { /* section 5; advisory, so a failure does not matter */
    PUCHAR Info = Volume.InfoSector ? FatSector(Volume.InfoSector) : NULL;
    if (Info) {
        memcpy(Info + 488, &Volume.Free, 4);
        memcpy(Info + 492, &Volume.NextFree, 4);
        FatCommit(Volume.InfoSector);
    }
}
static NTSTATUS FatFreeChain(ULONG Cluster) {
    NTSTATUS Status = FatCountFree();
    memset(Places, 0, sizeof(Places));
    while (NT_SUCCESS(Status) && Cluster >= 2) {
        ULONG Sector = FatEntrySector(Cluster);
        do {
            ULONG Next = FatNextCluster(Cluster);
            PULONG Entry = FatEntry(Cluster);
            if (!Entry) return STATUS_IO_DEVICE_ERROR;
            *Entry &= ~CLUSTER_MASK;
            Volume.Free++;
            Cluster = Next;
        } while (Cluster >= 2 && FatEntrySector(Cluster) == Sector);
        Status = FatCommit(Sector);
    }
    FatWriteInfo();
    return Status;
}
/* A new chain of `Count` clusters, next fit, best right behind `Near`. Nothing points at it yet. */
static NTSTATUS FatAllocateChain(ULONG Count, ULONG Near, PULONG First) {
    ULONG Tail = 0, Cluster = Near ? Near + 1 : Volume.NextFree, Left = Count;
    NTSTATUS Status = FatCountFree();
    *First = 0;
    if (NT_SUCCESS(Status) && Count > Volume.Free) return STATUS_DISK_FULL;
    for (ULONG Tried = 0; NT_SUCCESS(Status) && Left; Tried++, Cluster++) {
        if (Cluster < 2 || Cluster > Volume.LastCluster) Cluster = 2;
        PULONG Entry = FatEntry(Cluster);
        Status = Entry ? STATUS_SUCCESS : STATUS_IO_DEVICE_ERROR;
        if (Tried > Volume.LastCluster) Status = STATUS_DISK_FULL;
        if (!NT_SUCCESS(Status) || *Entry & CLUSTER_MASK) continue;
        /* The free run from here to the end of this sector of the FAT: chain it, then link it. */
        ULONG Start = Cluster;
        for (;; Cluster++, Entry++) {
            BOOLEAN More = --Left && Cluster < Volume.LastCluster && (Cluster + 1) % (SECTOR / 4) &&
                           !(Entry[1] & CLUSTER_MASK);
            *Entry = (*Entry & ~CLUSTER_MASK) | (More ? Cluster + 1 : CHAIN_END);
            Volume.Free--;
            if (!More) break;
        }
        Status = FatCommit(FatEntrySector(Start));
        if (NT_SUCCESS(Status) && Tail) Status = FatSetNext(Tail, Start);
        if (!*First) *First = Start;
        Tail = Cluster;
    }
    if (NT_SUCCESS(Status)) {
        Volume.NextFree = Cluster;
        FatWriteInfo();
    } else if (*First) {
        FatFreeChain(*First);
    }
    return Status;
}
/* Moves `Length` bytes that lie inside the chain; a NULL buffer writes zeros. */
static NTSTATUS FatTransfer(ULONG First, ULONG Offset, PUCHAR Buffer, ULONG Length, BOOLEAN Write) {
    static UCHAR Zeros[LINE_SECTORS * SECTOR] __attribute__((aligned(16)));
    NTSTATUS Status = STATUS_SUCCESS;
    while (NT_SUCCESS(Status) && Length) {
        ULONG Cluster = FatClusterAt(First, Offset / Volume.ClusterBytes), Next = Cluster;
        if (Cluster < 2) return STATUS_DISK_CORRUPT_ERROR;
        ULONG Within = Offset % Volume.ClusterBytes, Skip = Offset % SECTOR;
        ULONG64 Lba = Volume.Lba + FatClusterSector(Cluster) + Within / SECTOR;
        ULONG Run = Volume.ClusterBytes - Within;
        while (Run < Length && FatNextCluster(Next) == Next + 1) {
            Run += Volume.ClusterBytes;
            Next++;
        }
        Run = MIN(Run, Buffer ? Length : MIN(Length, sizeof(Zeros)));
        PUCHAR Data = Buffer ? Buffer : Zeros;
        if (Skip || Run < SECTOR) {
            Run = MIN(Run, SECTOR - Skip);
            Status = HalDiskRead(Lba, 1, Bounce);
            if (NT_SUCCESS(Status) && Write) {
                memcpy(Bounce + Skip, Data, Run);
                Status = HalDiskWrite(Lba, 1, Bounce);
            } else if (NT_SUCCESS(Status)) {
                memcpy(Data, Bounce + Skip, Run);
            }
        } else {
            Run -= Run % SECTOR;
            Status = Write ? HalDiskWrite(Lba, Run / SECTOR, Data)
                           : HalDiskRead(Lba, Run / SECTOR, Data);
        }
        Buffer = Buffer ? Buffer + Run : NULL;
        Offset += Run;
        Length -= Run;
    }
    return Status;
}
/* Makes a chain at least `Bytes` long; *First may become the first cluster of an empty file. */
static NTSTATUS FatReserve(PULONG First, ULONG Bytes) {
    ULONG Wanted = Bytes / Volume.ClusterBytes + !!(Bytes % Volume.ClusterBytes);
    ULONG At = Wanted - 1, Tail, New;
    if (!Wanted) return STATUS_SUCCESS;
    Tail = FatWalk(*First, &At);
    if (Tail == 1) return STATUS_DISK_CORRUPT_ERROR;
    if (Tail && At == Wanted - 1) return STATUS_SUCCESS;
    NTSTATUS Status = FatAllocateChain(Tail ? Wanted - 1 - At : Wanted, Tail, &New);
    if (NT_SUCCESS(Status) && Tail)
        Status = FatSetNext(Tail, New);
    else if (NT_SUCCESS(Status))
        *First = New;
    return Status;
}

/* -- directories --------------------------------------------------------------------------------
 */
static NTSTATUS FatSlot(ULONG Directory, ULONG Index, PDIRENT *Slot, PULONG Sector) {
    ULONG Offset = Index * sizeof(DIRENT);
    ULONG Cluster = Index < SLOT_LIMIT ? FatClusterAt(Directory, Offset / Volume.ClusterBytes) : 0;
    if (Cluster < 2) return Cluster ? STATUS_DISK_CORRUPT_ERROR : STATUS_NO_MORE_FILES;
    *Sector = FatClusterSector(Cluster) + Offset % Volume.ClusterBytes / SECTOR;
    PUCHAR Data = FatSector(*Sector);
    *Slot = (PDIRENT)(Data + Offset % SECTOR);
    return Data ? STATUS_SUCCESS : STATUS_IO_DEVICE_ERROR;
}
static LONG64 FatTimeFromDisk(USHORT Date, USHORT Time, UCHAR TenMs) {
    KI_DATE Value = {.Year = 1980 + (Date >> 9),
        .Month = Date >> 5 & 15,
        .Day = Date & 31,
        .Hour = Time >> 11,
        .Minute = Time >> 5 & 63,
        .Second = (Time & 31) * 2 + TenMs / 100,
        .Milliseconds = TenMs % 100 * 10};
    return Value.Month && Value.Day ? KiDateToTime(&Value) : 0;
}
static void FatTimeToDisk(LONG64 SystemTime, PUSHORT Date, PUSHORT Time) {
    KI_DATE Value;
    KiTimeToDate(SystemTime, &Value);
    if (Value.Year < 1980) Value = (KI_DATE){.Year = 1980, .Month = 1, .Day = 1};
    *Date = (Value.Year - 1980) << 9 | Value.Month << 5 | Value.Day;
    *Time = Value.Hour << 11 | Value.Minute << 5 | Value.Second / 2;
}
static PCHAR FatShortPart(const UCHAR *Name, ULONG Length, BOOLEAN Lower, PCHAR Text) {
    while (Length && Name[Length - 1] == ' ') Length--;
    for (; Length; Length--, Name++)
        *Text++ = *Name > 0x7E ? '?' : Lower && *Name >= 'A' && *Name <= 'Z' ? *Name + 32 : *Name;
    return Text;
}
static void FatShortText(const DIRENT *Entry, ULONG CaseFlags, PCHAR Text) {
    Text = FatShortPart(Entry->Name, 8, CaseFlags & LOWER_BASE, Text);
    if (Entry->Name[8] != ' ') {
        *Text++ = '.';
        Text = FatShortPart(Entry->Name + 8, 3, CaseFlags & LOWER_EXTENSION, Text);
    }
    *Text = 0;
}
static UCHAR FatShortChecksum(const UCHAR *Name) { /* section 7.2 */
    UCHAR Sum = 0;
    for (int Index = 0; Index < 11; Index++) Sum = (Sum << 7 | Sum >> 1) + Name[Index];
    return Sum;
}
static void FatLoadEntry(const DIRENT *Entry, PFAT_FILE File) {
    File->FirstCluster = (ULONG)Entry->ClusterHigh << 16 | Entry->ClusterLow;
    File->Size = Entry->Size;
    File->Attributes = Entry->Attributes;
    File->WriteTime = FatTimeFromDisk(Entry->WriteDate, Entry->WriteTime, 0);
    File->CreateTime = FatTimeFromDisk(Entry->CreateDate, Entry->CreateTime, Entry->CreateTenMs);
    memcpy(File->ShortName, Entry->Name, sizeof(File->ShortName));
}
/* The next file at or behind *Cursor, which is left on its 8.3 entry. *FirstSlot: where its slots
 * begin; Alias: its 8.3 name. Volume labels, "." and ".." are passed over. */
static NTSTATUS FatScan(
    ULONG Directory, PULONG Cursor, PFAT_FILE File, PULONG FirstSlot, PCHAR Alias) {
    ULONG Expected = UNKNOWN, Start = 0, Sector; /* Expected: ordinal of the next long slot */
    UCHAR Checksum = 0;
    PDIRENT Entry;
    for (;; ++*Cursor) {
        NTSTATUS Status = FatSlot(Directory, *Cursor, &Entry, &Sector);
        if (!NT_SUCCESS(Status)) return Status;
        if (!Entry->Name[0]) return STATUS_NO_MORE_FILES;
        if (Entry->Name[0] == SLOT_FREE || Entry->Name[0] == '.') {
            Expected = UNKNOWN;
        } else if ((Entry->Attributes & 0x3F) == ATTRIBUTE_LONG) {
            PUCHAR Slot = (PUCHAR)Entry;
            if (Slot[0] & LONG_LAST) {
                Start = *Cursor;
                Expected = Slot[0] & ~LONG_LAST;
                Checksum = Slot[13];
                memset(File->Name, 0, sizeof(File->Name));
            }
            if (!Expected || Expected > LONG_SLOTS || (Slot[0] & ~LONG_LAST) != Expected ||
                Slot[13] != Checksum) {
                Expected = UNKNOWN;
                continue;
            }
            Expected--;
            for (ULONG Index = 0; Index < LONG_CHARS; Index++) {
                USHORT Character = Slot[LongOffsets[Index]] | Slot[LongOffsets[Index] + 1] << 8;
                ULONG At = Expected * LONG_CHARS + Index;
                if (At < sizeof(File->Name) - 1 && Character != 0xFFFF)
                    File->Name[At] = Character > 0x7E ? '?' : Character;
            }
        } else if (Entry->Attributes & ATTRIBUTE_LABEL) {
            Expected = UNKNOWN;
        } else {
            BOOLEAN Long = Expected == 0 && Checksum == FatShortChecksum(Entry->Name);
            if (!Long) FatShortText(Entry, Entry->CaseFlags, File->Name);
            FatShortText(Entry, 0, Alias);
            FatLoadEntry(Entry, File);
            File->DirectoryCluster = Directory;
            File->EntryIndex = *Cursor;
            *FirstSlot = Long ? Start : *Cursor;
            return STATUS_SUCCESS;
        }
    }
}
/* By long or by 8.3 name, without case. NO_MORE_FILES: there is none. */
static NTSTATUS FatFind(ULONG Directory, PCSTR Name, PFAT_FILE File) {
    CHAR Alias[13];
    ULONG FirstSlot;
    SIZE_T Bytes = strlen(Name) + 1;
    for (ULONG Cursor = 0;; Cursor++) {
        NTSTATUS Status = FatScan(Directory, &Cursor, File, &FirstSlot, Alias);
        if (!NT_SUCCESS(Status) || !RtlCompareTextInsensitiveN(File->Name, Name, Bytes) ||
            !RtlCompareTextInsensitiveN(Alias, Name, Bytes))
            return Status;
    }
}
/* With `Leaf` (256 bytes) finds the directory a path's last part lies in, and copies that part. */
static NTSTATUS FatResolve(PCSTR Path, PFAT_FILE File, PCHAR Leaf) {
    CHAR Name[256];
    memset(File, 0, sizeof(*File));
    File->FirstCluster = Volume.RootCluster;
    File->EntryIndex = ROOT_ENTRY;
    File->Attributes = ATTRIBUTE_DIRECTORY;
    for (;;) {
        ULONG Length = 0;
        while (*Path == '\\') Path++;
        while (*Path && *Path != '\\' && Length < sizeof(Name) - 1) Name[Length++] = *Path++;
        Name[Length] = 0;
        if (*Path && *Path != '\\') return STATUS_OBJECT_NAME_INVALID;
        if (!Length) return Leaf ? STATUS_OBJECT_NAME_INVALID : STATUS_SUCCESS;
        while (*Path == '\\') Path++;
        if (!(File->Attributes & ATTRIBUTE_DIRECTORY)) return STATUS_OBJECT_PATH_NOT_FOUND;
        if (Leaf && !*Path) {
            memcpy(Leaf, Name, Length + 1);
            return STATUS_SUCCESS;
        }
        NTSTATUS Status = FatFind(File->FirstCluster, Name, File);
        if (Status == STATUS_NO_MORE_FILES)
            return *Path ? STATUS_OBJECT_PATH_NOT_FOUND : STATUS_OBJECT_NAME_NOT_FOUND;
        if (!NT_SUCCESS(Status)) return Status;
    }
}
/* Reads a file's entry again: another handle may have grown, replaced or deleted it. */
static NTSTATUS FatRefresh(PFAT_FILE File) {
    PDIRENT Entry;
    ULONG Sector;
    if (File->EntryIndex == ROOT_ENTRY) return STATUS_SUCCESS;
    NTSTATUS Status = FatSlot(File->DirectoryCluster, File->EntryIndex, &Entry, &Sector);
    if (!NT_SUCCESS(Status) || memcmp(Entry->Name, File->ShortName, sizeof(File->ShortName)))
        return NT_SUCCESS(Status) ? STATUS_NO_SUCH_FILE : Status;
    FatLoadEntry(Entry, File);
    return STATUS_SUCCESS;
}
/* Writes size and first cluster back, as changed now. */
static NTSTATUS FatUpdate(PFAT_FILE File) {
    PDIRENT Entry;
    ULONG Sector;
    NTSTATUS Status = FatSlot(File->DirectoryCluster, File->EntryIndex, &Entry, &Sector);
    if (!NT_SUCCESS(Status)) return Status;
    Entry->ClusterHigh = File->FirstCluster >> 16;
    Entry->ClusterLow = File->FirstCluster;
    Entry->Size = File->Size;
    Entry->Attributes |= ATTRIBUTE_ARCHIVE;
    FatTimeToDisk(KiQuerySystemTime(), &Entry->WriteDate, &Entry->WriteTime);
    Entry->AccessDate = Entry->WriteDate;
    FatLoadEntry(Entry, File);
    return FatCommit(Sector);
}
/* Writes slots, or frees them (`Set` NULL): the last sector first, each once. */
static NTSTATUS FatWriteSlots(ULONG Directory, ULONG Start, ULONG Count, const DIRENT *Set) {
    NTSTATUS Status = STATUS_SUCCESS;
    PDIRENT Entry;
    ULONG Sector;
    for (ULONG Index = Count; NT_SUCCESS(Status) && Index--;) {
        Status = FatSlot(Directory, Start + Index, &Entry, &Sector);
        if (!NT_SUCCESS(Status)) break;
        if (Set)
            *Entry = Set[Index];
        else
            Entry->Name[0] = SLOT_FREE;
        if (Index == 0 || (Start + Index) % SLOTS == 0) Status = FatCommit(Sector);
    }
    return Status;
}
static NTSTATUS FatZeroCluster(ULONG Cluster) { /* through the cache: it becomes a directory */
    NTSTATUS Status = STATUS_SUCCESS;
    for (ULONG Index = 0; NT_SUCCESS(Status) && Index < Volume.SectorsPerCluster; Index++) {
        PUCHAR Data = FatSector(FatClusterSector(Cluster) + Index);
        if (!Data) return STATUS_IO_DEVICE_ERROR;
        memset(Data, 0, SECTOR);
        Status = FatCommit(FatClusterSector(Cluster) + Index);
    }
    return Status;
}
static NTSTATUS FatGrowDirectory(ULONG Directory, ULONG SlotCount) {
    ULONG At = SlotCount * sizeof(DIRENT) / Volume.ClusterBytes, New;
    ULONG Tail = FatWalk(Directory, &At);
    if (Tail < 2 || SlotCount >= SLOT_LIMIT)
        return Tail < 2 ? STATUS_DISK_CORRUPT_ERROR : STATUS_DISK_FULL;
    NTSTATUS Status = FatAllocateChain(1, Tail, &New);
    if (NT_SUCCESS(Status)) Status = FatZeroCluster(New);
    return NT_SUCCESS(Status) ? FatSetNext(Tail, New) : Status;
}

/* A name's 8.3 form (section 7.4 and as Windows NT does it: four numbered tails, then two
 * characters and four digits of a hash, which is our own). *Long: the name needs long slots as
 * well. `Self` is the entry being renamed, whose old alias is free. */
static NTSTATUS FatMakeAlias(
    ULONG Directory, PCSTR Name, ULONG Self, PDIRENT Entry, BOOLEAN *Long) {
    ULONG Length = strlen(Name), Dot = Length, Parts[2] = {0, 0}, Cases[2] = {0, 0}, Hash = 0;
    BOOLEAN Lossy = FALSE;
    CHAR Text[13], Base[8];
    FAT_FILE Other;
    memset(Entry->Name, ' ', sizeof(Entry->Name));
    for (ULONG Index = 1; Index < Length; Index++) {
        if (Name[Index] == '.') Dot = Index;
    }
    for (ULONG Index = 0; Index < Length; Index++) {
        BOOLEAN Extension = Index > Dot;
        CHAR Character = Name[Index];
        Hash = Hash * 31 + Character;
        if (Index == Dot) continue;
        if (Character == ' ' || Character == '.' || Parts[Extension] == (Extension ? 3 : 8)) {
            Lossy = TRUE;
            continue;
        }
        for (PCSTR Odd = "+,;=[]"; *Odd; Odd++) {
            if (Character == *Odd) {
                Character = '_';
                Lossy = TRUE;
            }
        }
        if (Character >= 'a' && Character <= 'z') {
            Cases[Extension] |= 1;
            Character -= 32;
        } else if (Character >= 'A' && Character <= 'Z') {
            Cases[Extension] |= 2;
        }
        Entry->Name[Extension * 8 + Parts[Extension]++] = Character;
    }
    *Long = Lossy || Cases[0] == 3 || Cases[1] == 3;
    Entry->CaseFlags = *Long ? 0 : (Cases[0] == 1) * LOWER_BASE | (Cases[1] == 1) * LOWER_EXTENSION;
    memcpy(Base, Entry->Name, sizeof(Base));
    for (ULONG Try = 1; Lossy; Try++) {
        ULONG Kept = MIN(Parts[0], Try <= 4 ? 6 : 2);
        memcpy(Entry->Name, Base, Kept);
        memset(Entry->Name + Kept, ' ', 8 - Kept);
        for (int Digit = 12; Try > 4 && Digit >= 0; Digit -= 4)
            Entry->Name[Kept++] = "0123456789ABCDEF"[(Hash + Try) >> Digit & 15];
        Entry->Name[Kept++] = '~';
        Entry->Name[Kept] = '0' + (Try <= 4 ? Try : 1);
        FatShortText(Entry, 0, Text);
        NTSTATUS Status = FatFind(Directory, Text, &Other);
        if (Status == STATUS_NO_MORE_FILES || (NT_SUCCESS(Status) && Other.EntryIndex == Self))
            return STATUS_SUCCESS;
        if (!NT_SUCCESS(Status) || Try == 0xFFFF)
            return NT_SUCCESS(Status) ? STATUS_OBJECT_NAME_COLLISION : Status;
    }
    return STATUS_SUCCESS;
}
static BOOLEAN FatValidName(PCSTR Name) {
    ULONG Length = strlen(Name);
    for (PCSTR At = Name; *At; At++) {
        if (*At < ' ' || *At > 0x7E) return FALSE;
        for (PCSTR Bad = "\"*/:<>?\\|"; *Bad; Bad++) {
            if (*At == *Bad) return FALSE;
        }
    }
    return Length && Length < 256 && Name[Length - 1] != '.' && Name[Length - 1] != ' ';
}
/* Finds `Count` free slots together, in one sector if they fit into one; slots of the file being
 * renamed count as free. *Gap: slots from there to the new ones must be marked free afterwards, as
 * they lie between the directory's old end and its new one. */
static NTSTATUS FatFindSlots(
    ULONG Directory, ULONG Count, ULONG SelfFirst, ULONG Self, PULONG Start, PULONG Gap) {
    ULONG Run = 0, End = UNKNOWN, Sector;
    PDIRENT Entry;
    /* A rename looks in its own sector first: replaced there, the name changes in one write. */
    for (ULONG Index = Self == UNKNOWN ? 0 : Self / SLOTS * SLOTS; Run < Count; Index++) {
        NTSTATUS Status = FatSlot(Directory, Index, &Entry, &Sector);
        if (Status == STATUS_NO_MORE_FILES) {
            Status = FatGrowDirectory(Directory, Index);
            if (NT_SUCCESS(Status)) Status = FatSlot(Directory, Index, &Entry, &Sector);
        }
        if (!NT_SUCCESS(Status)) return Status;
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
    ULONG Directory, PCSTR Name, PDIRENT Short, PFAT_FILE Old, ULONG OldFirst, PFAT_FILE File) {
    DIRENT Set[LONG_SLOTS + 1], Image[SLOTS], *Entry;
    ULONG Self = Old ? Old->EntryIndex : UNKNOWN, Count = 1, Length = strlen(Name), Start, Gap,
          Sector;
    BOOLEAN Long;
    NTSTATUS Status = FatMakeAlias(Directory, Name, Self, Short, &Long);
    if (!NT_SUCCESS(Status)) return Status;
    if (Long) Count += (Length + LONG_CHARS - 1) / LONG_CHARS;
    for (ULONG Ordinal = 1; Ordinal < Count;
         Ordinal++) { /* the last part of the name comes first */
        PUCHAR Slot = (PUCHAR)&Set[Count - 1 - Ordinal];
        memset(Slot, 0, sizeof(DIRENT));
        Slot[0] = Ordinal | (Ordinal == Count - 1 ? LONG_LAST : 0);
        Slot[11] = ATTRIBUTE_LONG;
        Slot[13] = FatShortChecksum(Short->Name);
        for (ULONG Index = 0; Index < LONG_CHARS; Index++) {
            ULONG At = (Ordinal - 1) * LONG_CHARS + Index;
            Slot[LongOffsets[Index]] = At < Length ? Name[At] : At == Length ? 0 : 0xFF;
            Slot[LongOffsets[Index] + 1] = At <= Length ? 0 : 0xFF;
        }
    }
    Set[Count - 1] = *Short;
    Status = FatFindSlots(Directory, Count, OldFirst, Self, &Start, &Gap);
    if (!NT_SUCCESS(Status)) return Status;
    ULONG Page = Start / SLOTS;
    if (Old && OldFirst / SLOTS == Page && Self / SLOTS == Page &&
        (Start + Count - 1) / SLOTS == Page) {
        Status = FatSlot(Directory, Page * SLOTS, &Entry, &Sector);
        if (!NT_SUCCESS(Status)) return Status;
        memcpy(Image, Entry, sizeof(Image));
        for (ULONG Index = OldFirst; Index <= Self; Index++)
            Image[Index % SLOTS].Name[0] = SLOT_FREE;
        memcpy(&Image[Start % SLOTS], Set, Count * sizeof(DIRENT));
        Status = FatWriteSlots(Directory, Page * SLOTS, SLOTS, Image);
    } else {
        if (Old) Status = FatWriteSlots(Directory, OldFirst, Self - OldFirst + 1, NULL);
        if (NT_SUCCESS(Status)) Status = FatWriteSlots(Directory, Start, Count, Set);
        if (NT_SUCCESS(Status) && Gap < Start)
            Status = FatWriteSlots(Directory, Gap, Start - Gap, NULL);
    }
    memset(File, 0, sizeof(*File));
    memcpy(File->Name, Name, Length + 1);
    File->DirectoryCluster = Directory;
    File->EntryIndex = Start + Count - 1;
    FatLoadEntry(Short, File);
    return Status;
}
static NTSTATUS FatCreateEntry(PCSTR Path, BOOLEAN Directory, PFAT_FILE File) {
    DIRENT Short = {.Attributes = Directory ? ATTRIBUTE_DIRECTORY : ATTRIBUTE_ARCHIVE};
    FAT_FILE Parent, Other;
    CHAR Name[256];
    ULONG First = 0;
    NTSTATUS Status = FatResolve(Path, &Parent, Name);
    if (!NT_SUCCESS(Status)) return Status;
    if (!FatValidName(Name)) return STATUS_OBJECT_NAME_INVALID;
    Status = FatFind(Parent.FirstCluster, Name, &Other);
    if (Status != STATUS_NO_MORE_FILES)
        return NT_SUCCESS(Status) ? STATUS_OBJECT_NAME_COLLISION : Status;
    Status = STATUS_SUCCESS;
    FatTimeToDisk(KiQuerySystemTime(), &Short.WriteDate, &Short.WriteTime);
    Short.CreateDate = Short.AccessDate = Short.WriteDate;
    Short.CreateTime = Short.WriteTime;
    if (Directory) {
        DIRENT Dots[2] = {Short, Short};
        Status = FatAllocateChain(1, 0, &First);
        if (NT_SUCCESS(Status)) Status = FatZeroCluster(First);
        if (!NT_SUCCESS(Status)) return Status;
        ULONG Up = Parent.EntryIndex == ROOT_ENTRY ? 0 : Parent.FirstCluster;
        memcpy(Dots[0].Name, ".          ", 11);
        memcpy(Dots[1].Name, "..         ", 11);
        Short.ClusterHigh = Dots[0].ClusterHigh = First >> 16;
        Short.ClusterLow = Dots[0].ClusterLow = First;
        Dots[1].ClusterHigh = Up >> 16;
        Dots[1].ClusterLow = Up;
        Status = FatWriteSlots(First, 0, 2, Dots);
    }
    if (NT_SUCCESS(Status)) Status = FatAddEntry(Parent.FirstCluster, Name, &Short, NULL, 0, File);
    if (!NT_SUCCESS(Status) && First) FatFreeChain(First);
    return Status;
}

/* -- what ki.h declares -------------------------------------------------------------------------
 */
NTSTATUS FatMount(void) {
    static UCHAR Data[SECTOR] __attribute__((aligned(16)));
    BOOT_SECTOR *Boot = (BOOT_SECTOR *)Data;
    KiInitializeMutex(&FatMutex);
    LOCK_UNTIL_RETURN;
    memset(Cache, 0, sizeof(Cache));
    memset(Places, 0, sizeof(Places));
    memset(&Volume, 0, sizeof(Volume));
    NTSTATUS Status = HalDiskRead(0, 1, Data);
    for (PUCHAR Entry = Data + 0x1BE; NT_SUCCESS(Status) && !Volume.Lba; Entry += 16) {
        ULONG Start;
        if (Entry == Data + 0x1FE || Data[0x1FE] != 0x55 || Data[0x1FF] != 0xAA)
            return STATUS_UNRECOGNIZED_VOLUME;
        memcpy(&Start, Entry + 8, sizeof(Start));
        if (Entry[4] == 0x0B || Entry[4] == 0x0C) Volume.Lba = Start;
    }
    if (NT_SUCCESS(Status)) Status = HalDiskRead(Volume.Lba, 1, Data);
    if (!NT_SUCCESS(Status)) return Status;
    ULONG64 DataStart = Boot->ReservedSectors + (ULONG64)Boot->FatCount * Boot->FatSectors;
    if (Data[0x1FE] != 0x55 || Data[0x1FF] != 0xAA || Boot->BytesPerSector != SECTOR ||
        !Boot->SectorsPerCluster || Boot->SectorsPerCluster & (Boot->SectorsPerCluster - 1) ||
        Boot->RootEntries || Boot->FatSectors16 || !Boot->FatCount || DataStart >= Boot->Sectors)
        return STATUS_UNRECOGNIZED_VOLUME;
    Volume.Sectors = Boot->Sectors;
    Volume.FatStart = Boot->ReservedSectors;
    Volume.FatSectors = Boot->FatSectors;
    Volume.FatCount = Boot->FatCount;
    Volume.DataStart = DataStart;
    Volume.RootCluster = Boot->RootCluster;
    Volume.SectorsPerCluster = Boot->SectorsPerCluster;
    Volume.ClusterBytes = Boot->SectorsPerCluster * SECTOR;
    Volume.LastCluster = MIN((Boot->Sectors - DataStart) / Boot->SectorsPerCluster + 1,
        Boot->FatSectors * (SECTOR / 4ULL) - 1);
    Volume.Free = UNKNOWN;
    PUCHAR Info = FatSector(Boot->InfoSector);
    if (Boot->InfoSector && Info && !memcmp(Info, "RRaA", 4) && !memcmp(Info + 484, "rrAa", 4)) {
        Volume.InfoSector = Boot->InfoSector;
        memcpy(&Volume.NextFree, Info + 492, sizeof(Volume.NextFree));
    }
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
    NTSTATUS Status = FatRefresh(File);
    if (!NT_SUCCESS(Status)) return Status;
    if (File->Attributes & ATTRIBUTE_DIRECTORY) return STATUS_FILE_IS_A_DIRECTORY;
    if (Offset >= File->Size) return Length ? STATUS_END_OF_FILE : STATUS_SUCCESS;
    Length = MIN(Length, File->Size - Offset);
    Status = FatTransfer(File->FirstCluster, Offset, Buffer, Length, FALSE);
    *Done = NT_SUCCESS(Status) ? Length : 0;
    return Status;
}

NTSTATUS FatWrite(PFAT_FILE File, ULONG Offset, const void *Buffer, ULONG Length, PULONG Done) {
    LOCK_UNTIL_RETURN;
    *Done = 0;
    NTSTATUS Status = FatRefresh(File);
    if (!NT_SUCCESS(Status) || !Length) return Status;
    if (File->Attributes & ATTRIBUTE_DIRECTORY) return STATUS_FILE_IS_A_DIRECTORY;
    if (Length > 0xFFFFFFFF - Offset) return STATUS_DISK_FULL;
    ULONG First = File->FirstCluster;
    Status = FatReserve(&First, Offset + Length);
    if (NT_SUCCESS(Status) && Offset > File->Size)
        Status = FatTransfer(First, File->Size, NULL, Offset - File->Size, TRUE);
    if (NT_SUCCESS(Status)) Status = FatTransfer(First, Offset, (PUCHAR)Buffer, Length, TRUE);
    if (!NT_SUCCESS(Status)) {
        if (!File->FirstCluster && First) FatFreeChain(First);
        return Status;
    }
    File->FirstCluster = First;
    File->Size = MAX(File->Size, Offset + Length);
    Status = FatUpdate(File);
    *Done = NT_SUCCESS(Status) ? Length : 0;
    return Status;
}

NTSTATUS FatSetSize(PFAT_FILE File, ULONG Size) {
    LOCK_UNTIL_RETURN;
    NTSTATUS Status = FatRefresh(File);
    if (!NT_SUCCESS(Status)) return Status;
    if (File->Attributes & ATTRIBUTE_DIRECTORY) return STATUS_FILE_IS_A_DIRECTORY;
    ULONG First = File->FirstCluster, Rest = 0, Tail = 0;
    Status = FatReserve(&First, Size);
    if (NT_SUCCESS(Status) && !Size) {
        Rest = First;
        First = 0;
    } else if (NT_SUCCESS(Status)) {
        Tail = FatClusterAt(First, (Size - 1) / Volume.ClusterBytes);
        Rest = FatNextCluster(Tail);
    }
    if (!NT_SUCCESS(Status)) return Status;
    File->FirstCluster = First;
    File->Size = Size;
    Status = FatUpdate(File);
    if (NT_SUCCESS(Status) && Rest >= 2 && Tail) Status = FatSetNext(Tail, CHAIN_END);
    if (NT_SUCCESS(Status) && Rest >= 2) Status = FatFreeChain(Rest);
    return Status;
}

/* The file's present entry and where its slots begin. */
static NTSTATUS FatLocate(PFAT_FILE File, PULONG FirstSlot) {
    CHAR Alias[13];
    FAT_FILE Found;
    if (File->EntryIndex == ROOT_ENTRY) return STATUS_ACCESS_DENIED;
    NTSTATUS Status = FatRefresh(File);
    for (ULONG Cursor = 0; NT_SUCCESS(Status); Cursor++) {
        Status = FatScan(File->DirectoryCluster, &Cursor, &Found, FirstSlot, Alias);
        if (NT_SUCCESS(Status) && Cursor == File->EntryIndex) break;
    }
    return Status == STATUS_NO_MORE_FILES ? STATUS_NO_SUCH_FILE : Status;
}
NTSTATUS FatRename(PFAT_FILE File, PCSTR NewName) {
    LOCK_UNTIL_RETURN;
    FAT_FILE Other, Renamed;
    ULONG FirstSlot, Sector;
    PDIRENT Entry;
    if (!FatValidName(NewName)) return STATUS_OBJECT_NAME_INVALID;
    NTSTATUS Status = FatLocate(File, &FirstSlot);
    if (!NT_SUCCESS(Status)) return Status;
    Status = FatFind(File->DirectoryCluster, NewName, &Other);
    if (NT_SUCCESS(Status) && Other.EntryIndex != File->EntryIndex)
        return STATUS_OBJECT_NAME_COLLISION;
    if (NT_SUCCESS(Status) || Status == STATUS_NO_MORE_FILES)
        Status = FatSlot(File->DirectoryCluster, File->EntryIndex, &Entry, &Sector);
    if (!NT_SUCCESS(Status)) return Status;
    DIRENT Short = *Entry;
    Status = FatAddEntry(File->DirectoryCluster, NewName, &Short, File, FirstSlot, &Renamed);
    if (NT_SUCCESS(Status)) *File = Renamed;
    return Status;
}
NTSTATUS FatDelete(PFAT_FILE File) {
    LOCK_UNTIL_RETURN;
    CHAR Alias[13];
    FAT_FILE Child;
    ULONG FirstSlot, Cursor = 0, ChildSlot;
    NTSTATUS Status = FatLocate(File, &FirstSlot);
    if (!NT_SUCCESS(Status)) return Status;
    if (File->Attributes & ATTRIBUTE_DIRECTORY) {
        Status = FatScan(File->FirstCluster, &Cursor, &Child, &ChildSlot, Alias);
        if (Status != STATUS_NO_MORE_FILES)
            return NT_SUCCESS(Status) ? STATUS_DIRECTORY_NOT_EMPTY : Status;
    }
    Status =
        FatWriteSlots(File->DirectoryCluster, FirstSlot, File->EntryIndex - FirstSlot + 1, NULL);
    if (NT_SUCCESS(Status) && File->FirstCluster) Status = FatFreeChain(File->FirstCluster);
    return Status;
}

NTSTATUS FatReadDirectory(PFAT_FILE Directory, PULONG Cursor, PFAT_FILE Entry) {
    LOCK_UNTIL_RETURN;
    CHAR Alias[13];
    ULONG FirstSlot;
    if (!(Directory->Attributes & ATTRIBUTE_DIRECTORY)) return STATUS_NOT_A_DIRECTORY;
    NTSTATUS Status = FatScan(Directory->FirstCluster, Cursor, Entry, &FirstSlot, Alias);
    *Cursor += NT_SUCCESS(Status);
    return Status;
}

/* Covers the file's size in whole sectors. *Count is what is needed, even with BUFFER_TOO_SMALL. */
NTSTATUS FatGetExtents(PFAT_FILE File, FAT_EXTENT *Extents, ULONG Maximum, PULONG Count) {
    LOCK_UNTIL_RETURN;
    *Count = 0;
    NTSTATUS Status = FatRefresh(File);
    ULONG Left = File->Size / SECTOR + !!(File->Size % SECTOR), Previous = 0;
    ULONG Cluster = File->FirstCluster;
    for (; NT_SUCCESS(Status) && Left; Cluster = FatNextCluster(Cluster)) {
        if (Cluster < 2 || Cluster > Volume.LastCluster) return STATUS_DISK_CORRUPT_ERROR;
        ULONG Sectors = MIN(Left, Volume.SectorsPerCluster);
        if (!Previous || Cluster != Previous + 1) {
            if (++*Count <= Maximum)
                Extents[*Count - 1] = (FAT_EXTENT){Volume.Lba + FatClusterSector(Cluster), 0};
        }
        if (*Count <= Maximum) Extents[*Count - 1].Sectors += Sectors;
        Left -= Sectors;
        Previous = Cluster;
    }
    return NT_SUCCESS(Status) && *Count > Maximum ? STATUS_BUFFER_TOO_SMALL : Status;
}
ULONG64 FatFreeBytes(void) {
    LOCK_UNTIL_RETURN;
    return NT_SUCCESS(FatCountFree()) ? (ULONG64)Volume.Free * Volume.ClusterBytes : 0;
}

NTSTATUS FatLoadFile(PCSTR Path, PVOID *Buffer, PULONG Size) {
    FAT_FILE File;
    *Buffer = NULL;
    *Size = 0;
    NTSTATUS Status = FatOpen(Path, &File);
    if (!NT_SUCCESS(Status)) return Status;
    PCHAR Data = KiAllocate(File.Size + 1ULL);
    if (!Data) return STATUS_INSUFFICIENT_RESOURCES;
    Status = FatRead(&File, 0, Data, File.Size, Size);
    if (!NT_SUCCESS(Status)) {
        KiFree(Data);
        return Status;
    }
    Data[*Size] = 0;
    *Buffer = Data;
    return STATUS_SUCCESS;
}
/* Old or new, never half: the new contents are on the disk before one sector write takes them in.
 */
NTSTATUS FatStoreFile(PCSTR Path, const void *Buffer, ULONG Size) {
    LOCK_UNTIL_RETURN;
    FAT_FILE File;
    ULONG New = 0, Old;
    NTSTATUS Status = FatResolve(Path, &File, NULL);
    if (Status == STATUS_OBJECT_NAME_NOT_FOUND) Status = FatCreateEntry(Path, FALSE, &File);
    if (NT_SUCCESS(Status) && File.Attributes & ATTRIBUTE_DIRECTORY)
        Status = STATUS_FILE_IS_A_DIRECTORY;
    if (NT_SUCCESS(Status)) Status = FatReserve(&New, Size);
    if (!NT_SUCCESS(Status)) return Status;
    Status = FatTransfer(New, 0, (PUCHAR)Buffer, Size, TRUE);
    Old = New;
    if (NT_SUCCESS(Status)) {
        Old = File.FirstCluster;
        File.FirstCluster = New;
        File.Size = Size;
        Status = FatUpdate(&File);
    }
    if (Old) FatFreeChain(Old);
    return Status;
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
