/* sc.exe for kernel drivers: the only services there are here. */
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
    OutputPrint(Output, "ERROR:  invalid command line\n\nUSAGE:\n"
                        "        sc create|config [service name] type= kernel|filesys\n"
                        "           start= boot|system|auto|demand|disabled binPath= <path>\n"
                        "        sc start|stop|query|queryex|qc|delete [service name]\n");
    return 1639; /* ERROR_INVALID_COMMAND_LINE */
}

/* "name= value" as two arguments, or as one. */
static PCSTR ScOption(int Count, PCHAR *Arguments, PCSTR Name) {
    SIZE_T Length = strlen(Name);
    for (int i = 2; i < Count; i++) {
        if (RtlCompareTextInsensitiveN(Arguments[i], Name, Length) || Arguments[i][Length] != '=')
            continue;
        if (Arguments[i][Length + 1] != 0) return Arguments[i] + Length + 1;
        return i + 1 < Count ? Arguments[i + 1] : NULL;
    }
    return NULL;
}

/* Stores a word as its place in a list; FALSE: it is not in the list. */
static BOOLEAN ScSetWord(PCSTR Key, PCSTR Value, PCSTR Word, const PCSTR *Words, ULONG Count) {
    for (ULONG i = 0; i < Count; i++)
        if (Same(Word, Words[i]))
            return NT_SUCCESS(CmSetValue(Key, Value, REG_DWORD, &i, sizeof(i)));
    return FALSE;
}

static int ScConfigure(int Count, PCHAR *Arguments, POUTPUT Output, BOOLEAN Create) {
    static const PCSTR Starts[] = {"boot", "system", "auto", "demand", "disabled"};
    static const PCSTR Types[] = {"", "kernel", "filesys"};
    static const ULONG Normal = 1;
    PCSTR Call = Create ? "CreateService" : "ChangeServiceConfig";
    CHAR Key[200], Path[260];
    BOOLEAN Exists = ServicePath(Key, sizeof(Key), Arguments[2]);
    PCSTR Type = ScOption(Count, Arguments, "type"), Start = ScOption(Count, Arguments, "start");
    PCSTR Binary = ScOption(Count, Arguments, "binPath");
    if (Create && (Binary == NULL || strchr(Arguments[2], '\\'))) return ScUsage(Output);
    if (Create && Exists) return ScFail(Output, Call, 1073);
    if (!Create && !Exists) return ScFail(Output, "OpenService", 1060);
    if (Create && (Type == NULL || Same(Type, "own")))
        return ScFail(Output, Call, 50); /* there is no user mode to run such a service in */
    if (Create && Start == NULL) Start = "demand";
    if ((Type != NULL && !ScSetWord(Key, "Type", Type, Types, ARRAY_SIZE(Types))) ||
        (Start != NULL && !ScSetWord(Key, "Start", Start, Starts, ARRAY_SIZE(Starts)))) {
        if (Create) CmDeleteKey(Key);
        return ScUsage(Output);
    }
    if (Create) CmSetValue(Key, "ErrorControl", REG_DWORD, &Normal, sizeof(Normal));
    if (Binary != NULL) { /* the service control manager stores a driver's DOS path as an NT one */
        PCSTR Prefix = Binary[0] != 0 && Binary[1] == ':' ? "\\??\\" : "";
        RtlFormat(Path, sizeof(Path), "%s%s", Prefix, Binary);
        CmSetValue(Key, "ImagePath", REG_EXPAND_SZ, Path, (ULONG)strlen(Path) + 1);
    }
    OutputPrint(Output, "[SC] %s SUCCESS\n", Call);
    return 0;
}

/* -- start, stop, query -------------------------------------------------------------------------
 */
static PCSTR ScTypeName(ULONG Type) { return Type == 2 ? "FILE_SYSTEM_DRIVER" : "KERNEL_DRIVER"; }

static int ScPrintState(POUTPUT Output, PCSTR Service, PCSTR Key, BOOLEAN Extended) {
    ULONG Type = CmQueryDword(Key, "Type", 1);
    PIO_DRIVER Driver = IopFindDriver(Service);
    NTSTATUS Failure = IopQueryServiceStatus(Service);
    /* 1077: no attempt to start it has been made since the last boot */
    ULONG ExitCode = Driver != NULL ? 0 : NT_SUCCESS(Failure) ? 1077 : Win32Error(Failure);
    OutputPrint(Output, "\nSERVICE_NAME: %s \n        TYPE               : %u  %s  \n", Service,
        Type, ScTypeName(Type));
    OutputPrint(Output, "        STATE              : %s \n", Driver ? "4  RUNNING" : "1  STOPPED");
    if (Driver != NULL)
        OutputPrint(Output,
            "                                (%s, NOT_PAUSABLE, IGNORES_SHUTDOWN)\n",
            Driver->Object.DriverUnload != NULL ? "STOPPABLE" : "NOT_STOPPABLE");
    OutputPrint(Output, "        WIN32_EXIT_CODE    : %u  (0x%x)\n", ExitCode, ExitCode);
    OutputPrint(Output, "        SERVICE_EXIT_CODE  : 0  (0x0)\n"
                        "        CHECKPOINT         : 0x0\n        WAIT_HINT          : 0x0\n");
    if (Extended)
        OutputPrint(Output, "        PID                : 0\n        FLAGS              : \n");
    return 0;
}

static int ScStart(POUTPUT Output, PCSTR Service, PCSTR Key) {
    IO_LOAD_ERROR Error = {""};
    if (CmQueryDword(Key, "Start", 3) == 4) return ScFail(Output, "StartService", 1058);
    if (IopFindDriver(Service) != NULL) return ScFail(Output, "StartService", 1056);
    NTSTATUS Status = IopLoadDriver(Service, &Error);
    IopSetServiceStatus(Service, Status);
    if (NT_SUCCESS(Status)) return ScPrintState(Output, Service, Key, TRUE);
    DbgPrint("sc: %s refused, 0x%08x %s\n", Service, Status, Error.Text);
    return ScFail(Output, "StartService", Win32Error(Status));
}

static int ScStop(POUTPUT Output, PCSTR Service, PCSTR Key) {
    NTSTATUS Status = IopUnloadDriver(Service);
    if (NT_SUCCESS(Status)) return ScPrintState(Output, Service, Key, FALSE);
    return ScFail(Output, "ControlService", Status == STATUS_NOT_FOUND ? 1062 : 1052);
}

static int ScDelete(POUTPUT Output, PCSTR Service, PCSTR Key) {
    NTSTATUS Status = CmDeleteKey(Key);
    UNREFERENCED(Service);
    if (!NT_SUCCESS(Status)) return ScFail(Output, "DeleteService", Win32Error(Status));
    OutputPrint(Output, "[SC] DeleteService SUCCESS\n");
    return 0;
}

static int ScQuery(POUTPUT Output, PCSTR Service, PCSTR Key) {
    return ScPrintState(Output, Service, Key, FALSE);
}

static int ScQueryExtended(POUTPUT Output, PCSTR Service, PCSTR Key) {
    return ScPrintState(Output, Service, Key, TRUE);
}

static int ScShowConfiguration(POUTPUT Output, PCSTR Service, PCSTR Key) {
    static const PCSTR Starts[] = {
        "BOOT_START", "SYSTEM_START", "AUTO_START", "DEMAND_START", "DISABLED"};
    CHAR Path[260] = "", Display[128];
    ULONG Type = CmQueryDword(Key, "Type", 1), Start = MIN(CmQueryDword(Key, "Start", 3), 4u);
    RtlCopyText(Display, sizeof(Display), Service);
    CmQueryString(Key, "DisplayName", Display, sizeof(Display));
    CmQueryString(Key, "ImagePath", Path, sizeof(Path));
    OutputPrint(Output, "[SC] QueryServiceConfig SUCCESS\n\nSERVICE_NAME: %s\n", Service);
    OutputPrint(Output, "        TYPE               : %u  %s \n", Type, ScTypeName(Type));
    OutputPrint(Output, "        START_TYPE         : %u   %s\n", Start, Starts[Start]);
    OutputPrint(Output, "        ERROR_CONTROL      : 1   NORMAL\n");
    OutputPrint(Output, "        BINARY_PATH_NAME   : %s\n        LOAD_ORDER_GROUP   : \n", Path);
    OutputPrint(
        Output, "        TAG                : 0\n        DISPLAY_NAME       : %s\n", Display);
    OutputPrint(Output, "        DEPENDENCIES       : \n        SERVICE_START_NAME : \n");
    return 0;
}

/* `sc query type= driver [state= all]`; without a type Windows lists Win32 services: there are
 * none. */
static int ScEnumerate(int Count, PCHAR *Arguments, POUTPUT Output) {
    PCSTR Type = ScOption(Count, Arguments, "type"), State = ScOption(Count, Arguments, "state");
    BOOLEAN Drivers = Type != NULL && (Same(Type, "driver") || Same(Type, "all"));
    for (PCM_KEY Key = NULL; Drivers && (Key = CmNextSubkey(CM_SERVICES, Key)) != NULL;) {
        PCSTR Service = Key->Path + sizeof(CM_SERVICES);
        if (CmFindValue(Key, "Type") && (IopFindDriver(Service) || (State && Same(State, "all"))))
            ScPrintState(Output, Service, Key->Path, FALSE);
    }
    return 0;
}

int ScMain(int Count, PCHAR *Arguments, POUTPUT Output, POUTPUT Errors) {
    static const struct {
        PCSTR Verb, Open;
        int (*Run)(POUTPUT Output, PCSTR Service, PCSTR Key);
    } Verbs[] = {
        {"start", "StartService: OpenService", ScStart},
        {"stop", "OpenService", ScStop},
        {"query", "EnumQueryServicesStatus:OpenService", ScQuery},
        {"queryex", "EnumQueryServicesStatus:OpenService", ScQueryExtended},
        {"qc", "OpenService", ScShowConfiguration},
        {"delete", "OpenService", ScDelete},
    };
    CHAR Key[200];
    PCSTR Verb = Count > 1 ? Arguments[1] : "";
    UNREFERENCED(Errors);
    if (Count > 3 && (Same(Verb, "create") || Same(Verb, "config")))
        return ScConfigure(Count, Arguments, Output, Same(Verb, "create"));
    if (Same(Verb, "query") && (Count == 2 || strchr(Arguments[2], '=') != NULL))
        return ScEnumerate(Count, Arguments, Output);
    for (ULONG i = 0; i < ARRAY_SIZE(Verbs) && Count > 2; i++) {
        if (!Same(Verb, Verbs[i].Verb)) continue;
        if (!ServicePath(Key, sizeof(Key), Arguments[2]))
            return ScFail(Output, Verbs[i].Open, 1060);
        return Verbs[i].Run(Output, Arguments[2], Key);
    }
    return ScUsage(Output);
}
