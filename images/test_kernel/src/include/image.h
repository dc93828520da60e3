/* PE images: https://learn.microsoft.com/windows/win32/debug/pe-format */
#pragma once
#include "ki.h"

typedef struct _IMAGE_DATA_DIRECTORY {
    ULONG VirtualAddress, Size;
} IMAGE_DATA_DIRECTORY;
typedef struct _IMAGE_NT_HEADERS64 {
    ULONG Signature;
    USHORT Machine, NumberOfSections;
    ULONG TimeDateStamp, PointerToSymbolTable, NumberOfSymbols;
    USHORT SizeOfOptionalHeader, Characteristics, Magic, LinkerVersion;
    ULONG Sizes[3], AddressOfEntryPoint, BaseOfCode;
    ULONG64 ImageBase;
    ULONG SectionAlignment, FileAlignment, Versions[4], SizeOfImage, SizeOfHeaders, CheckSum;
    USHORT Subsystem, DllCharacteristics;
    ULONG64 Reserves[4];
    ULONG LoaderFlags, NumberOfRvaAndSizes;
    IMAGE_DATA_DIRECTORY DataDirectory[16];
} IMAGE_NT_HEADERS64, *PIMAGE_NT_HEADERS64;
ASSERT_OFFSET(IMAGE_NT_HEADERS64, DataDirectory, 0x88);
enum { DIRECTORY_EXPORT, DIRECTORY_IMPORT, DIRECTORY_EXCEPTION = 3, DIRECTORY_SECURITY = 4 };
enum { DIRECTORY_RELOCATION = 5, DIRECTORY_LOAD_CONFIG = 10 };
typedef struct _IMAGE_SECTION_HEADER {
    CHAR Name[8];
    ULONG VirtualSize, VirtualAddress, SizeOfRawData, PointerToRawData, Unused[3], Characteristics;
} IMAGE_SECTION_HEADER, *PIMAGE_SECTION_HEADER;
#define SECTION_EXECUTE 0x20000000u /* Characteristics */
#define SECTION_WRITE   0x80000000u
static inline PIMAGE_NT_HEADERS64 RtlImageNtHeader(PVOID Base) {
    return (PIMAGE_NT_HEADERS64)((PUCHAR)Base + *(PULONG)((PUCHAR)Base + 0x3C));
}
/* The headers of a file if it is an x64 image for the kernel; every offset used later checked. */
NTSTATUS MiCheckImage(PUCHAR File, ULONG Size, PIMAGE_NT_HEADERS64 *Result);
/* Copies headers and sections to where they belong in memory; the first section's header. */
PIMAGE_SECTION_HEADER MiLayOutImage(PUCHAR File, PUCHAR Image, PIMAGE_NT_HEADERS64 Headers);
/* Makes an image laid out at `Image` ready to run at `Base`. */
NTSTATUS MiRelocate(PUCHAR Image, PIMAGE_NT_HEADERS64 Headers, ULONG64 Base);
