/* The Zw file calls over FAT32, with the structures and status codes of the DDK (ntifs.h). Not there:
 * sharing modes (every open shares all), events and APCs at completion, extended attributes. */
#include "ob.h"

enum { FILE_SUPERSEDE, FILE_OPEN, FILE_CREATE, FILE_OPEN_IF, FILE_OVERWRITE, FILE_OVERWRITE_IF };
enum { FILE_SUPERSEDED, FILE_OPENED, FILE_CREATED, FILE_OVERWRITTEN, FILE_EXISTS, FILE_MISSING };
enum { OPTION_DIRECTORY = 1, OPTION_SYNCHRONOUS = 0x30, OPTION_NOT_DIRECTORY = 0x40 };
enum { OPTION_DELETE_ON_CLOSE = 0x1000 };
enum { FILE_APPEND_DATA = 4, ANY_WRITE = 0x50000006 }; /* write and append data, generic write, all */
enum { ATTRIBUTE_READONLY = 1, ATTRIBUTE_DIRECTORY = 0x10, ATTRIBUTE_NORMAL = 0x80 };
enum { PATH_SIZE = 260 };

typedef struct _FCB { /* one for each file that is open, shared by its handles */
    LIST_ENTRY Link;
    FAT_FILE File;
    ULONG OpenCount;
    BOOLEAN DeletePending, Directory;
    CHAR Path[PATH_SIZE];
} FCB, *PFCB;
typedef struct _OPEN_FILE {
    PFCB Fcb;
    ULONG64 Position;
    ULONG Access, Options, Cursor; /* Cursor: of ZwQueryDirectoryFile */
    BOOLEAN Listed;
    CHAR Pattern[256];
} OPEN_FILE, *POPEN_FILE;

static void IopDeleteFileObject(PVOID Body);
static OBJECT_TYPE IopFileType = {"File", IopDeleteFileObject};
NTSYSAPI POBJECT_TYPE IoFileObjectType = &IopFileType;
static LIST_ENTRY IopOpenFiles = {&IopOpenFiles, &IopOpenFiles};
static KI_MUTEX IopFileLock = KI_MUTEX_FREE(IopFileLock);

/* -- names ------------------------------------------------------------------------------------ */
NTSTATUS IopVolumePath(PCSTR NtPath, PCHAR Path, ULONG Size) {
    static const struct {
        PCSTR Prefix, Folder;
    } Roots[] = {{"\\SystemRoot", "Windows\\"}, {"%SystemRoot%", "Windows\\"},
                 {"\\??\\C:", ""}, {"\\DosDevices\\C:", ""}, {"\\\\?\\C:", ""}, {"C:", ""},
                 {"\\Device\\HarddiskVolume1", ""}};
    PCSTR Folder = NULL, Rest = NtPath;
    for (ULONG i = 0; i < ARRAY_SIZE(Roots) && !Folder; i++) {
        SIZE_T Length = strlen(Roots[i].Prefix);
        if (RtlCompareTextInsensitiveN(NtPath, Roots[i].Prefix, Length) == 0 &&
            strchr("\\/", NtPath[Length])) { /* or the end: strchr finds the NUL */
            Folder = Roots[i].Folder;
            Rest = NtPath + Length;
        }
    }
    if (!Folder && (*NtPath == 0 || *NtPath == '\\' || strchr(NtPath, ':')))
        return STATUS_OBJECT_PATH_NOT_FOUND;
    while (*Rest == '\\' || *Rest == '/')
        Rest++;
    if (!Folder)
        Folder = "Windows\\"; /* as a service's ImagePath */
    if (strlen(Folder) + strlen(Rest) >= Size)
        return STATUS_OBJECT_NAME_INVALID;
    RtlFormat(Path, Size, "%s%s", Folder, Rest);
    for (PCHAR Text = Path; *Text; Text++) /* Win32 callers may use either slash */
        *Text = *Text == '/' ? '\\' : *Text;
    for (SIZE_T Length = strlen(Path); Length && Path[Length - 1] == '\\'; Length--)
        Path[Length - 1] = 0;
    return STATUS_SUCCESS;
}

static NTSTATUS IopNarrowName(PCUNICODE_STRING Name, PCHAR Text, SIZE_T Size) {
    for (ULONG i = 0; i < Name->Length / sizeof(WCHAR); i++)
        if (Name->Buffer[i] < ' ' || Name->Buffer[i] > '~') /* the volume's names are ASCII */
            return STATUS_OBJECT_NAME_INVALID;
    if (Name->Length / sizeof(WCHAR) >= Size)
        return STATUS_OBJECT_NAME_INVALID;
    RtlUnicodeToText(Name, Text, Size);
    return STATUS_SUCCESS;
}

NTSTATUS IopVolumePathFromUnicode(PCUNICODE_STRING NtPath, PCHAR Path, ULONG Size) {
    CHAR Text[PATH_SIZE];
    NTSTATUS Status = IopNarrowName(NtPath, Text, sizeof(Text));
    return NT_SUCCESS(Status) ? IopVolumePath(Text, Path, Size) : Status;
}

static NTSTATUS IopReferenceFile(HANDLE Handle, POPEN_FILE *Open) {
    return ObReferenceObjectByHandle(Handle, 0, IoFileObjectType, 0, (PVOID *)Open, NULL);
}

static NTSTATUS IopAttributesPath(POBJECT_ATTRIBUTES Attributes, PCHAR Path) {
    POPEN_FILE Root;
    if (!Attributes->RootDirectory)
        return IopVolumePathFromUnicode(Attributes->ObjectName, Path, PATH_SIZE);
    NTSTATUS Status = IopReferenceFile(Attributes->RootDirectory, &Root);
    if (!NT_SUCCESS(Status))
        return Status;
    SIZE_T Length = strlen(RtlCopyText(Path, PATH_SIZE - 1, Root->Fcb->Path));
    ObfDereferenceObject(Root);
    if (Length && Attributes->ObjectName->Length)
        Path[Length++] = '\\';
    return IopNarrowName(Attributes->ObjectName, Path + Length, PATH_SIZE - Length);
}

/* -- open and close --------------------------------------------------------------------------- */
/* The file's block, made when it is not open yet. The lock is held. */
static PFCB IopFindFcb(const FAT_FILE *File, PCSTR Path) {
    for (PLIST_ENTRY Link = IopOpenFiles.Flink; Link != &IopOpenFiles; Link = Link->Flink) {
        PFCB Fcb = CONTAINING_RECORD(Link, FCB, Link);
        if (Fcb->File.DirectoryCluster == File->DirectoryCluster &&
            Fcb->File.EntryIndex == File->EntryIndex)
            return Fcb;
    }
    PFCB Fcb = ExAllocatePool2(0x40, sizeof(FCB), 'bcF ');
    if (Fcb) {
        Fcb->File = *File;
        Fcb->Directory = (File->Attributes & ATTRIBUTE_DIRECTORY) != 0;
        RtlCopyText(Fcb->Path, sizeof(Fcb->Path), Path);
        InsertTailList(&IopOpenFiles, &Fcb->Link);
    }
    return Fcb;
}

static void IopDeleteFileObject(PVOID Body) {
    POPEN_FILE Open = Body;
    PFCB Fcb = Open->Fcb;
    if (!Fcb) /* it could not be opened */
        return;
    KiAcquireMutex(&IopFileLock);
    Fcb->DeletePending |= (Open->Options & OPTION_DELETE_ON_CLOSE) != 0;
    if (--Fcb->OpenCount == 0) {
        NTSTATUS Status = Fcb->DeletePending ? FatDelete(&Fcb->File) : STATUS_SUCCESS;
        if (!NT_SUCCESS(Status))
            DbgPrint("io: C:\\%s could not be deleted: status %08x\n", Fcb->Path, Status);
        RemoveEntryList(&Fcb->Link);
        KiFree(Fcb);
    }
    KiReleaseMutex(&IopFileLock);
}

static NTSTATUS IopOpenPath(PCSTR Path, POPEN_FILE Open, ULONG Disposition, ULONG_PTR *Action) {
    BOOLEAN Replace = Disposition == FILE_SUPERSEDE || Disposition >= FILE_OVERWRITE;
    BOOLEAN Make = Disposition != FILE_OPEN && Disposition != FILE_OVERWRITE;
    FAT_FILE File = {0};
    NTSTATUS Status = FatOpen(Path, &File);
    BOOLEAN Directory = (File.Attributes & ATTRIBUTE_DIRECTORY) != 0;
    *Action = NT_SUCCESS(Status) ? FILE_EXISTS : FILE_MISSING;
    if (Status == STATUS_OBJECT_NAME_NOT_FOUND && Make) {
        Status = FatCreate(Path, (Open->Options & OPTION_DIRECTORY) != 0, &File);
        Replace = FALSE;
        *Action = FILE_CREATED;
    } else if (NT_SUCCESS(Status)) {
        if (Disposition == FILE_CREATE || (Directory && Replace))
            Status = STATUS_OBJECT_NAME_COLLISION;
        else if (Directory && Open->Options & OPTION_NOT_DIRECTORY)
            Status = STATUS_FILE_IS_A_DIRECTORY;
        else if (!Directory && Open->Options & OPTION_DIRECTORY)
            Status = STATUS_NOT_A_DIRECTORY;
        else if (File.Attributes & ATTRIBUTE_READONLY && !Directory &&
                 (Replace || Open->Access & ANY_WRITE))
            Status = STATUS_ACCESS_DENIED;
        else
            *Action = Disposition == FILE_SUPERSEDE ? FILE_SUPERSEDED
                      : Replace                     ? FILE_OVERWRITTEN
                                                    : FILE_OPENED;
    }
    if (!NT_SUCCESS(Status))
        return Status;
    PFCB Fcb = IopFindFcb(&File, Path);
    if (!Fcb)
        return STATUS_INSUFFICIENT_RESOURCES;
    if (Fcb->DeletePending)
        return STATUS_DELETE_PENDING;
    Fcb->OpenCount++;
    Open->Fcb = Fcb; /* a failure from here on is undone when the object goes */
    return Replace ? FatSetSize(&Fcb->File, 0) : STATUS_SUCCESS;
}

NTSYSAPI NTSTATUS ZwCreateFile(PHANDLE Handle, ULONG Access, POBJECT_ATTRIBUTES Attributes,
                               PIO_STATUS_BLOCK Result, PLARGE_INTEGER AllocationSize,
                               ULONG FileAttributes, ULONG Share, ULONG Disposition, ULONG Options,
                               PVOID Ea, ULONG EaLength) {
    CHAR Path[PATH_SIZE];
    POPEN_FILE Open;
    UNREFERENCED(AllocationSize), UNREFERENCED(FileAttributes), UNREFERENCED(Share);
    UNREFERENCED(Ea), UNREFERENCED(EaLength);
    if (Disposition > FILE_OVERWRITE_IF || !Attributes || !Attributes->ObjectName)
        return STATUS_INVALID_PARAMETER;
    NTSTATUS Status = IopAttributesPath(Attributes, Path);
    if (NT_SUCCESS(Status))
        Status = ObCreateObject(IoFileObjectType, sizeof(OPEN_FILE), (PVOID *)&Open);
    if (!NT_SUCCESS(Status))
        return Status;
    Open->Access = Access;
    Open->Options = Options;
    KiAcquireMutex(&IopFileLock);
    Status = Result->Status = IopOpenPath(Path, Open, Disposition, &Result->Information);
    KiReleaseMutex(&IopFileLock);
    if (NT_SUCCESS(Status))
        return ObInsertObject(Open, Handle);
    ObfDereferenceObject(Open);
    return Status;
}

NTSYSAPI NTSTATUS ZwOpenFile(PHANDLE Handle, ULONG Access, POBJECT_ATTRIBUTES Attributes,
                             PIO_STATUS_BLOCK Result, ULONG Share, ULONG Options) {
    return ZwCreateFile(Handle, Access, Attributes, Result, NULL, 0, Share, FILE_OPEN, Options,
                        NULL, 0);
}

/* -- read and write --------------------------------------------------------------------------- */
static NTSTATUS IopFinish(POPEN_FILE Open, PIO_STATUS_BLOCK Result, NTSTATUS Status, ULONG Bytes) {
    KiReleaseMutex(&IopFileLock);
    ObfDereferenceObject(Open);
    Result->Status = Status;
    Result->Information = Bytes;
    return Status;
}

/* Makes the file at least `Size` long; what it grows by reads as zeros. */
static NTSTATUS IopExtend(PFAT_FILE File, ULONG64 Size) {
    static const UCHAR Zeros[4096];
    NTSTATUS Status = Size > 0xFFFFFFFF ? STATUS_DISK_FULL : STATUS_SUCCESS; /* FAT's limit */
    while (NT_SUCCESS(Status) && File->Size < Size) {
        ULONG Count, Piece = (ULONG)MIN(Size - File->Size, sizeof(Zeros));
        Status = FatWrite(File, File->Size, Zeros, Piece, &Count);
    }
    return Status;
}

/* Starts at the offset given; -1 is the end of file (writing), -2 or none at all the current
 * position, which only handles opened for synchronous use have. */
static NTSTATUS IopTransfer(HANDLE Handle, PVOID Apc, PIO_STATUS_BLOCK Result, PVOID Buffer,
                            ULONG Length, PLARGE_INTEGER Offset, BOOLEAN Write) {
    POPEN_FILE Open;
    LONG64 At = Offset ? Offset->QuadPart : -2;
    ULONG Count = 0;
    NTSTATUS Status = Apc ? STATUS_NOT_SUPPORTED : IopReferenceFile(Handle, &Open);
    if (!NT_SUCCESS(Status))
        return Status;
    PFAT_FILE File = &Open->Fcb->File;
    KiAcquireMutex(&IopFileLock);
    if (Write && (At == -1 || (Open->Access & ANY_WRITE) == FILE_APPEND_DATA))
        At = File->Size;
    else if (At == -2 && Open->Options & OPTION_SYNCHRONOUS)
        At = (LONG64)Open->Position;
    if (Open->Fcb->Directory)
        Status = STATUS_INVALID_DEVICE_REQUEST;
    else if (At < 0)
        Status = STATUS_INVALID_PARAMETER;
    else if (Length && Write)
        Status = IopExtend(File, (ULONG64)At + Length > 0xFFFFFFFF ? ~0ULL : (ULONG64)At);
    else if (Length && (ULONG64)At >= File->Size)
        Status = STATUS_END_OF_FILE;
    if (NT_SUCCESS(Status) && Length)
        Status = Write ? FatWrite(File, (ULONG)At, Buffer, Length, &Count)
                       : FatRead(File, (ULONG)At, Buffer, Length, &Count);
    if (NT_SUCCESS(Status))
        Open->Position = (ULONG64)At + Count;
    return IopFinish(Open, Result, Status, Count);
}

NTSYSAPI NTSTATUS ZwReadFile(HANDLE Handle, HANDLE Event, PVOID Apc, PVOID ApcContext,
                             PIO_STATUS_BLOCK Result, PVOID Buffer, ULONG Length,
                             PLARGE_INTEGER Offset, PULONG Key) {
    UNREFERENCED(ApcContext), UNREFERENCED(Key);
    return Event ? STATUS_INVALID_HANDLE
                 : IopTransfer(Handle, Apc, Result, Buffer, Length, Offset, FALSE);
}

NTSYSAPI NTSTATUS ZwWriteFile(HANDLE Handle, HANDLE Event, PVOID Apc, PVOID ApcContext,
                              PIO_STATUS_BLOCK Result, PVOID Buffer, ULONG Length,
                              PLARGE_INTEGER Offset, PULONG Key) {
    UNREFERENCED(ApcContext), UNREFERENCED(Key);
    return Event ? STATUS_INVALID_HANDLE
                 : IopTransfer(Handle, Apc, Result, Buffer, Length, Offset, TRUE);
}

/* -- information ------------------------------------------------------------------------------ */
typedef struct _FILE_NETWORK_OPEN_INFORMATION { /* begins like, and serves for, the basic one */
    LONG64 CreationTime, LastAccessTime, LastWriteTime, ChangeTime, AllocationSize, EndOfFile;
    ULONG FileAttributes;
} FILE_NETWORK_OPEN_INFORMATION;
typedef struct _FILE_STANDARD_INFORMATION {
    LONG64 AllocationSize, EndOfFile;
    ULONG NumberOfLinks;
    BOOLEAN DeletePending, Directory;
} FILE_STANDARD_INFORMATION;

static FILE_NETWORK_OPEN_INFORMATION IopDescribe(const FAT_FILE *File) {
    LONG64 Size = File->Attributes & ATTRIBUTE_DIRECTORY ? 0 : File->Size;
    return (FILE_NETWORK_OPEN_INFORMATION){
        File->CreateTime, File->WriteTime, /* FAT keeps no more of accesses than their day */
        File->WriteTime, File->WriteTime, (LONG64)ROUND_TO_PAGES(Size), Size,
        File->Attributes ? File->Attributes : ATTRIBUTE_NORMAL};
}

NTSYSAPI NTSTATUS ZwQueryInformationFile(HANDLE Handle, PIO_STATUS_BLOCK Result, PVOID Buffer,
                                         ULONG Length, FILE_INFORMATION_CLASS Class) {
    POPEN_FILE Open;
    NTSTATUS Status = IopReferenceFile(Handle, &Open);
    if (!NT_SUCCESS(Status))
        return Status;
    KiAcquireMutex(&IopFileLock);
    FILE_NETWORK_OPEN_INFORMATION Details = IopDescribe(&Open->Fcb->File);
    FILE_STANDARD_INFORMATION Standard = {Details.AllocationSize, Details.EndOfFile, 1,
                                          Open->Fcb->DeletePending, Open->Fcb->Directory};
    const void *Source = &Details;
    ULONG Size = sizeof(Details);
    if (Class == FileBasicInformation) {
        Details.AllocationSize = Details.FileAttributes; /* where the basic one has its attributes */
        Size = 40;
    } else if (Class == FileStandardInformation) {
        Source = &Standard;
        Size = sizeof(Standard);
    } else if (Class == FilePositionInformation) {
        Source = &Open->Position;
        Size = sizeof(Open->Position);
    } else if (Class != FileNetworkOpenInformation) {
        Status = STATUS_INVALID_INFO_CLASS;
    }
    if (NT_SUCCESS(Status) && Length < Size)
        Status = STATUS_INFO_LENGTH_MISMATCH;
    if (NT_SUCCESS(Status))
        memcpy(Buffer, Source, Size);
    return IopFinish(Open, Result, Status, NT_SUCCESS(Status) ? Size : 0);
}

static NTSTATUS IopSetDeletePending(PFCB Fcb, BOOLEAN Delete) {
    FAT_FILE Entry;
    ULONG Cursor = 0;
    if (Delete && (Fcb->File.Attributes & ATTRIBUTE_READONLY || !*Fcb->Path))
        return STATUS_CANNOT_DELETE;
    while (Delete && Fcb->Directory && NT_SUCCESS(FatReadDirectory(&Fcb->File, &Cursor, &Entry)))
        if (strcmp(Entry.Name, ".") != 0 && strcmp(Entry.Name, "..") != 0)
            return STATUS_DIRECTORY_NOT_EMPTY;
    Fcb->DeletePending = Delete;
    return STATUS_SUCCESS;
}

NTSYSAPI NTSTATUS ZwSetInformationFile(HANDLE Handle, PIO_STATUS_BLOCK Result, PVOID Buffer,
                                       ULONG Length, FILE_INFORMATION_CLASS Class) {
    POPEN_FILE Open;
    NTSTATUS Status = IopReferenceFile(Handle, &Open);
    if (!NT_SUCCESS(Status))
        return Status;
    PFAT_FILE File = &Open->Fcb->File;
    KiAcquireMutex(&IopFileLock);
    if (Length < (Class == FileDispositionInformation ? sizeof(BOOLEAN) : sizeof(LONG64)))
        Status = STATUS_INFO_LENGTH_MISMATCH;
    else if (Class == FileDispositionInformation)
        Status = IopSetDeletePending(Open->Fcb, *(PUCHAR)Buffer);
    else if (Class != FilePositionInformation && Class != FileEndOfFileInformation)
        Status = STATUS_INVALID_INFO_CLASS;
    else if (*(PLONG64)Buffer < 0 || Open->Fcb->Directory)
        Status = STATUS_INVALID_PARAMETER;
    else if (Class == FilePositionInformation)
        Open->Position = *(PULONG64)Buffer;
    else if (*(PULONG64)Buffer < File->Size)
        Status = FatSetSize(File, *(PULONG)Buffer);
    else
        Status = IopExtend(File, *(PULONG64)Buffer);
    return IopFinish(Open, Result, Status, 0);
}

/* -- directories ------------------------------------------------------------------------------ */
/* Case-blind match of a pattern with * and ?; recursion depth: the number of stars. */
static BOOLEAN IopMatches(PCSTR Pattern, PCSTR Name) {
    for (; *Pattern; Pattern++, Name++) {
        if (*Pattern == '*') {
            while (!IopMatches(Pattern + 1, Name))
                if (!*Name++)
                    return FALSE;
            return TRUE;
        }
        if (!*Name || (*Pattern != '?' && RtlCompareTextInsensitiveN(Pattern, Name, 1) != 0))
            return FALSE;
    }
    return *Name == 0;
}

/* Where the name starts in an entry of the class, 0 for one that is not of directories. */
static ULONG IopNameOffset(FILE_INFORMATION_CLASS Class) {
    return Class == FileDirectoryInformation       ? 64
           : Class == FileFullDirectoryInformation ? 68
           : Class == FileBothDirectoryInformation ? 94 /* short names are left out */
           : Class == FileNamesInformation         ? 12
                                                   : 0;
}

static void IopFillEntry(PUCHAR Entry, const FAT_FILE *File, FILE_INFORMATION_CLASS Class,
                         ULONG Room) {
    FILE_NETWORK_OPEN_INFORMATION Details = IopDescribe(File);
    ULONG Name = IopNameOffset(Class), Characters = (ULONG)strlen(File->Name);
    memset(Entry, 0, Name);
    if (Class != FileNamesInformation) {
        memcpy(Entry + 8, &Details, 4 * sizeof(LONG64)); /* the four times */
        *(PLONG64)(Entry + 40) = Details.EndOfFile;
        *(PLONG64)(Entry + 48) = Details.AllocationSize;
        *(PULONG)(Entry + 56) = Details.FileAttributes;
    }
    *(PULONG)(Entry + (Class == FileNamesInformation ? 8 : 60)) = Characters * sizeof(WCHAR);
    for (ULONG i = 0; i < Characters && Name + (i + 1) * sizeof(WCHAR) <= Room; i++)
        ((PWSTR)(Entry + Name))[i] = (UCHAR)File->Name[i];
}

static NTSTATUS IopListDirectory(POPEN_FILE Open, PUCHAR Buffer, ULONG Length,
                                 FILE_INFORMATION_CLASS Class, BOOLEAN Single, PULONG Used) {
    FAT_FILE Entry;
    for (ULONG Last = 0, Next = 0;; Next = (*Used + 7) & ~7U) {
        ULONG Cursor = Open->Cursor;
        NTSTATUS Status = FatReadDirectory(&Open->Fcb->File, &Open->Cursor, &Entry);
        if (!NT_SUCCESS(Status) && *Used)
            return STATUS_SUCCESS;
        if (!NT_SUCCESS(Status))
            return Status == STATUS_NO_MORE_FILES && !Open->Listed ? STATUS_NO_SUCH_FILE : Status;
        if (!IopMatches(Open->Pattern, Entry.Name))
            continue;
        ULONG Size = IopNameOffset(Class) + (ULONG)(strlen(Entry.Name) * sizeof(WCHAR));
        if (Next + Size > Length && *Used) {
            Open->Cursor = Cursor; /* comes first the next time */
            return STATUS_SUCCESS;
        }
        IopFillEntry(Buffer + Next, &Entry, Class, Length - Next);
        Open->Listed = TRUE;
        if (*Used)
            *(PULONG)(Buffer + Last) = Next - Last; /* NextEntryOffset */
        Last = Next;
        *Used = MIN(Next + Size, Length);
        if (Single || Next + Size > Length)
            return Next + Size > Length ? STATUS_BUFFER_OVERFLOW : STATUS_SUCCESS;
    }
}

NTSYSAPI NTSTATUS ZwQueryDirectoryFile(HANDLE Handle, HANDLE Event, PVOID Apc, PVOID ApcContext,
                                       PIO_STATUS_BLOCK Result, PVOID Buffer, ULONG Length,
                                       FILE_INFORMATION_CLASS Class, BOOLEAN Single,
                                       PUNICODE_STRING Pattern, BOOLEAN Restart) {
    POPEN_FILE Open;
    ULONG Used = 0;
    UNREFERENCED(ApcContext);
    NTSTATUS Status = Apc     ? STATUS_NOT_SUPPORTED
                      : Event ? STATUS_INVALID_HANDLE
                              : IopReferenceFile(Handle, &Open);
    if (!NT_SUCCESS(Status))
        return Status;
    KiAcquireMutex(&IopFileLock);
    if (!*Open->Pattern) { /* that of the first call stays */
        RtlCopyText(Open->Pattern, sizeof(Open->Pattern), "*");
        if (Pattern && Pattern->Length)
            Status = IopNarrowName(Pattern, Open->Pattern, sizeof(Open->Pattern));
    }
    if (Restart)
        Open->Cursor = 0;
    if (!Open->Fcb->Directory)
        Status = STATUS_INVALID_PARAMETER;
    else if (!IopNameOffset(Class))
        Status = STATUS_INVALID_INFO_CLASS;
    else if (Length < IopNameOffset(Class))
        Status = STATUS_INFO_LENGTH_MISMATCH;
    if (NT_SUCCESS(Status))
        Status = IopListDirectory(Open, Buffer, Length, Class, Single, &Used);
    return IopFinish(Open, Result, Status, Used);
}
