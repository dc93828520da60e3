/* Windows counts failed boots and after some in a row starts recovery. Here the count is in
 * C:\Windows\bootstat.dat, a format of our own: "BSTA", then 32-bit version, failed boots, limit
 * (0: none). The repair screen and when it comes are a model of Windows 10's. */
#include "ki.h"

typedef struct _BOOT_STATUS {
    ULONG Signature, Version, FailedBoots, Limit;
    UCHAR Fill[512 - 16];
} BOOT_STATUS, *PBOOT_STATUS;

#define BOOT_STATUS_FILE "Windows\\bootstat.dat"
enum { WHITE_ON_BLUE = 0x1F, SCAN_ENTER = 0x1C, PIC_DATA = 0x21, PIC_KEYBOARD = 2 };

/* Changes the count in place: one sector. */
static NTSTATUS BootStatusCount(PBOOT_STATUS Data, BOOLEAN Failing) {
    FAT_FILE File;
    ULONG Count;
    TRY(FatOpen(BOOT_STATUS_FILE, &File));
    TRY(FatRead(&File, 0, Data, sizeof(*Data), &Count));
    if (Count != sizeof(*Data) || Data->Version != 1 || Data->Signature != 0x41545342)
        return STATUS_DISK_CORRUPT_ERROR;
    Data->FailedBoots = Failing ? Data->FailedBoots + 1 : 0;
    TRY(FatWrite(&File, 0, Data, sizeof(*Data), &Count));
    return HalDiskFlush();
}

void BootStatusSucceed(void) {
    BOOT_STATUS Data;
    BootStatusCount(&Data, FALSE);
}

void BootStatusBegin(void) {
    BOOT_STATUS Data;
    NTSTATUS Status = BootStatusCount(&Data, TRUE);
    if (!NT_SUCCESS(Status))
        DbgPrint("boot: C:\\%s: status %08x: boots are not counted\n", BOOT_STATUS_FILE, Status);
    if (!NT_SUCCESS(Status) || Data.Limit == 0 || Data.FailedBoots <= Data.Limit) return;
    HalScreenClear(WHITE_ON_BLUE);
    HalScreenPrint(3, 6, WHITE_ON_BLUE,
        "Automatic Repair\n\nYour PC did not start correctly\n\n"
        "After multiple tries, the operating system on your PC failed to start,\n"
        "so it needs to be repaired.\n\n"
        "Press Enter to try again");
    /* From here on only this thread reads the keyboard. */
    __outbyte(PIC_DATA, __inbyte(PIC_DATA) | PIC_KEYBOARD);
    while (HalKeyboardPoll() != SCAN_ENTER) KiSleep(20);
    BootStatusSucceed(); /* the count starts again */
    HalReboot();
}
