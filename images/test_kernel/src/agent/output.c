/* Growing text, for replies and for what programs print. */
#include "agent.h"

BOOLEAN OutputReserve(POUTPUT Output, ULONG Bytes) {
    ULONG Wanted = Output->Length + Bytes + 1;
    if (Wanted <= Output->Size) return TRUE;
    ULONG Size = MAX(Wanted, MAX(Output->Size * 2, 256u));
    PCHAR Text = KiAllocate(Size);
    if (Text == NULL) return FALSE;
    if (Output->Length > 0) memcpy(Text, Output->Text, Output->Length);
    Text[Output->Length] = 0;
    if (Output->Text != NULL) KiFree(Output->Text);
    Output->Text = Text;
    Output->Size = Size;
    return TRUE;
}

void OutputAppend(POUTPUT Output, const void *Data, ULONG Length) {
    if (!OutputReserve(Output, Length)) return;
    memcpy(Output->Text + Output->Length, Data, Length);
    Output->Length += Length;
    Output->Text[Output->Length] = 0;
}

/* Takes in `Stored` characters beyond the text's end, line feeds as CR LF, as Windows' programs do.
 */
static void OutputEndLines(POUTPUT Output, ULONG Stored) {
    ULONG Lines = 0;
    for (ULONG i = 0; i < Stored; i++) Lines += Output->Text[Output->Length + i] == '\n';
    Output->Length += Stored;
    if (Lines == 0 || !OutputReserve(Output, Lines)) return;
    PCHAR From = Output->Text + Output->Length, To = From + Lines;
    Output->Length += Lines;
    for (*To = 0; To > From;) {
        *--To = *--From;
        if (*To == '\n') *--To = '\r';
    }
}

void OutputPrint(POUTPUT Output, PCSTR Format, ...) {
    for (ULONG Room = 256; OutputReserve(Output, Room); Room *= 2) {
        va_list Arguments;
        va_start(Arguments, Format);
        ULONG Stored = RtlFormatV(Output->Text + Output->Length, Room, Format, Arguments);
        va_end(Arguments);
        if (Stored + 1 < Room) { /* else it may have been cut */
            OutputEndLines(Output, Stored);
            return;
        }
    }
}
