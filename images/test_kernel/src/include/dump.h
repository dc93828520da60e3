/* Crash dump files as Windows writes them. Layouts: the structures of kdmp-parser (MIT) and
 * LeechCore, checked against real headers. Fields that are not written hold "PAGE". */
#pragma once
#include "ki.h"

#define DUMP_SIGNATURE    0x45474150 /* "PAGE" */
#define DUMP_VALID        0x34365544 /* "DU64" */
#define DUMP_HEADER_BYTES 0x2000
enum { DUMP_TYPE_FULL = 1, DUMP_TYPE_BITMAP_KERNEL = 6 };
typedef struct _DUMP_HEADER64 {
    ULONG Signature, ValidDump, MajorVersion, MinorVersion;
    ULONG64 DirectoryTableBase, PfnDataBase, PsLoadedModuleList, PsActiveProcessHead;
    ULONG MachineImageType, NumberProcessors, BugCheckCode, Pad0;
    ULONG64 BugCheckParameter[4];
    CHAR VersionUser[32];
    ULONG64 KdDebuggerDataBlock;
    union {
        PHYSICAL_MEMORY_DESCRIPTOR PhysicalMemoryBlock;
        UCHAR PhysicalMemoryBlockBuffer[704];
    };
    UCHAR ContextRecord[3000]; /* a CONTEXT, not aligned as one */
    EXCEPTION_RECORD Exception;
    ULONG DumpType, Pad1;
    ULONG64 RequiredDumpSpace; /* bytes of the whole dump */
    LONG64 SystemTime;
    CHAR Comment[128];
    ULONG64 SystemUpTime; /* 100 ns */
    ULONG MiniDumpFields, SecondaryDataState, ProductType, SuiteMask;
    UCHAR Reserved[4024];
} DUMP_HEADER64, *PDUMP_HEADER64;
ASSERT_OFFSET(DUMP_HEADER64, ContextRecord, 0x348);
ASSERT_OFFSET(DUMP_HEADER64, SystemUpTime, 0x1030);
ASSERT_SIZE(DUMP_HEADER64, DUMP_HEADER_BYTES);
typedef struct _BITMAP_DUMP {   /* at DUMP_HEADER_BYTES in bitmap dumps */
    ULONG Signature, ValidDump; /* "SDMP", "DUMP" */
    UCHAR Reserved[24];
    ULONG64 FirstPage, TotalPresentPages; /* FirstPage: file offset */
    ULONG64 Pages, Bitmap[]; /* Pages: bits; the file has the pages whose bits are set, in order */
} BITMAP_DUMP, *PBITMAP_DUMP;
ASSERT_OFFSET(BITMAP_DUMP, Bitmap, 0x38);
/* Finds out where pagefile.sys lies, for a crash from now on. */
void IopLocatePagefile(void);
