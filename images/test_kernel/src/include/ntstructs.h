/* Structures at the offsets of Windows 10 build 19041 where a debugger or a driver looks at them.
 * The offsets are public (wdm.h, published KDBG lists); fields nobody reads are left out. */
#pragma once
#include "nttypes.h"
typedef struct __attribute__((aligned(16))) _M128A {
    ULONG64 Low;
    LONG64 High;
} M128A;
typedef struct __attribute__((aligned(16))) _CONTEXT {
    ULONG64 P1Home, P2Home, P3Home, P4Home, P5Home, P6Home;
    ULONG ContextFlags, MxCsr;
    USHORT SegCs, SegDs, SegEs, SegFs, SegGs, SegSs;
    ULONG EFlags;
    ULONG64 Dr0, Dr1, Dr2, Dr3, Dr6, Dr7;
    union {
        struct {
            ULONG64 Rax, Rcx, Rdx, Rbx, Rsp, Rbp, Rsi, Rdi, R8, R9, R10, R11, R12, R13, R14, R15;
        };
        ULONG64 Registers[16];
    };
    ULONG64 Rip;
    union {
        UCHAR FltSave[512];
        struct {
            M128A Header[2], Legacy[8], Xmm[16];
        };
    };
    M128A VectorRegister[26];
    ULONG64 VectorControl, DebugControl, LastBranchToRip, LastBranchFromRip, LastExceptionToRip,
        LastExceptionFromRip;
} CONTEXT, *PCONTEXT;
LAYOUT(CONTEXT, AT(CONTEXT, Rsp, 0x98) && AT(CONTEXT, Rip, 0xF8) && AT(CONTEXT, Xmm, 0x1A0) &&
                    sizeof(CONTEXT) == 0x4D0);
#define CONTEXT_AMD64    0x100000
#define CONTEXT_FULL     (CONTEXT_AMD64 | 0xB)
#define CONTEXT_SEGMENTS (CONTEXT_AMD64 | 0x4)
typedef struct _EXCEPTION_RECORD {
    NTSTATUS ExceptionCode;
    ULONG ExceptionFlags;
    struct _EXCEPTION_RECORD *ExceptionRecord;
    PVOID ExceptionAddress;
    ULONG NumberParameters;
    ULONG64 ExceptionInformation[15];
} EXCEPTION_RECORD, *PEXCEPTION_RECORD;
LAYOUT(EXCEPTION_RECORD, sizeof(EXCEPTION_RECORD) == 0x98);
typedef struct _KTRAP_FRAME {
    ULONG64 P1Home, P2Home, P3Home, P4Home, P5;
    CHAR PreviousMode;
    KIRQL PreviousIrql;
    UCHAR FaultIndicator, ExceptionActive;
    ULONG MxCsr;
    ULONG64 Rax, Rcx, Rdx, R8, R9, R10, R11, GsBase;
    M128A Xmm0, Xmm1, Xmm2, Xmm3, Xmm4, Xmm5;
    ULONG64 FaultAddress;
    ULONG64 Dr0, Dr1, Dr2, Dr3, Dr6, Dr7, DebugControl, LastBranchToRip, LastBranchFromRip,
        LastExceptionToRip, LastExceptionFromRip;
    USHORT SegDs, SegEs, SegFs, SegGs;
    ULONG64 TrapFrame, Rbx, Rdi, Rsi, Rbp, ErrorCode, Rip;
    USHORT SegCs, Fill0[3];
    ULONG EFlags, Fill1;
    ULONG64 Rsp;
    USHORT SegSs, Fill2[3];
} KTRAP_FRAME, *PKTRAP_FRAME;
LAYOUT(KTRAP_FRAME, AT(KTRAP_FRAME, FaultAddress, 0xD0) && AT(KTRAP_FRAME, Rbp, 0x158) &&
                        AT(KTRAP_FRAME, Rip, 0x168) && sizeof(KTRAP_FRAME) == 0x190);
typedef struct _KDESCRIPTOR {
    USHORT Pad[3], Limit;
    PVOID Base;
} KDESCRIPTOR;
typedef struct _KSPECIAL_REGISTERS {
    ULONG64 Cr0, Cr2, Cr3, Cr4, KernelDr0, KernelDr1, KernelDr2, KernelDr3, KernelDr6, KernelDr7;
    KDESCRIPTOR Gdtr, Idtr;
    USHORT Tr, Ldtr;
    ULONG MxCsr;
    ULONG64 DebugControl, LastBranchToRip, LastBranchFromRip, LastExceptionToRip,
        LastExceptionFromRip, Cr8, MsrGsBase, MsrGsSwap, MsrStar, MsrLStar, MsrCStar,
        MsrSyscallMask, Xcr0, MsrFsBase, SpecialPadding0;
} KSPECIAL_REGISTERS;
LAYOUT(KSPECIAL_REGISTERS, sizeof(KSPECIAL_REGISTERS) == 0xF0);
typedef struct _KPROCESSOR_STATE {
    KSPECIAL_REGISTERS SpecialRegisters;
    CONTEXT ContextFrame;
} KPROCESSOR_STATE;
typedef ULONG64 KSPIN_LOCK, *PKSPIN_LOCK;
typedef struct _DISPATCHER_HEADER {
    UCHAR Type, Signalling, Size, Reserved;
    LONG SignalState;
    LIST_ENTRY WaitListHead;
} DISPATCHER_HEADER, *PDISPATCHER_HEADER;
enum { NotificationEventObject, SynchronizationEventObject, ProcessObject = 3, ThreadObject = 6 };
enum { TimerNotificationObject = 8, TimerSynchronizationObject = 9 };
typedef struct _KEVENT {
    DISPATCHER_HEADER Header;
} KEVENT, *PKEVENT;
struct _KDPC;
typedef void KDEFERRED_ROUTINE(struct _KDPC *Dpc, PVOID Context, PVOID Argument1, PVOID Argument2);
typedef struct _KDPC {
    UCHAR Type, Importance;
    USHORT Number;
    PVOID DpcListEntry;
    ULONG64 ProcessorHistory;
    KDEFERRED_ROUTINE *DeferredRoutine;
    PVOID DeferredContext, SystemArgument1, SystemArgument2, DpcData; /* DpcData: queued when set */
} KDPC, *PKDPC;
LAYOUT(KDPC, sizeof(KDPC) == 0x40);
typedef struct _KTIMER {
    DISPATCHER_HEADER Header;
    ULONG64 DueTime; /* interrupt time, 100 ns */
    LIST_ENTRY TimerListEntry;
    PKDPC Dpc;
    ULONG Processor, Period; /* ms */
} KTIMER, *PKTIMER;
LAYOUT(KTIMER, sizeof(KTIMER) == 0x40);
struct _EPROCESS;
typedef struct _KAPC_STATE {
    LIST_ENTRY ApcListHead[2];
    struct _EPROCESS *Process;
    ULONG64 Flags;
} KAPC_STATE;
typedef struct _KTHREAD {
    DISPATCHER_HEADER Header;
    PVOID SListFaultAddress;
    ULONG64 QuantumTarget;
    PVOID InitialStack, StackLimit, StackBase;
    KSPIN_LOCK ThreadLock;
    ULONG64 CycleTime, RunTimes;
    PVOID KernelStack; /* saved rsp while not running */
    UCHAR Fill0[0x90 - 0x60];
    PKTRAP_FRAME TrapFrame;
    KAPC_STATE ApcState;
    LONG_PTR WaitStatus;
    LIST_ENTRY WaitListEntry; /* in the ready queue or a wait list */
    PDISPATCHER_HEADER WaitObject;
    PVOID Teb_;
    PVOID Teb;
    KTIMER Timer;
    UCHAR Fill1[0x184 - 0x138];
    UCHAR State; /* KTHREAD_STATE: 0 initialized 1 ready 2 running 4 terminated 5 waiting */
    UCHAR Fill2[0x220 - 0x185];
    struct _EPROCESS *Process;
    UCHAR Fill3[0x2F8 - 0x228];
    LIST_ENTRY ThreadListEntry;
    UCHAR Fill4[0x420 - 0x308];
    ULONG64 Fill5[2];
} KTHREAD, *PKTHREAD;
LAYOUT(KTHREAD, AT(KTHREAD, KernelStack, 0x58) && AT(KTHREAD, ApcState.Process, 0xB8) &&
                    AT(KTHREAD, Teb, 0xF0) && AT(KTHREAD, State, 0x184) &&
                    AT(KTHREAD, Process, 0x220) && sizeof(KTHREAD) == 0x430);
typedef void KSTART_ROUTINE(PVOID Context);
typedef struct _ETHREAD {
    KTHREAD Tcb;
    LARGE_INTEGER CreateTime, ExitTime;
    UCHAR Fill0[0x450 - 0x440];
    KSTART_ROUTINE *StartAddress;
    UCHAR Fill1[0x478 - 0x458];
    CLIENT_ID Cid;
    UCHAR Fill2[0x4D0 - 0x488];
    PVOID Win32StartAddress;
    PVOID StartContext;
    NTSTATUS ExitStatus;
    ULONG Fill3;
    LIST_ENTRY ThreadListEntry;
    UCHAR FxArea[512 + 16]; /* FXSAVE area across a switch, aligned inside */
    UCHAR Fill4[0x898 - 0x708];
} ETHREAD, *PETHREAD;
LAYOUT(ETHREAD,
    AT(ETHREAD, Cid, 0x478) && AT(ETHREAD, ThreadListEntry, 0x4E8) && sizeof(ETHREAD) == 0x898);
typedef struct _KPROCESS {
    DISPATCHER_HEADER Header;
    LIST_ENTRY ProfileListHead;
    ULONG64 DirectoryTableBase;
    LIST_ENTRY ThreadListHead;
    UCHAR Fill0[0x438 - 0x40];
} KPROCESS;
typedef struct _EPROCESS {
    KPROCESS Pcb;
    KSPIN_LOCK ProcessLock;
    HANDLE UniqueProcessId;
    LIST_ENTRY ActiveProcessLinks;
    UCHAR Fill0[0x468 - 0x458];
    LARGE_INTEGER CreateTime;
    UCHAR Fill1[0x540 - 0x470];
    HANDLE InheritedFromUniqueProcessId;
    PVOID LdtInformation, Peb;
    UCHAR Fill2[0x5A8 - 0x558];
    CHAR ImageFileName[15];
    UCHAR PriorityClass;
    UCHAR Fill3[0x5E0 - 0x5B8];
    LIST_ENTRY ThreadListHead;
    ULONG ActiveThreads;
    UCHAR Fill4[0xA40 - 0x5F4];
} EPROCESS, *PEPROCESS;
LAYOUT(EPROCESS, AT(EPROCESS, UniqueProcessId, 0x440) && AT(EPROCESS, ActiveProcessLinks, 0x448) &&
                     AT(EPROCESS, Peb, 0x550) && AT(EPROCESS, ImageFileName, 0x5A8) &&
                     AT(EPROCESS, ThreadListHead, 0x5E0) && sizeof(EPROCESS) == 0xA40);
typedef struct _KPRCB {
    ULONG MxCsr;
    UCHAR LegacyNumber, ReservedMustBeZero, InterruptRequest, IdleHalt;
    PKTHREAD CurrentThread, NextThread, IdleThread;
    UCHAR NestingLevel, Pad0[3];
    ULONG Number;
    ULONG64 RspBase;
    KSPIN_LOCK PrcbLock;
    PVOID PriorityState;
    UCHAR CpuType, CpuID;
    USHORT CpuStep;
    ULONG MHz;
    ULONG64 HalReserved[8];
    USHORT MinorVersion, MajorVersion;
    UCHAR BuildType, CpuVendor, CoresPerPhysicalProcessor, LogicalProcessorsPerCore;
    UCHAR Fill0[0x100 - 0x90];
    KPROCESSOR_STATE ProcessorState;
    PKDPC DpcListHead, DpcListTail;
    KDEFERRED_ROUTINE *DpcRoutine; /* running now: what 0x133 is about */
    ULONG DpcTicks;                /* clock ticks spent at DISPATCH_LEVEL in one go */
    ULONG InterruptCount;
    CHAR VendorString[16];
    PCONTEXT Context; /* where debuggers take the current registers from */
    ULONG64 Fill1;
} KPRCB, *PKPRCB;
LAYOUT(KPRCB, AT(KPRCB, Number, 0x24) && AT(KPRCB, ProcessorState.ContextFrame, 0x1F0));
typedef struct _KPCR {
    PVOID GdtBase, TssBase;
    ULONG64 UserRsp;
    struct _KPCR *Self;
    PKPRCB CurrentPrcb;
    PVOID LockArray, Used_Self, IdtBase;
    ULONG64 Unused[2];
    KIRQL Irql;
    UCHAR Fill0[0x60 - 0x51];
    USHORT MajorVersion, MinorVersion;
    UCHAR Fill1[0x180 - 0x64];
    KPRCB Prcb;
} KPCR, *PKPCR;
LAYOUT(KPCR, AT(KPCR, Irql, 0x50) && AT(KPCR, Prcb, 0x180));
typedef struct _KLDR_DATA_TABLE_ENTRY {
    LIST_ENTRY InLoadOrderLinks;
    PVOID ExceptionTable;
    ULONG ExceptionTableSize;
    PVOID GpValue, NonPagedDebugInfo, DllBase, EntryPoint;
    ULONG SizeOfImage;
    UNICODE_STRING FullDllName, BaseDllName;
    ULONG Flags;
    USHORT LoadCount, Unused;
    PVOID SectionPointer;
    ULONG CheckSum, CoverageSectionSize;
    PVOID CoverageSection;
    ULONG TimeDateStamp;
    PVOID LoadedImports;
} KLDR_DATA_TABLE_ENTRY, *PKLDR_DATA_TABLE_ENTRY;
LAYOUT(KLDR_DATA_TABLE_ENTRY, AT(KLDR_DATA_TABLE_ENTRY, DllBase, 0x30) &&
                                  AT(KLDR_DATA_TABLE_ENTRY, BaseDllName, 0x58) &&
                                  AT(KLDR_DATA_TABLE_ENTRY, CheckSum, 0x78));
struct _DRIVER_OBJECT;
typedef NTSTATUS DRIVER_INITIALIZE(struct _DRIVER_OBJECT *Driver, PUNICODE_STRING RegistryPath);
typedef void DRIVER_UNLOAD(struct _DRIVER_OBJECT *Driver);
typedef struct _DRIVER_OBJECT {
    SHORT Type, Size;
    PVOID DeviceObject;
    ULONG Flags;
    PVOID DriverStart;
    ULONG DriverSize;
    PKLDR_DATA_TABLE_ENTRY DriverSection;
    PVOID DriverExtension;
    UNICODE_STRING DriverName;
    PUNICODE_STRING HardwareDatabase;
    PVOID FastIoDispatch;
    DRIVER_INITIALIZE *DriverInit;
    PVOID DriverStartIo;
    DRIVER_UNLOAD *DriverUnload;
    PVOID MajorFunction[28];
} DRIVER_OBJECT, *PDRIVER_OBJECT;
LAYOUT(DRIVER_OBJECT, sizeof(DRIVER_OBJECT) == 0x150);
typedef struct _PS_CREATE_NOTIFY_INFO {
    SIZE_T Size;
    ULONG Flags;
    HANDLE ParentProcessId;
    CLIENT_ID CreatingThreadId;
    PVOID FileObject;
    PCUNICODE_STRING ImageFileName, CommandLine;
    NTSTATUS CreationStatus;
} PS_CREATE_NOTIFY_INFO, *PPS_CREATE_NOTIFY_INFO;
LAYOUT(PS_CREATE_NOTIFY_INFO, sizeof(PS_CREATE_NOTIFY_INFO) == 0x48);
typedef struct _PHYSICAL_MEMORY_RUN {
    PFN_NUMBER BasePage, PageCount;
} PHYSICAL_MEMORY_RUN;
typedef struct _PHYSICAL_MEMORY_DESCRIPTOR {
    ULONG NumberOfRuns;
    PFN_NUMBER NumberOfPages;
    PHYSICAL_MEMORY_RUN Run[40];
} PHYSICAL_MEMORY_DESCRIPTOR;
/* Handed over by the boot loader, in memory that stays mapped through the direct map. */
typedef struct _LOADER_PARAMETER_BLOCK {
    ULONG Size, RegionCount;
    ULONG64 KernelBase, KernelSize, KernelPhysical; /* one physically contiguous image */
    ULONG64 PageTableRoot;
    ULONG64 FirstFreePage; /* pages below this one, from 1 MiB on, are the loader's and in use */
    ULONG64 Entropy;
    ULONG64 StackTop;
    struct {
        ULONG64 Base, Length;
        ULONG Type, Attributes; /* BIOS e820: 1 = usable */
    } Region[32];
} LOADER_PARAMETER_BLOCK, *PLOADER_PARAMETER_BLOCK;
