/* The Zw file calls over FAT32, as in the DDK (ntifs.h). Left out: sharing modes (every open shares
 * all), paths relative to a handle, events, APCs, most classes of information. */
#include "ob.h"

enum { FILE_SUPERSEDE, FILE_OPEN, FILE_CREATE, FILE_OPEN_IF, FILE_OVERWRITE, FILE_OVERWRITE_IF };
enum { FILE_SUPERSEDED, FILE_OPENED, FILE_CREATED, FILE_OVERWRITTEN, FILE_EXISTS, FILE_MISSING };
enum { DIRECTORY_FILE = 1, SYNCHRONOUS = 0x30, NON_DIRECTORY_FILE = 0x40 };
enum { DELETE_ON_CLOSE = 0x1000, PATH_SIZE = 260 };
enum { FILE_APPEND_DATA = 4, ANY_WRITE = 0x50000006 }; /* generic all and write, append, write */
enum { ATTRIBUTE_READONLY = 1, ATTRIBUTE_DIRECTORY = 0x10, ATTRIBUTE_NORMAL = 0x80 };

typedef struct _OPEN_FILE {
    FAT_FILE File;
    KI_MUTEX Lock; /* of what follows */
    ULONG64 Position;
    ULONG Access, Options, Cursor; /* Cursor: of ZwQueryDirectoryFile */
    BOOLEAN DeletePending, Directory, Listed;
    CHAR Path[PATH_SIZE], Pattern[256];
} OPEN_FILE, *POPEN_FILE;
typedef struct _FILE_STANDARD_INFORMATION {
    LONG64 AllocationSize, EndOfFile;
    ULONG NumberOfLinks;
    BOOLEAN DeletePending, Directory;
} FILE_STANDARD_INFORMATION;
typedef struct _FILE_DIRECTORY_INFORMATION {
    ULONG NextEntryOffset, FileIndex;
    LONG64 CreationTime, LastAccessTime, LastWriteTime, ChangeTime, EndOfFile, AllocationSize;
    ULONG FileAttributes, FileNameLength;
    WCHAR FileName[];
} FILE_DIRECTORY_INFORMATION, *PFILE_DIRECTORY_INFORMATION;

static void IopDeleteFileObject(PVOID Body) {
    POPEN_FILE Open = Body;
    if (Open->DeletePending && !NT_SUCCESS(FatDelete(&Open->File)))
        DbgPrint("io: C:\\%s could not be deleted\n", Open->Path);
}

NTSYSAPI POBJECT_TYPE IoFileObjectType = &(OBJECT_TYPE){"File", IopDeleteFileObject};

/* Opens or makes what Open->Path names; *Action says which. */
static NTSTATUS IopOpenPath(POPEN_FILE Open, ULONG Disposition, ULONG_PTR *Action) {
    BOOLEAN Replace = Disposition == FILE_SUPERSEDE || Disposition >= FILE_OVERWRITE;
    BOOLEAN Make = Disposition != FILE_OPEN && Disposition != FILE_OVERWRITE;
    PFAT_FILE File = &Open->File;
    NTSTATUS Status = FatOpen(Open->Path, File);
    *Action = NT_SUCCESS(Status) ? FILE_EXISTS : FILE_MISSING;
    if (Status == STATUS_OBJECT_NAME_NOT_FOUND && Make) {
        *Action = FILE_CREATED;
        return FatCreate(Open->Path, (Open->Options & DIRECTORY_FILE) != 0, File);
    }
    TRY(Status);
    BOOLEAN Directory = (File->Attributes & ATTRIBUTE_DIRECTORY) != 0;
    if (Disposition == FILE_CREATE || (Directory && Replace)) return STATUS_OBJECT_NAME_COLLISION;
    if (Directory && Open->Options & NON_DIRECTORY_FILE) return STATUS_FILE_IS_A_DIRECTORY;
    if (!Directory && Open->Options & DIRECTORY_FILE) return STATUS_NOT_A_DIRECTORY;
    if (File->Attributes & ATTRIBUTE_READONLY && (Replace || Open->Access & ANY_WRITE))
        return STATUS_ACCESS_DENIED;
    *Action = !Replace ? FILE_OPENED : Disposition ? FILE_OVERWRITTEN : FILE_SUPERSEDED;
    return Replace ? FatSetSize(File, 0) : STATUS_SUCCESS;
}

NTSYSAPI NTSTATUS ZwCreateFile(PHANDLE Handle, ULONG Access, POBJECT_ATTRIBUTES Attributes,
    PIO_STATUS_BLOCK Result, PLARGE_INTEGER AllocationSize, ULONG FileAttributes, ULONG Share,
    ULONG Disposition, ULONG Options, PVOID Ea, ULONG EaLength) {
    POPEN_FILE Open;
    UNREFERENCED(AllocationSize), UNREFERENCED(FileAttributes), UNREFERENCED(Share);
    UNREFERENCED(Ea), UNREFERENCED(EaLength);
    if (Disposition > FILE_OVERWRITE_IF) return STATUS_INVALID_PARAMETER;
    if (Attributes->RootDirectory) return STATUS_NOT_SUPPORTED;
    TRY(ObCreateObject(IoFileObjectType, sizeof(OPEN_FILE), (PVOID *)&Open));
    Open->Access = Access;
    Open->Options = Options;
    NTSTATUS Status = IopVolumePathFromUnicode(Attributes->ObjectName, Open->Path, PATH_SIZE);
    if (NT_SUCCESS(Status)) Status = IopOpenPath(Open, Disposition, &Result->Information);
    Result->Status = Status;
    if (!NT_SUCCESS(Status)) ObfDereferenceObject(Open);
    TRY(Status);
    Open->Directory = (Open->File.Attributes & ATTRIBUTE_DIRECTORY) != 0;
    Open->DeletePending = (Options & DELETE_ON_CLOSE) != 0;
    return ObInsertObject(Open, Handle);
}

NTSYSAPI NTSTATUS ZwOpenFile(PHANDLE Handle, ULONG Access, POBJECT_ATTRIBUTES Attributes,
    PIO_STATUS_BLOCK Result, ULONG Share, ULONG Options) {
    return ZwCreateFile(
        Handle, Access, Attributes, Result, NULL, 0, Share, FILE_OPEN, Options, NULL, 0);
}

static NTSTATUS IopFinish(POPEN_FILE Open, PIO_STATUS_BLOCK Result, NTSTATUS Status, ULONG Bytes) {
    KiReleaseMutex(&Open->Lock);
    ObfDereferenceObject(Open);
    Result->Status = Status;
    Result->Information = Bytes;
    return Status;
}

/* The file as it is now: another handle may have changed it. To be followed by IopFinish. */
static NTSTATUS IopStart(
    HANDLE Handle, HANDLE Event, PVOID Apc, PIO_STATUS_BLOCK Result, POPEN_FILE *Open) {
    ULONG Count;
    if (Event || Apc) return STATUS_NOT_SUPPORTED;
    TRY(ObReferenceObjectByHandle(Handle, 0, IoFileObjectType, 0, (PVOID *)Open, NULL));
    KiAcquireMutex(&(*Open)->Lock);
    if ((*Open)->Directory) return STATUS_SUCCESS;
    NTSTATUS Status = FatWrite(&(*Open)->File, 0, NULL, 0, &Count);
    return NT_SUCCESS(Status) ? Status : IopFinish(*Open, Result, Status, 0);
}

/* Starts at the offset given; -1 is the end of file (writing), -2 or none at all the current
 * position, which only handles opened for synchronous use have. */
static NTSTATUS IopTransfer(POPEN_FILE Open, PVOID Buffer, ULONG Length, PLARGE_INTEGER Offset,
    BOOLEAN Write, PULONG Count) {
    LONG64 At = Offset ? Offset->QuadPart : -2;
    if (Open->Directory) return STATUS_INVALID_DEVICE_REQUEST;
    if (Write && (At == -1 || (Open->Access & ANY_WRITE) == FILE_APPEND_DATA))
        At = Open->File.Size;
    else if (At == -2 && Open->Options & SYNCHRONOUS)
        At = (LONG64)Open->Position;
    if (At < 0) return STATUS_INVALID_PARAMETER;
    if (!Length) return STATUS_SUCCESS;
    if (!Write && At >= Open->File.Size) return STATUS_END_OF_FILE;
    if (At + Length > 0xFFFFFFFF) return STATUS_DISK_FULL; /* FAT's largest file */
    NTSTATUS Status = Write ? FatWrite(&Open->File, (ULONG)At, Buffer, Length, Count)
                            : FatRead(&Open->File, (ULONG)At, Buffer, Length, Count);
    Open->Position = (ULONG64)At + *Count;
    return Status;
}

NTSYSAPI NTSTATUS ZwReadFile(HANDLE Handle, HANDLE Event, PVOID Apc, PVOID ApcContext,
    PIO_STATUS_BLOCK Result, PVOID Buffer, ULONG Length, PLARGE_INTEGER Offset, PULONG Key) {
    POPEN_FILE Open;
    ULONG Count = 0;
    UNREFERENCED(ApcContext), UNREFERENCED(Key);
    TRY(IopStart(Handle, Event, Apc, Result, &Open));
    NTSTATUS Status = IopTransfer(Open, Buffer, Length, Offset, FALSE, &Count);
    return IopFinish(Open, Result, Status, Count);
}

NTSYSAPI NTSTATUS ZwWriteFile(HANDLE Handle, HANDLE Event, PVOID Apc, PVOID ApcContext,
    PIO_STATUS_BLOCK Result, PVOID Buffer, ULONG Length, PLARGE_INTEGER Offset, PULONG Key) {
    POPEN_FILE Open;
    ULONG Count = 0;
    UNREFERENCED(ApcContext), UNREFERENCED(Key);
    TRY(IopStart(Handle, Event, Apc, Result, &Open));
    NTSTATUS Status = IopTransfer(Open, Buffer, Length, Offset, TRUE, &Count);
    return IopFinish(Open, Result, Status, Count);
}

NTSYSAPI NTSTATUS ZwQueryInformationFile(HANDLE Handle, PIO_STATUS_BLOCK Result, PVOID Buffer,
    ULONG Length, FILE_INFORMATION_CLASS Class) {
    POPEN_FILE Open;
    FILE_STANDARD_INFORMATION *Information = Buffer;
    if (Class != FileStandardInformation) return STATUS_INVALID_INFO_CLASS;
    if (Length < sizeof(*Information)) return STATUS_INFO_LENGTH_MISMATCH;
    TRY(IopStart(Handle, NULL, NULL, Result, &Open));
    *Information = (FILE_STANDARD_INFORMATION){(LONG64)ROUND_TO_PAGES(Open->File.Size),
        Open->File.Size, 1, Open->DeletePending, Open->Directory};
    return IopFinish(Open, Result, STATUS_SUCCESS, sizeof(*Information));
}

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

static NTSTATUS IopNextEntry(
    POPEN_FILE Open, PFILE_DIRECTORY_INFORMATION Entry, ULONG Length, PULONG Used) {
    FAT_FILE File;
    do {
        NTSTATUS Status = FatReadDirectory(&Open->File, &Open->Cursor, &File);
        if (Status == STATUS_NO_MORE_FILES && !Open->Listed) return STATUS_NO_SUCH_FILE;
        TRY(Status);
    } while (*Open->Pattern && !IopMatches(Open->Pattern, File.Name));
    ULONG Characters = (ULONG)strlen(File.Name);
    /* FAT keeps no more of accesses than their day, and nothing of changes. */
    *Entry = (FILE_DIRECTORY_INFORMATION){0, 0, File.CreateTime, File.WriteTime, File.WriteTime,
        File.WriteTime, File.Size, (LONG64)ROUND_TO_PAGES(File.Size),
        File.Attributes ? File.Attributes : ATTRIBUTE_NORMAL, Characters * sizeof(WCHAR)};
    Open->Listed = TRUE;
    ULONG Fitting = MIN(Characters, (Length - sizeof(*Entry)) / sizeof(WCHAR));
    for (ULONG i = 0; i < Fitting; i++) Entry->FileName[i] = (UCHAR)File.Name[i];
    *Used = sizeof(*Entry) + Fitting * sizeof(WCHAR);
    return Fitting < Characters ? STATUS_BUFFER_OVERFLOW : STATUS_SUCCESS;
}

/* One entry a call, also where more would fit: callers go on until there are no more files. */
NTSYSAPI NTSTATUS ZwQueryDirectoryFile(HANDLE Handle, HANDLE Event, PVOID Apc, PVOID ApcContext,
    PIO_STATUS_BLOCK Result, PVOID Buffer, ULONG Length, FILE_INFORMATION_CLASS Class,
    BOOLEAN Single, PUNICODE_STRING Pattern, BOOLEAN Restart) {
    POPEN_FILE Open;
    ULONG Used = 0;
    UNREFERENCED(ApcContext), UNREFERENCED(Single);
    if (Class != FileDirectoryInformation) return STATUS_INVALID_INFO_CLASS;
    if (Length < sizeof(FILE_DIRECTORY_INFORMATION)) return STATUS_INFO_LENGTH_MISMATCH;
    TRY(IopStart(Handle, Event, Apc, Result, &Open));
    if (!*Open->Pattern && Pattern) /* the first one given stays */
        RtlUnicodeToText(Pattern, Open->Pattern, sizeof(Open->Pattern));
    if (Restart) Open->Cursor = 0;
    NTSTATUS Status =
        Open->Directory ? IopNextEntry(Open, Buffer, Length, &Used) : STATUS_INVALID_PARAMETER;
    return IopFinish(Open, Result, Status, Used);
}
