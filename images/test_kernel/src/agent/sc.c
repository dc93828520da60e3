/* sc.exe for kernel drivers, the only services here. It fails on its output, as Windows' does. */
#include "agent.h"

enum { DISABLED = 4 }; /* of a service's Start */

static int ScFail(PPROGRAM Program, PCSTR Call, ULONG Error) {
    return EXIT(Error, "[SC] %s FAILED %u:\n\n%s\n\n", Call, Error, Win32Message(Error));
}

static int ScEnd(PPROGRAM Program, PCSTR Call, NTSTATUS Status) {
    if (!NT_SUCCESS(Status)) return ScFail(Program, Call, Win32Error(Status));
    return EXIT(0, "[SC] %s SUCCESS\n", Call);
}

static int ScUsage(PPROGRAM Program) {
    enum { INVALID_COMMAND_LINE = 1639 };
    return EXIT(INVALID_COMMAND_LINE,
        "ERROR:  invalid command line\n\nUSAGE:\n        sc start|stop|query|delete [service "
        "name]\n"
        "        sc create [service name] type= kernel binPath= <path>\n"
        "           start= <boot|system|auto|demand|disabled>\n");
}

static int ScCreate(PPROGRAM Program, PCSTR Service) {
    static const PCSTR Starts[] = {"boot", "system", "auto", "demand", "disabled"};
    PCSTR Type = ProgramOption(Program, "type="), Start = ProgramOption(Program, "start=");
    PCSTR Binary = ProgramOption(Program, "binPath=");
    CHAR Path[260];
    ULONG i = 0;
    while (i < ARRAY_SIZE(Starts) && !Same(Starts[i], Start ? Start : "demand")) i++;
    if (!Binary || !*Binary || strchr(Service, '\\') || i == ARRAY_SIZE(Starts))
        return ScUsage(Program);
    if (ServiceKey(Service) != NULL) return ScFail(Program, "CreateService", 1073);
    if (!Type || !Same(Type, "kernel")) /* there is no user mode to run others in */
        return ScEnd(Program, "CreateService", STATUS_NOT_SUPPORTED);
    /* the service control manager stores a driver's DOS path as an NT one */
    RtlFormat(Path, sizeof(Path), "%s%s", Binary[1] == ':' ? "\\??\\" : "", Binary);
    return ScEnd(Program, "CreateService", ServiceStore(Service, i, Path));
}

static int ScQuery(PPROGRAM Program, PCSTR Service, PCM_KEY Key) {
    PIO_DRIVER Driver = IopFindDriver(Service);
    /* 1077: no attempt to start it has been made since the last boot */
    ULONG ExitCode = Driver ? 0 : NT_SUCCESS(Key->LoadStatus) ? 1077 : Win32Error(Key->LoadStatus);
    PRINT("\nSERVICE_NAME: %s \n        TYPE               : 1  KERNEL_DRIVER  \n", Service);
    PRINT("        STATE              : %s \n", Driver ? "4  RUNNING" : "1  STOPPED");
    if (Driver != NULL)
        PRINT("%32s(%sSTOPPABLE, NOT_PAUSABLE, IGNORES_SHUTDOWN)\n", "",
            Driver->Object.DriverUnload ? "" : "NOT_");
    PRINT("        WIN32_EXIT_CODE    : %u  (0x%x)\n", ExitCode, ExitCode);
    return EXIT(0, "        SERVICE_EXIT_CODE  : 0  (0x0)\n        CHECKPOINT         : 0x0\n"
                   "        WAIT_HINT          : 0x0\n");
}

int ScMain(PPROGRAM Program) {
    PCSTR Verb = Program->Count > 2 ? Program->Arguments[1] : "", Service = Program->Arguments[2];
    BOOLEAN Start = Same(Verb, "start"), Query = Same(Verb, "query"), Stop = Same(Verb, "stop");
    NTSTATUS Status = STATUS_SUCCESS;
    if (Same(Verb, "create")) return ScCreate(Program, Service);
    if (!Start && !Query && !Stop && !Same(Verb, "delete")) return ScUsage(Program);
    PCM_KEY Key = ServiceKey(Service);
    if (Key == NULL && Start) return ScFail(Program, "StartService: OpenService", 1060);
    if (Key == NULL && Query) return ScFail(Program, "EnumQueryServicesStatus:OpenService", 1060);
    if (Key == NULL) return ScFail(Program, "OpenService", 1060);
    if (!Start && !Query && !Stop) return ScEnd(Program, "DeleteService", CmDeleteKey(Key->Path));
    if (Start && CmQueryDword(Key->Path, "Start", 3) == DISABLED)
        return ScFail(Program, "StartService", 1058);
    if (Start) Status = IopLoadDriver(Service);
    if (Stop) Status = IopUnloadDriver(Service);
    if (NT_SUCCESS(Status)) return ScQuery(Program, Service, Key);
    if (Stop) return ScFail(Program, "ControlService", Status == STATUS_NOT_FOUND ? 1062 : 1052);
    if (*IopLoadError) FAIL(0, "%s\n", IopLoadError); /* ours: Windows does not say which import */
    return ScFail(Program, "StartService", Win32Error(Status));
}
