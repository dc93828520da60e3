/* VGA text mode 3, as the BIOS leaves it: 80 x 25 cells of character and attribute. */
#include "ki.h"

enum { COLUMNS = 80, ROWS = 25 };

static volatile USHORT *HalpCells(void) { return MiPhysicalToVirtual(0xB8000); }

void HalScreenClear(UCHAR Attribute) {
    __outbyte(0x3D4, 0x0A); /* cursor start register: bit 5 turns the cursor off */
    __outbyte(0x3D5, 0x20);
    for (ULONG i = 0; i < COLUMNS * ROWS; i++) HalpCells()[i] = (USHORT)(Attribute << 8 | ' ');
}

/* A line feed goes on in the next row, at the same column; what is past the edges is cut. */
void HalScreenPrint(ULONG Row, ULONG Column, UCHAR Attribute, PCSTR Text) {
    for (ULONG X = Column; *Text; Text++) {
        if (*Text == '\n') {
            Row++;
            X = Column;
        } else if (Row < ROWS && X < COLUMNS) {
            HalpCells()[Row * COLUMNS + X++] = (USHORT)(Attribute << 8 | (UCHAR)*Text);
        }
    }
}
