/* The Special Administration Console (SAC) on COM1: commands as Microsoft documents them, texts of
 * public captures where there are any (tests' sac_captures), else words of our own: all that `id`,
 * `t`, `i`, a closed channel, a mistake and a wrong password answer. */
#include "agent.h"

enum { LINE = 160, CHANNELS = 10, SWITCH = 256 /* Esc Tab, as one key */ };
enum { FREE, LOGGED_OUT, LOGGED_IN };
static UCHAR SacChannels[CHANNELS] = {LOGGED_IN}; /* the first is SAC itself, the others prompts */
static ULONG SacSeen;                             /* the channel that is shown */
static int SacExitCode;                           /* of the last program */

static int SacKey(void) {
    for (BOOLEAN Escape = FALSE;;) {
        int Key = HalSerialRead();
        if (Key < 0 && !KiCrashing) KiSleep(1);
        if (Key < 0 && KiCrashing) __asm__ volatile("sti; hlt; cli"); /* to the next clock tick */
        if (Key >= 0 && Key != 0x1B) return !Escape ? Key : Key == '\t' ? SWITCH : 0;
        Escape |= Key == 0x1B;
    }
}

/* A line as it is typed; Echo: what is shown of each character, 0 for itself. FALSE: Esc Tab. */
static BOOLEAN SacLine(PCHAR Line, CHAR Echo) {
    ULONG Length = 0;
    for (int Key; (Key = SacKey()) != '\r';) {
        if (Key == SWITCH) return FALSE;
        if ((Key == '\b' || Key == 0x7F) && Length > 0) {
            Length--;
            HalSerialPrint("\b \b");
        } else if (Key >= ' ' && Key < 0x7F && Length + 1 < LINE) {
            Line[Length++] = (CHAR)Key;
            HalSerialPrint("%c", Echo ? Echo : Key);
        }
    }
    Line[Length] = 0;
    HalSerialPrint("\n");
    return TRUE;
}

/* -- what it tells of the machine -------------------------------------------------------------- */
static const CHAR SacMachineInfo[] =
    "<machine-info>\n<name>%s</name>\n<guid>00000000-0000-0000-0000-000000000000</guid>\n"
    "<processor-architecture>AMD64</processor-architecture>\n<os-version>10.0</os-version>\n"
    "<os-build-number>19041</os-build-number>\n<os-product>%s</os-product>\n"
    "<os-service-pack>None</os-service-pack>\n</machine-info>\n";
static const CHAR SacIdentity[] = /* our words; SAC's are not known */
    "Name: %s\nProduct: %s\nRunning for: %u:%02u:%02u\nBuild: 19041\nVersion: 10.0\n"
    "Processor: AMD64\n";

/* Fills in the name, the product and the time since the start. */
static void SacDescribe(PCSTR Format) {
    CHAR Name[LINE] = "", Product[LINE] = "";
    ULONG Up = (ULONG)(KiQueryInterruptTime() / 10000000);
    CmQueryString(COMPUTER_NAME "\\ComputerName", "ComputerName", Name, LINE);
    CmQueryString(CURRENT_VERSION, "ProductName", Product, LINE);
    HalSerialPrint(Format, Name, Product, Up / 3600, Up / 60 % 60, Up % 60);
}

static void SacListProcesses(void) {
    static struct {
        ULONG Id, Threads;
        CHAR Name[16];
    } Seen[64];
    ULONG Count = 0;
    KIRQL Irql = KfRaiseIrql(DISPATCH_LEVEL);
    for (PLIST_ENTRY Link = PsActiveProcessHead.Flink;
         Link != &PsActiveProcessHead && Count < ARRAY_SIZE(Seen); Link = Link->Flink, Count++) {
        PEPROCESS Process = CONTAINING_RECORD(Link, EPROCESS, ActiveProcessLinks);
        Seen[Count].Id = (ULONG)(ULONG64)Process->UniqueProcessId;
        Seen[Count].Threads = Process->ActiveThreads;
        RtlCopyText(Seen[Count].Name, sizeof(Seen[Count].Name), Process->ImageFileName);
    }
    KeLowerIrql(Irql);
    HalSerialPrint("  Number  Threads  Program\n");
    for (ULONG i = 0; i < Count; i++)
        HalSerialPrint("%8u %8u  %s\n", Seen[i].Id, Seen[i].Threads, Seen[i].Name);
}

static void SacShowLog(void) {
    SIZE_T Newest = (SIZE_T)(KdPrintWritePointer - KdPrintCircularBuffer);
    if (KdPrintRolloverCount)
        HalSerialWrite(KdPrintWritePointer, sizeof(KdPrintCircularBuffer) - Newest);
    HalSerialWrite(KdPrintCircularBuffer, Newest);
}

/* -- command prompts --------------------------------------------------------------------------- */
/* Shows what a channel is, as a program sees it and as a person does, until one is chosen. */
static void SacSwitch(ULONG Number) {
    for (int Key = SWITCH; Key == SWITCH;) {
        CHAR Name[16] = "SAC";
        while (SacChannels[Number % CHANNELS] == FREE) Number++;
        SacSeen = Number % CHANNELS;
        PCSTR About = SacSeen ? "Command Prompt" : "Special Administration Console";
        PCSTR Kind = SacSeen ? "1-8aa4-11d5-bccf-00b0d014a2d0" : "0-8aa4-11d5-bccf-806d6172696f";
        if (SacSeen) RtlFormat(Name, sizeof(Name), "Cmd%04u", SacSeen);
        HalSerialPrint("<channel-switch>\n<name>%s</name>\n<description>%s</description>\n<type>"
                       "VT-UTF8</type>\n<guid>00000000-0000-0000-0000-%012u</guid>\n"
                       "<application-type>63d0227%s</application-type>\n</channel-switch>\n",
            Name, About, SacSeen, Kind);
        HalSerialPrint("Name:                  %s\nDescription:           %s\n"
                       "Type:                  VT-UTF8\nChannel GUID:          "
                       "00000000-0000-0000-0000-%012u\nApplication Type GUID: 63d0227%s\n\n"
                       "Press <esc><tab> for next channel.\n"
                       "Press <esc><tab>0 to return to the SAC channel.\n"
                       "Use any other key to view this channel.\n\n",
            Name, About, SacSeen, Kind);
        Key = SacKey();
        if (Key == '0') SacSeen = 0;
        Number = SacSeen + 1;
    }
}

static void SacClose(ULONG Number) {
    SacChannels[Number] = FREE;
    SacSeen = 0;
    HalSerialPrint("\nEVENT:   This one is closed.\nChannel: Cmd%04u\n", Number);
}

static void SacManageChannels(PCSTR Given) {
    ULONG64 Number = CHANNELS;
    BOOLEAN Named = *Given == '-' && Given[1] && Given[2] == 'n';
    PCSTR Which = strchr(Given, ' ') ? strchr(Given, ' ') + 1 : "";
    if (*Given == 0) {
        HalSerialPrint("Channel List\n\n(Use \"ch -?\" for information on using channels)\n\n"
                       "# Status  Channel Name\n0 (AV)    SAC\n");
        for (ULONG i = 1; i < CHANNELS; i++)
            if (SacChannels[i] != FREE) HalSerialPrint("%u (AV)    Cmd%04u\n", i, i);
    } else if (strcmp(Given, "-?") == 0) {
        HalSerialPrint("To one: ch -si NUMBER, ch -sn NAME.  End of one: ch -ci NUMBER, ch "
                       "-cn NAME.\n");
    } else {
        if (Named && Same(Which, "SAC")) Number = 0;
        if (!Named || RtlCompareTextInsensitiveN(Which, "Cmd", 3) == 0)
            RtlTextToInteger(Which + (Named ? 3 : 0), 10, &Number);
        if (Number >= CHANNELS || SacChannels[Number] == FREE)
            HalSerialPrint("No such channel.\n");
        else
            Given[1] == 'c' && Number ? SacClose((ULONG)Number) : SacSwitch((ULONG)Number);
    }
}

static void SacNewChannel(void) {
    ULONG Number = 1;
    while (Number < CHANNELS && SacChannels[Number] != FREE) Number++;
    if (Number < CHANNELS) SacChannels[Number] = LOGGED_OUT;
    HalSerialPrint(Number < CHANNELS
                       ? "The Command Prompt session was successfully launched.\nSAC>\nEVENT:   A "
                         "new channel has been created.  Use \"ch -?\" for channel help.\n"
                         "Channel: Cmd%04u\n"
                       : "All %u channels are taken.\n",
        Number);
}

static BOOLEAN SacLogOn(void) { /* FALSE: Esc Tab */
    static const PCSTR Questions[3] = {"Username: ", "Domain  : ", "Password: "};
    CHAR Answers[3][LINE], User[LINE] = "", Password[LINE] = "";
    HalSerialPrint("Please enter login credentials.\n");
    for (ULONG i = 0; i < 3; i++) {
        HalSerialPrint("%s", Questions[i]);
        if (!SacLine(Answers[i], i == 2 ? '*' : 0)) return FALSE;
    }
    CmQueryString(CURRENT_VERSION "\\Winlogon", "DefaultUserName", User, LINE);
    CmQueryString(CURRENT_VERSION "\\Winlogon", "DefaultPassword", Password, LINE);
    BOOLEAN Good = *User && Same(Answers[0], User) && strcmp(Answers[2], Password) == 0;
    if (Good) SacChannels[SacSeen] = LOGGED_IN;
    HalSerialPrint("%s\n", Good ? "\nMicrosoft Windows [Version 10.0.19041]"
                                : "That is not the user and the password.\n");
    return TRUE;
}

static void SacRunProgram(PCHAR Line) {
    static PROGRAM Program; /* the console's thread runs one at a time */
    CHAR Path[LINE + 32];
    memset(&Program, 0, sizeof(Program));
    for (PCHAR At = Line; *At && Program.Count < PROGRAM_ARGUMENTS;) {
        BOOLEAN Quoted = *At == '"';
        Program.Arguments[Program.Count++] = At += Quoted;
        while (*At && *At != (Quoted ? '"' : ' ')) At++;
        if (*At) *At++ = 0;
        while (*At == ' ') At++;
    }
    PCSTR Name = Program.Arguments[0];
    RtlFormat(
        Path, sizeof(Path), "C:\\Windows\\System32\\%s%s", Name, strchr(Name, '.') ? "" : ".exe");
    PROGRAM_MAIN *Main = ProgramFind(Path);
    if (Main == NULL) {
        SacExitCode = 9009;
        HalSerialPrint("'%s' is not recognized as an internal or external command,\n"
                       "operable program or batch file.",
            Name);
    } else {
        SacExitCode = ProgramRun(Main, &Program);
        for (POUTPUT Said = &Program.Output; Said <= &Program.Errors; Said++) {
            HalSerialWrite(Said->Text, Said->Length);
            if (Said->Text) KiFree(Said->Text);
        }
    }
    HalSerialPrint("\n");
}

/* One exchange of the command prompt that is seen. */
static void SacPrompt(PCHAR Line) {
    BOOLEAN LoggedIn = SacChannels[SacSeen] == LOGGED_IN;
    if (LoggedIn) HalSerialPrint("\nC:\\Windows\\system32>");
    if (!(LoggedIn ? SacLine(Line, 0) : SacLogOn()))
        SacSwitch(SacSeen + 1);
    else if (LoggedIn && Same(Line, "exit"))
        SacClose(SacSeen);
    else if (LoggedIn && Same(Line, "echo %errorlevel%"))
        HalSerialPrint("%d\n", SacExitCode);
    else if (LoggedIn && *Line)
        SacRunProgram(Line);
}

/* -- SAC and !SAC ------------------------------------------------------------------------------ */
enum { CH, CMD, D, HELP, I, ID, T, RESTART, SHUTDOWN, CRASHDUMP, COMMANDS };
static const PCSTR SacCommands[COMMANDS][2] = {
    {"ch", "Channel management commands.  Use ch -? for more help."},
    {"cmd", "Create a Command Prompt channel."}, {"d", "Dump the current kernel log."},
    {"? or help", "Display this list."},
    {"i", "List all IP network numbers and their IP addresses."},
    {"id", "Display the computer identification information."}, {"t", "Tlist."},
    {"restart", "Restart the system immediately."},
    {"shutdown", "Shutdown the system immediately."},
    {"crashdump", "Crash the system. You must have crash dump enabled."}};

/* A command's number; COMMANDS for what is none. */
static ULONG SacFind(PCHAR Line) {
    ULONG Number = 0;
    if (Same(Line, "?") || Same(Line, "help")) return HELP;
    while (Number < COMMANDS && !Same(Line, SacCommands[Number][0])) Number++;
    return Number;
}

static void SacHelp(BOOLEAN Crashed) {
    for (ULONG i = 0; i < COMMANDS; i++)
        if (!Crashed || i == D || i == HELP || i == ID || i == RESTART)
            HalSerialPrint("%-20s %s\n", SacCommands[i][0], SacCommands[i][1]);
}

static void SacCommand(PCHAR Line) {
    PCHAR Rest = strchr(Line, ' ') ? strchr(Line, ' ') : "";
    if (*Rest) *Rest++ = 0;
    ULONG Command = SacFind(Line);
    switch (Command) {
    case CH: SacManageChannels(Rest); break;
    case CMD: SacNewChannel(); break;
    case D: SacShowLog(); break;
    case HELP: SacHelp(FALSE); break;
    case I: HalSerialPrint("No network.\n"); break;
    case ID: SacDescribe(SacIdentity); break;
    case T: SacListProcesses(); break;
    case RESTART:
    case SHUTDOWN: PopRequestShutdown(Command == RESTART); break;
    case CRASHDUMP: KeBugCheckEx(0xE2, 0, 0, 0, 0); /* MANUALLY_INITIATED_CRASH */
    default:
        if (*Line) HalSerialPrint("No such command; ? lists them.\n");
    }
}

void SacThread(PVOID Context) {
    CHAR Line[LINE];
    UNREFERENCED(Context);
    SacDescribe(SacMachineInfo);
    HalSerialPrint(
        "\nComputer is booting, SAC started and initialized.\n\nUse the \"ch -?\" command for "
        "information about using channels.\nUse the \"?\" command for general help.\n\n\n");
    for (;;) {
        while (SacSeen) SacPrompt(Line);
        HalSerialPrint("SAC>");
        SacLine(Line, 0) ? SacCommand(Line) : SacSwitch(1);
    }
}

void SacTellBugCheck(void) {
    HalSerialPrint(
        "\n<?xml version=\"1.0\"?>\n<BP>\n<INSTANCE CLASSNAME=\"BLUESCREEN\">\n<PROPERTY "
        "NAME=\"STOPCODE\" TYPE=\"string\"><VALUE>\"0x%X\"</VALUE>\n</PROPERTY>",
        (ULONG)KiBugcheckData[0]);
    SacDescribe(SacMachineInfo);
    HalSerialPrint("</INSTANCE>\n</BP>\n\n!SAC>\n");
}

NORETURN void SacAfterCrash(void) {
    CHAR Line[LINE];
    for (;;) {
        HalSerialPrint("\n!SAC>");
        ULONG Command = SacLine(Line, 0) ? SacFind(Line) : COMMANDS;
        if (Command == RESTART) HalReboot();
        if (Command == ID) SacDescribe(SacIdentity);
        if (Command == D) SacShowLog();
        if (Command == HELP) SacHelp(TRUE);
    }
}
