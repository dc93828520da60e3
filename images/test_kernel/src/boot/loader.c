/* The 64-bit part of the boot loader: maps \Windows\System32\ntoskrnl.exe at a random address, all
 * memory at MI_DIRECT_MAP, the page tables at MI_PTE_BASE, and enters the kernel. Runs at physical
 * addresses with the first GiB mapped onto itself; the disk and FAT32 code is the kernel's. */
#include "ki.h"

#define KERNEL_FILE          "Windows\\System32\\ntoskrnl.exe"
#define KERNEL_SPACE         0xfffff80300000000ULL /* + 0 .. 16 GiB, in steps of 2 MiB */
#define LARGE                0x200000ULL
#define STACK_BYTES          0x8000
#define MAXIMUM_IMAGE        0x1000000
#define FIRST_PAGE           0x100000ULL
#define PTE_VALID            0x061ULL /* present, accessed, dirty */
#define PTE_WRITE            0x002ULL
#define PTE_LARGE            0x080ULL
#define PTE_NX               (1ULL << 63)
#define PTE_ADDRESS          0x000ffffffffff000ULL
#define SELF_MAP             0x1ed
#define SECTION_EXECUTE      0x20000000
#define SECTION_WRITE        0x80000000
#define RELOCATIONS_STRIPPED 0x0001
#define STATUS_CANNOT_FIT    STATUS_NO_MEMORY

typedef struct _REGION {
    ULONG64 Base, Length;
    ULONG Type, Attributes;
} REGION;
extern ULONG BootRegionCount; /* stage2.S */
extern REGION BootRegions[];
extern ULONG64 tables[];

/* -- what the disk and file system code wants of a kernel; nothing else runs, so no locks --------
 */
void KiInitializeMutex(PKI_MUTEX Mutex) { UNREFERENCED(Mutex); }
void KiAcquireMutex(PKI_MUTEX Mutex) { UNREFERENCED(Mutex); }
void KiReleaseMutex(PKI_MUTEX Mutex) { UNREFERENCED(Mutex); }
LONG64 KiDateToTime(const KI_DATE *Date) { return UNREFERENCED(Date), 0; }
PHYSICAL HalPhysicalAddress(const void *Virtual) { return (PHYSICAL)Virtual; }
ULONG HalPciRead(ULONG Bus, ULONG Device, ULONG Function, ULONG Offset) {
    __outdword(0xCF8, 0x80000000 | Bus << 16 | Device << 11 | Function << 8 | Offset);
    return __indword(0xCFC);
}
void HalPciWrite(ULONG Bus, ULONG Device, ULONG Function, ULONG Offset, ULONG Value) {
    __outdword(0xCF8, 0x80000000 | Bus << 16 | Device << 11 | Function << 8 | Offset);
    __outdword(0xCFC, Value);
}
void *memcpy(void *Target, const void *Source, SIZE_T Bytes) {
    void *Start = Target;
    __asm__ volatile("rep movsb" : "+D"(Target), "+S"(Source), "+c"(Bytes)::"memory");
    return Start;
}
void *memset(void *Target, int Value, SIZE_T Bytes) {
    void *Start = Target;
    __asm__ volatile("rep stosb" : "+D"(Target), "+c"(Bytes) : "a"(Value) : "memory");
    return Start;
}
int memcmp(const void *A, const void *B, SIZE_T Bytes) {
    for (const UCHAR *P = A, *Q = B; Bytes; P++, Q++, Bytes--) {
        if (*P != *Q) return *P - *Q;
    }
    return 0;
}
SIZE_T strlen(PCSTR Text) {
    SIZE_T Length = 0;
    while (Text[Length]) Length++;
    return Length;
}
static CHAR Upper(CHAR Character) {
    return Character >= 'a' && Character <= 'z' ? Character - 32 : Character;
}
int RtlCompareTextInsensitiveN(PCSTR A, PCSTR B, SIZE_T Count) {
    for (; Count; A++, B++, Count--) {
        if (Upper(*A) != Upper(*B) || !*A) return Upper(*A) - Upper(*B);
    }
    return 0;
}

/* -- failure ------------------------------------------------------------------------------------
 */
static void Print(ULONG Row, PCSTR Text) {
    for (volatile USHORT *Cell = (USHORT *)0xB8000 + Row * 80 + 4; *Text; Text++)
        *Cell++ = 0x1F00 | (UCHAR)*Text;
}
/* The boot manager's recovery screen, in Windows 10's words. */
static NORETURN void Fail(NTSTATUS Status) {
    CHAR Code[] = "Error code: 0x00000000";
    for (int Digit = 0; Digit < 8; Digit++)
        Code[21 - Digit] = "0123456789abcdef"[(ULONG)Status >> (4 * Digit) & 15];
    for (ULONG Cell = 0; Cell < 80 * 25; Cell++) ((volatile USHORT *)0xB8000)[Cell] = 0x1F20;
    Print(2, "Recovery");
    Print(5, "Your PC/Device needs to be repaired");
    Print(8, "The operating system couldn't be loaded because the kernel is missing or");
    Print(9, "contains errors.");
    Print(11, "File: \\" KERNEL_FILE);
    Print(12, Code);
    Print(15, "You'll need to use recovery tools. If you don't have any installation media");
    Print(16, "(like a disc or USB device), contact your PC administrator or PC/Device");
    Print(17, "manufacturer for assistance.");
    for (;;) __asm__ volatile("cli; hlt");
}
static void Check(NTSTATUS Status) {
    if (!NT_SUCCESS(Status)) Fail(Status);
}

/* -- memory -------------------------------------------------------------------------------------
 */
static PHYSICAL NextPage = FIRST_PAGE, EndOfMemory;
static PULONG64 Root;

static void FindMemory(PLOADER_PARAMETER_BLOCK Block) {
    ULONG64 End = 0;
    for (ULONG Index = 0; Index < Block->RegionCount; Index++) {
        REGION *Region = &BootRegions[Index];
        if (Region->Type == 1 && Region->Base <= FIRST_PAGE)
            End = MAX(End, Region->Base + Region->Length);
    }
    EndOfMemory = MIN(End, 1ULL << 30);
}
static PVOID Allocate(ULONG64 Bytes) {
    PVOID Block = (PVOID)NextPage;
    NextPage += ROUND_TO_PAGES(Bytes);
    if (NextPage > EndOfMemory) Fail(STATUS_CANNOT_FIT);
    return memset(Block, 0, ROUND_TO_PAGES(Bytes));
}
/* `Level` is 1 for a 4 KiB page, 2 for one of 2 MiB. */
static void Map(ULONG64 Virtual, PHYSICAL Physical, int Level, ULONG64 Flags) {
    PULONG64 Table = Root;
    for (int Depth = 4; Depth > Level; Depth--) {
        PULONG64 Entry = &Table[Virtual >> (12 + 9 * (Depth - 1)) & 511];
        if (!*Entry) *Entry = (ULONG64)Allocate(PAGE_SIZE) | PTE_VALID | PTE_WRITE;
        Table = (PULONG64)(*Entry & PTE_ADDRESS);
    }
    Table[Virtual >> (12 + 9 * (Level - 1)) & 511] = Physical | Flags;
}
/* All memory, and what the BIOS keeps right behind it (ACPI tables), writable, never executable. */
static void MapDirect(void) {
    ULONG64 End = 2 * LARGE;
    for (ULONG Index = 0; Index < BootRegionCount; Index++) {
        REGION *Region = &BootRegions[Index];
        if (Region->Type == 1 || Region->Base <= End) End = MAX(End, Region->Base + Region->Length);
    }
    for (ULONG64 Address = 0; Address < MIN(End, 1ULL << 39); Address += LARGE)
        Map(MI_DIRECT_MAP + Address, Address, 2, PTE_VALID | PTE_WRITE | PTE_LARGE | PTE_NX);
}
static ULONG64 Entropy(void) {
    ULONG64 Value = KiReadTsc();
    for (UCHAR Register = 0; Register < 10; Register++) { /* RTC: seconds .. year */
        __outbyte(0x70, Register);
        Value = (Value ^ __inbyte(0x71) ^ KiReadTsc()) * 0x9e3779b97f4a7c15ULL;
        Value ^= Value >> 29;
    }
    return Value;
}

/* -- the kernel image: PE/COFF specification,
 * https://learn.microsoft.com/windows/win32/debug/pe-format */
typedef struct _PE_HEADERS {
    ULONG Signature;
    USHORT Machine, Sections;
    ULONG Stamp, Symbols, SymbolCount;
    USHORT OptionalSize, Characteristics, Magic, Linker;
    ULONG CodeSize, DataSize, BssSize, EntryPoint, CodeBase;
    ULONG64 ImageBase;
    ULONG SectionAlignment, FileAlignment, Versions[4], ImageSize, HeadersSize;
    UCHAR Fill0[0xB0 - 0x58];
    ULONG RelocationTable, RelocationSize;
} PE_HEADERS;
ASSERT_OFFSET(PE_HEADERS, ImageBase, 0x30);
ASSERT_OFFSET(PE_HEADERS, ImageSize, 0x50);
ASSERT_OFFSET(PE_HEADERS, RelocationTable, 0xB0);
typedef struct _PE_SECTION {
    CHAR Name[8];
    ULONG VirtualSize, Address, RawSize, RawOffset, Unused[3], Flags;
} PE_SECTION;

static void Relocate(PUCHAR Image, PE_HEADERS *Pe, ULONG64 Delta) {
    ULONG Offset = Pe->RelocationTable, End = Offset + Pe->RelocationSize;
    if (Pe->Characteristics & RELOCATIONS_STRIPPED || End < Offset || End > Pe->ImageSize)
        Fail(STATUS_INVALID_IMAGE_FORMAT);
    while (Offset + 8 <= End) {
        PULONG Block = (PULONG)(Image + Offset); /* page, bytes, then 16-bit entries */
        PUSHORT Entry = (PUSHORT)(Block + 2);
        if (Block[1] < 8 || Block[1] > End - Offset || Block[0] > Pe->ImageSize - PAGE_SIZE)
            Fail(STATUS_INVALID_IMAGE_FORMAT);
        for (ULONG Left = (Block[1] - 8) / 2; Left; Left--, Entry++) {
            if (*Entry >> 12 == 10) /* IMAGE_REL_BASED_DIR64; 0 is padding */
                *(PULONG64)(Image + Block[0] + (*Entry & 0xFFF)) += Delta;
        }
        Offset += Block[1];
    }
}

/* Reads the image to contiguous pages and maps each section as it asks, never writable code. */
static ULONG64 LoadKernel(PLOADER_PARAMETER_BLOCK Block) {
    static UCHAR Headers[PAGE_SIZE];
    FAT_FILE File;
    ULONG Done;
    Check(HalDiskInitialize());
    Check(FatMount());
    NTSTATUS Status = FatOpen(KERNEL_FILE, &File);
    Check(Status == STATUS_OBJECT_NAME_NOT_FOUND || Status == STATUS_OBJECT_PATH_NOT_FOUND
              ? STATUS_NO_SUCH_FILE
              : Status);
    Check(FatRead(&File, 0, Headers, PAGE_SIZE, &Done));
    ULONG PeOffset = *(PULONG)(Headers + 0x3C);
    PE_HEADERS *Pe = (PE_HEADERS *)(Headers + PeOffset);
    if (*(PUSHORT)Headers != 0x5A4D || PeOffset > PAGE_SIZE - sizeof(*Pe) ||
        Pe->Signature != 0x4550 || Pe->Machine != 0x8664 || Pe->Magic != 0x20B ||
        Pe->ImageSize < PAGE_SIZE || Pe->ImageSize > MAXIMUM_IMAGE || Pe->HeadersSize > PAGE_SIZE ||
        PeOffset + 24 + Pe->OptionalSize + Pe->Sections * sizeof(PE_SECTION) > PAGE_SIZE)
        Fail(STATUS_INVALID_IMAGE_FORMAT);
    PUCHAR Image = Allocate(Pe->ImageSize);
    Block->KernelBase = KERNEL_SPACE + (Block->Entropy >> 20) % (0x400000000 / LARGE) * LARGE;
    Block->KernelSize = ROUND_TO_PAGES(Pe->ImageSize);
    Block->KernelPhysical = (PHYSICAL)Image;
    memcpy(Image, Headers, Pe->HeadersSize);
    Map(Block->KernelBase, (PHYSICAL)Image, 1, PTE_VALID | PTE_NX);
    PE_SECTION *Section = (PE_SECTION *)(Headers + PeOffset + 24 + Pe->OptionalSize);
    for (ULONG Index = 0; Index < Pe->Sections; Index++, Section++) {
        ULONG Size = MAX(Section->VirtualSize, Section->RawSize);
        if (Section->Address % PAGE_SIZE || Section->Address > Pe->ImageSize ||
            Section->VirtualSize > Pe->ImageSize - Section->Address ||
            Section->RawSize > ROUND_TO_PAGES(Pe->ImageSize) - Section->Address)
            Fail(STATUS_INVALID_IMAGE_FORMAT);
        if (Section->RawSize)
            Check(FatRead(
                &File, Section->RawOffset, Image + Section->Address, Section->RawSize, &Done));
        ULONG64 Flags = PTE_VALID;
        if (!(Section->Flags & SECTION_EXECUTE))
            Flags |= PTE_NX | (Section->Flags & SECTION_WRITE ? PTE_WRITE : 0);
        for (ULONG64 At = Section->Address; At < Section->Address + Size; At += PAGE_SIZE)
            Map(Block->KernelBase + At, (PHYSICAL)Image + At, 1, Flags);
    }
    Relocate(Image, Pe, Block->KernelBase - Pe->ImageBase);
    return Block->KernelBase + Pe->EntryPoint;
}

NORETURN void LoaderMain(void) {
    LOADER_PARAMETER_BLOCK Block = {.Size = sizeof(Block), .RegionCount = BootRegionCount};
    FindMemory(&Block);
    Block.Entropy = Entropy();
    Root = Allocate(PAGE_SIZE);
    Block.PageTableRoot = (PHYSICAL)Root;
    ULONG64 Entry = LoadKernel(&Block);
    MapDirect();
    Root[0] = tables[0]; /* this code, until the kernel drops it */
    Root[SELF_MAP] = (PHYSICAL)Root | PTE_VALID | PTE_WRITE | PTE_NX;
    Block.StackTop = MI_DIRECT_MAP + (PHYSICAL)Allocate(STACK_BYTES) + STACK_BYTES;
    PLOADER_PARAMETER_BLOCK Kept = Allocate(sizeof(Block));
    Block.FirstFreePage = NextPage >> PAGE_SHIFT;
    memcpy(Block.Region, BootRegions, Block.RegionCount * sizeof(REGION));
    memcpy(Kept, &Block, sizeof(Block));
    /* Microsoft x64: argument in rcx; on entry a return address (none) below 32 bytes of home
     * space. */
    __asm__ volatile("movq %0, %%cr3; movq %1, %%rsp; xorl %%ebp, %%ebp; pushq $0; jmp *%2" ::"r"(
                         Block.PageTableRoot),
                     "r"(Block.StackTop - 32), "r"(Entry), "c"(MI_DIRECT_MAP + (ULONG64)Kept)
                     : "memory");
    __builtin_unreachable();
}
