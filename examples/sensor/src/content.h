// Content files: their layout (FORMAT.md) and their life in memory.
#pragma once
#include "ddk.h"

#define CONTENT_MAGIC          0xAAAAAAAAu
#define CONTENT_FORMAT_VERSION 1
#define CONTENT_CHANNEL        291
#define CONTENT_MAX_BYTES      65536
#define CONTENT_MAX_INSTANCES  64

#pragma pack(push, 1)
typedef struct _CONTENT_HEADER {
    ULONG Magic;
    USHORT FormatVersion;
    USHORT TemplateType;
    ULONG Channel;
    ULONG ContentVersion;
    ULONG InstanceCount;
    ULONG TotalLength; // of the file, in bytes
} CONTENT_HEADER;

typedef struct _CONTENT_INSTANCE {
    ULONG InstanceId;
    ULONG Length; // of the instance with its criteria, in bytes
    ULONG CriteriaCount;
    // CONTENT_CRITERION Criteria[CriteriaCount], packed
} CONTENT_INSTANCE;

typedef struct _CONTENT_CRITERION {
    UCHAR Operator;
    UCHAR Reserved;
    USHORT ValueLength; // in bytes
    // UCHAR Value[ValueLength]
} CONTENT_CRITERION;
#pragma pack(pop)

enum { CRITERION_WILDCARD, CRITERION_EQUALS, CRITERION_PREFIX, CRITERION_NUMBER };

// What a content file is evaluated against.
enum {
    TEMPLATE_PROCESS = 1, // each process creation
    TEMPLATE_RATE = 2,    // process creations over a sliding window, from the timer
    TEMPLATE_OWNER = 3,   // the owner table, from the worker thread
    TEMPLATE_BURST = 4,   // process creations since the last tick, from the timer
};

#define PROCESS_FIELDS_DEFINED 21

// A sliding window of process counts, one bucket a timer tick.
#define MAX_RATE_WINDOWS 8
typedef struct _RATE_WINDOW {
    ULONG InstanceId;
    ULONG BucketCount;
    ULONG TicksLeft; // 0: never retired
    ULONG Position;
    PULONG64 Buckets;
} RATE_WINDOW, *PRATE_WINDOW;

// A loaded content file, shared by reference count between callbacks, timer and worker thread.
typedef struct _SENSOR_CONTENT {
    LONG References;
    ULONG RateWindowCount;
    RATE_WINDOW RateWindows[MAX_RATE_WINDOWS];
    CONTENT_HEADER Header; // and behind it, the rest of the file as read
} SENSOR_CONTENT, *PSENSOR_CONTENT;

// The directory entry a content file was loaded from: a change in any of it means "load again".
typedef struct _CONTENT_FILE {
    WCHAR Name[64]; // empty: there is none
    LONGLONG Size;
    LONGLONG LastWriteTime;
} CONTENT_FILE, *PCONTENT_FILE;

VOID InitializeContent(VOID);
VOID RefreshContent(VOID);
VOID DiscardContent(VOID);
PSENSOR_CONTENT AcquireContent(USHORT TemplateType);
VOID ReleaseContent(PSENSOR_CONTENT Content);

static inline const CONTENT_INSTANCE *FirstInstance(const SENSOR_CONTENT *Content) {
    return (const CONTENT_INSTANCE *)(&Content->Header + 1);
}

static inline const CONTENT_CRITERION *FirstCriterion(const CONTENT_INSTANCE *Instance) {
    return (const CONTENT_CRITERION *)(Instance + 1);
}

static inline const UCHAR *CriterionValue(const CONTENT_CRITERION *Criterion) {
    return (const UCHAR *)(Criterion + 1);
}

static inline const CONTENT_CRITERION *NextCriterion(const CONTENT_CRITERION *Criterion) {
    return (const CONTENT_CRITERION *)(CriterionValue(Criterion) + Criterion->ValueLength);
}

// The number of a CRITERION_NUMBER; a wildcard stands for `Otherwise`.
static inline ULONG64 CriterionNumber(const CONTENT_CRITERION *Criterion, ULONG64 Otherwise) {
    if (Criterion->Operator != CRITERION_NUMBER)
        return Otherwise;
    return *(UNALIGNED const ULONG64 *)CriterionValue(Criterion);
}
