"""Triage dumps (type 4), the files in %SystemRoot%/Minidump: pieces of virtual memory and copies.

Layout (TRIAGE_DUMP64 at 0x2000; rizin's dmp_specs.h and 53 real dumps): u32 fields with offsets in
the file and sizes; names below. The last four bytes that belong to it are "TRGD", at ValidOffset;
secondary data of drivers may follow. Two writers make them: the kernel itself, and the conversion
of a kernel dump at the next start, which keeps a few hundred blocks of 256 bytes.

One address may be in a data block, in the saved stack and in a copy of a structure; as in Windows'
debuggers the blocks win, then the stack. Every offset, size and count is hostile input.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from functools import cached_property
from mmap import mmap
from typing import ClassVar, Final

from crashdump_analysis.addresses import KERNEL_SPACE
from crashdump_analysis.dump.format import DumpFormat
from crashdump_analysis.dump.header import HEADER_SIZE, MACHINE_ARM64, MACHINE_X64, DumpHeader
from crashdump_analysis.errors import DumpError
from crashdump_analysis.memory import Memory
from crashdump_analysis.modules import MAX_MODULES, Module, Modules, module_of_entry, printable

_SIZE = 0x80  # of TRIAGE_DUMP64
_VALID: Final = b"TRGD"
_MAX_BLOCKS: Final = 1 << 16
_MAX_STACK: Final = 1 << 20  # bytes
_DRIVER_ENTRY: Final = 0x90
_ENTRY = 8  # of KLDR_DATA_TABLE_ENTRY in a driver entry
_BASE = 0x30  # of the image's address in that
_MAX_NAME: Final = 512  # characters
_MAX_COPY: Final = 0x10000  # bytes: sizes of structures are 16 bits wide
_UNLOADED_SIZE: Final = 8 + 50 * 0x38
_DEBUGGER_OFFSETS = 0x2C2  # bytes of KDDEBUGGER_DATA64 that hold the offsets used here

Piece = tuple[int, int, int]
"""Where in virtual memory a piece starts, its offset in the file, its size in bytes."""


class TriageDump(DumpFormat):
    """A triage dump of an x64 or ARM64 machine."""

    TYPES: ClassVar = frozenset({4})
    MACHINES: ClassVar = frozenset({MACHINE_X64, MACHINE_ARM64})

    def __init__(self, data: mmap, header: DumpHeader, where: str) -> None:
        super().__init__(data, header, where)
        if len(data) < HEADER_SIZE + _SIZE:
            raise DumpError(
                f"{where} at 0x{HEADER_SIZE:x}",
                expected=f"TRIAGE_DUMP64, {_SIZE} bytes",
                found=f"the end of the file after {len(data) - HEADER_SIZE}",
            )
        fields = struct.unpack_from("<18IQ16xQ6I", data, HEADER_SIZE)
        _, self.required_size, valid = fields[:3]
        self._unloaded_drivers, self._processor, self._process, self._thread = fields[6:10]
        self._stack, self._stack_size = fields[10:12]
        self._drivers, self._driver_count = fields[12:14]
        self.top_of_stack: int = fields[18]
        """The lowest address of the saved stack: rsp at the crash."""
        self._page_address, self._page, self._page_size = fields[19:22]
        self._debugger_data, self._debugger_data_size = fields[22:24]
        self._blocks, self._block_count = struct.unpack_from("<II", data, HEADER_SIZE + 0x78)
        place = f"{where} at 0x{HEADER_SIZE + 4:x}"
        least = HEADER_SIZE + _SIZE + 4
        if not least <= self.required_size < 1 << 31 or valid != self.required_size - 4:
            raise DumpError(
                place,
                expected="the size of a triage dump, and the offset of its last four bytes",
                found=f"0x{self.required_size:x} and 0x{valid:x}",
            )
        mark = data[valid : valid + 4]
        if len(mark) == 4 and mark != _VALID:
            raise DumpError(
                f"{where} at 0x{valid:x}", expected="TRGD, which ends it", found=mark.hex(" ")
            )

    @cached_property
    def memory(self) -> Memory:  # type: ignore[override]
        """The pieces of virtual memory that the file holds."""
        return BlockMemory(self.data, self._pieces())

    def _pieces(self) -> Iterator[Iterable[Piece]]:
        """Layers of pieces, those that win first."""
        count = min(self._block_count, _MAX_BLOCKS)
        table = self.data[self._blocks : self._blocks + 16 * count]
        count = len(table) // 16
        if count < self._block_count:
            self.warnings.append(
                f"{count} of {self._block_count} blocks of memory are read; "
                + ("that is the most" if count == _MAX_BLOCKS else "their table is cut")
            )
        yield struct.iter_unpack("<QII", table[: 16 * count])
        yield [(self.top_of_stack, self._stack, min(self._stack_size, _MAX_STACK))]
        yield [(self._page_address, self._page, self._page_size)]
        size = min(self._debugger_data_size, _MAX_COPY)
        yield [(self.header.debugger_data, self._debugger_data, size)]
        yield self._copies()

    def _copies(self) -> list[Piece]:
        """The thread and the process, where memory has them by KDDEBUGGER_DATA64's offsets."""
        block = self.debugger_data
        if len(block) < _DEBUGGER_OFFSETS:
            return []
        to_process, process_size = struct.unpack_from("<H6xH", block, 0x2A0)
        to_thread, thread_size = struct.unpack_from("<H10xH", block, 0x2B4)
        thread = self._pointer(self._processor + to_thread)
        process = self._pointer(self._thread + to_process)
        copies = (thread, self._thread, thread_size), (process, self._process, process_size)
        return [copy for copy in copies if copy[0] >= KERNEL_SPACE]

    def _pointer(self, offset: int) -> int:
        return int.from_bytes(self.data[offset : offset + 8], "little")

    @property
    def debugger_data(self) -> bytes:
        """KDDEBUGGER_DATA64, which lies in the file in plain."""
        return self._slice(self._debugger_data, self._debugger_data_size)

    @property
    def processor_block(self) -> bytes:
        """The KPRCB; what follows it in the file is behind its end."""
        return self._slice(self._processor, _MAX_COPY)

    @property
    def thread(self) -> bytes:
        """The ETHREAD; what follows it in the file is behind its end."""
        return self._slice(self._thread, _MAX_COPY)

    @property
    def process(self) -> bytes:
        """The EPROCESS; what follows it in the file is behind its end."""
        return self._slice(self._process, _MAX_COPY)

    @property
    def unloaded_drivers(self) -> bytes:
        """The list of unloaded drivers."""
        return self._slice(self._unloaded_drivers, _UNLOADED_SIZE)

    def _slice(self, offset: int, size: int) -> bytes:
        """Bytes of the file behind the header; none where the offset says that there are none."""
        if offset < HEADER_SIZE:
            return b""
        return self.data[offset : offset + min(size, _MAX_COPY)]

    @cached_property
    def modules(self) -> Modules | None:
        """The loaded images, from the file's own list."""
        count = min(self._driver_count, MAX_MODULES)
        table = self.data[self._drivers : self._drivers + _DRIVER_ENTRY * count]
        modules: list[Module] = []
        block = self.debugger_data
        kernel = int.from_bytes(block[0x18:0x20], "little") if block[0x10:0x14] == b"KDBG" else 0
        for at in range(0, len(table) - _DRIVER_ENTRY + 1, _DRIVER_ENTRY):
            (name,) = struct.unpack_from("<I", table, at)
            (base,) = struct.unpack_from("<Q", table, at + _ENTRY + _BASE)
            is_kernel = base == kernel if kernel else not modules
            module = module_of_entry(
                table, at + _ENTRY, self._text(name), kernel=is_kernel, timestamped=True
            )
            if module is None:
                self.warnings.append(f"entry {at // _DRIVER_ENTRY} of the drivers is no image")
            else:
                modules.append(module)
        if len(table) < _DRIVER_ENTRY * self._driver_count:
            self.warnings.append(
                f"{len(table) // _DRIVER_ENTRY} of {self._driver_count} modules are read; "
                + ("that is the most" if count == MAX_MODULES else "their list is cut")
            )
        return Modules(modules)

    def _text(self, offset: int) -> str:
        """A counted string: u32 characters, UTF-16."""
        start = self.data[offset : offset + 4]
        size = 2 * min(int.from_bytes(start, "little"), _MAX_NAME)
        return printable(self.data[offset + 4 : offset + 4 + size])


class BlockMemory(Memory):
    """Virtual memory made of pieces of a file.

    layers: pieces; where they overlap, those of an earlier layer win, and within a layer the one
    that starts at the lower address.
    """

    def __init__(self, data: mmap, layers: Iterable[Iterable[Piece]]) -> None:
        self._data = data
        self._extents: list[_Extent] = []
        for number, layer in enumerate(layers):
            extents = _without_overlaps(layer, len(data))
            self._extents = _behind(self._extents, extents) if number else list(extents)
        self._starts = [extent[0] for extent in self._extents]

    def read_some(self, address: int, size: int) -> bytes:
        """As many of `size` bytes as there are before the first missing one."""
        number = bisect_right(self._starts, address) - 1
        if number < 0 or size <= 0:
            return b""
        start, end, offset = self._extents[number]
        if address >= end:
            return b""
        offset += address - start
        if address + size <= end:
            return self._data[offset : offset + size]
        out = bytearray(self._data[offset : offset + end - address])
        while len(out) < size and number + 1 < len(self._extents):
            number += 1
            start, following, offset = self._extents[number]
            if start != end:
                break
            out += self._data[offset : offset + min(following - start, size - len(out))]
            end = following
        return bytes(out)


_Extent = tuple[int, int, int]  # first address, address behind the last, offset in the file


def _without_overlaps(pieces: Iterable[Piece], file_size: int) -> Iterator[_Extent]:
    """Pieces by address: what of each is in the file and not in one before it."""
    reached = 0
    for start, offset, size in sorted(pieces):
        end = start + min(size, file_size - offset)
        if end > reached and start < end <= 1 << 64:
            first = max(start, reached)
            yield first, end, offset + first - start
            reached = end


def _behind(extents: list[_Extent], added: Iterable[_Extent]) -> list[_Extent]:
    """Extents by address, and what others have in the gaps between them."""
    starts, gaps = [extent[0] for extent in extents], list[_Extent]()
    for start, end, offset in added:
        at, number = start, max(bisect_right(starts, start) - 1, 0)
        while at < end:
            while number < len(extents) and extents[number][1] <= at:
                number += 1
            upto = min(end, extents[number][0]) if number < len(extents) else end
            if upto > at:
                gaps.append((at, upto, offset + at - start))
            at = max(upto, extents[number][1]) if number < len(extents) else end
    return sorted(extents + gaps) if gaps else extents
