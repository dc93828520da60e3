/* Basic NT types, status codes and list helpers. Names and values are those of the public Windows
 * headers, so that drivers, debuggers and readers find what they expect. */
#pragma once
#include <stdarg.h>
#include <stddef.h>
typedef unsigned char UCHAR, BOOLEAN, KIRQL, *PUCHAR;
typedef char CHAR, *PCHAR;
typedef unsigned short USHORT, WCHAR, *PUSHORT, *PWSTR;
typedef const WCHAR *PCWSTR;
typedef const char *PCSTR;
typedef short SHORT;
typedef int LONG, NTSTATUS, *PLONG;
typedef unsigned int ULONG, *PULONG;
typedef long long LONG64, LONGLONG, *PLONG64;
typedef unsigned long long ULONG64, ULONGLONG, ULONG_PTR, SIZE_T, *PULONG64, *PSIZE_T;
typedef long long LONG_PTR;
typedef void *PVOID, *HANDLE, **PHANDLE;
typedef ULONG64 PFN_NUMBER, PHYSICAL;
typedef union _LARGE_INTEGER {
    struct {
        ULONG LowPart;
        LONG HighPart;
    };
    LONG64 QuadPart;
} LARGE_INTEGER, *PLARGE_INTEGER;
typedef struct _LIST_ENTRY {
    struct _LIST_ENTRY *Flink, *Blink;
} LIST_ENTRY, *PLIST_ENTRY;
typedef struct _UNICODE_STRING {
    USHORT Length, MaximumLength; /* bytes */
    PWSTR Buffer;
} UNICODE_STRING, *PUNICODE_STRING;
typedef const UNICODE_STRING *PCUNICODE_STRING;
typedef struct _ANSI_STRING {
    USHORT Length, MaximumLength;
    PCHAR Buffer;
} ANSI_STRING, *PANSI_STRING;
typedef const ANSI_STRING *PCANSI_STRING;
typedef struct _OBJECT_ATTRIBUTES {
    ULONG Length;
    HANDLE RootDirectory;
    PUNICODE_STRING ObjectName;
    ULONG Attributes;
    PVOID SecurityDescriptor, SecurityQualityOfService;
} OBJECT_ATTRIBUTES, *POBJECT_ATTRIBUTES;
typedef struct _IO_STATUS_BLOCK {
    union {
        NTSTATUS Status;
        PVOID Pointer;
    };
    ULONG_PTR Information;
} IO_STATUS_BLOCK, *PIO_STATUS_BLOCK;
typedef struct _CLIENT_ID {
    HANDLE UniqueProcess, UniqueThread;
} CLIENT_ID, *PCLIENT_ID;
#define TRUE  1
#define FALSE 0
#ifndef NULL
#define NULL ((void *)0)
#endif
#define PAGE_SIZE                          0x1000ULL
#define PAGE_SHIFT                         12
#define ROUND_TO_PAGES(n)                  (((ULONG64)(n) + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1))
#define BYTES_TO_PAGES(n)                  (ROUND_TO_PAGES(n) >> PAGE_SHIFT)
#define ARRAY_SIZE(a)                      (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b)                          ((a) < (b) ? (a) : (b))
#define MAX(a, b)                          ((a) > (b) ? (a) : (b))
#define CONTAINING_RECORD(p, type, field)  ((type *)((PUCHAR)(p)-offsetof(type, field)))
#define NTSYSAPI                           /* a driver may import it: the build exports it */
#define NORETURN                           __attribute__((noreturn))
#define NOINLINE                           __attribute__((noinline))
#define UNREFERENCED(x)                    ((void)(x))
#define AT(type, field, offset)            (offsetof(type, field) == (offset))
#define LAYOUT(type, test)                 _Static_assert(test, #type)
#define ASSERT_OFFSET(type, field, offset) LAYOUT(type, AT(type, field, offset))
#define ASSERT_SIZE(type, size)            _Static_assert(sizeof(type) == (size), #type)
#define NT_SUCCESS(s)                      ((NTSTATUS)(s) >= 0)
/* Leaves the calling function with the status of a call that failed. */
#define TRY(call)                                                                                  \
    do {                                                                                           \
        NTSTATUS Failed_ = (call);                                                                 \
        if (!NT_SUCCESS(Failed_)) return Failed_;                                                  \
    } while (0)
#define STATUS(code)                           ((NTSTATUS)(code))
#define STATUS_SUCCESS                         STATUS(0x00000000)
#define STATUS_TIMEOUT                         STATUS(0x00000102)
#define STATUS_BUFFER_OVERFLOW                 STATUS(0x80000005)
#define STATUS_NO_MORE_FILES                   STATUS(0x80000006)
#define STATUS_NO_MORE_ENTRIES                 STATUS(0x8000001A)
#define STATUS_BREAKPOINT                      STATUS(0x80000003)
#define STATUS_UNSUCCESSFUL                    STATUS(0xC0000001)
#define STATUS_INVALID_INFO_CLASS              STATUS(0xC0000003)
#define STATUS_INFO_LENGTH_MISMATCH            STATUS(0xC0000004)
#define STATUS_ACCESS_VIOLATION                STATUS(0xC0000005)
#define STATUS_INVALID_HANDLE                  STATUS(0xC0000008)
#define STATUS_INVALID_PARAMETER               STATUS(0xC000000D)
#define STATUS_NO_SUCH_DEVICE                  STATUS(0xC000000E)
#define STATUS_NO_SUCH_FILE                    STATUS(0xC000000F)
#define STATUS_INVALID_DEVICE_REQUEST          STATUS(0xC0000010)
#define STATUS_END_OF_FILE                     STATUS(0xC0000011)
#define STATUS_NO_MEMORY                       STATUS(0xC0000017)
#define STATUS_UNRECOGNIZED_VOLUME             STATUS(0xC000014F)
#define STATUS_ACCESS_DENIED                   STATUS(0xC0000022)
#define STATUS_BUFFER_TOO_SMALL                STATUS(0xC0000023)
#define STATUS_OBJECT_TYPE_MISMATCH            STATUS(0xC0000024)
#define STATUS_DISK_CORRUPT_ERROR              STATUS(0xC0000032)
#define STATUS_OBJECT_NAME_INVALID             STATUS(0xC0000033)
#define STATUS_OBJECT_NAME_NOT_FOUND           STATUS(0xC0000034)
#define STATUS_OBJECT_NAME_COLLISION           STATUS(0xC0000035)
#define STATUS_OBJECT_PATH_NOT_FOUND           STATUS(0xC000003A)
#define STATUS_SHARING_VIOLATION               STATUS(0xC0000043)
#define STATUS_INVALID_IMAGE_FORMAT            STATUS(0xC000007B)
#define STATUS_DISK_FULL                       STATUS(0xC000007F)
#define STATUS_INSUFFICIENT_RESOURCES          STATUS(0xC000009A)
#define STATUS_IO_TIMEOUT                      STATUS(0xC00000B5)
#define STATUS_KEY_DELETED                     STATUS(0xC000017C)
#define STATUS_FILE_IS_A_DIRECTORY             STATUS(0xC00000BA)
#define STATUS_NOT_SUPPORTED                   STATUS(0xC00000BB)
#define STATUS_DIRECTORY_NOT_EMPTY             STATUS(0xC0000101)
#define STATUS_NOT_A_DIRECTORY                 STATUS(0xC0000103)
#define STATUS_IMAGE_ALREADY_LOADED            STATUS(0xC000010E)
#define STATUS_ORDINAL_NOT_FOUND               STATUS(0xC0000138)
#define STATUS_ENTRYPOINT_NOT_FOUND            STATUS(0xC0000139)
#define STATUS_IO_DEVICE_ERROR                 STATUS(0xC0000185)
#define STATUS_IMAGE_MACHINE_TYPE_MISMATCH_EXE STATUS(0xC0000720)
#define STATUS_NOT_FOUND                       STATUS(0xC0000225)
static inline void InitializeListHead(PLIST_ENTRY Head) { Head->Flink = Head->Blink = Head; }
static inline BOOLEAN IsListEmpty(const LIST_ENTRY *Head) { return Head->Flink == Head; }
static inline void RemoveEntryList(PLIST_ENTRY Entry) {
    Entry->Blink->Flink = Entry->Flink;
    Entry->Flink->Blink = Entry->Blink;
    Entry->Flink = Entry->Blink = Entry;
}
static inline void InsertTailList(PLIST_ENTRY Head, PLIST_ENTRY Entry) {
    Entry->Flink = Head;
    Entry->Blink = Head->Blink;
    Head->Blink->Flink = Entry;
    Head->Blink = Entry;
}
static inline PLIST_ENTRY RemoveHeadList(PLIST_ENTRY Head) {
    PLIST_ENTRY Entry = Head->Flink;
    RemoveEntryList(Entry);
    return Entry;
}
