"""Range dumps of newer debuggers: `.dump /k` (type 8), `.dump /ka` (9) and `.dump /f` (10).

Layout (RDMP_HEADER64 at 0x2000, kdmp-parser's structures, MIT): u32 0x40, "RDMP", "DUMP", u32,
u64 size of the metadata, u64 file offset of the first page, which is 0x2020 plus that size. The
metadata starts at 0x2020: 16 bytes, whose last 8 are in type 10 the number of pages; then ranges of
u64 page number and u64 number of pages. The ranges' pages follow one another in the file.

The ranges end where the metadata does, at a range of page 0, and in type 10 where the pages are
complete: there the metadata has room for more (kdmp-parser's pull request 28).
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from mmap import mmap
from operator import add, le, lt
from typing import ClassVar

from crashdump_analysis.addresses import PAGE_SIZE, PhysicalAddress
from crashdump_analysis.dump.format import PhysicalDump
from crashdump_analysis.dump.header import HEADER_SIZE, DumpHeader
from crashdump_analysis.errors import DumpError

_METADATA = HEADER_SIZE + 0x20
_RANGES = HEADER_SIZE + 0x30
_MARKER = struct.pack("<I", 0x40) + b"RDMPDUMP"
_COMPLETE = 10  # the type that says how many pages there are
_ANY_RANGES = 1 << 16  # that a file may have; more only where it has as many pages
_MAX_PAGES = 1 << 40  # 52 bits of physical address


class RangeDump(PhysicalDump):
    """The pages of a range dump."""

    TYPES: ClassVar = frozenset({8, 9, 10})

    def __init__(self, data: mmap, header: DumpHeader, where: str) -> None:
        super().__init__(data, header, where)
        place = f"{where} at 0x{HEADER_SIZE:x}"
        found = data[HEADER_SIZE : HEADER_SIZE + len(_MARKER)]
        if found != _MARKER:
            raise DumpError(
                place, expected="0x40 and RDMPDUMP", found=found.hex(" ") or "the end of the file"
            )
        if len(data) < _RANGES:
            raise DumpError(place, expected="a range dump's header", found="the end of the file")
        size, self._first_page = struct.unpack_from("<QQ", data, HEADER_SIZE + 0x10)
        (pages,) = struct.unpack_from("<Q", data, _METADATA + 8)
        if self._first_page != _METADATA + size or not _RANGES <= self._first_page <= len(data):
            raise DumpError(
                place,
                expected="metadata that ends where the first page is, inside the file",
                found=f"0x{size:x} bytes from 0x{_METADATA:x}, the first page at "
                f"0x{self._first_page:x}, a file of 0x{len(data):x} bytes",
            )
        self._read_ranges(pages if header.dump_type == _COMPLETE else None)
        self.required_size = self._first_page + sum(self._count) * PAGE_SIZE

    def _read_ranges(self, pages: int | None) -> None:
        """First page, number of pages and pages of the file before it, by range in rising order.

        pages: how many the ranges have together, where the header says so.
        """
        room = (self._first_page - _RANGES) // 16
        most = max(_ANY_RANGES, len(self.data) // PAGE_SIZE)
        table = array("Q", self.data[_RANGES : _RANGES + 16 * min(room, most)])
        if sys.byteorder == "big":
            table.byteswap()
        first, count = table[0::2], table[1::2]
        used = _used(first, count, pages)
        if used == most:
            raise self._error(used, f"fewer than {most} ranges in a file of this size", "another")
        del first[used:], count[used:]
        if used and (min(count) == 0 or max(count) > _MAX_PAGES or max(first) > _MAX_PAGES):
            wrong = next(
                number
                for number in range(used)
                if not 0 < count[number] <= _MAX_PAGES or first[number] > _MAX_PAGES
            )
            found = f"{count[wrong]} from page 0x{first[wrong]:x}"
            raise self._error(wrong, "a range of physical pages", found)
        if pages not in (None, sum(count)):
            raise DumpError(
                f"{self.where} at 0x{_METADATA + 8:x}",
                expected=f"{sum(count)} pages, as the ranges have",
                found=str(pages),
            )
        before = array("Q", accumulate(count[:-1], initial=0))
        order: Sequence[int] = range(used)
        if not all(map(lt, first, first[1:])):
            order = sorted(order, key=first.__getitem__)
            first, count, before = (
                array("Q", map(one.__getitem__, order)) for one in (first, count, before)
            )
        if not all(map(le, map(add, first, count), first[1:])):
            place = next(n for n in range(1, used) if first[n - 1] + count[n - 1] > first[n])
            found = f"page 0x{first[place]:x} again"
            raise self._error(order[place], "ranges of pages that do not overlap", found)
        self._first, self._count, self._before = first, count, before

    def _error(self, number: int, expected: str, found: str) -> DumpError:
        where = f"{self.where} at 0x{_RANGES + 16 * number:x}"
        return DumpError(where, expected=expected, found=found)

    def read(self, address: PhysicalAddress, size: int) -> bytes | None:
        """Physical memory within one page; None where the file does not hold it."""
        page = address >> 12
        number = bisect_right(self._first, page) - 1
        if number < 0 or page >= self._first[number] + self._count[number]:
            return None
        position = self._before[number] + page - self._first[number]
        offset = self._first_page + position * PAGE_SIZE + address % PAGE_SIZE
        found = self.data[offset : offset + size]
        return found if len(found) == size else None


def _used(first: Sequence[int], count: Sequence[int], pages: int | None) -> int:
    """How many ranges there are before the one that ends them."""
    if pages is None:
        return first.index(0) if 0 in first else len(first)
    total = 0
    for number, (page, many) in enumerate(zip(first, count, strict=True)):
        if page == 0 or total >= pages:
            return number
        total += many
    return len(first)
