/* sc.exe and driverquery.exe: kernel driver services, and the drivers that are loaded. */
#include "agent.h"

BOOLEAN ServicePath(PCHAR Key, ULONG Size, PCSTR Service) {
    RtlFormat(Key, Size, "%s\\%s", CM_SERVICES, Service);
    return *Service != 0 && strchr(Service, '\\') == NULL && CmFindKey(Key) != NULL;
}

static int ScFail(POUTPUT Output, PCSTR Call, ULONG Error) {
    OutputPrint(Output, "[SC] %s FAILED %u:\n\n%s\n\n", Call, Error, Win32Message(Error));
    return (int)Error;
}

static int ScUsage(POUTPUT Output) {
    OutputPrint(Output,
        "ERROR:  invalid command line\n\nUSAGE:\n"
        "        sc create|config [service name] type= kernel start= boot|system|auto|"
        "demand|disabled binPath= <path>\n"
        "        sc start|stop|query|queryex|qc|delete [service name]\n");
    return 1639; /* ERROR_INVALID_COMMAND_LINE */
}

/* -- create, config ---------------------------------------------------------------------------- */
/* "name= value" as two arguments, or as one. */
static PCSTR ScOption(int Count, PCHAR *Arguments, PCSTR Name) {
    for (int i = 3; i < Count; i++) {
        SIZE_T Length = strlen(Name);
        if (RtlCompareTextInsensitiveN(Arguments[i], Name, Length) != 0 ||
            Arguments[i][Length] != '=')
            continue;
        if (Arguments[i][Length + 1] != 0) return Arguments[i] + Length + 1;
        return i + 1 < Count ? Arguments[i + 1] : NULL;
    }
    return NULL;
}

/* Stores one of a list of words as its number; FALSE: the word is not in the list. */
static BOOLEAN ScSetWord(PCSTR Key, PCSTR Value, PCSTR Word, const PCSTR *Words, ULONG Count) {
    for (ULONG i = 0; i < Count; i++)
        if (Words[i] != NULL && RtlCompareTextInsensitive(Word, Words[i]) == 0)
            return NT_SUCCESS(CmSetValue(Key, Value, REG_DWORD, &i, sizeof(i)));
    return FALSE;
}

static int ScConfigure(int Count, PCHAR *Arguments, POUTPUT Output, BOOLEAN Create) {
    static const PCSTR Starts[] = {"boot", "system", "auto", "demand", "disabled"};
    static const PCSTR Types[] = {NULL, "kernel", "filesys"};
    static const PCSTR Controls[] = {"ignore", "normal", "severe", "critical"};
    PCSTR Call = Create ? "CreateService" : "ChangeServiceConfig";
    CHAR Key[200], Path[260];
    BOOLEAN Exists = ServicePath(Key, sizeof(Key), Arguments[2]);
    PCSTR Type = ScOption(Count, Arguments, "type"), Start = ScOption(Count, Arguments, "start");
    PCSTR Control = ScOption(Count, Arguments, "error"),
          Binary = ScOption(Count, Arguments, "binPath");
    PCSTR Display = ScOption(Count, Arguments, "DisplayName");
    if (Create && (Binary == NULL || strchr(Arguments[2], '\\'))) return ScUsage(Output);
    if (Create && Exists) return ScFail(Output, Call, 1073);
    if (!Create && !Exists) return ScFail(Output, "OpenService", 1060);
    if (Create && (Type == NULL || RtlCompareTextInsensitive(Type, "own") == 0))
        return ScFail(Output, Call, 50); /* there is no user mode to run such a service in */
    if (Create && Start == NULL) Start = "demand";
    if (Create && Control == NULL) Control = "normal";
    if ((Type != NULL && !ScSetWord(Key, "Type", Type, Types, 3)) ||
        (Start != NULL && !ScSetWord(Key, "Start", Start, Starts, 5)) ||
        (Control != NULL && !ScSetWord(Key, "ErrorControl", Control, Controls, 4))) {
        if (Create) CmDeleteKey(Key);
        return ScUsage(Output);
    }
    if (Binary != NULL) { /* the service control manager stores a driver's DOS path as an NT one */
        RtlFormat(
            Path, sizeof(Path), "%s%s", Binary[0] && Binary[1] == ':' ? "\\??\\" : "", Binary);
        CmSetValue(Key, "ImagePath", REG_EXPAND_SZ, Path, (ULONG)strlen(Path) + 1);
    }
    if (Display != NULL)
        CmSetValue(Key, "DisplayName", REG_SZ, Display, (ULONG)strlen(Display) + 1);
    OutputPrint(Output, "[SC] %s SUCCESS\n", Call);
    return 0;
}

/* -- start, stop, query -------------------------------------------------------------------------
 */
static PCSTR ScTypeName(ULONG Type) { return Type == 2 ? "FILE_SYSTEM_DRIVER" : "KERNEL_DRIVER"; }

static void ScPrintState(
    POUTPUT Output, PCSTR Service, PCSTR Key, BOOLEAN Extended, BOOLEAN Named) {
    CHAR Display[128];
    ULONG Type = CmQueryDword(Key, "Type", 1);
    PIO_DRIVER Driver = IopFindDriver(Service);
    /* 1077: no attempt to start it has been made since the last boot. What a driver that failed or
     * was stopped left behind is not kept here. */
    ULONG ExitCode = Driver != NULL ? 0 : 1077;
    OutputPrint(Output, "\nSERVICE_NAME: %s \n", Service);
    if (Named) {
        if (!NT_SUCCESS(CmQueryString(Key, "DisplayName", Display, sizeof(Display))))
            RtlCopyText(Display, sizeof(Display), Service);
        OutputPrint(Output, "DISPLAY_NAME: %s\n", Display);
    }
    OutputPrint(Output, "        TYPE               : %u  %s  \n", Type, ScTypeName(Type));
    OutputPrint(Output, "        STATE              : %s \n", Driver ? "4  RUNNING" : "1  STOPPED");
    if (Driver != NULL)
        OutputPrint(Output,
            "                                (%s, NOT_PAUSABLE, IGNORES_SHUTDOWN)\n",
            Driver->Object.DriverUnload != NULL ? "STOPPABLE" : "NOT_STOPPABLE");
    OutputPrint(Output,
        "        WIN32_EXIT_CODE    : %u  (0x%x)\n"
        "        SERVICE_EXIT_CODE  : 0  (0x0)\n"
        "        CHECKPOINT         : 0x0\n        WAIT_HINT          : 0x0\n",
        ExitCode, ExitCode);
    if (Extended)
        OutputPrint(Output, "        PID                : 0\n        FLAGS              : \n");
}

static int ScStart(PCSTR Service, PCSTR Key, POUTPUT Output) {
    IO_LOAD_ERROR Error = {""};
    if (CmQueryDword(Key, "Start", 3) == 4) return ScFail(Output, "StartService", 1058);
    NTSTATUS Status =
        IopFindDriver(Service) ? STATUS_IMAGE_ALREADY_LOADED : IopLoadDriver(Service, &Error);
    if (!NT_SUCCESS(Status)) return ScFail(Output, "StartService", Win32Error(Status));
    ScPrintState(Output, Service, Key, TRUE, FALSE);
    return 0;
}

static int ScStop(PCSTR Service, PCSTR Key, POUTPUT Output) {
    NTSTATUS Status = IopUnloadDriver(Service);
    if (!NT_SUCCESS(Status))
        return ScFail(Output, "ControlService", Status == STATUS_NOT_FOUND ? 1062 : 1052);
    ScPrintState(Output, Service, Key, FALSE, FALSE);
    return 0;
}

static int ScShowConfiguration(PCSTR Service, PCSTR Key, POUTPUT Output) {
    static const PCSTR Starts[] = {
        "BOOT_START", "SYSTEM_START", "AUTO_START  ", "DEMAND_START", "DISABLED"};
    static const PCSTR Controls[] = {"IGNORE", "NORMAL", "SEVERE", "CRITICAL"};
    CHAR Path[260] = "", Display[128];
    ULONG Type = CmQueryDword(Key, "Type", 1), Start = MIN(CmQueryDword(Key, "Start", 3), 4u);
    ULONG Control = MIN(CmQueryDword(Key, "ErrorControl", 1), 3u);
    CmQueryString(Key, "ImagePath", Path, sizeof(Path));
    if (!NT_SUCCESS(CmQueryString(Key, "DisplayName", Display, sizeof(Display))))
        RtlCopyText(Display, sizeof(Display), Service);
    OutputPrint(Output, "[SC] QueryServiceConfig SUCCESS\n\nSERVICE_NAME: %s\n", Service);
    OutputPrint(Output, "        TYPE               : %u  %s \n", Type, ScTypeName(Type));
    OutputPrint(Output, "        START_TYPE         : %u   %s\n", Start, Starts[Start]);
    OutputPrint(Output, "        ERROR_CONTROL      : %u   %s\n", Control, Controls[Control]);
    OutputPrint(Output, "        BINARY_PATH_NAME   : %s\n", Path);
    OutputPrint(Output, "        LOAD_ORDER_GROUP   : \n        TAG                : 0\n");
    OutputPrint(Output, "        DISPLAY_NAME       : %s\n", Display);
    OutputPrint(Output, "        DEPENDENCIES       : \n        SERVICE_START_NAME : \n");
    return 0;
}

/* `sc query type= driver [state= all]`; without a type Windows lists Win32 services: there are
 * none. */
static int ScEnumerate(int Count, PCHAR *Arguments, POUTPUT Output) {
    PCSTR Type = NULL, State = "";
    for (int i = 2; i + 1 < Count; i++) {
        Type = RtlCompareTextInsensitive(Arguments[i], "type=") == 0 ? Arguments[i + 1] : Type;
        State = RtlCompareTextInsensitive(Arguments[i], "state=") == 0 ? Arguments[i + 1] : State;
    }
    if (Type == NULL ||
        (RtlCompareTextInsensitive(Type, "driver") && RtlCompareTextInsensitive(Type, "all")))
        return 0;
    for (PCM_KEY Key = NULL; (Key = CmNextSubkey(CM_SERVICES, Key)) != NULL;) {
        PCSTR Service = Key->Path + strlen(CM_SERVICES) + 1;
        if (CmFindValue(Key, "Type") != NULL &&
            (IopFindDriver(Service) != NULL || RtlCompareTextInsensitive(State, "all") == 0))
            ScPrintState(Output, Service, Key->Path, FALSE, TRUE);
    }
    return 0;
}

int ScMain(int Count, PCHAR *Arguments, POUTPUT Output, POUTPUT Errors) {
    static const PCSTR Verbs[] = {"start", "stop", "query", "queryex", "qc", "delete"};
    static const PCSTR Opens[] = {"StartService: OpenService", "OpenService",
        "EnumQueryServicesStatus:OpenService", "EnumQueryServicesStatus:OpenService", "OpenService",
        "OpenService"};
    CHAR Key[200];
    ULONG Verb = 0;
    UNREFERENCED(Errors);
    if (Count < 2) return ScUsage(Output);
    if (Count > 3 && RtlCompareTextInsensitive(Arguments[1], "create") == 0)
        return ScConfigure(Count, Arguments, Output, TRUE);
    if (Count > 3 && RtlCompareTextInsensitive(Arguments[1], "config") == 0)
        return ScConfigure(Count, Arguments, Output, FALSE);
    while (Verb < ARRAY_SIZE(Verbs) && RtlCompareTextInsensitive(Arguments[1], Verbs[Verb]) != 0)
        Verb++;
    if (Verb == ARRAY_SIZE(Verbs)) return ScUsage(Output);
    if ((Verb == 2 || Verb == 3) && (Count == 2 || strchr(Arguments[2], '=') != NULL))
        return ScEnumerate(Count, Arguments, Output);
    if (Count < 3) return ScUsage(Output);
    PCSTR Service = Arguments[2];
    if (!ServicePath(Key, sizeof(Key), Service)) return ScFail(Output, Opens[Verb], 1060);
    if (Verb == 0) return ScStart(Service, Key, Output);
    if (Verb == 1) return ScStop(Service, Key, Output);
    if (Verb == 4) return ScShowConfiguration(Service, Key, Output);
    if (Verb != 5) {
        ScPrintState(Output, Service, Key, Verb == 3, FALSE);
        return 0;
    }
    NTSTATUS Status = CmDeleteKey(Key);
    if (!NT_SUCCESS(Status)) return ScFail(Output, "DeleteService", Win32Error(Status));
    OutputPrint(Output, "[SC] DeleteService SUCCESS\n");
    return 0;
}
