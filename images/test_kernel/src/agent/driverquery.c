/* driverquery.exe: the columns of Windows' /v, and three of our own at the end (Base Address, Image
 * Size(bytes), Time Stamp) that say which image is really loaded. Windows lists driver services,
 * also stopped ones; this lists what is in PsLoadedModuleList. */
#include "agent.h"

enum { COLUMNS = 18, CELL = 80 };
static const struct {
    PCSTR Title;
    ULONG Width;
    BOOLEAN Short; /* also without /v */
} DriverColumns[COLUMNS] = {
    {"Module Name", 12, TRUE},
    {"Display Name", 22, TRUE},
    {"Description", 22, FALSE},
    {"Driver Type", 13, TRUE},
    {"Start Mode", 10, FALSE},
    {"State", 10, FALSE},
    {"Status", 10, FALSE},
    {"Accept Stop", 11, FALSE},
    {"Accept Pause", 12, FALSE},
    {"Paged Pool(bytes)", 17, FALSE},
    {"Code(bytes)", 12, FALSE},
    {"BSS(bytes)", 10, FALSE},
    {"Link Date", 22, TRUE},
    {"Path", 50, FALSE},
    {"Init(bytes)", 11, FALSE},
    {"Base Address", 18, FALSE},
    {"Image Size(bytes)", 17, FALSE},
    {"Time Stamp", 10, FALSE},
};

/* The parts of a PE header that are read here (Microsoft, "PE Format"). */
typedef struct _SECTION {
    CHAR Name[8];
    ULONG VirtualSize, VirtualAddress, RawSize, RawOffset, Unused[3], Characteristics;
} SECTION;
enum { SECTION_CODE = 0x20, SECTION_BSS = 0x80 };

static void DriverPutNumber(PCHAR Cell, ULONG Number) {
    if (Number < 1000)
        RtlFormat(Cell, CELL, "%u", Number);
    else if (Number < 1000000)
        RtlFormat(Cell, CELL, "%u,%03u", Number / 1000, Number % 1000);
    else
        RtlFormat(
            Cell, CELL, "%u,%03u,%03u", Number / 1000000, Number / 1000 % 1000, Number % 1000);
}

static void DriverPutSections(PKLDR_DATA_TABLE_ENTRY Module, CHAR Cells[COLUMNS][CELL]) {
    PUCHAR Base = Module->DllBase, Header = Base + *(PULONG)(Base + 0x3C);
    SECTION *Section = (SECTION *)(Header + 24 + *(PUSHORT)(Header + 20));
    ULONG Code = 0, Bss = 0, Init = 0, Paged = 0;
    for (USHORT i = 0; i < *(PUSHORT)(Header + 6); i++) {
        ULONG Flags = Section[i].Characteristics, Size = Section[i].VirtualSize;
        Code += Flags & SECTION_CODE ? Size : 0;
        Bss += Flags & SECTION_BSS ? Size : 0;
        Paged += memcmp(Section[i].Name, "PAGE", 4) == 0 ? Size : 0;
        Init += memcmp(Section[i].Name, "INIT", 4) == 0 ? Size : 0;
    }
    DriverPutNumber(Cells[9], Paged);
    DriverPutNumber(Cells[10], Code);
    DriverPutNumber(Cells[11], Bss);
    DriverPutNumber(Cells[14], Init);
}

static void DriverDescribe(PKLDR_DATA_TABLE_ENTRY Module, CHAR Cells[COLUMNS][CELL]) {
    static const PCSTR Starts[] = {"Boot", "System", "Auto", "Manual", "Disabled"};
    CHAR Key[200];
    KI_DATE Date;
    PIO_DRIVER Driver = NULL;
    memset(Cells, 0, COLUMNS * CELL);
    for (PLIST_ENTRY Entry = IopDrivers.Flink; Entry != &IopDrivers; Entry = Entry->Flink)
        if (CONTAINING_RECORD(Entry, IO_DRIVER, Link)->Object.DriverStart == Module->DllBase)
            Driver = CONTAINING_RECORD(Entry, IO_DRIVER, Link);
    RtlUnicodeToText(&Module->BaseDllName, Cells[0], CELL);
    if (strchr(Cells[0], '.') != NULL) *strchr(Cells[0], '.') = 0;
    if (Driver != NULL) RtlCopyText(Cells[0], CELL, Driver->Service);
    ServicePath(Key, sizeof(Key), Cells[0]);
    if (!NT_SUCCESS(CmQueryString(Key, "DisplayName", Cells[1], CELL)))
        RtlCopyText(Cells[1], CELL, Cells[0]);
    RtlCopyText(Cells[2], CELL, Cells[1]); /* Windows, too, shows the display name twice */
    RtlCopyText(Cells[3], CELL, CmQueryDword(Key, "Type", 1) == 2 ? "File System " : "Kernel ");
    RtlCopyText(Cells[4], CELL, Starts[MIN(CmQueryDword(Key, "Start", 0), 4u)]);
    RtlCopyText(Cells[5], CELL, "Running");
    RtlCopyText(Cells[6], CELL, "OK");
    RtlCopyText(Cells[7], CELL, Driver != NULL && Driver->Object.DriverUnload ? "TRUE" : "FALSE");
    RtlCopyText(Cells[8], CELL, "FALSE");
    DriverPutSections(Module, Cells);
    KiTimeToDate(116444736000000000LL + Module->TimeDateStamp * 10000000LL, &Date);
    RtlFormat(Cells[12], CELL, "%u/%u/%u %u:%02u:%02u %s", Date.Month, Date.Day, Date.Year,
        (Date.Hour + 11) % 12 + 1, Date.Minute, Date.Second, Date.Hour < 12 ? "AM" : "PM");
    RtlUnicodeToText(&Module->FullDllName, Cells[13], CELL);
    RtlFormat(Cells[15], CELL, "0x%016llx", (ULONG64)Module->DllBase);
    DriverPutNumber(Cells[16], Module->SizeOfImage);
    RtlFormat(Cells[17], CELL, "0x%08x", Module->TimeDateStamp);
}

int DriverQueryMain(int Count, PCHAR *Arguments, POUTPUT Output, POUTPUT Errors) {
    static const PCSTR Formats[] = {"table", "list", "csv"};
    enum { TABLE, LIST, CSV, NONE };
    BOOLEAN Verbose = ProgramFlag(Count, Arguments, "v"),
            Header = !ProgramFlag(Count, Arguments, "nh");
    PCSTR Wanted = ProgramOption(Count, Arguments, "fo");
    ULONG Format = TABLE;
    while (
        Wanted != NULL && Format < NONE && RtlCompareTextInsensitive(Wanted, Formats[Format]) != 0)
        Format++;
    CHAR(*Cells)[CELL] = KiAllocate(COLUMNS * CELL);
    if (Format == NONE || Cells == NULL) {
        OutputPrint(Errors, "ERROR: Invalid syntax. Invalid value specified for '/fo' option.\n"
                            "Type \"DRIVERQUERY /?\" for usage.\n");
        return 1;
    }
    for (ULONG Line = 0; Line < 2 && Format != LIST && Header; Line++) {
        for (ULONG i = 0; i < COLUMNS && (Line == 0 || Format == TABLE); i++) {
            if (!Verbose && !DriverColumns[i].Short) continue;
            if (Format == CSV)
                OutputPrint(Output, "%s\"%s\"", i ? "," : "", DriverColumns[i].Title);
            else if (Line == 0)
                OutputPrint(Output, "%s%-*s", i ? " " : "\n", DriverColumns[i].Width,
                    DriverColumns[i].Title);
            else
                OutputPrint(Output, "%s%.*s", i ? " " : "\n", DriverColumns[i].Width,
                    "==================================================");
        }
    }
    for (PLIST_ENTRY Entry = PsLoadedModuleList.Flink; Entry != &PsLoadedModuleList;
         Entry = Entry->Flink) {
        DriverDescribe(CONTAINING_RECORD(Entry, KLDR_DATA_TABLE_ENTRY, InLoadOrderLinks), Cells);
        for (ULONG i = 0; i < COLUMNS; i++) {
            if (!Verbose && !DriverColumns[i].Short) continue;
            if (Format == CSV)
                OutputPrint(Output, "%s\"%s\"", i ? "," : "\n", Cells[i]);
            else if (Format == LIST)
                OutputPrint(Output, "%s%s:%*s%s\n", i ? "" : "\n", DriverColumns[i].Title,
                    (int)(19 - strlen(DriverColumns[i].Title)), "", Cells[i]);
            else
                OutputPrint(Output, "%s%-*.*s", i ? " " : "\n", DriverColumns[i].Width,
                    DriverColumns[i].Width, Cells[i]);
        }
    }
    OutputPrint(Output, "\n");
    KiFree(Cells);
    return 0;
}
