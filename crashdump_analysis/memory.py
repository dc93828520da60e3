"""Virtual memory of a crashed machine, whatever kind of dump it comes out of.

PagedMemory reads an x64 machine's own page tables: four levels of 512 entries, with pages of 4 KiB,
2 MiB and 1 GiB (AMD64 Architecture Programmer's Manual, volume 2, 5.3). A page that Windows keeps
in transition counts as absent: the layout of such an entry is not documented.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final, Protocol

from crashdump_analysis.addresses import PAGE_SIZE, PhysicalAddress, VirtualAddress

_ADDRESS: Final = 0x000F_FFFF_FFFF_F000  # an entry's physical address
_PRESENT, _LARGE = 0x01, 0x80
_CACHED_PAGES = 4096


class PhysicalMemory(Protocol):
    """A machine's pages by physical address: a dump's, or a live machine's."""

    def read(self, address: PhysicalAddress, size: int) -> bytes | None:
        """`size` bytes that lie within one page; None where they are not there."""


class Memory(ABC):
    """Virtual memory at one moment; hostile input, of which any byte may be missing."""

    @abstractmethod
    def read_some(self, address: int, size: int) -> bytes:
        """As many of `size` bytes as there are before the first missing one."""

    def read(self, address: int, size: int) -> bytes | None:
        """`size` bytes of virtual memory; None where any of them is not there."""
        found = self.read_some(address, size)
        return found if len(found) == size else None

    def u16(self, address: int) -> int | None:
        """A 16-bit number, or None."""
        return self._number(address, 2)

    def u32(self, address: int) -> int | None:
        """A 32-bit number, or None."""
        return self._number(address, 4)

    def u64(self, address: int) -> int | None:
        """A 64-bit number, or None."""
        return self._number(address, 8)

    def _number(self, address: int, size: int) -> int | None:
        data = self.read(address, size)
        return None if data is None else int.from_bytes(data, "little")


class PagedMemory(Memory):
    """Virtual memory as one set of page tables shows it, at one moment: what was read is kept.

    directory_table_base: CR3 of the address space.
    """

    def __init__(self, physical: PhysicalMemory, directory_table_base: int) -> None:
        self._physical = physical
        self._root = PhysicalAddress(directory_table_base & _ADDRESS)
        self._pages: dict[int, bytes | None] = {}
        self._tables: dict[int, bytes | None] = {}

    def translate(self, address: VirtualAddress) -> PhysicalAddress | None:
        """The physical address behind a virtual one; None where nothing is mapped."""
        if address >> 47 not in (0, 0x1FFFF):
            return None  # not canonical
        table = self._root
        for shift in (39, 30, 21, 12):
            data = self._table(table)
            if data is None:
                return None
            index = (address >> shift & 0x1FF) * 8
            entry = int.from_bytes(data[index : index + 8], "little")
            if not entry & _PRESENT:
                return None
            if shift == 12 or (entry & _LARGE and shift < 39):
                offset = address & ((1 << shift) - 1)
                return PhysicalAddress(entry & _ADDRESS & -(1 << shift) | offset)
            table = PhysicalAddress(entry & _ADDRESS)
        raise AssertionError("the last level returns")

    def read_some(self, address: int, size: int) -> bytes:
        """As many of `size` bytes as there are before the first missing page."""
        offset = address % PAGE_SIZE
        page = self._page(address - offset)
        if page is None or size <= 0:
            return b""
        if offset + size <= PAGE_SIZE:
            return page[offset : offset + size]
        out = bytearray(page[offset:])
        while len(out) < size:
            page = self._page(address + len(out))
            if page is None:
                break
            out += page[: size - len(out)]
        return bytes(out)

    def _page(self, address: int) -> bytes | None:
        if address in self._pages:
            return self._pages[address]
        physical = self.translate(VirtualAddress(address))
        page = None if physical is None else self._physical.read(physical, PAGE_SIZE)
        if len(self._pages) >= _CACHED_PAGES:
            self._pages.clear()
        self._pages[address] = page
        return page

    def _table(self, address: PhysicalAddress) -> bytes | None:
        if address not in self._tables:
            if len(self._tables) >= _CACHED_PAGES:
                self._tables.clear()
            self._tables[address] = self._physical.read(address, PAGE_SIZE)
        return self._tables[address]
