/* PE images: what the boot loader, which maps the kernel, and the driver loader share. */
#include "image.h"

NTSTATUS MiCheckImage(PUCHAR File, ULONG Size, PIMAGE_NT_HEADERS64 *Result) {
    ULONG Offset = Size >= 0x40 ? *(PULONG)(File + 0x3C) : 0;
    PIMAGE_NT_HEADERS64 Headers = (PIMAGE_NT_HEADERS64)(File + Offset);
    if (Size < 0x40 || *(PUSHORT)File != 0x5A4D || Offset & 3 || Offset < 0x40 ||
        Offset + sizeof(*Headers) > Size || Headers->Signature != 0x4550)
        return STATUS_INVALID_IMAGE_FORMAT;
    if (Headers->Machine != 0x8664) return STATUS_IMAGE_MACHINE_TYPE_MISMATCH_EXE;
    PIMAGE_SECTION_HEADER Section = (PVOID)(Headers + 1);
    ULONG SectionsEnd = (ULONG)((PUCHAR)(Section + Headers->NumberOfSections) - File);
    if (Headers->Magic != 0x20B || Headers->SizeOfOptionalHeader != 0xF0 ||
        Headers->Subsystem != 1 || Headers->NumberOfRvaAndSizes != 16 || SectionsEnd > Size ||
        Headers->SizeOfHeaders > Size || Headers->SizeOfHeaders < SectionsEnd ||
        Headers->SectionAlignment != PAGE_SIZE || Headers->SizeOfImage > 0x4000000 ||
        Headers->SizeOfHeaders > Headers->SizeOfImage ||
        Headers->AddressOfEntryPoint >= Headers->SizeOfImage)
        return STATUS_INVALID_IMAGE_FORMAT;
    for (ULONG i = 0; i < Headers->NumberOfSections; i++, Section++)
        if ((ULONG64)Section->PointerToRawData + Section->SizeOfRawData > Size ||
            Section->VirtualAddress % PAGE_SIZE ||
            MAX(Section->VirtualSize, Section->SizeOfRawData) + (ULONG64)Section->VirtualAddress >
                ROUND_TO_PAGES(Headers->SizeOfImage))
            return STATUS_INVALID_IMAGE_FORMAT;
    for (IMAGE_DATA_DIRECTORY *At = Headers->DataDirectory; At < Headers->DataDirectory + 16; At++)
        if ((ULONG64)At->VirtualAddress + At->Size > Headers->SizeOfImage &&
            At != &Headers->DataDirectory[DIRECTORY_SECURITY]) /* of the file, not of the image */
            return STATUS_INVALID_IMAGE_FORMAT;
    *Result = Headers;
    return STATUS_SUCCESS;
}

PIMAGE_SECTION_HEADER MiLayOutImage(PUCHAR File, PUCHAR Image, PIMAGE_NT_HEADERS64 Headers) {
    PIMAGE_SECTION_HEADER First = (PVOID)(Headers + 1), End = First + Headers->NumberOfSections;
    memcpy(Image, File, Headers->SizeOfHeaders);
    for (PIMAGE_SECTION_HEADER At = First; At < End; At++)
        memcpy(Image + At->VirtualAddress, File + At->PointerToRawData, At->SizeOfRawData);
    return First;
}

NTSTATUS MiRelocate(PUCHAR Image, PIMAGE_NT_HEADERS64 Headers, ULONG64 Base) {
    ULONG64 Delta = Base - Headers->ImageBase;
    PUCHAR Block = Image + Headers->DataDirectory[DIRECTORY_RELOCATION].VirtualAddress;
    PUCHAR End = Block + Headers->DataDirectory[DIRECTORY_RELOCATION].Size;
    while (Block + 8 <= End) {
        ULONG Page = ((PULONG)Block)[0], Size = ((PULONG)Block)[1];
        if (Size < 8 || Block + Size > End) return STATUS_INVALID_IMAGE_FORMAT;
        for (PUSHORT Entry = (PUSHORT)(Block + 8); (PUCHAR)Entry < Block + Size; Entry++) {
            ULONG Target = Page + (*Entry & 0xFFF);
            if (*Entry >> 12 == 10 && Target <= Headers->SizeOfImage - 8)
                *(PULONG64)(Image + Target) += Delta;
            else if (*Entry >> 12 != 0)
                return STATUS_INVALID_IMAGE_FORMAT;
        }
        Block += Size;
    }
    return STATUS_SUCCESS;
}
