/* The registry: keys and values in memory, in the order of SYSTEM.reg, whose text is that of "Windows
 * Registry Editor Version 5.00" in ASCII. Every change writes the whole text to SYSTEM.new, deletes
 * SYSTEM.reg and renames: a power cut leaves one of the two whole, and the next boot takes that one.
 * CM_KEY and CM_VALUE pointers stay good until the key or value is deleted; a value's data moves only
 * when its length changes. */
#include "ob.h"

#define CMP_HEADER "Windows Registry Editor Version 5.00"
#define CMP_FILE   "Windows\\System32\\config\\SYSTEM.reg"
#define CMP_NEW    "Windows\\System32\\config\\SYSTEM.new"
#define CMP_ROOT   "HKEY_LOCAL_MACHINE"
enum { PATH_SIZE = 256 };

static LIST_ENTRY CmpKeys = {&CmpKeys, &CmpKeys};
static KI_MUTEX CmpLock = KI_MUTEX_FREE(CmpLock);
/* The body is the key's path, looked up at each use: the key may be deleted meanwhile. */
static OBJECT_TYPE CmpKeyType = {"Key", NULL};
NTSYSAPI POBJECT_TYPE CmKeyObjectType = &CmpKeyType;

static BOOLEAN CmpIsText(ULONG Type) {
    return Type == REG_SZ || Type == REG_EXPAND_SZ || Type == REG_MULTI_SZ;
}
static BOOLEAN CmpIsPlain(CHAR Character) { return Character >= ' ' && Character <= '~'; }

/* -- keys ------------------------------------------------------------------------------------- */
static PCSTR CmpAfter(PCSTR Path, PCSTR Prefix) {
    SIZE_T Length = strlen(Prefix);
    BOOLEAN Match = RtlCompareTextInsensitiveN(Path, Prefix, Length) == 0 &&
                    (Path[Length] == 0 || Path[Length] == '\\');
    return Match ? Path + Length : NULL;
}

/* The path under its canonical root; FALSE for another root, empty names, control characters. */
static BOOLEAN CmpCanonicalPath(PCSTR Path, PCHAR Canonical) {
    PCSTR Rest = CmpAfter(Path, CMP_ROOT), Set, ControlSet = "";
    if (!Rest && !(Rest = CmpAfter(Path, "HKLM")))
        Rest = CmpAfter(Path, "\\Registry\\Machine");
    if (Rest && (Set = CmpAfter(Rest, "\\SYSTEM\\ControlSet001"))) { /* the one that is current */
        ControlSet = "\\SYSTEM\\CurrentControlSet";
        Rest = Set;
    }
    if (!Rest || sizeof(CMP_ROOT) + strlen(ControlSet) + strlen(Rest) > PATH_SIZE)
        return FALSE;
    RtlFormat(Canonical, PATH_SIZE, "%s%s%s", CMP_ROOT, ControlSet, Rest);
    for (; *Rest; Rest++)
        if (!CmpIsPlain(*Rest) || (*Rest == '\\' && (Rest[1] == '\\' || Rest[1] == 0)))
            return FALSE;
    return TRUE;
}

PCM_KEY CmFindKey(PCSTR Path) {
    CHAR Canonical[PATH_SIZE];
    for (PLIST_ENTRY Link = CmpCanonicalPath(Path, Canonical) ? CmpKeys.Flink : &CmpKeys;
         Link != &CmpKeys; Link = Link->Flink) {
        PCM_KEY Key = CONTAINING_RECORD(Link, CM_KEY, Link);
        if (RtlCompareTextInsensitive(Key->Path, Canonical) == 0)
            return Key;
    }
    return NULL;
}

PCM_KEY CmNextSubkey(PCSTR Path, PCM_KEY Previous) {
    CHAR Canonical[PATH_SIZE];
    if (!CmpCanonicalPath(Path, Canonical))
        return NULL;
    PLIST_ENTRY Link = Previous ? Previous->Link.Flink : CmpKeys.Flink;
    for (; Link != &CmpKeys; Link = Link->Flink) {
        PCM_KEY Key = CONTAINING_RECORD(Link, CM_KEY, Link);
        PCSTR Rest = CmpAfter(Key->Path, Canonical);
        if (Rest && *Rest && !strchr(Rest + 1, '\\'))
            return Key;
    }
    return NULL;
}

PCM_VALUE CmFindValue(PCM_KEY Key, PCSTR Name) {
    for (PLIST_ENTRY Link = Key->Values.Flink; Link != &Key->Values; Link = Link->Flink) {
        PCM_VALUE Value = CONTAINING_RECORD(Link, CM_VALUE, Link);
        if (RtlCompareTextInsensitive(Value->Name, Name) == 0)
            return Value;
    }
    return NULL;
}

/* The key, made if need be, after the keys above it. `Path` is canonical. */
static PCM_KEY CmpMakeKey(PCHAR Path) {
    for (PCHAR End = Path + strlen(CMP_ROOT);; End++) {
        CHAR Kept = *End;
        if (Kept != 0 && Kept != '\\')
            continue;
        *End = 0;
        PCM_KEY Key = CmFindKey(Path);
        if (!Key && (Key = KiAllocate(sizeof(CM_KEY)))) {
            Key->Path = RtlDuplicateText(Path);
            InitializeListHead(&Key->Values);
            InsertTailList(&CmpKeys, &Key->Link);
        }
        *End = Kept;
        if (Kept == 0 || !Key)
            return Key;
    }
}

static void CmpFreeValue(PCM_VALUE Value) {
    RemoveEntryList(&Value->Link);
    KiFree(Value->Data);
    KiFree(Value);
}

/* Texts are stored with a NUL at their end, whether it was given or not. */
static NTSTATUS CmpStore(PCM_KEY Key, PCSTR Name, ULONG Type, const UCHAR *Data, ULONG Length) {
    PCM_VALUE Value = CmFindValue(Key, Name);
    ULONG Stored = Length + (CmpIsText(Type) && (Length == 0 || Data[Length - 1] != 0));
    if (strlen(Name) >= sizeof(Value->Name))
        return STATUS_OBJECT_NAME_INVALID;
    for (PCSTR Text = Name; *Text; Text++)
        if (!CmpIsPlain(*Text))
            return STATUS_OBJECT_NAME_INVALID;
    for (ULONG i = 0; i < Length && CmpIsText(Type); i++)
        if (Data[i] > 0x7F)
            return STATUS_INVALID_PARAMETER;
    if (!Value || Value->Length != Stored) {
        PUCHAR Copy = KiAllocate(Stored + 1); /* never of no bytes */
        if (!Value && (Value = KiAllocate(sizeof(CM_VALUE)))) {
            RtlCopyText(Value->Name, sizeof(Value->Name), Name);
            Value->Data = NULL;
            InsertTailList(&Key->Values, &Value->Link);
        }
        if (!Copy || !Value)
            return STATUS_INSUFFICIENT_RESOURCES;
        if (Value->Data)
            KiFree(Value->Data);
        Value->Data = Copy;
    }
    Value->Type = Type;
    Value->Length = Stored;
    memcpy(Value->Data, Data, Length);
    memset(Value->Data + Length, 0, Stored - Length);
    return STATUS_SUCCESS;
}

/* -- the text: reading. Values are decoded in place, never longer than their text -------------- */
typedef struct _CMP_READER {
    PCHAR Text;
    ULONG Line;
} CMP_READER, *PCMP_READER;

static void CmpSkipBlanks(PCMP_READER Reader) {
    while (*Reader->Text == ' ' || *Reader->Text == '\t')
        Reader->Text++;
}

/* Whether the line ends here, or only a comment is left. */
static BOOLEAN CmpAtEnd(PCMP_READER Reader) {
    CmpSkipBlanks(Reader);
    return strchr("\r\n;", *Reader->Text) != NULL; /* the NUL too */
}

/* To the next line; past the indented lines that continue this one. */
static void CmpSkipLine(PCMP_READER Reader) {
    do {
        while (*Reader->Text && *Reader->Text != '\n')
            Reader->Text++;
        if (*Reader->Text) {
            Reader->Text++;
            Reader->Line++;
        }
    } while (*Reader->Text == ' ');
}

static PCHAR CmpReadQuoted(PCMP_READER Reader, PULONG Length) {
    PCHAR Text = Reader->Text + 1, Start = Text, Out = Text;
    if (Text[-1] != '"')
        return NULL;
    for (; *Text != '"'; *Out++ = *Text++) {
        if (*Text == '\\' && (Text[1] == '\\' || Text[1] == '"'))
            Text++;
        else if (*Text == '\\' || (!CmpIsPlain(*Text) && *Text != '\t'))
            return NULL;
    }
    Reader->Text = Text + 1;
    *Out = 0;
    *Length = (ULONG)(Out - Start);
    return Start;
}

static LONG CmpHexDigit(CHAR Digit) {
    return Digit >= '0' && Digit <= '9'   ? Digit - '0'
           : Digit >= 'a' && Digit <= 'f' ? Digit - 'a' + 10
           : Digit >= 'A' && Digit <= 'F' ? Digit - 'A' + 10
                                          : -1;
}

static ULONG CmpReadNumber(PCMP_READER Reader, ULONG *Digits) {
    ULONG Number = 0;
    for (*Digits = 0; CmpHexDigit(*Reader->Text) >= 0; Reader->Text++, ++*Digits)
        Number = Number << 4 | (ULONG)CmpHexDigit(*Reader->Text);
    return Number;
}

/* Comma-separated bytes, to the end of the line and of those that a backslash adds to it. */
static PUCHAR CmpReadBytes(PCMP_READER Reader, PULONG Length) {
    PUCHAR Start = (PUCHAR)Reader->Text, Out = Start;
    while (!CmpAtEnd(Reader)) {
        ULONG Digits;
        if (*Reader->Text == '\\') {
            Reader->Text++;
            if (!CmpAtEnd(Reader) || *Reader->Text == ';')
                return NULL;
            while (*Reader->Text && *Reader->Text++ != '\n')
                ;
            Reader->Line++;
            continue;
        }
        UCHAR Byte = (UCHAR)CmpReadNumber(Reader, &Digits);
        if (Digits != 2 || !(CmpAtEnd(Reader) || *Reader->Text == ',' || *Reader->Text == '\\'))
            return NULL;
        *Out++ = Byte;
        Reader->Text += *Reader->Text == ',';
    }
    *Length = (ULONG)(Out - Start);
    return Start;
}

/* UTF-16 to ASCII, in place. */
static BOOLEAN CmpNarrow(PUCHAR Data, PULONG Length) {
    for (ULONG i = 0; i + 1 < *Length; i += 2) {
        if (Data[i + 1] || Data[i] > 0x7F)
            return FALSE;
        Data[i / 2] = Data[i];
    }
    *Length /= 2;
    return TRUE;
}

/* A line "name"=value or @=value into `Key`; NULL, or what is wrong with it. */
static PCSTR CmpReadValue(PCMP_READER Reader, PCM_KEY Key) {
    ULONG Length = 0, Type = REG_SZ, Digits, Number;
    PCSTR Name = "";
    PUCHAR Data;
    if (*Reader->Text == '@')
        Reader->Text++;
    else if (!(Name = CmpReadQuoted(Reader, &Length)))
        return "expected [key], \"name\"=value, @=value or ;comment";
    if (!Key)
        return "a value before any key";
    CmpSkipBlanks(Reader);
    if (*Reader->Text++ != '=')
        return "expected = after the name";
    CmpSkipBlanks(Reader);
    if (*Reader->Text == '"') {
        if (!(Data = (PUCHAR)CmpReadQuoted(Reader, &Length)))
            return "the text has no end, a lone backslash or what is not ASCII";
    } else if (strncmp(Reader->Text, "dword:", 6) == 0) {
        Type = REG_DWORD;
        Reader->Text += 6;
        Number = CmpReadNumber(Reader, &Digits);
        Data = (PUCHAR)&Number;
        Length = sizeof(Number);
        if (Digits < 1 || Digits > 8)
            return "dword: wants 1 to 8 hexadecimal digits";
    } else if (strncmp(Reader->Text, "hex", 3) == 0) {
        Type = REG_BINARY;
        Reader->Text += 3;
        if (*Reader->Text == '(') {
            Reader->Text++;
            Type = CmpReadNumber(Reader, &Digits);
            if (Digits < 1 || Digits > 8 || *Reader->Text++ != ')')
                return "expected hex(type):";
        }
        if (*Reader->Text++ != ':')
            return "expected : after hex";
        if (!(Data = CmpReadBytes(Reader, &Length)))
            return "expected bytes of two hexadecimal digits, with commas between them";
        if (CmpIsText(Type) && (Length % 2 || !CmpNarrow(Data, &Length)))
            return "a text wants UTF-16 of ASCII characters";
    } else {
        return "expected \"text\", dword: or hex: after =";
    }
    if (!CmpAtEnd(Reader))
        return "more on the line than the value";
    return NT_SUCCESS(CmpStore(Key, Name, Type, Data, Length)) ? NULL : "the name or value is too long";
}

static PCSTR CmpReadKey(PCMP_READER Reader, PCM_KEY *Key) {
    CHAR Path[PATH_SIZE];
    PCHAR Start = Reader->Text + 1, End = NULL;
    *Key = NULL;
    for (PCHAR Text = Start; *Text && *Text != '\n'; Text++)
        End = *Text == ']' ? Text : End;
    if (!End)
        return "the key has no ]";
    *End = 0;
    Reader->Text = End + 1;
    if (!CmpCanonicalPath(Start, Path))
        return "expected a key below " CMP_ROOT;
    *Key = CmpMakeKey(Path);
    return !CmpAtEnd(Reader) ? "more on the line than the key" : *Key ? NULL : "out of memory";
}

/* Reads the whole text, changing it. Lines that make no sense are reported and left out. */
static BOOLEAN CmpReadText(PCHAR Text, PCSTR File) {
    CMP_READER Reader = {Text, 1};
    PCM_KEY Key = NULL;
    if (strncmp(Text, "\xEF\xBB\xBF", 3) == 0) /* UTF-8's mark */
        Reader.Text += 3;
    if (strncmp(Reader.Text, CMP_HEADER, sizeof(CMP_HEADER) - 1) != 0) {
        DbgPrint("cm: %s does not start with \"%s\": not used\n", File, CMP_HEADER);
        return FALSE;
    }
    for (CmpSkipLine(&Reader); *Reader.Text; CmpSkipLine(&Reader)) {
        PCSTR Wrong = CmpAtEnd(&Reader)     ? NULL
                      : *Reader.Text == '[' ? CmpReadKey(&Reader, &Key)
                                            : CmpReadValue(&Reader, Key);
        if (Wrong)
            DbgPrint("cm: %s line %u left out: %s\n", File, Reader.Line, Wrong);
    }
    return TRUE;
}

/* -- the text: writing ------------------------------------------------------------------------ */
typedef struct _CMP_WRITER {
    PCHAR Text; /* NULL: only counts */
    ULONG Length, Column;
} CMP_WRITER, *PCMP_WRITER;

static void CmpPut(PCMP_WRITER Writer, PCSTR Text, BOOLEAN Escape) {
    for (; *Text; Text++) {
        if (Escape && (*Text == '\\' || *Text == '"'))
            CmpPut(Writer, "\\", FALSE);
        if (Writer->Text)
            Writer->Text[Writer->Length] = *Text;
        Writer->Length++;
        Writer->Column = *Text == '\n' ? 0 : Writer->Column + 1;
    }
}

/* As "text" unless it holds what that cannot: then in hexadecimal, lines broken as regedit does. */
static void CmpPutData(PCMP_WRITER Writer, const CM_VALUE *Value) {
    CHAR Piece[24];
    ULONG Plain = 0, Width = CmpIsText(Value->Type) ? 2 : 1;
    while (Plain < Value->Length && CmpIsPlain((CHAR)Value->Data[Plain]))
        Plain++;
    if (Value->Type == REG_SZ && Plain == Value->Length - 1) { /* all but the NUL */
        CmpPut(Writer, "\"", FALSE);
        CmpPut(Writer, (PCSTR)Value->Data, TRUE);
        CmpPut(Writer, "\"", FALSE);
        return;
    }
    if (Value->Type == REG_DWORD && Value->Length == sizeof(ULONG)) {
        RtlFormat(Piece, sizeof(Piece), "dword:%08x", *(PULONG)Value->Data);
        CmpPut(Writer, Piece, FALSE);
        return;
    }
    RtlFormat(Piece, sizeof(Piece), Value->Type == REG_BINARY ? "hex:" : "hex(%x):", Value->Type);
    CmpPut(Writer, Piece, FALSE);
    for (ULONG i = 0; i < Value->Length * Width; i++) {
        RtlFormat(Piece, sizeof(Piece), "%02x%s", i % Width ? 0 : Value->Data[i / Width],
                  i + 1 < Value->Length * Width ? "," : "");
        CmpPut(Writer, Piece, FALSE);
        if (Writer->Column > 76 && i + 1 < Value->Length * Width)
            CmpPut(Writer, "\\\r\n  ", FALSE);
    }
}

static ULONG CmpWriteText(PCHAR Text) {
    CMP_WRITER Writer = {Text, 0, 0};
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
    FAT_FILE File;
    ULONG Length = CmpWriteText(NULL);
    PCHAR Text = KiAllocate(Length);
    if (!Text)
        return STATUS_INSUFFICIENT_RESOURCES;
    CmpWriteText(Text);
    NTSTATUS Status = FatStoreFile(CMP_NEW, Text, Length);
    KiFree(Text);
    if (NT_SUCCESS(Status))
        Status = HalDiskFlush();
    if (NT_SUCCESS(Status) && NT_SUCCESS(FatOpen(CMP_FILE, &File)))
        Status = FatDelete(&File);
    if (NT_SUCCESS(Status) && NT_SUCCESS(Status = FatOpen(CMP_NEW, &File)))
        Status = FatRename(&File, "SYSTEM.reg");
    if (NT_SUCCESS(Status))
        Status = HalDiskFlush();
    if (!NT_SUCCESS(Status))
        DbgPrint("cm: C:\\%s could not be written: status %08x\n", CMP_FILE, Status);
    return Status;
}

static BOOLEAN CmpLoad(PCSTR File) {
    PVOID Text;
    ULONG Size;
    NTSTATUS Status = FatLoadFile(File, &Text, &Size);
    if (!NT_SUCCESS(Status)) {
        DbgPrint("cm: C:\\%s: status %08x\n", File, Status);
        return FALSE;
    }
    BOOLEAN Good = CmpReadText(Text, File);
    KiFree(Text);
    return Good;
}

void CmInitialize(void) {
    if (!CmpLoad(CMP_FILE) && CmpLoad(CMP_NEW)) /* the power went between delete and rename */
        CmpFlush();
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
    if (NT_SUCCESS(Status))
        memcpy(Buffer, Value->Data, Value->Length);
    KiReleaseMutex(&CmpLock);
    return Status;
}

NTSTATUS CmSetValue(PCSTR Path, PCSTR Name, ULONG Type, const void *Data, ULONG Length) {
    CHAR Canonical[PATH_SIZE];
    if (!CmpCanonicalPath(Path, Canonical))
        return STATUS_OBJECT_NAME_INVALID;
    KiAcquireMutex(&CmpLock);
    PCM_KEY Key = CmpMakeKey(Canonical);
    NTSTATUS Status =
        Key ? CmpStore(Key, Name, Type, Data, Length) : STATUS_INSUFFICIENT_RESOURCES;
    if (NT_SUCCESS(Status))
        Status = CmpFlush();
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
    if (!CmpCanonicalPath(Path, Canonical))
        return Status;
    KiAcquireMutex(&CmpLock);
    for (PLIST_ENTRY Link = CmpKeys.Flink, Next; Link != &CmpKeys; Link = Next) {
        PCM_KEY Key = CONTAINING_RECORD(Link, CM_KEY, Link);
        Next = Link->Flink;
        if (!CmpAfter(Key->Path, Canonical))
            continue;
        while (!IsListEmpty(&Key->Values))
            CmpFreeValue(CONTAINING_RECORD(Key->Values.Flink, CM_VALUE, Link));
        RemoveEntryList(&Key->Link);
        KiFree((PVOID)Key->Path);
        KiFree(Key);
        Status = STATUS_SUCCESS;
    }
    if (NT_SUCCESS(Status))
        Status = CmpFlush();
    KiReleaseMutex(&CmpLock);
    return Status;
}

/* -- for drivers ------------------------------------------------------------------------------ */
NTSYSAPI NTSTATUS ZwOpenKey(PHANDLE Handle, ULONG Access, POBJECT_ATTRIBUTES Attributes) {
    CHAR Path[PATH_SIZE], Canonical[PATH_SIZE];
    PCHAR Root, Body;
    SIZE_T Length = 0;
    NTSTATUS Status = STATUS_SUCCESS;
    UNREFERENCED(Access);
    if (Attributes->RootDirectory) {
        Status = ObReferenceObjectByHandle(Attributes->RootDirectory, 0, CmKeyObjectType, 0,
                                           (PVOID *)&Root, NULL);
        if (!NT_SUCCESS(Status))
            return Status;
        Length = strlen(RtlCopyText(Path, sizeof(Path) - 1, Root));
        ObfDereferenceObject(Root);
        if (Attributes->ObjectName->Length)
            Path[Length++] = '\\';
    }
    if (Attributes->ObjectName->Length / sizeof(WCHAR) >= sizeof(Path) - Length)
        return STATUS_OBJECT_NAME_INVALID;
    RtlUnicodeToText(Attributes->ObjectName, Path + Length, sizeof(Path) - Length);
    if (!CmFindKey(Path) || !CmpCanonicalPath(Path, Canonical))
        return STATUS_OBJECT_NAME_NOT_FOUND;
    Status = ObCreateObject(CmKeyObjectType, sizeof(Canonical), (PVOID *)&Body);
    if (!NT_SUCCESS(Status))
        return Status;
    RtlCopyText(Body, sizeof(Canonical), Canonical);
    return ObInsertObject(Body, Handle);
}

/* Appends characters of `Width` bytes each as far as they fit. */
static void CmpAppend(PUCHAR Buffer, ULONG Size, PULONG At, const void *Data, ULONG Length,
                      ULONG Width) {
    for (ULONG i = 0; i < Length * Width; i++, ++*At)
        if (*At < Size)
            Buffer[*At] = i % Width ? 0 : ((const UCHAR *)Data)[i / Width];
}

NTSYSAPI NTSTATUS ZwQueryValueKey(HANDLE Handle, PUNICODE_STRING Name,
                                  KEY_VALUE_INFORMATION_CLASS Class, PVOID Information,
                                  ULONG Length, PULONG ResultLength) {
    CHAR ValueName[64];
    PCSTR Path;
    NTSTATUS Status =
        ObReferenceObjectByHandle(Handle, 0, CmKeyObjectType, 0, (PVOID *)&Path, NULL);
    if (!NT_SUCCESS(Status))
        return Status;
    RtlUnicodeToText(Name, ValueName, sizeof(ValueName));
    KiAcquireMutex(&CmpLock);
    PCM_VALUE Value = CmpLookUp(Path, ValueName);
    if (!Value) {
        Status = CmFindKey(Path) ? STATUS_OBJECT_NAME_NOT_FOUND : STATUS_KEY_DELETED;
    } else if (Class > KeyValuePartialInformation) {
        Status = STATUS_INVALID_PARAMETER;
    } else {
        ULONG At = 0, Width = CmpIsText(Value->Type) ? 2 : 1, Bytes = Value->Length * Width;
        ULONG Characters = (ULONG)strlen(Value->Name);
        /* Basic: title, type, name length; full: title, type, data offset, data length, name
         * length; partial: title, type, data length. Then the name, then the data, at a ULONG. */
        ULONG Fixed[5] = {0, Value->Type, Class == KeyValueBasicInformation ? Characters * 2 : Bytes};
        ULONG Size = 3 * sizeof(ULONG);
        if (Class == KeyValueFullInformation) {
            Size = sizeof(Fixed);
            Fixed[2] = (Size + Characters * 2 + 3) & ~3U;
            Fixed[3] = Bytes;
            Fixed[4] = Characters * 2;
        }
        CmpAppend(Information, Length, &At, Fixed, Size, 1);
        if (Class != KeyValuePartialInformation)
            CmpAppend(Information, Length, &At, Value->Name, Characters, 2);
        At = Class == KeyValueFullInformation ? Fixed[2] : At;
        if (Class != KeyValueBasicInformation)
            CmpAppend(Information, Length, &At, Value->Data, Value->Length, Width);
        *ResultLength = At;
        Status = Length < Size ? STATUS_BUFFER_TOO_SMALL
                 : Length < At ? STATUS_BUFFER_OVERFLOW
                               : STATUS_SUCCESS;
    }
    KiReleaseMutex(&CmpLock);
    ObfDereferenceObject((PVOID)Path);
    return Status;
}

NTSYSAPI NTSTATUS ZwSetValueKey(HANDLE Handle, PUNICODE_STRING Name, ULONG TitleIndex, ULONG Type,
                                PVOID Data, ULONG Length) {
    CHAR ValueName[64];
    PCSTR Path;
    UNREFERENCED(TitleIndex);
    PUCHAR Copy = KiAllocate(Length + 1);
    if (!Copy)
        return STATUS_INSUFFICIENT_RESOURCES;
    memcpy(Copy, Data, Length);
    NTSTATUS Status =
        ObReferenceObjectByHandle(Handle, 0, CmKeyObjectType, 0, (PVOID *)&Path, NULL);
    if (NT_SUCCESS(Status)) {
        RtlUnicodeToText(Name, ValueName, sizeof(ValueName));
        if (Name->Length / sizeof(WCHAR) >= sizeof(ValueName))
            Status = STATUS_OBJECT_NAME_INVALID;
        else if (CmpIsText(Type) && (Length % 2 || !CmpNarrow(Copy, &Length)))
            Status = STATUS_INVALID_PARAMETER; /* texts are kept in ASCII */
        else
            Status = CmFindKey(Path) ? CmSetValue(Path, ValueName, Type, Copy, Length)
                                     : STATUS_KEY_DELETED;
        ObfDereferenceObject((PVOID)Path);
    }
    KiFree(Copy);
    return Status;
}
