/* Crash dump files as Windows writes them. Layouts: the structures of kdmp-parser (MIT) and
 * LeechCore, checked against real headers. Fields that are not written hold "PAGE". */
#pragma once
#include "ki.h"

#define DUMP_SIGNATURE    0x45474150 /* "PAGE" */
#define DUMP_VALID        0x34365544 /* "DU64" */
#define DUMP_HEADER_BYTES 0x2000
enum { DUMP_TYPE_FULL = 1, DUMP_TYPE_BITMAP_FULL = 5, DUMP_TYPE_BITMAP_KERNEL = 6 };

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
    ULONG MiniDumpFields, SecondaryDataState, ProductType, SuiteMask, WriterStatus;
    UCHAR Unused0, KdSecondaryVersion, Unused1[2];
    ULONG Attributes, BootId;
    UCHAR Reserved[4008];
} DUMP_HEADER64, *PDUMP_HEADER64;
ASSERT_OFFSET(DUMP_HEADER64, BugCheckCode, 0x38);
ASSERT_OFFSET(DUMP_HEADER64, KdDebuggerDataBlock, 0x80);
ASSERT_OFFSET(DUMP_HEADER64, PhysicalMemoryBlock, 0x88);
ASSERT_OFFSET(DUMP_HEADER64, ContextRecord, 0x348);
ASSERT_OFFSET(DUMP_HEADER64, Exception, 0xF00);
ASSERT_OFFSET(DUMP_HEADER64, DumpType, 0xF98);
ASSERT_OFFSET(DUMP_HEADER64, RequiredDumpSpace, 0xFA0);
ASSERT_OFFSET(DUMP_HEADER64, SystemUpTime, 0x1030);
ASSERT_OFFSET(DUMP_HEADER64, BootId, 0x1054);
ASSERT_SIZE(DUMP_HEADER64, DUMP_HEADER_BYTES);

typedef struct _BITMAP_DUMP {   /* at DUMP_HEADER_BYTES in bitmap dumps */
    ULONG Signature, ValidDump; /* "SDMP", "DUMP" */
    UCHAR Reserved[24];
    ULONG64 FirstPage;                /* file offset */
    ULONG64 TotalPresentPages, Pages; /* Pages: bits, a multiple of 64 */
    ULONG64 Bitmap[];                 /* the file's pages are the set bits' frames, in order */
} BITMAP_DUMP, *PBITMAP_DUMP;
ASSERT_OFFSET(BITMAP_DUMP, Bitmap, 0x38);

/* Whole: a crash writes the sector that holds the signature last. */
static inline BOOLEAN IopIsDumpHeader(const DUMP_HEADER64 *Header) {
    return Header->Signature == DUMP_SIGNATURE && Header->ValidDump == DUMP_VALID;
}
/* Finds out where pagefile.sys lies, for a crash from now on. */
void IopLocatePagefile(void);
