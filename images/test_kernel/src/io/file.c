/* The Zw file calls over FAT32, with the structures and status codes of the DDK (ntifs.h). Left
 * out: sharing modes (every open shares all), events and APCs at completion, extended attributes; a
 * file marked for deletion goes with the handle that marked it, not with the last one. */
#include "ob.h"

enum { FILE_SUPERSEDE, FILE_OPEN, FILE_CREATE, FILE_OPEN_IF, FILE_OVERWRITE, FILE_OVERWRITE_IF };
enum { FILE_SUPERSEDED, FILE_OPENED, FILE_CREATED, FILE_OVERWRITTEN, FILE_EXISTS, FILE_MISSING };
enum { OPTION_DIRECTORY = 1, OPTION_SYNCHRONOUS = 0x30, OPTION_NOT_DIRECTORY = 0x40 };
enum { OPTION_DELETE_ON_CLOSE = 0x1000 };
enum { FILE_APPEND_DATA = 4, ANY_WRITE = 0x50000006 }; /* generic all and write, append, write */
enum { ATTRIBUTE_READONLY = 1, ATTRIBUTE_DIRECTORY = 0x10, ATTRIBUTE_NORMAL = 0x80 };
enum { PATH_SIZE = 260 };

typedef struct _OPEN_FILE {
    FAT_FILE File;
    KI_MUTEX Lock; /* of what follows */
    ULONG64 Position;
    ULONG Access, Options, Cursor; /* Cursor: of ZwQueryDirectoryFile */
    BOOLEAN DeletePending, Directory, Listed;
    CHAR Path[PATH_SIZE], Pattern[256];
} OPEN_FILE, *POPEN_FILE;

/* -- open and close --------------------------------------------------------------------------- */
static void IopDeleteFileObject(PVOID Body) {
    POPEN_FILE Open = Body;
    NTSTATUS Status = Open->DeletePending ? FatDelete(&Open->File) : STATUS_SUCCESS;
    if (!NT_SUCCESS(Status))
        DbgPrint("io: C:\\%s could not be deleted: status %08x\n", Open->Path, Status);
}

static OBJECT_TYPE IopFileType = {"File", IopDeleteFileObject};
NTSYSAPI POBJECT_TYPE IoFileObjectType = &IopFileType;

static NTSTATUS IopReferenceFile(HANDLE Handle, POPEN_FILE *Open) {
    return ObReferenceObjectByHandle(Handle, 0, IoFileObjectType, 0, (PVOID *)Open, NULL);
}

static NTSTATUS IopAttributesPath(POBJECT_ATTRIBUTES Attributes, PCHAR Path) {
    POPEN_FILE Root;
    if (!Attributes->RootDirectory)
        return IopVolumePathFromUnicode(Attributes->ObjectName, Path, PATH_SIZE);
    NTSTATUS Status = IopReferenceFile(Attributes->RootDirectory, &Root);
    if (!NT_SUCCESS(Status)) return Status;
    SIZE_T Length = strlen(RtlCopyText(Path, PATH_SIZE - 1, Root->Path));
    ObfDereferenceObject(Root);
    Path[Length++] = '\\';
    if (Attributes->ObjectName->Length / sizeof(WCHAR) >= PATH_SIZE - Length)
        return STATUS_OBJECT_NAME_INVALID;
    RtlUnicodeToText(Attributes->ObjectName, Path + Length, PATH_SIZE - Length);
    return STATUS_SUCCESS;
}

/* Opens or makes what Open->Path names; *Action says which. */
static NTSTATUS IopOpenPath(POPEN_FILE Open, ULONG Disposition, ULONG_PTR *Action) {
    BOOLEAN Replace = Disposition == FILE_SUPERSEDE || Disposition >= FILE_OVERWRITE;
    BOOLEAN Make = Disposition != FILE_OPEN && Disposition != FILE_OVERWRITE;
    PFAT_FILE File = &Open->File;
    NTSTATUS Status = FatOpen(Open->Path, File);
    *Action = NT_SUCCESS(Status) ? FILE_EXISTS : FILE_MISSING;
    if (Status == STATUS_OBJECT_NAME_NOT_FOUND && Make) {
        Status = FatCreate(Open->Path, (Open->Options & OPTION_DIRECTORY) != 0, File);
        Replace = FALSE;
        *Action = FILE_CREATED;
    }
    if (!NT_SUCCESS(Status)) return Status;
    Open->Directory = (File->Attributes & ATTRIBUTE_DIRECTORY) != 0;
    if (*Action == FILE_CREATED) return STATUS_SUCCESS;
    if (Disposition == FILE_CREATE || (Open->Directory && Replace))
        return STATUS_OBJECT_NAME_COLLISION;
    if (Open->Directory && Open->Options & OPTION_NOT_DIRECTORY) return STATUS_FILE_IS_A_DIRECTORY;
    if (!Open->Directory && Open->Options & OPTION_DIRECTORY) return STATUS_NOT_A_DIRECTORY;
    if (File->Attributes & ATTRIBUTE_READONLY && (Replace || Open->Access & ANY_WRITE))
        return STATUS_ACCESS_DENIED;
    *Action = Disposition == FILE_SUPERSEDE ? FILE_SUPERSEDED
              : Replace                     ? FILE_OVERWRITTEN
                                            : FILE_OPENED;
    return Replace ? FatSetSize(File, 0) : STATUS_SUCCESS;
}

NTSYSAPI NTSTATUS ZwCreateFile(PHANDLE Handle, ULONG Access, POBJECT_ATTRIBUTES Attributes,
    PIO_STATUS_BLOCK Result, PLARGE_INTEGER AllocationSize, ULONG FileAttributes, ULONG Share,
    ULONG Disposition, ULONG Options, PVOID Ea, ULONG EaLength) {
    POPEN_FILE Open;
    UNREFERENCED(AllocationSize), UNREFERENCED(FileAttributes), UNREFERENCED(Share);
    UNREFERENCED(Ea), UNREFERENCED(EaLength);
    if (Disposition > FILE_OVERWRITE_IF || !Attributes || !Attributes->ObjectName)
        return STATUS_INVALID_PARAMETER;
    NTSTATUS Status = ObCreateObject(IoFileObjectType, sizeof(OPEN_FILE), (PVOID *)&Open);
    if (!NT_SUCCESS(Status)) return Status;
    Open->Access = Access;
    Open->Options = Options;
    Status = IopAttributesPath(Attributes, Open->Path);
    if (NT_SUCCESS(Status)) Status = IopOpenPath(Open, Disposition, &Result->Information);
    Result->Status = Status;
    if (!NT_SUCCESS(Status)) {
        ObfDereferenceObject(Open);
        return Status;
    }
    Open->DeletePending = (Options & OPTION_DELETE_ON_CLOSE) != 0;
    return ObInsertObject(Open, Handle);
}

NTSYSAPI NTSTATUS ZwOpenFile(PHANDLE Handle, ULONG Access, POBJECT_ATTRIBUTES Attributes,
    PIO_STATUS_BLOCK Result, ULONG Share, ULONG Options) {
    return ZwCreateFile(
        Handle, Access, Attributes, Result, NULL, 0, Share, FILE_OPEN, Options, NULL, 0);
}

/* -- read and write --------------------------------------------------------------------------- */
static NTSTATUS IopStart(HANDLE Handle, HANDLE Event, PVOID Apc, POPEN_FILE *Open) {
    NTSTATUS Status = Event ? STATUS_INVALID_HANDLE : Apc ? STATUS_NOT_SUPPORTED : STATUS_SUCCESS;
    if (NT_SUCCESS(Status)) Status = IopReferenceFile(Handle, Open);
    if (NT_SUCCESS(Status)) KiAcquireMutex(&(*Open)->Lock);
    return Status;
}

static NTSTATUS IopFinish(POPEN_FILE Open, PIO_STATUS_BLOCK Result, NTSTATUS Status, ULONG Bytes) {
    KiReleaseMutex(&Open->Lock);
    ObfDereferenceObject(Open);
    Result->Status = Status;
    Result->Information = Bytes;
    return Status;
}

/* The file as it is now: another handle may have changed it. */
static NTSTATUS IopRefresh(POPEN_FILE Open) {
    ULONG Count;
    return Open->Directory ? STATUS_SUCCESS : FatWrite(&Open->File, 0, NULL, 0, &Count);
}

/* Starts at the offset given; -1 is the end of file (writing), -2 or none at all the current
 * position, which only handles opened for synchronous use have. */
static NTSTATUS IopTransfer(POPEN_FILE Open, PVOID Buffer, ULONG Length, PLARGE_INTEGER Offset,
    BOOLEAN Write, PULONG Count) {
    LONG64 At = Offset ? Offset->QuadPart : -2;
    NTSTATUS Status = IopRefresh(Open);
    if (Write && (At == -1 || (Open->Access & ANY_WRITE) == FILE_APPEND_DATA))
        At = Open->File.Size;
    else if (At == -2 && Open->Options & OPTION_SYNCHRONOUS)
        At = (LONG64)Open->Position;
    if (Open->Directory) return STATUS_INVALID_DEVICE_REQUEST;
    if (At < 0) return STATUS_INVALID_PARAMETER;
    if (!NT_SUCCESS(Status) || !Length) return Status;
    if (!Write && At >= Open->File.Size) return STATUS_END_OF_FILE;
    if (At + Length > 0xFFFFFFFF) /* FAT's largest file */
        return STATUS_DISK_FULL;
    Status = Write ? FatWrite(&Open->File, (ULONG)At, Buffer, Length, Count)
                   : FatRead(&Open->File, (ULONG)At, Buffer, Length, Count);
    Open->Position = (ULONG64)At + *Count;
    return Status;
}

NTSYSAPI NTSTATUS ZwReadFile(HANDLE Handle, HANDLE Event, PVOID Apc, PVOID ApcContext,
    PIO_STATUS_BLOCK Result, PVOID Buffer, ULONG Length, PLARGE_INTEGER Offset, PULONG Key) {
    POPEN_FILE Open;
    ULONG Count = 0;
    UNREFERENCED(ApcContext), UNREFERENCED(Key);
    NTSTATUS Status = IopStart(Handle, Event, Apc, &Open);
    if (!NT_SUCCESS(Status)) return Status;
    Status = IopTransfer(Open, Buffer, Length, Offset, FALSE, &Count);
    return IopFinish(Open, Result, Status, Count);
}

NTSYSAPI NTSTATUS ZwWriteFile(HANDLE Handle, HANDLE Event, PVOID Apc, PVOID ApcContext,
    PIO_STATUS_BLOCK Result, PVOID Buffer, ULONG Length, PLARGE_INTEGER Offset, PULONG Key) {
    POPEN_FILE Open;
    ULONG Count = 0;
    UNREFERENCED(ApcContext), UNREFERENCED(Key);
    NTSTATUS Status = IopStart(Handle, Event, Apc, &Open);
    if (!NT_SUCCESS(Status)) return Status;
    Status = IopTransfer(Open, Buffer, Length, Offset, TRUE, &Count);
    return IopFinish(Open, Result, Status, Count);
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
    return (FILE_NETWORK_OPEN_INFORMATION){File->CreateTime,
        File->WriteTime, /* FAT keeps no more of accesses than their day */
        File->WriteTime, File->WriteTime, (LONG64)ROUND_TO_PAGES(Size), Size,
        File->Attributes ? File->Attributes : ATTRIBUTE_NORMAL};
}

NTSYSAPI NTSTATUS ZwQueryInformationFile(HANDLE Handle, PIO_STATUS_BLOCK Result, PVOID Buffer,
    ULONG Length, FILE_INFORMATION_CLASS Class) {
    POPEN_FILE Open;
    NTSTATUS Status = IopStart(Handle, NULL, NULL, &Open);
    if (!NT_SUCCESS(Status)) return Status;
    Status = IopRefresh(Open);
    FILE_NETWORK_OPEN_INFORMATION Details = IopDescribe(&Open->File);
    FILE_STANDARD_INFORMATION Standard = {
        Details.AllocationSize, Details.EndOfFile, 1, Open->DeletePending, Open->Directory};
    const void *Source = &Details;
    ULONG Size = sizeof(Details);
    if (Class == FileBasicInformation) {
        Details.AllocationSize =
            Details.FileAttributes; /* where the basic one has its attributes */
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
    if (NT_SUCCESS(Status) && Length < Size) Status = STATUS_INFO_LENGTH_MISMATCH;
    if (NT_SUCCESS(Status)) memcpy(Buffer, Source, Size);
    return IopFinish(Open, Result, Status, NT_SUCCESS(Status) ? Size : 0);
}

static NTSTATUS IopSetDeletePending(POPEN_FILE Open, BOOLEAN Delete) {
    FAT_FILE Entry;
    ULONG Cursor = 0;
    if (Delete && (Open->File.Attributes & ATTRIBUTE_READONLY || !*Open->Path))
        return STATUS_CANNOT_DELETE;
    if (Delete && Open->Directory && NT_SUCCESS(FatReadDirectory(&Open->File, &Cursor, &Entry)))
        return STATUS_DIRECTORY_NOT_EMPTY;
    Open->DeletePending = Delete;
    return STATUS_SUCCESS;
}

static NTSTATUS IopSetEndOfFile(POPEN_FILE Open, ULONG64 Size) {
    static const UCHAR Zero;
    ULONG Count;
    NTSTATUS Status = IopRefresh(Open);
    if (!NT_SUCCESS(Status) || Size > 0xFFFFFFFF)
        return NT_SUCCESS(Status) ? STATUS_DISK_FULL : Status;
    if (Size > Open->File.Size) /* what the file grows by reads as zeros */
        return FatWrite(&Open->File, (ULONG)Size - 1, &Zero, 1, &Count);
    return FatSetSize(&Open->File, (ULONG)Size);
}

NTSYSAPI NTSTATUS ZwSetInformationFile(HANDLE Handle, PIO_STATUS_BLOCK Result, PVOID Buffer,
    ULONG Length, FILE_INFORMATION_CLASS Class) {
    POPEN_FILE Open;
    NTSTATUS Status = IopStart(Handle, NULL, NULL, &Open);
    if (!NT_SUCCESS(Status)) return Status;
    if (Length < (Class == FileDispositionInformation ? sizeof(BOOLEAN) : sizeof(LONG64)))
        Status = STATUS_INFO_LENGTH_MISMATCH;
    else if (Class == FileDispositionInformation)
        Status = IopSetDeletePending(Open, *(PUCHAR)Buffer);
    else if (Class != FilePositionInformation && Class != FileEndOfFileInformation)
        Status = STATUS_INVALID_INFO_CLASS;
    else if (*(PLONG64)Buffer < 0 || Open->Directory)
        Status = STATUS_INVALID_PARAMETER;
    else if (Class == FilePositionInformation)
        Open->Position = *(PULONG64)Buffer;
    else
        Status = IopSetEndOfFile(Open, *(PULONG64)Buffer);
    return IopFinish(Open, Result, Status, 0);
}

/* -- directories ------------------------------------------------------------------------------ */
/* Case-blind match of a pattern with * and ?; recursion depth: the number of stars. */
static BOOLEAN IopMatches(PCSTR Pattern, PCSTR Name) {
    for (; *Pattern; Pattern++, Name++) {
        if (*Pattern == '*') {
            while (!IopMatches(Pattern + 1, Name))
                if (!*Name++) return FALSE;
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

static void IopFillEntry(
    PUCHAR Entry, const FAT_FILE *File, FILE_INFORMATION_CLASS Class, ULONG Room) {
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
        NTSTATUS Status = FatReadDirectory(&Open->File, &Open->Cursor, &Entry);
        if (!NT_SUCCESS(Status) && *Used) return STATUS_SUCCESS;
        if (!NT_SUCCESS(Status))
            return Status == STATUS_NO_MORE_FILES && !Open->Listed ? STATUS_NO_SUCH_FILE : Status;
        if (!IopMatches(Open->Pattern, Entry.Name)) continue;
        ULONG Size = IopNameOffset(Class) + (ULONG)(strlen(Entry.Name) * sizeof(WCHAR));
        if (Next + Size > Length && *Used) {
            Open->Cursor = Cursor; /* comes first the next time */
            return STATUS_SUCCESS;
        }
        IopFillEntry(Buffer + Next, &Entry, Class, Length - Next);
        Open->Listed = TRUE;
        if (*Used) *(PULONG)(Buffer + Last) = Next - Last; /* NextEntryOffset */
        Last = Next;
        *Used = MIN(Next + Size, Length);
        if (Single || Next + Size > Length)
            return Next + Size > Length ? STATUS_BUFFER_OVERFLOW : STATUS_SUCCESS;
    }
}

NTSYSAPI NTSTATUS ZwQueryDirectoryFile(HANDLE Handle, HANDLE Event, PVOID Apc, PVOID ApcContext,
    PIO_STATUS_BLOCK Result, PVOID Buffer, ULONG Length, FILE_INFORMATION_CLASS Class,
    BOOLEAN Single, PUNICODE_STRING Pattern, BOOLEAN Restart) {
    POPEN_FILE Open;
    ULONG Used = 0;
    UNREFERENCED(ApcContext);
    NTSTATUS Status = IopStart(Handle, Event, Apc, &Open);
    if (!NT_SUCCESS(Status)) return Status;
    if (!*Open->Pattern) { /* that of the first call stays */
        RtlCopyText(Open->Pattern, sizeof(Open->Pattern), "*");
        if (Pattern && Pattern->Length)
            RtlUnicodeToText(Pattern, Open->Pattern, sizeof(Open->Pattern));
    }
    if (Restart) Open->Cursor = 0;
    if (!Open->Directory)
        Status = STATUS_INVALID_PARAMETER;
    else if (!IopNameOffset(Class))
        Status = STATUS_INVALID_INFO_CLASS;
    else if (Length < IopNameOffset(Class))
        Status = STATUS_INFO_LENGTH_MISMATCH;
    if (NT_SUCCESS(Status)) Status = IopListDirectory(Open, Buffer, Length, Class, Single, &Used);
    return IopFinish(Open, Result, Status, Used);
}
