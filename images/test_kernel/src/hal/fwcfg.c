/* QEMU's firmware configuration device (docs/specs/fw_cfg), used to tell the hypervisor where the
 * dump header is (docs/specs/vmcoreinfo), as virtio-win's fwcfg driver does on Windows. */
#include "hal.h"

enum { SIGNATURE = 0, FILE_DIRECTORY = 0x19, DMA_SELECT = 8, DMA_WRITE = 16 };

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
ASSERT_OFFSET(VMCOREINFO_BLOCK, Header, 24);
ASSERT_SIZE(VMCOREINFO_BLOCK, 24 + 0x2000 + 16 + 16);

static void HalpFwCfgRead(PVOID Buffer, ULONG Length) {
    for (ULONG i = 0; i < Length; i++) ((PUCHAR)Buffer)[i] = __inbyte(0x511);
}

/* The selector of a named file, 0 where there is none. */
static USHORT HalpFwCfgFind(PCSTR Name) {
    ULONG Count = 0;
    CHAR Signature[4];
    struct {
        ULONG Size;
        USHORT Selector, Reserved;
        CHAR Name[56];
    } Entry;
    __outword(0x510, SIGNATURE);
    HalpFwCfgRead(Signature, sizeof(Signature));
    if (memcmp(Signature, "QEMU", 4) != 0) return 0;
    __outword(0x510, FILE_DIRECTORY);
    HalpFwCfgRead(&Count, sizeof(Count));
    for (Count = __builtin_bswap32(Count); Count > 0; Count--) {
        HalpFwCfgRead(&Entry, sizeof(Entry));
        if (strcmp(Entry.Name, Name) == 0) return __builtin_bswap16(Entry.Selector);
    }
    return 0;
}

void HalPublishVmcoreinfo(PVOID DumpHeader) {
    static PHYSICAL Physical; /* kept: the hypervisor reads it whenever it is asked to */
    USHORT Selector = HalpFwCfgFind("etc/vmcoreinfo");
    if (Selector == 0) return;
    if (Physical == 0) Physical = MiAllocatePages(BYTES_TO_PAGES(sizeof(VMCOREINFO_BLOCK)));
    if (Physical == 0) return;
    volatile VMCOREINFO_BLOCK *Block = MiPhysicalToVirtual(Physical);
    Block->Note.NameSize = sizeof("VMCOREINFO");
    Block->Note.DescriptorSize = sizeof(Block->Header);
    memcpy((PVOID)Block->Note.Name, "VMCOREINFO", sizeof("VMCOREINFO"));
    memcpy((PVOID)Block->Header, DumpHeader, sizeof(Block->Header));
    Block->File.GuestFormat = 1;
    Block->File.Size = offsetof(VMCOREINFO_BLOCK, File);
    Block->File.Address = Physical;
    Block->Dma.Control = __builtin_bswap32((ULONG)Selector << 16 | DMA_SELECT | DMA_WRITE);
    Block->Dma.Length = __builtin_bswap32(sizeof(Block->File));
    Block->Dma.Address = __builtin_bswap64(Physical + offsetof(VMCOREINFO_BLOCK, File));
    PHYSICAL Dma = Physical + offsetof(VMCOREINFO_BLOCK, Dma);
    __outdword(0x514, __builtin_bswap32((ULONG)(Dma >> 32)));
    __outdword(0x518, __builtin_bswap32((ULONG)Dma)); /* starts the transfer, done on return */
    if (Block->Dma.Control != 0)
        DbgPrint("hal: fw_cfg refused etc/vmcoreinfo (%x)\n", Block->Dma.Control);
}
