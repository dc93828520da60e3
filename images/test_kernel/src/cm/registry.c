/* Keys and values in memory in the order of SYSTEM.reg, the ASCII text of a .reg export with each
 * value on one line. Every change writes it all back; a power cut leaves the old text or the new.
 * Pointers to a key or value stay good until it is deleted or the value's length changes. */
#include "ob.h"

#define CMP_HEADER "Windows Registry Editor Version 5.00"
#define CMP_FILE   "Windows\\System32\\config\\SYSTEM.reg"
#define CMP_ROOT   "HKEY_LOCAL_MACHINE"
enum { PATH_SIZE = 256, ROOT_LENGTH = sizeof(CMP_ROOT) - 1 };

static LIST_ENTRY CmpKeys = {&CmpKeys, &CmpKeys};
static KI_MUTEX CmpMutex;
/* The body is the key's path, looked up at each use: the key may be deleted meanwhile. */
static OBJECT_TYPE CmpKeyType = {"Key", NULL};

static void CmpUnlock(int *Unused) { KiReleaseMutex((UNREFERENCED(Unused), &CmpMutex)); }
#define LOCK_UNTIL_RETURN                                                                          \
    __attribute__((cleanup(CmpUnlock))) int Locked = (KiAcquireMutex(&CmpMutex), 0);               \
    UNREFERENCED(Locked)

static BOOLEAN CmpIsPlain(UCHAR Character) { return Character >= ' ' && Character <= '~'; }
static BOOLEAN CmpIsText(ULONG Type) { return Type == REG_SZ || Type == REG_EXPAND_SZ; }

/* -- keys and values -------------------------------------------------------------------------- */
/* The next CM_KEY or CM_VALUE of a list: both begin with their link. */
static PVOID CmpNext(PLIST_ENTRY Head, PVOID Previous) {
    PLIST_ENTRY Link = Previous ? ((PLIST_ENTRY)Previous)->Flink : Head->Flink;
    return Link != Head ? Link : NULL;
}

/* What follows `Prefix` in the path: nothing or a backslash. NULL: the path does not start so. */
static PCSTR CmpAfter(PCSTR Path, PCSTR Prefix) {
    SIZE_T Length = strlen(Prefix);
    BOOLEAN Match = RtlCompareTextInsensitiveN(Path, Prefix, Length) == 0;
    return Match && strchr("\\", Path[Length]) ? Path + Length : NULL;
}

/* The path from below the root on; NULL where that is another root. */
static PCSTR CmpBelowRoot(PCSTR Path) {
    static const PCSTR Roots[] = {CMP_ROOT, "HKLM", "\\Registry\\Machine"};
    PCSTR Below = NULL;
    for (ULONG i = 0; i < ARRAY_SIZE(Roots) && !Below; i++) Below = CmpAfter(Path, Roots[i]);
    return Below;
}

PCM_KEY CmFindKey(PCSTR Path) {
    PCSTR Below = CmpBelowRoot(Path);
    for (PCM_KEY Key = NULL; Below && (Key = CmpNext(&CmpKeys, Key));)
        if (RtlCompareTextInsensitive(Key->Path + ROOT_LENGTH, Below) == 0) return Key;
    return NULL;
}

PCM_KEY CmNextSubkey(PCSTR Path, PCM_KEY Previous) {
    PCSTR Above = CmpBelowRoot(Path);
    for (PCM_KEY Key = Previous; Above && (Key = CmpNext(&CmpKeys, Key));) {
        PCSTR Name = CmpAfter(Key->Path + ROOT_LENGTH, Above);
        if (Name && *Name && !strchr(Name + 1, '\\')) return Key;
    }
    return NULL;
}

PCM_VALUE CmFindValue(PCM_KEY Key, PCSTR Name) {
    for (PCM_VALUE Value = NULL; Key && (Value = CmpNext(&Key->Values, Value));)
        if (RtlCompareTextInsensitive(Value->Name, Name) == 0) return Value;
    return NULL;
}

/* The key, made if need be, after the keys above it. */
static NTSTATUS CmpMakeKey(PCSTR Path, PCM_KEY *Key) {
    CHAR Part[PATH_SIZE];
    PCSTR Below = CmpBelowRoot(Path);
    *Key = NULL;
    if (!Below || ROOT_LENGTH + strlen(Below) >= PATH_SIZE) return STATUS_OBJECT_NAME_INVALID;
    for (PCSTR At = Below; *At; At++) /* no control characters, no empty names */
        if (!CmpIsPlain(*At) || (*At == '\\' && strchr("\\", At[1])))
            return STATUS_OBJECT_NAME_INVALID;
    for (PCSTR End = Below; End <= Below + strlen(Below); End++) {
        if (*End && *End != '\\') continue;
        int Length = RtlFormat(Part, PATH_SIZE, "%s%.*s", CMP_ROOT, (int)(End - Below), Below);
        if ((*Key = CmFindKey(Part))) continue;
        *Key = ExAllocatePool2(0x40, sizeof(CM_KEY) + Length + 1, 'yKmC');
        if (!*Key) return STATUS_INSUFFICIENT_RESOURCES;
        (*Key)->Path = memcpy(*Key + 1, Part, Length + 1);
        InitializeListHead(&(*Key)->Values);
        InsertTailList(&CmpKeys, &(*Key)->Link);
    }
    return STATUS_SUCCESS;
}

/* Texts, of printable ASCII, are stored with a NUL at their end, whether it was given or not. */
static NTSTATUS CmpStore(PCM_KEY Key, PCSTR Name, ULONG Type, const void *Data, ULONG Length) {
    const UCHAR *Bytes = Data;
    PCM_VALUE Old = CmFindValue(Key, Name), Value = Old;
    BOOLEAN Text = CmpIsText(Type);
    if (Text && Length > 0 && Bytes[Length - 1] == 0) Length--;
    for (ULONG i = 0; i < Length && Text; i++)
        if (!CmpIsPlain(Bytes[i])) return STATUS_INVALID_PARAMETER;
    for (ULONG i = 0; Name[i]; i++)
        if (!CmpIsPlain(Name[i]) || i + 1 == sizeof(Value->Name)) return STATUS_OBJECT_NAME_INVALID;
    if (!Old || Old->Length != Length + Text) {
        Value = ExAllocatePool2(0x40, sizeof(CM_VALUE) + Length + 2, 'aVmC');
        if (!Value) return STATUS_INSUFFICIENT_RESOURCES;
        RtlCopyText(Value->Name, sizeof(Value->Name), Old ? Old->Name : Name);
        InsertTailList(Old ? &Old->Link : &Key->Values, &Value->Link);
        if (Old) RemoveEntryList(&Old->Link);
        if (Old) KiFree(Old);
    }
    Value->Type = Type;
    Value->Length = Length + Text;
    Value->Data = memcpy(Value + 1, Data, Length);
    Value->Data[Length] = 0;
    return STATUS_SUCCESS;
}

/* The data as drivers and, in hexadecimal, the file have it: texts in UTF-16. */
static ULONG CmpWideSize(const CM_VALUE *Value) { return Value->Length << CmpIsText(Value->Type); }
static UCHAR CmpWideByte(const CM_VALUE *Value, ULONG At) {
    return !CmpIsText(Value->Type) ? Value->Data[At] : At % 2 ? 0 : Value->Data[At / 2];
}

/* -- the text: reading. Values are decoded in place, never longer than their text -------------- */
/* Past `Expected`, if it comes next. */
static BOOLEAN CmpSkip(PCHAR *Text, PCSTR Expected) {
    BOOLEAN Match = strncmp(*Text, Expected, strlen(Expected)) == 0;
    *Text += Match ? strlen(Expected) : 0;
    return Match;
}

static PCHAR CmpReadQuoted(PCHAR *Text) {
    PCHAR Start = *Text + 1, From = Start, To = Start;
    if (!CmpSkip(Text, "\"")) return NULL;
    for (; *From != '"'; *To++ = *From++) /* a backslash comes before another or a quote */
        if (!*From || (*From == '\\' && *++From != '\\' && *From != '"')) return NULL;
    *To = 0;
    *Text = From + 1;
    return Start;
}

/* Bytes with commas between them; `Wide`: UTF-16, of which the lower halves are kept. */
static BOOLEAN CmpReadBytes(PCHAR Text, BOOLEAN Wide, PUCHAR To, PULONG Length) {
    ULONG64 Byte;
    for (*Length = 0; *Text; To[(*Length)++] = (UCHAR)Byte) {
        CHAR Digits[] = {Text[0], Text[1], 0};
        if (!Text[1] || !RtlTextToInteger(Digits, 16, &Byte)) return FALSE;
        Text += 2;
        if ((Wide && !CmpSkip(&Text, ",00")) || (*Text && !CmpSkip(&Text, ","))) return FALSE;
    }
    return TRUE;
}

/* [key], "name"=value or @=value; *Key is the one the line belongs to. */
static BOOLEAN CmpReadLine(PCHAR Text, PCM_KEY *Key) {
    ULONG64 Number, Type = REG_BINARY;
    ULONG Length;
    if (CmpSkip(&Text, "[")) {
        PCHAR End = Text + strlen(Text) - 1;
        BOOLEAN Closed = *End == ']';
        *End = 0;
        return NT_SUCCESS(CmpMakeKey(Closed ? Text : "", Key));
    }
    PCSTR Name = CmpSkip(&Text, "@") ? "" : CmpReadQuoted(&Text);
    if (!*Key || !Name || !CmpSkip(&Text, "=")) return FALSE;
    if (*Text == '"') {
        PCSTR Data = CmpReadQuoted(&Text);
        return Data && !*Text && NT_SUCCESS(CmpStore(*Key, Name, REG_SZ, Data, strlen(Data)));
    }
    if (CmpSkip(&Text, "dword:"))
        return RtlTextToInteger(Text, 16, &Number) && Number <= 0xFFFFFFFF &&
               NT_SUCCESS(CmpStore(*Key, Name, REG_DWORD, &Number, sizeof(ULONG)));
    if (!CmpSkip(&Text, "hex:")) {
        PCHAR End = strstr(Text, "):");
        if (!End || !CmpSkip(&Text, "hex(")) return FALSE;
        *End = 0;
        if (!RtlTextToInteger(Text, 16, &Type)) return FALSE;
        Text = End + 2;
    }
    return CmpReadBytes(Text, CmpIsText(Type), (PUCHAR)Text, &Length) &&
           NT_SUCCESS(CmpStore(*Key, Name, (ULONG)Type, Text, Length));
}

/* Reads the registry. Lines that make no sense are reported and left out. */
void CmInitialize(void) {
    PCM_KEY Key = NULL;
    PVOID Text = NULL;
    ULONG Size, Number = 0;
    NTSTATUS Status = FatLoadFile(CMP_FILE, &Text, &Size);
    if (!NT_SUCCESS(Status)) DbgPrint("cm: C:\\%s: status %08x\n", CMP_FILE, Status);
    for (PCHAR Line = Text, End; Line; Line = End ? End + 2 : NULL) {
        if ((End = strstr(Line, "\r\n"))) *End = 0;
        if (++Number == 1 ? strcmp(Line, CMP_HEADER) != 0 : *Line && !CmpReadLine(Line, &Key))
            DbgPrint("cm: C:\\%s line %u left out: not [key], \"name\"=\"text\", dword: or hex:\n",
                CMP_FILE, Number);
    }
    if (Text) KiFree(Text);
}

/* -- the text: writing, to a buffer that is known to be large enough --------------------------- */
static PCHAR CmpPutQuoted(PCHAR At, PCSTR Text) {
    for (*At++ = '"'; *Text; *At++ = *Text++)
        if (*Text == '\\' || *Text == '"') *At++ = '\\';
    *At++ = '"';
    return At;
}

static PCHAR CmpPutValue(PCHAR At, const CM_VALUE *Value) {
    At = *Value->Name ? CmpPutQuoted(At, Value->Name) : At + RtlFormat(At, 2, "@");
    *At++ = '=';
    if (Value->Type == REG_SZ) {
        At = CmpPutQuoted(At, (PCSTR)Value->Data);
    } else if (Value->Type == REG_DWORD && Value->Length == sizeof(ULONG)) {
        At += RtlFormat(At, 16, "dword:%08x", *(PULONG)Value->Data);
    } else {
        At += RtlFormat(At, 16, Value->Type == REG_BINARY ? "hex:" : "hex(%x):", Value->Type);
        for (ULONG i = 0; i < CmpWideSize(Value); i++)
            At += RtlFormat(At, 4, i ? ",%02x" : "%02x", CmpWideByte(Value, i));
    }
    return At + RtlFormat(At, 3, "\r\n");
}

static NTSTATUS CmpFlush(void) {
    ULONG Room = sizeof(CMP_HEADER) + 2;
    for (PCM_KEY Key = NULL; (Key = CmpNext(&CmpKeys, Key)); Room += PATH_SIZE + 8)
        for (PCM_VALUE Value = NULL; (Value = CmpNext(&Key->Values, Value));)
            Room += 2 * sizeof(*Value) + 6 * Value->Length;
    PCHAR Text = KiAllocate(Room);
    if (!Text) return STATUS_INSUFFICIENT_RESOURCES;
    PCHAR End = Text + RtlFormat(Text, Room, CMP_HEADER "\r\n");
    for (PCM_KEY Key = NULL; (Key = CmpNext(&CmpKeys, Key));) {
        End += RtlFormat(End, PATH_SIZE + 8, "\r\n[%s]\r\n", Key->Path);
        for (PCM_VALUE Value = NULL; (Value = CmpNext(&Key->Values, Value));)
            End = CmpPutValue(End, Value);
    }
    NTSTATUS Status = FatStoreFile(CMP_FILE, Text, (ULONG)(End - Text));
    KiFree(Text);
    if (NT_SUCCESS(Status)) Status = HalDiskFlush();
    if (!NT_SUCCESS(Status))
        DbgPrint("cm: C:\\%s could not be written: status %08x\n", CMP_FILE, Status);
    return Status;
}

ULONG CmQueryDword(PCSTR Path, PCSTR Name, ULONG Default) {
    LOCK_UNTIL_RETURN;
    PCM_VALUE Value = CmFindValue(CmFindKey(Path), Name);
    BOOLEAN Good = Value && Value->Type == REG_DWORD && Value->Length == sizeof(ULONG);
    return Good ? *(PULONG)Value->Data : Default;
}

NTSTATUS CmQueryString(PCSTR Path, PCSTR Name, PCHAR Buffer, ULONG Size) {
    LOCK_UNTIL_RETURN;
    PCM_VALUE Value = CmFindValue(CmFindKey(Path), Name);
    if (!Value) return STATUS_OBJECT_NAME_NOT_FOUND;
    if (!CmpIsText(Value->Type)) return STATUS_OBJECT_TYPE_MISMATCH;
    if (Value->Length > Size) return STATUS_BUFFER_TOO_SMALL;
    memcpy(Buffer, Value->Data, Value->Length);
    return STATUS_SUCCESS;
}

NTSTATUS CmSetValue(PCSTR Path, PCSTR Name, ULONG Type, const void *Data, ULONG Length) {
    LOCK_UNTIL_RETURN;
    PCM_KEY Key;
    TRY(CmpMakeKey(Path, &Key));
    TRY(CmpStore(Key, Name, Type, Data, Length));
    return CmpFlush();
}

NTSTATUS CmDeleteValue(PCSTR Path, PCSTR Name) {
    LOCK_UNTIL_RETURN;
    PCM_VALUE Value = CmFindValue(CmFindKey(Path), Name);
    if (!Value) return STATUS_OBJECT_NAME_NOT_FOUND;
    RemoveEntryList(&Value->Link);
    KiFree(Value);
    return CmpFlush();
}

NTSTATUS CmDeleteKey(PCSTR Path) {
    LOCK_UNTIL_RETURN;
    CHAR Below[PATH_SIZE]; /* `Path` may lie in the key */
    if (!CmFindKey(Path)) return STATUS_OBJECT_NAME_NOT_FOUND;
    RtlCopyText(Below, sizeof(Below), CmpBelowRoot(Path));
    for (PCM_KEY Key = NULL; (Key = CmpNext(&CmpKeys, Key));) {
        if (!CmpAfter(Key->Path + ROOT_LENGTH, Below)) continue;
        while (!IsListEmpty(&Key->Values)) KiFree(RemoveHeadList(&Key->Values));
        RemoveEntryList(&Key->Link);
        KiFree(Key);
        Key = NULL; /* from the first one again */
    }
    return CmpFlush();
}

NTSYSAPI NTSTATUS ZwOpenKey(PHANDLE Handle, ULONG Access, POBJECT_ATTRIBUTES Attributes) {
    LOCK_UNTIL_RETURN;
    PCHAR Path;
    UNREFERENCED(Access);
    if (Attributes->RootDirectory) return STATUS_NOT_SUPPORTED;
    TRY(ObCreateObject(&CmpKeyType, PATH_SIZE, (PVOID *)&Path));
    RtlUnicodeToText(Attributes->ObjectName, Path, PATH_SIZE);
    if (CmFindKey(Path)) return ObInsertObject(Path, Handle);
    ObfDereferenceObject(Path);
    return STATUS_OBJECT_NAME_NOT_FOUND;
}

/* Of the classes only KeyValuePartialInformation: title index, type, length, data. */
NTSYSAPI NTSTATUS ZwQueryValueKey(HANDLE Handle, PUNICODE_STRING Name,
    KEY_VALUE_INFORMATION_CLASS Class, PVOID Information, ULONG Length, PULONG ResultLength) {
    CHAR Path[PATH_SIZE], ValueName[sizeof(((PCM_VALUE)0)->Name)];
    PVOID Body;
    if (Class != KeyValuePartialInformation) return STATUS_INVALID_PARAMETER;
    TRY(ObReferenceObjectByHandle(Handle, 0, &CmpKeyType, 0, &Body, NULL));
    RtlCopyText(Path, PATH_SIZE, Body);
    ObfDereferenceObject(Body);
    RtlUnicodeToText(Name, ValueName, sizeof(ValueName));
    LOCK_UNTIL_RETURN;
    PCM_VALUE Value = CmFindValue(CmFindKey(Path), ValueName);
    if (!Value) return CmFindKey(Path) ? STATUS_OBJECT_NAME_NOT_FOUND : STATUS_KEY_DELETED;
    ULONG Fixed[] = {0, Value->Type, CmpWideSize(Value)};
    *ResultLength = sizeof(Fixed) + CmpWideSize(Value);
    if (Length < sizeof(Fixed)) return STATUS_BUFFER_TOO_SMALL;
    memcpy(Information, Fixed, sizeof(Fixed));
    for (ULONG i = sizeof(Fixed); i < MIN(Length, *ResultLength); i++)
        ((PUCHAR)Information)[i] = CmpWideByte(Value, i - sizeof(Fixed));
    return Length < *ResultLength ? STATUS_BUFFER_OVERFLOW : STATUS_SUCCESS;
}
