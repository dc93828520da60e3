/* Counted strings. Case folding covers ASCII and Latin-1, which is what names on this system hold;
 * conversion to narrow text turns everything beyond ASCII into '?' (there is no code page). */
#include "ki.h"

#define RTL_MAXIMUM_BYTES 0xFFFE

NTSYSAPI SIZE_T wcslen(PCWSTR Text) {
    SIZE_T Length = 0;
    while (Text[Length] != 0) Length++;
    return Length;
}

NTSYSAPI PWSTR wcscpy(PWSTR Target, PCWSTR Source) {
    return memcpy(Target, Source, (wcslen(Source) + 1) * sizeof(WCHAR));
}

NTSYSAPI void RtlInitUnicodeString(PUNICODE_STRING Target, PCWSTR Source) {
    SIZE_T Bytes = Source != NULL ? wcslen(Source) * sizeof(WCHAR) : 0;
    Target->Length = (USHORT)MIN(Bytes, RTL_MAXIMUM_BYTES - sizeof(WCHAR));
    Target->MaximumLength = Source != NULL ? Target->Length + sizeof(WCHAR) : 0;
    Target->Buffer = (PWSTR)Source;
}

NTSYSAPI void RtlInitAnsiString(PANSI_STRING Target, PCSTR Source) {
    SIZE_T Bytes = Source != NULL ? strlen(Source) : 0;
    Target->Length = (USHORT)MIN(Bytes, RTL_MAXIMUM_BYTES - 1);
    Target->MaximumLength = Source != NULL ? Target->Length + 1 : 0;
    Target->Buffer = (PCHAR)Source;
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

NTSYSAPI void RtlCopyUnicodeString(PUNICODE_STRING Target, PCUNICODE_STRING Source) {
    UNICODE_STRING Part = {0};
    if (Source != NULL) Part = *Source;
    Part.Length = MIN(Part.Length, Target->MaximumLength & ~1);
    Target->Length = 0;
    RtlAppendUnicodeStringToString(Target, &Part);
}

NTSYSAPI WCHAR RtlUpcaseUnicodeChar(WCHAR Character) {
    if ((Character >= 'a' && Character <= 'z') ||
        (Character >= 0xE0 && Character <= 0xFE && Character != 0xF7))
        return Character - 0x20;
    return Character == 0xFF ? 0x178 : Character;
}

NTSYSAPI LONG RtlCompareUnicodeString(PCUNICODE_STRING A, PCUNICODE_STRING B, BOOLEAN IgnoreCase) {
    SIZE_T Common = MIN(A->Length, B->Length) / sizeof(WCHAR);
    for (SIZE_T At = 0; At < Common; At++) {
        WCHAR Left = A->Buffer[At], Right = B->Buffer[At];
        if (IgnoreCase) {
            Left = RtlUpcaseUnicodeChar(Left);
            Right = RtlUpcaseUnicodeChar(Right);
        }
        if (Left != Right) return (LONG)Left - (LONG)Right;
    }
    return (LONG)A->Length - (LONG)B->Length;
}

NTSYSAPI BOOLEAN RtlEqualUnicodeString(PCUNICODE_STRING A, PCUNICODE_STRING B, BOOLEAN IgnoreCase) {
    return A->Length == B->Length && RtlCompareUnicodeString(A, B, IgnoreCase) == 0;
}

/* Characters of SourceSize bytes to ones of Size bytes, and a NUL that Length leaves out. A
 * caller's buffer that is too small takes what fits. */
static NTSTATUS RtlpConvert(
    PANSI_STRING Target, ULONG Size, PCANSI_STRING Source, ULONG SourceSize, BOOLEAN Allocate) {
    ULONG Wanted = Source->Length / SourceSize;
    if (Allocate) {
        Target->MaximumLength = (USHORT)MIN((Wanted + 1) * Size, RTL_MAXIMUM_BYTES);
        Target->Buffer = KiAllocate(Target->MaximumLength);
        if (Target->Buffer == NULL) return STATUS_NO_MEMORY;
    }
    if (Target->MaximumLength < Size) return STATUS_BUFFER_OVERFLOW;
    ULONG Count = MIN(Wanted, Target->MaximumLength / Size - 1);
    for (ULONG At = 0; At <= Count; At++) {
        WCHAR Character = At == Count       ? 0
                          : SourceSize == 1 ? (UCHAR)Source->Buffer[At]
                                            : ((PWSTR)Source->Buffer)[At];
        if (Size == 2)
            ((PWSTR)Target->Buffer)[At] = Character;
        else
            Target->Buffer[At] = Character < 0x80 ? (CHAR)Character : '?';
    }
    Target->Length = (USHORT)(Count * Size);
    return Count == Wanted ? STATUS_SUCCESS : STATUS_BUFFER_OVERFLOW;
}

NTSYSAPI NTSTATUS RtlUnicodeStringToAnsiString(
    PANSI_STRING Target, PCUNICODE_STRING Source, BOOLEAN Allocate) {
    return RtlpConvert(Target, sizeof(CHAR), (PCANSI_STRING)Source, sizeof(WCHAR), Allocate);
}

NTSYSAPI NTSTATUS RtlAnsiStringToUnicodeString(
    PUNICODE_STRING Target, PCANSI_STRING Source, BOOLEAN Allocate) {
    return RtlpConvert((PANSI_STRING)Target, sizeof(WCHAR), Source, sizeof(CHAR), Allocate);
}

NTSYSAPI void RtlFreeUnicodeString(PUNICODE_STRING String) {
    if (String->Buffer != NULL) KiFree(String->Buffer);
    *String = (UNICODE_STRING){0};
}

NTSYSAPI void RtlFreeAnsiString(PANSI_STRING String) {
    RtlFreeUnicodeString((PUNICODE_STRING)String);
}

void RtlUnicodeToText(PCUNICODE_STRING Source, PCHAR Target, SIZE_T Size) {
    RtlFormat(Target, Size, "%.*ls", Source->Length / 2, Source->Length > 0 ? Source->Buffer : L"");
}

NTSTATUS RtlTextToUnicode(PCSTR Source, PUNICODE_STRING Target) {
    ANSI_STRING Text;
    RtlInitAnsiString(&Text, Source);
    return RtlAnsiStringToUnicodeString(Target, &Text, TRUE);
}
