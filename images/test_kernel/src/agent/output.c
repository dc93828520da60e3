/* Growing text, for replies and for what programs print. */
#include "agent.h"

void OutputAppend(POUTPUT Output, const void *Data, SIZE_T Length) {
    if (Output->Length + Length >= Output->Size) {
        ULONG Size = 2 * Output->Size + (ULONG)Length + 256;
        PCHAR Text = KiAllocate(Size);
        if (Text == NULL) return;
        if (Output->Text != NULL) {
            memcpy(Text, Output->Text, Output->Length);
            KiFree(Output->Text);
        }
        Output->Text = Text;
        Output->Size = Size;
    }
    memcpy(Output->Text + Output->Length, Data, Length);
    Output->Text[Output->Length += (ULONG)Length] = 0;
}

void OutputPrint(POUTPUT Output, PCSTR Format, ...) {
    CHAR Text[1024];
    va_list Arguments;
    va_start(Arguments, Format);
    RtlFormatV(Text, sizeof(Text), Format, Arguments);
    va_end(Arguments);
    for (PCSTR At = Text; *At; At++)
        *At == '\n' ? OutputAppend(Output, "\r\n", 2) : OutputAppend(Output, At, 1);
}
