/* COM1 (16550 UART, 115200 8N1, polled) for the emergency console, and QEMU's debug port. */
#include "ki.h"

enum { COM1 = 0x3F8, LINE_STATUS = COM1 + 5, SCRATCH = COM1 + 7, DEBUG = 0xE9 };
enum { HAS_BYTE = 1, CAN_SEND = 0x20 };
static BOOLEAN HalpSerialPresent;

void HalSerialInitialize(void) {
    /* register, value: no interrupts; divisor latch, 115200, 8N1; FIFOs emptied; DTR, RTS, OUT2 */
    static const UCHAR Setup[][2] = {
        {1, 0}, {3, 0x80}, {0, 1}, {1, 0}, {3, 3}, {2, 0xC7}, {4, 0xB}};
    __outbyte(SCRATCH, 0x5A); /* tells a UART from an empty bus */
    HalpSerialPresent = __inbyte(SCRATCH) == 0x5A;
    for (ULONG i = 0; HalpSerialPresent && i < ARRAY_SIZE(Setup); i++)
        __outbyte(COM1 + Setup[i][0], Setup[i][1]);
}

static void HalpSerialPut(CHAR Character) {
    /* A stuck line must not stop a crash: give up on a character after 10 ms. */
    for (ULONG i = 0; i < 1000 && !(__inbyte(LINE_STATUS) & CAN_SEND); i++) KiStallMicroseconds(10);
    __outbyte(COM1, (UCHAR)Character);
}

void HalSerialWrite(PCSTR Text, SIZE_T Length) {
    for (; HalpSerialPresent && Length > 0; Text++, Length--) {
        if (*Text == '\n') HalpSerialPut('\r');
        if (*Text != '\r') HalpSerialPut(*Text);
    }
}

void HalSerialPrint(PCSTR Format, ...) {
    CHAR Text[1024];
    va_list Arguments;
    va_start(Arguments, Format);
    HalSerialWrite(Text, (SIZE_T)RtlFormatV(Text, sizeof(Text), Format, Arguments));
    va_end(Arguments);
}

int HalSerialRead(void) {
    return HalpSerialPresent && __inbyte(LINE_STATUS) & HAS_BYTE ? __inbyte(COM1) : -1;
}

void HalDebugPrint(PCSTR Text) {
    BOOLEAN Present = __inbyte(DEBUG) == DEBUG; /* the device reads as its own number */
    while (Present && *Text) __outbyte(DEBUG, (UCHAR)*Text++);
}
