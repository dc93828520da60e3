/* KDDEBUGGER_DATA64, the map of the kernel that debuggers and dump readers start from. Field
 * offsets: the published KDBG lists for build 19041; unlisted fields stay zero. */
#include "ke.h"
#include "mm.h"

typedef struct _KDDEBUGGER_DATA64 {
    LIST_ENTRY List;
    ULONG OwnerTag, Size;
    union {
        UCHAR Bytes[0x380 - 0x18];
        ULONG64 Pointers[(0x380 - 0x18) / 8];
    };
} KDDEBUGGER_DATA64;
ASSERT_SIZE(KDDEBUGGER_DATA64, 0x380);

#define UNLOADED_MAX 50
typedef struct _UNLOADED_DRIVERS {
    UNICODE_STRING Name;
    PVOID StartAddress, EndAddress;
    LARGE_INTEGER CurrentTime;
} UNLOADED_DRIVERS;

KDDEBUGGER_DATA64 KdDebuggerDataBlock;
PKPRCB KiProcessorBlock[64];
const CHAR NtBuildLab[] = "19041.1.amd64fre.test_kernel";
UNLOADED_DRIVERS *MmUnloadedDrivers;
ULONG MmLastUnloadedDriver;
LIST_ENTRY KeBugCheckCallbackListHead = {&KeBugCheckCallbackListHead, &KeBugCheckCallbackListHead};
static LIST_ENTRY KdpDebuggerDataListHead;
static ULONG KdPrintBufferSize = KD_PRINT_BUFFER_SIZE;
static ULONG64 KiTimeIncrement = KI_TICK, MmHighestUserAddress = MI_USER_LIMIT - 1,
               MmSystemRangeStart = 0xffff800000000000, MmUserProbeAddress = MI_USER_LIMIT,
               MmPoolStart, MmPoolEnd;
static PHYSICAL_MEMORY_DESCRIPTOR *MmPhysicalMemoryBlockPointer = &MmPhysicalMemoryBlock;

void MiRememberUnloadedDriver(PKLDR_DATA_TABLE_ENTRY Entry) {
    UNLOADED_DRIVERS *Slot = &MmUnloadedDrivers[MmLastUnloadedDriver++ % UNLOADED_MAX];
    Slot->Name = Entry->BaseDllName; /* takes the buffer over */
    Slot->StartAddress = Entry->DllBase;
    Slot->EndAddress = (PUCHAR)Entry->DllBase + Entry->SizeOfImage;
    Slot->CurrentTime.QuadPart = KiQuerySystemTime();
}

void KiInitializeDebuggerData(void) {
    KDDEBUGGER_DATA64 *Data = &KdDebuggerDataBlock;
    MmUnloadedDrivers = ExAllocatePool2(0x40, UNLOADED_MAX * sizeof(UNLOADED_DRIVERS), 'nUmM');
    MmPoolStart = MmNonPagedPoolStart, MmPoolEnd = MmNonPagedPoolEnd;
    KiProcessorBlock[0] = &KiPcr.Prcb;
    InitializeListHead(&KdpDebuggerDataListHead);
    InsertTailList(&KdpDebuggerDataListHead, &Data->List);
    Data->OwnerTag = 0x4742444B; /* "KDBG" */
    Data->Size = sizeof(*Data);
    const struct {
        USHORT Offset;
        const void *Value;
    } Pointers[] = {{0x18, (PVOID)KeLoaderBlock->KernelBase}, {0x48, &PsLoadedModuleList},
        {0x50, &PsActiveProcessHead}, {0x78, &KiTimeIncrement}, {0x80, &KeBugCheckCallbackListHead},
        {0x88, KiBugcheckData}, {0xC0, &MmPfnDatabase}, {0xF0, &MmHighestPhysicalPage},
        {0xF8, &MmPhysicalMemoryBlock.NumberOfPages}, {0x110, &MmPoolStart}, {0x118, &MmPoolEnd},
        {0x138, (PVOID)PAGE_SIZE}, {0x1A8, &MmAvailablePages}, {0x1C8, &MmHighestUserAddress},
        {0x1D0, &MmSystemRangeStart}, {0x1D8, &MmUserProbeAddress}, {0x1E0, KdPrintCircularBuffer},
        {0x1E8, KdPrintCircularBuffer + KdPrintBufferSize}, {0x1F0, &KdPrintWritePointer},
        {0x1F8, &KdPrintRolloverCount}, {0x208, NtBuildLab}, {0x218, KiProcessorBlock},
        {0x220, &MmUnloadedDrivers}, {0x228, &MmLastUnloadedDriver},
        {0x270, &MmPhysicalMemoryBlockPointer}, {0x2C8, KdPrintCircularBuffer},
        {0x2D0, &KdPrintBufferSize}, {0x2D8, &KeLoaderBlock}, {0x360, (PVOID)MI_PTE_BASE}};
    for (ULONG i = 0; i < ARRAY_SIZE(Pointers); i++)
        Data->Pointers[(Pointers[i].Offset - 0x18) / 8] = (ULONG64)Pointers[i].Value;
    static const USHORT Offsets[][2] = {{0x29A, offsetof(KTHREAD, Teb)},
        {0x29C, offsetof(KTHREAD, KernelStack)}, {0x29E, offsetof(KTHREAD, InitialStack)},
        {0x2A0, offsetof(KTHREAD, ApcState.Process)}, {0x2A2, offsetof(KTHREAD, State)},
        {0x2A8, sizeof(EPROCESS)}, {0x2AA, offsetof(EPROCESS, Peb)},
        {0x2AC, offsetof(EPROCESS, InheritedFromUniqueProcessId)},
        {0x2AE, offsetof(EPROCESS, Pcb.DirectoryTableBase)}, {0x2B0, sizeof(KPRCB)},
        {0x2B2, offsetof(KPRCB, DpcRoutine)}, {0x2B4, offsetof(KPRCB, CurrentThread)},
        {0x2B6, offsetof(KPRCB, MHz)}, {0x2B8, offsetof(KPRCB, CpuType)},
        {0x2BA, offsetof(KPRCB, VendorString)},
        {0x2BC, offsetof(KPRCB, ProcessorState.ContextFrame)}, {0x2BE, offsetof(KPRCB, Number)},
        {0x2C0, sizeof(ETHREAD)}, {0x2E0, sizeof(KPCR)}, {0x2E2, offsetof(KPCR, Self)},
        {0x2E4, offsetof(KPCR, CurrentPrcb)}, {0x2E6, offsetof(KPCR, Prcb)},
        {0x2F2, offsetof(KPRCB, ProcessorState.SpecialRegisters)}, {0x2F4, 0x10}, {0x2F6, 0x18},
        {0x2FA, 0x33}, {0x2FC, 0x2B}, {0x2FE, 0x53}, {0x302, 0x40}, {0x304, 0x23}, {0x306, 0x53},
        {0x338, offsetof(KPRCB, Context)}, {0x340, offsetof(KTHREAD, StackLimit)},
        {0x344, offsetof(KTHREAD, StackBase)}, {0x350, offsetof(KPRCB, IdleThread)}};
    for (ULONG i = 0; i < ARRAY_SIZE(Offsets); i++)
        *(PUSHORT)((PUCHAR)Data + Offsets[i][0]) = Offsets[i][1];
}
