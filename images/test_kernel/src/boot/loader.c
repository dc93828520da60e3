/* The 64-bit loader: maps \Windows\System32\ntoskrnl.exe at a random address, memory at
 * MI_DIRECT_MAP, page tables at MI_PTE_BASE, and enters the kernel, whose disk code it shares. */
#include "image.h"

#define KERNEL_FILE  "Windows\\System32\\ntoskrnl.exe"
#define KERNEL_SPACE 0xfffff80300000000ULL /* + 0 .. 16 GiB, in steps of 2 MiB */
#define LARGE_PAGE   0x200000ULL
#define STACK_BYTES  0x8000
#define FIRST_PAGE   0x100000ULL
#define PTE_VALID    0x061ULL /* present, accessed, dirty */
#define PTE_WRITE    0x002ULL
#define PTE_LARGE    0x080ULL
#define PTE_NX       (1ULL << 63)
#define PTE_ADDRESS  0x000ffffffffff000ULL
#define SELF_MAP     0x1ed

typedef __typeof__(((PLOADER_PARAMETER_BLOCK)0)->Region[0]) REGION;
extern ULONG BootRegionCount; /* stage2.S */
extern REGION BootRegions[];
extern ULONG64 IdentityMap[];
static PHYSICAL NextPage = FIRST_PAGE, EndOfMemory;
static PULONG64 Root;

/* What disk and file system want of a kernel; nothing else runs, so no locks. */
void KiAcquireMutex(PKI_MUTEX Mutex) { UNREFERENCED(Mutex); }
void KiReleaseMutex(PKI_MUTEX Mutex) { UNREFERENCED(Mutex); }
PHYSICAL HalPhysicalAddress(const void *Virtual) { return (PHYSICAL)Virtual; }
/* For the file as read: at the end of memory, where nothing is kept. */
PVOID ExAllocatePoolWithTag(POOL_TYPE Type, SIZE_T Bytes, ULONG Tag) {
    UNREFERENCED(Type);
    UNREFERENCED(Tag);
    PHYSICAL Start = (EndOfMemory - Bytes) & ~(PAGE_SIZE - 1);
    return Bytes < EndOfMemory && Start > NextPage ? (PVOID)Start : NULL;
}
void ExFreePoolWithTag(PVOID Block, ULONG Tag) {
    UNREFERENCED(Block);
    UNREFERENCED(Tag);
}

/* The boot manager's recovery screen, in Windows 10's words. */
static NORETURN void Fail(NTSTATUS Status) {
    static const PCSTR Text =
        "Recovery\n\n\nYour PC/Device needs to be repaired\n\n\n"
        "The operating system couldn't be loaded because the kernel is missing or\n"
        "contains errors.\n\nFile: \\" KERNEL_FILE "\nError code: 0x########\n\n\n"
        "You'll need to use recovery tools. If you don't have any installation media\n"
        "(like a disc or USB device), contact your PC administrator or PC/Device\n"
        "manufacturer for assistance.";
    volatile USHORT *Line = (USHORT *)0xB8000;
    ULONG Column = 2, Digits = Status;
    for (ULONG Cell = 0; Cell < 80 * 25; Cell++) Line[Cell] = 0x1F20;
    Line += 2 * 80;
    for (PCSTR At = Text; *At; At++) {
        if (*At == '\n') {
            Line += 80;
            Column = 2;
            continue;
        }
        Line[Column++] = 0x1F00 | (*At == '#' ? "0123456789abcdef"[Digits >> 28] : *At);
        if (*At == '#') Digits <<= 4;
    }
    for (;;) __asm__ volatile("cli; hlt");
}
static void Check(NTSTATUS Status) {
    if (!NT_SUCCESS(Status)) Fail(Status);
}

static PVOID Allocate(ULONG64 Bytes) {
    PVOID Block = (PVOID)NextPage;
    NextPage += ROUND_TO_PAGES(Bytes);
    if (NextPage > EndOfMemory) Fail(STATUS_NO_MEMORY);
    return memset(Block, 0, ROUND_TO_PAGES(Bytes));
}
/* `Level` is 1 for a 4 KiB page, 2 for one of 2 MiB. */
static void Map(ULONG64 Virtual, PHYSICAL Physical, int Level, ULONG64 Flags) {
    PULONG64 Entry = &Root[Virtual >> 39 & 511];
    for (int Depth = 3; Depth >= Level; Depth--) {
        if (!*Entry) *Entry = (ULONG64)Allocate(PAGE_SIZE) | PTE_VALID | PTE_WRITE;
        PULONG64 Table = (PULONG64)(*Entry & PTE_ADDRESS);
        Entry = &Table[Virtual >> (3 + 9 * Depth) & 511];
    }
    *Entry = Physical | Flags;
}
/* All memory, and what the BIOS keeps right behind it (ACPI tables): writable, never executable. */
static void MapDirect(void) {
    ULONG64 End = 2 * LARGE_PAGE;
    for (REGION *Region = BootRegions; Region < BootRegions + BootRegionCount; Region++)
        if (Region->Type == 1 || Region->Base <= End) End = MAX(End, Region->Base + Region->Length);
    for (ULONG64 Address = 0; Address < MIN(End, 1ULL << 39); Address += LARGE_PAGE)
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
/* Lays the image out in contiguous pages and maps each section as it asks, never writable code. */
static ULONG64 LoadKernel(PLOADER_PARAMETER_BLOCK Block) {
    PUCHAR File, Image;
    ULONG Size;
    PIMAGE_NT_HEADERS64 Headers;
    Check(HalDiskInitialize());
    Check(FatMount());
    NTSTATUS Status = FatLoadFile(KERNEL_FILE, (PVOID *)&File, &Size);
    if (Status == STATUS_OBJECT_NAME_NOT_FOUND || Status == STATUS_OBJECT_PATH_NOT_FOUND)
        Status = STATUS_NO_SUCH_FILE; /* as Windows' boot manager names it */
    Check(Status);
    Check(MiCheckImage(File, Size, &Headers));
    Image = Allocate(Headers->SizeOfImage);
    if (NextPage > (PHYSICAL)File) Fail(STATUS_NO_MEMORY);
    Block->KernelBase =
        KERNEL_SPACE + (Block->Entropy >> 20) % (0x400000000 / LARGE_PAGE) * LARGE_PAGE;
    Block->KernelSize = ROUND_TO_PAGES(Headers->SizeOfImage);
    Block->KernelPhysical = (PHYSICAL)Image;
    Map(Block->KernelBase, (PHYSICAL)Image, 1, PTE_VALID | PTE_NX);
    PIMAGE_SECTION_HEADER Section = MiLayOutImage(File, Image, Headers);
    for (ULONG Left = Headers->NumberOfSections; Left; Left--, Section++) {
        ULONG64 Flags = PTE_VALID, At = Section->VirtualAddress;
        if (!(Section->Characteristics & SECTION_EXECUTE))
            Flags |= PTE_NX | (Section->Characteristics & SECTION_WRITE ? PTE_WRITE : 0);
        for (; At < Section->VirtualAddress + ROUND_TO_PAGES(Section->VirtualSize); At += PAGE_SIZE)
            Map(Block->KernelBase + At, (PHYSICAL)Image + At, 1, Flags);
    }
    Check(MiRelocate(Image, Headers, Block->KernelBase));
    return Block->KernelBase + Headers->AddressOfEntryPoint;
}

NORETURN void LoaderMain(void) {
    LOADER_PARAMETER_BLOCK Block = {.Size = sizeof(Block), .RegionCount = BootRegionCount};
    for (REGION *Region = BootRegions; Region < BootRegions + BootRegionCount; Region++)
        if (Region->Type == 1 && Region->Base <= FIRST_PAGE)
            EndOfMemory = MIN(Region->Base + Region->Length, 1ULL << 30);
    memcpy(Block.Region, BootRegions, sizeof(REGION) * BootRegionCount);
    Block.Entropy = Entropy();
    Root = Allocate(PAGE_SIZE);
    Block.PageTableRoot = (PHYSICAL)Root;
    ULONG64 Entry = LoadKernel(&Block);
    MapDirect();
    Root[0] = IdentityMap[0]; /* this code, until the kernel drops it */
    Root[SELF_MAP] = (PHYSICAL)Root | PTE_VALID | PTE_WRITE | PTE_NX;
    Block.StackTop = MI_DIRECT_MAP + (PHYSICAL)Allocate(STACK_BYTES) + STACK_BYTES;
    PLOADER_PARAMETER_BLOCK Kept = Allocate(sizeof(Block));
    Block.FirstFreePage = NextPage >> PAGE_SHIFT;
    memcpy(Kept, &Block, sizeof(Block));
    /* Microsoft x64: argument in rcx; at entry a return address (none), then 32 bytes of home
     * space. */
    __asm__ volatile("movq %0, %%cr3; movq %1, %%rsp; xorl %%ebp, %%ebp; pushq $0; jmp *%2"
                     :
                     : "r"(Block.PageTableRoot), "r"(Block.StackTop - 32), "r"(Entry),
                     "c"(MI_DIRECT_MAP + (ULONG64)Kept)
                     : "memory");
    __builtin_unreachable();
}
