// TEMPLATE_PROCESS: matches each process creation against the instances of the content.
//
// This is the path of 19 July 2024. The template type defines 21 fields; the code below supplies
// inputs for 20 of them. Content that leaves the 21st a wildcard never asks for it.
#include "sensor.h"

#define PROCESS_INPUTS_SUPPLIED 20

enum { FIELD_NUMBER, FIELD_TEXT };

typedef struct _SENSOR_FIELD {
    ULONG Kind;
    ULONG Length; // of Text, in bytes
    union {
        ULONG64 Number;
        PCWSTR Text;
    };
} SENSOR_FIELD, *PSENSOR_FIELD;

typedef struct _PROCESS_EVENT {
    SENSOR_FIELD Fields[PROCESS_INPUTS_SUPPLIED];
    WCHAR ImagePath[260];
    WCHAR CommandLine[512];
} PROCESS_EVENT, *PPROCESS_EVENT;

// One evaluation, on the stack of the callback.
typedef struct _PROCESS_EVALUATION {
    const SENSOR_FIELD *Inputs[PROCESS_INPUTS_SUPPLIED];
    PWCHAR NormalizeCursor; // where the next text goes in the normalizer's buffer
} PROCESS_EVALUATION, *PPROCESS_EVALUATION;

#define NORMALIZE_BYTES (2 * PAGE_SIZE) // the longest path and command line kept, with room

static volatile LONG ProcessesCreated;
static volatile LONG64 EventSequence;

ULONG TakeProcessCount(VOID) {
    return (ULONG)InterlockedExchange(&ProcessesCreated, 0);
}

static VOID SetNumber(PSENSOR_FIELD Field, ULONG64 Number) {
    Field->Kind = FIELD_NUMBER;
    Field->Length = sizeof(Number);
    Field->Number = Number;
}

static VOID SetText(PSENSOR_FIELD Field, PCWSTR Text, SIZE_T Characters) {
    Field->Kind = FIELD_TEXT;
    Field->Length = (ULONG)(Characters * sizeof(WCHAR));
    Field->Text = Text;
}

// Lower-cases `Source` at the cursor, moves the cursor behind it, and copies the result to
// `Target` (of `Capacity` characters). Returns its length in characters.
static SIZE_T NormalizeText(PPROCESS_EVALUATION Evaluation, PCUNICODE_STRING Source, PWCHAR Target,
                            SIZE_T Capacity) {
    PWCHAR Start = Evaluation->NormalizeCursor;
    SIZE_T Characters = Source == NULL ? 0 : Source->Length / sizeof(WCHAR);
    if (Characters >= Capacity)
        Characters = Capacity - 1;
    for (SIZE_T Index = 0; Index < Characters; Index++) {
        WCHAR Character = Source->Buffer[Index];
        *Evaluation->NormalizeCursor++ =
            Character >= L'A' && Character <= L'Z' ? Character + (L'a' - L'A') : Character;
    }
    *Evaluation->NormalizeCursor++ = L'\0';
    memcpy(Target, Start, (Characters + 1) * sizeof(WCHAR));
    return Characters;
}

// The number of characters before the last `Mark` in `Text`, or `Otherwise` where there is none.
static SIZE_T LastOf(PCWSTR Text, SIZE_T Characters, WCHAR Mark, SIZE_T Otherwise) {
    for (SIZE_T Index = Characters; Index > 0; Index--) {
        if (Text[Index - 1] == Mark)
            return Index - 1;
    }
    return Otherwise;
}

static VOID SupplyImage(PPROCESS_EVENT Event, SIZE_T Characters) {
    PCWSTR Path = Event->ImagePath;
    SIZE_T Slash = LastOf(Path, Characters, L'\\', 0);
    SIZE_T Name = Characters > 0 && Path[Slash] == L'\\' ? Slash + 1 : 0;
    SIZE_T Dot = LastOf(Path, Characters, L'.', Characters);
    if (Dot < Name)
        Dot = Characters;
    ULONG Depth = 0;
    for (SIZE_T Index = 0; Index < Characters; Index++)
        Depth += Path[Index] == L'\\';
    SetText(&Event->Fields[7], Path, Characters);
    SetText(&Event->Fields[8], Path, Slash);
    SetText(&Event->Fields[9], Path + Name, Characters - Name);
    SetText(&Event->Fields[10], Path + Dot, Characters - Dot);
    SetNumber(&Event->Fields[11], Characters);
    SetNumber(&Event->Fields[12], Depth);
}

static VOID SupplyCommandLine(PPROCESS_EVENT Event, SIZE_T Characters) {
    PCWSTR Line = Event->CommandLine;
    SIZE_T Program = 0;
    while (Program < Characters && Line[Program] != L' ')
        Program++;
    SIZE_T Arguments = Program;
    while (Arguments < Characters && Line[Arguments] == L' ')
        Arguments++;
    SetText(&Event->Fields[13], Line, Characters);
    SetText(&Event->Fields[14], Line, Program);
    SetText(&Event->Fields[15], Line + Arguments, Characters - Arguments);
    SetNumber(&Event->Fields[16], Characters);
}

// The integration code: fills the event, and points the 20 inputs at its fields.
static BOOLEAN SupplyInputs(PPROCESS_EVALUATION Evaluation, PPROCESS_EVENT Event, HANDLE ProcessId,
                            PPS_CREATE_NOTIFY_INFO CreateInfo) {
    PVOID Buffer = ExAllocatePoolWithTag(PagedPool, NORMALIZE_BYTES, SENSOR_TAG);
    if (Buffer == NULL)
        return FALSE;
    Evaluation->NormalizeCursor = Buffer;
    SIZE_T Path = NormalizeText(Evaluation, CreateInfo->ImageFileName, Event->ImagePath,
                                RTL_NUMBER_OF(Event->ImagePath));
    SIZE_T Line = NormalizeText(Evaluation, CreateInfo->CommandLine, Event->CommandLine,
                                RTL_NUMBER_OF(Event->CommandLine));
    // The cursor still points into the buffer that goes here. Nothing uses it again, or so it was
    // thought: it lies directly behind Inputs[19].
    ExFreePoolWithTag(Buffer, SENSOR_TAG);

    PSENSOR_FIELD Fields = Event->Fields;
    SetNumber(&Fields[0], (ULONG64)InterlockedIncrement64(&EventSequence));
    SetNumber(&Fields[1], (ULONG_PTR)ProcessId);
    SetNumber(&Fields[2], (ULONG_PTR)CreateInfo->ParentProcessId);
    SetNumber(&Fields[3], (ULONG_PTR)CreateInfo->CreatingThreadId.UniqueProcess);
    SetNumber(&Fields[4], (ULONG_PTR)CreateInfo->CreatingThreadId.UniqueThread);
    SetNumber(&Fields[5], (ULONG_PTR)PsGetCurrentProcessId());
    SetNumber(&Fields[6], (ULONG_PTR)PsGetCurrentThreadId());
    SupplyImage(Event, Path);
    SupplyCommandLine(Event, Line);
    SetNumber(&Fields[17], CreateInfo->Flags);
    SetNumber(&Fields[18], CreateInfo->FileObject != NULL);
    SetNumber(&Fields[19], (ULONG64)KeQueryPerformanceCounter(NULL).QuadPart);
    // The template type's 21st field, the name the image file was opened by, was defined later.

    for (ULONG Index = 0; Index < PROCESS_INPUTS_SUPPLIED; Index++)
        Evaluation->Inputs[Index] = &Fields[Index];
    return TRUE;
}

SENSOR_CHAIN BOOLEAN MatchField(const SENSOR_FIELD *const *Inputs, ULONG Index,
                                const CONTENT_CRITERION *Criterion) {
    const SENSOR_FIELD *Input = Inputs[Index];
    if (Input == NULL)
        return FALSE;
    if (Input->Kind == FIELD_NUMBER) {
        return Criterion->Operator == CRITERION_NUMBER &&
               CriterionNumber(Criterion, 0) == Input->Number;
    }
    if (Criterion->Operator == CRITERION_NUMBER || Input->Length < Criterion->ValueLength ||
        (Criterion->Operator == CRITERION_EQUALS && Input->Length != Criterion->ValueLength))
        return FALSE;
    return RtlCompareMemory(Input->Text, CriterionValue(Criterion), Criterion->ValueLength) ==
           Criterion->ValueLength;
}

SENSOR_CHAIN BOOLEAN EvaluateInstance(const SENSOR_FIELD *const *Inputs,
                                      const CONTENT_INSTANCE *Instance) {
    const CONTENT_CRITERION *Criterion = FirstCriterion(Instance);
    for (ULONG Index = 0; Index < Instance->CriteriaCount; Index++) {
        if (Criterion->Operator != CRITERION_WILDCARD) {
#if SENSOR_BOUNDS_CHECK
            if (Index >= PROCESS_INPUTS_SUPPLIED) {
                SensorPrint("instance %u rejected: field %u asked for, %u inputs supplied\n",
                            Instance->InstanceId, Index + 1, PROCESS_INPUTS_SUPPLIED);
                return FALSE;
            }
#endif
            if (!MatchField(Inputs, Index, Criterion))
                return FALSE;
        }
        Criterion = NextCriterion(Criterion);
    }
    return TRUE;
}

SENSOR_CHAIN ULONG EvaluateTemplate(const SENSOR_FIELD *const *Inputs,
                                    const SENSOR_CONTENT *Content) {
    const CONTENT_INSTANCE *Instance = FirstInstance(Content);
    ULONG Matches = 0;
    for (ULONG Index = 0; Index < Content->Header.InstanceCount; Index++) {
        if (EvaluateInstance(Inputs, Instance)) {
            SensorPrint("instance %u matches process %u\n", Instance->InstanceId,
                        (ULONG)Inputs[1]->Number);
            Matches++;
        }
        const CONTENT_CRITERION *Criterion = FirstCriterion(Instance);
        for (ULONG Skipped = 0; Skipped < Instance->CriteriaCount; Skipped++)
            Criterion = NextCriterion(Criterion);
        Instance = (const CONTENT_INSTANCE *)Criterion;
    }
    return Matches;
}

SENSOR_CHAIN ULONG EvaluateProcess(const SENSOR_CONTENT *Content, PPROCESS_EVENT Event,
                                   HANDLE ProcessId, PPS_CREATE_NOTIFY_INFO CreateInfo) {
    PROCESS_EVALUATION Evaluation;
    if (!SupplyInputs(&Evaluation, Event, ProcessId, CreateInfo))
        return 0;
    return EvaluateTemplate(Evaluation.Inputs, Content);
}

// Called by the kernel at PASSIVE_LEVEL in the creating thread; CreateInfo is NULL at an exit.
VOID SensorProcessNotify(PEPROCESS Process, HANDLE ProcessId, PPS_CREATE_NOTIFY_INFO CreateInfo) {
    UNREFERENCED_PARAMETER(Process);
    if (CreateInfo == NULL)
        return;
    InterlockedIncrement(&ProcessesCreated);
    PSENSOR_CONTENT Content = AcquireContent(TEMPLATE_PROCESS);
    if (Content == NULL)
        return;
    PPROCESS_EVENT Event = ExAllocatePoolWithTag(NonPagedPoolNx, sizeof(*Event), SENSOR_TAG);
    if (Event != NULL) {
        EvaluateProcess(Content, Event, ProcessId, CreateInfo);
        ExFreePoolWithTag(Event, SENSOR_TAG);
    }
    ReleaseContent(Content);
}
