/* COM1 (16550 UART, 115200 8N1, polled) for the emergency console, and QEMU's debug port. */
#include "ki.h"

enum { COM1 = 0x3F8, LINE_STATUS = COM1 + 5, CAN_SEND = 0x20, SCRATCH = COM1 + 7, DEBUG = 0xE9 };
static BOOLEAN HalpSerialPresent;

void HalSerialInitialize(void) {
    /* register and value: no interrupts; divisor latch, 115200, 8N1; FIFOs emptied; DTR, RTS, OUT2
     */
    static const UCHAR Setup[][2] = {
        {1, 0}, {3, 0x80}, {0, 1}, {1, 0}, {3, 3}, {2, 0xC7}, {4, 0xB}};
    __outbyte(SCRATCH, 0x5A); /* tells a UART from an empty bus */
    HalpSerialPresent = __inbyte(SCRATCH) == 0x5A;
    for (ULONG i = 0; HalpSerialPresent && i < ARRAY_SIZE(Setup); i++)
        __outbyte(COM1 + Setup[i][0], Setup[i][1]);
}

void HalSerialWrite(PCSTR Text) {
    for (; HalpSerialPresent && *Text; Text++) {
        /* A stuck line must not stop a crash: give up on a character after 10 ms. */
        for (ULONG i = 0; i < 1000 && !(__inbyte(LINE_STATUS) & CAN_SEND); i++)
            KiStallMicroseconds(10);
        __outbyte(COM1, (UCHAR)*Text);
    }
}

void HalDebugPrint(PCSTR Text) {
    BOOLEAN Present = __inbyte(DEBUG) == DEBUG; /* the device reads as its own number */
    while (Present && *Text) __outbyte(DEBUG, (UCHAR)*Text++);
}
