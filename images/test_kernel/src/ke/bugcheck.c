/* The end of a boot: what a bug check shows, tells and keeps. No interrupts, no locks, no pool. */
#include "ke.h"

ULONG64 KiBugcheckData[5];
BOOLEAN KiCrashing, KiAutoReboot = TRUE, KiCrashOnCtrlScroll;
const ULONG64 KiPrcbContextOffset = offsetof(KPRCB, Context);

static const struct {
    ULONG Code;
    PCSTR Name;
} KiBugcheckNames[] = {{0x0A, "IRQL_NOT_LESS_OR_EQUAL"}, {0x19, "BAD_POOL_HEADER"},
    {0x18, "REFERENCE_BY_POINTER"}, {0x50, "PAGE_FAULT_IN_NONPAGED_AREA"},
    {0x7E, "SYSTEM_THREAD_EXCEPTION_NOT_HANDLED"}, {0x7B, "INACCESSIBLE_BOOT_DEVICE"},
    {0x7F, "UNEXPECTED_KERNEL_MODE_TRAP"}, {0x80, "NMI_HARDWARE_FAILURE"},
    {0xB8, "ATTEMPTED_SWITCH_FROM_DPC"}, {0xBE, "ATTEMPTED_WRITE_TO_READONLY_MEMORY"},
    {0xC2, "BAD_POOL_CALLER"}, {0xD1, "DRIVER_IRQL_NOT_LESS_OR_EQUAL"},
    {0xE2, "MANUALLY_INITIATED_CRASH"}, {0xFC, "ATTEMPTED_EXECUTE_OF_NOEXECUTE_MEMORY"},
    {0x133, "DPC_WATCHDOG_VIOLATION"}};

#define BLUE 0x1F

static ULONG KiRow;
static void KiScreenLine(PCSTR Format, ...) {
    CHAR Text[160];
    va_list Arguments;
    va_start(Arguments, Format);
    RtlFormatV(Text, sizeof(Text), Format, Arguments);
    va_end(Arguments);
    HalScreenPrint(KiRow++, 0, BLUE, Text);
    HalSerialPrint("%s\n", Text); /* EMS redirects the stop text */
}

static void KiShowDumpProgress(ULONG Percent) {
    CHAR Text[64];
    RtlFormat(Text, sizeof(Text), "Dumping physical memory to disk: %3u", Percent);
    HalScreenPrint(KiRow, 0, BLUE, Text);
}

/* The instruction a bug check is about, and the driver it lies in; 0 where the code names none. */
static ULONG64 KiFaultingAddress(ULONG Code, const ULONG64 *P) {
    PKTRAP_FRAME TrapFrame = (PKTRAP_FRAME)P[2]; /* or anything, in a driver's own bug check */
    if (Code == 0x0A || Code == 0xD1) return P[3];
    if (Code == 0x7E) return P[1];
    if (Code == 0x133) TrapFrame = KiWatchdogTrapFrame;
    if (Code != 0x50 && Code != 0xBE && Code != 0xFC && Code != 0x133) return 0;
    return MiIsAddressValid(&TrapFrame->Rip) ? TrapFrame->Rip : 0;
}

static void KiShowBlueScreen(PKLDR_DATA_TABLE_ENTRY Driver, ULONG64 Address) {
    PCSTR Name = "";
    CHAR DriverName[64] = "";
    for (ULONG i = 0; i < ARRAY_SIZE(KiBugcheckNames); i++)
        if (KiBugcheckNames[i].Code == (ULONG)KiBugcheckData[0]) Name = KiBugcheckNames[i].Name;
    HalScreenClear(BLUE);
    KiScreenLine("A problem has been detected and Windows has been shut down to prevent damage");
    KiScreenLine("to your computer.");
    KiScreenLine("");
    KiScreenLine("%s", Name);
    KiScreenLine("");
    if (Driver) {
        RtlUnicodeToText(&Driver->BaseDllName, DriverName, sizeof(DriverName));
        KiScreenLine("%s", DriverName);
        KiScreenLine("");
    }
    KiScreenLine("Technical information:");
    KiScreenLine("");
    KiScreenLine("*** STOP: 0x%08X (0x%016llX,0x%016llX,", (ULONG)KiBugcheckData[0],
        KiBugcheckData[1], KiBugcheckData[2]);
    KiScreenLine(
        "                       0x%016llX,0x%016llX)", KiBugcheckData[3], KiBugcheckData[4]);
    KiScreenLine("");
    if (Driver)
        KiScreenLine("***  %s Address %llX base at %llX,\n     DateStamp %08x", DriverName, Address,
            (ULONG64)Driver->DllBase, Driver->TimeDateStamp);
    KiRow += Driver != NULL;
    KiScreenLine("");
}

NORETURN void KeBugCheck2(ULONG Code, ULONG64 P1, ULONG64 P2, ULONG64 P3, ULONG64 P4) {
    const ULONG64 Raw[4] = {P1, P2, P3, P4};
    if (KiCrashing) { /* a fault while crashing: what is on disk stays as it is */
        HalDebugPrint("bug check within a bug check\n");
        if (KiAutoReboot) HalReboot();
        HalHalt();
    }
    KiCrashing = TRUE;
    KfRaiseIrql(HIGH_LEVEL);
    ULONG64 Address = KiFaultingAddress(Code, Raw);
    PKLDR_DATA_TABLE_ENTRY Driver = MiModuleFromAddress(Address);
    if (Driver && Driver->InLoadOrderLinks.Blink == &PsLoadedModuleList)
        Driver = NULL; /* the kernel itself */
    if (Code == 0x0A && Driver) Code = 0xD1;
    if (Code == 0x50) /* shown and stored: the instruction; on the stack: the trap frame */
        P3 = Address;
    KiBugcheckData[0] = Code;
    KiBugcheckData[1] = P1, KiBugcheckData[2] = P2, KiBugcheckData[3] = P3, KiBugcheckData[4] = P4;
    BOOLEAN DumpOff = IopCrashDumpType() == 0;
    SacTellBugCheck();
    KiShowBlueScreen(Driver, Address);
    HalPvpanic(DumpOff ? PVPANIC_PANICKED : PVPANIC_CRASHLOADED); /* the first may stop us here */
    if (!DumpOff) {
        KiScreenLine("Collecting data for crash dump ...");
        KiScreenLine("Initializing disk for crash dump ...");
        KiScreenLine("Beginning dump of physical memory.");
        IopDumpProgress = KiShowDumpProgress;
        BOOLEAN Written = IopWriteCrashDump();
        KiRow += Written;
        KiScreenLine("%s", Written ? "Physical memory dump complete." : IopDumpFailure);
    }
    if (KiAutoReboot) HalReboot();
    SacAfterCrash();
}
