/* reg.exe: add, query, delete in HKEY_LOCAL_MACHINE. */
#include "agent.h"

static const PCSTR RegTypes[] = {"REG_NONE", "REG_SZ", "REG_EXPAND_SZ", "REG_BINARY", "REG_DWORD",
    NULL, NULL, "REG_MULTI_SZ", NULL, NULL, NULL, "REG_QWORD"}; /* by number */

static int RegFail(POUTPUT Errors, PCSTR Text) {
    OutputPrint(Errors, "ERROR: %s\n", Text);
    return 1;
}

static int RegUsage(POUTPUT Errors, PCSTR Text, PCSTR Verb) {
    RegFail(Errors, Text);
    OutputPrint(Errors, "Type \"REG %s/?\" for usage.\n", Verb);
    return 1;
}

static int RegDone(POUTPUT Output, POUTPUT Errors, NTSTATUS Status) {
    if (Status == STATUS_OBJECT_NAME_NOT_FOUND)
        return RegFail(
            Errors, "The system was unable to find the specified registry key or value.");
    if (!NT_SUCCESS(Status)) return RegFail(Errors, Win32Message(Win32Error(Status)));
    OutputPrint(Output, "The operation completed successfully.\n");
    return 0;
}

/* The bytes the registry stores for a value given as text; FALSE: the text is not of that type. */
static BOOLEAN RegParse(ULONG Type, PCSTR Text, PCHAR Data, ULONG *Length) {
    ULONG64 Number = 0;
    PCHAR To = Data;
    if (Type == REG_DWORD || Type == REG_QWORD) {
        BOOLEAN Good = *Text == 0 || RtlTextToInteger(Text, 0, &Number);
        memcpy(Data, &Number, *Length = Type == REG_DWORD ? 4 : 8);
        return Good && (Type == REG_QWORD || Number <= 0xFFFFFFFF);
    }
    if (Type == REG_BINARY || Type == REG_NONE) {
        for (; *Text; Text += 2) {
            CHAR Pair[3] = {Text[0], Text[1], 0};
            if (Pair[1] == 0 || !RtlTextToInteger(Pair, 16, &Number)) return FALSE;
            *To++ = (CHAR)Number;
        }
    } else {
        while (*Text) { /* REG_MULTI_SZ: "\0" between strings */
            BOOLEAN Separator = Type == REG_MULTI_SZ && Text[0] == '\\' && Text[1] == '0';
            *To++ = Separator ? 0 : *Text;
            Text += Separator ? 2 : 1;
        }
        *To++ = 0;
        if (Type == REG_MULTI_SZ) *To++ = 0;
    }
    *Length = (ULONG)(To - Data);
    return TRUE;
}

static int RegAdd(int Count, PCHAR *Arguments, POUTPUT Output, POUTPUT Errors) {
    PCSTR Key = Arguments[2], Name = ProgramOption(Count, Arguments, "v");
    PCSTR Wanted = ProgramOption(Count, Arguments, "t"),
          Text = ProgramOption(Count, Arguments, "d");
    PCM_KEY Existing = CmFindKey(Key);
    BOOLEAN KeyOnly = Name == NULL && !ProgramFlag(Count, Arguments, "ve");
    ULONG Type = Wanted == NULL ? REG_SZ : 0, Length;
    Name = Name == NULL ? "" : Name;
    Text = Text == NULL ? "" : Text;
    while (
        Wanted && Type < ARRAY_SIZE(RegTypes) && !(RegTypes[Type] && Same(Wanted, RegTypes[Type])))
        Type++;
    if (Type == ARRAY_SIZE(RegTypes)) return RegUsage(Errors, "Invalid syntax.", "ADD ");
    if (KeyOnly && Existing != NULL) return RegDone(Output, Errors, STATUS_SUCCESS);
    if (Existing != NULL && CmFindValue(Existing, Name) && !ProgramFlag(Count, Arguments, "f")) {
        OutputPrint(Output, "Value %s exists, overwrite(Yes/No)? ", Name); /* nobody answers here */
        return RegFail(Errors, "The operation was canceled by the user.");
    }
    PCHAR Data = KiAllocate(strlen(Text) + 8);
    if (Data == NULL) return RegDone(Output, Errors, STATUS_NO_MEMORY);
    BOOLEAN Good = RegParse(Type, Text, Data, &Length);
    NTSTATUS Status = Good ? CmSetValue(Key, Name, Type, Data, Length) : STATUS_INVALID_PARAMETER;
    KiFree(Data);
    if (!Good)
        return RegUsage(Errors, "Invalid syntax. Specify valid numeric value for '/d'.", "ADD ");
    if (KeyOnly && NT_SUCCESS(Status))
        Status = CmDeleteValue(Key, ""); /* setting it made the key */
    return RegDone(Output, Errors, Status);
}

static void RegPrintValue(POUTPUT Output, const CM_VALUE *Value) {
    PCSTR Type = Value->Type < ARRAY_SIZE(RegTypes) ? RegTypes[Value->Type] : NULL;
    PCSTR Text = (PCSTR)Value->Data, End = Text + Value->Length;
    OutputPrint(Output, "    %s    %s    ", *Value->Name ? Value->Name : "(Default)",
        Type != NULL ? Type : "REG_NONE");
    if (Value->Type == REG_DWORD && Value->Length == 4)
        OutputPrint(Output, "0x%x", *(PULONG)Value->Data);
    else if (Value->Type == REG_QWORD && Value->Length == 8)
        OutputPrint(Output, "0x%llx", *(PULONG64)Value->Data);
    else if (Value->Type == REG_SZ || Value->Type == REG_EXPAND_SZ)
        OutputPrint(Output, "%s", Text);
    else if (Value->Type == REG_MULTI_SZ)
        for (PCSTR Part = Text; Part < End && *Part; Part += strlen(Part) + 1)
            OutputPrint(Output, "%s%s", Part == Text ? "" : "\\0", Part);
    else
        for (; Text < End; Text++) OutputPrint(Output, "%02X", (UCHAR)*Text);
    OutputPrint(Output, "\n");
}

/* One key's values and the names of its subkeys, or with /s those keys in full. */
static void RegQueryKey(POUTPUT Output, PCM_KEY Key, PCSTR Name, BOOLEAN Recursive, ULONG *Found) {
    ULONG Before = *Found;
    if (Recursive && Name == NULL && IsListEmpty(&Key->Values))
        OutputPrint(Output, "\n%s\n", Key->Path);
    for (PLIST_ENTRY Link = Key->Values.Flink; Link != &Key->Values; Link = Link->Flink) {
        PCM_VALUE Value = CONTAINING_RECORD(Link, CM_VALUE, Link);
        if (Name != NULL && !Same(Name, Value->Name)) continue;
        if ((*Found)++ == Before) OutputPrint(Output, "\n%s\n", Key->Path);
        RegPrintValue(Output, Value);
    }
    if (!Recursive) OutputPrint(Output, "\n");
    for (PCM_KEY Subkey = NULL; (Subkey = CmNextSubkey(Key->Path, Subkey)) != NULL;)
        if (Recursive)
            RegQueryKey(Output, Subkey, Name, TRUE, Found);
        else if (Name == NULL)
            OutputPrint(Output, "%s\n", Subkey->Path);
}

static int RegQuery(int Count, PCHAR *Arguments, POUTPUT Output, POUTPUT Errors) {
    PCM_KEY Key = CmFindKey(Arguments[2]);
    PCSTR Name = ProgramFlag(Count, Arguments, "ve") ? "" : ProgramOption(Count, Arguments, "v");
    BOOLEAN Recursive = ProgramFlag(Count, Arguments, "s");
    ULONG Found = 0;
    if (Key == NULL || (Name != NULL && !Recursive && CmFindValue(Key, Name) == NULL))
        return RegDone(Output, Errors, STATUS_OBJECT_NAME_NOT_FOUND);
    RegQueryKey(Output, Key, Name, Recursive, &Found);
    if (Name != NULL && Recursive)
        OutputPrint(Output, "\nEnd of search: %u match(es) found.\n", Found);
    return Name != NULL && Found == 0 ? 1 : 0;
}

static int RegDelete(int Count, PCHAR *Arguments, POUTPUT Output, POUTPUT Errors) {
    PCSTR Name = ProgramFlag(Count, Arguments, "ve") ? "" : ProgramOption(Count, Arguments, "v");
    if (!ProgramFlag(Count, Arguments, "f")) {
        OutputPrint(Output, "Permanently delete the registry %s %s (Yes/No)? ",
            Name != NULL ? "value" : "key", Name != NULL ? Name : Arguments[2]);
        return RegFail(Errors, "The operation was canceled by the user.");
    }
    return RegDone(Output, Errors,
        Name != NULL ? CmDeleteValue(Arguments[2], Name) : CmDeleteKey(Arguments[2]));
}

int RegMain(int Count, PCHAR *Arguments, POUTPUT Output, POUTPUT Errors) {
    PCSTR Verb = Count > 2 ? Arguments[1] : "";
    PROGRAM *Run = Same(Verb, "add")      ? RegAdd
                   : Same(Verb, "query")  ? RegQuery
                   : Same(Verb, "delete") ? RegDelete
                                          : NULL;
    if (Run == NULL) return RegUsage(Errors, "Invalid syntax.", "");
    if (RtlCompareTextInsensitiveN(Arguments[2], "HKLM\\", 5) != 0 &&
        RtlCompareTextInsensitiveN(Arguments[2], "HKEY_LOCAL_MACHINE\\", 19) != 0)
        return RegUsage(Errors, "Invalid key name.", "");
    return Run(Count, Arguments, Output, Errors);
}
