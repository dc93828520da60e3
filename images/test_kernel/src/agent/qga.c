/* The QEMU guest agent's side of its protocol (QEMU, "QEMU Guest Agent Protocol Reference"), with
 * the behaviour and error texts of the agent on Windows. Commands are answered one after another by
 * one thread; programs run in threads of their own. */
#include "agent.h"

enum { LINE_MAXIMUM = 1 << 20, READ_MAXIMUM = 4 << 20, FIRST_HANDLE = 1000, HANDLES = 64 };
#define CURRENT_VERSION "HKEY_LOCAL_MACHINE\\SOFTWARE\\Microsoft\\Windows NT\\CurrentVersion"
#define COMPUTER_NAME                                                                              \
    "HKEY_LOCAL_MACHINE\\SYSTEM\\CurrentControlSet\\Control\\ComputerName\\ComputerName"
#define UNIX_EPOCH 116444736000000000LL /* 1 January 1970 as a FILETIME */

typedef struct _QGA_PROCESS {
    LIST_ENTRY Link;
    PEPROCESS Process;
    LONG64 Id;
    PROGRAM *Program;
    int Count, ExitCode;
    PCHAR *Arguments;
    OUTPUT Output, Errors;
    BOOLEAN Capture;
    volatile BOOLEAN Exited; /* set last by the program's thread: from then on the agent owns all */
} QGA_PROCESS, *PQGA_PROCESS;

/* A command writes its return value, or sets QgaError and returns FALSE. */
typedef BOOLEAN QGA_COMMAND(JSON Arguments, POUTPUT Reply);

static CHAR QgaErrorText[400];
static HANDLE QgaFiles[HANDLES];
static LIST_ENTRY QgaProcesses = {&QgaProcesses, &QgaProcesses};

static BOOLEAN QgaFail(PCSTR Format, ...) {
    va_list Arguments;
    va_start(Arguments, Format);
    RtlFormatV(QgaErrorText, sizeof(QgaErrorText), Format, Arguments);
    va_end(Arguments);
    return FALSE;
}

/* -- arguments -------------------------------------------------------------------------------- */
/* Each returns TRUE with the default left in place when the argument is absent and optional. */
static BOOLEAN QgaFind(JSON Arguments, PCSTR Name, BOOLEAN Required, JSON *Value) {
    if (JsonMember(Arguments, Name, Value)) return TRUE;
    Value->Text = NULL;
    return Required ? QgaFail("Parameter '%s' is missing", Name) : TRUE;
}

static BOOLEAN QgaType(PCSTR Name, PCSTR Expected) {
    return QgaFail("Invalid parameter type for '%s', expected: %s", Name, Expected);
}

static BOOLEAN QgaInteger(JSON Arguments, PCSTR Name, BOOLEAN Required, LONG64 *Integer) {
    JSON Value;
    if (!QgaFind(Arguments, Name, Required, &Value)) return FALSE;
    return Value.Text == NULL || JsonInteger(Value, Integer) ? TRUE : QgaType(Name, "integer");
}

static BOOLEAN QgaString(JSON Arguments, PCSTR Name, BOOLEAN Required, PCHAR *Text) {
    JSON Value;
    *Text = NULL;
    if (!QgaFind(Arguments, Name, Required, &Value)) return FALSE;
    return Value.Text == NULL || (*Text = JsonString(Value)) ? TRUE : QgaType(Name, "string");
}

static BOOLEAN QgaBytes(JSON Arguments, PCSTR Name, BOOLEAN Required, PCHAR *Bytes, ULONG *Length) {
    *Length = 0;
    if (!QgaString(Arguments, Name, Required, Bytes)) return FALSE;
    if (*Bytes == NULL || Base64Decode(*Bytes, Length)) return TRUE;
    QgaFail("Base64 data '%.100s' is not valid", *Bytes);
    KiFree(*Bytes);
    return FALSE;
}

/* -- about the machine ------------------------------------------------------------------------- */
static BOOLEAN QgaSync(JSON Arguments, POUTPUT Reply) {
    LONG64 Id = 0;
    if (!QgaInteger(Arguments, "id", TRUE, &Id)) return FALSE;
    OutputPrint(Reply, "%lld", Id);
    return TRUE;
}

static BOOLEAN QgaPing(JSON Arguments, POUTPUT Reply) {
    UNREFERENCED(Arguments);
    OutputPrint(Reply, "{}");
    return TRUE;
}

static void QgaPutRegistry(POUTPUT Reply, PCSTR Member, PCSTR Key, PCSTR Name) {
    CHAR Text[128];
    if (!NT_SUCCESS(CmQueryString(Key, Name, Text, sizeof(Text)))) return;
    OutputPrint(Reply, ", \"%s\": ", Member);
    JsonPutString(Reply, Text);
}

static BOOLEAN QgaOsInfo(JSON Arguments, POUTPUT Reply) {
    UNREFERENCED(Arguments);
    ULONG Major = CmQueryDword(CURRENT_VERSION, "CurrentMajorVersionNumber", 0);
    ULONG Minor = CmQueryDword(CURRENT_VERSION, "CurrentMinorVersionNumber", 0);
    OutputPrint(Reply, "{\"machine\": \"x86_64\", \"kernel-version\": \"%u.%u\"", Major, Minor);
    OutputPrint(Reply, ", \"version-id\": \"%u\"", Major);
    QgaPutRegistry(Reply, "id", "HKEY_LOCAL_MACHINE\\SOFTWARE\\QEMU\\GuestAgent", "OsId");
    QgaPutRegistry(Reply, "kernel-release", CURRENT_VERSION, "CurrentBuildNumber");
    QgaPutRegistry(Reply, "name", CURRENT_VERSION, "ProductName");
    QgaPutRegistry(Reply, "pretty-name", CURRENT_VERSION, "ProductName");
    QgaPutRegistry(Reply, "version", CURRENT_VERSION, "CurrentBuildNumber");
    OutputPrint(Reply, "}");
    return TRUE;
}

static BOOLEAN QgaHostName(JSON Arguments, POUTPUT Reply) {
    CHAR Name[64] = "";
    UNREFERENCED(Arguments);
    CmQueryString(COMPUTER_NAME, "ComputerName", Name, sizeof(Name));
    OutputPrint(Reply, "{\"host-name\": ");
    JsonPutString(Reply, Name);
    OutputPrint(Reply, "}");
    return TRUE;
}

static BOOLEAN QgaGetTime(JSON Arguments, POUTPUT Reply) {
    UNREFERENCED(Arguments);
    OutputPrint(Reply, "%lld", (KiQuerySystemTime() - UNIX_EPOCH) * 100);
    return TRUE;
}

static BOOLEAN QgaSetTime(JSON Arguments, POUTPUT Reply) {
    LONG64 Time = -1; /* ns since 1970; absent: what the hardware clock says */
    JSON Given;
    if (!QgaInteger(Arguments, "time", FALSE, &Time)) return FALSE;
    if (JsonMember(Arguments, "time", &Given) && Time < 0)
        return QgaFail("Time %lld is not supported", Time);
    KiSetSystemTime(Time < 0 ? HalReadRtc() : Time / 100 + UNIX_EPOCH);
    return QgaPing(Arguments, Reply);
}

static void QgaShutdownThread(PVOID Reboot) { PopRequestShutdown(Reboot != NULL); }

/* Powering off and halting are one here, as on a Windows machine that can switch itself off. */
static BOOLEAN QgaShutdown(JSON Arguments, POUTPUT Reply) {
    PCHAR Mode;
    if (!QgaString(Arguments, "mode", FALSE, &Mode)) return FALSE;
    BOOLEAN Reboot = Mode != NULL && strcmp(Mode, "reboot") == 0;
    BOOLEAN Known = Mode == NULL || Reboot || !strcmp(Mode, "powerdown") || !strcmp(Mode, "halt");
    if (Mode != NULL) KiFree(Mode);
    if (!Known) return QgaFail("Parameter 'mode' expects 'halt', 'powerdown', or 'reboot'");
    NTSTATUS Status = KiStartThread(QgaShutdownThread, Reboot ? &QgaShutdown : NULL, NULL);
    if (!NT_SUCCESS(Status))
        return QgaFail("failed to shutdown: %s", Win32Message(Win32Error(Status)));
    return QgaPing(Arguments, Reply);
}

/* -- files ------------------------------------------------------------------------------------- */
static BOOLEAN QgaOpenFile(PCSTR Path, ULONG Access, ULONG Disposition, PHANDLE File) {
    UNICODE_STRING Name;
    IO_STATUS_BLOCK Io;
    CHAR NtPath[300];
    RtlFormat(NtPath, sizeof(NtPath), "\\??\\%s", Path);
    for (PCHAR At = NtPath; (At = strchr(At, '/')) != NULL;) *At = '\\';
    NTSTATUS Status = RtlTextToUnicode(NtPath, &Name);
    if (NT_SUCCESS(Status)) {
        OBJECT_ATTRIBUTES Attributes = {sizeof(Attributes), NULL, &Name, 0x240, NULL, NULL};
        /* shared for reading and writing; synchronous, no directory */
        Status = ZwCreateFile(
            File, Access | 0x100000, &Attributes, &Io, NULL, 0x80, 3, Disposition, 0x60, NULL, 0);
        RtlFreeUnicodeString(&Name);
    }
    if (!NT_SUCCESS(Status))
        QgaFail("failed to open file '%s': %s", Path, Win32Message(Win32Error(Status)));
    return NT_SUCCESS(Status);
}

static BOOLEAN QgaFileOpen(JSON Arguments, POUTPUT Reply) {
    enum { READ = 0x120089, WRITE = 0x120116, APPEND = 0x120114 };
    enum { OPEN = 1, OPEN_IF = 3, OVERWRITE_IF = 5 };
    static const struct {
        CHAR Mode[4];
        ULONG Access, Disposition;
    } Modes[] = {{"r", READ, OPEN}, {"r+", READ | WRITE, OPEN}, {"w", WRITE, OVERWRITE_IF},
        {"w+", READ | WRITE, OVERWRITE_IF}, {"a", APPEND, OPEN_IF}, {"a+", READ | APPEND, OPEN_IF}};
    PCHAR Path, Mode;
    CHAR Plain[4] = "r";
    ULONG i = 0, Slot = 0;
    if (!QgaString(Arguments, "path", TRUE, &Path)) return FALSE;
    if (!QgaString(Arguments, "mode", FALSE, &Mode)) {
        KiFree(Path);
        return FALSE;
    }
    if (Mode != NULL) { /* "rb+", "r+b" and "r+" are the same: all files are binary */
        PCHAR To = Plain;
        for (PCSTR At = Mode; *At && To < Plain + 3; At++)
            if (*At != 'b' || At == Mode) *To++ = *At;
        *To = 0;
    }
    while (i < ARRAY_SIZE(Modes) && strcmp(Plain, Modes[i].Mode) != 0) i++;
    while (Slot < HANDLES && QgaFiles[Slot] != NULL) Slot++;
    BOOLEAN Good = i == ARRAY_SIZE(Modes) ? QgaFail("invalid file open mode '%s'", Mode)
                   : Slot == HANDLES
                       ? QgaFail("too many open files")
                       : QgaOpenFile(Path, Modes[i].Access, Modes[i].Disposition, &QgaFiles[Slot]);
    if (Good) OutputPrint(Reply, "%u", Slot + FIRST_HANDLE);
    KiFree(Path);
    if (Mode != NULL) KiFree(Mode);
    return Good;
}

static PHANDLE QgaFindFile(JSON Arguments) {
    LONG64 Handle = 0;
    if (!QgaInteger(Arguments, "handle", TRUE, &Handle)) return NULL;
    LONG64 Slot = Handle - FIRST_HANDLE;
    if (Slot >= 0 && Slot < HANDLES && QgaFiles[Slot] != NULL) return &QgaFiles[Slot];
    QgaFail("handle '%lld' has not been found", Handle);
    return NULL;
}

static BOOLEAN QgaFileClose(JSON Arguments, POUTPUT Reply) {
    PHANDLE File = QgaFindFile(Arguments);
    if (File == NULL) return FALSE;
    ZwClose(*File);
    *File = NULL;
    return QgaPing(Arguments, Reply);
}

static BOOLEAN QgaFileRead(JSON Arguments, POUTPUT Reply) {
    LONG64 Count = 4096;
    IO_STATUS_BLOCK Io = {.Information = 0};
    PHANDLE File = QgaFindFile(Arguments);
    if (File == NULL || !QgaInteger(Arguments, "count", FALSE, &Count)) return FALSE;
    if (Count < 0 || Count > READ_MAXIMUM)
        return QgaFail("value '%lld' is invalid for argument count", Count);
    PUCHAR Buffer = KiAllocate(Count + 1);
    NTSTATUS Status =
        Buffer == NULL ? STATUS_NO_MEMORY
                       : ZwReadFile(*File, NULL, NULL, NULL, &Io, Buffer, (ULONG)Count, NULL, NULL);
    ULONG Done = NT_SUCCESS(Status) ? (ULONG)Io.Information : 0;
    BOOLEAN Good = NT_SUCCESS(Status) || Status == STATUS_END_OF_FILE;
    if (Good) {
        OutputPrint(Reply, "{\"count\": %u, \"buf-b64\": ", Done);
        JsonPutBase64(Reply, Buffer, Done);
        OutputPrint(Reply, ", \"eof\": %s}", Done == 0 ? "true" : "false");
    } else {
        QgaFail("failed to read file: %s", Win32Message(Win32Error(Status)));
    }
    if (Buffer != NULL) KiFree(Buffer);
    return Good;
}

static BOOLEAN QgaFileWrite(JSON Arguments, POUTPUT Reply) {
    PCHAR Bytes;
    ULONG Length;
    IO_STATUS_BLOCK Io = {.Information = 0};
    PHANDLE File = QgaFindFile(Arguments);
    if (File == NULL || !QgaBytes(Arguments, "buf-b64", TRUE, &Bytes, &Length)) return FALSE;
    LONG64 Count = Length;
    NTSTATUS Status = STATUS_SUCCESS;
    BOOLEAN Good = QgaInteger(Arguments, "count", FALSE, &Count);
    if (Good && (Count < 0 || Count > Length))
        Good = QgaFail("value '%lld' is invalid for argument count", Count);
    if (Good) Status = ZwWriteFile(*File, NULL, NULL, NULL, &Io, Bytes, (ULONG)Count, NULL, NULL);
    if (Good && !NT_SUCCESS(Status))
        Good = QgaFail("failed to write to file: %s", Win32Message(Win32Error(Status)));
    if (Good) OutputPrint(Reply, "{\"count\": %u, \"eof\": false}", (ULONG)Io.Information);
    KiFree(Bytes);
    return Good;
}

static BOOLEAN QgaFileSeek(JSON Arguments, POUTPUT Reply) {
    struct {
        LONG64 AllocationSize, EndOfFile;
        ULONG Links;
        BOOLEAN DeletePending, Directory;
    } Standard;
    static const PCSTR Names[] = {"\"set\"", "\"cur\"", "\"end\""};
    LONG64 Offset = 0, Base[3] = {0}, Whence = 3;
    IO_STATUS_BLOCK Io;
    JSON Value;
    PHANDLE File = QgaFindFile(Arguments);
    if (File == NULL || !QgaInteger(Arguments, "offset", TRUE, &Offset) ||
        !QgaFind(Arguments, "whence", TRUE, &Value))
        return FALSE;
    for (LONG64 i = 0; i < 3; i++)
        if (strncmp(Value.Text, Names[i], strlen(Names[i])) == 0) Whence = i;
    if ((Whence == 3 && !JsonInteger(Value, &Whence)) || Whence < 0 || Whence > 2)
        return QgaFail("invalid whence code");
    NTSTATUS Status = ZwQueryInformationFile(*File, &Io, &Base[1], 8, FilePositionInformation);
    if (NT_SUCCESS(Status))
        Status = ZwQueryInformationFile(
            *File, &Io, &Standard, sizeof(Standard), FileStandardInformation);
    Base[2] = Standard.EndOfFile;
    Offset += Base[Whence];
    if (NT_SUCCESS(Status))
        Status = ZwSetInformationFile(*File, &Io, &Offset, 8, FilePositionInformation);
    if (!NT_SUCCESS(Status))
        return QgaFail("failed to seek file: %s", Win32Message(Win32Error(Status)));
    OutputPrint(Reply, "{\"position\": %lld, \"eof\": false}", Offset);
    return TRUE;
}

static BOOLEAN QgaFileFlush(JSON Arguments, POUTPUT Reply) {
    if (QgaFindFile(Arguments) == NULL) return FALSE;
    NTSTATUS Status = HalDiskFlush(); /* files are written through; the disk may hold data back */
    if (!NT_SUCCESS(Status))
        return QgaFail("failed to flush file: %s", Win32Message(Win32Error(Status)));
    return QgaPing(Arguments, Reply);
}

/* -- programs ---------------------------------------------------------------------------------- */
static void QgaFreeProcess(PQGA_PROCESS Process) {
    for (int i = 0; i < Process->Count; i++) KiFree(Process->Arguments[i]);
    PVOID Blocks[] = {Process->Arguments, Process->Output.Text, Process->Errors.Text, Process};
    for (ULONG i = 0; i < ARRAY_SIZE(Blocks); i++)
        if (Blocks[i] != NULL) KiFree(Blocks[i]);
}

static void QgaRunProgram(PVOID Context) {
    PQGA_PROCESS Process = Context;
    Process->ExitCode =
        Process->Program(Process->Count, Process->Arguments, &Process->Output, &Process->Errors);
    PspExitProcess(Process->Process);
    Process->Exited = TRUE;
}

/* The path and `arg` as the program's argument vector. */
static BOOLEAN QgaCollectArguments(JSON Arguments, PQGA_PROCESS Process) {
    JSON List, Item = {NULL, NULL};
    PCHAR Path;
    int Count = 1;
    if (!QgaString(Arguments, "path", TRUE, &Path)) return FALSE;
    BOOLEAN Given = JsonMember(Arguments, "arg", &List);
    while (Given && JsonNext(List, NULL, &Item)) Count++;
    Process->Arguments = KiAllocate(Count * sizeof(PCHAR));
    if (Process->Arguments == NULL) {
        KiFree(Path);
        return QgaFail("%s", Win32Message(8));
    }
    Process->Arguments[Process->Count++] = Path;
    if (Given && *List.Text != '[') return QgaType("arg", "array");
    for (Item.Text = NULL; Given && JsonNext(List, NULL, &Item); Process->Count++)
        if ((Process->Arguments[Process->Count] = JsonString(Item)) == NULL)
            return QgaType("arg[]", "string");
    return TRUE;
}

static BOOLEAN QgaStartProgram(PQGA_PROCESS Process) {
    PCSTR Failed = "Guest agent command failed, error was '%s'";
    OUTPUT Line = {NULL, 0, 0};
    NTSTATUS Status = STATUS_SUCCESS;
    Process->Program = PspFindProgram(Process->Arguments[0]);
    if (Process->Program == NULL) return QgaFail(Failed, Win32Message(2));
    for (int i = 0; i < Process->Count; i++) {
        PCSTR Quote = i == 0 || strchr(Process->Arguments[i], ' ') ? "\"" : "";
        OutputPrint(&Line, "%s%s%s%s", i ? " " : "", Quote, Process->Arguments[i], Quote);
    }
    Process->Process =
        PspCreateProcess(Process->Arguments[0], Line.Text, PsInitialSystemProcess, &Status);
    KiFree(Line.Text);
    if (Process->Process == NULL) /* a driver's notify routine may have forbidden it */
        return QgaFail(Failed, Win32Message(Win32Error(Status)));
    Process->Id = (LONG64)Process->Process->UniqueProcessId;
    Status = KiStartThread(QgaRunProgram, Process, NULL);
    if (!NT_SUCCESS(Status)) {
        PspExitProcess(Process->Process);
        return QgaFail(Failed, Win32Message(Win32Error(Status)));
    }
    return TRUE;
}

static BOOLEAN QgaExec(JSON Arguments, POUTPUT Reply) {
    JSON Capture;
    PCHAR Input;
    ULONG Length;
    if (!QgaBytes(Arguments, "input-data", FALSE, &Input, &Length)) return FALSE;
    if (Input != NULL) KiFree(Input); /* checked only: no program here reads its standard input */
    PQGA_PROCESS Process = KiAllocate(sizeof(*Process));
    if (Process == NULL) return QgaFail("%s", Win32Message(8));
    memset(Process, 0, sizeof(*Process));
    Process->Capture = JsonMember(Arguments, "capture-output", &Capture) && *Capture.Text == 't';
    if (!QgaCollectArguments(Arguments, Process) || !QgaStartProgram(Process)) {
        QgaFreeProcess(Process);
        return FALSE;
    }
    InsertTailList(&QgaProcesses, &Process->Link);
    OutputPrint(Reply, "{\"pid\": %lld}", Process->Id);
    return TRUE;
}

static void QgaPutCaptured(POUTPUT Reply, PCSTR Member, const OUTPUT *Captured) {
    if (Captured->Length == 0) return;
    OutputPrint(Reply, ", \"%s\": ", Member);
    JsonPutBase64(Reply, (const UCHAR *)Captured->Text, Captured->Length);
}

static BOOLEAN QgaExecStatus(JSON Arguments, POUTPUT Reply) {
    LONG64 Id = 0;
    if (!QgaInteger(Arguments, "pid", TRUE, &Id)) return FALSE;
    PLIST_ENTRY Entry = QgaProcesses.Flink;
    while (Entry != &QgaProcesses && CONTAINING_RECORD(Entry, QGA_PROCESS, Link)->Id != Id)
        Entry = Entry->Flink;
    if (Entry == &QgaProcesses) return QgaFail("Invalid parameter 'pid'");
    PQGA_PROCESS Process = CONTAINING_RECORD(Entry, QGA_PROCESS, Link);
    if (!Process->Exited) {
        OutputPrint(Reply, "{\"exited\": false}");
        return TRUE;
    }
    OutputPrint(Reply, "{\"exited\": true, \"exitcode\": %d", Process->ExitCode);
    if (Process->Capture) {
        QgaPutCaptured(Reply, "out-data", &Process->Output);
        QgaPutCaptured(Reply, "err-data", &Process->Errors);
    }
    OutputPrint(Reply, "}");
    RemoveEntryList(&Process->Link); /* told once, then forgotten, as QEMU's agent does */
    QgaFreeProcess(Process);
    return TRUE;
}

/* -- the protocol ------------------------------------------------------------------------------ */
static QGA_COMMAND QgaInfo;
static const struct {
    PCSTR Name, Arguments; /* "|a|b|" */
    QGA_COMMAND *Run;
    BOOLEAN Silent; /* no reply on success */
} QgaCommands[] = {
    {"guest-sync-delimited", "|id|", QgaSync, FALSE},
    {"guest-sync", "|id|", QgaSync, FALSE},
    {"guest-ping", "", QgaPing, FALSE},
    {"guest-info", "", QgaInfo, FALSE},
    {"guest-get-osinfo", "", QgaOsInfo, FALSE},
    {"guest-get-host-name", "", QgaHostName, FALSE},
    {"guest-get-time", "", QgaGetTime, FALSE},
    {"guest-set-time", "|time|", QgaSetTime, FALSE},
    {"guest-shutdown", "|mode|", QgaShutdown, TRUE},
    {"guest-file-open", "|path|mode|", QgaFileOpen, FALSE},
    {"guest-file-close", "|handle|", QgaFileClose, FALSE},
    {"guest-file-read", "|handle|count|", QgaFileRead, FALSE},
    {"guest-file-write", "|handle|buf-b64|count|", QgaFileWrite, FALSE},
    {"guest-file-seek", "|handle|offset|whence|", QgaFileSeek, FALSE},
    {"guest-file-flush", "|handle|", QgaFileFlush, FALSE},
    {"guest-exec", "|path|arg|env|input-data|capture-output|", QgaExec, FALSE},
    {"guest-exec-status", "|pid|", QgaExecStatus, FALSE},
};

static BOOLEAN QgaInfo(JSON Arguments, POUTPUT Reply) {
    UNREFERENCED(Arguments);
    OutputPrint(Reply, "{\"version\": \"7.2 (Bugcheck Lab)\", \"supported_commands\": [");
    for (ULONG i = 0; i < ARRAY_SIZE(QgaCommands); i++)
        OutputPrint(Reply, "%s{\"enabled\": true, \"name\": \"%s\", \"success-response\": %s}",
            i ? ", " : "", QgaCommands[i].Name, QgaCommands[i].Silent ? "false" : "true");
    OutputPrint(Reply, "]}");
    return TRUE;
}

static BOOLEAN QgaCheckArguments(PCSTR Known, JSON Arguments) {
    JSON Name, Value = {NULL, NULL};
    if (*Arguments.Text != '{') return QgaFail("QMP input member 'arguments' must be an object");
    while (JsonNext(Arguments, &Name, &Value)) {
        CHAR Wanted[40];
        RtlFormat(Wanted, sizeof(Wanted), "|%.*s|", (int)(Name.End - Name.Text - 2), Name.Text + 1);
        if (strstr(Known, Wanted) == NULL)
            return QgaFail(
                "Parameter '%.*s' is unexpected", (int)(Name.End - Name.Text - 2), Name.Text + 1);
    }
    return TRUE;
}

/* Answers one text. Reply is empty where none is due. */
static void QgaAnswer(PCSTR Text, POUTPUT Reply) {
    static const CHAR NoArguments[] = "{}";
    JSON Request, Name, Id, Arguments = {NoArguments, NoArguments + 2};
    PCSTR Error = JsonCheck(Text, &Request), Class = "GenericError";
    BOOLEAN Good = FALSE, Tagged = FALSE, Silent = FALSE;
    if (Error != NULL) {
        QgaFail("JSON parse error, %s", Error);
    } else if (*Request.Text != '{') {
        QgaFail("QMP input must be a JSON object");
    } else if (!JsonMember(Request, "execute", &Name)) {
        QgaFail("QMP input lacks member 'execute'");
    } else {
        ULONG i = 0;
        int Length = (int)(Name.End - Name.Text - 2);
        Tagged = JsonMember(Request, "id", &Id);
        if (!JsonMember(Request, "arguments", &Request)) Request = Arguments;
        while (i < ARRAY_SIZE(QgaCommands) &&
               (strncmp(QgaCommands[i].Name, Name.Text + 1, Length) != 0 ||
                   strlen(QgaCommands[i].Name) != (SIZE_T)Length))
            i++;
        if (i == ARRAY_SIZE(QgaCommands)) {
            Class = "CommandNotFound";
            QgaFail("The command %.*s has not been found", Length, Name.Text + 1);
        } else {
            if (i == 0) /* guest-sync-delimited: lets the client drop what came before */
                OutputAppend(Reply, "\xFF", 1);
            OutputPrint(Reply, "{\"return\": ");
            Good = QgaCheckArguments(QgaCommands[i].Arguments, Request) &&
                   QgaCommands[i].Run(Request, Reply);
            Silent = Good && QgaCommands[i].Silent;
        }
    }
    if (!Good) {
        Reply->Length = 0;
        OutputPrint(Reply, "{\"error\": {\"class\": \"%s\", \"desc\": ", Class);
        JsonPutString(Reply, QgaErrorText);
        OutputPrint(Reply, "}");
    }
    if (Tagged) OutputPrint(Reply, ", \"id\": %.*s", (int)(Id.End - Id.Text), Id.Text);
    OutputPrint(Reply, "}\n");
    if (Silent) Reply->Length = 0;
}

static void QgaReply(PCSTR Text) {
    OUTPUT Reply = {NULL, 0, 0};
    QgaAnswer(Text, &Reply);
    if (Reply.Length > 0) VioSerialWrite(Reply.Text, Reply.Length);
    if (Reply.Text != NULL) KiFree(Reply.Text);
}

static void QgaThread(PVOID Context) {
    OUTPUT Line = {NULL, 0, 0};
    JSON_FRAME Frame = {0};
    BOOLEAN Skipping = FALSE; /* after a broken text: up to the next line or 0xFF */
    ULONG Hangups = 0;
    UNREFERENCED(Context);
    for (;;) {
        PUCHAR Data;
        ULONG Length = VioSerialRead(&Data);
        if (Hangups != VioSerialHangups) {
            Hangups = VioSerialHangups;
            Line.Length = 0;
            Frame = (JSON_FRAME){0};
            Skipping = FALSE;
        }
        for (ULONG i = 0; i < Length; i++) {
            BOOLEAN Reset = Data[i] == 0xFF;
            Skipping &= !Reset && Data[i] != '\n';
            if (Skipping) continue;
            JSON_PROGRESS Progress = Reset ? JSON_COMPLETE : JsonFrame(&Frame, Data[i]);
            if (!Reset) OutputAppend(&Line, &Data[i], 1);
            if (Line.Length > LINE_MAXIMUM) Progress = JSON_BROKEN;
            if (Progress == JSON_MORE) continue;
            Skipping = Progress == JSON_BROKEN && Data[i] != '\n';
            if (!Reset) QgaReply(Line.Text);
            Line.Length = 0;
            Frame = (JSON_FRAME){0};
        }
        if (Length > 0)
            VioSerialReadDone();
        else
            KiSleep(1); /* to the next clock tick */
    }
}

void QgaStart(void) {
    if (!VioSerialStart("org.qemu.guest_agent.0"))
        DbgPrint("qga: no virtio-serial device\n");
    else if (!NT_SUCCESS(KiStartThread(QgaThread, NULL, NULL)))
        DbgPrint("qga: no memory for the agent's thread\n");
}
