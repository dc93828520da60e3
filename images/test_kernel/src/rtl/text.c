/* Memory, text, counted strings and dates. Case is that of ASCII letters. */
#include "ki.h"

/* The compiler calls the mem* functions on its own accord. */
NTSYSAPI void *memcpy(void *Target, const void *Source, SIZE_T Bytes) {
    void *At = Target;
    SIZE_T Words = Bytes / 8, Rest = Bytes % 8;
    __asm__ volatile("rep movsq" : "+D"(At), "+S"(Source), "+c"(Words)::"memory");
    __asm__ volatile("rep movsb" : "+D"(At), "+S"(Source), "+c"(Rest)::"memory");
    return Target;
}

NTSYSAPI void *memmove(void *Target, const void *Source, SIZE_T Bytes) {
    if ((ULONG64)Target - (ULONG64)Source >= Bytes) return memcpy(Target, Source, Bytes);
    /* Not with the direction flag set: an interrupt would inherit it. */
    while (Bytes-- > 0) ((PUCHAR)Target)[Bytes] = ((const UCHAR *)Source)[Bytes];
    return Target;
}

NTSYSAPI void *memset(void *Target, int Value, SIZE_T Bytes) {
    void *At = Target;
    SIZE_T Words = Bytes / 8, Rest = Bytes % 8;
    ULONG64 Pattern = (UCHAR)Value * 0x0101010101010101ULL;
    __asm__ volatile("rep stosq" : "+D"(At), "+c"(Words) : "a"(Pattern) : "memory");
    __asm__ volatile("rep stosb" : "+D"(At), "+c"(Rest) : "a"(Pattern) : "memory");
    return Target;
}

NTSYSAPI SIZE_T RtlCompareMemory(const void *A, const void *B, SIZE_T Bytes) {
    SIZE_T Equal = 0;
    while (Equal < Bytes && ((const UCHAR *)A)[Equal] == ((const UCHAR *)B)[Equal]) Equal++;
    return Equal;
}

NTSYSAPI int memcmp(const void *A, const void *B, SIZE_T Bytes) {
    SIZE_T At = RtlCompareMemory(A, B, Bytes);
    return At == Bytes ? 0 : ((const UCHAR *)A)[At] - ((const UCHAR *)B)[At];
}

SIZE_T strlen(PCSTR Text) {
    SIZE_T Length = 0;
    while (Text[Length] != 0) Length++;
    return Length;
}

void RtlCopyText(PCHAR Target, SIZE_T Size, PCSTR Source) {
    SIZE_T Length = MIN(strlen(Source), Size - 1);
    memcpy(Target, Source, Length);
    Target[Length] = 0;
}

PCHAR strchr(PCSTR Text, int Character) {
    for (; *Text != (CHAR)Character; Text++)
        if (*Text == 0) return NULL;
    return (PCHAR)Text;
}

PCHAR strstr(PCSTR Text, PCSTR Part) {
    SIZE_T Length = strlen(Part);
    for (; strncmp(Text, Part, Length) != 0; Text++)
        if (*Text == 0) return NULL;
    return (PCHAR)Text;
}

static WCHAR RtlpUpcase(WCHAR C) { return C >= 'a' && C <= 'z' ? C - ('a' - 'A') : C; }

static int RtlpOrder(PCSTR A, PCSTR B, SIZE_T Count, BOOLEAN IgnoreCase) {
    for (; Count > 0; A++, B++, Count--) {
        UCHAR Left = *A, Right = *B;
        int Difference = IgnoreCase ? RtlpUpcase(Left) - RtlpUpcase(Right) : Left - Right;
        if (Difference != 0 || Left == 0) return Difference;
    }
    return 0;
}

int strcmp(PCSTR A, PCSTR B) { return RtlpOrder(A, B, ~0ULL, FALSE); }
int strncmp(PCSTR A, PCSTR B, SIZE_T Count) { return RtlpOrder(A, B, Count, FALSE); }
int RtlCompareTextInsensitive(PCSTR A, PCSTR B) { return RtlpOrder(A, B, ~0ULL, TRUE); }
int RtlCompareTextInsensitiveN(PCSTR A, PCSTR B, SIZE_T N) { return RtlpOrder(A, B, N, TRUE); }

BOOLEAN RtlTextToInteger(PCSTR Text, ULONG Base, ULONG64 *Value) {
    static const CHAR Digits[] = "0123456789ABCDEF";
    BOOLEAN Prefix = Base != 10 && Text[0] == '0' && RtlpUpcase(Text[1]) == 'X';
    ULONG64 Result = 0;
    if (Base == 0) Base = Prefix ? 16 : 10;
    if (Prefix) Text += 2;
    do {
        PCSTR Found = strchr(Digits, RtlpUpcase((UCHAR)*Text)); /* a NUL is the 17th digit */
        ULONG64 Digit = Found != NULL ? (ULONG64)(Found - Digits) : Base;
        if (Digit >= Base || Result > (~0ULL - Digit) / Base) return FALSE;
        Result = Result * Base + Digit;
    } while (*++Text != 0);
    *Value = Result;
    return TRUE;
}

NTSYSAPI SIZE_T wcslen(PCWSTR Text) {
    SIZE_T Length = 0;
    while (Text[Length] != 0) Length++;
    return Length;
}

/* Lengths are in bytes, and of 16 bits: a longer text is cut. */
NTSYSAPI void RtlInitUnicodeString(PUNICODE_STRING Target, PCWSTR Source) {
    SIZE_T Bytes = Source != NULL ? wcslen(Source) * sizeof(WCHAR) : 0;
    Target->Length = (USHORT)MIN(Bytes, 0xFFFC);
    Target->MaximumLength = Source != NULL ? Target->Length + sizeof(WCHAR) : 0;
    Target->Buffer = (PWSTR)Source;
}

NTSYSAPI NTSTATUS RtlAppendUnicodeStringToString(PUNICODE_STRING Target, PCUNICODE_STRING Source) {
    if (Target->Length + Source->Length > Target->MaximumLength) return STATUS_BUFFER_TOO_SMALL;
    memmove((PUCHAR)Target->Buffer + Target->Length, Source->Buffer, Source->Length);
    Target->Length += Source->Length;
    if (Target->Length + sizeof(WCHAR) <= Target->MaximumLength)
        Target->Buffer[Target->Length / sizeof(WCHAR)] = 0;
    return STATUS_SUCCESS;
}

NTSYSAPI NTSTATUS RtlAppendUnicodeToString(PUNICODE_STRING Target, PCWSTR Source) {
    UNICODE_STRING Text;
    RtlInitUnicodeString(&Text, Source);
    return RtlAppendUnicodeStringToString(Target, &Text);
}

NTSYSAPI LONG RtlCompareUnicodeString(PCUNICODE_STRING A, PCUNICODE_STRING B, BOOLEAN IgnoreCase) {
    for (SIZE_T At = 0; At < MIN(A->Length, B->Length) / sizeof(WCHAR); At++) {
        WCHAR Left = A->Buffer[At], Right = B->Buffer[At];
        LONG Difference = IgnoreCase ? RtlpUpcase(Left) - RtlpUpcase(Right) : Left - Right;
        if (Difference != 0) return Difference;
    }
    return (LONG)A->Length - (LONG)B->Length;
}

NTSYSAPI BOOLEAN RtlEqualUnicodeString(PCUNICODE_STRING A, PCUNICODE_STRING B, BOOLEAN IgnoreCase) {
    return RtlCompareUnicodeString(A, B, IgnoreCase) == 0;
}

/* What is beyond ASCII becomes '?': there is no code page. */
void RtlUnicodeToText(PCUNICODE_STRING Source, PCHAR Target, SIZE_T Size) {
    RtlFormat(Target, Size, "%wZ", Source);
}

NTSTATUS RtlTextToUnicode(PCSTR Source, PUNICODE_STRING Target) {
    SIZE_T Size = strlen(Source) + 1;
    PWSTR Text = KiAllocate(Size * sizeof(WCHAR));
    for (SIZE_T At = 0; Text != NULL && At < Size; At++) Text[At] = (UCHAR)Source[At];
    RtlInitUnicodeString(Target, Text);
    return Text != NULL ? STATUS_SUCCESS : STATUS_NO_MEMORY;
}

NTSYSAPI void RtlFreeUnicodeString(PUNICODE_STRING String) {
    if (String->Buffer != NULL) KiFree(String->Buffer);
    *String = (UNICODE_STRING){0};
}

/* FILETIME counts 100 ns from Monday, 1 January 1601. Years are counted from 1 March 1600, so that
 * a leap day is the last of its year; months from March: any five in a row have 153 days. */
#define RTL_SECOND     10000000ULL
#define RTL_DAY        (86400 * RTL_SECOND)
#define RTL_MARCH_1600 306 /* days from 1 March 1600 to 1 January 1601 */

void KiTimeToDate(LONG64 SystemTime, KI_DATE *Date) {
    ULONG Days = (ULONG)(SystemTime / RTL_DAY) + RTL_MARCH_1600, Century = (4 * Days + 3) / 146097;
    ULONG InCentury = Days - 146097 * Century / 4, Year = (4 * InCentury + 3) / 1461;
    ULONG InYear = InCentury - 1461 * Year / 4, March = (5 * InYear + 2) / 153;
    ULONG Month = March < 10 ? March + 3 : March - 9;
    *Date = (KI_DATE){1600 + 100 * Century + Year + (Month <= 2), Month,
        InYear - (153 * March + 2) / 5 + 1, SystemTime / (3600 * RTL_SECOND) % 24,
        SystemTime / (60 * RTL_SECOND) % 60, SystemTime / RTL_SECOND % 60,
        SystemTime / 10000ULL % 1000, (Days + 3) % 7 /* 0 = Sunday */};
}

LONG64 KiDateToTime(const KI_DATE *Date) {
    ULONG64 Year = Date->Year - 1600 - (Date->Month <= 2);
    ULONG64 Month = Date->Month > 2 ? Date->Month - 3 : Date->Month + 9;
    ULONG64 Days = Year * 365 + Year / 4 - Year / 100 + Year / 400 + (153 * Month + 2) / 5 +
                   Date->Day - 1 - RTL_MARCH_1600;
    ULONG64 Seconds = Date->Hour * 3600ULL + Date->Minute * 60 + Date->Second;
    return (LONG64)(Days * RTL_DAY + Seconds * RTL_SECOND + Date->Milliseconds * 10000ULL);
}
