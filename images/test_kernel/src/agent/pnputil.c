/* pnputil.exe /add-driver X.inf [/install]: a primitive driver's DefaultInstall.NTamd64 (Microsoft
 * Learn, "Creating a primitive driver"); an INF for devices matches none here. INFs are ASCII or
 * UTF-8, their files beside them. Signatures are not checked, as in Windows' test mode. */
#include "agent.h"

enum { NO_MORE_ITEMS = 259, REBOOT_REQUIRED = 3010 }; /* pnputil's own exit codes */
enum { START_SERVICE = 0x800 };                       /* SPSVCINST_STARTSERVICE of AddService */
enum { FIELD = 160, FIELDS = 8, PATH = 260 };
/* What stands between the equals sign and the commas of a line, without quotes and comment. */
typedef CHAR INF_LINE[FIELDS][FIELD];

static void InfSplit(PCSTR At, PCSTR End, INF_LINE Line) {
    BOOLEAN Quoted = FALSE;
    ULONG Field = 0, Length = 0;
    memset(Line, 0, sizeof(INF_LINE));
    for (; At < End && Field < FIELDS && (Quoted || *At != ';'); At++) {
        if (*At == '"')
            Quoted = !Quoted;
        else if (!Quoted && strchr(Field ? "," : ",=", *At))
            Field++, Length = 0;
        else if ((Quoted || (UCHAR)*At > ' ') && Length + 1 < FIELD)
            Line[Field][Length++] = *At;
    }
}

/* The next line of a section; start with *At = NULL. Sections of one name count as one. */
static BOOLEAN InfNext(PCSTR Inf, PCSTR Section, PCSTR *At, INF_LINE Line) {
    BOOLEAN Inside = *At != NULL;
    CHAR Header[FIELD];
    RtlFormat(Header, sizeof(Header), "[%s]", Section);
    for (PCSTR Start = Inside ? *At : Inf; *Start; Start = *At) {
        for (*At = Start; **At && *(*At)++ != '\n';) continue;
        InfSplit(Start, *At, Line);
        if (Inside && *Line[0] && *Line[0] != '[') return TRUE;
        if (*Line[0] == '[') Inside = Same(Line[0], Header);
    }
    return FALSE;
}

static BOOLEAN InfFind(PCSTR Inf, PCSTR Section, PCSTR Key, INF_LINE Line) {
    for (PCSTR At = NULL; InfNext(Inf, Section, &At, Line);)
        if (Same(Line[0], Key)) return TRUE;
    return FALSE;
}

/* Replaces a %name% in a text: a folder by its number (dirid), a string of [Strings] by its name.
 * What is not known becomes "?", which no path can have. */
static void InfExpand(PCSTR Inf, PCSTR Text, PCHAR Expanded) {
    static const PCSTR Folders[] = {
        "\\SystemRoot", "\\SystemRoot\\System32", "\\SystemRoot\\System32\\drivers"}; /* from 10 */
    PCSTR Open = strchr(Text, '%'), Close = Open ? strchr(Open + 1, '%') : NULL, Value = "?";
    INF_LINE Line;
    CHAR Name[FIELD];
    ULONG64 Folder;
    RtlCopyText(Expanded, PATH, Text);
    if (Close == NULL) return;
    RtlFormat(Name, sizeof(Name), "%.*s", (int)(Close - Open - 1), Open + 1);
    if (InfFind(Inf, "Strings", Name, Line)) Value = Line[1];
    if (RtlTextToInteger(Name, 10, &Folder) && Folder - 10 < ARRAY_SIZE(Folders))
        Value = Folders[Folder - 10];
    RtlFormat(Expanded, PATH, "%.*s%s%s", (int)(Open - Text), Text, Value, Close + 1);
}

/* Copies the files that a section lists to where [DestinationDirs] sends them. */
static NTSTATUS PnpCopyFiles(PCSTR Inf, PCSTR Package, PCSTR List) {
    INF_LINE Line;
    CHAR From[PATH], To[PATH], Folder[PATH];
    FAT_FILE Made;
    PVOID Data;
    ULONG Size;
    if (!InfFind(Inf, "DestinationDirs", List, Line) &&
        !InfFind(Inf, "DestinationDirs", "DefaultDestDir", Line))
        return STATUS_INVALID_PARAMETER;
    RtlFormat(From, PATH, *Line[2] ? "%%%s%%\\%s" : "%%%s%%", Line[1], Line[2]);
    InfExpand(Inf, From, To);
    TRY(IopVolumePath(To, Folder, PATH));
    FatCreate(Folder, TRUE, &Made); /* it may be there */
    for (PCSTR At = NULL; InfNext(Inf, List, &At, Line);) {
        RtlFormat(To, PATH, "%s\\%s", Folder, Line[0]);
        RtlFormat(From, PATH, "%s\\%s", Package, *Line[1] ? Line[1] : Line[0]);
        TRY(FatLoadFile(From, &Data, &Size));
        NTSTATUS Status = FatStoreFile(To, Data, Size);
        KiFree(Data);
        TRY(Status);
    }
    return STATUS_SUCCESS;
}

/* "AddService = name, flags, section": the service's key as Windows writes it. */
static NTSTATUS PnpAddService(PCSTR Inf, PCSTR Section, BOOLEAN *Reboot) {
    static const PCSTR Texts[] = {"DisplayName", "Description"};
    INF_LINE Service, Line;
    CHAR Path[PATH];
    ULONG64 Start = 0, Flags = 0;
    if (!InfFind(Inf, Section, "AddService", Service)) return STATUS_SUCCESS;
    if (!InfFind(Inf, Service[3], "ServiceType", Line) || !Same(Line[1], "1"))
        return STATUS_NOT_SUPPORTED; /* not a kernel driver */
    if (!InfFind(Inf, Service[3], "StartType", Line) || !RtlTextToInteger(Line[1], 0, &Start) ||
        !InfFind(Inf, Service[3], "ServiceBinary", Line))
        return STATUS_INVALID_PARAMETER;
    InfExpand(Inf, Line[1], Path);
    TRY(ServiceStore(Service[1], (ULONG)Start, Path));
    for (ULONG i = 0; i < ARRAY_SIZE(Texts); i++) {
        if (!InfFind(Inf, Service[3], Texts[i], Line)) continue;
        InfExpand(Inf, Line[1], Path);
        PCM_KEY Key = ServiceKey(Service[1]);
        TRY(CmSetValue(Key->Path, Texts[i], REG_SZ, Path, (ULONG)strlen(Path) + 1));
    }
    *Reboot = IopFindDriver(Service[1]) != NULL; /* the old image stays loaded */
    RtlTextToInteger(Service[2], 0, &Flags);
    return Flags & START_SERVICE && !*Reboot ? IopLoadDriver(Service[1]) : STATUS_SUCCESS;
}

/* A driver without a device has this section; an INF for devices finds none of them here. */
static NTSTATUS PnpInstall(PCSTR Inf, PCSTR Package, BOOLEAN *Reboot) {
    INF_LINE Lists;
    if (!InfFind(Inf, "DefaultInstall.NTamd64", "CopyFiles", Lists)) return STATUS_NO_MORE_ENTRIES;
    for (ULONG i = 1; i < FIELDS && *Lists[i]; i++) TRY(PnpCopyFiles(Inf, Package, Lists[i]));
    return PnpAddService(Inf, "DefaultInstall.NTamd64.Services", Reboot);
}

int PnpUtilMain(PPROGRAM Program) {
    PCSTR Given = ProgramOption(Program, "/add-driver");
    CHAR Package[PATH], Published[PATH];
    PCHAR Inf = NULL, Folder = Package;
    ULONG Size, Added = 0, Number = 0;
    FAT_FILE File;
    INF_LINE Line;
    BOOLEAN Reboot = FALSE;
    PRINT("Microsoft PnP Utility\n\n");
    if (Given == NULL) return EXIT(87, "PNPUTIL /add-driver <filename.inf> [/install]\n");
    PRINT("Adding driver package:  %s\n", Given);
    NTSTATUS Status = IopVolumePath(Given, Package, PATH);
    if (NT_SUCCESS(Status)) Status = FatLoadFile(Package, (PVOID *)&Inf, &Size);
    if (NT_SUCCESS(Status) && !InfFind(Inf, "Version", "Signature", Line))
        Status = STATUS_INVALID_PARAMETER; /* no INF, or one in UTF-16 */
    if (NT_SUCCESS(Status)) {
        FatCreate("Windows\\INF", TRUE, &File); /* it may be there */
        do RtlFormat(Published, PATH, "Windows\\INF\\oem%u.inf", Number++);
        while (NT_SUCCESS(FatOpen(Published, &File)));
        Status = FatStoreFile(Published, Inf, Size);
    }
    if (NT_SUCCESS(Status)) {
        PRINT("Driver package added successfully.\nPublished Name:         %s\n", Published + 12);
        Added = 1;
        for (PCHAR At = Package; (At = strchr(At, '\\')) != NULL; At++) Folder = At;
        *Folder = 0;
        if (ProgramOption(Program, "/install")) Status = PnpInstall(Inf, Package, &Reboot);
    }
    if (Inf != NULL) KiFree(Inf);
    ULONG Error = Win32Error(Status);
    if (Error != 0 && Error != NO_MORE_ITEMS)
        PRINT("Failed to %s driver package: %s\n", Added ? "install" : "add", Win32Message(Error));
    PRINT("\nTotal driver packages:  1\nAdded driver packages:  %u\n", Added);
    if (Error != 0 || !Reboot) return (int)Error;
    return EXIT(REBOOT_REQUIRED, "\nSystem reboot is needed to complete install operations!\n");
}
