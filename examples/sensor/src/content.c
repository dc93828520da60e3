// Finds, reads, checks and publishes content files.
#include "sensor.h"

#define CONTENT_DIRECTORY L"\\SystemRoot\\System32\\drivers\\Sensor"
#define CONTENT_PREFIX    L"C-00000291-"
#define CONTENT_PATTERN   CONTENT_PREFIX L"*.sys"

static const struct {
    USHORT Type;
    USHORT LeastCriteria;
    USHORT FieldCount;
} Templates[] = {
    {TEMPLATE_PROCESS, 1, PROCESS_FIELDS_DEFINED},
    {TEMPLATE_RATE, 2, 2},
    {TEMPLATE_OWNER, 2, 2},
    {TEMPLATE_BURST, 1, 1},
};

static KSPIN_LOCK ContentLock; // guards CurrentContent, for as long as it takes to reference it
static PSENSOR_CONTENT CurrentContent;
static CONTENT_FILE LastSeen; // loaded or refused; only the worker thread, after DriverEntry

VOID InitializeContent(VOID) {
    KeInitializeSpinLock(&ContentLock);
}

// The current content if it is of the template type, to be released; NULL where it is not.
PSENSOR_CONTENT AcquireContent(USHORT TemplateType) {
    KIRQL Irql;
    KeAcquireSpinLock(&ContentLock, &Irql);
    PSENSOR_CONTENT Content = CurrentContent;
    if (Content != NULL && Content->Header.TemplateType != TemplateType)
        Content = NULL;
    if (Content != NULL)
        InterlockedIncrement(&Content->References);
    KeReleaseSpinLock(&ContentLock, Irql);
    return Content;
}

VOID ReleaseContent(PSENSOR_CONTENT Content) {
    if (InterlockedDecrement(&Content->References) != 0)
        return;
    FreeRateWindows(Content);
    ExFreePoolWithTag(Content, SENSOR_TAG);
}

static VOID PublishContent(PSENSOR_CONTENT Content) {
    KIRQL Irql;
    KeAcquireSpinLock(&ContentLock, &Irql);
    PSENSOR_CONTENT Previous = CurrentContent;
    CurrentContent = Content;
    KeReleaseSpinLock(&ContentLock, Irql);
    if (Previous != NULL)
        ReleaseContent(Previous);
}

VOID DiscardContent(VOID) {
    PublishContent(NULL);
}

// Whether a criterion's value has the length its operator asks for.
static BOOLEAN ValueFits(const CONTENT_CRITERION *Criterion) {
    switch (Criterion->Operator) {
    case CRITERION_WILDCARD:
        return Criterion->ValueLength == 0;
    case CRITERION_EQUALS:
    case CRITERION_PREFIX:
        return Criterion->ValueLength % sizeof(WCHAR) == 0;
    case CRITERION_NUMBER:
        return Criterion->ValueLength == sizeof(ULONG64);
    }
    return FALSE;
}

static PCSTR CheckInstances(const CONTENT_HEADER *Header, ULONG LeastCriteria, ULONG FieldCount) {
    const UCHAR *Cursor = (const UCHAR *)(Header + 1);
    const UCHAR *End = (const UCHAR *)Header + Header->TotalLength;
    for (ULONG Index = 0; Index < Header->InstanceCount; Index++) {
        const CONTENT_INSTANCE *Instance = (const CONTENT_INSTANCE *)Cursor;
        if ((SIZE_T)(End - Cursor) < sizeof(*Instance))
            return "an instance is truncated";
        if (Instance->CriteriaCount < LeastCriteria || Instance->CriteriaCount > FieldCount)
            return "an instance has fewer or more criteria than its template allows";
        Cursor += sizeof(*Instance);
        for (ULONG Field = 0; Field < Instance->CriteriaCount; Field++) {
            const CONTENT_CRITERION *Criterion = (const CONTENT_CRITERION *)Cursor;
            if ((SIZE_T)(End - Cursor) < sizeof(*Criterion) ||
                (SIZE_T)(End - Cursor) < sizeof(*Criterion) + Criterion->ValueLength)
                return "a criterion is truncated";
            if (!ValueFits(Criterion))
                return "a criterion's operator or value is wrong";
            Cursor = (const UCHAR *)NextCriterion(Criterion);
        }
    }
    return Cursor == End ? NULL : "there are bytes behind the last instance";
}

// What is wrong with a content file of `Length` bytes, or NULL.
static PCSTR CheckContent(const CONTENT_HEADER *Header, ULONG Length) {
    if (Length < sizeof(*Header))
        return "the header is truncated";
    if (Header->Magic != CONTENT_MAGIC)
        return "the magic is wrong";
    if (Header->FormatVersion != CONTENT_FORMAT_VERSION || Header->Channel != CONTENT_CHANNEL)
        return "the format version or the channel is wrong";
    if (Header->TotalLength != Length)
        return "the file is not as long as its header says";
    if (Header->InstanceCount == 0 || Header->InstanceCount > CONTENT_MAX_INSTANCES)
        return "the number of instances is wrong";
    for (ULONG Index = 0; Index < RTL_NUMBER_OF(Templates); Index++) {
        if (Templates[Index].Type == Header->TemplateType)
            return CheckInstances(Header, Templates[Index].LeastCriteria,
                                  Templates[Index].FieldCount);
    }
    return "the template type is unknown";
}

static NTSTATUS OpenContentPath(PCWSTR Name, ACCESS_MASK Access, ULONG Options, PHANDLE Handle) {
    WCHAR Buffer[128];
    UNICODE_STRING Path = {0, sizeof(Buffer), Buffer};
    OBJECT_ATTRIBUTES Attributes;
    IO_STATUS_BLOCK Status;
    RtlAppendUnicodeToString(&Path, CONTENT_DIRECTORY);
    if (Name != NULL) {
        RtlAppendUnicodeToString(&Path, L"\\");
        RtlAppendUnicodeToString(&Path, Name);
    }
    InitializeObjectAttributes(&Attributes, &Path, OBJ_CASE_INSENSITIVE | OBJ_KERNEL_HANDLE, NULL,
                               NULL);
    return ZwOpenFile(Handle, Access | SYNCHRONIZE, &Attributes, &Status,
                      FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE,
                      Options | FILE_SYNCHRONOUS_IO_NONALERT);
}

// Takes a directory entry if it is content and its name is above that of `Newest`.
static VOID ConsiderEntry(const FILE_DIRECTORY_INFORMATION *Entry, PCONTENT_FILE Newest) {
    WCHAR Name[RTL_NUMBER_OF(Newest->Name)] = {0};
    UNICODE_STRING Candidate, Highest, Start, Prefix;
    if (Entry->FileNameLength >= sizeof(Name) ||
        (Entry->FileAttributes & FILE_ATTRIBUTE_DIRECTORY) != 0)
        return;
    memcpy(Name, Entry->FileName, Entry->FileNameLength);
    RtlInitUnicodeString(&Candidate, Name);
    RtlInitUnicodeString(&Prefix, CONTENT_PREFIX);
    RtlInitUnicodeString(&Highest, Newest->Name);
    // The pattern also matches short names; the prefix of the long one is what counts.
    Start = Candidate;
    Start.Length = min(Start.Length, Prefix.Length);
    if (!RtlEqualUnicodeString(&Start, &Prefix, TRUE) ||
        RtlCompareUnicodeString(&Candidate, &Highest, TRUE) <= 0)
        return;
    memcpy(Newest->Name, Name, sizeof(Name));
    Newest->Size = Entry->EndOfFile.QuadPart;
    Newest->LastWriteTime = Entry->LastWriteTime.QuadPart;
}

// The content file with the highest name; an empty name where there is none.
static NTSTATUS FindNewestContent(PCONTENT_FILE Newest) {
    union {
        FILE_DIRECTORY_INFORMATION Entry;
        UCHAR Bytes[640];
    } Buffer;
    UNICODE_STRING Pattern;
    IO_STATUS_BLOCK Status;
    HANDLE Directory;
    memset(Newest, 0, sizeof(*Newest));
    NTSTATUS Result = OpenContentPath(NULL, FILE_LIST_DIRECTORY, FILE_DIRECTORY_FILE, &Directory);
    if (!NT_SUCCESS(Result))
        return Result;
    RtlInitUnicodeString(&Pattern, CONTENT_PATTERN);
    for (BOOLEAN Restart = TRUE; NT_SUCCESS(Result); Restart = FALSE) {
        Result = ZwQueryDirectoryFile(Directory, NULL, NULL, NULL, &Status, &Buffer, sizeof(Buffer),
                                      FileDirectoryInformation, TRUE, &Pattern, Restart);
        if (NT_SUCCESS(Result))
            ConsiderEntry(&Buffer.Entry, Newest);
    }
    ZwClose(Directory);
    return Result == STATUS_NO_MORE_FILES || Result == STATUS_NO_SUCH_FILE ? STATUS_SUCCESS
                                                                           : Result;
}

static NTSTATUS ReadContent(HANDLE File, PSENSOR_CONTENT *Loaded, PULONG Length) {
    FILE_STANDARD_INFORMATION Information;
    IO_STATUS_BLOCK Status;
    LARGE_INTEGER Offset = {.QuadPart = 0};
    NTSTATUS Result = ZwQueryInformationFile(File, &Status, &Information, sizeof(Information),
                                             FileStandardInformation);
    if (!NT_SUCCESS(Result))
        return Result;
    if (Information.EndOfFile.QuadPart > CONTENT_MAX_BYTES)
        return STATUS_FILE_TOO_LARGE;
    ULONG Bytes = (ULONG)Information.EndOfFile.QuadPart;
    PSENSOR_CONTENT Content =
        ExAllocatePoolWithTag(NonPagedPoolNx, sizeof(*Content) + Bytes, SENSOR_TAG);
    if (Content == NULL)
        return STATUS_INSUFFICIENT_RESOURCES;
    memset(Content, 0, sizeof(*Content));
    Content->References = 1;
    *Length = 0;
    if (Bytes != 0) {
        Result =
            ZwReadFile(File, NULL, NULL, NULL, &Status, &Content->Header, Bytes, &Offset, NULL);
        *Length = (ULONG)Status.Information;
    }
    if (NT_SUCCESS(Result))
        *Loaded = Content;
    else
        ReleaseContent(Content);
    return Result;
}

static VOID LoadContent(const CONTENT_FILE *Newest) {
    HANDLE File;
    PSENSOR_CONTENT Content;
    ULONG Length;
    NTSTATUS Result = OpenContentPath(Newest->Name, FILE_READ_DATA, FILE_NON_DIRECTORY_FILE, &File);
    if (NT_SUCCESS(Result)) {
        Result = ReadContent(File, &Content, &Length);
        ZwClose(File);
    }
    if (!NT_SUCCESS(Result)) {
        SensorPrint("%ws not read: status %08x\n", Newest->Name, Result);
        return;
    }
    PCSTR Problem = CheckContent(&Content->Header, Length);
    if (Problem == NULL && Content->Header.TemplateType == TEMPLATE_RATE &&
        !NT_SUCCESS(CreateRateWindows(Content)))
        Problem = "its rate windows cannot be made";
    if (Problem != NULL) {
        SensorPrint("%ws refused: %s\n", Newest->Name, Problem);
        ReleaseContent(Content);
        return;
    }
    SensorPrint("%ws loaded: template type %u, version %u, %u instances\n", Newest->Name,
                Content->Header.TemplateType, Content->Header.ContentVersion,
                Content->Header.InstanceCount);
    PublishContent(Content);
}

// Loads the newest content file if it is another than the last one seen. Content that is refused
// leaves the content before it in use; with no file left, there is no content.
VOID RefreshContent(VOID) {
    CONTENT_FILE Newest;
    NTSTATUS Result = FindNewestContent(&Newest);
    // A boot-start driver may run before its volume is there: the worker thread will ask again.
    if (!NT_SUCCESS(Result) ||
        RtlCompareMemory(&Newest, &LastSeen, sizeof(Newest)) == sizeof(Newest))
        return;
    LastSeen = Newest;
    if (Newest.Name[0] != L'\0') {
        LoadContent(&Newest);
    } else {
        SensorPrint("no content\n");
        DiscardContent();
    }
}
