"""Pages that follow one another in a file, and a bitmap that says which they are.

Bit n, lowest first, is page n.
"""

from __future__ import annotations

from itertools import accumulate
from mmap import mmap

from crashdump_analysis.addresses import PAGE_SIZE, PhysicalAddress
from crashdump_analysis.dump.header import HEADER_SIZE
from crashdump_analysis.errors import DumpError

_CHUNK = 2048  # bytes that are counted at once
_MAX_PAGES = 1 << 34  # 64 TiB of physical addresses, more than x64 Windows supports


class PageBitmap:
    """The pages of a mapped file by number.

    offset: of the bitmap in the file, in bytes. bits: how many there are. pages: how many are set,
    as the dump's header claims. first_page: the file offset of the first page. Raises DumpError
    where these cannot be.
    """

    def __init__(
        self, data: mmap, where: str, *, offset: int, bits: int, pages: int, first_page: int
    ) -> None:
        place = f"{where} at 0x{HEADER_SIZE:x}"
        end = offset + -(-bits // 8)
        if bits > _MAX_PAGES or end > min(first_page, len(data)):
            raise DumpError(
                place,
                expected="a bitmap that ends before the first page",
                found=f"{bits} bits, the first page at 0x{first_page:x} of 0x{len(data):x} bytes",
            )
        self._data = data
        self._offset = offset
        self._bits = bits
        self._first_page = first_page
        # Pages before each chunk of the bitmap, so that a page is found without counting it all.
        counts = (
            int.from_bytes(data[at : min(at + _CHUNK, end)], "little").bit_count()
            for at in range(offset, end, _CHUNK)
        )
        self._before = [0, *accumulate(counts)]
        if self._before[-1] < pages:
            raise DumpError(
                place, expected=f"{pages} bits set in the bitmap", found=f"{self._before[-1]}"
            )

    def read(self, address: PhysicalAddress, size: int) -> bytes | None:
        """Physical memory within one page; None where the file does not hold it."""
        page = address >> 12
        if page >= self._bits:
            return None
        chunk, bit = divmod(page, _CHUNK * 8)
        start = self._offset + chunk * _CHUNK
        upto = int.from_bytes(self._data[start : start + bit // 8 + 1], "little")
        if not upto >> bit & 1:
            return None
        number = self._before[chunk] + (upto & ((1 << bit) - 1)).bit_count()
        offset = self._first_page + number * PAGE_SIZE + address % PAGE_SIZE
        found = self._data[offset : offset + size]
        return found if len(found) == size else None
