/* FAT32 with long names on the first FAT32 partition. Source: Microsoft, "FAT: General Overview of
 * On-Disk Format", 1.03 (2000), section numbers below. Times on disk are UTC. Writes are ordered so
 * that a power cut leaves at worst lost clusters, or a chain longer than its file says (a rename
 * that needs another sector aside, see FatAddEntry): clusters are chained before anything points at
 * them, an entry forgets its clusters before they are freed, and the slots of one file share a
 * sector, which limits names to 195 characters. */
#include "ki.h"

enum { SECTOR = 512, LINE_SECTORS = 32, LINES = 8 }; /* the cache reads 16 KiB at a time */
enum { ENTRIES = SECTOR / 4, CHAIN_END = 0x0FFFFFFF, CLUSTER_MASK = 0x0FFFFFFF }; /* of the FAT */
enum { SLOTS = SECTOR / 32, SLOT_LIMIT = 65536, SLOT_FREE = 0xE5, SHORT_CHARS = 11 };
enum { LONG_LAST = 0x40, LONG_CHARS = 13, LONG_SLOTS = 20 };
enum { LABEL = 0x08, LONG_NAME = 0x0F, DIRECTORY = 0x10, ARCHIVE = 0x20 }; /* attributes */
#define ROOT_ENTRY 0xFFFFFFFF /* EntryIndex of the root directory, which has no entry */

typedef struct __attribute__((packed)) _BOOT_SECTOR { /* section 3 */
    UCHAR Jump[11];
    USHORT BytesPerSector;
    UCHAR SectorsPerCluster;
    USHORT ReservedSectors;
    UCHAR FatCount, Unused[15];
    ULONG Sectors, FatSectors, FlagsAndVersion, RootCluster;
    USHORT InfoSector;
} BOOT_SECTOR;
ASSERT_OFFSET(BOOT_SECTOR, InfoSector, 48);
typedef struct _DIRENT { /* section 6; a long name's slots overlay it (section 7) */
    UCHAR Name[SHORT_CHARS], Attributes, Unused[2];
    USHORT CreateTime, CreateDate, AccessDate, ClusterHigh, WriteTime, WriteDate, ClusterLow;
    ULONG Size;
} DIRENT, *PDIRENT;
ASSERT_SIZE(DIRENT, 32);
static const UCHAR LongOffsets[LONG_CHARS] = {1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30};

static UCHAR BootData[SECTOR] __attribute__((aligned(16)));
static BOOT_SECTOR *const Boot = (BOOT_SECTOR *)BootData;
static ULONG64 VolumeLba; /* of the partition; all sectors below count from here */
static ULONG DataStart, ClusterBytes, LastCluster, NextFree;
static UCHAR CacheData[LINES][LINE_SECTORS * SECTOR] __attribute__((aligned(16)));
static ULONG CacheLine[LINES], Current; /* CacheLine: + 1, 0 = empty; Current: asked for last */
static BOOLEAN CurrentDirty;
static KI_MUTEX FatMutex;

static void FatUnlock(int *Unused) { KiReleaseMutex((UNREFERENCED(Unused), &FatMutex)); }
#define LOCK_UNTIL_RETURN                                                                          \
    __attribute__((cleanup(FatUnlock))) int Locked = (KiAcquireMutex(&FatMutex), 0);               \
    UNREFERENCED(Locked)

/* Writes the sector that FatSector gave last, to all FATs if it is of one. */
static NTSTATUS FatCommit(void) {
    PUCHAR Data = CacheData[Current / LINE_SECTORS % LINES] + Current % LINE_SECTORS * SECTOR;
    BOOLEAN InFat = Current - Boot->ReservedSectors < Boot->FatSectors;
    CurrentDirty = FALSE;
    for (ULONG Copy = 0; Copy < (InFat ? Boot->FatCount : 1); Copy++)
        TRY(HalDiskWrite(VolumeLba + Current + Copy * Boot->FatSectors, 1, Data));
    return STATUS_SUCCESS;
}
/* A sector in the cache, good until another one is asked for: then it is written if it is dirty, so
 * that writes keep their order. NULL after an error. */
static PUCHAR FatSector(ULONG Sector) {
    ULONG Line = Sector / LINE_SECTORS, Start = Line * LINE_SECTORS, Place = Line % LINES;
    if (CurrentDirty && Sector != Current && !NT_SUCCESS(FatCommit())) return NULL;
    Current = Sector;
    if (CacheLine[Place] != Line + 1) {
        ULONG Count = MIN(LINE_SECTORS, Boot->Sectors - Start);
        CacheLine[Place] = 0;
        if (!NT_SUCCESS(HalDiskRead(VolumeLba + Start, Count, CacheData[Place]))) return NULL;
        CacheLine[Place] = Line + 1;
    }
    return CacheData[Place] + Sector % LINE_SECTORS * SECTOR;
}

/* -- clusters ---------------------------------------------------------------------------------- */
static BOOLEAN FatIsCluster(ULONG Cluster) { return Cluster >= 2 && Cluster <= LastCluster; }
static PULONG FatEntry(ULONG Cluster) {
    PUCHAR Data = FatSector(Boot->ReservedSectors + Cluster / ENTRIES);
    return Data ? (PULONG)Data + Cluster % ENTRIES : NULL;
}
/* The next cluster of a chain; 0 at its end or where it is broken. */
static ULONG FatNextCluster(ULONG Cluster) {
    PULONG Entry = FatIsCluster(Cluster) ? FatEntry(Cluster) : NULL;
    return Entry && FatIsCluster(*Entry & CLUSTER_MASK) ? *Entry & CLUSTER_MASK : 0;
}
/* The cluster *Index places into a chain, or its last with *Index corrected; 0: there is none. */
static ULONG FatWalk(ULONG First, PULONG Index) {
    ULONG Left = *Index, Cluster = FatIsCluster(First) ? First : 0;
    for (ULONG Next; Left && (Next = FatNextCluster(Cluster)) != 0; Left--) Cluster = Next;
    *Index -= Left;
    return Cluster;
}
static NTSTATUS FatSetNext(ULONG Cluster, ULONG Next) {
    PULONG Entry = FatEntry(Cluster);
    if (!Entry) return STATUS_IO_DEVICE_ERROR;
    *Entry = (*Entry & ~CLUSTER_MASK) | Next;
    CurrentDirty = TRUE;
    return STATUS_SUCCESS;
}
static NTSTATUS FatFreeChain(ULONG Cluster) {
    for (ULONG Next; FatIsCluster(Cluster); Cluster = Next) {
        Next = FatNextCluster(Cluster);
        TRY(FatSetNext(Cluster, 0));
    }
    return CurrentDirty ? FatCommit() : STATUS_SUCCESS;
}
/* A new chain of `Count` clusters, next fit, best right behind `Near`. Nothing points at it yet. */
static NTSTATUS FatAllocateChain(ULONG Count, ULONG Near, PULONG First) {
    ULONG Tail = *First = 0, Cluster = Near ? Near + 1 : NextFree;
    for (ULONG Seen = 0; Count && Seen <= LastCluster; Seen++, Cluster++) {
        if (!FatIsCluster(Cluster)) Cluster = 2;
        PULONG Entry = FatEntry(Cluster);
        if (!Entry) return STATUS_IO_DEVICE_ERROR;
        if (*Entry & CLUSTER_MASK) continue;
        TRY(FatSetNext(Cluster, CHAIN_END));
        if (Tail) TRY(FatSetNext(Tail, Cluster));
        if (!Tail) *First = Cluster;
        Tail = Cluster;
        Count--;
    }
    NextFree = Cluster;
    if (!Count) return FatCommit();
    FatFreeChain(*First);
    return STATUS_DISK_FULL;
}
/* Where a byte of a chain lies on the disk, and how many of `Limit` bytes are there in one piece.
 */
static NTSTATUS FatFindRun(ULONG First, ULONG Offset, ULONG Limit, PULONG64 Lba, PULONG Run) {
    ULONG At = Offset / ClusterBytes, Within = Offset % ClusterBytes;
    ULONG Cluster = FatWalk(First, &At);
    if (!Cluster || At != Offset / ClusterBytes) return STATUS_DISK_CORRUPT_ERROR;
    *Lba = VolumeLba + DataStart + (Cluster - 2) * Boot->SectorsPerCluster + Within / SECTOR;
    *Run = ClusterBytes - Within;
    for (; *Run < Limit && FatNextCluster(Cluster) == Cluster + 1; Cluster++) *Run += ClusterBytes;
    *Run = MIN(*Run, Limit);
    return STATUS_SUCCESS;
}
/* Moves `Length` bytes that lie inside the chain; a NULL buffer writes zeros. */
static NTSTATUS FatTransfer(ULONG First, ULONG Offset, PUCHAR Buffer, ULONG Length, BOOLEAN Write) {
    static UCHAR Zeros[8 * SECTOR], Bounce[SECTOR] __attribute__((aligned(16)));
    for (ULONG Run; Length; Offset += Run, Length -= Run) {
        ULONG Skip = Offset % SECTOR;
        PUCHAR Data = Buffer ? Buffer : Zeros;
        ULONG64 Lba;
        TRY(FatFindRun(First, Offset, Buffer ? Length : MIN(Length, sizeof(Zeros)), &Lba, &Run));
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
    ULONG Wanted = Bytes / ClusterBytes + !!(Bytes % ClusterBytes), At = Wanted - 1, New;
    ULONG Tail = Wanted ? FatWalk(*First, &At) : 0, Have = Tail ? At + 1 : 0;
    if (Have >= Wanted) return STATUS_SUCCESS;
    TRY(FatAllocateChain(Wanted - Have, Tail, &New));
    if (ForDirectory) {
        TRY(FatTransfer(New, 0, NULL, (Wanted - Have) * ClusterBytes, TRUE));
        memset(CacheLine, 0, sizeof(CacheLine)); /* it may hold what was there before */
    }
    if (Tail) return FatSetNext(Tail, New);
    *First = New;
    return STATUS_SUCCESS;
}

/* -- directories ------------------------------------------------------------------------------- */
static NTSTATUS FatSlot(ULONG Directory, ULONG Index, PDIRENT *Slot) {
    ULONG64 Lba;
    ULONG Run;
    if (Index >= SLOT_LIMIT ||
        !NT_SUCCESS(FatFindRun(Directory, Index * sizeof(DIRENT), 1, &Lba, &Run)))
        return STATUS_NO_MORE_FILES;
    PUCHAR Data = FatSector(Lba - VolumeLba);
    if (!Data) return STATUS_IO_DEVICE_ERROR;
    *Slot = (PDIRENT)Data + Index % SLOTS;
    return STATUS_SUCCESS;
}
static LONG64 FatTimeFromDisk(USHORT Date, USHORT Time) {
    KI_DATE Value = {1980 + (Date >> 9), Date >> 5 & 15, Date & 31, Time >> 11, Time >> 5 & 63,
        (Time & 31) * 2, 0, 0};
    return Value.Month && Value.Day ? KiDateToTime(&Value) : 0;
}
static void FatTimeToDisk(LONG64 SystemTime, PUSHORT Date, PUSHORT Time) {
    KI_DATE Value;
    KiTimeToDate(SystemTime, &Value);
    *Date = (MAX(Value.Year, 1980) - 1980) << 9 | Value.Month << 5 | Value.Day;
    *Time = Value.Hour << 11 | Value.Minute << 5 | Value.Second / 2;
}
static void FatShortText(const UCHAR *Name, PCHAR Text) {
    for (ULONG Index = 0; Index < SHORT_CHARS; Index++) {
        if (Name[Index] == ' ') continue;
        if (Index == 8) *Text++ = '.';
        *Text++ = Name[Index] > 0x7E ? '?' : Name[Index];
    }
    *Text = 0;
}
static UCHAR FatChecksum(const UCHAR *Name) { /* section 7.2 */
    UCHAR Sum = 0;
    for (int Index = 0; Index < SHORT_CHARS; Index++) Sum = (Sum << 7 | Sum >> 1) + Name[Index];
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
    File->WriteTime = FatTimeFromDisk(Entry->WriteDate, Entry->WriteTime);
    File->CreateTime = FatTimeFromDisk(Entry->CreateDate, Entry->CreateTime);
    memcpy(File->ShortName, Entry->Name, SHORT_CHARS);
}
/* Reads the long name if there is a whole one: its slots go before the 8.3 entry, the last part
 * first. *First: where the slots of the file begin. */
static NTSTATUS FatReadLongName(PFAT_FILE File, PULONG First) {
    CHAR Name[LONG_SLOTS * LONG_CHARS + 1] = "";
    UCHAR Checksum = FatChecksum(File->ShortName), *Slot;
    *First = File->EntryIndex;
    for (int Part = 0; Part < (int)MIN(File->EntryIndex, LONG_SLOTS); Part++) {
        TRY(FatSlot(File->DirectoryCluster, File->EntryIndex - Part - 1, (PDIRENT *)&Slot));
        if (Slot[11] != LONG_NAME || Slot[13] != Checksum || (Slot[0] & ~LONG_LAST) != Part + 1)
            break;
        for (ULONG Index = 0; Index < LONG_CHARS; Index++) {
            USHORT Letter = Slot[LongOffsets[Index]] | Slot[LongOffsets[Index] + 1] << 8;
            if (Letter != 0xFFFF) Name[Part * LONG_CHARS + Index] = Letter > 0x7E ? '?' : Letter;
        }
        if (!(Slot[0] & LONG_LAST)) continue;
        memcpy(File->Name, Name, sizeof(File->Name) - 1);
        *First -= Part + 1;
        break;
    }
    return STATUS_SUCCESS;
}
/* The next file at or behind *Cursor, which is left behind it. Volume labels, which the slots of
 * long names look like, "." and ".." are passed over. */
static NTSTATUS FatScan(ULONG Directory, PULONG Cursor, PFAT_FILE File) {
    PDIRENT Entry;
    ULONG First;
    do {
        TRY(FatSlot(Directory, (*Cursor)++, &Entry));
        if (!Entry->Name[0]) return STATUS_NO_MORE_FILES;
    } while (Entry->Name[0] == SLOT_FREE || Entry->Name[0] == '.' || Entry->Attributes & LABEL);
    *File = (FAT_FILE){.DirectoryCluster = Directory, .EntryIndex = *Cursor - 1};
    FatLoadEntry(Entry, File);
    FatShortText(Entry->Name, File->Name);
    return FatReadLongName(File, &First);
}
/* By long or by 8.3 name, without case. */
static NTSTATUS FatFind(ULONG Directory, PCSTR Name, PFAT_FILE File) {
    CHAR Alias[13];
    ULONG Cursor = 0;
    do {
        NTSTATUS Status = FatScan(Directory, &Cursor, File);
        TRY(Status == STATUS_NO_MORE_FILES ? STATUS_OBJECT_NAME_NOT_FOUND : Status);
        FatShortText(File->ShortName, Alias);
    } while (RtlCompareTextInsensitive(File->Name, Name) && RtlCompareTextInsensitive(Alias, Name));
    return STATUS_SUCCESS;
}
/* The directory a path's last part lies in, and that part (256 bytes); empty: the root itself. */
static NTSTATUS FatFindParent(PCSTR Path, PFAT_FILE File, PCHAR Leaf) {
    *File = (FAT_FILE){
        .FirstCluster = Boot->RootCluster, .EntryIndex = ROOT_ENTRY, .Attributes = DIRECTORY};
    for (;;) {
        ULONG Length = 0;
        while (*Path == '\\') Path++;
        for (; *Path && *Path != '\\'; Leaf[Length++] = *Path++)
            if (Length == 255) return STATUS_OBJECT_NAME_INVALID;
        Leaf[Length] = 0;
        while (*Path == '\\') Path++;
        if (!(File->Attributes & DIRECTORY)) return STATUS_OBJECT_PATH_NOT_FOUND;
        if (!*Path) return STATUS_SUCCESS;
        NTSTATUS Status = FatFind(File->FirstCluster, Leaf, File);
        TRY(Status == STATUS_OBJECT_NAME_NOT_FOUND ? STATUS_OBJECT_PATH_NOT_FOUND : Status);
    }
}
/* Reads a file's entry again: another handle may have grown, replaced or deleted it. */
static NTSTATUS FatRefresh(PFAT_FILE File, BOOLEAN ForData) {
    PDIRENT Entry;
    if (ForData && File->Attributes & DIRECTORY) return STATUS_FILE_IS_A_DIRECTORY;
    if (File->EntryIndex == ROOT_ENTRY) return STATUS_ACCESS_DENIED;
    TRY(FatSlot(File->DirectoryCluster, File->EntryIndex, &Entry));
    if (memcmp(Entry->Name, File->ShortName, SHORT_CHARS)) return STATUS_NO_SUCH_FILE;
    FatLoadEntry(Entry, File);
    return STATUS_SUCCESS;
}
/* Writes first cluster and size of a file that changed now. */
static NTSTATUS FatUpdate(PFAT_FILE File, ULONG First, ULONG Size) {
    PDIRENT Entry;
    TRY(FatSlot(File->DirectoryCluster, File->EntryIndex, &Entry));
    FatSetCluster(Entry, First);
    Entry->Size = Size;
    Entry->Attributes |= ARCHIVE;
    FatTimeToDisk(KiQuerySystemTime(), &Entry->WriteDate, &Entry->WriteTime);
    FatLoadEntry(Entry, File);
    return FatCommit();
}
/* Frees all slots of a file; where a foreign one's are in two sectors, its 8.3 entry goes first. */
static NTSTATUS FatFreeSlots(PFAT_FILE File) {
    PDIRENT Slot = NULL;
    ULONG First;
    TRY(FatReadLongName(File, &First));
    for (ULONG Index = File->EntryIndex + 1; Index-- > First; Slot--) {
        if (!Slot || Index % SLOTS == SLOTS - 1) TRY(FatSlot(File->DirectoryCluster, Index, &Slot));
        Slot->Name[0] = SLOT_FREE;
        if (Index == First || Index % SLOTS == 0) TRY(FatCommit());
    }
    return STATUS_SUCCESS;
}
/* Whether a name may be given to the entry `Self`, or to a new one: ROOT_ENTRY. */
static NTSTATUS FatCheckName(ULONG Directory, PCSTR Name, ULONG Self) {
    FAT_FILE Other;
    ULONG Length = strlen(Name);
    if (!Length || Length > (SLOTS - 1) * LONG_CHARS || strchr(". ", Name[Length - 1]))
        return STATUS_OBJECT_NAME_INVALID;
    for (PCSTR At = Name; *At; At++)
        if (*At < ' ' || *At > '~' || strchr("\"*/:<>?\\|", *At)) return STATUS_OBJECT_NAME_INVALID;
    NTSTATUS Status = FatFind(Directory, Name, &Other);
    if (Status == STATUS_OBJECT_NAME_NOT_FOUND || (NT_SUCCESS(Status) && Other.EntryIndex == Self))
        return STATUS_SUCCESS;
    return NT_SUCCESS(Status) ? STATUS_OBJECT_NAME_COLLISION : Status;
}
/* A name's 8.3 form (section 7.4), numbered where something of the name is lost. `Self` is the
 * entry being renamed, whose old alias is free. */
static NTSTATUS FatMakeAlias(ULONG Directory, PCSTR Name, ULONG Self, PUCHAR Alias) {
    ULONG At = 0, End = 8, Base = 0, Digits = 1, Limit = 10;
    CHAR Text[13];
    memset(Alias, ' ', SHORT_CHARS);
    for (PCSTR Letter = Name; *Letter; Letter++) {
        BOOLEAN Lower = *Letter >= 'a' && *Letter <= 'z', IsDot = *Letter == '.';
        if (IsDot) memset(Alias + (At = 8), ' ', 3); /* the extension is what follows the last */
        if (IsDot) End = SHORT_CHARS;
        if (!IsDot && *Letter != ' ' && At < End)
            Alias[At++] = Lower ? *Letter - 32 : strchr("+,;=[]", *Letter) ? '_' : *Letter;
        if (End == 8) Base = At;
    }
    FatShortText(Alias, Text);
    BOOLEAN Lossy = !Base || RtlCompareTextInsensitive(Text, Name) != 0;
    for (ULONG Number = 1; Lossy; Number++) {
        if (Number == Limit) Digits++, Limit *= 10;
        At = MIN(Base + 1 + Digits, 8);
        for (ULONG Rest = Number; Rest; Rest /= 10) Alias[--At] = '0' + Rest % 10;
        Alias[At - 1] = '~';
        FatShortText(Alias, Text);
        NTSTATUS Status = FatCheckName(Directory, Text, Self);
        if (Status != STATUS_OBJECT_NAME_COLLISION) return Status;
    }
    return STATUS_SUCCESS;
}
/* Enters `Name` with what `Short` says of it. To rename `File` is one write where the new name fits
 * into the old one's sector; else a power cut can lose the file. */
static NTSTATUS FatAddEntry(
    ULONG Directory, PCSTR Name, PDIRENT Short, BOOLEAN Rename, PFAT_FILE File) {
    CHAR Text[13];
    DIRENT Set[SLOTS], Image[SLOTS], *Slots;
    ULONG Self = Rename ? File->EntryIndex : ROOT_ENTRY, First = ROOT_ENTRY, At, Run;
    ULONG Length = strlen(Name), Count = 1, Sector = Rename ? Self / SLOTS : 0;
    TRY(FatCheckName(Directory, Name, Self));
    TRY(FatMakeAlias(Directory, Name, Self, Short->Name));
    FatShortText(Short->Name, Text);
    if (strcmp(Text, Name)) Count += (Length + LONG_CHARS - 1) / LONG_CHARS;
    for (ULONG Part = 1; Part < Count; Part++) { /* of the long name; the last one comes first */
        PUCHAR Slot = memset(&Set[Count - 1 - Part], 0, sizeof(DIRENT));
        Slot[0] = Part | (Part == Count - 1 ? LONG_LAST : 0);
        Slot[11] = LONG_NAME;
        Slot[13] = FatChecksum(Short->Name);
        for (ULONG Index = 0; Index < LONG_CHARS; Index++) {
            At = (Part - 1) * LONG_CHARS + Index;
            USHORT Letter = At < Length ? Name[At] : At == Length ? 0 : 0xFFFF;
            memcpy(Slot + LongOffsets[Index], &Letter, sizeof(Letter));
        }
    }
    Set[Count - 1] = *Short;
    if (Rename) TRY(FatReadLongName(File, &First));
    for (;; Sector++) {
        if (Sector == SLOT_LIMIT / SLOTS) return STATUS_DISK_FULL;
        TRY(FatReserve(&Directory, (Sector + 1) * SECTOR, TRUE));
        TRY(FatSlot(Directory, Sector * SLOTS, &Slots));
        memcpy(Image, Slots, SECTOR);
        for (ULONG Index = First; Rename && Index <= Self; Index++)
            if (Index / SLOTS == Sector) Image[Index % SLOTS].Name[0] = SLOT_FREE;
        for (At = Run = 0; At < SLOTS && Run < Count; At++)
            Run = !Image[At].Name[0] || Image[At].Name[0] == SLOT_FREE ? Run + 1 : 0;
        if (Run == Count) break;
        for (At = SLOTS; !Slots[At - 1].Name[0]; At--) Slots[At - 1].Name[0] = SLOT_FREE;
        if (At < SLOTS) TRY(FatCommit()); /* the directory's end will be further on */
    }
    memcpy(&Image[At - Count], Set, Count * sizeof(DIRENT));
    if (Rename && First / SLOTS != Sector) TRY(FatFreeSlots(File));
    TRY(FatSlot(Directory, Sector * SLOTS, &Slots));
    memcpy(Slots, Image, SECTOR);
    TRY(FatCommit());
    *File = (FAT_FILE){.DirectoryCluster = Directory, .EntryIndex = Sector * SLOTS + At - 1};
    memcpy(File->Name, Name, Length);
    FatLoadEntry(Short, File);
    return STATUS_SUCCESS;
}

/* -- what ki.h declares ------------------------------------------------------------------------ */
NTSTATUS FatMount(void) {
    LOCK_UNTIL_RETURN;
    memset(CacheLine, 0, sizeof(CacheLine));
    CurrentDirty = FALSE;
    TRY(HalDiskRead(0, 1, BootData));
    PUCHAR Partition = BootData + 0x1BE;
    while (Partition[4] != 0x0B && Partition[4] != 0x0C)
        if ((Partition += 16) == BootData + 0x1FE) return STATUS_UNRECOGNIZED_VOLUME;
    VolumeLba = *(PUSHORT)(Partition + 8) | (ULONG) * (PUSHORT)(Partition + 10) << 16;
    TRY(HalDiskRead(VolumeLba, 1, BootData));
    DataStart = Boot->ReservedSectors + Boot->FatCount * Boot->FatSectors;
    if (Boot->BytesPerSector != SECTOR || !Boot->SectorsPerCluster || DataStart >= Boot->Sectors)
        return STATUS_UNRECOGNIZED_VOLUME;
    ClusterBytes = Boot->SectorsPerCluster * SECTOR;
    LastCluster = (Boot->Sectors - DataStart) / Boot->SectorsPerCluster + 1;
    NextFree = 2;
    PULONG Info = (PULONG)FatSector(Boot->InfoSector); /* section 5 */
    if (!Info || Info[0] != 0x41615252 || (Info[122] & Info[123]) == 0xFFFFFFFF)
        return STATUS_SUCCESS;
    Info[122] = Info[123] = 0xFFFFFFFF; /* hints that nothing here keeps right: "unknown" */
    return FatCommit();
}
NTSTATUS FatOpen(PCSTR Path, PFAT_FILE File) {
    LOCK_UNTIL_RETURN;
    CHAR Name[256];
    TRY(FatFindParent(Path, File, Name));
    return *Name ? FatFind(File->FirstCluster, Name, File) : STATUS_SUCCESS;
}
NTSTATUS FatCreate(PCSTR Path, BOOLEAN Directory, PFAT_FILE File) {
    LOCK_UNTIL_RETURN;
    DIRENT Short = {.Attributes = Directory ? DIRECTORY : ARCHIVE}, *Dots;
    FAT_FILE Parent;
    CHAR Name[256];
    ULONG First = 0;
    TRY(FatFindParent(Path, &Parent, Name));
    FatTimeToDisk(KiQuerySystemTime(), &Short.WriteDate, &Short.WriteTime);
    Short.CreateDate = Short.AccessDate = Short.WriteDate;
    Short.CreateTime = Short.WriteTime;
    if (Directory) {
        TRY(FatReserve(&First, 1, TRUE));
        FatSetCluster(&Short, First);
        TRY(FatSlot(First, 0, &Dots));
        Dots[0] = Dots[1] = Short;
        memcpy(Dots[0].Name, ".          ", SHORT_CHARS);
        memcpy(Dots[1].Name, "..         ", SHORT_CHARS);
        FatSetCluster(&Dots[1], Parent.EntryIndex == ROOT_ENTRY ? 0 : Parent.FirstCluster);
        TRY(FatCommit());
    }
    NTSTATUS Status = FatAddEntry(Parent.FirstCluster, Name, &Short, FALSE, File);
    if (!NT_SUCCESS(Status)) FatFreeChain(First);
    return Status;
}
NTSTATUS FatRead(PFAT_FILE File, ULONG Offset, PVOID Buffer, ULONG Length, PULONG Done) {
    LOCK_UNTIL_RETURN;
    *Done = 0;
    TRY(FatRefresh(File, TRUE));
    if (Offset >= File->Size) return Length ? STATUS_END_OF_FILE : STATUS_SUCCESS;
    Length = MIN(Length, File->Size - Offset);
    TRY(FatTransfer(File->FirstCluster, Offset, Buffer, Length, FALSE));
    *Done = Length;
    return STATUS_SUCCESS;
}
NTSTATUS FatWrite(PFAT_FILE File, ULONG Offset, const void *Buffer, ULONG Length, PULONG Done) {
    LOCK_UNTIL_RETURN;
    *Done = 0;
    TRY(FatRefresh(File, TRUE));
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
    TRY(FatRefresh(File, TRUE));
    ULONG First = File->FirstCluster, Last = (Size - 1) / ClusterBytes;
    TRY(FatReserve(&First, Size, FALSE));
    ULONG Tail = Size ? FatWalk(First, &Last) : 0, Rest = Tail ? FatNextCluster(Tail) : First;
    TRY(FatUpdate(File, Size ? First : 0, Size));
    if (Tail && Rest) TRY(FatSetNext(Tail, CHAIN_END));
    return FatFreeChain(Rest);
}
NTSTATUS FatRename(PFAT_FILE File, PCSTR NewName) {
    LOCK_UNTIL_RETURN;
    PDIRENT Entry;
    TRY(FatRefresh(File, FALSE));
    TRY(FatSlot(File->DirectoryCluster, File->EntryIndex, &Entry));
    DIRENT Short = *Entry;
    memset(Short.Unused, 0, sizeof(Short.Unused)); /* Windows NT's case of the old 8.3 name */
    return FatAddEntry(File->DirectoryCluster, NewName, &Short, TRUE, File);
}
NTSTATUS FatDelete(PFAT_FILE File) {
    LOCK_UNTIL_RETURN;
    FAT_FILE Child;
    ULONG Cursor = 0;
    TRY(FatRefresh(File, FALSE));
    if (File->Attributes & DIRECTORY && NT_SUCCESS(FatScan(File->FirstCluster, &Cursor, &Child)))
        return STATUS_DIRECTORY_NOT_EMPTY;
    TRY(FatFreeSlots(File));
    return FatFreeChain(File->FirstCluster);
}
NTSTATUS FatReadDirectory(PFAT_FILE Directory, PULONG Cursor, PFAT_FILE Entry) {
    LOCK_UNTIL_RETURN;
    if (!(Directory->Attributes & DIRECTORY)) return STATUS_NOT_A_DIRECTORY;
    return FatScan(Directory->FirstCluster, Cursor, Entry);
}
/* Covers the file's size in whole sectors. *Count is what is needed, even with BUFFER_TOO_SMALL. */
NTSTATUS FatGetExtents(PFAT_FILE File, FAT_EXTENT *Extents, ULONG Maximum, PULONG Count) {
    LOCK_UNTIL_RETURN;
    *Count = 0;
    TRY(FatRefresh(File, TRUE));
    for (ULONG Offset = 0, Run; Offset < File->Size; Offset += Run, ++*Count) {
        FAT_EXTENT Extent;
        TRY(FatFindRun(File->FirstCluster, Offset, File->Size - Offset, &Extent.Lba, &Run));
        Extent.Sectors = Run / SECTOR + !!(Run % SECTOR);
        if (*Count < Maximum) Extents[*Count] = Extent;
    }
    return *Count > Maximum ? STATUS_BUFFER_TOO_SMALL : STATUS_SUCCESS;
}
NTSTATUS FatLoadFile(PCSTR Path, PVOID *Buffer, PULONG Size) {
    FAT_FILE File;
    TRY(FatOpen(Path, &File));
    PCHAR Data = *Buffer = KiAllocate(File.Size + 1ULL);
    if (!Data) return STATUS_INSUFFICIENT_RESOURCES;
    NTSTATUS Status = FatRead(&File, 0, Data, File.Size, Size);
    Data[*Size] = 0;
    if (!NT_SUCCESS(Status)) KiFree(Data);
    return Status;
}
/* Old or new, never half: one sector write takes in the new contents when they are on the disk. */
NTSTATUS FatStoreFile(PCSTR Path, const void *Buffer, ULONG Size) {
    FAT_FILE File;
    ULONG New = 0;
    NTSTATUS Status = FatOpen(Path, &File);
    TRY(Status == STATUS_OBJECT_NAME_NOT_FOUND ? FatCreate(Path, FALSE, &File) : Status);
    LOCK_UNTIL_RETURN;
    TRY(FatRefresh(&File, TRUE));
    ULONG Old = File.FirstCluster;
    TRY(FatReserve(&New, Size, FALSE));
    TRY(FatTransfer(New, 0, (PUCHAR)Buffer, Size, TRUE));
    TRY(FatUpdate(&File, New, Size));
    return FatFreeChain(Old);
}
NTSTATUS IopVolumePath(PCSTR NtPath, PCHAR Path, ULONG Size) {
    static const PCSTR Roots[][2] = {{"\\SystemRoot", "Windows\\"}, {"%SystemRoot%", "Windows\\"},
        {"\\??\\C:", ""}, {"\\DosDevices\\C:", ""}, {"C:", ""},
        {"System32", "Windows\\System32\\"}};
    for (ULONG Index = 0; Index < ARRAY_SIZE(Roots); Index++) {
        SIZE_T Length = strlen(Roots[Index][0]), Start = strlen(Roots[Index][1]);
        PCSTR Rest = NtPath + Length;
        if (RtlCompareTextInsensitiveN(NtPath, Roots[Index][0], Length) || !strchr("\\", *Rest))
            continue;
        if (*Rest == 0) Rest = "\\";
        if (Start + strlen(Rest) > Size) return STATUS_BUFFER_TOO_SMALL;
        memcpy(Path, Roots[Index][1], Start);
        memcpy(Path + Start, Rest + 1, strlen(Rest));
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
