/* pvpanic on the ISA bus (QEMU docs/specs/pvpanic): reading gives the events the device knows. */
#include "hal.h"

void HalPvpanic(UCHAR Event) {
    UCHAR Known = __inbyte(0x505);
    if (Known != 0xFF && (Known & Event)) /* 0xFF: no device */
        __outbyte(0x505, Event);
}
