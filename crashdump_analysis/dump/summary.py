"""Kernel summary dumps (type 2), the kernel dumps of Windows before 8.

Layout (SUMMARY_DUMP64 at 0x2000, as Dump.h of Microsoft Research's Singularity has it): "SDMP",
"DUMP", u32 options, at 0x0C u32 the file offset of the first page, at 0x10 u32 the number of bits,
at 0x14 u32 the number of pages in the file, at 0x18 an RTL_BITMAP as it was in memory (u32 number
of bits, u64 address), at 0x28 the bitmap, lowest bit first. The pages of the set bits follow one
another.
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

_BITMAP_OFFSET = HEADER_SIZE + 0x28


class SummaryDump(PhysicalDump):
    """The kernel's pages, as a summary dump holds them."""

    TYPES: ClassVar = frozenset({2})

    def __init__(self, data: mmap, header: DumpHeader, where: str) -> None:
        super().__init__(data, header, where)
        place = f"{where} at 0x{HEADER_SIZE:x}"
        found = data[HEADER_SIZE : HEADER_SIZE + 8]
        if found != b"SDMPDUMP":
            raise DumpError(place, expected="SDMPDUMP", found=found.hex(" ") or "the end")
        if len(data) < _BITMAP_OFFSET:
            raise DumpError(place, expected="a summary header", found="the end of the file")
        first_page, bits, pages = struct.unpack_from("<III", data, HEADER_SIZE + 0x0C)
        self._pages = PageBitmap(
            data, where, offset=_BITMAP_OFFSET, bits=bits, pages=pages, first_page=first_page
        )
        self.required_size = first_page + pages * PAGE_SIZE

    def read(self, address: PhysicalAddress, size: int) -> bytes | None:
        """Physical memory within one page; None where the file does not hold it."""
        return self._pages.read(address, size)
