/* Windows counts boots that did not succeed and, after some in a row, starts recovery. Here the
 * count is in C:\Windows\bootstat.dat, in a format of our own: "BSTA", then 32-bit version, failed
 * boots, and how many of those bring up the repair screen (0: any number). The screen and when it
 * comes are a model of Windows 10's, not a copy. */
#include "ki.h"

typedef struct _BOOT_STATUS {
    ULONG Signature, Version, FailedBoots, Limit;
    UCHAR Fill[512 - 16];
} BOOT_STATUS, *PBOOT_STATUS;
ASSERT_SIZE(BOOT_STATUS, 512);

#define BOOT_STATUS_FILE      "Windows\\bootstat.dat"
#define BOOT_STATUS_SIGNATURE 0x41545342 /* "BSTA" */
enum { WHITE_ON_BLUE = 0x1F, SCAN_ENTER = 0x1C, PIC_DATA = 0x21, PIC_KEYBOARD = 2 };

/* Changes the count in place: one sector. */
static BOOLEAN BootStatusUpdate(PBOOT_STATUS Data, BOOLEAN Failing) {
    FAT_FILE File;
    ULONG Count = 0;
    NTSTATUS Status = FatOpen(BOOT_STATUS_FILE, &File);
    if (NT_SUCCESS(Status)) Status = FatRead(&File, 0, Data, sizeof(*Data), &Count);
    if (!NT_SUCCESS(Status) || Count != sizeof(*Data) || Data->Version != 1 ||
        Data->Signature != BOOT_STATUS_SIGNATURE) {
        DbgPrint("boot: C:\\%s is missing or damaged, status %08x: boots are not counted\n",
            BOOT_STATUS_FILE, Status);
        return FALSE;
    }
    BOOT_STATUS New = *Data;
    New.FailedBoots = Failing ? Data->FailedBoots + 1 : 0;
    if (New.FailedBoots != Data->FailedBoots)
        Status = FatWrite(&File, 0, &New, sizeof(New), &Count);
    if (NT_SUCCESS(Status)) Status = HalDiskFlush();
    if (!NT_SUCCESS(Status)) DbgPrint("boot: C:\\%s: status %08x\n", BOOT_STATUS_FILE, Status);
    return TRUE;
}

void BootStatusSucceed(void) {
    BOOT_STATUS Data;
    BootStatusUpdate(&Data, FALSE);
}

void BootStatusBegin(void) {
    BOOT_STATUS Data;
    if (!BootStatusUpdate(&Data, TRUE) || Data.Limit == 0 || Data.FailedBoots < Data.Limit) return;
    HalScreenClear(WHITE_ON_BLUE);
    HalScreenPrint(3, 6, WHITE_ON_BLUE,
        "Automatic Repair\n\n"
        "Your PC did not start correctly\n\n"
        "After multiple tries, the operating system on your PC failed to start,\n"
        "so it needs to be repaired.\n\n"
        "Press Enter to try again");
    /* From here on only this thread reads the keyboard. */
    __outbyte(PIC_DATA, __inbyte(PIC_DATA) | PIC_KEYBOARD);
    while (HalKeyboardPoll() != SCAN_ENTER) KiSleep(20);
    BootStatusSucceed(); /* the count starts again */
    HalReboot();
}
