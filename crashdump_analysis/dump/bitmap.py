"""Bitmap dumps: full (type 5) and kernel (type 6, also written by active and live dumps).

Layout (BMP_HEADER64 at 0x2000, kdmp-parser's structures, MIT): "SDMP" or "FDMP", "DUMP", at 0x20
the file offset of the first page, at 0x28 the number of pages in the file, at 0x30 the number of
bits, at 0x38 the bitmap, lowest bit first. The pages of the set bits follow one another.

"Automatic memory dump" is a setting: such dumps bear type 6 (kdmp-parser's issue 26). The WDK has a
type 7 of that name, but no public source shows a file with it.
"""

from __future__ import annotations

import struct
from mmap import mmap
from typing import ClassVar

from crashdump_analysis.addresses import PAGE_SIZE, PhysicalAddress
from crashdump_analysis.dump.format import PhysicalDump
from crashdump_analysis.dump.header import HEADER_SIZE, DumpHeader
from crashdump_analysis.dump.page_bitmap import PageBitmap
from crashdump_analysis.errors import DumpError

_BITMAP_OFFSET = HEADER_SIZE + 0x38


class BitmapDump(PhysicalDump):
    """The physical memory of a bitmap dump; reads what the file holds and no more."""

    TYPES: ClassVar = frozenset({5, 6})

    def __init__(self, data: mmap, header: DumpHeader, where: str) -> None:
        super().__init__(data, header, where)
        place = f"{where} at 0x{HEADER_SIZE:x}"
        found = data[HEADER_SIZE : HEADER_SIZE + 8]
        if found not in (b"SDMPDUMP", b"FDMPDUMP"):
            raise DumpError(
                place, expected="SDMPDUMP or FDMPDUMP", found=found.hex(" ") or "the end"
            )
        if len(data) < _BITMAP_OFFSET:
            raise DumpError(place, expected="the header of a bitmap", found="the end of the file")
        first_page, pages, bits = struct.unpack_from("<3Q", data, HEADER_SIZE + 0x20)
        self._pages = PageBitmap(
            data, where, offset=_BITMAP_OFFSET, bits=bits, pages=pages, first_page=first_page
        )
        self.required_size = first_page + pages * PAGE_SIZE

    def read(self, address: PhysicalAddress, size: int) -> bytes | None:
        """Physical memory within one page; None where the file does not hold it."""
        return self._pages.read(address, size)
