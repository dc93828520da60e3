/* The QEMU guest agent's side of its protocol (QEMU, "QEMU Guest Agent Protocol Reference"), with
 * the behaviour and error texts of the agent on Windows. Commands are answered one after another by
 * one thread; programs run in threads of their own. */
#include "agent.h"

enum { LINE_MAXIMUM = 1 << 20, READ_MAXIMUM = 1 << 20, FIRST_HANDLE = 1000, HANDLES = 64 };
enum { PROGRAM_ARGUMENTS = 64 };
#define CURRENT_VERSION "HKEY_LOCAL_MACHINE\\SOFTWARE\\Microsoft\\Windows NT\\CurrentVersion"
#define CONTROL         "HKEY_LOCAL_MACHINE\\SYSTEM\\CurrentControlSet\\Control"
#define UNIX_EPOCH      116444736000000000LL /* 1 January 1970 as a FILETIME */

static OUTPUT QgaLine; /* the request being received */
static JSON_FRAME QgaFrame;
static BOOLEAN QgaSkipping; /* after a broken text: up to the next line or 0xFF */

/* A command writes its return value, or fails with QgaFail. */
typedef BOOLEAN QGA_COMMAND(JSON Arguments, POUTPUT Reply);

static CHAR QgaErrorText[400];
static PCHAR QgaStrings, QgaNextString; /* strings of the request, decoded; freed after the reply */

static BOOLEAN QgaFail(PCSTR Format, ...) {
    va_list Arguments;
    va_start(Arguments, Format);
    RtlFormatV(QgaErrorText, sizeof(QgaErrorText), Format, Arguments);
    va_end(Arguments);
    return FALSE;
}

static BOOLEAN QgaCheck(NTSTATUS Status, PCSTR Failed) {
    return NT_SUCCESS(Status) || QgaFail("%s: %s", Failed, Win32Message(Win32Error(Status)));
}

/* -- arguments -------------------------------------------------------------------------------- */
/* An optional argument that is absent leaves the default in place. */
static BOOLEAN QgaFind(JSON Arguments, PCSTR Name, BOOLEAN Required, JSON *Value) {
    if (JsonMember(Arguments, Name, Value)) return TRUE;
    Value->Text = NULL;
    return !Required || QgaFail("Parameter '%s' is missing", Name);
}

static BOOLEAN QgaInteger(JSON Arguments, PCSTR Name, BOOLEAN Required, LONG64 *Integer) {
    JSON Value;
    if (!QgaFind(Arguments, Name, Required, &Value)) return FALSE;
    return Value.Text == NULL || JsonInteger(Value, Integer) ||
           QgaFail("Invalid parameter type for '%s', expected: integer", Name);
}

static BOOLEAN QgaDecode(JSON Value, PCSTR Name, PCHAR *Text) {
    if (!JsonString(Value, QgaNextString))
        return QgaFail("Invalid parameter type for '%s', expected: string", Name);
    *Text = QgaNextString;
    QgaNextString += Value.End - Value.Text; /* the two quotes make room for the NUL */
    return TRUE;
}

static BOOLEAN QgaString(JSON Arguments, PCSTR Name, BOOLEAN Required, PCHAR *Text) {
    JSON Value;
    return QgaFind(Arguments, Name, Required, &Value) &&
           (Value.Text == NULL || QgaDecode(Value, Name, Text));
}

static BOOLEAN QgaBytes(JSON Arguments, PCSTR Name, BOOLEAN Required, PCHAR *Bytes, ULONG *Length) {
    *Bytes = NULL;
    if (!QgaString(Arguments, Name, Required, Bytes)) return FALSE;
    return !*Bytes || Base64Decode(*Bytes, Length) ||
           QgaFail("Base64 data of '%s' is not valid", Name);
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
    CHAR Text[128] = "";
    CmQueryString(Key, Name, Text, sizeof(Text));
    OutputPrint(Reply, "\"%s\": ", Member);
    JsonPutString(Reply, Text);
}

static BOOLEAN QgaOsInfo(JSON Arguments, POUTPUT Reply) {
    static const PCSTR Values[][2] = {{"kernel-release", "CurrentBuildNumber"},
        {"version", "CurrentBuildNumber"}, {"name", "ProductName"}, {"pretty-name", "ProductName"}};
    ULONG Major = CmQueryDword(CURRENT_VERSION, "CurrentMajorVersionNumber", 0);
    ULONG Minor = CmQueryDword(CURRENT_VERSION, "CurrentMinorVersionNumber", 0);
    UNREFERENCED(Arguments);
    OutputPrint(Reply, "{\"machine\": \"x86_64\", \"kernel-version\": \"%u.%u\", ", Major, Minor);
    OutputPrint(Reply, "\"version-id\": \"%u\", ", Major);
    QgaPutRegistry(Reply, "id", "HKEY_LOCAL_MACHINE\\SOFTWARE\\QEMU\\GuestAgent", "OsId");
    for (ULONG i = 0; i < ARRAY_SIZE(Values); i++) {
        OutputPrint(Reply, ", ");
        QgaPutRegistry(Reply, Values[i][0], CURRENT_VERSION, Values[i][1]);
    }
    OutputPrint(Reply, "}");
    return TRUE;
}

static BOOLEAN QgaHostName(JSON Arguments, POUTPUT Reply) {
    UNREFERENCED(Arguments);
    OutputPrint(Reply, "{");
    QgaPutRegistry(Reply, "host-name", CONTROL "\\ComputerName\\ComputerName", "ComputerName");
    OutputPrint(Reply, "}");
    return TRUE;
}

static BOOLEAN QgaGetTime(JSON Arguments, POUTPUT Reply) {
    UNREFERENCED(Arguments);
    OutputPrint(Reply, "%lld", (KiQuerySystemTime() - UNIX_EPOCH) * 100);
    return TRUE;
}

static BOOLEAN QgaSetTime(JSON Arguments, POUTPUT Reply) {
    const LONG64 Absent = 0x8000000000000000; /* then what the hardware clock says */
    LONG64 Time = Absent;                     /* ns since 1970 */
    if (!QgaInteger(Arguments, "time", FALSE, &Time)) return FALSE;
    if (Time < 0 && Time != Absent) return QgaFail("Time %lld is not supported", Time);
    KiSetSystemTime(Time < 0 ? HalReadRtc() : Time / 100 + UNIX_EPOCH);
    return QgaPing(Arguments, Reply);
}

static void QgaShutdownThread(PVOID Reboot) { PopRequestShutdown(Reboot != NULL); }

/* Powering off and halting are one here, as on a Windows machine that can switch itself off. */
static BOOLEAN QgaShutdown(JSON Arguments, POUTPUT Reply) {
    PCHAR Mode = "powerdown";
    if (!QgaString(Arguments, "mode", FALSE, &Mode)) return FALSE;
    BOOLEAN Reboot = strcmp(Mode, "reboot") == 0;
    if (!Reboot && strcmp(Mode, "powerdown") != 0 && strcmp(Mode, "halt") != 0)
        return QgaFail("Parameter 'mode' expects 'halt', 'powerdown', or 'reboot'");
    NTSTATUS Status = KiStartThread(QgaShutdownThread, Reboot ? &QgaErrorText : NULL, NULL);
    return QgaCheck(Status, "failed to shutdown") && QgaPing(Arguments, Reply);
}

/* -- files ------------------------------------------------------------------------------------- */
static HANDLE QgaFiles[HANDLES];

static NTSTATUS QgaOpen(PCSTR Path, ULONG Access, ULONG Disposition, PHANDLE File) {
    enum { CASE_INSENSITIVE = 0x240, NORMAL = 0x80, SHARE = 3, SYNCHRONOUS_NO_DIRECTORY = 0x60 };
    UNICODE_STRING Name;
    IO_STATUS_BLOCK Io;
    CHAR NtPath[300];
    RtlFormat(NtPath, sizeof(NtPath), "\\??\\%s", Path);
    for (PCHAR At = NtPath; (At = strchr(At, '/')) != NULL;) *At = '\\';
    NTSTATUS Status = RtlTextToUnicode(NtPath, &Name);
    if (!NT_SUCCESS(Status)) return Status;
    OBJECT_ATTRIBUTES Attributes = {sizeof(Attributes), NULL, &Name, CASE_INSENSITIVE, NULL, NULL};
    Status = ZwCreateFile(File, Access, &Attributes, &Io, NULL, NORMAL, SHARE, Disposition,
        SYNCHRONOUS_NO_DIRECTORY, NULL, 0);
    RtlFreeUnicodeString(&Name);
    return Status;
}

static BOOLEAN QgaFileOpen(JSON Arguments, POUTPUT Reply) {
    enum { READ = 0x120089, WRITE = 0x120116, APPEND = 0x120114 };
    enum { OPEN = 1, OPEN_IF = 3, OVERWRITE_IF = 5 };
    static const struct {
        CHAR Mode[4];
        ULONG Access, Disposition;
    } Modes[] = {{"r", READ, OPEN}, {"r+", READ | WRITE, OPEN}, {"w", WRITE, OVERWRITE_IF},
        {"w+", READ | WRITE, OVERWRITE_IF}, {"a", APPEND, OPEN_IF}, {"a+", READ | APPEND, OPEN_IF}};
    PCHAR Path, Mode = "r", To;
    CHAR Plain[4] = "", Failed[320];
    ULONG i = 0, Slot = 0;
    if (!QgaString(Arguments, "path", TRUE, &Path) || !QgaString(Arguments, "mode", FALSE, &Mode))
        return FALSE;
    To = Plain; /* "rb+", "r+b" and "r+" are the same: all files are binary */
    for (PCSTR At = Mode; *At && To < Plain + 3; At++)
        if (*At != 'b' || At == Mode) *To++ = *At;
    while (i < ARRAY_SIZE(Modes) && strcmp(Plain, Modes[i].Mode) != 0) i++;
    if (i == ARRAY_SIZE(Modes)) return QgaFail("invalid file open mode '%s'", Mode);
    while (Slot < HANDLES && QgaFiles[Slot] != NULL) Slot++;
    if (Slot == HANDLES) return QgaFail("too many open files");
    NTSTATUS Status = QgaOpen(Path, Modes[i].Access, Modes[i].Disposition, &QgaFiles[Slot]);
    RtlFormat(Failed, sizeof(Failed), "failed to open file '%s'", Path);
    if (!QgaCheck(Status, Failed)) {
        QgaFiles[Slot] = NULL;
        return FALSE;
    }
    OutputPrint(Reply, "%u", Slot + FIRST_HANDLE);
    return TRUE;
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
    if (Buffer == NULL) return QgaCheck(STATUS_NO_MEMORY, "failed to read file");
    NTSTATUS Status = ZwReadFile(*File, NULL, NULL, NULL, &Io, Buffer, (ULONG)Count, NULL, NULL);
    ULONG Done = NT_SUCCESS(Status) ? (ULONG)Io.Information : 0;
    OutputPrint(Reply, "{\"count\": %u, \"buf-b64\": ", Done);
    JsonPutBase64(Reply, Buffer, Done);
    OutputPrint(Reply, ", \"eof\": %s}", Done == 0 ? "true" : "false");
    KiFree(Buffer);
    return Status == STATUS_END_OF_FILE || QgaCheck(Status, "failed to read file");
}

static BOOLEAN QgaFileWrite(JSON Arguments, POUTPUT Reply) {
    PCHAR Bytes;
    ULONG Length = 0;
    IO_STATUS_BLOCK Io = {.Information = 0};
    PHANDLE File = QgaFindFile(Arguments);
    if (File == NULL || !QgaBytes(Arguments, "buf-b64", TRUE, &Bytes, &Length)) return FALSE;
    LONG64 Count = Length;
    if (!QgaInteger(Arguments, "count", FALSE, &Count)) return FALSE;
    if (Count < 0 || Count > Length)
        return QgaFail("value '%lld' is invalid for argument count", Count);
    NTSTATUS Status = ZwWriteFile(*File, NULL, NULL, NULL, &Io, Bytes, (ULONG)Count, NULL, NULL);
    OutputPrint(Reply, "{\"count\": %u, \"eof\": false}", (ULONG)Io.Information);
    return QgaCheck(Status, "failed to write to file");
}

static BOOLEAN QgaFileSeek(JSON Arguments, POUTPUT Reply) {
    static const PCSTR Names[] = {"\"set\"", "\"cur\"", "\"end\""};
    LONG64 Offset = 0, Bases[3] = {0}, Whence = 3, Standard[3]; /* [1]: the end of file */
    IO_STATUS_BLOCK Io;
    JSON Value;
    PHANDLE File = QgaFindFile(Arguments);
    if (File == NULL || !QgaInteger(Arguments, "offset", TRUE, &Offset) ||
        !QgaFind(Arguments, "whence", TRUE, &Value))
        return FALSE;
    JsonInteger(Value, &Whence);
    for (ULONG i = 0; i < 3; i++)
        if (strncmp(Value.Text, Names[i], 5) == 0) Whence = i;
    if (Whence < 0 || Whence > 2) return QgaFail("invalid whence code");
    NTSTATUS Status = ZwQueryInformationFile(*File, &Io, &Bases[1], 8, FilePositionInformation);
    if (NT_SUCCESS(Status))
        Status = ZwQueryInformationFile(*File, &Io, Standard, 24, FileStandardInformation);
    Bases[2] = Standard[1];
    Offset += Bases[Whence];
    if (NT_SUCCESS(Status))
        Status = ZwSetInformationFile(*File, &Io, &Offset, 8, FilePositionInformation);
    OutputPrint(Reply, "{\"position\": %lld, \"eof\": false}", Offset);
    return QgaCheck(Status, "failed to seek file");
}

static BOOLEAN QgaFileFlush(JSON Arguments, POUTPUT Reply) {
    if (QgaFindFile(Arguments) == NULL) return FALSE;
    /* files are written through; only the disk may hold data back */
    return QgaCheck(HalDiskFlush(), "failed to flush file") && QgaPing(Arguments, Reply);
}

/* -- programs ---------------------------------------------------------------------------------- */
typedef struct _QGA_PROCESS {
    LIST_ENTRY Link;
    PEPROCESS Process;
    LONG64 Id;
    PROGRAM *Program;
    int Count, ExitCode;
    PCHAR Arguments[PROGRAM_ARGUMENTS], Strings; /* Strings: what the arguments lie in */
    OUTPUT Output, Errors;
    BOOLEAN Capture;
    volatile BOOLEAN Exited; /* set last by the program's thread: from then on the agent owns all */
} QGA_PROCESS, *PQGA_PROCESS;
static LIST_ENTRY QgaProcesses = {&QgaProcesses, &QgaProcesses};

static void QgaRunProgram(PVOID Context) {
    PQGA_PROCESS Process = Context;
    Process->ExitCode =
        Process->Program(Process->Count, Process->Arguments, &Process->Output, &Process->Errors);
    PspExitProcess(Process->Process);
    Process->Exited = TRUE;
}

static NTSTATUS QgaStartProgram(PQGA_PROCESS Process) {
    OUTPUT Line = {NULL, 0, 0};
    NTSTATUS Status;
    for (PCHAR At = Process->Arguments[0]; (At = strchr(At, '/')) != NULL;) *At = '\\';
    Process->Program = PspFindProgram(Process->Arguments[0]);
    if (Process->Program == NULL) return STATUS_NO_SUCH_FILE;
    for (int i = 0; i < Process->Count; i++) {
        PCSTR Quote = i == 0 || strchr(Process->Arguments[i], ' ') ? "\"" : "";
        OutputPrint(&Line, "%s%s%s%s", i ? " " : "", Quote, Process->Arguments[i], Quote);
    }
    if (Line.Text == NULL) return STATUS_NO_MEMORY;
    Process->Process =
        PspCreateProcess(Process->Arguments[0], Line.Text, PsInitialSystemProcess, &Status);
    KiFree(Line.Text);
    if (Process->Process == NULL)
        return Status; /* a driver's notify routine may have forbidden it */
    Process->Id = (LONG64)Process->Process->UniqueProcessId;
    Status = KiStartThread(QgaRunProgram, Process, NULL);
    if (!NT_SUCCESS(Status)) PspExitProcess(Process->Process);
    return Status;
}

static BOOLEAN QgaExec(JSON Arguments, POUTPUT Reply) {
    JSON Value, Item = {NULL, NULL};
    PCHAR Input; /* checked only: no program here reads its standard input */
    ULONG Length;
    QGA_PROCESS New = {.Count = 1};
    if (!QgaString(Arguments, "path", TRUE, &New.Arguments[0]) ||
        !QgaBytes(Arguments, "input-data", FALSE, &Input, &Length))
        return FALSE;
    New.Capture = JsonMember(Arguments, "capture-output", &Value) && *Value.Text == 't';
    BOOLEAN Given = JsonMember(Arguments, "arg", &Value);
    if (Given && *Value.Text != '[')
        return QgaFail("Invalid parameter type for 'arg', expected: array");
    while (Given && JsonNext(Value, NULL, &Item)) {
        if (New.Count == PROGRAM_ARGUMENTS) return QgaFail("too many arguments");
        if (!QgaDecode(Item, "arg", &New.Arguments[New.Count++])) return FALSE;
    }
    PQGA_PROCESS Process = KiAllocate(sizeof(*Process));
    NTSTATUS Status = STATUS_NO_MEMORY;
    if (Process != NULL) {
        *Process = New;
        Process->Strings = QgaStrings;
        Status = QgaStartProgram(Process);
        if (!NT_SUCCESS(Status)) KiFree(Process);
    }
    if (!QgaCheck(Status, "Guest agent command failed, error was")) return FALSE;
    QgaStrings = NULL; /* the process has them now */
    InsertTailList(&QgaProcesses, &Process->Link);
    OutputPrint(Reply, "{\"pid\": %lld}", Process->Id);
    return TRUE;
}

static void QgaPutCaptured(POUTPUT Reply, PCSTR Member, OUTPUT *Captured, BOOLEAN Wanted) {
    if (Wanted && Captured->Length > 0) {
        OutputPrint(Reply, ", \"%s\": ", Member);
        JsonPutBase64(Reply, (PUCHAR)Captured->Text, Captured->Length);
    }
    if (Captured->Text != NULL) KiFree(Captured->Text);
}

static BOOLEAN QgaExecStatus(JSON Arguments, POUTPUT Reply) {
    LONG64 Id = 0;
    PLIST_ENTRY Entry = QgaProcesses.Flink;
    if (!QgaInteger(Arguments, "pid", TRUE, &Id)) return FALSE;
    while (Entry != &QgaProcesses && CONTAINING_RECORD(Entry, QGA_PROCESS, Link)->Id != Id)
        Entry = Entry->Flink;
    PQGA_PROCESS Process = CONTAINING_RECORD(Entry, QGA_PROCESS, Link);
    if (Entry == &QgaProcesses) return QgaFail("Invalid parameter 'pid'");
    OutputPrint(Reply, "{\"exited\": %s", Process->Exited ? "true" : "false");
    if (Process->Exited) { /* told once, then forgotten, as QEMU's agent does */
        OutputPrint(Reply, ", \"exitcode\": %d", Process->ExitCode);
        QgaPutCaptured(Reply, "out-data", &Process->Output, Process->Capture);
        QgaPutCaptured(Reply, "err-data", &Process->Errors, Process->Capture);
        RemoveEntryList(&Process->Link);
        KiFree(Process->Strings);
        KiFree(Process);
    }
    OutputPrint(Reply, "}");
    return TRUE;
}

/* -- the protocol ------------------------------------------------------------------------------ */
static QGA_COMMAND QgaInfo;
static const struct {
    PCSTR Name;
    QGA_COMMAND *Run;
} QgaCommands[] = {{"guest-sync-delimited", QgaSync}, {"guest-shutdown", QgaShutdown},
    {"guest-sync", QgaSync}, {"guest-ping", QgaPing}, {"guest-info", QgaInfo},
    {"guest-get-osinfo", QgaOsInfo}, {"guest-get-host-name", QgaHostName},
    {"guest-get-time", QgaGetTime}, {"guest-set-time", QgaSetTime},
    {"guest-file-open", QgaFileOpen}, {"guest-file-close", QgaFileClose},
    {"guest-file-read", QgaFileRead}, {"guest-file-write", QgaFileWrite},
    {"guest-file-seek", QgaFileSeek}, {"guest-file-flush", QgaFileFlush}, {"guest-exec", QgaExec},
    {"guest-exec-status", QgaExecStatus}};
enum { SYNC_DELIMITED, SHUTDOWN }; /* places in the table: 0xFF goes first; silent on success */

static BOOLEAN QgaInfo(JSON Arguments, POUTPUT Reply) {
    UNREFERENCED(Arguments);
    OutputPrint(Reply, "{\"version\": \"7.2 (Bugcheck Lab)\", \"supported_commands\": [");
    for (ULONG i = 0; i < ARRAY_SIZE(QgaCommands); i++)
        OutputPrint(Reply, "%s{\"enabled\": true, \"name\": \"%s\", \"success-response\": %s}",
            i ? ", " : "", QgaCommands[i].Name, i == SHUTDOWN ? "false" : "true");
    OutputPrint(Reply, "]}");
    return TRUE;
}

/* Runs the command of a well-formed request. *Class: of the error, when it fails. */
static BOOLEAN QgaRun(JSON Request, POUTPUT Reply, PCSTR *Class) {
    static const CHAR None[] = "{}";
    JSON Execute, Arguments;
    PCHAR Name;
    ULONG i = 0;
    if (*Request.Text != '{') return QgaFail("QMP input must be a JSON object");
    if (!JsonMember(Request, "execute", &Execute))
        return QgaFail("QMP input lacks member 'execute'");
    if (!QgaDecode(Execute, "execute", &Name)) return FALSE;
    if (!JsonMember(Request, "arguments", &Arguments)) Arguments = (JSON){None, None + 2};
    while (i < ARRAY_SIZE(QgaCommands) && strcmp(QgaCommands[i].Name, Name) != 0) i++;
    if (i == ARRAY_SIZE(QgaCommands)) {
        *Class = "CommandNotFound";
        return QgaFail("The command %s has not been found", Name);
    }
    if (i == SYNC_DELIMITED) OutputAppend(Reply, "\xFF", 1); /* what came before is to be dropped */
    OutputPrint(Reply, "{\"return\": ");
    if (!QgaCommands[i].Run(Arguments, Reply)) return FALSE;
    *Class = i == SHUTDOWN ? NULL : *Class;
    return TRUE;
}

static void QgaAnswer(PCSTR Text, ULONG Length) {
    OUTPUT Reply = {NULL, 0, 0};
    JSON Request, Id;
    PCSTR Error = JsonCheck(Text, &Request), Class = "GenericError";
    QgaStrings = QgaNextString = KiAllocate(Length + 1);
    BOOLEAN Good = Error != NULL        ? QgaFail("JSON parse error, %s", Error)
                   : QgaStrings == NULL ? QgaCheck(STATUS_NO_MEMORY, "cannot read the request")
                                        : QgaRun(Request, &Reply, &Class);
    if (!Good) {
        Reply.Length = 0;
        OutputPrint(&Reply, "{\"error\": {\"class\": \"%s\", \"desc\": ", Class);
        JsonPutString(&Reply, QgaErrorText);
        OutputPrint(&Reply, "}");
    }
    if (Error == NULL && *Request.Text == '{' && JsonMember(Request, "id", &Id))
        OutputPrint(&Reply, ", \"id\": %.*s", (int)(Id.End - Id.Text), Id.Text);
    OutputAppend(&Reply, "}\n", 2);
    if (Class != NULL) VioSerialWrite(Reply.Text, Reply.Length);
    if (QgaStrings != NULL) KiFree(QgaStrings);
    if (Reply.Text != NULL) KiFree(Reply.Text);
}

static void QgaReset(BOOLEAN Skip) {
    QgaLine.Length = 0;
    QgaFrame = (JSON_FRAME){0};
    QgaSkipping = Skip;
}

static void QgaTake(UCHAR Byte) {
    if (Byte == 0xFF || QgaSkipping) {
        QgaReset(Byte != 0xFF && Byte != '\n');
        return;
    }
    JSON_PROGRESS Progress = JsonFrame(&QgaFrame, Byte);
    OutputAppend(&QgaLine, &Byte, 1);
    if (QgaLine.Length > LINE_MAXIMUM) Progress = JSON_BROKEN;
    if (Progress == JSON_MORE) return;
    QgaAnswer(QgaLine.Text, QgaLine.Length);
    QgaReset(Progress == JSON_BROKEN && Byte != '\n');
}

static void QgaThread(PVOID Context) {
    ULONG Hangups = 0;
    PUCHAR Data;
    UNREFERENCED(Context);
    for (BOOLEAN HungUp = FALSE;;) {
        ULONG Length = VioSerialRead(&Data);
        /* A client's unfinished request ends with the client. What comes in together with its
         * hang-up may be its own or the next one's: taken, but not kept unfinished. */
        BOOLEAN Now = Hangups != VioSerialHangups;
        Hangups = VioSerialHangups;
        if (Now || (HungUp && Length == 0)) QgaReset(FALSE);
        HungUp = Now || (HungUp && Length > 0);
        for (ULONG i = 0; i < Length; i++) QgaTake(Data[i]);
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
