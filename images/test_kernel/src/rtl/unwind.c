/* Walking x64 stacks by the unwind data of PE images. Format: "x64 exception handling" in
 * Microsoft's C++ documentation; version 2 (epilogue codes) as Windows' own drivers carry it.
 * Stacks and images may be damaged when this runs: every pointer is checked, and a frame that makes
 * no sense ends the walk with Rip = 0. */
#include "ki.h"

/* Operations of unwind codes; 7 is spare. */
enum { UWOP_PUSH_NONVOL, UWOP_ALLOC_LARGE, UWOP_ALLOC_SMALL, UWOP_SET_FPREG, UWOP_SAVE_NONVOL };
enum { UWOP_SAVE_NONVOL_FAR = 5, UWOP_EPILOG, UWOP_SAVE_XMM128 = 8, UWOP_SAVE_XMM128_FAR };
enum { UWOP_PUSH_MACHFRAME = 10, UWOP_COUNT };
#define RTL_CHAIN_LIMIT 32

typedef union _UNWIND_CODE {
    struct {
        UCHAR Offset, Operation : 4, Info : 4;
    };
    USHORT Word;
} UNWIND_CODE, *PUNWIND_CODE;

typedef struct _UNWIND_INFO {
    UCHAR Version : 3, Flags : 5, SizeOfProlog, CountOfCodes, FrameRegister : 4, FrameOffset : 4;
    UNWIND_CODE Code[]; /* then, at an even index: handler RVA and its data, or the chained entry */
} UNWIND_INFO, *PUNWIND_INFO;

static BOOLEAN RtlpIsReadable(ULONG64 Address, ULONG Bytes) {
    return MiIsAddressValid((PVOID)Address) && MiIsAddressValid((PVOID)(Address + Bytes - 1));
}

static BOOLEAN RtlpRead(ULONG64 Address, PULONG64 Value) {
    if (!RtlpIsReadable(Address, sizeof(*Value))) return FALSE;
    *Value = *(PULONG64)Address;
    return TRUE;
}

static PVOID RtlpAfterCodes(PUNWIND_INFO Info) {
    return &Info->Code[(Info->CountOfCodes + 1) & ~1];
}

static PUNWIND_INFO RtlpUnwindInfo(ULONG64 ImageBase, PRUNTIME_FUNCTION Function) {
    PUNWIND_INFO Info = (PUNWIND_INFO)(ImageBase + Function->UnwindData);
    if (!RtlpIsReadable((ULONG64)Info, sizeof(*Info)) || Info->Version < 1 || Info->Version > 2 ||
        !RtlpIsReadable((ULONG64)RtlpAfterCodes(Info), sizeof(RUNTIME_FUNCTION)))
        return NULL;
    return Info;
}

/* The entry of the whole function that a chained entry is a fragment of. */
static PRUNTIME_FUNCTION RtlpPrimaryEntry(ULONG64 ImageBase, PRUNTIME_FUNCTION Function) {
    for (ULONG Depth = 0; Function != NULL && Depth < RTL_CHAIN_LIMIT; Depth++) {
        PUNWIND_INFO Info = RtlpUnwindInfo(ImageBase, Function);
        if (Info == NULL || !(Info->Flags & UNW_FLAG_CHAININFO)) break;
        Function = RtlpAfterCodes(Info);
    }
    return Function;
}

NTSYSAPI PRUNTIME_FUNCTION RtlLookupFunctionEntry(
    ULONG64 ControlPc, ULONG64 *ImageBase, PVOID History) {
    PKLDR_DATA_TABLE_ENTRY Module = MiModuleFromAddress(ControlPc);
    UNREFERENCED(History);
    *ImageBase = Module != NULL ? (ULONG64)Module->DllBase : 0;
    if (Module == NULL || Module->ExceptionTable == NULL) return NULL;
    ULONG Rva = (ULONG)(ControlPc - *ImageBase), Low = 0;
    ULONG High = Module->ExceptionTableSize / sizeof(RUNTIME_FUNCTION);
    while (Low < High) {
        ULONG Middle = (Low + High) / 2;
        PRUNTIME_FUNCTION Entry = (PRUNTIME_FUNCTION)Module->ExceptionTable + Middle;
        if (!RtlpIsReadable((ULONG64)Entry, sizeof(*Entry))) return NULL;
        if (Rva >= Entry->EndAddress)
            Low = Middle + 1;
        else if (Rva < Entry->BeginAddress)
            High = Middle;
        else /* bit 0: the entry points to another one */
            return Entry->UnwindData & 1 ? (PRUNTIME_FUNCTION)(*ImageBase + Entry->UnwindData - 1)
                                         : Entry;
    }
    return NULL;
}

static ULONG RtlpSlots(const UNWIND_CODE *Code) {
    static const UCHAR Slots[UWOP_COUNT] = {1, 2, 1, 1, 2, 3, 1, 1, 2, 3, 1};
    if (Code->Operation >= UWOP_COUNT) return 0x100; /* more than there can be */
    return Code->Operation == UWOP_ALLOC_LARGE && Code->Info ? 3 : Slots[Code->Operation];
}

/* Undoes the part of the prologue that ran: codes with an offset up to Offset, last one first. */
static BOOLEAN RtlpUndoPrologue(
    PCONTEXT Context, PUNWIND_INFO Info, ULONG Offset, ULONG64 Frame, BOOLEAN *MachineFrame) {
    BOOLEAN Good = TRUE;
    ULONG Slots;
    for (ULONG At = 0; Good && At < Info->CountOfCodes; At += Slots) {
        PUNWIND_CODE Code = &Info->Code[At];
        Slots = RtlpSlots(Code);
        if (At + Slots > Info->CountOfCodes) return FALSE;
        if (Code->Offset > Offset) continue;
        ULONG Operand = Slots > 1 ? Code[1].Word : 0;
        if (Slots == 3) Operand |= (ULONG)Code[2].Word << 16;
        switch (Code->Operation) {
        case UWOP_PUSH_NONVOL:
            Good = RtlpRead(Context->Rsp, &Context->Registers[Code->Info]);
            Context->Rsp += 8;
            break;
        case UWOP_ALLOC_LARGE: Context->Rsp += Code->Info ? Operand : Operand * 8; break;
        case UWOP_ALLOC_SMALL: Context->Rsp += Code->Info * 8 + 8; break;
        case UWOP_SET_FPREG:
            Context->Rsp = Context->Registers[Info->FrameRegister] - Info->FrameOffset * 16;
            break;
        case UWOP_SAVE_NONVOL:
        case UWOP_SAVE_NONVOL_FAR:
            Good = RtlpRead(
                Frame + (ULONG64)Operand * (Slots == 2 ? 8 : 1), &Context->Registers[Code->Info]);
            break;
        case UWOP_SAVE_XMM128:
        case UWOP_SAVE_XMM128_FAR: {
            ULONG64 From = Frame + (ULONG64)Operand * (Slots == 2 ? 16 : 1);
            M128A *Xmm = &Context->Xmm[Code->Info];
            Good = RtlpRead(From, &Xmm->Low) && RtlpRead(From + 8, (PULONG64)&Xmm->High);
            break;
        }
        case UWOP_PUSH_MACHFRAME: { /* error code when Info is set, rip, cs, eflags, rsp, ss */
            ULONG64 From = Context->Rsp + Code->Info * 8;
            *MachineFrame = TRUE;
            return RtlpRead(From, &Context->Rip) && RtlpRead(From + 24, &Context->Rsp);
        }
        }
    }
    return Good;
}

/* A signed number of 1 or 4 bytes in code; int3 where there is no code. */
static LONG RtlpCode(ULONG64 Address, ULONG Bytes) {
    if (!RtlpIsReadable(Address, Bytes)) return (CHAR)0xCC;
    return Bytes == 1 ? *(PCHAR)Address : *(PLONG)Address;
}

/* A jump that leaves the function ends it (tail call); one into another fragment of it does not. */
static BOOLEAN RtlpIsTailCall(ULONG64 ImageBase, PRUNTIME_FUNCTION Function, ULONG64 Target) {
    ULONG64 Rva = Target - ImageBase, Unused;
    if (Rva > Function->BeginAddress && Rva < Function->EndAddress) return FALSE;
    PRUNTIME_FUNCTION Own = RtlpPrimaryEntry(ImageBase, Function);
    PRUNTIME_FUNCTION Other =
        RtlpPrimaryEntry(ImageBase, RtlLookupFunctionEntry(Target, &Unused, NULL));
    return Other == NULL || Other->BeginAddress != Own->BeginAddress || Rva == Own->BeginAddress;
}

/* An epilogue is: add rsp or lea rsp from the frame register (once or not at all), pops, and a
 * return or a jump out of the function. When that is all that lies ahead it is carried out, except
 * for the return: FALSE, and Context as it was, when it is not. */
static BOOLEAN RtlpFinishEpilogue(PCONTEXT Context, ULONG64 ImageBase, ULONG64 Pc,
    PRUNTIME_FUNCTION Function, PUNWIND_INFO Info) {
    ULONG64 Registers[16], *Rsp = &Registers[4];
    UCHAR First = RtlpCode(Pc, 1), Second = RtlpCode(Pc + 1, 1), Third = RtlpCode(Pc + 2, 1);
    memcpy(Registers, Context->Registers, sizeof(Registers));
    BOOLEAN Adds = First == 0x48 && (Second == 0x83 || Second == 0x81) && Third == 0xC4;
    BOOLEAN Loads = (First & 0xFE) == 0x48 && Second == 0x8D && Info->FrameRegister != 0 &&
                    ((Third & 0xF8) == 0x60 || (Third & 0xF8) == 0xA0) &&
                    ((First & 1) << 3 | (Third & 7)) == Info->FrameRegister;
    if (Adds || Loads) {
        ULONG Bytes = Adds ? (Second == 0x83 ? 1 : 4) : (Third & 0x80 ? 4 : 1);
        *Rsp = (Adds ? *Rsp : Registers[Info->FrameRegister]) + (LONG64)RtlpCode(Pc + 3, Bytes);
        Pc += 3 + Bytes;
    }
    for (ULONG Extended;; Pc += 1 + Extended) {
        Extended = RtlpCode(Pc, 1) == 0x41;
        UCHAR Pop = RtlpCode(Pc + Extended, 1);
        if ((Pop & 0xF8) != 0x58) break;
        if (!RtlpRead(*Rsp, &Registers[(Pop & 7) | Extended << 3])) return FALSE;
        *Rsp += 8;
    }
    UCHAR Prefix = RtlpCode(Pc, 1);
    BOOLEAN Wide = (Prefix & 0xF8) == 0x48; /* rex.w marks an indirect tail call */
    Pc += Wide || Prefix == 0xF3;           /* rep ret is a return, too */
    First = RtlpCode(Pc, 1);
    Second = RtlpCode(Pc + 1, 1);
    BOOLEAN Ends = First == 0xC3 || First == 0xC2 ||
                   (First == 0xFF && (Second == 0x25 || (Wide && (Second & 0x38) == 0x20)));
    if (First == 0xEB || First == 0xE9) {
        ULONG Bytes = First == 0xEB ? 1 : 4;
        ULONG64 Target = Pc + 1 + Bytes + (LONG64)RtlpCode(Pc + 1, Bytes);
        Ends = RtlpIsTailCall(ImageBase, Function, Target);
    }
    if (Ends) memcpy(Context->Registers, Registers, sizeof(Registers));
    return Ends;
}

/* Turns Context, inside Function at ControlPc, into its caller's. Function NULL: a leaf, which has
 * moved nothing. The handler is returned only where it may be called: past the prologue and before
 * the epilogue. Rip = 0 where the stack or the data is bad. */
NTSYSAPI EXCEPTION_ROUTINE *RtlVirtualUnwind(ULONG HandlerType, ULONG64 ImageBase,
    ULONG64 ControlPc, PRUNTIME_FUNCTION Function, PCONTEXT Context, PVOID *HandlerData,
    ULONG64 *EstablisherFrame, PVOID ContextPointers) {
    EXCEPTION_ROUTINE *Handler = NULL;
    BOOLEAN MachineFrame = FALSE, Good = TRUE;
    PUNWIND_INFO Info = Function != NULL ? RtlpUnwindInfo(ImageBase, Function) : NULL;
    UNREFERENCED(ContextPointers);
    *HandlerData = NULL;
    *EstablisherFrame = Context->Rsp;
    if (Info != NULL) {
        ULONG Offset = (ULONG)(ControlPc - ImageBase) - Function->BeginAddress;
        BOOLEAN InPrologue = Offset < Info->SizeOfProlog;
        /* an early way out may lie inside of what counts as prologue */
        if (!RtlpFinishEpilogue(Context, ImageBase, ControlPc, Function, Info)) {
            BOOLEAN FrameIsSet = Info->FrameRegister != 0 && !InPrologue;
            for (ULONG At = 0; InPrologue && At < Info->CountOfCodes;
                 At += RtlpSlots(&Info->Code[At]))
                FrameIsSet |=
                    Info->Code[At].Operation == UWOP_SET_FPREG && Info->Code[At].Offset <= Offset;
            if (FrameIsSet)
                *EstablisherFrame =
                    Context->Registers[Info->FrameRegister] - Info->FrameOffset * 16;
            Good = RtlpUndoPrologue(Context, Info, Offset, *EstablisherFrame, &MachineFrame);
            for (ULONG Depth = 0; Good && (Info->Flags & UNW_FLAG_CHAININFO); Depth++) {
                Info = RtlpUnwindInfo(ImageBase, RtlpAfterCodes(Info));
                Good = Info != NULL && Depth < RTL_CHAIN_LIMIT &&
                       RtlpUndoPrologue(Context, Info, ~0U, *EstablisherFrame, &MachineFrame);
            }
            if (Good && !InPrologue && (Info->Flags & HandlerType)) {
                PULONG Data = RtlpAfterCodes(Info);
                Handler = (EXCEPTION_ROUTINE *)(ImageBase + Data[0]);
                *HandlerData = &Data[1];
            }
        }
    } else if (Function != NULL) {
        Good = FALSE;
    }
    if (Good && !MachineFrame) {
        Good = RtlpRead(Context->Rsp, &Context->Rip);
        Context->Rsp += 8;
    }
    if (!Good) Context->Rip = 0;
    return Good ? Handler : NULL;
}
