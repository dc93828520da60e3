/* PCI configuration space through the two I/O ports (PCI Local Bus Specification 3.0, 3.2.2.3.2).
 */
#include "hal.h"

static void HalpPciSelect(ULONG Bus, ULONG Device, ULONG Function, ULONG Offset) {
    __outdword(0xCF8, 1u << 31 | Bus << 16 | Device << 11 | Function << 8 | (Offset & 0xFC));
}

ULONG HalPciRead(ULONG Bus, ULONG Device, ULONG Function, ULONG Offset) {
    ULONG64 Flags = HalpDisableInterrupts();
    HalpPciSelect(Bus, Device, Function, Offset);
    ULONG Value = __indword(0xCFC);
    HalpRestoreInterrupts(Flags);
    return Value;
}

void HalPciWrite(ULONG Bus, ULONG Device, ULONG Function, ULONG Offset, ULONG Value) {
    ULONG64 Flags = HalpDisableInterrupts();
    HalpPciSelect(Bus, Device, Function, Offset);
    __outdword(0xCFC, Value);
    HalpRestoreInterrupts(Flags);
}

BOOLEAN HalPciFind(USHORT Vendor, USHORT DeviceId, ULONG *Device, ULONG *Function) {
    for (ULONG Slot = 0; Slot < 32; Slot++) {
        if (HalPciRead(0, Slot, 0, 0) == 0xFFFFFFFF) continue;
        ULONG Functions = HalPciRead(0, Slot, 0, 0xC) & 0x800000 ? 8 : 1; /* multi-function bit */
        for (ULONG F = 0; F < Functions; F++) {
            if (HalPciRead(0, Slot, F, 0) == ((ULONG)DeviceId << 16 | Vendor)) {
                *Device = Slot;
                *Function = F;
                return TRUE;
            }
        }
    }
    return FALSE;
}
