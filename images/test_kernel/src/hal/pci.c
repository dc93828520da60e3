/* PCI configuration space through the two I/O ports (PCI Local Bus Specification 3.0, 3.2.2.3.2).
 * Not locked: only start-up uses it, one part after another. */
#include "ki.h"

static void HalpPciSelect(ULONG Bus, ULONG Device, ULONG Function, ULONG Offset) {
    __outdword(0xCF8, 1u << 31 | Bus << 16 | Device << 11 | Function << 8 | (Offset & 0xFC));
}

ULONG HalPciRead(ULONG Bus, ULONG Device, ULONG Function, ULONG Offset) {
    HalpPciSelect(Bus, Device, Function, Offset);
    return __indword(0xCFC);
}

void HalPciWrite(ULONG Bus, ULONG Device, ULONG Function, ULONG Offset, ULONG Value) {
    HalpPciSelect(Bus, Device, Function, Offset);
    __outdword(0xCFC, Value);
}

BOOLEAN HalPciFind(USHORT Vendor, USHORT DeviceId, ULONG *Device, ULONG *Function) {
    for (ULONG Slot = 0; Slot < 256; Slot++) {
        *Device = Slot / 8, *Function = Slot % 8; /* aliases of an only function come later */
        if (HalPciRead(0, *Device, *Function, 0) == ((ULONG)DeviceId << 16 | Vendor)) return TRUE;
    }
    return FALSE;
}
