/* Physical pages and page tables. Nothing is ever paged out: a page is free or in use. */
#include "mm.h"

#define PTE_VALID   1ULL
#define PTE_WRITE   2ULL
#define PTE_LARGE   0x80ULL
#define PTE_NX      (1ULL << 63)
#define PTE_ADDRESS 0x000ffffffffff000ULL

enum { PAGE_ABSENT, PAGE_FREE, PAGE_IN_USE };

PHYSICAL_MEMORY_DESCRIPTOR MmPhysicalMemoryBlock;
PFN_NUMBER MmHighestPhysicalPage;
PUCHAR MmPfnDatabase; /* one state byte for each page */
ULONG64 MmAvailablePages;
static PULONG64 MiRoot;
static PFN_NUMBER MiNextPage;
static ULONG64 MiSystemSpace;

void MiInitializePages(void) {
    const LOADER_PARAMETER_BLOCK *Block = KeLoaderBlock;
    PHYSICAL_MEMORY_DESCRIPTOR *Memory = &MmPhysicalMemoryBlock;
    for (ULONG i = 0; i < Block->RegionCount && i < ARRAY_SIZE(Block->Region); i++) {
        PFN_NUMBER First = BYTES_TO_PAGES(Block->Region[i].Base);
        PFN_NUMBER End = (Block->Region[i].Base + Block->Region[i].Length) >> PAGE_SHIFT;
        First = MAX(First, 1); /* page 0 holds the BIOS' vectors; Windows leaves it out as well */
        if (Block->Region[i].Type != 1 || First >= End || Memory->NumberOfRuns == 40) continue;
        Memory->Run[Memory->NumberOfRuns++] = (PHYSICAL_MEMORY_RUN){First, End - First};
        Memory->NumberOfPages += End - First;
        MmHighestPhysicalPage = MAX(MmHighestPhysicalPage, End - 1);
    }
    MiRoot = MiPhysicalToVirtual(Block->PageTableRoot);
    MiRoot[0] = 0; /* the loader's identity map */
    __asm__ volatile("movq %0, %%cr3" ::"r"(Block->PageTableRoot) : "memory");
    MmPfnDatabase = MiPhysicalToVirtual(Block->FirstFreePage << PAGE_SHIFT);
    PFN_NUMBER FirstFree = Block->FirstFreePage + BYTES_TO_PAGES(MmHighestPhysicalPage + 1);
    memset(MmPfnDatabase, PAGE_ABSENT, MmHighestPhysicalPage + 1);
    for (ULONG i = 0; i < Memory->NumberOfRuns; i++) {
        PFN_NUMBER End = Memory->Run[i].BasePage + Memory->Run[i].PageCount;
        for (PFN_NUMBER Page = Memory->Run[i].BasePage; Page < End; Page++) {
            BOOLEAN InUse = Page >= 0x100 && Page < FirstFree;
            MmPfnDatabase[Page] = InUse ? PAGE_IN_USE : PAGE_FREE;
            MmAvailablePages += !InUse;
        }
    }
    MiNextPage = FirstFree;
    MiSystemSpace = 0xfffff80000000000ULL + (KiRandom() % 0x4000) * 0x1000000ULL;
    ULONG64 Distance = MiSystemSpace - Block->KernelBase + 0x40000000;
    if (Distance < 0x80000000) /* keep clear of the kernel's image */
        MiSystemSpace = Block->KernelBase + 0x40000000;
}

PHYSICAL MiAllocatePages(ULONG Count) {
    KIRQL Irql = KfRaiseIrql(DISPATCH_LEVEL);
    PHYSICAL Found = 0;
    for (int Pass = 0; Pass < 2 && !Found; Pass++) {
        ULONG Run = 0;
        for (PFN_NUMBER Page = Pass ? 0x100 : MiNextPage; Page <= MmHighestPhysicalPage; Page++) {
            Run = MmPfnDatabase[Page] == PAGE_FREE ? Run + 1 : 0;
            if (Run != Count) continue;
            memset(MmPfnDatabase + Page + 1 - Count, PAGE_IN_USE, Count);
            Found = (Page + 1 - Count) << PAGE_SHIFT;
            MiNextPage = Page + 1;
            MmAvailablePages -= Count;
            break;
        }
    }
    KeLowerIrql(Irql);
    if (Found) memset(MiPhysicalToVirtual(Found), 0, Count * PAGE_SIZE);
    return Found;
}

void MiFreePages(PHYSICAL Address, ULONG Count) {
    KIRQL Irql = KfRaiseIrql(DISPATCH_LEVEL);
    memset(MmPfnDatabase + (Address >> PAGE_SHIFT), PAGE_FREE, Count);
    MmAvailablePages += Count;
    KeLowerIrql(Irql);
}

BOOLEAN MiIsPageInUse(PFN_NUMBER Page) {
    return Page <= MmHighestPhysicalPage && MmPfnDatabase[Page] == PAGE_IN_USE;
}

/* The entry that maps `Virtual` (4 KiB or large), or with `Create` the 4 KiB entry that can. */
static PULONG64 MiFindEntry(ULONG64 Virtual, BOOLEAN Create, BOOLEAN *Large) {
    PULONG64 Table = MiRoot;
    *Large = FALSE;
    for (int Level = 3;; Level--) {
        PULONG64 Entry = Table + (Virtual >> (12 + 9 * Level) & 511);
        if (Level == 0) return Entry;
        if (!(*Entry & PTE_VALID)) {
            PHYSICAL Page = Create ? MiAllocatePages(1) : 0;
            if (!Page) return NULL;
            *Entry = Page | PTE_VALID | PTE_WRITE;
        }
        if (Level < 3 && *Entry & PTE_LARGE) {
            *Large = TRUE;
            return Entry;
        }
        Table = MiPhysicalToVirtual(*Entry & PTE_ADDRESS);
    }
}

PHYSICAL MiGetPhysicalAddress(const void *Virtual) {
    ULONG64 Address = (ULONG64)Virtual;
    BOOLEAN Large;
    if ((LONG64)(Address << 16) >> 16 != (LONG64)Address) return 0;
    PULONG64 Entry = MiFindEntry(Address, FALSE, &Large);
    if (!Entry || !(*Entry & PTE_VALID)) return 0;
    if (Large) return (*Entry & PTE_ADDRESS & ~0x1fffffULL) + (Address & 0x1fffff);
    return (*Entry & PTE_ADDRESS) + (Address & (PAGE_SIZE - 1));
}

PHYSICAL HalPhysicalAddress(const void *Virtual) { return MiGetPhysicalAddress(Virtual); }
BOOLEAN MiIsAddressValid(const void *Virtual) { return MiGetPhysicalAddress(Virtual) != 0; }

NTSTATUS MiMapPage(PVOID Virtual, PHYSICAL Physical, ULONG Protection) {
    BOOLEAN Large;
    PULONG64 Entry = MiFindEntry((ULONG64)Virtual, TRUE, &Large);
    if (!Entry || Large) return STATUS_NO_MEMORY;
    *Entry = Physical | PTE_VALID | (Protection & MI_WRITE ? PTE_WRITE : 0) |
             (Protection & MI_EXECUTE ? 0 : PTE_NX);
    MiFlushPage(Virtual);
    return STATUS_SUCCESS;
}

void MiUnmapPage(PVOID Virtual) {
    BOOLEAN Large;
    PULONG64 Entry = MiFindEntry((ULONG64)Virtual, FALSE, &Large);
    if (Entry && !Large) *Entry = 0;
    MiFlushPage(Virtual);
}

NTSTATUS MiMapNewPages(PVOID Virtual, ULONG Pages) {
    for (ULONG i = 0; i < Pages; i++) {
        PHYSICAL Page = MiAllocatePages(1);
        if (!Page || !NT_SUCCESS(MiMapPage((PUCHAR)Virtual + i * PAGE_SIZE, Page, MI_WRITE))) {
            if (Page) MiFreePages(Page, 1);
            MiUnmapAndFree(Virtual, i);
            return STATUS_NO_MEMORY;
        }
    }
    return STATUS_SUCCESS;
}

void MiUnmapAndFree(PVOID Virtual, ULONG Pages) {
    for (ULONG i = 0; i < Pages; i++) {
        PUCHAR Page = (PUCHAR)Virtual + i * PAGE_SIZE;
        PHYSICAL Physical = MiGetPhysicalAddress(Page);
        MiUnmapPage(Page);
        if (Physical) MiFreePages(Physical & ~(PAGE_SIZE - 1), 1);
    }
}

PVOID MiReserveSystemSpace(SIZE_T Bytes) {
    KIRQL Irql = KfRaiseIrql(DISPATCH_LEVEL);
    ULONG64 Address = MiSystemSpace + (KiRandom() % 64 + 1) * 0x10000;
    MiSystemSpace = (Address + Bytes + 0x1ffff) & ~0xffffULL; /* an unmapped gap after each */
    KeLowerIrql(Irql);
    return (PVOID)Address;
}
