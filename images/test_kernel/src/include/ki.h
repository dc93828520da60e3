/* What the parts of the kernel offer one another, by subject. Functions that drivers may import are
 * marked NTSYSAPI where they are defined. */
#pragma once
#include "ntstructs.h"
#include "ntapi.h"

/* -- processor ------------------------------------------------------------------------------ */
#define KI_PORT(Name, Type, Suffix)                                                                \
    static inline void __out##Name(USHORT Port, Type Value) {                                      \
        __asm__ volatile("out" Suffix " %0, %1" ::"a"(Value), "Nd"(Port));                         \
    }                                                                                              \
    static inline Type __in##Name(USHORT Port) {                                                   \
        Type Value;                                                                                \
        __asm__ volatile("in" Suffix " %1, %0" : "=a"(Value) : "Nd"(Port));                        \
        return Value;                                                                              \
    }
KI_PORT(byte, UCHAR, "b")
KI_PORT(word, USHORT, "w")
KI_PORT(dword, ULONG, "l")
static inline void KiDisable(void) { __asm__ volatile("cli" ::: "memory"); }
static inline void KiEnable(void) { __asm__ volatile("sti" ::: "memory"); }
static inline ULONG64 KiReadTsc(void) {
    ULONG Low, High;
    __asm__ volatile("rdtsc" : "=a"(Low), "=d"(High));
    return (ULONG64)High << 32 | Low;
}
extern KPCR KiPcr;
static inline PETHREAD PsGetCurrentThread_(void) {
    PETHREAD Thread;
    __asm__ volatile("movq %%gs:0x188, %0" : "=r"(Thread));
    return Thread;
}
#define DISPATCH_LEVEL 2
#define HIGH_LEVEL     15
extern PLOADER_PARAMETER_BLOCK KeLoaderBlock;
extern ULONG64 KiRandomState;
ULONG64 KiRandom(void); /* xorshift, for pool and image layout; not for secrets */

/* -- locks, time, threads (ke) ---------------------------------------------------------------- */
/* A lock whose owner may wait: file system, registry, agent. Not recursive. */
typedef struct _FAST_MUTEX_ {
    KEVENT Gate;
    PKTHREAD Owner;
} KI_MUTEX, *PKI_MUTEX;
void KiAcquireMutex(PKI_MUTEX Mutex); /* nothing before the scheduler runs and after a crash */
void KiReleaseMutex(PKI_MUTEX Mutex);
extern BOOLEAN KiSchedulerRunning;
ULONG64 KiQueryInterruptTime(void); /* 100 ns since start, advanced by the clock interrupt */
LONG64 KiQuerySystemTime(void);     /* FILETIME: 100 ns since 1601, UTC */
void KiSetSystemTime(LONG64 SystemTime);
void KiStallMicroseconds(ULONG Microseconds); /* busy wait, usable at any IRQL and in a crash */
NTSTATUS KiStartThread(KSTART_ROUTINE *Start, PVOID Context, PETHREAD *Thread);
void KiSleep(ULONG Milliseconds);
typedef struct _KI_DATE {
    ULONG Year, Month, Day, Hour, Minute, Second, Milliseconds, Weekday;
} KI_DATE;
void KiTimeToDate(LONG64 SystemTime, KI_DATE *Date);
LONG64 KiDateToTime(const KI_DATE *Date);

/* -- memory (mm) ------------------------------------------------------------------------------ */
#define MI_DIRECT_MAP 0xffffa80000000000ULL /* all physical memory; not a Windows region */
#define MI_PTE_BASE   0xfffff68000000000ULL
#define MI_SHARED     0xfffff78000000000ULL /* KUSER_SHARED_DATA */
#define MI_USER_LIMIT 0x00007fffffff0000ULL
enum { MI_WRITE = 1, MI_EXECUTE = 2 };
static inline PVOID MiPhysicalToVirtual(PHYSICAL Address) {
    return (PVOID)(MI_DIRECT_MAP + Address);
}
PHYSICAL MiGetPhysicalAddress(const void *Virtual); /* 0 where nothing is mapped */
BOOLEAN MiIsAddressValid(const void *Virtual);
PHYSICAL MiAllocatePages(ULONG Count); /* physically contiguous, zeroed; 0 when none are left */
void MiFreePages(PHYSICAL Address, ULONG Count);
BOOLEAN MiIsPageInUse(PFN_NUMBER Page); /* what a kernel dump holds */
NTSTATUS MiMapPage(PVOID Virtual, PHYSICAL Physical, ULONG Protection);
void MiUnmapPage(PVOID Virtual);
PVOID MiReserveSystemSpace(SIZE_T Bytes); /* address space for an image, at a random 64 KiB step */
extern PHYSICAL_MEMORY_DESCRIPTOR MmPhysicalMemoryBlock;
extern PFN_NUMBER MmHighestPhysicalPage;

/* -- disk and files (io) ---------------------------------------------------------------------- */
/* IDE primary master, LBA28, polled bus-master DMA; usable at any IRQL and in a crash. `Buffer` is
 * any mapped kernel address (the loader passes identity-mapped ones). */
NTSTATUS HalDiskInitialize(void);
void HalDiskReset(void); /* before crash writes: whatever was under way is abandoned */
NTSTATUS HalDiskRead(ULONG64 Lba, ULONG Sectors, PVOID Buffer);
NTSTATUS HalDiskWrite(ULONG64 Lba, ULONG Sectors, const void *Buffer);
NTSTATUS HalDiskFlush(void);
PHYSICAL HalPhysicalAddress(const void *Virtual); /* for DMA: supplied by kernel and by loader */
/* FAT32 with long names on the first partition. Paths are ASCII, relative to the volume's root,
 * with backslashes ("Windows\\System32\\x.sys"), compared without case. All lock the volume. */
typedef struct _FAT_FILE {
    ULONG FirstCluster, Size, DirectoryCluster, EntryIndex; /* EntryIndex: of the 8.3 entry */
    LONG64 WriteTime, CreateTime;                           /* FILETIME */
    UCHAR Attributes;                                       /* 0x10 directory */
    CHAR Name[256];
    UCHAR ShortName[11]; /* with EntryIndex, tells whether the entry is still this file's */
} FAT_FILE, *PFAT_FILE;
typedef struct _FAT_EXTENT {
    ULONG64 Lba; /* absolute sector on the disk */
    ULONG Sectors;
} FAT_EXTENT;
NTSTATUS FatMount(void);
NTSTATUS FatOpen(PCSTR Path, PFAT_FILE File);                      /* file or directory */
NTSTATUS FatCreate(PCSTR Path, BOOLEAN Directory, PFAT_FILE File); /* name collision is an error */
NTSTATUS FatRead(PFAT_FILE File, ULONG Offset, PVOID Buffer, ULONG Length, PULONG Done);
NTSTATUS FatWrite(PFAT_FILE File, ULONG Offset, const void *Buffer, ULONG Length, PULONG Done);
NTSTATUS FatSetSize(PFAT_FILE File, ULONG Size);   /* grows (contents undefined) or cuts */
NTSTATUS FatRename(PFAT_FILE File, PCSTR NewName); /* within its directory */
NTSTATUS FatDelete(PFAT_FILE File);
NTSTATUS FatReadDirectory(PFAT_FILE Directory, PULONG Cursor, PFAT_FILE Entry); /* NO_MORE_FILES */
NTSTATUS FatGetExtents(PFAT_FILE File, FAT_EXTENT *Extents, ULONG Maximum, PULONG Count);
/* Convenience: a whole small file into pool (NUL appended, caller frees), and back. */
NTSTATUS FatLoadFile(PCSTR Path, PVOID *Buffer, PULONG Size);
NTSTATUS FatStoreFile(PCSTR Path, const void *Buffer, ULONG Size);
/* "\SystemRoot\x", "\??\C:\x", "C:\x", "%SystemRoot%\x", "System32\drivers\x" -> volume path */
NTSTATUS IopVolumePath(PCSTR NtPath, PCHAR Path, ULONG Size);
NTSTATUS IopVolumePathFromUnicode(PCUNICODE_STRING NtPath, PCHAR Path, ULONG Size);
/* Crash dump: prepared at boot (extents of pagefile.sys resolved, buffers allocated), written by
 * KeBugCheck2 with everything stopped; moved aside and copied to DumpFile by the next good boot. */
void IopInitializeCrashDump(void);
ULONG IopCrashDumpType(void);    /* CrashControl\CrashDumpEnabled as it will be used */
BOOLEAN IopWriteCrashDump(void); /* FALSE: none was written; IopDumpFailure says why */
extern PCSTR IopDumpFailure;
extern void (*IopDumpProgress)(ULONG Percent);
void IopCopyCrashDump(void); /* session manager: the pagefile moves aside, a thread copies */

/* -- registry (cm) ---------------------------------------------------------------------------- */
/* The SYSTEM.reg text in memory; every change is written back. Key paths are full, ASCII
 * ("HKEY_LOCAL_MACHINE\\SYSTEM\\CurrentControlSet\\..."; HKLM accepted), compared without case. */
enum { REG_NONE = 0, REG_SZ = 1, REG_EXPAND_SZ = 2, REG_BINARY = 3, REG_DWORD = 4 };
typedef struct _CM_VALUE {
    LIST_ENTRY Link;
    ULONG Type, Length; /* bytes in Data; strings are ASCII, NUL-terminated, one char a byte */
    PUCHAR Data;
    CHAR Name[64];
} CM_VALUE, *PCM_VALUE;
typedef struct _CM_KEY {
    LIST_ENTRY Link;     /* in the order of the file */
    LIST_ENTRY Values;   /* CM_VALUE.Link */
    PCSTR Path;          /* full, canonical root name */
    NTSTATUS LoadStatus; /* of a service: how the last attempt to load its driver ended */
} CM_KEY, *PCM_KEY;
void CmInitialize(void);
PCM_KEY CmFindKey(PCSTR Path);
PCM_KEY CmNextSubkey(PCSTR Path, PCM_KEY Previous); /* direct children; NULL at the end */
PCM_VALUE CmFindValue(PCM_KEY Key, PCSTR Name);
ULONG CmQueryDword(PCSTR Path, PCSTR Name, ULONG Default);
NTSTATUS CmQueryString(PCSTR Path, PCSTR Name, PCHAR Buffer, ULONG Size);
NTSTATUS CmSetValue(
    PCSTR Path, PCSTR Name, ULONG Type, const void *Data, ULONG Length); /* makes keys */
NTSTATUS CmDeleteValue(PCSTR Path, PCSTR Name);
NTSTATUS CmDeleteKey(PCSTR Path); /* and its subkeys */
#define CM_SERVICES      "HKEY_LOCAL_MACHINE\\SYSTEM\\CurrentControlSet\\Services"
#define CM_CRASH_CONTROL "HKEY_LOCAL_MACHINE\\SYSTEM\\CurrentControlSet\\Control\\CrashControl"

/* -- drivers (io/driver) ---------------------------------------------------------------------- */
extern LIST_ENTRY PsLoadedModuleList;
void IopInitializeModuleList(void); /* the kernel itself, the first module */
typedef struct _IO_DRIVER {
    LIST_ENTRY Link;
    DRIVER_OBJECT Object;
    CHAR Service[64];
    UNICODE_STRING RegistryPath;
} IO_DRIVER, *PIO_DRIVER;
extern LIST_ENTRY IopDrivers;
/* Maps, links, calls DriverEntry. The result is kept in the service key's LoadStatus. */
NTSTATUS IopLoadDriver(PCSTR Service);
extern CHAR IopLoadError[160]; /* of the last load: names file and import; empty: nothing to add */
NTSTATUS IopUnloadDriver(PCSTR Service); /* NOT_FOUND; NOT_SUPPORTED without DriverUnload */
PIO_DRIVER IopFindDriver(PCSTR Service);
void IopLoadDrivers(ULONG Start); /* a start type: 0 boot, 1 system, 2 automatic */
PKLDR_DATA_TABLE_ENTRY MiModuleFromAddress(ULONG64 Address);

/* -- processes (ps) --------------------------------------------------------------------------- */
extern LIST_ENTRY PsActiveProcessHead;
extern PEPROCESS PsInitialSystemProcess;
/* A process of the scripted source: it runs no code, but notify callbacks see it come and go. */
PEPROCESS PspCreateProcess(PCSTR ImagePath, PCSTR CommandLine, PEPROCESS Parent, NTSTATUS *Status);
void PspExitProcess(PEPROCESS Process);

/* -- machine (hal) ---------------------------------------------------------------------------- */
ULONG HalPciRead(ULONG Bus, ULONG Device, ULONG Function, ULONG Offset);
void HalPciWrite(ULONG Bus, ULONG Device, ULONG Function, ULONG Offset, ULONG Value);
BOOLEAN HalPciFind(USHORT Vendor, USHORT DeviceId, ULONG *Device, ULONG *Function); /* bus 0 */
void HalSerialInitialize(void);
void HalSerialWrite(PCSTR Text, SIZE_T Length); /* COM1, polled; a line feed becomes CR LF */
void HalSerialPrint(PCSTR Format, ...);         /* at most 1,023 characters */
int HalSerialRead(void);                        /* a byte, or -1 */
void HalDebugPrint(PCSTR Text);                 /* port 0xE9 */
NORETURN void HalReboot(void);
NORETURN void HalPowerOff(void);
NORETURN void HalHalt(void); /* interrupts off, for good */
enum { PVPANIC_PANICKED = 1, PVPANIC_CRASHLOADED = 2 };
void HalPvpanic(UCHAR Event);
void HalPublishVmcoreinfo(PVOID DumpHeader); /* 8 KiB DUMP_HEADER64 through fw_cfg etc/vmcoreinfo */
void HalScreenClear(UCHAR Attribute);
void HalScreenPrint(ULONG Row, ULONG Column, UCHAR Attribute, PCSTR Text);
void HalKeyboardInitialize(void);
BOOLEAN HalKeyboardInterrupt(void); /* IRQ1: TRUE when Ctrl+ScrollLock came twice */
int HalKeyboardPoll(void);          /* without interrupts: a make scan code, or -1 */
void HalAcpiInitialize(void);
ULONG HalReadPmTimer(void);
BOOLEAN HalPowerButtonPressed(void); /* and forgets it */
LONG64 HalReadRtc(void);

/* -- crash (ke/bugcheck) ---------------------------------------------------------------------- */
extern ULONG64 KiBugcheckData[5];
extern PVOID KiDumpHeader; /* 0x2000 bytes, DUMP_HEADER64, ready at boot */
extern BOOLEAN KiCrashing; /* no locks, no interrupts from here on */

/* -- session, agent --------------------------------------------------------------------------- */
void SmpStart(void);               /* session manager: processes, dump copying, services, agent */
void QgaStart(void);               /* guest agent thread over virtio-serial */
void SacThread(PVOID Context);     /* emergency console on COM1 */
void SacTellBugCheck(void);        /* what EMS sends in-band, and the prompt that follows */
NORETURN void SacAfterCrash(void); /* the prompt of a machine that stays as it is */
void BootStatusBegin(void); /* counts this boot as failed; shows the repair screen past the limit */
void BootStatusSucceed(void);            /* the boot got far enough: failed = 0 */
void PopRequestShutdown(BOOLEAN Reboot); /* orderly: disk flushed, then off or reset */

/* -- text (rtl) ------------------------------------------------------------------------------- */
/* %d %i %u %x %X %p %c %s %S %Z with '-', '0', width, precision, '*', l or w (%ws, %wZ), ll, I64.
 * Always terminated (Size > 0); return: characters stored without the NUL, never more than fit. */
int RtlFormat(PCHAR Buffer, SIZE_T Size, PCSTR Format, ...);
int RtlFormatV(PCHAR Buffer, SIZE_T Size, PCSTR Format, va_list Arguments);
#define KD_PRINT_BUFFER_SIZE 0x2000
extern CHAR KdPrintCircularBuffer[KD_PRINT_BUFFER_SIZE]; /* debug text, a ring; named in KDBG */
extern PCHAR KdPrintWritePointer;                        /* where the next character goes */
extern ULONG KdPrintRolloverCount;
SIZE_T strlen(PCSTR Text);
int strcmp(PCSTR A, PCSTR B);
int strncmp(PCSTR A, PCSTR B, SIZE_T Count);
PCHAR strchr(PCSTR Text, int Character);
PCHAR strstr(PCSTR Text, PCSTR Part);
int RtlCompareTextInsensitive(PCSTR A, PCSTR B);
int RtlCompareTextInsensitiveN(PCSTR A, PCSTR B, SIZE_T Count);
void RtlCopyText(PCHAR Target, SIZE_T Size, PCSTR Source); /* always terminated */
void RtlUnicodeToText(PCUNICODE_STRING Source, PCHAR Target, SIZE_T Size);
NTSTATUS RtlTextToUnicode(PCSTR Source, PUNICODE_STRING Target);  /* allocates Buffer */
BOOLEAN RtlTextToInteger(PCSTR Text, ULONG Base, ULONG64 *Value); /* all; base 0: 0x too */
static inline PVOID KiAllocate(SIZE_T Bytes) { return ExAllocatePoolWithTag(0, Bytes, 'leK '); }
static inline void KiFree(PVOID Block) { ExFreePoolWithTag(Block, 0); }
