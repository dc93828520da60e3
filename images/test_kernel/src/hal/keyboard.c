/* PS/2 keyboard on the i8042 controller, scan code set 1.
 * The crash keys are those of i8042prt: the right Ctrl key held, Scroll Lock twice (Microsoft,
 * "Forcing a system crash from the keyboard"). It counts releases of Scroll Lock, so that a key
 * held down does not count twice; any other key, or letting go of Ctrl, starts the count again. */
#include "hal.h"

enum { DATA = 0x60, STATUS_PORT = 0x64, OUTPUT_FULL = 1, FROM_MOUSE = 0x20 };
enum { SCAN_EXTENDED = 0xE0, SCAN_CTRL = 0x1D, SCAN_SCROLL_LOCK = 0x46, SCAN_RELEASE = 0x80 };

static BOOLEAN HalpExtended, HalpRightCtrl;
static ULONG HalpScrollLocks;

/* The next byte from the keyboard, or -1. An absent controller reads as 0xFF. */
static int HalpKeyboardRead(void) {
    for (UCHAR Status; (Status = __inbyte(STATUS_PORT)) & OUTPUT_FULL && Status != 0xFF;) {
        UCHAR Byte = __inbyte(DATA);
        if (!(Status & FROM_MOUSE)) return Byte;
    }
    return -1;
}

/* The BIOS leaves the keyboard enabled, with IRQ 1 and translation to scan code set 1. */
void HalKeyboardInitialize(void) {
    while (HalpKeyboardRead() >= 0)
        ;
}

static BOOLEAN HalpCrashKeys(UCHAR Code, BOOLEAN Extended) {
    BOOLEAN Release = (Code & SCAN_RELEASE) != 0;
    UCHAR Key = Code & ~SCAN_RELEASE;
    if (Key == SCAN_CTRL && Extended) {
        HalpRightCtrl = !Release;
        if (Release) HalpScrollLocks = 0;
    } else if (Key != SCAN_SCROLL_LOCK || Extended) {
        HalpScrollLocks = 0;
    } else if (Release && HalpRightCtrl && ++HalpScrollLocks == 2) {
        HalpScrollLocks = 0;
        return TRUE;
    }
    return FALSE;
}

BOOLEAN HalKeyboardInterrupt(void) {
    BOOLEAN Crash = FALSE;
    for (int Code; (Code = HalpKeyboardRead()) >= 0;) {
        if (Code != SCAN_EXTENDED) Crash |= HalpCrashKeys((UCHAR)Code, HalpExtended);
        HalpExtended = Code == SCAN_EXTENDED;
    }
    return Crash;
}

int HalKeyboardPoll(void) {
    int Code = HalpKeyboardRead();
    while (Code >= 0 && (Code & SCAN_RELEASE)) Code = HalpKeyboardRead(); /* 0xE0 goes, too */
    return Code;
}
