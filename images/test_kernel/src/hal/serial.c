/* COM1 (16550 UART, 115200 8N1, polled) for the emergency console, and QEMU's debug port. */
#include "hal.h"

#define COM1 0x3F8
static BOOLEAN HalpSerialPresent;

void HalSerialInitialize(void) {
    __outbyte(COM1 + 7, 0x5A); /* scratch register: tells a UART from an empty bus */
    HalpSerialPresent = __inbyte(COM1 + 7) == 0x5A;
    if (!HalpSerialPresent) return;
    static const UCHAR Setup[][2] = {
        {1, 0x00},            /* no interrupts */
        {3, 0x80},            /* divisor latch */
        {0, 0x01}, {1, 0x00}, /* 115200 */
        {3, 0x03},            /* 8N1 */
        {2, 0xC7},            /* FIFOs on and emptied */
        {4, 0x0B},            /* DTR, RTS, OUT2 */
    };
    for (ULONG i = 0; i < ARRAY_SIZE(Setup); i++) __outbyte(COM1 + Setup[i][0], Setup[i][1]);
}

static void HalpSerialPut(CHAR Character) {
    /* A stuck line must not stop a crash: give up on a character after 10 ms. */
    for (ULONG i = 0; i < 1000 && !(__inbyte(COM1 + 5) & 0x20); i++) KiStallMicroseconds(10);
    __outbyte(COM1, (UCHAR)Character);
}

void HalSerialWrite(PCSTR Text) {
    for (; HalpSerialPresent && *Text; Text++) HalpSerialPut(*Text);
}

void HalDebugPrint(PCSTR Text) {
    if (__inbyte(0xE9) != 0xE9) /* the device reads as its own number */
        return;
    while (*Text) __outbyte(0xE9, (UCHAR)*Text++);
}
