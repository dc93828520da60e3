/* Private to the guest agent and its programs. */
#pragma once
#include "ki.h"

/* -- virtio-serial: one named port, polled. Only the agent's thread calls these. --------------- */
BOOLEAN VioSerialStart(PCSTR PortName); /* FALSE: no such device, or out of memory */
/* Bytes the host sent, at most 4096 at a time; 0: none. Takes note of the host's coming and going.
 */
ULONG VioSerialRead(PUCHAR *Data);
void VioSerialReadDone(void); /* gives the bytes of the last read back to the device */
void VioSerialWrite(const void *Data, ULONG Length); /* waits until the host has taken them */
extern ULONG VioSerialHangups; /* how often the host closed its end: what came before is void */

/* -- output ------------------------------------------------------------------------------------ */
/* A growing text, NUL-terminated once it has any; what no memory can be had for is left out. */
BOOLEAN OutputReserve(POUTPUT Output, ULONG Bytes);
void OutputAppend(POUTPUT Output, const void *Data, ULONG Length);

/* -- JSON (RFC 8259) and base64 (RFC 4648) ------------------------------------------------------
 */
/* A value is the part of the checked text it was read from; strings are decoded when asked for. */
typedef struct _JSON {
    PCSTR Text, End;
} JSON;
#define JSON_DEPTH 32
/* Cuts a byte stream into texts: a text ends where its outermost bracket closes (or at a line's end
 * when it has none), whether or not a newline follows. */
typedef struct _JSON_FRAME {
    ULONG Depth;
    BOOLEAN InString, Escaped, Started;
} JSON_FRAME;
typedef enum { JSON_MORE, JSON_COMPLETE, JSON_BROKEN } JSON_PROGRESS;
JSON_PROGRESS JsonFrame(JSON_FRAME *Frame, UCHAR Byte);
PCSTR JsonCheck(PCSTR Text, JSON *Value); /* NULL: well formed; or what is wrong */
BOOLEAN JsonMember(JSON Object, PCSTR Name, JSON *Value);
/* Walks the members (Name not NULL) or elements of a container; start with Value->Text = NULL. */
BOOLEAN JsonNext(JSON Container, JSON *Name, JSON *Value);
BOOLEAN JsonString(
    JSON Value, PCHAR Target); /* UTF-8, no longer than the value; FALSE: no string */
BOOLEAN JsonInteger(JSON Value, LONG64 *Integer);
void JsonPutString(POUTPUT Output, PCSTR Text);
void JsonPutBase64(POUTPUT Output, const UCHAR *Data, ULONG Length); /* with its quotes */
BOOLEAN Base64Decode(PCHAR Text, ULONG *Decoded);

/* -- Win32 errors -------------------------------------------------------------------------------
 */
ULONG Win32Error(NTSTATUS Status); /* as RtlNtStatusToDosError */
PCSTR Win32Message(ULONG Error);   /* the system's English text */

/* -- built-in programs ------------------------------------------------------------------------- */
PROGRAM ScMain, RegMain, PnpUtilMain, DriverQueryMain;
static inline BOOLEAN Same(PCSTR A, PCSTR B) { return RtlCompareTextInsensitive(A, B) == 0; }
BOOLEAN ProgramFlag(int Count, PCHAR *Arguments, PCSTR Name);
PCSTR ProgramOption(int Count, PCHAR *Arguments, PCSTR Name); /* what follows "/x"; NULL: absent */
BOOLEAN ServicePath(PCHAR Key, ULONG Size, PCSTR Service);    /* its key; FALSE: no such service */
