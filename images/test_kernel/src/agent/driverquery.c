/* driverquery.exe: the columns of Windows' /v, and three of our own at the end (Base Address, Image
 * Size(bytes), Time Stamp) that say which image is really loaded. Windows lists driver services,
 * also stopped ones; this lists what is in PsLoadedModuleList. */
#include "agent.h"

enum { COLUMNS = 18, CELL = 80 };
typedef CHAR DRIVER_ROW[COLUMNS][CELL];
static const DRIVER_ROW DriverTitles = {"Module Name", "Display Name", "Description", "Driver Type",
    "Start Mode", "State", "Status", "Accept Stop", "Accept Pause", "Paged Pool(bytes)",
    "Code(bytes)", "BSS(bytes)", "Link Date", "Path", "Init(bytes)", "Base Address",
    "Image Size(bytes)", "Time Stamp"};
static const UCHAR DriverWidths[COLUMNS] = {
    12, 22, 22, 13, 10, 10, 10, 11, 12, 17, 12, 10, 22, 48, 11, 18, 17, 10};

static void DriverPutNumber(PCHAR Cell, ULONG Number) {
    ULONG High = Number / 1000000, Middle = Number / 1000 % 1000, Low = Number % 1000;
    PCSTR Format = High ? "%u,%03u,%03u" : Middle ? "%.0u%u,%03u" : "%.0u%.0u%u";
    RtlFormat(Cell, CELL, Format, High, Middle, Low);
}

/* Sizes of the sections, from the image's header (Microsoft, "PE Format"). */
static void DriverPutSections(PUCHAR Base, DRIVER_ROW Row) {
    PUCHAR Header = Base + *(PULONG)(Base + 0x3C), Section = Header + 24 + *(PUSHORT)(Header + 20);
    ULONG Code = 0, Bss = 0, Init = 0, Paged = 0;
    for (USHORT Count = *(PUSHORT)(Header + 6); Count > 0; Count--, Section += 40) {
        ULONG Size = *(PULONG)(Section + 8), Flags = *(PULONG)(Section + 36);
        Code += Flags & 0x20 ? Size : 0;
        Bss += Flags & 0x80 ? Size : 0;
        Paged += memcmp(Section, "PAGE", 4) == 0 ? Size : 0;
        Init += memcmp(Section, "INIT", 4) == 0 ? Size : 0;
    }
    DriverPutNumber(Row[9], Paged);
    DriverPutNumber(Row[10], Code);
    DriverPutNumber(Row[11], Bss);
    DriverPutNumber(Row[14], Init);
}

static void DriverDescribe(PKLDR_DATA_TABLE_ENTRY Module, DRIVER_ROW Row) {
    static const PCSTR Starts[] = {"Boot", "System", "Auto", "Manual", "Disabled"};
    CHAR Key[200];
    KI_DATE Date;
    PIO_DRIVER Driver = NULL;
    for (PLIST_ENTRY Entry = IopDrivers.Flink; Entry != &IopDrivers; Entry = Entry->Flink)
        if (CONTAINING_RECORD(Entry, IO_DRIVER, Link)->Object.DriverStart == Module->DllBase)
            Driver = CONTAINING_RECORD(Entry, IO_DRIVER, Link);
    RtlUnicodeToText(&Module->BaseDllName, Row[0], CELL);
    PCHAR Dot = strchr(Row[0], '.');
    if (Dot != NULL) *Dot = 0;
    if (Driver != NULL) RtlCopyText(Row[0], CELL, Driver->Service);
    ServicePath(Key, sizeof(Key), Row[0]);
    RtlCopyText(Row[1], CELL, Row[0]);
    CmQueryString(Key, "DisplayName", Row[1], CELL);
    RtlCopyText(Row[2], CELL, Row[1]); /* Windows, too, shows the display name twice */
    RtlCopyText(Row[3], CELL, CmQueryDword(Key, "Type", 1) == 2 ? "File System " : "Kernel ");
    RtlCopyText(Row[4], CELL, Starts[MIN(CmQueryDword(Key, "Start", 0), 4u)]);
    RtlCopyText(Row[5], CELL, "Running");
    RtlCopyText(Row[6], CELL, "OK");
    RtlCopyText(Row[7], CELL, Driver && Driver->Object.DriverUnload ? "TRUE" : "FALSE");
    RtlCopyText(Row[8], CELL, "FALSE");
    DriverPutSections(Module->DllBase, Row);
    KiTimeToDate(116444736000000000LL + Module->TimeDateStamp * 10000000LL, &Date);
    RtlFormat(Row[12], CELL, "%u/%u/%u %u:%02u:%02u %s", Date.Month, Date.Day, Date.Year,
        (Date.Hour + 11) % 12 + 1, Date.Minute, Date.Second, Date.Hour < 12 ? "AM" : "PM");
    RtlUnicodeToText(&Module->FullDllName, Row[13], CELL);
    RtlFormat(Row[15], CELL, "0x%016llx", (ULONG64)Module->DllBase);
    DriverPutNumber(Row[16], Module->SizeOfImage);
    RtlFormat(Row[17], CELL, "0x%08x", Module->TimeDateStamp);
}

static void DriverPrint(POUTPUT Output, const DRIVER_ROW Row, PCSTR Style, BOOLEAN Verbose) {
    for (ULONG i = 0; i < COLUMNS; i++) {
        int Width = DriverWidths[i];
        if (!Verbose && i != 0 && i != 1 && i != 3 && i != 12) continue;
        if (Same(Style, "csv"))
            OutputPrint(Output, "%s\"%s\"", i ? "," : "", Row[i]);
        else if (Same(Style, "list"))
            OutputPrint(Output, "%s:%*s%s\n", DriverTitles[i], 19 - (int)strlen(DriverTitles[i]),
                "", Row[i]);
        else
            OutputPrint(Output, "%s%-*.*s", i ? " " : "", Width, Width, Row[i]);
    }
    OutputPrint(Output, "\n");
}

int DriverQueryMain(int Count, PCHAR *Arguments, POUTPUT Output, POUTPUT Errors) {
    BOOLEAN Verbose = ProgramFlag(Count, Arguments, "v");
    PCSTR Style = ProgramOption(Count, Arguments, "fo");
    Style = Style == NULL ? "table" : Style;
    DRIVER_ROW *Row = KiAllocate(sizeof(*Row));
    if (!Row || (!Same(Style, "table") && !Same(Style, "list") && !Same(Style, "csv"))) {
        OutputPrint(Errors, "ERROR: Invalid syntax. Invalid value specified for '/fo' option.\n"
                            "Type \"DRIVERQUERY /?\" for usage.\n");
        return 1;
    }
    if (!Same(Style, "csv")) OutputPrint(Output, "\n");
    if (!Same(Style, "list") && !ProgramFlag(Count, Arguments, "nh")) {
        DriverPrint(Output, DriverTitles, Style, Verbose);
        for (ULONG i = 0; i < COLUMNS; i++) {
            memset((*Row)[i], '=', DriverWidths[i]);
            (*Row)[i][DriverWidths[i]] = 0;
        }
        if (Same(Style, "table")) DriverPrint(Output, *Row, Style, Verbose);
    }
    for (PLIST_ENTRY Entry = PsLoadedModuleList.Flink; Entry != &PsLoadedModuleList;
         Entry = Entry->Flink) {
        DriverDescribe(CONTAINING_RECORD(Entry, KLDR_DATA_TABLE_ENTRY, InLoadOrderLinks), *Row);
        DriverPrint(Output, *Row, Style, Verbose);
    }
    KiFree(Row);
    return 0;
}
