"""Bitmap dumps: full (type 5) and kernel (type 6, also written by active and live dumps).

Layout (BMP_HEADER64 at 0x2000, kdmp-parser's structures, MIT): "SDMP" or "FDMP", "DUMP", at 0x20
the file offset of the first page, at 0x28 the number of pages in the file, at 0x30 the number of
bits, at 0x38 the bitmap, lowest bit first. The pages of the set bits follow one another.
"""

from __future__ import annotations

import struct
from itertools import accumulate
from mmap import mmap
from typing import ClassVar

from crashdump_analysis.addresses import PAGE_SIZE, PhysicalAddress
from crashdump_analysis.dump.format import PhysicalDump
from crashdump_analysis.dump.header import HEADER_SIZE, DumpHeader
from crashdump_analysis.errors import DumpError

_BITMAP_OFFSET = HEADER_SIZE + 0x38
_CHUNK = 512  # bytes of bitmap that are counted at once


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
        self._first_page, pages, self._bits = struct.unpack_from("<3Q", data, HEADER_SIZE + 0x20)
        size = -(-self._bits // 8)
        if _BITMAP_OFFSET + size > min(self._first_page, len(data)):
            raise DumpError(
                place,
                expected="a bitmap that ends before the first page",
                found=f"{self._bits} bits, the first page at 0x{self._first_page:x} "
                f"of 0x{len(data):x} bytes",
            )
        # Pages before each chunk of the bitmap, so that a page is found without counting it all.
        counts = (
            int.from_bytes(data[at : min(at + _CHUNK, _BITMAP_OFFSET + size)], "little").bit_count()
            for at in range(_BITMAP_OFFSET, _BITMAP_OFFSET + size, _CHUNK)
        )
        self._before = [0, *accumulate(counts)]
        if self._before[-1] < pages:
            raise DumpError(
                place, expected=f"{pages} bits set in the bitmap", found=f"{self._before[-1]}"
            )
        self.required_size = self._first_page + pages * PAGE_SIZE
        """The size in bytes of a file that holds all pages."""

    def read(self, address: PhysicalAddress, size: int) -> bytes | None:
        """Physical memory within one page; None where the file does not hold it."""
        page = address >> 12
        if page >= self._bits:
            return None
        chunk, bit = divmod(page, _CHUNK * 8)
        start = _BITMAP_OFFSET + chunk * _CHUNK
        upto = int.from_bytes(self.data[start : start + bit // 8 + 1], "little")
        if not upto >> bit & 1:
            return None
        number = self._before[chunk] + (upto & ((1 << bit) - 1)).bit_count()
        offset = self._first_page + number * PAGE_SIZE + address % PAGE_SIZE
        found = self.data[offset : offset + size]
        return found if len(found) == size else None
