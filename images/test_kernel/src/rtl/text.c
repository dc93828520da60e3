/* Memory and byte-string primitives. The compiler calls the mem* ones on its own accord. */
#include "ki.h"

static inline void RtlpCopyForward(PUCHAR Target, const UCHAR *Source, SIZE_T Bytes) {
    SIZE_T Words = Bytes / 8;
    Bytes &= 7;
    __asm__ volatile("rep movsq" : "+D"(Target), "+S"(Source), "+c"(Words)::"memory");
    __asm__ volatile("rep movsb" : "+D"(Target), "+S"(Source), "+c"(Bytes)::"memory");
}

NTSYSAPI void *memcpy(void *Target, const void *Source, SIZE_T Bytes) {
    RtlpCopyForward(Target, Source, Bytes);
    return Target;
}

NTSYSAPI void *memmove(void *Target, const void *Source, SIZE_T Bytes) {
    if ((ULONG64)Target - (ULONG64)Source >= Bytes)
        RtlpCopyForward(Target, Source, Bytes);
    else /* not with the direction flag set: an interrupt would inherit it */
        while (Bytes-- > 0) ((PUCHAR)Target)[Bytes] = ((const UCHAR *)Source)[Bytes];
    return Target;
}

NTSYSAPI void *memset(void *Target, int Value, SIZE_T Bytes) {
    void *At = Target;
    SIZE_T Words = Bytes / 8;
    ULONG64 Pattern = (UCHAR)Value * 0x0101010101010101ULL;
    Bytes &= 7;
    __asm__ volatile("rep stosq" : "+D"(At), "+c"(Words) : "a"(Pattern) : "memory");
    __asm__ volatile("rep stosb" : "+D"(At), "+c"(Bytes) : "a"(Pattern) : "memory");
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

int strncmp(PCSTR A, PCSTR B, SIZE_T Count) {
    for (SIZE_T At = 0; At < Count; At++)
        if (A[At] != B[At] || A[At] == 0) return (UCHAR)A[At] - (UCHAR)B[At];
    return 0;
}

int strcmp(PCSTR A, PCSTR B) { return strncmp(A, B, ~0ULL); }

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

static int RtlpLower(CHAR Character) {
    return Character >= 'A' && Character <= 'Z' ? Character + ('a' - 'A') : (UCHAR)Character;
}

int RtlCompareTextInsensitiveN(PCSTR A, PCSTR B, SIZE_T Count) {
    for (SIZE_T At = 0; At < Count; At++) {
        int Difference = RtlpLower(A[At]) - RtlpLower(B[At]);
        if (Difference != 0 || A[At] == 0) return Difference;
    }
    return 0;
}

int RtlCompareTextInsensitive(PCSTR A, PCSTR B) { return RtlCompareTextInsensitiveN(A, B, ~0ULL); }

PCHAR RtlCopyText(PCHAR Target, SIZE_T Size, PCSTR Source) {
    if (Size > 0) {
        SIZE_T Length = MIN(strlen(Source), Size - 1);
        memmove(Target, Source, Length);
        Target[Length] = 0;
    }
    return Target;
}

PCHAR RtlDuplicateText(PCSTR Source) {
    SIZE_T Size = strlen(Source) + 1;
    PCHAR Copy = KiAllocate(Size);
    return Copy != NULL ? memcpy(Copy, Source, Size) : NULL;
}

BOOLEAN RtlTextToInteger(PCSTR Text, ULONG Base, ULONG64 *Value) {
    ULONG64 Result = 0;
    if ((Base == 0 || Base == 16) && Text[0] == '0' && RtlpLower(Text[1]) == 'x') {
        Base = 16;
        Text += 2;
    }
    if (Base == 0) Base = 10;
    if (*Text == 0) return FALSE;
    for (; *Text != 0; Text++) {
        int Lower = RtlpLower(*Text);
        ULONG Digit = Lower >= '0' && Lower <= '9'   ? (ULONG)(Lower - '0')
                      : Lower >= 'a' && Lower <= 'z' ? (ULONG)(Lower - 'a' + 10)
                                                     : Base;
        if (Digit >= Base || Result > (~0ULL - Digit) / Base) return FALSE;
        Result = Result * Base + Digit;
    }
    *Value = Result;
    return TRUE;
}

/* FILETIME counts 100 ns from Monday, 1 January 1601, the first year of a 400-year cycle of the
 * Gregorian calendar. Years are counted from 1 March, so that a leap day ends its year. */
#define RTL_SECOND     10000000ULL
#define RTL_DAY        (86400 * RTL_SECOND)
#define RTL_MARCH_1600 306 /* days from 1 March 1600 to 1 January 1601 */
#define RTL_CYCLE_DAYS 146097ULL

void KiTimeToDate(LONG64 SystemTime, KI_DATE *Date) {
    ULONG64 Days = (ULONG64)SystemTime / RTL_DAY, Rest = (ULONG64)SystemTime % RTL_DAY;
    ULONG64 Cycle = (Days + RTL_MARCH_1600) / RTL_CYCLE_DAYS;
    ULONG InCycle = (ULONG)((Days + RTL_MARCH_1600) % RTL_CYCLE_DAYS);
    ULONG Year = (InCycle - InCycle / 1460 + InCycle / 36524 - InCycle / 146096) / 365;
    ULONG InYear = InCycle - (365 * Year + Year / 4 - Year / 100);
    ULONG Month = (5 * InYear + 2) / 153; /* 0 = March; five months have 153 days */
    Date->Day = InYear - (153 * Month + 2) / 5 + 1;
    Date->Month = Month < 10 ? Month + 3 : Month - 9;
    Date->Year = (ULONG)(1600 + Cycle * 400) + Year + (Date->Month <= 2);
    Date->Weekday = (ULONG)((Days + 1) % 7); /* 0 = Sunday */
    Date->Hour = (ULONG)(Rest / (3600 * RTL_SECOND));
    Date->Minute = (ULONG)(Rest / (60 * RTL_SECOND) % 60);
    Date->Second = (ULONG)(Rest / RTL_SECOND % 60);
    Date->Milliseconds = (ULONG)(Rest % RTL_SECOND / 10000);
}

LONG64 KiDateToTime(const KI_DATE *Date) {
    ULONG64 Year = Date->Year - 1600 - (Date->Month <= 2);
    ULONG64 Month = Date->Month > 2 ? Date->Month - 3 : Date->Month + 9;
    ULONG64 Days = Year * 365 + Year / 4 - Year / 100 + Year / 400 + (153 * Month + 2) / 5 +
                   Date->Day - 1 - RTL_MARCH_1600;
    ULONG64 Seconds = Date->Hour * 3600ULL + Date->Minute * 60 + Date->Second;
    return (LONG64)(Days * RTL_DAY + Seconds * RTL_SECOND + Date->Milliseconds * 10000ULL);
}
