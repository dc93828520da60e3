/* driverquery.exe /v [/fo table|csv]: Windows' columns but for the section sizes, and three of our
 * own at the end that say which image is really loaded. Windows lists stopped drivers, too. */
#include "agent.h"

#define DRIVER_TABLE                                                                               \
    "%-12.12s %-22.22s %-22.22s %-11s %-10s %-7s %-6s %-11s %-12s %-22s %-48s %-18s %-17s %s\n"
#define DRIVER_CSV                                                                                 \
    "\"%s\",\"%s\",\"%s\",\"%s\",\"%s\",\"%s\",\"%s\",\"%s\",\"%s\",\"%s\",\"%s\",\"%s\",\"%s\","  \
    "\"%s\"\n"

static void DriverPrint(
    PPROGRAM Program, PCSTR Format, PCSTR Name, PKLDR_DATA_TABLE_ENTRY Module, PCSTR CanStop) {
    static const PCSTR Starts[] = {"Boot", "System", "Auto", "Manual", "Disabled"};
    CHAR Display[80], Date[32], Path[200], Base[20], Size[12], Stamp[12];
    KI_DATE Link;
    PCM_KEY Key = ServiceKey(Name); /* the kernel has none */
    PCSTR Start = Starts[Key ? MIN(CmQueryDword(Key->Path, "Start", 0), 4u) : 0];
    RtlCopyText(Display, sizeof(Display), Name);
    if (Key != NULL) CmQueryString(Key->Path, "DisplayName", Display, sizeof(Display));
    KiTimeToDate(116444736000000000LL + Module->TimeDateStamp * 10000000LL, &Link);
    RtlFormat(Date, sizeof(Date), "%u/%u/%u %u:%02u:%02u %s", Link.Month, Link.Day, Link.Year,
        (Link.Hour + 11) % 12 + 1, Link.Minute, Link.Second, Link.Hour < 12 ? "AM" : "PM");
    RtlUnicodeToText(&Module->FullDllName, Path, sizeof(Path));
    RtlFormat(Base, sizeof(Base), "0x%016llx", (ULONG64)Module->DllBase);
    RtlFormat(Size, sizeof(Size), "%u", Module->SizeOfImage);
    RtlFormat(Stamp, sizeof(Stamp), "0x%08x", Module->TimeDateStamp);
    PRINT(Format, Name, Display, Display, "Kernel", Start, "Running", "OK", CanStop, "FALSE", Date,
        Path, Base, Size, Stamp);
}

int DriverQueryMain(PPROGRAM Program) {
    PCSTR Wanted = ProgramOption(Program, "/fo");
    PCSTR Format = Wanted != NULL && Same(Wanted, "csv") ? DRIVER_CSV : DRIVER_TABLE;
    PRINT(Format, "Module Name", "Display Name", "Description", "Driver Type", "Start Mode",
        "State", "Status", "Accept Stop", "Accept Pause", "Link Date", "Path", "Base Address",
        "Image Size(bytes)", "Time Stamp");
    DriverPrint(Program, Format, "ntoskrnl", MiModuleFromAddress((ULONG64)DriverPrint), "FALSE");
    for (PLIST_ENTRY Entry = IopDrivers.Flink; Entry != &IopDrivers; Entry = Entry->Flink) {
        PIO_DRIVER Driver = CONTAINING_RECORD(Entry, IO_DRIVER, Link);
        PCSTR CanStop = Driver->Object.DriverUnload ? "TRUE" : "FALSE";
        DriverPrint(Program, Format, Driver->Service, Driver->Object.DriverSection, CanStop);
    }
    return 0;
}
