/* The QEMU guest agent ("QEMU Guest Agent Protocol Reference") as it behaves on Windows. Requests
 * are answered one after another by one thread; programs run in threads of their own. */
#include "agent.h"

enum { REQUEST_MAXIMUM = 1 << 20, READ_MAXIMUM = 1 << 20, FIRST_HANDLE = 1000, HANDLES = 64 };
#define UNIX_EPOCH 116444736000000000LL /* 1 January 1970 as a FILETIME */

/* A table declares the commands' parameters; what was given is checked before a command runs. */
enum { INTEGER, FILE_HANDLE, STRING, BASE64, FLAG, LIST, REQUIRED = 8, PARAMETERS = 4 };
typedef struct _QGA_COMMAND {
    PCSTR Name;
    NTSTATUS (*Run)(void); /* puts the return value in QgaReply; nothing stands for {} */
    struct {
        PCSTR Name;
        ULONG Kind;
    } Parameters[PARAMETERS]; /* up to one without a name */
} QGA_COMMAND;
typedef struct _QGA_ARGUMENT {
    JSON Json; /* Text NULL: not given */
    LONG64 Integer;
    PHANDLE File;
    PCHAR Text;
    ULONG Length; /* of decoded base64 */
} QGA_ARGUMENT;
static QGA_ARGUMENT QgaArguments[PARAMETERS]; /* in the order of the parameters */
static HANDLE QgaFiles[HANDLES];
static OUTPUT QgaReply;
#define QGA_PUT(...)    OutputPrint(&QgaReply, __VA_ARGS__)
#define QGA_RETURN(...) (QGA_PUT(__VA_ARGS__), STATUS_SUCCESS)
static PCHAR QgaStrings, QgaNextString; /* strings of the request, decoded; freed after the reply */
static CHAR QgaErrorText[400];          /* empty: the request is good so far */
static PCSTR QgaErrorClass;

static NTSTATUS QgaFail(PCSTR Format, ...) {
    va_list Arguments;
    va_start(Arguments, Format);
    RtlFormatV(QgaErrorText, sizeof(QgaErrorText), Format, Arguments);
    va_end(Arguments);
    return STATUS_UNSUCCESSFUL;
}

/* A string of the request; FALSE: it is none. */
static BOOLEAN QgaDecode(JSON Value, PCHAR *Text) {
    *Text = QgaNextString;
    QgaNextString += Value.End - Value.Text; /* the two quotes make room for the NUL */
    return JsonString(Value, *Text);
}

/* -- about the machine ------------------------------------------------------------------------- */
static void QgaPutRegistry(PCSTR Before, PCSTR Key, PCSTR Name) {
    CHAR Text[128] = "";
    CmQueryString(Key, Name, Text, sizeof(Text));
    QGA_PUT(Before);
    JsonPutString(&QgaReply, Text);
}

static NTSTATUS QgaOsInfo(void) {
    ULONG Major = CmQueryDword(CURRENT_VERSION, "CurrentMajorVersionNumber", 0);
    ULONG Minor = CmQueryDword(CURRENT_VERSION, "CurrentMinorVersionNumber", 0);
    QGA_PUT("{\"machine\": \"x86_64\", \"version-id\": \"%u\"", Major);
    QgaPutRegistry(", \"id\": ", "HKEY_LOCAL_MACHINE\\SOFTWARE\\QEMU\\GuestAgent", "OsId");
    QgaPutRegistry(", \"kernel-release\": ", CURRENT_VERSION, "CurrentBuildNumber");
    QgaPutRegistry(", \"version\": ", CURRENT_VERSION, "CurrentBuildNumber");
    QgaPutRegistry(", \"name\": ", CURRENT_VERSION, "ProductName");
    QgaPutRegistry(", \"pretty-name\": ", CURRENT_VERSION, "ProductName");
    return QGA_RETURN(", \"kernel-version\": \"%u.%u\"}", Major, Minor);
}

static NTSTATUS QgaHostName(void) {
    QgaPutRegistry("{\"host-name\": ", COMPUTER_NAME "\\ComputerName", "ComputerName");
    return QGA_RETURN("}");
}

static NTSTATUS QgaGetTime(void) {
    return QGA_RETURN("%lld", (KiQuerySystemTime() - UNIX_EPOCH) * 100);
}

/* Nanoseconds since 1970, or else what the hardware clock says. */
static NTSTATUS QgaSetTime(void) {
    LONG64 Time = QgaArguments[0].Integer;
    if (Time < 0) return STATUS_INVALID_PARAMETER;
    KiSetSystemTime(QgaArguments[0].Json.Text ? Time / 100 + UNIX_EPOCH : HalReadRtc());
    return STATUS_SUCCESS;
}

/* Powering off and halting are one here, as on a Windows machine that can switch itself off. */
static NTSTATUS QgaShutdown(void) {
    PCSTR Mode = QgaArguments[0].Text ? QgaArguments[0].Text : "powerdown";
    BOOLEAN Reboot = strcmp(Mode, "reboot") == 0;
    if (!Reboot && strcmp(Mode, "powerdown") != 0 && strcmp(Mode, "halt") != 0)
        return QgaFail("Parameter 'mode' expects 'halt', 'powerdown', or 'reboot'");
    PopRequestShutdown(Reboot);
    return STATUS_SUCCESS;
}

static NTSTATUS QgaSync(void) { return QGA_RETURN("%lld", QgaArguments[0].Integer); }

/* -- files ------------------------------------------------------------------------------------- */
static void QgaUseBackslashes(PCHAR Path) {
    while ((Path = strchr(Path, '/')) != NULL) *Path = '\\';
}

static NTSTATUS QgaFileOpen(void) {
    enum { READ = 0x120089, WRITE = 0x120116, APPEND = 0x120114, OPEN = 1, OPEN_IF = 3 };
    enum { OVERWRITE_IF = 5, NO_CASE = 0x240, NORMAL = 0x80, SHARE = 3, SYNCHRONOUS_FILE = 0x60 };
    /* "r", "w" or "a"; a "+" adds the other access, a "b" nothing: all files are binary */
    PCSTR Mode = QgaArguments[1].Text ? QgaArguments[1].Text : "r";
    ULONG Access = *Mode == 'r' ? READ : *Mode == 'w' ? WRITE : APPEND, Slot = 0;
    ULONG Disposition = *Mode == 'r' ? OPEN : *Mode == 'w' ? OVERWRITE_IF : OPEN_IF;
    CHAR NtPath[300];
    UNICODE_STRING Name;
    OBJECT_ATTRIBUTES Attributes = {sizeof(Attributes), NULL, &Name, NO_CASE, NULL, NULL};
    IO_STATUS_BLOCK Io;
    HANDLE File;
    if (*Mode == 0 || !strchr("rwa", *Mode)) return QgaFail("invalid file open mode '%s'", Mode);
    if (strchr(Mode, '+')) Access |= *Mode == 'r' ? WRITE : READ;
    while (Slot < HANDLES && QgaFiles[Slot] != NULL) Slot++;
    if (Slot == HANDLES) return QgaFail("too many open files");
    QgaUseBackslashes(QgaArguments[0].Text);
    RtlFormat(NtPath, sizeof(NtPath), "\\??\\%s", QgaArguments[0].Text);
    TRY(RtlTextToUnicode(NtPath, &Name));
    NTSTATUS Status = ZwCreateFile(&File, Access, &Attributes, &Io, NULL, NORMAL, SHARE,
        Disposition, SYNCHRONOUS_FILE, NULL, 0);
    RtlFreeUnicodeString(&Name);
    TRY(Status);
    QgaFiles[Slot] = File;
    return QGA_RETURN("%u", Slot + FIRST_HANDLE);
}

static NTSTATUS QgaFileClose(void) {
    HANDLE File = *QgaArguments[0].File;
    *QgaArguments[0].File = NULL;
    return ZwClose(File);
}

static NTSTATUS QgaFileRead(void) {
    ULONG64 Count = QgaArguments[1].Json.Text ? QgaArguments[1].Integer : 4096;
    IO_STATUS_BLOCK Io = {.Information = 0};
    if (Count > READ_MAXIMUM) return QgaFail("value '%lld' is invalid for argument count", Count);
    PUCHAR Buffer = KiAllocate(Count + 1);
    if (Buffer == NULL) return STATUS_NO_MEMORY;
    NTSTATUS Status =
        ZwReadFile(*QgaArguments[0].File, NULL, NULL, NULL, &Io, Buffer, (ULONG)Count, NULL, NULL);
    ULONG Done = NT_SUCCESS(Status) ? (ULONG)Io.Information : 0;
    QGA_PUT("{\"count\": %u, \"buf-b64\": ", Done);
    JsonPutBase64(&QgaReply, Buffer, Done);
    QGA_PUT(", \"eof\": %s}", Done == 0 ? "true" : "false");
    KiFree(Buffer);
    return Status == STATUS_END_OF_FILE ? STATUS_SUCCESS : Status;
}

static NTSTATUS QgaFileWrite(void) {
    ULONG64 Length = QgaArguments[1].Length;
    ULONG64 Count = QgaArguments[2].Json.Text ? QgaArguments[2].Integer : Length;
    IO_STATUS_BLOCK Io;
    if (Count > Length) return QgaFail("value '%lld' is invalid for argument count", Count);
    TRY(ZwWriteFile(*QgaArguments[0].File, NULL, NULL, NULL, &Io, QgaArguments[1].Text,
        (ULONG)Count, NULL, NULL));
    return QGA_RETURN("{\"count\": %u, \"eof\": false}", (ULONG)Io.Information);
}

/* -- programs ---------------------------------------------------------------------------------- */
typedef struct _QGA_PROCESS {
    LIST_ENTRY Link;
    PEPROCESS Process;
    LONG64 Id;
    PROGRAM_MAIN *Main;
    PROGRAM Program;
    PCHAR Strings; /* what the arguments lie in */
    int ExitCode;
    BOOLEAN Capture;
    volatile BOOLEAN Exited; /* set last by the program's thread: from then on the agent owns all */
} QGA_PROCESS, *PQGA_PROCESS;
static LIST_ENTRY QgaProcesses = {&QgaProcesses, &QgaProcesses};

static void QgaRunProgram(PVOID Context) {
    PQGA_PROCESS Process = Context;
    Process->ExitCode = ProgramRun(Process->Main, &Process->Program);
    PspExitProcess(Process->Process);
    Process->Exited = TRUE;
}

/* Fails also where a driver's notify routine forbids the process. */
static NTSTATUS QgaStartProgram(PQGA_PROCESS Process, PCSTR CommandLine) {
    NTSTATUS Status;
    PCSTR Path = Process->Program.Arguments[0];
    if ((Process->Main = ProgramFind(Path)) == NULL) return STATUS_NO_SUCH_FILE;
    Process->Process = PspCreateProcess(Path, CommandLine, PsInitialSystemProcess, &Status);
    if (Process->Process == NULL) return Status;
    Process->Id = (LONG64)Process->Process->UniqueProcessId;
    Status = KiStartThread(QgaRunProgram, Process, NULL);
    if (!NT_SUCCESS(Status)) PspExitProcess(Process->Process);
    return Status;
}

static NTSTATUS QgaExec(void) {
    CHAR Line[1024]; /* the command line as drivers see it; cut when longer */
    JSON List = QgaArguments[1].Json, Item = {NULL, NULL};
    PQGA_PROCESS Process = ExAllocatePool2(0x40, sizeof(*Process), 'cexE');
    if (Process == NULL) return STATUS_NO_MEMORY;
    PPROGRAM Program = &Process->Program;
    BOOLEAN Good = TRUE;
    Program->Arguments[Program->Count++] = QgaArguments[0].Text;
    QgaUseBackslashes(QgaArguments[0].Text);
    int Length = RtlFormat(Line, sizeof(Line), "\"%s\"", QgaArguments[0].Text);
    while (Good && List.Text != NULL && JsonNext(List, NULL, &Item)) {
        PCHAR *Argument = &Program->Arguments[Program->Count];
        Good = Program->Count++ < PROGRAM_ARGUMENTS && QgaDecode(Item, Argument);
        if (!Good) break;
        PCSTR Format = strchr(*Argument, ' ') ? " \"%s\"" : " %s";
        Length += RtlFormat(Line + Length, sizeof(Line) - Length, Format, *Argument);
    }
    NTSTATUS Status =
        Good ? QgaStartProgram(Process, Line)
             : QgaFail("'arg' is no list of strings, or longer than %d", PROGRAM_ARGUMENTS);
    if (!NT_SUCCESS(Status)) {
        KiFree(Process);
        return Status;
    }
    Process->Capture = QgaArguments[2].Json.Text != NULL && *QgaArguments[2].Json.Text == 't';
    Process->Strings = QgaStrings;
    QgaStrings = NULL; /* the process has them now */
    InsertTailList(&QgaProcesses, &Process->Link);
    return QGA_RETURN("{\"pid\": %lld}", Process->Id);
}

static void QgaPutCaptured(PCSTR Member, POUTPUT Captured, BOOLEAN Wanted) {
    if (Captured->Text == NULL) return;
    if (Wanted) {
        QGA_PUT(", \"%s\": ", Member);
        JsonPutBase64(&QgaReply, (PUCHAR)Captured->Text, Captured->Length);
    }
    KiFree(Captured->Text);
}

static NTSTATUS QgaExecStatus(void) {
    PQGA_PROCESS Process = (PVOID)QgaProcesses.Flink; /* its link comes first */
    while (&Process->Link != &QgaProcesses && Process->Id != QgaArguments[0].Integer)
        Process = (PVOID)Process->Link.Flink;
    if (&Process->Link == &QgaProcesses) return QgaFail("Invalid parameter 'pid'");
    if (!Process->Exited) return QGA_RETURN("{\"exited\": false}");
    QGA_PUT("{\"exited\": true, \"exitcode\": %d", Process->ExitCode);
    QgaPutCaptured("out-data", &Process->Program.Output, Process->Capture);
    QgaPutCaptured("err-data", &Process->Program.Errors, Process->Capture);
    RemoveEntryList(&Process->Link); /* told once, then forgotten, as QEMU's agent does */
    KiFree(Process->Strings);
    KiFree(Process);
    return QGA_RETURN("}");
}

/* -- the protocol ------------------------------------------------------------------------------ */
static NTSTATUS QgaInfo(void);
enum { SYNC_DELIMITED, SHUTDOWN }; /* places in the table of two with rules of their own */
static const QGA_COMMAND QgaCommands[] = {
    {"guest-sync-delimited", QgaSync, {{"id", INTEGER | REQUIRED}}},
    {"guest-shutdown", QgaShutdown, {{"mode", STRING}}},
    {"guest-sync", QgaSync, {{"id", INTEGER | REQUIRED}}},
    {"guest-ping", NULL, {}},
    {"guest-info", QgaInfo, {}},
    {"guest-get-osinfo", QgaOsInfo, {}},
    {"guest-get-host-name", QgaHostName, {}},
    {"guest-get-time", QgaGetTime, {}},
    {"guest-set-time", QgaSetTime, {{"time", INTEGER}}},
    {"guest-file-open", QgaFileOpen, {{"path", STRING | REQUIRED}, {"mode", STRING}}},
    {"guest-file-close", QgaFileClose, {{"handle", FILE_HANDLE | REQUIRED}}},
    {"guest-file-read", QgaFileRead, {{"handle", FILE_HANDLE | REQUIRED}, {"count", INTEGER}}},
    {"guest-file-write", QgaFileWrite,
        {{"handle", FILE_HANDLE | REQUIRED}, {"buf-b64", BASE64 | REQUIRED}, {"count", INTEGER}}},
    /* files are written through; only the disk may hold data back */
    {"guest-file-flush", HalDiskFlush, {{"handle", FILE_HANDLE | REQUIRED}}},
    {"guest-exec", QgaExec, {{"path", STRING | REQUIRED}, {"arg", LIST}, {"capture-output", FLAG}}},
    {"guest-exec-status", QgaExecStatus, {{"pid", INTEGER | REQUIRED}}},
};

static NTSTATUS QgaInfo(void) {
    QGA_PUT("{\"version\": \"7.2 (Bugcheck Lab)\", \"supported_commands\": [");
    for (ULONG i = 0; i < ARRAY_SIZE(QgaCommands); i++)
        QGA_PUT("%s{\"enabled\": true, \"name\": \"%s\", \"success-response\": %s}", i ? ", " : "",
            QgaCommands[i].Name, i == SHUTDOWN ? "false" : "true");
    return QGA_RETURN("]}");
}

static NTSTATUS QgaTakeValue(QGA_ARGUMENT *Argument, PCSTR Name, ULONG Kind, JSON Value) {
    static const PCSTR Kinds[] = {"integer", "integer", "string", "string", "boolean", "array"};
    BOOLEAN Good = Kind == FLAG     ? strchr("tf", *Value.Text) != NULL
                   : Kind == LIST   ? *Value.Text == '['
                   : Kind >= STRING ? QgaDecode(Value, &Argument->Text)
                                    : JsonInteger(Value, &Argument->Integer);
    if (!Good) return QgaFail("Invalid parameter type for '%s', expected: %s", Name, Kinds[Kind]);
    if (Kind == BASE64 && !Base64Decode(Argument->Text, &Argument->Length))
        return QgaFail("Base64 data of '%s' is not valid", Name);
    ULONG64 Slot = (ULONG64)(Argument->Integer - FIRST_HANDLE);
    Argument->File = Slot < HANDLES ? &QgaFiles[Slot] : NULL;
    Argument->Json = Value;
    if (Kind == FILE_HANDLE && (Argument->File == NULL || *Argument->File == NULL))
        return QgaFail("handle '%lld' has not been found", Argument->Integer);
    return STATUS_SUCCESS;
}

/* Takes the arguments of a command into the places of its parameters. */
static NTSTATUS QgaTakeArguments(const QGA_COMMAND *Command, JSON Given) {
    JSON Name, Value = {NULL, NULL};
    PCHAR Text;
    ULONG i;
    memset(QgaArguments, 0, sizeof(QgaArguments));
    while (JsonNext(Given, &Name, &Value)) {
        QgaDecode(Name, &Text);
        for (i = 0; Command->Parameters[i].Name && strcmp(Command->Parameters[i].Name, Text);) i++;
        if (!Command->Parameters[i].Name) return QgaFail("Parameter '%s' is unexpected", Text);
        TRY(QgaTakeValue(&QgaArguments[i], Text, Command->Parameters[i].Kind & ~REQUIRED, Value));
    }
    for (i = 0; Command->Parameters[i].Name; i++)
        if (Command->Parameters[i].Kind & REQUIRED && !QgaArguments[i].Json.Text)
            return QgaFail("Parameter '%s' is missing", Command->Parameters[i].Name);
    return STATUS_SUCCESS;
}

/* Runs the command of a request. TRUE: it is one that answers nothing when all is well. */
static BOOLEAN QgaRun(JSON Request) {
    JSON Execute, Given;
    PCHAR Name = "(none)";
    ULONG i = 0;
    if (*Request.Text == '{' && JsonMember(Request, "execute", &Execute)) QgaDecode(Execute, &Name);
    if (!JsonMember(Request, "arguments", &Given)) Given.Text = "{}";
    while (i < ARRAY_SIZE(QgaCommands) && strcmp(QgaCommands[i].Name, Name) != 0) i++;
    if (i == ARRAY_SIZE(QgaCommands)) {
        QgaErrorClass = "CommandNotFound";
        QgaFail("The command %s has not been found", Name);
        return FALSE;
    }
    if (i == SYNC_DELIMITED) OutputAppend(&QgaReply, "\xFF", 1); /* what came before is void */
    QGA_PUT("{\"return\": ");
    ULONG Before = QgaReply.Length;
    NTSTATUS Status = QgaTakeArguments(&QgaCommands[i], Given);
    if (NT_SUCCESS(Status) && QgaCommands[i].Run != NULL) Status = QgaCommands[i].Run();
    if (!NT_SUCCESS(Status) && *QgaErrorText == 0)
        QgaFail("%s failed: %s", Name, Win32Message(Win32Error(Status)));
    if (QgaReply.Length == Before) QGA_PUT("{}");
    return i == SHUTDOWN;
}

static void QgaAnswer(PCSTR Text, ULONG Length) {
    JSON Request;
    PCSTR Wrong = JsonCheck(Text, &Request);
    QgaReply.Length = 0;
    QgaErrorText[0] = 0;
    QgaErrorClass = "GenericError";
    if ((QgaStrings = QgaNextString = KiAllocate(Length + 1)) == NULL) return;
    if (Wrong != NULL) QgaFail("JSON parse error, %s", Wrong);
    BOOLEAN Silent = Wrong == NULL && QgaRun(Request);
    if (*QgaErrorText != 0) {
        QgaReply.Length = 0;
        QGA_PUT("{\"error\": {\"class\": \"%s\", \"desc\": ", QgaErrorClass);
        JsonPutString(&QgaReply, QgaErrorText);
        QGA_PUT("}");
    }
    OutputAppend(&QgaReply, "}\n", 2);
    if (!Silent || *QgaErrorText != 0) VioSerialWrite(QgaReply.Text, QgaReply.Length);
    if (QgaStrings != NULL) KiFree(QgaStrings);
}

static OUTPUT QgaRequest;   /* the line being received */
static BOOLEAN QgaSkipping; /* it was too long: up to its end, or to 0xFF */

static void QgaTakeByte(UCHAR Byte) {
    if (Byte != '\n' && Byte != 0xFF && !QgaSkipping) {
        OutputAppend(&QgaRequest, &Byte, 1);
        QgaSkipping = QgaRequest.Length > REQUEST_MAXIMUM;
        if (!QgaSkipping) return;
        QgaAnswer("", 0); /* an error: no value */
    } else if (Byte == '\n' && !QgaSkipping && QgaRequest.Length > 0) {
        QgaAnswer(QgaRequest.Text, QgaRequest.Length);
    }
    QgaSkipping = QgaSkipping && Byte != '\n' && Byte != 0xFF;
    QgaRequest.Length = 0;
}

static void QgaThread(PVOID Context) {
    static UCHAR Data[VIO_BUFFER];
    UNREFERENCED(Context);
    for (;;) {
        ULONG Length = VioSerialRead(Data);
        if (VioSerialHungUp) QgaTakeByte(0xFF); /* a client's unfinished request ends with it */
        VioSerialHungUp &= Length > 0;
        for (ULONG i = 0; i < Length; i++) QgaTakeByte(Data[i]);
        if (Length == 0) KiSleep(1); /* to the next clock tick */
    }
}

void QgaStart(void) {
    if (!VioSerialStart("org.qemu.guest_agent.0"))
        DbgPrint("qga: no virtio-serial device\n");
    else if (!NT_SUCCESS(KiStartThread(QgaThread, NULL, NULL)))
        DbgPrint("qga: no memory for the agent's thread\n");
}
