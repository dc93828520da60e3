/* pnputil.exe /add-driver X.inf [/install]. The driver store holds the published INF only; /install
 * follows a primitive driver's DefaultInstall section (Microsoft Learn, "Creating a primitive
 * driver", "INF file sections and directives"). There are no devices here, so an INF with hardware
 * IDs matches none. Signatures are not checked: Windows takes an unsigned package in test mode
 * only. */
#include "agent.h"

enum { NO_MORE_ITEMS = 259, REBOOT_REQUIRED = 3010 }; /* pnputil's own exit codes */
enum { START_SERVICE = 0x800 };                       /* SPSVCINST_STARTSERVICE of AddService */
enum { FIELD = 160, FIELDS = 8, KEY = 0 };
/* "key = field, field, ..." without quotes, comments and %names%; no key: [KEY] is empty */
typedef CHAR INF_LINE[1 + FIELDS][FIELD];
typedef struct _INF {
    PCHAR Text;
    ULONG Size;
    BOOLEAN Literal;     /* reading [Strings]: no %names% in them */
    CHAR Directory[260]; /* of the INF, as a volume path */
} INF, *PINF;

static BOOLEAN InfFind(PINF Inf, PCSTR Section, PCSTR Key, INF_LINE Line);

/* %name%: a directory by its number (dirid), or a string of [Strings]. */
static void InfSubstitute(PINF Inf, PCSTR Name, PCHAR Target, ULONG Size) {
    INF_LINE Line;
    Inf->Literal = TRUE;
    PCSTR Value = Same(Name, "10")                      ? "C:\\Windows"
                  : Same(Name, "11")                    ? "C:\\Windows\\System32"
                  : Same(Name, "12")                    ? "C:\\Windows\\System32\\drivers"
                  : InfFind(Inf, "Strings", Name, Line) ? Line[1]
                                                        : "";
    Inf->Literal = FALSE;
    RtlCopyText(Target, Size, Value);
}

static void InfParse(PINF Inf, PCSTR At, PCSTR End, INF_LINE Line) {
    ULONG Index = 1, Length = 0, Kept = 0; /* Kept: without blanks at the end */
    BOOLEAN Quoted = FALSE;
    memset(Line, 0, sizeof(INF_LINE));
    for (; At < End; At++) {
        PCSTR Close = *At == '%' && !Inf->Literal ? strchr(At + 1, '%') : NULL;
        PCHAR Field = Line[Index];
        BOOLEAN Blank = *At == ' ' || *At == '\t' || *At == '\r';
        if (*At == '"') {
            Quoted = !Quoted;
        } else if (!Quoted && (*At == ',' || (*At == '=' && Index == 1 && *Line[KEY] == 0))) {
            Field[Kept] = 0;
            if (*At == '=')
                RtlCopyText(Line[KEY], FIELD, Field);
            else if (Index++ == FIELDS)
                return;
            Length = Kept = 0;
        } else if (Close != NULL && Close < End) {
            CHAR Name[FIELD];
            RtlFormat(Name, sizeof(Name), "%.*s", (int)(Close - At - 1), At + 1);
            InfSubstitute(Inf, Name, Field + Length, FIELD - Length);
            Kept = Length = (ULONG)strlen(Field);
            At = Close;
        } else if (Length + 1 < FIELD && (Length > 0 || Quoted || !Blank)) {
            Field[Length++] = *At;
            if (Quoted || !Blank) Kept = Length;
        }
        Line[Index][Kept] = 0;
    }
}

/* The next line of a section; start with *At = NULL. Sections of one name count as one. */
static BOOLEAN InfNext(PINF Inf, PCSTR Section, PCSTR *At, INF_LINE Line) {
    BOOLEAN Inside = *At != NULL;
    for (PCSTR Start = Inside ? *At : Inf->Text, End; *Start; Start = End + (*End != 0)) {
        BOOLEAN Quoted = FALSE;
        PCSTR Stop = NULL; /* where a comment starts */
        for (End = Start; *End && *End != '\n'; End++) {
            Quoted ^= *End == '"';
            if (*End == ';' && !Quoted && Stop == NULL) Stop = End;
        }
        if (Stop == NULL) Stop = End;
        while (Start < Stop && (*Start == ' ' || *Start == '\t' || *Start == '\r')) Start++;
        if (*Start == '[') {
            SIZE_T Length = strlen(Section);
            Inside =
                !RtlCompareTextInsensitiveN(Start + 1, Section, Length) && Start[Length + 1] == ']';
        } else if (Inside && Start < Stop) {
            InfParse(Inf, Start, Stop, Line);
            *At = End + (*End != 0);
            return TRUE;
        }
    }
    return FALSE;
}

static BOOLEAN InfFind(PINF Inf, PCSTR Section, PCSTR Key, INF_LINE Line) {
    for (PCSTR At = NULL; InfNext(Inf, Section, &At, Line);)
        if (Same(Line[KEY], Key)) return TRUE;
    return FALSE;
}

/* -- installing ---------------------------------------------------------------------------------
 */
static NTSTATUS PnpMakeDirectory(PCSTR Path) {
    FAT_FILE File;
    return NT_SUCCESS(FatOpen(Path, &File)) ? STATUS_SUCCESS : FatCreate(Path, TRUE, &File);
}

/* Copies a file of the package to where [DestinationDirs] sends the files of `List`. */
static NTSTATUS PnpCopyFile(PINF Inf, PCSTR List, PCSTR Target, PCSTR Source) {
    INF_LINE Line;
    CHAR From[260], To[260];
    PVOID Data;
    ULONG Size;
    if (!InfFind(Inf, "DestinationDirs", List, Line) &&
        !InfFind(Inf, "DestinationDirs", "DefaultDestDir", Line))
        return STATUS_INVALID_PARAMETER;
    InfSubstitute(Inf, Line[1], To, sizeof(To));
    if (*To == 0) return STATUS_NOT_SUPPORTED; /* a dirid not known here */
    RtlFormat(
        From, sizeof(From), "%s%s%s", To + 3, *Line[2] ? "\\" : "", Line[2]); /* without C:\ */
    NTSTATUS Status = PnpMakeDirectory(From);
    RtlFormat(To, sizeof(To), "%s\\%s", From, Target);
    if (!InfFind(Inf, "SourceDisksFiles", Source, Line)) *Line[2] = 0;
    RtlFormat(
        From, sizeof(From), "%s\\%s%s%s", Inf->Directory, Line[2], *Line[2] ? "\\" : "", Source);
    if (NT_SUCCESS(Status)) Status = FatLoadFile(From, &Data, &Size);
    if (!NT_SUCCESS(Status)) return Status;
    Status = FatStoreFile(To, Data, Size);
    KiFree(Data);
    return Status;
}

static NTSTATUS PnpCopyFiles(PINF Inf, PCSTR Install) {
    INF_LINE Lists, Line;
    NTSTATUS Status = STATUS_SUCCESS;
    if (!InfFind(Inf, Install, "CopyFiles", Lists)) return Status;
    for (ULONG i = 1; i <= FIELDS && *Lists[i] && NT_SUCCESS(Status); i++) {
        if (*Lists[i] == '@') /* a single file */
            Status = PnpCopyFile(Inf, "DefaultDestDir", Lists[i] + 1, Lists[i] + 1);
        for (PCSTR At = NULL; NT_SUCCESS(Status) && InfNext(Inf, Lists[i], &At, Line);)
            Status = PnpCopyFile(Inf, Lists[i], Line[1], *Line[2] ? Line[2] : Line[1]);
    }
    return Status;
}

/* "AddService = name, flags, section": the service's key as Windows writes it. */
static NTSTATUS PnpAddService(PINF Inf, PCSTR Install, BOOLEAN *Reboot) {
    static const PCSTR Values[][2] = {{"ServiceType", "Type"}, {"StartType", "Start"},
        {"ErrorControl", "ErrorControl"}, {"DisplayName", "DisplayName"},
        {"Description", "Description"}, {"ServiceBinary", "ImagePath"}};
    enum { NUMBERS = 3, REQUIRED_TEXT = 5 };
    INF_LINE Service, Line;
    CHAR Key[260], Path[260];
    IO_LOAD_ERROR Error;
    ULONG64 Number;
    NTSTATUS Status = STATUS_SUCCESS;
    RtlFormat(Key, sizeof(Key), "%s.Services", Install);
    if (!InfFind(Inf, Key, "AddService", Service)) return Status;
    RtlFormat(Key, sizeof(Key), "%s\\%s", CM_SERVICES, Service[1]);
    for (ULONG i = 0; i < ARRAY_SIZE(Values) && NT_SUCCESS(Status); i++) {
        BOOLEAN Found = InfFind(Inf, Service[3], Values[i][0], Line);
        PCSTR Text = Line[1];
        if (i < NUMBERS ? !Found || !RtlTextToInteger(Text, 0, &Number)
                        : !Found && i == REQUIRED_TEXT)
            return STATUS_INVALID_PARAMETER;
        if (!Found) continue;
        if (i == REQUIRED_TEXT && RtlCompareTextInsensitiveN(Text, "C:\\Windows\\", 11) == 0) {
            RtlFormat(Path, sizeof(Path), "\\SystemRoot\\%s", Text + 11);
            Text = Path;
        }
        Status = i < NUMBERS
                     ? CmSetValue(Key, Values[i][1], REG_DWORD, &Number, 4)
                     : CmSetValue(Key, Values[i][1], i == REQUIRED_TEXT ? REG_EXPAND_SZ : REG_SZ,
                           Text, (ULONG)strlen(Text) + 1);
    }
    *Reboot = IopFindDriver(Service[1]) != NULL; /* the old image stays loaded */
    if (NT_SUCCESS(Status) && !*Reboot && RtlTextToInteger(Service[2], 0, &Number) &&
        (Number & START_SERVICE))
        Status = IopLoadDriver(Service[1], &Error);
    return Status;
}

/* Copies the INF to \Windows\INF under the next free name. */
static NTSTATUS PnpPublish(PINF Inf, PCHAR Path, ULONG PathSize) {
    FAT_FILE File;
    ULONG i = 0;
    NTSTATUS Status = PnpMakeDirectory("Windows\\INF");
    do RtlFormat(Path, PathSize, "Windows\\INF\\oem%u.inf", i++);
    while (NT_SUCCESS(FatOpen(Path, &File)));
    return NT_SUCCESS(Status) ? FatStoreFile(Path, Inf->Text, Inf->Size) : Status;
}

int PnpUtilMain(int Count, PCHAR *Arguments, POUTPUT Output, POUTPUT Errors) {
    static const PCSTR Installs[] = {
        "DefaultInstall.NTamd64", "DefaultInstall.NT", "DefaultInstall"};
    CHAR Path[260];
    INF_LINE Line;
    INF Inf = {0};
    ULONG i = 0, Added = 0;
    BOOLEAN Reboot = FALSE, Install = ProgramFlag(Count, Arguments, "install");
    PCSTR Given = ProgramOption(Count, Arguments, "add-driver"), At = NULL;
    UNREFERENCED(Errors);
    OutputPrint(Output, "Microsoft PnP Utility\n\n");
    if (Given == NULL) {
        OutputPrint(Output, "PNPUTIL /add-driver <filename.inf> [/install]\n");
        return 87;
    }
    NTSTATUS Status = IopVolumePath(Given, Inf.Directory, sizeof(Inf.Directory));
    PCHAR Name = Inf.Directory + strlen(Inf.Directory);
    while (Name > Inf.Directory && Name[-1] != '\\') Name--;
    OutputPrint(Output, "Adding driver package:  %s\n", Name);
    if (NT_SUCCESS(Status)) Status = FatLoadFile(Inf.Directory, (PVOID *)&Inf.Text, &Inf.Size);
    if (Name > Inf.Directory) Name[-1] = 0;
    if (NT_SUCCESS(Status) && !InfFind(&Inf, "Version", "Signature", Line))
        Status =
            STATUS_INVALID_PARAMETER; /* not an INF, or one in UTF-16, which is not read here */
    if (NT_SUCCESS(Status)) Status = PnpPublish(&Inf, Path, sizeof(Path));
    if (NT_SUCCESS(Status)) {
        Added = 1;
        OutputPrint(Output, "Driver package added successfully.\n");
        OutputPrint(Output, "Published Name:         %s\n", Path + sizeof("Windows\\INF"));
        while (i < ARRAY_SIZE(Installs) && !InfNext(&Inf, Installs[i], &At, Line)) i++;
        Install &= i < ARRAY_SIZE(Installs);
        if (Install) Status = PnpCopyFiles(&Inf, Installs[i]);
        if (Install && NT_SUCCESS(Status)) Status = PnpAddService(&Inf, Installs[i], &Reboot);
        if (Install && NT_SUCCESS(Status)) OutputPrint(Output, "Driver package installed.\n");
    }
    if (Inf.Text != NULL) KiFree(Inf.Text);
    ULONG Error = Win32Error(Status);
    if (Error != 0)
        OutputPrint(Output, "Failed to %s driver package: %s\n", Added ? "install" : "add",
            Win32Message(Error));
    OutputPrint(Output, "\nTotal driver packages:  1\nAdded driver packages:  %u\n", Added);
    if (Error != 0) return (int)Error;
    if (Reboot) OutputPrint(Output, "\nSystem reboot is needed to complete install operations!\n");
    if (!Install && ProgramFlag(Count, Arguments, "install")) return NO_MORE_ITEMS;
    return Reboot ? REBOOT_REQUIRED : 0;
}
