/* Reset and power: the PC's reset ports, and the ACPI registers of the PIIX4 power management
 * function, whose base address the BIOS has set (Intel 82371AB data sheet, 7.2). */
#include "ki.h"

enum { PM1_STATUS = 0, PM1_ENABLE = 2, PM1_CONTROL = 4, PM_TIMER = 8 };
enum { POWER_BUTTON = 0x100, SLEEP_ENABLE = 0x2000 };
static USHORT HalpPowerPort;

void HalAcpiInitialize(void) {
    ULONG Device, Function;
    if (!HalPciFind(0x8086, 0x7113, &Device, &Function)) KeBugCheckEx(0xA5, 0, 0, 0, 0);
    HalpPowerPort = HalPciRead(0, Device, Function, 0x40) & 0xFFC0;
    if (HalpPowerPort != 0) __outword(HalpPowerPort + PM1_ENABLE, POWER_BUTTON);
    HalPowerButtonPressed(); /* before this boot */
}

ULONG HalReadPmTimer(void) { return __indword(HalpPowerPort + PM_TIMER); }

BOOLEAN HalPowerButtonPressed(void) {
    if (HalpPowerPort == 0 || !(__inword(HalpPowerPort + PM1_STATUS) & POWER_BUTTON)) return FALSE;
    __outword(HalpPowerPort + PM1_STATUS, POWER_BUTTON); /* write one to clear */
    return TRUE;
}

NORETURN void HalHalt(void) {
    for (;;) __asm__ volatile("cli; hlt" ::: "memory");
}

NORETURN void HalPowerOff(void) {
    KiDisable();
    if (HalpPowerPort != 0)
        __outword(HalpPowerPort + PM1_CONTROL, SLEEP_ENABLE); /* sleep type 0 is S5 on PIIX4 */
    HalHalt();
}

NORETURN void HalReboot(void) {
    KiDisable();
    __outbyte(0xCF9, 0x02);
    __outbyte(0xCF9, 0x06); /* PIIX reset control: hard reset; a busy host takes its time */
    KiStallMicroseconds(1000000);
    __outbyte(0x64, 0xFE); /* i8042: pulse the reset line */
    HalHalt();
}

/* pvpanic on the ISA bus (QEMU docs/specs/pvpanic): reading gives the events the device knows. */
void HalPvpanic(UCHAR Event) {
    UCHAR Known = __inbyte(0x505);
    if (Known != 0xFF && (Known & Event)) __outbyte(0x505, Event); /* 0xFF: no device */
}
