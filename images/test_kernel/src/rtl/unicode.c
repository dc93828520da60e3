/* Counted strings. Case folding covers ASCII and Latin-1, which is what names on this system hold;
 * conversion to narrow text turns everything beyond ASCII into '?' (there is no code page). */
#include "ki.h"

#define RTL_MAXIMUM_BYTES 0xFFFE

NTSYSAPI SIZE_T wcslen(PCWSTR Text) {
    SIZE_T Length = 0;
    while (Text[Length] != 0)
        Length++;
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
    if (Target->Length + Source->Length > Target->MaximumLength)
        return STATUS_BUFFER_TOO_SMALL;
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
    if (Source != NULL)
        Part = *Source;
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
        if (Left != Right)
            return (LONG)Left - (LONG)Right;
    }
    return (LONG)A->Length - (LONG)B->Length;
}

NTSYSAPI BOOLEAN RtlEqualUnicodeString(PCUNICODE_STRING A, PCUNICODE_STRING B, BOOLEAN IgnoreCase) {
    return A->Length == B->Length && RtlCompareUnicodeString(A, B, IgnoreCase) == 0;
}

/* Makes room in Target for Characters of CharacterSize bytes and a NUL, which Length leaves out. A
 * caller's buffer that is too small takes what fits: Characters comes back as the number to copy.
 */
static NTSTATUS RtlpPrepareString(PANSI_STRING Target, SIZE_T *Characters, ULONG CharacterSize,
                                  BOOLEAN Allocate) {
    SIZE_T Wanted = *Characters;
    *Characters = 0;
    SIZE_T Bytes = (Wanted + 1) * CharacterSize;
    if (Allocate) {
        if (Bytes > RTL_MAXIMUM_BYTES)
            return STATUS_INVALID_PARAMETER;
        Target->MaximumLength = (USHORT)Bytes;
        Target->Buffer = KiAllocate(Bytes);
        if (Target->Buffer == NULL)
            return STATUS_NO_MEMORY;
    } else if (Target->MaximumLength < CharacterSize) {
        return STATUS_BUFFER_OVERFLOW;
    }
    *Characters = MIN(Wanted, (SIZE_T)Target->MaximumLength / CharacterSize - 1);
    Target->Length = (USHORT)(*Characters * CharacterSize);
    memset(Target->Buffer + Target->Length, 0, CharacterSize);
    return *Characters == Wanted ? STATUS_SUCCESS : STATUS_BUFFER_OVERFLOW;
}

NTSYSAPI NTSTATUS RtlUnicodeStringToAnsiString(PANSI_STRING Target, PCUNICODE_STRING Source,
                                               BOOLEAN Allocate) {
    SIZE_T Characters = Source->Length / sizeof(WCHAR);
    NTSTATUS Status = RtlpPrepareString(Target, &Characters, sizeof(CHAR), Allocate);
    for (SIZE_T At = 0; At < Characters; At++)
        Target->Buffer[At] = Source->Buffer[At] < 0x80 ? (CHAR)Source->Buffer[At] : '?';
    return Status;
}

NTSYSAPI NTSTATUS RtlAnsiStringToUnicodeString(PUNICODE_STRING Target, PCANSI_STRING Source,
                                               BOOLEAN Allocate) {
    SIZE_T Characters = Source->Length;
    NTSTATUS Status = RtlpPrepareString((PANSI_STRING)Target, &Characters, sizeof(WCHAR), Allocate);
    for (SIZE_T At = 0; At < Characters; At++)
        Target->Buffer[At] = (UCHAR)Source->Buffer[At];
    return Status;
}

NTSYSAPI void RtlFreeUnicodeString(PUNICODE_STRING String) {
    if (String->Buffer != NULL)
        KiFree(String->Buffer);
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
