/* The table of built-in programs, what they share, and the small ones. They behave, print and exit
 * as those of Windows 10 do, as far as documents show it; compared with none. */
#include "agent.h"

PCSTR ProgramOption(PPROGRAM Program, PCSTR Name) {
    for (int i = 1; i < Program->Count; i++) {
        PCSTR Given = Program->Arguments[i];
        BOOLEAN Dash = *Given == '-' && *Name == '/'; /* "-v" is "/v" */
        if (Same(Given + Dash, Name + Dash))
            return i + 1 < Program->Count ? Program->Arguments[i + 1] : "";
    }
    return NULL;
}

PCM_KEY ServiceKey(PCSTR Service) {
    CHAR Path[200];
    RtlFormat(Path, sizeof(Path), "%s\\%s", CM_SERVICES, Service);
    return strchr(Service, '\\') == NULL ? CmFindKey(Path) : NULL;
}

NTSTATUS ServiceStore(PCSTR Service, ULONG Start, PCSTR ImagePath) {
    static const ULONG KernelDriver = 1, NormalErrors = 1;
    CHAR Key[200];
    RtlFormat(Key, sizeof(Key), "%s\\%s", CM_SERVICES, Service);
    TRY(CmSetValue(Key, "Type", REG_DWORD, &KernelDriver, 4));
    TRY(CmSetValue(Key, "Start", REG_DWORD, &Start, 4));
    TRY(CmSetValue(Key, "ErrorControl", REG_DWORD, &NormalErrors, 4));
    return CmSetValue(Key, "ImagePath", REG_EXPAND_SZ, ImagePath, (ULONG)strlen(ImagePath) + 1);
}

/* -- shutdown /s | /r [/t seconds] ------------------------------------------------------------- */
static ULONG64 ShutdownSeconds;
static BOOLEAN ShutdownReboots, ShutdownPending;

static void ShutdownThread(PVOID Context) {
    UNREFERENCED(Context);
    KiSleep((ULONG)ShutdownSeconds * 1000);
    PopRequestShutdown(ShutdownReboots);
}

static int ShutdownMain(PPROGRAM Program) {
    PCSTR Delay = ProgramOption(Program, "/t");
    BOOLEAN Reboot = ProgramOption(Program, "/r") != NULL;
    ULONG64 Seconds = 30;
    if ((!Reboot && !ProgramOption(Program, "/s")) ||
        (Delay && !RtlTextToInteger(Delay, 10, &Seconds)) || Seconds > 4000000)
        return EXIT(1, "Usage: shutdown /s | /r [/f] [/t xxx]\n");
    if (ShutdownPending) return FAIL(1190, "A system shutdown has already been scheduled.(1190)\n");
    ShutdownSeconds = Seconds;
    ShutdownReboots = Reboot;
    ShutdownPending = NT_SUCCESS(KiStartThread(ShutdownThread, NULL, NULL));
    return ShutdownPending ? 0 : 8;
}

int ProgramRun(PROGRAM_MAIN *Main, PPROGRAM Program) {
    static KI_MUTEX OneAtATime; /* programs share services, registry and modules */
    KiAcquireMutex(&OneAtATime);
    int ExitCode = Main(Program);
    KiReleaseMutex(&OneAtATime);
    return ExitCode;
}

PROGRAM_MAIN *ProgramFind(PCSTR Path) {
    static const struct {
        PCSTR Name;
        PROGRAM_MAIN *Main;
    } Programs[] = {{"sc.exe", ScMain}, {"reg.exe", RegMain}, {"pnputil.exe", PnpUtilMain},
        {"driverquery.exe", DriverQueryMain}, {"shutdown.exe", ShutdownMain}};
    static const CHAR Folder[] = "C:\\Windows\\System32\\";
    if (RtlCompareTextInsensitiveN(Path, Folder, sizeof(Folder) - 1) != 0) return NULL;
    for (ULONG i = 0; i < ARRAY_SIZE(Programs); i++)
        if (Same(Path + sizeof(Folder) - 1, Programs[i].Name)) return Programs[i].Main;
    return NULL;
}
