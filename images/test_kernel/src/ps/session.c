/* What happens after the kernel is up: drivers, session manager, services, agent, and the scripted
 * source of processes that keeps notify callbacks busy. */
#include "ke.h"

typedef struct _SCRIPTED_PROCESS {
    PCSTR Image, CommandLine;
} SCRIPTED_PROCESS;

#define SYSTEM32 "C:\\Windows\\System32\\"

static const SCRIPTED_PROCESS SmpInitialProcesses[] = {
    {SYSTEM32 "smss.exe", "\\SystemRoot\\System32\\smss.exe"},
    {SYSTEM32 "csrss.exe", "%SystemRoot%\\system32\\csrss.exe ObjectDirectory=\\Windows"},
    {SYSTEM32 "wininit.exe", "wininit.exe"},
    {SYSTEM32 "services.exe", "C:\\Windows\\system32\\services.exe"},
    {SYSTEM32 "lsass.exe", "C:\\Windows\\system32\\lsass.exe"},
    {SYSTEM32 "svchost.exe", "C:\\Windows\\system32\\svchost.exe -k DcomLaunch -p"}};
static const SCRIPTED_PROCESS SmpPassingProcesses[] = {{SYSTEM32 "taskhostw.exe", "taskhostw.exe"},
    {SYSTEM32 "conhost.exe", "\\??\\C:\\Windows\\system32\\conhost.exe 0x4"},
    {SYSTEM32 "svchost.exe", "C:\\Windows\\system32\\svchost.exe -k netsvcs -p"},
    {SYSTEM32 "backgroundTaskHost.exe", "backgroundTaskHost.exe -ServerName:App"}};
static PEPROCESS SmpServices; /* parent of what follows */

/* Something starts every second, as on any machine that is on. */
static void SmpProcessSource(PVOID Context) {
    UNREFERENCED(Context);
    for (ULONG i = 0;; i++) {
        const SCRIPTED_PROCESS *Next = &SmpPassingProcesses[i % ARRAY_SIZE(SmpPassingProcesses)];
        NTSTATUS Status;
        PEPROCESS Process = PspCreateProcess(Next->Image, Next->CommandLine, SmpServices, &Status);
        KiSleep(1000);
        if (Process) PspExitProcess(Process);
    }
}

static void SmpWatchPowerButton(PVOID Context) {
    UNREFERENCED(Context);
    while (!HalPowerButtonPressed()) KiSleep(50);
    PopRequestShutdown(FALSE);
}

void SmpStart(void) {
    PEPROCESS Parent = PsInitialSystemProcess;
    NTSTATUS Status;
    for (ULONG i = 0; i < ARRAY_SIZE(SmpInitialProcesses); i++) {
        PEPROCESS Process = PspCreateProcess(
            SmpInitialProcesses[i].Image, SmpInitialProcesses[i].CommandLine, Parent, &Status);
        if (i == 0) /* smss.exe: page files, and with them the last crash's dump */
            IopCopyCrashDump();
        if (Process && i < 4) Parent = Process;
    }
    SmpServices = Parent;
    IopLoadDrivers(2);
    QgaStart();
    HalSerialPrint("\nEVENT: The CMD command is now available.\nSAC>");
    BootStatusSucceed();
    KiStartThread(SmpWatchPowerButton, NULL, NULL);
    KiStartThread(SmpProcessSource, NULL, NULL);
}

/* Shutdown or restart: drivers that can are unloaded, the disk's cache is written. */
static void PopGracefulShutdown(PVOID Reboot) {
    for (PLIST_ENTRY Link = IopDrivers.Blink, Previous; Link != &IopDrivers; Link = Previous) {
        Previous = Link->Blink;
        IopUnloadDriver(CONTAINING_RECORD(Link, IO_DRIVER, Link)->Service);
    }
    HalDiskFlush();
    if (Reboot) HalReboot();
    HalPowerOff();
}

void PopRequestShutdown(BOOLEAN Reboot) {
    static BOOLEAN Begun;
    if (__atomic_exchange_n(&Begun, TRUE, __ATOMIC_SEQ_CST)) return;
    KiStartThread(PopGracefulShutdown, (PVOID)(ULONG64)Reboot, NULL);
}

void Phase1Initialization(PVOID Context) {
    UNREFERENCED(Context);
    if (!NT_SUCCESS(HalDiskInitialize()) || !NT_SUCCESS(FatMount()))
        KeBugCheckEx(0x7B, (ULONG64)KeLoaderBlock, 0xFFFFFFFFC0000034, 0, 0);
    CmInitialize();
    HalKeyboardInitialize();
    HalSerialInitialize();
    KiAutoReboot = CmQueryDword(CM_CRASH_CONTROL, "AutoReboot", 1) != 0;
    KiCrashOnCtrlScroll =
        CmQueryDword(CM_SERVICES "\\i8042prt\\Parameters", "CrashOnCtrlScroll", 0) != 0;
    KiSetWatchdog();
    KiStartThread(SacThread, NULL, NULL);
    BootStatusBegin();
    IopInitializeCrashDump();
    HalPublishVmcoreinfo(KiDumpHeader);
    IopLoadDrivers(0);
    IopLoadDrivers(1);
    SmpStart();
}
