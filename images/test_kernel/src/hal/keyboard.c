/* PS/2 keyboard (i8042), scan code set 1, on and with IRQ 1 as the BIOS leaves it. Crash keys as
 * i8042prt's (Microsoft, "Forcing a system crash from the keyboard"): right Ctrl held, Scroll Lock
 * released twice, so that a key held down counts once; any other key starts the count again. */
#include "ki.h"

enum { DATA = 0x60, STATUS_PORT = 0x64, OUTPUT_FULL = 1, FROM_MOUSE = 0x20 };
enum { EXTENDED = 0xE0, CTRL = 0x1D, SCROLL_LOCK = 0x46, RELEASE = 0x80 };

/* The next byte from the keyboard, or -1. An absent controller reads as 0xFF. */
static int HalpKeyboardRead(void) {
    for (UCHAR Status; (Status = __inbyte(STATUS_PORT)) & OUTPUT_FULL && Status != 0xFF;) {
        UCHAR Byte = __inbyte(DATA);
        if (!(Status & FROM_MOUSE)) return Byte;
    }
    return -1;
}

void HalKeyboardInitialize(void) {
    while (HalpKeyboardRead() >= 0) continue;
}

BOOLEAN HalKeyboardInterrupt(void) {
    static BOOLEAN Extended, RightCtrl;
    static ULONG ScrollLocks;
    BOOLEAN Crash = FALSE;
    for (int Code; (Code = HalpKeyboardRead()) >= 0; Extended = Code == EXTENDED) {
        BOOLEAN Ctrl = Extended && (Code & ~RELEASE) == CTRL;
        if (Ctrl) RightCtrl = !(Code & RELEASE);
        if (Code == EXTENDED || (Ctrl && RightCtrl) || (!Extended && Code == SCROLL_LOCK)) continue;
        BOOLEAN Counts = RightCtrl && !Extended && Code == (SCROLL_LOCK | RELEASE);
        ScrollLocks = Counts ? ScrollLocks + 1 : 0;
        Crash |= Counts && ScrollLocks % 2 == 0;
    }
    return Crash;
}

int HalKeyboardPoll(void) {
    int Code = HalpKeyboardRead();
    while (Code >= 0 && (Code & RELEASE)) Code = HalpKeyboardRead(); /* 0xE0 goes, too */
    return Code;
}
