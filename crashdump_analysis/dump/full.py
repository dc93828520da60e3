"""Full dumps (type 1): every page of physical memory, run by run, from 0x2000 on.

Layout: PHYSICAL_MEMORY_DESCRIPTOR64 at 0x88 of the header: u32 number of runs, u32, u64 number of
pages, then for each run u64 first page and u64 number of pages (kdmp-parser's structures, MIT).
"""

from __future__ import annotations

import bisect
import struct
from mmap import mmap
from typing import ClassVar

from crashdump_analysis.addresses import PAGE_SIZE, PhysicalAddress
from crashdump_analysis.dump.format import PhysicalDump
from crashdump_analysis.dump.header import (
    HEADER_SIZE,
    MEMORY_BLOCK_OFFSET,
    MEMORY_BLOCK_SIZE,
    DumpHeader,
)
from crashdump_analysis.errors import DumpError

_MAX_RUNS = (MEMORY_BLOCK_SIZE - 16) // 16
_MAX_PAGES = 1 << 40  # 52 bits of physical address


class FullDump(PhysicalDump):
    """The physical memory of a full dump; reads what the file holds and no more."""

    TYPES: ClassVar = frozenset({1})

    def __init__(self, data: mmap, header: DumpHeader, where: str) -> None:
        super().__init__(data, header, where)
        (count,) = struct.unpack_from("<I", data, MEMORY_BLOCK_OFFSET)
        if not 1 <= count <= _MAX_RUNS:
            raise DumpError(
                f"{where} at 0x{MEMORY_BLOCK_OFFSET:x}",
                expected=f"1 to {_MAX_RUNS} runs of physical memory",
                found=str(count),
            )
        runs = list(struct.iter_unpack("<QQ", data[0x98 : 0x98 + 16 * count]))
        self._first: list[int] = []  # page number of each run
        self._pages: list[int] = []  # in each run
        self._offset: list[int] = []  # of each run in the file
        offset, end = HEADER_SIZE, 0
        for number, (first, pages) in enumerate(runs):
            if first < end or pages == 0 or first + pages > _MAX_PAGES:
                raise DumpError(
                    f"{where} at 0x{0x98 + 16 * number:x}",
                    expected="a run of physical memory behind the one before",
                    found=f"{pages} pages from page 0x{first:x}",
                )
            self._first.append(first)
            self._pages.append(pages)
            self._offset.append(offset)
            offset += pages * PAGE_SIZE
            end = first + pages
        self.required_size = offset
        """The size in bytes of a file that holds all runs."""

    def read(self, address: PhysicalAddress, size: int) -> bytes | None:
        """Physical memory within one page; None where the file does not hold it."""
        page = address >> 12
        run = bisect.bisect_right(self._first, page) - 1
        if run < 0 or page >= self._first[run] + self._pages[run]:
            return None
        offset = self._offset[run] + (page - self._first[run]) * PAGE_SIZE + address % PAGE_SIZE
        found = self.data[offset : offset + size]
        return found if len(found) == size else None
