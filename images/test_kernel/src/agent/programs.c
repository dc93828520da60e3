/* The table of built-in programs, and the small ones. They behave, print and exit as those of
 * Windows 10 do, as far as documents show it; none was compared with a Windows machine. */
#include "agent.h"

static const struct {
    PCSTR Name;
    PROGRAM *Main;
} Programs[] = {
    {"sc", ScMain},
    {"reg", RegMain},
    {"pnputil", PnpUtilMain},
    {"driverquery", DriverQueryMain},
    {"shutdown", ShutdownMain},
    {"cmd", CmdMain},
};

PROGRAM *PspFindProgram(PCSTR Path) {
    CHAR Name[64];
    for (ULONG i = 0; i < ARRAY_SIZE(Programs); i++) {
        RtlFormat(Name, sizeof(Name), "C:\\Windows\\System32\\%s.exe", Programs[i].Name);
        if (RtlCompareTextInsensitive(Path, Name) == 0) return Programs[i].Main;
    }
    return NULL;
}

BOOLEAN ProgramFlag(int Count, PCHAR *Arguments, PCSTR Name) {
    for (int i = 1; i < Count; i++)
        if ((*Arguments[i] == '/' || *Arguments[i] == '-') &&
            RtlCompareTextInsensitive(Arguments[i] + 1, Name) == 0)
            return TRUE;
    return FALSE;
}

PCSTR ProgramOption(int Count, PCHAR *Arguments, PCSTR Name) {
    for (int i = 1; i + 1 < Count; i++)
        if ((*Arguments[i] == '/' || *Arguments[i] == '-') &&
            RtlCompareTextInsensitive(Arguments[i] + 1, Name) == 0)
            return Arguments[i + 1];
    return NULL;
}

/* -- shutdown ---------------------------------------------------------------------------------- */
static struct {
    ULONG Seconds;
    BOOLEAN Reboot, Scheduled;
} Shutdown;

static void ShutdownThread(PVOID Context) {
    UNREFERENCED(Context);
    KiSleep(Shutdown.Seconds * 1000);
    PopRequestShutdown(Shutdown.Reboot);
}

int ShutdownMain(int Count, PCHAR *Arguments, POUTPUT Output, POUTPUT Errors) {
    PCSTR Delay = ProgramOption(Count, Arguments, "t");
    ULONG64 Seconds = 30;
    BOOLEAN Reboot = ProgramFlag(Count, Arguments, "r");
    if ((!Reboot && !ProgramFlag(Count, Arguments, "s")) ||
        (Delay != NULL && (!RtlTextToInteger(Delay, 10, &Seconds) || Seconds > 315360000))) {
        OutputPrint(Output, "Usage: shutdown [/s | /r] [/f] [/t xxx]\n");
        return 1;
    }
    if (Shutdown.Scheduled) {
        OutputPrint(Errors, "A system shutdown has already been scheduled.(1190)\n");
        return 1190;
    }
    Shutdown.Reboot = Reboot;
    Shutdown.Seconds = (ULONG)Seconds;
    Shutdown.Scheduled = NT_SUCCESS(KiStartThread(ShutdownThread, NULL, NULL));
    return Shutdown.Scheduled ? 0 : 8;
}

/* -- cmd /c dir | type | copy | del | move | ren | md ---------------------------------------------
 */
static int CmdFail(POUTPUT Errors, NTSTATUS Status) {
    OutputPrint(Errors, "%s\n", Win32Message(Win32Error(Status)));
    return 1;
}

static int CmdDirectory(PFAT_FILE Directory, POUTPUT Output) {
    FAT_FILE Entry;
    KI_DATE Date;
    for (ULONG Cursor = 0; NT_SUCCESS(FatReadDirectory(Directory, &Cursor, &Entry));) {
        KiTimeToDate(Entry.WriteTime, &Date);
        OutputPrint(Output, "%02u/%02u/%u  %02u:%02u    ", Date.Month, Date.Day, Date.Year,
            Date.Hour, Date.Minute);
        if (Entry.Attributes & 0x10)
            OutputPrint(Output, "<DIR>          %s\n", Entry.Name);
        else
            OutputPrint(Output, "%14u %s\n", Entry.Size, Entry.Name);
    }
    return 0;
}

int CmdMain(int Count, PCHAR *Arguments, POUTPUT Output, POUTPUT Errors) {
    CHAR From[260], To[260];
    FAT_FILE File;
    PVOID Data;
    ULONG Size;
    if (Count < 4 || RtlCompareTextInsensitive(Arguments[1], "/c") != 0)
        return CmdFail(Errors, STATUS_NOT_SUPPORTED); /* no shell: one command with its paths */
    PCSTR Verb = Arguments[2];
    NTSTATUS Status = IopVolumePath(Arguments[3], From, sizeof(From));
    if (NT_SUCCESS(Status) && Count > 4 && RtlCompareTextInsensitive(Verb, "ren") != 0)
        Status = IopVolumePath(Arguments[4], To, sizeof(To));
    if (NT_SUCCESS(Status) && RtlCompareTextInsensitive(Verb, "md") != 0)
        Status = FatOpen(From, &File);
    if (!NT_SUCCESS(Status)) return CmdFail(Errors, Status);
    if (RtlCompareTextInsensitive(Verb, "dir") == 0) return CmdDirectory(&File, Output);
    if (RtlCompareTextInsensitive(Verb, "md") == 0) {
        Status = FatCreate(From, TRUE, &File);
    } else if (RtlCompareTextInsensitive(Verb, "del") == 0) {
        Status = File.Attributes & 0x10 ? STATUS_ACCESS_DENIED : FatDelete(&File);
    } else if (RtlCompareTextInsensitive(Verb, "ren") == 0 && Count > 4) {
        Status = FatRename(&File, Arguments[4]);
    } else if (NT_SUCCESS(Status = FatLoadFile(From, &Data, &Size))) {
        BOOLEAN Move = RtlCompareTextInsensitive(Verb, "move") == 0;
        if (RtlCompareTextInsensitive(Verb, "type") == 0)
            OutputAppend(Output, Data, Size);
        else if (Count > 4 && (Move || RtlCompareTextInsensitive(Verb, "copy") == 0))
            Status = FatStoreFile(To, Data, Size);
        else
            Status = STATUS_NOT_SUPPORTED;
        if (Move && NT_SUCCESS(Status)) Status = FatDelete(&File);
        KiFree(Data);
    }
    return NT_SUCCESS(Status) ? 0 : CmdFail(Errors, Status);
}
