/* Formatted text, and the debug print ring that `!dbgprint` shows. */
#include "ki.h"

typedef struct _RTL_FORMAT {
    PCHAR Buffer;
    SIZE_T Size, Length;
    BOOLEAN Left, Zero, Wide, Long; /* of a conversion: '-', '0', l or w, ll or I64 */
    LONG Width, Precision;          /* Precision -1: none given */
} RTL_FORMAT, *PRTL_FORMAT;

static void RtlpPut(PRTL_FORMAT Out, CHAR Character) {
    if (Out->Length + 1 < Out->Size) Out->Buffer[Out->Length++] = Character;
}

/* At most Maximum characters. What is beyond ASCII in wide text becomes '?'. */
static void RtlpPutText(PRTL_FORMAT Out, const void *Text, ULONG Maximum) {
    PCSTR Narrow = Text != NULL ? Text : "(null)";
    PCWSTR Wide = Out->Wide ? Text : NULL;
    LONG Length = 0, End = (LONG)MIN(Maximum, (ULONG)Out->Precision); /* as unsigned, -1 is most */
    while (Length != End && (Wide != NULL ? Wide[Length] : (UCHAR)Narrow[Length]) != 0) Length++;
    for (LONG At = Out->Left ? Length : Out->Width; At > Length; At--) RtlpPut(Out, ' ');
    for (LONG At = 0; At < Length; At++)
        RtlpPut(Out, Wide == NULL ? Narrow[At] : Wide[At] < 0x80 ? (CHAR)Wide[At] : '?');
    for (LONG At = Out->Left ? Out->Width : Length; At > Length; At--) RtlpPut(Out, ' ');
}

static void RtlpPutInteger(PRTL_FORMAT Out, ULONG64 Value, CHAR Kind) {
    PCSTR Digits = Kind == 'x' ? "0123456789abcdef" : "0123456789ABCDEF";
    BOOLEAN Signed = Kind == 'd' || Kind == 'i';
    ULONG Base = Signed || Kind == 'u' ? 10 : 16;
    CHAR Text[64];
    PCHAR End = Text + sizeof(Text), At = End;
    if (!Out->Long && Kind != 'p') Value = Signed ? (ULONG64)(LONG)Value : (ULONG)Value;
    BOOLEAN Negative = Signed && (LONG64)Value < 0;
    LONG Zeros = Kind == 'p' ? 16 : Out->Zero && !Out->Left ? MAX(Out->Width - Negative, 1) : 1;
    LONG Least = MIN(Out->Precision >= 0 ? Out->Precision : Zeros, (LONG)sizeof(Text) - 1);
    if (Negative) Value = 0 - Value;
    for (; Value != 0 || End - At < Least; Value /= Base) *--At = Digits[Value % Base];
    if (Negative) *--At = '-';
    Out->Precision = -1;
    Out->Wide = FALSE;
    RtlpPutText(Out, At, (ULONG)(End - At));
}

/* A number or, for '*', the next argument. */
static LONG RtlpParseNumber(PCSTR *Format, va_list *Arguments) {
    LONG Number = 0;
    if (**Format == '*') return ++*Format, va_arg(*Arguments, LONG);
    for (; **Format >= '0' && **Format <= '9'; ++*Format)
        Number = MIN(Number * 10 + (**Format - '0'), 9999);
    return Number;
}

/* What is between '%' and the letter. As on Windows, long (%lu) has 32 bits. */
static PCSTR RtlpParseConversion(PRTL_FORMAT Out, PCSTR Format, va_list *Arguments) {
    Out->Left = *Format == '-';
    Format += Out->Left;
    Out->Zero = *Format == '0';
    Out->Width = RtlpParseNumber(&Format, Arguments);
    Out->Left |= Out->Width < 0;
    Out->Width = MAX(Out->Width, -Out->Width);
    Out->Precision = *Format == '.' ? ++Format, RtlpParseNumber(&Format, Arguments) : -1;
    Out->Long = strncmp(Format, "I64", 3) == 0 || strncmp(Format, "ll", 2) == 0;
    if (Out->Long) Format += *Format == 'I' ? 3 : 2;
    Out->Wide = *Format == 'l' || *Format == 'w' || *Format == 'S';
    return *Format == 'S' ? Format : Format + Out->Wide;
}

int RtlFormatV(PCHAR Buffer, SIZE_T Size, PCSTR Format, va_list List) {
    RTL_FORMAT Out = {.Buffer = Buffer, .Size = Size};
    va_list Arguments;
    va_copy(Arguments, List);
    for (; *Format != 0; Format++) {
        if (*Format != '%') {
            RtlpPut(&Out, *Format);
            continue;
        }
        Format = RtlpParseConversion(&Out, Format + 1, &Arguments);
        if (*Format == 0) break;
        ULONG64 Value = *Format == '%' ? '%' : va_arg(Arguments, ULONG64);
        PCANSI_STRING Counted = (PCANSI_STRING)Value; /* UNICODE_STRING is laid out alike */
        if (strchr("diuxXp", *Format) != NULL)
            RtlpPutInteger(&Out, Value, *Format);
        else if (*Format == 'Z' && Counted != NULL)
            RtlpPutText(&Out, Counted->Buffer, Counted->Length >> Out.Wide);
        else if (strchr("sSZ", *Format) != NULL)
            RtlpPutText(&Out, (PVOID)Value, ~0U);
        else
            RtlpPutText(&Out, &Value, 1); /* %c */
    }
    va_end(Arguments);
    if (Size > 0) Buffer[Out.Length] = 0;
    return (int)Out.Length;
}

int RtlFormat(PCHAR Buffer, SIZE_T Size, PCSTR Format, ...) {
    va_list Arguments;
    va_start(Arguments, Format);
    int Length = RtlFormatV(Buffer, Size, Format, Arguments);
    va_end(Arguments);
    return Length;
}

CHAR KdPrintCircularBuffer[KD_PRINT_BUFFER_SIZE], *KdPrintWritePointer = KdPrintCircularBuffer;
ULONG KdPrintRolloverCount;

/* Usable at any IRQL. Windows, too, cuts a text at 512 bytes. */
static void KdpPrint(PCSTR Format, va_list Arguments) {
    CHAR Text[512];
    RtlFormatV(Text, sizeof(Text), Format, Arguments);
    KIRQL Irql = KfRaiseIrql(HIGH_LEVEL); /* nothing else may print meanwhile */
    for (PCSTR From = Text; *From != 0; From++) {
        *KdPrintWritePointer++ = *From;
        if (KdPrintWritePointer != KdPrintCircularBuffer + KD_PRINT_BUFFER_SIZE) continue;
        KdPrintWritePointer = KdPrintCircularBuffer;
        KdPrintRolloverCount++;
    }
    HalDebugPrint(Text);
    KeLowerIrql(Irql);
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
    UNREFERENCED(Component), UNREFERENCED(Level);
    va_start(Arguments, Format);
    KdpPrint(Format, Arguments);
    va_end(Arguments);
    return STATUS_SUCCESS;
}
