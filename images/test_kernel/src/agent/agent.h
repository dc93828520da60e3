/* Private to the guest agent and its programs. */
#pragma once
#include "ki.h"

#define CURRENT_VERSION "HKEY_LOCAL_MACHINE\\SOFTWARE\\Microsoft\\Windows NT\\CurrentVersion"
#define COMPUTER_NAME   "HKEY_LOCAL_MACHINE\\SYSTEM\\CurrentControlSet\\Control\\ComputerName"
/* A growing text, NUL-terminated once it has any; what no memory can be had for is left out. */
typedef struct _OUTPUT {
    PCHAR Text;
    ULONG Length, Size;
} OUTPUT, *POUTPUT;
void OutputAppend(POUTPUT Output, const void *Data, SIZE_T Length);
/* At most 1,023 characters; a line feed becomes CR LF, as Windows' programs print it. */
void OutputPrint(POUTPUT Output, PCSTR Format, ...);
/* virtio-serial: one named port, polled. Only the agent's thread calls these. */
enum { VIO_BUFFER = 4096 };
BOOLEAN VioSerialStart(PCSTR PortName); /* FALSE: no device, or no memory */
ULONG VioSerialRead(PUCHAR Buffer);     /* up to VIO_BUFFER bytes; 0: none */
void VioSerialWrite(const void *Data, ULONG Length);
extern BOOLEAN VioSerialHungUp; /* the host closed its end: what came before is void */
/* JSON (RFC 8259): a value is its part of the checked text; strings are decoded when asked for. */
typedef struct _JSON {
    PCSTR Text, End;
} JSON;
enum { JSON_DEPTH = 32 };
PCSTR JsonCheck(PCSTR Text, JSON *Value); /* NULL: well formed; or what is wrong */
/* Walks the members (Name not NULL) or elements of a container; start with Value->Text = NULL. */
BOOLEAN JsonNext(JSON Container, JSON *Name, JSON *Value);
BOOLEAN JsonMember(JSON Object, PCSTR Name, JSON *Value);
BOOLEAN JsonString(JSON Value, PCHAR Target); /* UTF-8 within the value's size; FALSE: no string */
BOOLEAN JsonInteger(JSON Value, LONG64 *Integer);
void JsonPutString(POUTPUT Output, PCSTR Text);
void JsonPutBase64(POUTPUT Output, const UCHAR *Data, ULONG Length); /* RFC 4648, with quotes */
BOOLEAN Base64Decode(PCHAR Text, ULONG *Decoded);                    /* in place */
ULONG Win32Error(NTSTATUS Status);                                   /* as RtlNtStatusToDosError */
PCSTR Win32Message(ULONG Error);                                     /* the system's English text */
/* A built-in program as it runs: it prints, and returns the exit code that Windows' does. */
enum { PROGRAM_ARGUMENTS = 64 };
typedef struct _PROGRAM {
    int Count;
    PCHAR Arguments[PROGRAM_ARGUMENTS]; /* [0]: its path */
    OUTPUT Output, Errors;
} PROGRAM, *PPROGRAM;
typedef int PROGRAM_MAIN(PPROGRAM Program);
PROGRAM_MAIN ScMain, RegMain, PnpUtilMain, DriverQueryMain;
PROGRAM_MAIN *ProgramFind(PCSTR Path); /* full Windows path; NULL where no such program */
int ProgramRun(PROGRAM_MAIN *Main, PPROGRAM Program);
/* In a program, which has itself at hand as `Program`: prints; prints or complains, and ends. */
#define PRINT(...)      OutputPrint(&Program->Output, __VA_ARGS__)
#define EXIT(Code, ...) (PRINT(__VA_ARGS__), (int)(Code))
#define FAIL(Code, ...) (OutputPrint(&Program->Errors, __VA_ARGS__), (int)(Code))
/* What follows an option ("/v" or "-v", "start="), "" when nothing does; NULL: it is not given. */
PCSTR ProgramOption(PPROGRAM Program, PCSTR Name);
static inline BOOLEAN Same(PCSTR A, PCSTR B) { return RtlCompareTextInsensitive(A, B) == 0; }
PCM_KEY ServiceKey(PCSTR Service);                                  /* NULL: no such service */
NTSTATUS ServiceStore(PCSTR Service, ULONG Start, PCSTR ImagePath); /* a kernel driver's */
