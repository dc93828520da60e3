/* Formatted text, and the debug print ring that `!dbgprint` shows. */
#include "ki.h"

typedef struct _RTL_SINK {
    PCHAR Buffer;
    SIZE_T Size, Length;
} RTL_SINK, *PRTL_SINK;

static void RtlpPut(PRTL_SINK Sink, CHAR Character) {
    if (Sink->Length + 1 < Sink->Size)
        Sink->Buffer[Sink->Length++] = Character;
}

static void RtlpFill(PRTL_SINK Sink, CHAR Character, LONG Count) {
    while (Count-- > 0)
        RtlpPut(Sink, Character);
}

typedef struct _RTL_FIELD {
    BOOLEAN Left, Zero, Alternate, Long; /* '-', '0', '#'; l or w: wide text */
    CHAR Sign;                           /* '+' or ' ' where asked for, '-' where needed */
    LONG Width, Precision;               /* Precision -1: none given */
    ULONG Bytes;                         /* of an integer argument */
} RTL_FIELD, *PRTL_FIELD;

/* Exactly one of Narrow and Wide is set; Maximum: in characters, -1 for "until the NUL". Text
 * beyond ASCII becomes '?': no code page here. */
static void RtlpPutText(PRTL_SINK Sink, PRTL_FIELD Field, PCSTR Narrow, PCWSTR Wide, LONG Maximum) {
    LONG Length = 0;
    if (Field->Precision >= 0 && (Maximum < 0 || Field->Precision < Maximum))
        Maximum = Field->Precision;
    if (Narrow == NULL && Wide == NULL) {
        Narrow = "(null)";
        Maximum = 6;
    }
    while (Length != Maximum && (Narrow != NULL ? (UCHAR)Narrow[Length] : Wide[Length]) != 0)
        Length++;
    if (!Field->Left)
        RtlpFill(Sink, ' ', Field->Width - Length);
    for (LONG At = 0; At < Length; At++)
        RtlpPut(Sink, Narrow != NULL ? Narrow[At] : Wide[At] < 0x80 ? (CHAR)Wide[At] : '?');
    if (Field->Left)
        RtlpFill(Sink, ' ', Field->Width - Length);
}

static void RtlpPutInteger(PRTL_SINK Sink, PRTL_FIELD Field, ULONG64 Value, ULONG Base, CHAR Ten) {
    CHAR Digits[24];
    LONG Count = 0;
    PCSTR Prefix = Field->Alternate && Base == 16 && Value != 0 ? (Ten == 'A' ? "0X" : "0x") : "";
    for (; Value != 0; Value /= Base)
        Digits[Count++] = (CHAR)(Value % Base < 10 ? '0' + Value % Base : Ten + Value % Base - 10);
    LONG Around = (LONG)strlen(Prefix) + (Field->Sign != 0);
    LONG Zeros = (Field->Precision < 0 ? 1 : Field->Precision) - Count;
    if (Field->Zero && !Field->Left && Field->Precision < 0)
        Zeros = MAX(Zeros, Field->Width - Around - Count);
    LONG Padding = Field->Width - Around - MAX(Zeros, 0) - Count;
    if (!Field->Left)
        RtlpFill(Sink, ' ', Padding);
    if (Field->Sign != 0)
        RtlpPut(Sink, Field->Sign);
    while (*Prefix != 0)
        RtlpPut(Sink, *Prefix++);
    RtlpFill(Sink, '0', Zeros);
    while (Count > 0)
        RtlpPut(Sink, Digits[--Count]);
    if (Field->Left)
        RtlpFill(Sink, ' ', Padding);
}

/* A number or, for '*', the next argument. */
static LONG RtlpParseNumber(PCSTR *Format, va_list *Arguments) {
    LONG Number = 0;
    if (**Format == '*') {
        (*Format)++;
        return va_arg(*Arguments, int);
    }
    for (; **Format >= '0' && **Format <= '9'; (*Format)++)
        Number = MIN(Number * 10 + (**Format - '0'), 0xFFFF);
    return Number;
}

static PCSTR RtlpParseField(PCSTR Format, PRTL_FIELD Field, va_list *Arguments) {
    for (;; Format++) {
        if (*Format == '-')
            Field->Left = TRUE;
        else if (*Format == '0')
            Field->Zero = TRUE;
        else if (*Format == '#')
            Field->Alternate = TRUE;
        else if (*Format == '+' || (*Format == ' ' && Field->Sign == 0))
            Field->Sign = *Format;
        else if (*Format != ' ')
            break;
    }
    Field->Width = RtlpParseNumber(&Format, Arguments);
    if (Field->Width < 0) {
        Field->Left = TRUE;
        Field->Width = -Field->Width;
    }
    Field->Precision = -1;
    if (*Format == '.') {
        Format++;
        Field->Precision = RtlpParseNumber(&Format, Arguments);
    }
    Field->Bytes = 4; /* l too: long has 32 bits on Windows */
    for (;; Format++) {
        if (*Format == 'l' && Format[1] == 'l') {
            Field->Bytes = 8;
            Format++;
        } else if (*Format == 'I' && Format[1] == '3' && Format[2] == '2') {
            Format += 2;
        } else if (*Format == 'I' || *Format == 'z' || *Format == 't' || *Format == 'j') {
            Field->Bytes = 8;
            if (Format[1] == '6' && Format[2] == '4')
                Format += 2;
        } else if (*Format == 'h') {
            Field->Bytes /= 2;
        } else if (*Format == 'l' || *Format == 'w') {
            Field->Long = TRUE;
        } else {
            return Format;
        }
    }
}

int RtlFormatV(PCHAR Buffer, SIZE_T Size, PCSTR Format, va_list List) {
    RTL_SINK Sink = {Buffer, Size, 0};
    va_list Arguments;
    va_copy(Arguments, List);
    for (; *Format != 0; Format++) {
        RTL_FIELD Field = {0};
        if (*Format != '%') {
            RtlpPut(&Sink, *Format);
            continue;
        }
        Format = RtlpParseField(Format + 1, &Field, &Arguments);
        CHAR Kind = *Format;
        ULONG64 Value = 0;
        if (Kind == 'd' || Kind == 'i' || Kind == 'u' || Kind == 'x' || Kind == 'X' ||
            Kind == 'o') {
            Value = Field.Bytes == 8 ? va_arg(Arguments, ULONG64) : va_arg(Arguments, ULONG);
            ULONG Unused = 64 - 8 * Field.Bytes;
            BOOLEAN Signed = Kind == 'd' || Kind == 'i';
            Value =
                Signed ? (ULONG64)((LONG64)(Value << Unused) >> Unused) : Value << Unused >> Unused;
            if (!Signed)
                Field.Sign = 0;
            else if ((LONG64)Value < 0) {
                Field.Sign = '-';
                Value = 0 - Value;
            }
            RtlpPutInteger(&Sink, &Field, Value,
                           Kind == 'o'             ? 8
                           : Signed || Kind == 'u' ? 10
                                                   : 16,
                           Kind == 'X' ? 'A' : 'a');
        } else if (Kind == 'p') {
            Field.Precision = 16;
            Field.Sign = 0;
            RtlpPutInteger(&Sink, &Field, va_arg(Arguments, ULONG64), 16, 'A');
        } else if (Kind == 'c' || Kind == 'C') {
            WCHAR Wide = (WCHAR)va_arg(Arguments, int);
            CHAR Narrow = (CHAR)Wide;
            Field.Precision = -1;
            BOOLEAN IsWide = Field.Long || (Kind == 'C' && Field.Bytes != 2);
            RtlpPutText(&Sink, &Field, IsWide ? NULL : &Narrow, IsWide ? &Wide : NULL, 1);
        } else if (Kind == 's' || Kind == 'S') {
            PCSTR Text = va_arg(Arguments, PCSTR);
            BOOLEAN IsWide = Field.Long || (Kind == 'S' && Field.Bytes != 2);
            RtlpPutText(&Sink, &Field, IsWide ? NULL : Text, IsWide ? (PCWSTR)Text : NULL, -1);
        } else if (Kind == 'Z') {
            /* UNICODE_STRING and ANSI_STRING differ in what the buffer holds only */
            PCUNICODE_STRING Text = va_arg(Arguments, PCUNICODE_STRING);
            PCWSTR Start = Text != NULL ? Text->Buffer : NULL;
            LONG Length = Start != NULL ? Text->Length : 0;
            RtlpPutText(&Sink, &Field, Field.Long ? NULL : (PCSTR)Start, Field.Long ? Start : NULL,
                        Field.Long ? Length / 2 : Length);
        } else if (Kind == 0) {
            break; /* a lone '%' at the end */
        } else {
            RtlpPut(&Sink, Kind);
        }
    }
    va_end(Arguments);
    if (Size > 0)
        Buffer[Sink.Length] = 0;
    return (int)Sink.Length;
}

int RtlFormat(PCHAR Buffer, SIZE_T Size, PCSTR Format, ...) {
    va_list Arguments;
    va_start(Arguments, Format);
    int Length = RtlFormatV(Buffer, Size, Format, Arguments);
    va_end(Arguments);
    return Length;
}

CHAR KdPrintCircularBuffer[KD_PRINT_BUFFER_SIZE];
PCHAR KdPrintWritePointer = KdPrintCircularBuffer;
ULONG KdPrintRolloverCount;

/* Usable at any IRQL: interrupts are off while the ring is written. Windows cuts a text at 512
 * bytes. */
static void KdpPrint(PCSTR Format, va_list Arguments) {
    CHAR Text[512];
    ULONG64 Flags;
    RtlFormatV(Text, sizeof(Text), Format, Arguments);
    __asm__ volatile("pushfq; popq %0; cli" : "=r"(Flags)::"memory");
    for (PCSTR From = Text; *From != 0; From++) {
        *KdPrintWritePointer++ = *From;
        if (KdPrintWritePointer == KdPrintCircularBuffer + sizeof(KdPrintCircularBuffer)) {
            KdPrintWritePointer = KdPrintCircularBuffer;
            KdPrintRolloverCount++;
        }
    }
    HalDebugPrint(Text);
    __asm__ volatile("pushq %0; popfq" ::"r"(Flags) : "memory", "cc");
}

NTSYSAPI ULONG DbgPrint(PCSTR Format, ...) {
    va_list Arguments;
    va_start(Arguments, Format);
    KdpPrint(Format, Arguments);
    va_end(Arguments);
    return STATUS_SUCCESS;
}

/* Every component and level is kept: there are no Kd_<component>_Mask filters here. */
NTSYSAPI ULONG DbgPrintEx(ULONG Component, ULONG Level, PCSTR Format, ...) {
    va_list Arguments;
    UNREFERENCED(Component);
    UNREFERENCED(Level);
    va_start(Arguments, Format);
    KdpPrint(Format, Arguments);
    va_end(Arguments);
    return STATUS_SUCCESS;
}
