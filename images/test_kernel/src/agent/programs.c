/* The table of built-in programs, and the small ones. They behave, print and exit as those of
 * Windows 10 do, as far as documents show it; none was compared with a Windows machine. */
#include "agent.h"

BOOLEAN ProgramFlag(int Count, PCHAR *Arguments, PCSTR Name) {
    for (int i = 1; i < Count; i++)
        if ((*Arguments[i] == '/' || *Arguments[i] == '-') && Same(Arguments[i] + 1, Name))
            return TRUE;
    return FALSE;
}

PCSTR ProgramOption(int Count, PCHAR *Arguments, PCSTR Name) {
    for (int i = 1; i + 1 < Count; i++)
        if ((*Arguments[i] == '/' || *Arguments[i] == '-') && Same(Arguments[i] + 1, Name))
            return Arguments[i + 1];
    return NULL;
}

/* -- shutdown ---------------------------------------------------------------------------------- */
static ULONG64 ShutdownSeconds;
static BOOLEAN ShutdownReboots, ShutdownScheduled;

static void ShutdownThread(PVOID Context) {
    UNREFERENCED(Context);
    KiSleep((ULONG)ShutdownSeconds * 1000);
    PopRequestShutdown(ShutdownReboots);
}

static int ShutdownMain(int Count, PCHAR *Arguments, POUTPUT Output, POUTPUT Errors) {
    PCSTR Delay = ProgramOption(Count, Arguments, "t");
    ULONG64 Seconds = 30;
    BOOLEAN Reboot = ProgramFlag(Count, Arguments, "r"), Off = ProgramFlag(Count, Arguments, "s");
    BOOLEAN Good = !Delay || (RtlTextToInteger(Delay, 10, &Seconds) && Seconds <= 4000000);
    if ((!Reboot && !Off) || !Good) {
        OutputPrint(Output, "Usage: shutdown /s | /r [/f] [/t xxx]\n");
        return 1;
    }
    if (ShutdownScheduled) {
        OutputPrint(Errors, "A system shutdown has already been scheduled.(1190)\n");
        return 1190;
    }
    ShutdownSeconds = Seconds;
    ShutdownReboots = Reboot;
    ShutdownScheduled = NT_SUCCESS(KiStartThread(ShutdownThread, NULL, NULL));
    return ShutdownScheduled ? 0 : 8;
}

/* -- cmd /c dir | type | del | ren | copy: one command with full paths, not a shell ---------------
 */
static void CmdDirectory(PFAT_FILE Directory, POUTPUT Output) {
    FAT_FILE Entry;
    KI_DATE Date;
    for (ULONG Cursor = 0; NT_SUCCESS(FatReadDirectory(Directory, &Cursor, &Entry));) {
        CHAR Size[16] = "<DIR>         ";
        KiTimeToDate(Entry.WriteTime, &Date);
        if (!(Entry.Attributes & 0x10)) RtlFormat(Size, sizeof(Size), "%14u", Entry.Size);
        OutputPrint(Output, "%02u/%02u/%u  %02u:%02u    %s %s\n", Date.Month, Date.Day, Date.Year,
            Date.Hour, Date.Minute, Size, Entry.Name);
    }
}

static int CmdMain(int Count, PCHAR *Arguments, POUTPUT Output, POUTPUT Errors) {
    CHAR From[260], To[260];
    FAT_FILE File;
    PVOID Data = NULL;
    ULONG Size;
    BOOLEAN Known = Count > 3 && Same(Arguments[1], "/c");
    PCSTR Verb = Known ? Arguments[2] : "", Target = Count > 4 ? Arguments[4] : "";
    NTSTATUS Status =
        Known ? IopVolumePath(Arguments[3], From, sizeof(From)) : STATUS_NOT_SUPPORTED;
    if (NT_SUCCESS(Status)) Status = FatOpen(From, &File);
    if (!NT_SUCCESS(Status))
        ;
    else if (Same(Verb, "dir"))
        CmdDirectory(&File, Output);
    else if (Same(Verb, "del"))
        Status = File.Attributes & 0x10 ? STATUS_ACCESS_DENIED : FatDelete(&File);
    else if (Same(Verb, "ren"))
        Status = FatRename(&File, Target);
    else if (!NT_SUCCESS(Status = FatLoadFile(From, &Data, &Size)))
        ;
    else if (Same(Verb, "type"))
        OutputAppend(Output, Data, Size);
    else if (!Same(Verb, "copy"))
        Status = STATUS_NOT_SUPPORTED;
    else if (NT_SUCCESS(Status = IopVolumePath(Target, To, sizeof(To))))
        Status = FatStoreFile(To, Data, Size);
    if (Data != NULL) KiFree(Data);
    if (!NT_SUCCESS(Status)) OutputPrint(Errors, "%s\n", Win32Message(Win32Error(Status)));
    return NT_SUCCESS(Status) ? 0 : 1;
}

PROGRAM *PspFindProgram(PCSTR Path) {
    static const struct {
        PCSTR Path;
        PROGRAM *Main;
    } Programs[] = {
        {"C:\\Windows\\System32\\sc.exe", ScMain},
        {"C:\\Windows\\System32\\reg.exe", RegMain},
        {"C:\\Windows\\System32\\pnputil.exe", PnpUtilMain},
        {"C:\\Windows\\System32\\driverquery.exe", DriverQueryMain},
        {"C:\\Windows\\System32\\shutdown.exe", ShutdownMain},
        {"C:\\Windows\\System32\\cmd.exe", CmdMain},
    };
    for (ULONG i = 0; i < ARRAY_SIZE(Programs); i++)
        if (Same(Path, Programs[i].Path)) return Programs[i].Main;
    return NULL;
}
