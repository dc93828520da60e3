"""PE32+ images, in a machine's memory or as a file; as little of them as triage needs.

Source: Microsoft's "PE Format". Everything here is hostile input; sizes and counts are limited.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from mmap import mmap
from typing import Final, NoReturn

from crashdump_analysis.errors import DumpError
from crashdump_analysis.memory import Memory

EXPORT, IMPORT, EXCEPTION, RELOCATION, DEBUG, LOAD_CONFIG, ADDRESS_TABLE, DELAY_IMPORT = (
    0, 1, 3, 5, 6, 10, 12, 13,
)  # fmt: skip
SECTION_DISCARDABLE: Final = 0x0200_0000
SECTION_EXECUTE: Final = 0x2000_0000
SECTION_WRITE: Final = 0x8000_0000
MACHINE_X64: Final = 0x8664

_MAX_SECTIONS = 96  # what Windows' loader takes
_MAX_DEBUG_ENTRIES = 16
_MAX_PDB_NAME = 260
_MAX_READ = 1 << 26  # bytes at once; a section that claims more is no driver's
_CODEVIEW = 2

Reader = Callable[[int, int], bytes | None]
"""Reads (offset from the image's base, size in bytes); None where it is not there."""


RuntimeFunction = tuple[int, int, int]
"""RUNTIME_FUNCTION: begin and end of a function or a part of one, and its unwind information."""


@dataclass(frozen=True)
class Section:
    """A section: offset from the base and sizes in bytes, in memory and in the file."""

    name: str
    rva: int
    size: int
    file_offset: int
    file_size: int
    flags: int


@dataclass(frozen=True)
class PdbIdentity:
    """Which PDB belongs to an image: its file name, GUID and age (the image's RSDS record)."""

    name: str
    guid: uuid.UUID
    age: int

    @property
    def key(self) -> str:
        """GUID and age as folders of a symbol store spell them."""
        return f"{self.guid.hex.upper()}{self.age:X}"

    def __str__(self) -> str:
        return f"{self.name} {self.key}"


class Image:
    """The headers of an image, read through `read`. `where` names it in errors."""

    def __init__(self, read: Reader, where: str) -> None:
        self.read = read
        self.where = where
        headers = read(0, 0x40)
        if headers is None or headers[:2] != b"MZ":
            self._refuse("a PE image", headers)
        (start,) = struct.unpack_from("<I", headers, 0x3C)
        pe = read(start, 0x108) if start < 0x1000 else None
        if pe is None or pe[:4] != b"PE\0\0":
            self._refuse("a PE header", pe)
        self.machine, count, self.timestamp = struct.unpack_from("<HHI", pe, 4)
        (optional_size,) = struct.unpack_from("<H", pe, 0x14)
        (magic,) = struct.unpack_from("<H", pe, 0x18)
        if magic != 0x20B:
            self._refuse("a PE32+ (64-bit) image", f"optional header 0x{magic:x}")
        self.preferred_base, self.size, self.headers_size, self.checksum, directories = (
            *struct.unpack_from("<Q", pe, 0x18 + 0x18),
            *struct.unpack_from("<III", pe, 0x18 + 0x38),
            *struct.unpack_from("<I", pe, 0x18 + 0x6C),
        )
        self._directories = list(
            struct.iter_unpack("<II", pe[0x88 : 0x88 + 8 * min(directories, 16)])
        )
        self._section_table = start + 0x18 + optional_size
        if count > _MAX_SECTIONS:
            self._refuse(f"at most {_MAX_SECTIONS} sections", str(count))
        self._section_count = count

    def _refuse(self, expected: str, found: bytes | str | None) -> NoReturn:
        if found is None:
            found = "nothing: it is not there"
        raise DumpError(
            self.where,
            expected=expected,
            found=found if isinstance(found, str) else f"the bytes {found[:8].hex(' ')}",
        )

    @property
    def key(self) -> str:
        """Timestamp and size as folders of a symbol store spell them."""
        return f"{self.timestamp:08X}{self.size:x}"

    def directory(self, number: int) -> tuple[int, int]:
        """Offset and size in bytes of a data directory; (0, 0) where the image has none."""
        return self._directories[number] if number < len(self._directories) else (0, 0)

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """The sections in the order of the headers. Raises DumpError where they are missing."""
        table = self.read(self._section_table, 40 * self._section_count)
        if table is None:
            self._refuse("a section table", None)
        return read_section_table(table)

    @cached_property
    def pdb(self) -> PdbIdentity | None:
        """Which PDB belongs to the image, as far as its debug directory can be read."""
        offset, size = self.directory(DEBUG)
        table = self.read(offset, min(size, 28 * _MAX_DEBUG_ENTRIES) // 28 * 28) if size else None
        for kind, record_size, rva in struct.iter_unpack("<12xIII4x", table or b""):
            if kind != _CODEVIEW or not 24 < record_size <= 24 + _MAX_PDB_NAME:
                continue
            record = self.read(rva, record_size)
            if record and record[:4] == b"RSDS":
                name = record[24:].partition(b"\0")[0].decode("utf-8", "replace")
                (age,) = struct.unpack_from("<I", record, 20)
                # Compilers write whole paths; only the file's name is looked for.
                name = name.replace("\\", "/").rpartition("/")[2]
                return PdbIdentity(name, uuid.UUID(bytes_le=record[4:20]), age)
        return None

    def runtime_function(self, rva: int) -> RuntimeFunction | None:
        """The entry of .pdata for an offset from the base; None where there is none.

        Reads only what a binary search touches. Raises LookupError where the table is not there.
        """
        table, size = self.directory(EXCEPTION)
        return find_runtime_function(self.read, table, size, rva, self.where)


def find_runtime_function(
    read: Reader, table: int, size: int, rva: int, where: str
) -> RuntimeFunction | None:
    """The entry for an offset from an image's base in a function table: its place and size.

    Raises LookupError where the table is not there.
    """
    low, high = 0, size // 12
    while low < high:
        middle = (low + high) // 2
        entry = read(table + 12 * middle, 12)
        if entry is None:
            raise LookupError(f"{where}: the unwind data is not in memory")
        begin, end, unwind = struct.unpack("<III", entry)
        if rva < begin:
            high = middle
        elif rva >= end:
            low = middle + 1
        else:
            return begin, end, unwind
    return None


def read_section_table(table: bytes) -> tuple[Section, ...]:
    """The sections of IMAGE_SECTION_HEADER records, 40 bytes each; one that is cut is left out."""
    return tuple(
        Section(
            name.rstrip(b"\0").decode("ascii", "replace"), rva, size, file_offset, file_size, flags
        )
        for name, size, rva, file_size, file_offset, flags in struct.iter_unpack(
            "<8sIIII12xI", table[: len(table) // 40 * 40]
        )
    )


def image_in_memory(memory: Memory, base: int, where: str) -> Image:
    """The image loaded at an address. Raises DumpError where its headers are not there."""
    return Image(lambda rva, size: memory.read(base + rva, size), where)


def image_in_file(data: bytes | mmap, where: str) -> Image:
    """The image in a file's bytes, read as if it were loaded (but not relocated).

    Raises DumpError where it is no PE32+ image.
    """

    def headers(offset: int, size: int) -> bytes | None:
        found = data[offset : offset + size]
        return found if len(found) == size else None

    sections = Image(headers, where).sections

    def read(rva: int, size: int) -> bytes | None:
        if size > _MAX_READ:
            return None
        for section in sections:
            offset = rva - section.rva
            if offset >= 0 and offset + size <= max(section.size, section.file_size):
                start = section.file_offset + offset
                found = data[start : start + min(size, max(section.file_size - offset, 0))]
                return found.ljust(size, b"\0")  # what the file leaves out is zero in memory
        return headers(rva, size)

    return Image(read, where)


def relocations(image: Image) -> Iterator[int]:
    """Offsets from the base of the 64-bit pointers that a loader relocates.

    Raises DumpError where there are relocations of another kind, or the table is damaged.
    """
    table, size = image.directory(RELOCATION)
    at = 0
    while at + 8 <= size:
        header = image.read(table + at, 8)
        if header is None:
            raise DumpError(image.where, expected="relocations", found="the end of the file")
        page, block = struct.unpack("<II", header)
        if not 8 <= block <= size - at:
            raise DumpError(image.where, expected="a block of relocations", found=f"{block} bytes")
        entries = image.read(table + at + 8, block - 8 & ~1) or b""
        for (entry,) in struct.iter_unpack("<H", entries):
            kind = entry >> 12
            if kind == 10:  # IMAGE_REL_BASED_DIR64
                yield page + (entry & 0xFFF)
            elif kind != 0:  # padding
                raise DumpError(
                    image.where, expected="relocations of 64-bit pointers", found=f"kind {kind}"
                )
        at += block
