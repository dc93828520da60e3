/* From the loader to the first thread: tables, processor, what debuggers read, memory, clock. */
#include "ke.h"
#include "mm.h"

PLOADER_PARAMETER_BLOCK KeLoaderBlock;
ULONG64 KiRandomState;
static LOADER_PARAMETER_BLOCK KiLoaderBlockCopy;
__attribute__((aligned(4096))) KPCR KiPcr;
__attribute__((aligned(4096))) UCHAR KiIstStacks[2][0x4000];
static __attribute__((aligned(16))) ULONG64 KiGdt[12];
static __attribute__((aligned(16))) struct {
    USHORT OffsetLow, Selector;
    UCHAR Ist, Type;
    USHORT OffsetMiddle;
    ULONG OffsetHigh, Reserved;
} KiIdt[256];
static struct __attribute__((packed)) {
    ULONG Reserved0;
    ULONG64 Rsp[3], Ist[8]; /* Ist[0] is reserved */
    ULONG64 Reserved1;
    USHORT Reserved2, IoMapBase;
} KiTss;
extern const PVOID KiTrapVectors[20], KiIsrVectors[16];

ULONG64 KiRandom(void) {
    KiRandomState ^= KiRandomState << 13;
    KiRandomState ^= KiRandomState >> 7;
    KiRandomState ^= KiRandomState << 17;
    return KiRandomState;
}

static void KiSetGate(ULONG Vector, PVOID Handler, UCHAR Ist) {
    ULONG64 Address = (ULONG64)Handler;
    KiIdt[Vector].OffsetLow = (USHORT)Address;
    KiIdt[Vector].OffsetMiddle = (USHORT)(Address >> 16);
    KiIdt[Vector].OffsetHigh = (ULONG)(Address >> 32);
    KiIdt[Vector].Selector = 0x10;
    KiIdt[Vector].Ist = Ist;
    KiIdt[Vector].Type = 0x8E; /* interrupt gate */
}

static void KiInitializeTables(void) {
    ULONG64 Tss = (ULONG64)&KiTss;
    KiGdt[2] = 0x00209b0000000000; /* 0x10 kernel code */
    KiGdt[3] = 0x0040930000000000; /* 0x18 kernel data */
    KiGdt[4] = 0x00cffb000000ffff; /* 0x20 user code, 32 bits */
    KiGdt[5] = 0x00cff3000000ffff; /* 0x28 user data */
    KiGdt[6] = 0x0020fb0000000000; /* 0x30 user code */
    KiGdt[8] = 0x0000890000000000 | (sizeof(KiTss) - 1) | (Tss & 0xffffff) << 16 |
               (Tss >> 24 & 0xff) << 56; /* 0x40 TSS */
    KiGdt[9] = Tss >> 32;
    KiGdt[10] = 0x0040f30000003c00; /* 0x50 TEB */
    KiTss.IoMapBase = sizeof(KiTss);
    KiTss.Ist[1] = (ULONG64)(KiIstStacks[0] + sizeof(KiIstStacks[0]));
    KiTss.Ist[3] = (ULONG64)(KiIstStacks[1] + sizeof(KiIstStacks[1]));
    for (ULONG i = 0; i < 256; i++) KiSetGate(i, KiTrapVectors[15], 0);
    for (ULONG i = 0; i < 20; i++) KiSetGate(i, KiTrapVectors[i], i == 8 ? 1 : i == 2 ? 3 : 0);
    for (ULONG i = 0; i < 16; i++) KiSetGate(0x30 + i, KiIsrVectors[i], 0);
    KSPECIAL_REGISTERS *Special = &KiPcr.Prcb.ProcessorState.SpecialRegisters;
    Special->Gdtr = (KDESCRIPTOR){.Limit = sizeof(KiGdt) - 1, .Base = KiGdt};
    Special->Idtr = (KDESCRIPTOR){.Limit = sizeof(KiIdt) - 1, .Base = KiIdt};
    Special->Tr = 0x40;
    __asm__ volatile("lgdt %0\n\tlidt %1\n\tltr %w2\n\t"
                     "pushq $0x10\n\tleaq 1f(%%rip), %%rax\n\tpushq %%rax\n\tlretq\n1:\n\t"
                     "movw $0x18, %%ax\n\tmovw %%ax, %%ss\n\tmovw $0x2b, %%ax\n\t"
                     "movw %%ax, %%ds\n\tmovw %%ax, %%es" ::"m"(Special->Gdtr.Limit),
                     "m"(Special->Idtr.Limit), "r"(0x40)
                     : "rax", "memory");
}

static void KiWriteMsr(ULONG Register, ULONG64 Value) {
    __asm__ volatile("wrmsr" ::"c"(Register), "a"((ULONG)Value), "d"((ULONG)(Value >> 32)));
}

static void KiInitializeProcessor(void) {
    PKPCR Pcr = &KiPcr;
    KSPECIAL_REGISTERS *Special = &Pcr->Prcb.ProcessorState.SpecialRegisters;
    ULONG Ebx, Ecx, Edx, Eax = 0;
    Pcr->GdtBase = KiGdt;
    Pcr->TssBase = &KiTss;
    Pcr->IdtBase = KiIdt;
    Pcr->Self = Pcr;
    Pcr->CurrentPrcb = &Pcr->Prcb;
    Pcr->MajorVersion = Pcr->MinorVersion = 1;
    Pcr->Prcb.MinorVersion = Pcr->Prcb.MajorVersion = 1;
    Pcr->Prcb.MxCsr = 0x1f80;
    Pcr->Prcb.Context = &Pcr->Prcb.ProcessorState.ContextFrame;
    KiWriteMsr(0xC0000101, (ULONG64)Pcr);
    /* SSE for drivers (CR0.MP, CR4.OSFXSR, OSXMMEXCPT); CR0.WP: read-only means read-only. */
    ULONG64 Cr0, Cr4;
    __asm__ volatile("movq %%cr0, %0; movq %%cr4, %1" : "=r"(Cr0), "=r"(Cr4));
    Cr0 = (Cr0 & ~4ULL) | 0x10022;
    Cr4 |= 0x600;
    __asm__ volatile("movq %0, %%cr0; movq %1, %%cr4; fninit" ::"r"(Cr0), "r"(Cr4));
    __asm__ volatile("ldmxcsr %0" ::"m"(Pcr->Prcb.MxCsr));
    __asm__ volatile("cpuid" : "+a"(Eax), "=b"(Ebx), "=c"(Ecx), "=d"(Edx));
    memcpy(Pcr->Prcb.VendorString, (ULONG[]){Ebx, Edx, Ecx}, 12);
    Pcr->Prcb.CpuVendor = Ebx == 0x68747541 ? 1 : 2; /* "Auth", else Intel */
    Eax = 1;
    __asm__ volatile("cpuid" : "+a"(Eax), "=b"(Ebx), "=c"(Ecx), "=d"(Edx));
    Pcr->Prcb.CpuType = Eax >> 8 & 15;
    Pcr->Prcb.CpuStep = (USHORT)((Eax >> 4 & 15) << 8 | (Eax & 15));
    Pcr->Prcb.CpuID = 1;
    Special->Cr0 = Cr0, Special->Cr4 = Cr4;
    Special->Cr3 = KeLoaderBlock->PageTableRoot;
    Special->MxCsr = 0x1f80;
    Special->MsrGsBase = (ULONG64)Pcr;
}

/* KUSER_SHARED_DATA, the page every process and debugger reads version and time from. */
static void KiInitializeSharedData(void) {
    static const WCHAR SystemRoot[] = L"C:\\Windows";
    PUCHAR Shared = (PUCHAR)MI_SHARED;
    MiMapPage(Shared, MiAllocatePages(1), MI_WRITE);
    *(PULONG)(Shared + 0x04) = 10U << 24; /* TickCountMultiplier: ms a tick, 8.24 */
    *(PUSHORT)(Shared + 0x2c) = *(PUSHORT)(Shared + 0x2e) = 0x8664;
    memcpy(Shared + 0x30, SystemRoot, sizeof(SystemRoot));
    *(PULONG)(Shared + 0x260) = 19041; /* NtBuildNumber */
    *(PULONG)(Shared + 0x264) = 1;     /* NtProductWinNt */
    Shared[0x268] = 1;
    *(PUSHORT)(Shared + 0x26a) = 9; /* PROCESSOR_ARCHITECTURE_AMD64 */
    *(PULONG)(Shared + 0x26c) = 10;
}

NORETURN void KiSystemStartup(PLOADER_PARAMETER_BLOCK LoaderBlock) {
    KiDisable();
    KiLoaderBlockCopy = *LoaderBlock;
    KeLoaderBlock = &KiLoaderBlockCopy;
    KiRandomState = (LoaderBlock->Entropy ^ KiReadTsc()) | 1;
    for (int i = 0; i < 16; i++) KiRandom();
    KiInitializeTables();
    KiInitializeProcessor();
    MiInitializePages();
    MiInitializePool();
    KiInitializeSharedData();
    KiInitializeScheduler();
    IopInitializeModuleList();
    PspInitialize();
    HalAcpiInitialize();
    KiInitializeClock();
    KiInitializeDebuggerData();
    KiStartThread(Phase1Initialization, NULL, NULL);
    KiEnable();
    KiIdleLoop();
}
