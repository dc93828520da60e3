/* QEMU's firmware configuration device (docs/specs/fw_cfg), used to tell the hypervisor where the
 * dump header is (docs/specs/vmcoreinfo), as virtio-win's fwcfg driver does on Windows. */
#include "ki.h"

enum { FILE_DIRECTORY = 0x19, DMA_SELECT = 8, DMA_WRITE = 16 };
enum { SELECTOR = 0x510, DATA = 0x511, DMA_HIGH = 0x514, DMA_LOW = 0x518 };

typedef struct __attribute__((packed)) _VMCOREINFO_BLOCK {
    struct {
        ULONG NameSize, DescriptorSize, Type;
        CHAR Name[12];
    } Note; /* ELF note; the dump header is its descriptor */
    UCHAR Header[0x2000];
    struct {
        USHORT HostFormat, GuestFormat; /* guest: 1 = ELF note */
        ULONG Size;
        ULONG64 Address;
    } File; /* little-endian */
    struct {
        ULONG Control, Length;
        ULONG64 Address;
    } Dma; /* big-endian */
} VMCOREINFO_BLOCK;
ASSERT_OFFSET(VMCOREINFO_BLOCK, Dma, 24 + 0x2000 + 16);

/* The selector of a named file, 0 where there is none. */
static ULONG HalpFwCfgFind(PCSTR Name) {
    UCHAR Count[4], Entry[64]; /* big-endian; of a file: size, selector, 2 reserved bytes, name */
    __outword(SELECTOR, FILE_DIRECTORY);
    for (ULONG i = 0; i < sizeof(Count); i++) Count[i] = __inbyte(DATA);
    if (Count[0] != 0) return 0; /* an empty bus reads as 0xFF */
    for (ULONG Files = Count[2] << 8 | Count[3]; Files > 0; Files--) {
        for (ULONG i = 0; i < sizeof(Entry); i++) Entry[i] = __inbyte(DATA);
        if (strcmp((PCSTR)Entry + 8, Name) == 0) return Entry[4] << 8 | Entry[5];
    }
    return 0;
}

void HalPublishVmcoreinfo(PVOID DumpHeader) {
    ULONG Selector = HalpFwCfgFind("etc/vmcoreinfo");
    if (Selector == 0) return;
    /* kept: the hypervisor reads it whenever it is asked to */
    PHYSICAL Physical = MiAllocatePages(BYTES_TO_PAGES(sizeof(VMCOREINFO_BLOCK)));
    if (Physical == 0) return;
    PHYSICAL Dma = Physical + offsetof(VMCOREINFO_BLOCK, Dma);
    PHYSICAL File = Physical + offsetof(VMCOREINFO_BLOCK, File);
    volatile VMCOREINFO_BLOCK *Block = MiPhysicalToVirtual(Physical);
    Block->Note = (__typeof__(Block->Note)){11, sizeof(Block->Header), 0, "VMCOREINFO"};
    Block->File = (__typeof__(Block->File)){0, 1, offsetof(VMCOREINFO_BLOCK, File), Physical};
    Block->Dma =
        (__typeof__(Block->Dma)){__builtin_bswap32(Selector << 16 | DMA_SELECT | DMA_WRITE),
            __builtin_bswap32(sizeof(Block->File)), __builtin_bswap64(File)};
    memcpy((PVOID)Block->Header, DumpHeader, sizeof(Block->Header));
    __outdword(DMA_HIGH, __builtin_bswap32((ULONG)(Dma >> 32)));
    __outdword(DMA_LOW, __builtin_bswap32((ULONG)Dma)); /* starts the transfer, done on return */
    if (Block->Dma.Control != 0)
        DbgPrint("hal: fw_cfg refused etc/vmcoreinfo (%x)\n", Block->Dma.Control);
}
