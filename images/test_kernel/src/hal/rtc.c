/* The CMOS clock (MC146818), kept in UTC; the BIOS has set it to 24 hours. */
#include "ki.h"

enum { STATUS_A = 0x0A, UPDATING = 0x80, STATUS_B = 0x0B, BINARY = 4, CENTURY = 0x32 };

static UCHAR HalpCmosRead(UCHAR Register) {
    __outbyte(0x70, Register);
    return __inbyte(0x71);
}

LONG64 HalReadRtc(void) {
    /* second, minute, hour, day, month, year, century */
    static const UCHAR Registers[7] = {0, 2, 4, 7, 8, 9, CENTURY};
    UCHAR Now[7], Before[7] = {0};
    /* Two equal readings outside an update; an update takes 2 ms, so the bound is never met. */
    for (ULONG Try = 0; Try < 1000; Try++) {
        while (HalpCmosRead(STATUS_A) & UPDATING && Try++ < 1000) KiStallMicroseconds(10);
        for (ULONG i = 0; i < ARRAY_SIZE(Registers); i++) Now[i] = HalpCmosRead(Registers[i]);
        if (memcmp(Now, Before, sizeof(Now)) == 0) break;
        memcpy(Before, Now, sizeof(Now));
    }
    if (!(HalpCmosRead(STATUS_B) & BINARY)) /* two decimal digits a byte */
        for (ULONG i = 0; i < ARRAY_SIZE(Now); i++) Now[i] = (Now[i] >> 4) * 10 + (Now[i] & 15);
    ULONG Century = Now[6] >= 19 && Now[6] <= 29 ? Now[6] : 20; /* not every BIOS keeps it */
    return KiDateToTime(
        &(KI_DATE){Century * 100 + Now[5], Now[4], Now[3], Now[2], Now[1], Now[0], 0, 0});
}
