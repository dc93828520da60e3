/* The registry: keys and values in memory, in the order of SYSTEM.reg, whose text is that of
 * "Windows Registry Editor Version 5.00" in ASCII. Every change writes the whole text back;
 * FatStoreFile leaves the old or the new one after a power cut. CM_KEY and CM_VALUE pointers stay
 * good until the key or value is deleted; a value's data moves only when its length changes. */
#include "ob.h"

#define CMP_HEADER "Windows Registry Editor Version 5.00"
#define CMP_FILE   "Windows\\System32\\config\\SYSTEM.reg"
#define CMP_ROOT   "HKEY_LOCAL_MACHINE"
enum { PATH_SIZE = 256 };

static LIST_ENTRY CmpKeys = {&CmpKeys, &CmpKeys};
static KI_MUTEX CmpLock;
/* The body is the key's path, looked up at each use: the key may be deleted meanwhile. */
static OBJECT_TYPE CmpKeyType = {"Key", NULL};
NTSYSAPI POBJECT_TYPE CmKeyObjectType = &CmpKeyType;

static BOOLEAN CmpIsText(ULONG Type) {
    return Type == REG_SZ || Type == REG_EXPAND_SZ || Type == REG_MULTI_SZ;
}
static BOOLEAN CmpIsPlain(UCHAR Character) { return Character >= ' ' && Character <= '~'; }

/* -- keys and values -------------------------------------------------------------------------- */
/* What follows `Prefix` in the path: nothing or a backslash. NULL: the path does not start so. */
static PCSTR CmpAfter(PCSTR Path, PCSTR Prefix) {
    SIZE_T Length = strlen(Prefix);
    if (RtlCompareTextInsensitiveN(Path, Prefix, Length) != 0 || !strchr("\\", Path[Length]))
        return NULL;
    return Path + Length;
}

/* The path under its canonical root; FALSE for another root, empty names, control characters. */
static BOOLEAN CmpCanonicalPath(PCSTR Path, PCHAR Canonical) {
    PCSTR Rest = CmpAfter(Path, CMP_ROOT);
    if (!Rest && !(Rest = CmpAfter(Path, "HKLM"))) Rest = CmpAfter(Path, "\\Registry\\Machine");
    if (!Rest || strlen(CMP_ROOT) + strlen(Rest) >= PATH_SIZE) return FALSE;
    RtlFormat(Canonical, PATH_SIZE, "%s%s", CMP_ROOT, Rest);
    for (; *Rest; Rest++)
        if (!CmpIsPlain(*Rest) || (*Rest == '\\' && strchr("\\", Rest[1]))) return FALSE;
    return TRUE;
}

PCM_KEY CmFindKey(PCSTR Path) {
    CHAR Canonical[PATH_SIZE];
    for (PLIST_ENTRY Link = CmpCanonicalPath(Path, Canonical) ? CmpKeys.Flink : &CmpKeys;
         Link != &CmpKeys; Link = Link->Flink) {
        PCM_KEY Key = CONTAINING_RECORD(Link, CM_KEY, Link);
        if (RtlCompareTextInsensitive(Key->Path, Canonical) == 0) return Key;
    }
    return NULL;
}

PCM_KEY CmNextSubkey(PCSTR Path, PCM_KEY Previous) {
    CHAR Canonical[PATH_SIZE];
    PLIST_ENTRY Link = Previous ? Previous->Link.Flink : CmpKeys.Flink;
    for (; CmpCanonicalPath(Path, Canonical) && Link != &CmpKeys; Link = Link->Flink) {
        PCM_KEY Key = CONTAINING_RECORD(Link, CM_KEY, Link);
        PCSTR Rest = CmpAfter(Key->Path, Canonical);
        if (Rest && *Rest && !strchr(Rest + 1, '\\')) return Key;
    }
    return NULL;
}

PCM_VALUE CmFindValue(PCM_KEY Key, PCSTR Name) {
    for (PLIST_ENTRY Link = Key->Values.Flink; Link != &Key->Values; Link = Link->Flink) {
        PCM_VALUE Value = CONTAINING_RECORD(Link, CM_VALUE, Link);
        if (RtlCompareTextInsensitive(Value->Name, Name) == 0) return Value;
    }
    return NULL;
}

/* The key, made if need be, after the keys above it. `Path` is canonical. */
static PCM_KEY CmpMakeKey(PCHAR Path) {
    for (PCHAR End = Path + strlen(CMP_ROOT);; End++) {
        CHAR Kept = *End;
        if (Kept != 0 && Kept != '\\') continue;
        *End = 0;
        PCM_KEY Key = CmFindKey(Path);
        if (!Key && (Key = KiAllocate(sizeof(CM_KEY)))) {
            Key->Path = RtlDuplicateText(Path);
            InitializeListHead(&Key->Values);
            InsertTailList(&CmpKeys, &Key->Link);
        }
        *End = Kept;
        if (Kept == 0 || !Key) return Key;
    }
}

/* Texts are stored with a NUL at their end, whether it was given or not. */
static NTSTATUS CmpStore(PCM_KEY Key, PCSTR Name, ULONG Type, const UCHAR *Data, ULONG Length) {
    PCM_VALUE Value = CmFindValue(Key, Name);
    ULONG Stored = Length + (CmpIsText(Type) && (Length == 0 || Data[Length - 1] != 0));
    for (ULONG i = 0; Name[i]; i++)
        if (!CmpIsPlain(Name[i]) || i + 1 == sizeof(Value->Name)) return STATUS_OBJECT_NAME_INVALID;
    for (ULONG i = 0; i < Length && CmpIsText(Type); i++)
        if (Data[i] > 0x7F) return STATUS_INVALID_PARAMETER;
    if (!Value) {
        if (!(Value = ExAllocatePool2(0x40, sizeof(CM_VALUE), 'aVmC')))
            return STATUS_INSUFFICIENT_RESOURCES;
        RtlCopyText(Value->Name, sizeof(Value->Name), Name);
        InsertTailList(&Key->Values, &Value->Link);
    }
    if (!Value->Data || Value->Length != Stored) {
        PUCHAR Copy = KiAllocate(Stored + 1); /* never of no bytes */
        if (!Copy) return STATUS_INSUFFICIENT_RESOURCES;
        if (Value->Data) KiFree(Value->Data);
        Value->Data = Copy;
    }
    Value->Type = Type;
    Value->Length = Stored;
    memcpy(Value->Data, Data, Length);
    memset(Value->Data + Length, 0, Stored - Length);
    return STATUS_SUCCESS;
}

static void CmpFreeValue(PCM_VALUE Value) {
    RemoveEntryList(&Value->Link);
    if (Value->Data) KiFree(Value->Data);
    KiFree(Value);
}

/* UTF-16 to ASCII, in place. */
static BOOLEAN CmpNarrow(PUCHAR Data, PULONG Length) {
    for (ULONG i = 0; i + 1 < *Length; i += 2) {
        if (Data[i + 1] || Data[i] > 0x7F) return FALSE;
        Data[i / 2] = Data[i];
    }
    *Length /= 2;
    return TRUE;
}

/* -- the text: reading. Values are decoded in place, never longer than their text -------------- */
typedef struct _CMP_READER {
    PCHAR Text;
    ULONG Line;
} CMP_READER, *PCMP_READER;

/* Past blanks and, if it comes next, `Expected`. */
static BOOLEAN CmpSkip(PCMP_READER Reader, PCSTR Expected) {
    while (*Reader->Text == ' ' || *Reader->Text == '\t') Reader->Text++;
    BOOLEAN Match = strncmp(Reader->Text, Expected, strlen(Expected)) == 0;
    Reader->Text += Match ? strlen(Expected) : 0;
    return Match;
}

/* Whether the line ends here, or only a comment is left. */
static BOOLEAN CmpAtEnd(PCMP_READER Reader) {
    CmpSkip(Reader, "");
    return strchr("\r\n;", *Reader->Text) != NULL; /* finds the NUL too */
}

/* To the next line; past the indented ones that continue this one. */
static void CmpSkipLine(PCMP_READER Reader) {
    do {
        while (*Reader->Text && *Reader->Text != '\n') Reader->Text++;
        if (*Reader->Text) {
            Reader->Text++;
            Reader->Line++;
        }
    } while (*Reader->Text == ' ');
}

static PCHAR CmpReadQuoted(PCMP_READER Reader, PULONG Length) {
    PCHAR Text = Reader->Text + 1, Start = Text, Out = Text;
    if (Text[-1] != '"') return NULL;
    for (; *Text != '"'; *Out++ = *Text++) {
        if (*Text == '\\' && (Text[1] == '\\' || Text[1] == '"'))
            Text++;
        else if (*Text == '\\' || !CmpIsPlain(*Text))
            return NULL;
    }
    Reader->Text = Text + 1;
    *Out = 0;
    *Length = (ULONG)(Out - Start);
    return Start;
}

static ULONG CmpReadNumber(PCMP_READER Reader, PULONG Digits) {
    static const CHAR Hexadecimal[] = "0123456789abcdefABCDEF";
    ULONG Number = 0;
    PCSTR Digit;
    for (*Digits = 0; *Reader->Text && (Digit = strchr(Hexadecimal, *Reader->Text)); ++*Digits) {
        ULONG Value = (ULONG)(Digit - Hexadecimal);
        Number = Number << 4 | (Value > 15 ? Value - 6 : Value);
        Reader->Text++;
    }
    return Number;
}

/* Bytes with commas between them, to the end of the line and of those a backslash adds to it. */
static PUCHAR CmpReadBytes(PCMP_READER Reader, PULONG Length) {
    PUCHAR Start = (PUCHAR)Reader->Text, Out = Start;
    while (!CmpAtEnd(Reader)) {
        ULONG Digits;
        if (CmpSkip(Reader, "\\")) {
            if (!CmpSkip(Reader, "\r\n") && !CmpSkip(Reader, "\n")) return NULL;
            Reader->Line++;
            continue;
        }
        UCHAR Byte = (UCHAR)CmpReadNumber(Reader, &Digits);
        if (Digits != 2 || (!CmpSkip(Reader, ",") && !CmpAtEnd(Reader) && *Reader->Text != '\\'))
            return NULL;
        *Out++ = Byte;
    }
    *Length = (ULONG)(Out - Start);
    return Start;
}

/* "name"=value or @=value. */
static BOOLEAN CmpReadValue(PCMP_READER Reader, PCM_KEY Key) {
    ULONG Length = 0, Type = REG_SZ, Digits, Number;
    PCSTR Name = CmpSkip(Reader, "@") ? "" : CmpReadQuoted(Reader, &Length);
    PUCHAR Data = NULL;
    if (!Key || !Name || !CmpSkip(Reader, "=")) return FALSE;
    if (CmpSkip(Reader, "dword:")) {
        Type = REG_DWORD;
        Number = CmpReadNumber(Reader, &Digits);
        Data = Digits >= 1 && Digits <= 8 ? (PUCHAR)&Number : NULL;
        Length = sizeof(Number);
    } else if (CmpSkip(Reader, "hex:")) {
        Type = REG_BINARY;
        Data = CmpReadBytes(Reader, &Length);
    } else if (CmpSkip(Reader, "hex(")) {
        Type = CmpReadNumber(Reader, &Digits);
        if (Digits >= 1 && Digits <= 8 && CmpSkip(Reader, "):"))
            Data = CmpReadBytes(Reader, &Length);
        if (Data && CmpIsText(Type) && (Length % 2 || !CmpNarrow(Data, &Length))) Data = NULL;
    } else {
        Data = (PUCHAR)CmpReadQuoted(Reader, &Length);
    }
    return Data && CmpAtEnd(Reader) && NT_SUCCESS(CmpStore(Key, Name, Type, Data, Length));
}

/* [key] */
static PCM_KEY CmpReadKey(PCMP_READER Reader) {
    CHAR Path[PATH_SIZE];
    PCHAR Start = Reader->Text, End = NULL;
    for (; *Reader->Text && *Reader->Text != '\n'; Reader->Text++)
        End = *Reader->Text == ']' ? Reader->Text : End;
    if (!End) return NULL;
    *End = 0;
    Reader->Text = End + 1;
    return CmpAtEnd(Reader) && CmpCanonicalPath(Start, Path) ? CmpMakeKey(Path) : NULL;
}

/* Reads the registry. Lines that make no sense are reported and left out. */
void CmInitialize(void) {
    CMP_READER Reader = {NULL, 1};
    PCM_KEY Key = NULL;
    PVOID Text;
    ULONG Size;
    NTSTATUS Status = FatLoadFile(CMP_FILE, &Text, &Size);
    if (!NT_SUCCESS(Status)) {
        DbgPrint("cm: C:\\%s: status %08x\n", CMP_FILE, Status);
        return;
    }
    Reader.Text = Text;
    CmpSkip(&Reader, "\xEF\xBB\xBF"); /* UTF-8's mark */
    if (!CmpSkip(&Reader, CMP_HEADER))
        DbgPrint("cm: C:\\%s does not start with \"%s\": not used\n", CMP_FILE, CMP_HEADER);
    else
        for (CmpSkipLine(&Reader); *Reader.Text; CmpSkipLine(&Reader)) {
            ULONG Line = Reader.Line;
            BOOLEAN Good =
                CmpAtEnd(&Reader) || (CmpSkip(&Reader, "[") ? (Key = CmpReadKey(&Reader)) != NULL
                                                            : CmpReadValue(&Reader, Key));
            if (!Good)
                DbgPrint("cm: C:\\%s line %u left out: expected [" CMP_ROOT "\\...], "
                         "\"name\"=\"ASCII text\", =dword: or =hex:\n",
                    CMP_FILE, Line);
        }
    KiFree(Text);
}

/* -- the text: writing ------------------------------------------------------------------------ */
typedef struct _CMP_WRITER {
    PCHAR Text; /* NULL: only counts */
    ULONG Length;
} CMP_WRITER, *PCMP_WRITER;

static void CmpPut(PCMP_WRITER Writer, PCSTR Text, BOOLEAN Escape) {
    for (; *Text; Text++) {
        if (Escape && (*Text == '\\' || *Text == '"')) CmpPut(Writer, "\\", FALSE);
        if (Writer->Text) Writer->Text[Writer->Length] = *Text;
        Writer->Length++;
    }
}

/* As "text" unless it holds what that cannot: then in hexadecimal. */
static void CmpPutData(PCMP_WRITER Writer, const CM_VALUE *Value) {
    CHAR Piece[24];
    ULONG Plain = 0, Bytes = Value->Length * (CmpIsText(Value->Type) ? 2 : 1);
    while (Plain < Value->Length && CmpIsPlain(Value->Data[Plain])) Plain++;
    if (Value->Type == REG_SZ && Plain == Value->Length - 1) { /* all but the NUL */
        CmpPut(Writer, "\"", FALSE);
        CmpPut(Writer, (PCSTR)Value->Data, TRUE);
        CmpPut(Writer, "\"", FALSE);
        return;
    }
    if (Value->Type == REG_DWORD && Bytes == sizeof(ULONG)) {
        RtlFormat(Piece, sizeof(Piece), "dword:%08x", *(PULONG)Value->Data);
        CmpPut(Writer, Piece, FALSE);
        return;
    }
    RtlFormat(Piece, sizeof(Piece), Value->Type == REG_BINARY ? "hex:" : "hex(%x):", Value->Type);
    CmpPut(Writer, Piece, FALSE);
    for (ULONG i = 0; i < Bytes; i++) {
        UCHAR Byte = Bytes == Value->Length ? Value->Data[i] : i % 2 ? 0 : Value->Data[i / 2];
        RtlFormat(Piece, sizeof(Piece), i + 1 < Bytes ? "%02x," : "%02x", Byte);
        CmpPut(Writer, Piece, FALSE);
    }
}

static ULONG CmpWriteText(PCHAR Text) {
    CMP_WRITER Writer = {Text, 0};
    CmpPut(&Writer, CMP_HEADER "\r\n", FALSE);
    for (PLIST_ENTRY Link = CmpKeys.Flink; Link != &CmpKeys; Link = Link->Flink) {
        PCM_KEY Key = CONTAINING_RECORD(Link, CM_KEY, Link);
        CmpPut(&Writer, "\r\n[", FALSE);
        CmpPut(&Writer, Key->Path, FALSE);
        CmpPut(&Writer, "]\r\n", FALSE);
        for (PLIST_ENTRY Next = Key->Values.Flink; Next != &Key->Values; Next = Next->Flink) {
            PCM_VALUE Value = CONTAINING_RECORD(Next, CM_VALUE, Link);
            CmpPut(&Writer, *Value->Name ? "\"" : "@", FALSE);
            CmpPut(&Writer, Value->Name, TRUE);
            CmpPut(&Writer, *Value->Name ? "\"=" : "=", FALSE);
            CmpPutData(&Writer, Value);
            CmpPut(&Writer, "\r\n", FALSE);
        }
    }
    return Writer.Length;
}

static NTSTATUS CmpFlush(void) {
    ULONG Length = CmpWriteText(NULL);
    PCHAR Text = KiAllocate(Length);
    if (!Text) return STATUS_INSUFFICIENT_RESOURCES;
    CmpWriteText(Text);
    NTSTATUS Status = FatStoreFile(CMP_FILE, Text, Length);
    KiFree(Text);
    if (NT_SUCCESS(Status)) Status = HalDiskFlush();
    if (!NT_SUCCESS(Status))
        DbgPrint("cm: C:\\%s could not be written: status %08x\n", CMP_FILE, Status);
    return Status;
}

/* -- for the kernel --------------------------------------------------------------------------- */
static PCM_VALUE CmpLookUp(PCSTR Path, PCSTR Name) {
    PCM_KEY Key = CmFindKey(Path);
    return Key ? CmFindValue(Key, Name) : NULL;
}

ULONG CmQueryDword(PCSTR Path, PCSTR Name, ULONG Default) {
    KiAcquireMutex(&CmpLock);
    PCM_VALUE Value = CmpLookUp(Path, Name);
    if (Value && Value->Type == REG_DWORD && Value->Length == sizeof(ULONG))
        Default = *(PULONG)Value->Data;
    KiReleaseMutex(&CmpLock);
    return Default;
}

NTSTATUS CmQueryString(PCSTR Path, PCSTR Name, PCHAR Buffer, ULONG Size) {
    KiAcquireMutex(&CmpLock);
    PCM_VALUE Value = CmpLookUp(Path, Name);
    NTSTATUS Status = !Value                    ? STATUS_OBJECT_NAME_NOT_FOUND
                      : !CmpIsText(Value->Type) ? STATUS_OBJECT_TYPE_MISMATCH
                      : Value->Length > Size    ? STATUS_BUFFER_TOO_SMALL
                                                : STATUS_SUCCESS;
    if (NT_SUCCESS(Status)) memcpy(Buffer, Value->Data, Value->Length);
    KiReleaseMutex(&CmpLock);
    return Status;
}

NTSTATUS CmSetValue(PCSTR Path, PCSTR Name, ULONG Type, const void *Data, ULONG Length) {
    CHAR Canonical[PATH_SIZE];
    if (!CmpCanonicalPath(Path, Canonical)) return STATUS_OBJECT_NAME_INVALID;
    KiAcquireMutex(&CmpLock);
    PCM_KEY Key = CmpMakeKey(Canonical);
    NTSTATUS Status = Key ? CmpStore(Key, Name, Type, Data, Length) : STATUS_INSUFFICIENT_RESOURCES;
    if (NT_SUCCESS(Status)) Status = CmpFlush();
    KiReleaseMutex(&CmpLock);
    return Status;
}

NTSTATUS CmDeleteValue(PCSTR Path, PCSTR Name) {
    NTSTATUS Status = STATUS_OBJECT_NAME_NOT_FOUND;
    KiAcquireMutex(&CmpLock);
    PCM_VALUE Value = CmpLookUp(Path, Name);
    if (Value) {
        CmpFreeValue(Value);
        Status = CmpFlush();
    }
    KiReleaseMutex(&CmpLock);
    return Status;
}

NTSTATUS CmDeleteKey(PCSTR Path) {
    CHAR Canonical[PATH_SIZE];
    NTSTATUS Status = STATUS_OBJECT_NAME_NOT_FOUND;
    if (!CmpCanonicalPath(Path, Canonical)) return Status;
    KiAcquireMutex(&CmpLock);
    for (PLIST_ENTRY Link = CmpKeys.Flink, Next; Link != &CmpKeys; Link = Next) {
        PCM_KEY Key = CONTAINING_RECORD(Link, CM_KEY, Link);
        Next = Link->Flink;
        if (!CmpAfter(Key->Path, Canonical)) continue;
        while (!IsListEmpty(&Key->Values))
            CmpFreeValue(CONTAINING_RECORD(Key->Values.Flink, CM_VALUE, Link));
        RemoveEntryList(&Key->Link);
        KiFree((PVOID)Key->Path);
        KiFree(Key);
        Status = STATUS_SUCCESS;
    }
    if (NT_SUCCESS(Status)) Status = CmpFlush();
    KiReleaseMutex(&CmpLock);
    return Status;
}

/* -- for drivers ------------------------------------------------------------------------------ */
static NTSTATUS CmpReferenceKey(HANDLE Handle, PCHAR *Path) {
    return ObReferenceObjectByHandle(Handle, 0, CmKeyObjectType, 0, (PVOID *)Path, NULL);
}

NTSYSAPI NTSTATUS ZwOpenKey(PHANDLE Handle, ULONG Access, POBJECT_ATTRIBUTES Attributes) {
    CHAR Name[PATH_SIZE], Path[2 * PATH_SIZE];
    PCHAR Root = "", Body;
    NTSTATUS Status = STATUS_SUCCESS;
    BOOLEAN Relative = Attributes->RootDirectory != NULL;
    UNREFERENCED(Access);
    if (Relative && !NT_SUCCESS(Status = CmpReferenceKey(Attributes->RootDirectory, &Root)))
        return Status;
    RtlUnicodeToText(Attributes->ObjectName, Name, sizeof(Name));
    RtlFormat(Path, sizeof(Path), "%s%s%s", Root, Relative && *Name ? "\\" : "", Name);
    if (Relative) ObfDereferenceObject(Root);
    if (!CmFindKey(Path)) return STATUS_OBJECT_NAME_NOT_FOUND;
    Status = ObCreateObject(CmKeyObjectType, PATH_SIZE, (PVOID *)&Body);
    if (!NT_SUCCESS(Status)) return Status;
    CmpCanonicalPath(Path, Body);
    return ObInsertObject(Body, Handle);
}

/* Characters of `Width` bytes each to Buffer + At, as far as they fit. Returns where they end. */
static ULONG CmpEmit(
    PUCHAR Buffer, ULONG Size, ULONG At, const void *Data, ULONG Length, ULONG Width) {
    for (ULONG i = 0; i < Length * Width; i++)
        if (At + i < Size) Buffer[At + i] = i % Width ? 0 : ((const UCHAR *)Data)[i / Width];
    return At + Length * Width;
}

NTSYSAPI NTSTATUS ZwQueryValueKey(HANDLE Handle, PUNICODE_STRING Name,
    KEY_VALUE_INFORMATION_CLASS Class, PVOID Information, ULONG Length, PULONG ResultLength) {
    CHAR ValueName[sizeof(((PCM_VALUE)0)->Name)];
    PCHAR Path;
    NTSTATUS Status = CmpReferenceKey(Handle, &Path);
    if (!NT_SUCCESS(Status)) return Status;
    RtlUnicodeToText(Name, ValueName, sizeof(ValueName));
    KiAcquireMutex(&CmpLock);
    PCM_VALUE Value = CmpLookUp(Path, ValueName);
    if (!Value) {
        Status = CmFindKey(Path) ? STATUS_OBJECT_NAME_NOT_FOUND : STATUS_KEY_DELETED;
    } else if (Class > KeyValuePartialInformation) {
        Status = STATUS_INVALID_PARAMETER;
    } else {
        /* Title index, type, then lengths and the full one's data offset; name; data. */
        ULONG Width = CmpIsText(Value->Type) ? 2 : 1, Characters = (ULONG)strlen(Value->Name);
        ULONG NameBytes = Characters * 2, DataBytes = Value->Length * Width;
        ULONG Offset = (20 + NameBytes + 3) & ~3U;
        ULONG Fixed[3][5] = {{0, Value->Type, NameBytes},
            {0, Value->Type, Offset, DataBytes, NameBytes}, {0, Value->Type, DataBytes}};
        ULONG Start = Class == KeyValueFullInformation ? 20 : 12;
        ULONG End = CmpEmit(Information, Length, 0, Fixed[Class], Start, 1);
        if (Class != KeyValuePartialInformation)
            End = CmpEmit(Information, Length, End, Value->Name, Characters, 2);
        if (Class != KeyValueBasicInformation)
            End = CmpEmit(Information, Length, Class == KeyValueFullInformation ? Offset : End,
                Value->Data, Value->Length, Width);
        *ResultLength = End;
        Status = Length < Start ? STATUS_BUFFER_TOO_SMALL
                 : Length < End ? STATUS_BUFFER_OVERFLOW
                                : STATUS_SUCCESS;
    }
    KiReleaseMutex(&CmpLock);
    ObfDereferenceObject(Path);
    return Status;
}

NTSYSAPI NTSTATUS ZwSetValueKey(
    HANDLE Handle, PUNICODE_STRING Name, ULONG TitleIndex, ULONG Type, PVOID Data, ULONG Length) {
    CHAR ValueName[PATH_SIZE];
    PCHAR Path;
    UNREFERENCED(TitleIndex);
    NTSTATUS Status = CmpReferenceKey(Handle, &Path);
    if (!NT_SUCCESS(Status)) return Status;
    PUCHAR Copy = KiAllocate(Length + 1);
    if (!Copy || !CmFindKey(Path)) {
        Status = Copy ? STATUS_KEY_DELETED : STATUS_INSUFFICIENT_RESOURCES;
    } else {
        RtlUnicodeToText(Name, ValueName, sizeof(ValueName));
        memcpy(Copy, Data, Length);
        Status = CmpIsText(Type) && (Length % 2 || !CmpNarrow(Copy, &Length))
                     ? STATUS_INVALID_PARAMETER /* texts are kept in ASCII */
                     : CmSetValue(Path, ValueName, Type, Copy, Length);
    }
    if (Copy) KiFree(Copy);
    ObfDereferenceObject(Path);
    return Status;
}
