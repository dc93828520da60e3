/* Pool. Small blocks share pages by size class, in random order; blocks of half a page and more
 * have pages of their own between unmapped ones and lose them when freed: use after free is a
 * fault. */
#include "mm.h"

typedef struct _POOL_HEADER {
    UCHAR PreviousSize, PoolIndex, BlockSize,
        PoolType; /* BlockSize in 16 bytes; 0 in a freed block */
    ULONG PoolTag;
    struct _POOL_HEADER *NextFree; /* ProcessBilled in Windows */
} POOL_HEADER, *PPOOL_HEADER;
ASSERT_SIZE(POOL_HEADER, 16);

typedef struct _POOL_TRACKER_BIG_PAGES {
    PVOID Va;
    ULONG Key, Pages;
} POOL_TRACKER_BIG_PAGES;

#define POOL_WINDOW     0x10000000ULL /* large blocks' addresses come round again after 256 MiB */
#define POOL_LARGE      0x800
#define POOL_CLASS_STEP 32

ULONG64 MmNonPagedPoolStart, MmNonPagedPoolEnd;
static PPOOL_HEADER MiFreeBlocks[POOL_LARGE / POOL_CLASS_STEP + 1];
static POOL_TRACKER_BIG_PAGES PoolBigPageTable[2048];
static ULONG64 MiPoolNext;

void MiInitializePool(void) {
    MmNonPagedPoolStart = 0xffff800000000000ULL + (KiRandom() % 0x2000) * 0x100000000ULL;
    MmNonPagedPoolEnd = MmNonPagedPoolStart + POOL_WINDOW;
    MiPoolNext = MmNonPagedPoolStart + (KiRandom() % 4096) * PAGE_SIZE;
}

static PVOID MiAllocateRange(ULONG Pages) {
    ULONG64 Tried = 0;
    for (ULONG64 Address = MiPoolNext + (1 + KiRandom() % 4) * PAGE_SIZE; Tried < POOL_WINDOW;) {
        ULONG i = 0;
        if (Address + (Pages + 1) * PAGE_SIZE > MmNonPagedPoolEnd)
            Address = MmNonPagedPoolStart + PAGE_SIZE;
        while (i < Pages + 1 && !MiIsAddressValid((PVOID)(Address + i * PAGE_SIZE))) i++;
        if (i == Pages + 1) { /* the last one stays unmapped */
            if (!NT_SUCCESS(MiMapNewPages((PVOID)Address, Pages))) return NULL;
            MiPoolNext = Address + Pages * PAGE_SIZE;
            return (PVOID)Address;
        }
        Address += (i + 1) * PAGE_SIZE;
        Tried += (i + 1) * PAGE_SIZE;
    }
    return NULL;
}

static BOOLEAN MiRefillClass(ULONG Class) {
    ULONG Size = Class * POOL_CLASS_STEP, Count = (ULONG)(PAGE_SIZE / Size);
    UCHAR Order[PAGE_SIZE / POOL_CLASS_STEP];
    PUCHAR Page = MiAllocateRange(1);
    if (!Page) return FALSE;
    for (ULONG i = 0; i < Count; i++) {
        ULONG Other = (ULONG)(KiRandom() % (i + 1));
        Order[i] = Order[Other];
        Order[Other] = (UCHAR)i;
    }
    for (ULONG i = 0; i < Count; i++) {
        PPOOL_HEADER Block = (PPOOL_HEADER)(Page + Order[i] * Size);
        Block->NextFree = MiFreeBlocks[Class];
        MiFreeBlocks[Class] = Block;
    }
    return TRUE;
}

NTSYSAPI PVOID ExAllocatePoolWithTag(POOL_TYPE Type, SIZE_T Bytes, ULONG Tag) {
    PVOID Result = NULL;
    KIRQL Irql = KfRaiseIrql(DISPATCH_LEVEL);
    if (Bytes >= POOL_LARGE - sizeof(POOL_HEADER)) {
        ULONG Pages = Bytes < POOL_WINDOW ? (ULONG)BYTES_TO_PAGES(Bytes) : 0;
        for (ULONG i = 0; i < ARRAY_SIZE(PoolBigPageTable) && Pages && !Result; i++)
            if (!PoolBigPageTable[i].Va) {
                if (!(Result = MiAllocateRange(Pages))) break;
                PoolBigPageTable[i] = (POOL_TRACKER_BIG_PAGES){Result, Tag, Pages};
            }
    } else {
        ULONG Class = (ULONG)(Bytes + sizeof(POOL_HEADER) + POOL_CLASS_STEP - 1) / POOL_CLASS_STEP;
        if (MiFreeBlocks[Class] || MiRefillClass(Class)) {
            PPOOL_HEADER Block = MiFreeBlocks[Class];
            MiFreeBlocks[Class] = Block->NextFree;
            *Block = (POOL_HEADER){.BlockSize = (UCHAR)(Class * POOL_CLASS_STEP / 16),
                .PoolType = (UCHAR)Type | 2,
                .PoolTag = Tag};
            Result = Block + 1;
        }
    }
    KeLowerIrql(Irql);
    return Result;
}

NTSYSAPI PVOID ExAllocatePool2(ULONG64 Flags, SIZE_T Bytes, ULONG Tag) {
    PVOID Block = ExAllocatePoolWithTag(Flags & 0x100 ? PagedPool : NonPagedPoolNx, Bytes, Tag);
    if (Block && !(Flags & 2)) /* POOL_FLAG_UNINITIALIZED */
        memset(Block, 0, Bytes);
    return Block;
}

NTSYSAPI void ExFreePoolWithTag(PVOID Address, ULONG Tag) {
    KIRQL Irql = KfRaiseIrql(DISPATCH_LEVEL);
    if (((ULONG64)Address & (PAGE_SIZE - 1)) == 0) {
        ULONG i = 0;
        while (i < ARRAY_SIZE(PoolBigPageTable) && PoolBigPageTable[i].Va != Address) i++;
        if (i == ARRAY_SIZE(PoolBigPageTable)) /* BAD_POOL_CALLER: no such block, or freed before */
            KeBugCheckEx(0xC2, 0x46, (ULONG64)Address, 0, 0);
        MiUnmapAndFree(Address, PoolBigPageTable[i].Pages);
        PoolBigPageTable[i].Va = NULL;
    } else {
        PPOOL_HEADER Block = (PPOOL_HEADER)Address - 1;
        ULONG Class = Block->BlockSize * 16 / POOL_CLASS_STEP;
        if (!Block->BlockSize) /* freed before */
            KeBugCheckEx(0xC2, 7, Block->PoolTag, Tag, (ULONG64)Address);
        if (Class >= ARRAY_SIZE(MiFreeBlocks)) /* BAD_POOL_HEADER */
            KeBugCheckEx(0x19, 0x20, (ULONG64)Block, (ULONG64)Address, Tag);
        Block->BlockSize = 0;
        Block->NextFree = MiFreeBlocks[Class];
        MiFreeBlocks[Class] = Block;
    }
    KeLowerIrql(Irql);
}
