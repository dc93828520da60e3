/* reg.exe: query in HKEY_LOCAL_MACHINE; add, of keys, strings and 32-bit numbers. */
#include "agent.h"

static const PCSTR RegTypes[] = {"REG_NONE", "REG_SZ", "REG_EXPAND_SZ", "REG_BINARY", "REG_DWORD"};

static int RegEnd(PPROGRAM Program, NTSTATUS Status) {
    if (Status == STATUS_OBJECT_NAME_NOT_FOUND)
        return FAIL(
            1, "ERROR: The system was unable to find the specified registry key or value.\n");
    if (!NT_SUCCESS(Status)) return FAIL(1, "ERROR: %s\n", Win32Message(Win32Error(Status)));
    return EXIT(0, "The operation completed successfully.\n");
}

/* Without a name: makes the key. */
static int RegAdd(PPROGRAM Program, PCSTR Path, PCSTR Name) {
    PCSTR Wanted = ProgramOption(Program, "/t"), Given = ProgramOption(Program, "/d");
    PCM_KEY Key = CmFindKey(Path);
    ULONG Type = 0, Length = Given ? (ULONG)strlen(Given) + 1 : 1;
    ULONG64 Number = 0;
    while (Type < ARRAY_SIZE(RegTypes) && !Same(Wanted ? Wanted : "REG_SZ", RegTypes[Type])) Type++;
    BOOLEAN Good = Type == REG_DWORD
                       ? Given && RtlTextToInteger(Given, 0, &Number) && Number >> 32 == 0
                       : Type == REG_SZ || Type == REG_EXPAND_SZ;
    if (!Good) return FAIL(1, "ERROR: Invalid syntax.\nType \"REG ADD /?\" for usage.\n");
    if (Name != NULL && Key != NULL && CmFindValue(Key, Name) && !ProgramOption(Program, "/f")) {
        PRINT("Value %s exists, overwrite(Yes/No)? ", Name); /* nobody is here to answer */
        return FAIL(1, "ERROR: The operation was canceled by the user.\n");
    }
    if (Name != NULL && Type == REG_DWORD)
        return RegEnd(Program, CmSetValue(Path, Name, Type, &Number, 4));
    if (Name) return RegEnd(Program, CmSetValue(Path, Name, Type, Given ? Given : "", Length));
    NTSTATUS Status = Key ? STATUS_SUCCESS : CmSetValue(Path, "", REG_SZ, "", 1);
    if (!Key && NT_SUCCESS(Status)) Status = CmDeleteValue(Path, ""); /* setting it made the key */
    return RegEnd(Program, Status);
}

static void RegPrintValue(PPROGRAM Program, const CM_VALUE *Value) {
    PCSTR Type = Value->Type < ARRAY_SIZE(RegTypes) ? RegTypes[Value->Type] : "REG_NONE";
    PRINT("    %s    %s    ", *Value->Name ? Value->Name : "(Default)", Type);
    if (Value->Type == REG_DWORD && Value->Length == 4)
        PRINT("0x%x", *(PULONG)Value->Data);
    else if (Value->Type == REG_SZ || Value->Type == REG_EXPAND_SZ)
        PRINT("%s", Value->Data);
    else
        for (ULONG i = 0; i < Value->Length; i++) PRINT("%02X", Value->Data[i]);
    PRINT("\n");
}

/* A key's values, or one of them, and the names of its subkeys. */
static int RegQuery(PPROGRAM Program, PCSTR Path, PCSTR Name) {
    PCM_KEY Key = CmFindKey(Path);
    if (Key == NULL || (Name && !CmFindValue(Key, Name)))
        return RegEnd(Program, STATUS_OBJECT_NAME_NOT_FOUND);
    PRINT("\n%s\n", Key->Path);
    for (PLIST_ENTRY Link = Key->Values.Flink; Link != &Key->Values; Link = Link->Flink) {
        PCM_VALUE Value = CONTAINING_RECORD(Link, CM_VALUE, Link);
        if (Name == NULL || Same(Name, Value->Name)) RegPrintValue(Program, Value);
    }
    PRINT("\n");
    for (PCM_KEY Subkey = NULL; !Name && (Subkey = CmNextSubkey(Path, Subkey)) != NULL;)
        PRINT("%s\n", Subkey->Path);
    return 0;
}

int RegMain(PPROGRAM Program) {
    PCSTR Verb = Program->Count > 2 ? Program->Arguments[1] : "", Path = Program->Arguments[2];
    PCSTR Name = ProgramOption(Program, "/ve") ? "" : ProgramOption(Program, "/v");
    if (Same(Verb, "add")) return RegAdd(Program, Path, Name);
    if (Same(Verb, "query")) return RegQuery(Program, Path, Name);
    return FAIL(1, "ERROR: Invalid syntax.\nType \"REG /?\" for usage.\n");
}
