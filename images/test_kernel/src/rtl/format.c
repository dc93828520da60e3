/* Formatted text, and the debug print ring that `!dbgprint` shows. */
#include "ki.h"

typedef struct _RTL_SINK {
    PCHAR Buffer;
    SIZE_T Size, Length;
} RTL_SINK, *PRTL_SINK;

static void RtlpPut(PRTL_SINK Sink, CHAR Character) {
    if (Sink->Length + 1 < Sink->Size) Sink->Buffer[Sink->Length++] = Character;
}

typedef struct _RTL_FIELD {
    BOOLEAN Left, Zero, Alternate, Wide; /* '-', '0', '#'; l or w before s, c, Z */
    ULONG Bytes;                         /* of an integer argument */
    LONG Width, Precision;               /* Precision -1: none given */
} RTL_FIELD, *PRTL_FIELD;

/* At most Maximum characters (-1: up to the NUL). What is beyond ASCII in wide text becomes '?'. */
static void RtlpPutText(PRTL_SINK Sink, PRTL_FIELD Field, const void *Text, LONG Maximum) {
    PCSTR Narrow = Text != NULL ? Text : "(null)";
    PCWSTR Wide = Field->Wide ? Text : NULL;
    LONG Length = 0;
    if (Field->Precision >= 0 && (Maximum < 0 || Field->Precision < Maximum))
        Maximum = Field->Precision;
    while (Length != Maximum && (Wide != NULL ? Wide[Length] : (UCHAR)Narrow[Length]) != 0)
        Length++;
    for (LONG At = Field->Left ? Length : Field->Width; At > Length; At--) RtlpPut(Sink, ' ');
    for (LONG At = 0; At < Length; At++)
        RtlpPut(Sink, Wide == NULL ? Narrow[At] : Wide[At] < 0x80 ? (CHAR)Wide[At] : '?');
    for (LONG At = Field->Left ? Field->Width : Length; At > Length; At--) RtlpPut(Sink, ' ');
}

static void RtlpPutInteger(PRTL_SINK Sink, PRTL_FIELD Field, ULONG64 Value, CHAR Kind) {
    CHAR Text[100];
    PCHAR At = Text + sizeof(Text) - 1, End = At;
    ULONG Unused = 64 - 8 * Field->Bytes, Base = Kind == 'd' || Kind == 'u' ? 10 : 16;
    BOOLEAN Negative = Kind == 'd' && (LONG64)(Value << Unused) < 0;
    Value = (Negative ? 0 - Value : Value) << Unused >> Unused;
    BOOLEAN Prefix = Field->Alternate && Base == 16 && Value != 0;
    LONG Digits = Field->Precision >= 0         ? Field->Precision
                  : Field->Zero && !Field->Left ? Field->Width - Negative - 2 * Prefix
                                                : 1;
    Digits = MIN(MAX(Digits, Field->Precision < 0), (LONG)sizeof(Text) - 4);
    *At = 0;
    for (; Value != 0 || End - At < Digits; Value /= Base)
        *--At = (Kind == 'X' ? "0123456789ABCDEF" : "0123456789abcdef")[Value % Base];
    if (Prefix) {
        *--At = Kind;
        *--At = '0';
    }
    if (Negative) *--At = '-';
    Field->Precision = -1;
    Field->Wide = FALSE;
    RtlpPutText(Sink, Field, At, -1);
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
    for (; *Format == '-' || *Format == '0' || *Format == '#'; Format++) {
        Field->Left |= *Format == '-';
        Field->Zero |= *Format == '0';
        Field->Alternate |= *Format == '#';
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
    Field->Bytes = 4; /* for a single l too: long has 32 bits on Windows */
    for (;; Format++) {
        if (*Format == 'I' || (*Format == 'l' && Format[1] == 'l')) {
            Field->Bytes = 8;
            Format += *Format == 'l' ? 1 : Format[1] == '6' && Format[2] == '4' ? 2 : 0;
        } else if (*Format == 'l' || *Format == 'w') {
            Field->Wide = TRUE;
        } else if (*Format == 'h') {
            Field->Bytes /= 2;
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
        CHAR Kind = *Format == 'i' ? 'd' : *Format;
        Field.Wide |= Kind == 'S' || Kind == 'C';
        if (Kind == 'd' || Kind == 'u' || Kind == 'x' || Kind == 'X') {
            RtlpPutInteger(&Sink, &Field, va_arg(Arguments, ULONG64), Kind);
        } else if (Kind == 'p') {
            Field.Bytes = 8;
            Field.Precision = 16;
            RtlpPutInteger(&Sink, &Field, va_arg(Arguments, ULONG64), 'X');
        } else if (Kind == 'c' || Kind == 'C') {
            ULONG Character = va_arg(Arguments, ULONG);
            RtlpPutText(&Sink, &Field, &Character, 1);
        } else if (Kind == 's' || Kind == 'S') {
            RtlpPutText(&Sink, &Field, va_arg(Arguments, PVOID), -1);
        } else if (Kind == 'Z') { /* UNICODE_STRING or ANSI_STRING: they are laid out alike */
            PCANSI_STRING Text = va_arg(Arguments, PCANSI_STRING);
            PVOID Start = Text != NULL ? Text->Buffer : NULL;
            RtlpPutText(&Sink, &Field, Start, Start == NULL ? -1 : Text->Length >> Field.Wide);
        } else if (Kind == 0) {
            break; /* a lone '%' at the end */
        } else {
            RtlpPut(&Sink, Kind);
        }
    }
    va_end(Arguments);
    if (Size > 0) Buffer[Sink.Length] = 0;
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
