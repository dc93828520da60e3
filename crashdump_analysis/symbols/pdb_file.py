"""What triage needs of a PDB, without other packages: identity, sections, unwind data.

Source: LLVM's "The PDB File Format" and microsoft-pdb (MIT): info stream, DBI stream and its
optional debug header. The header before the copies of .pdata and .xdata is described in neither; it
was measured on Microsoft's PDBs: {1, size of the header, bytes, RVA, image base}. Hostile input.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from crashdump_analysis.image import (
    RuntimeFunction,
    Section,
    find_runtime_function,
    read_section_table,
)
from crashdump_analysis.symbols.msf import MsfFile, PdbError, Stream

_INFO, _DBI = 1, 3  # streams with fixed numbers
_VC70 = 20000404  # version of the info stream that has a GUID
_DBI_HEADER = 64  # bytes
# Places in the optional debug header, which names further streams.
OMAP_TO_SOURCE: Final = 3
SECTIONS: Final = 5
XDATA: Final = 7
PDATA: Final = 8
ORIGINAL_SECTIONS: Final = 10
_MAX_SECTIONS = 1024
_MAX_UNWIND_DATA = 1 << 26  # bytes
_PAGE = 0x1000


@dataclass(frozen=True)
class ImagePart:
    """Bytes of an image that a PDB has a copy of, and their offset from the image's base."""

    rva: int
    data: bytes

    def read(self, rva: int, size: int) -> bytes | None:
        """`size` bytes at an offset from the image's base; None where they are not of this part."""
        offset = rva - self.rva
        return self.data[offset : offset + size] if 0 <= offset <= len(self.data) - size else None


@dataclass(frozen=True)
class FunctionTable(ImagePart):
    """The image's .pdata."""

    def runtime_function(self, rva: int) -> RuntimeFunction | None:
        """The entry for an offset from the image's base; None where it has none."""
        return find_runtime_function(self.read, self.rva, len(self.data), rva, "the PDB")


class PdbFile:
    """An open PDB. Raises PdbError where it is none, and OSError where it cannot be read.

    guid and age are those that the image's RSDS record has. The age is the DBI stream's: the info
    stream's grows when a tool writes to the PDB, as those that strip or index it do. Everything
    else is read when first asked for, and raises PdbError where the file is damaged there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = MsfFile(path)
        info = self._file.stream(_INFO)
        head = info.read(0, 28) if info else b""
        if len(head) < 28:
            raise PdbError(f"{path} is damaged: it has no info stream")
        version, _, age = struct.unpack_from("<III", head)
        if version < _VC70:
            raise PdbError(f"{path} is of an old kind without a GUID (version {version})")
        self.guid = uuid.UUID(bytes_le=head[12:28])
        self.dbi = self._file.stream(_DBI)
        self._header = self.dbi.read(0, _DBI_HEADER) if self.dbi else b""
        if len(self._header) == _DBI_HEADER:
            (age,) = struct.unpack_from("<I", self._header, 8)
        else:
            self.dbi, self._header = None, bytes(_DBI_HEADER)
        self.age: int = age

    @property
    def key(self) -> str:
        """GUID and age as folders of a symbol store spell them."""
        return f"{self.guid.hex.upper()}{self.age:X}"

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """The section table of the image; empty where the PDB has no copy of it."""
        return self.section_stream(SECTIONS)

    @property
    def image_size(self) -> int:
        """SizeOfImage in bytes, by the section table; 0 without one."""
        end = max((one.rva + one.size for one in self.sections), default=0)
        return -(-end // _PAGE) * _PAGE

    @cached_property
    def pdata(self) -> FunctionTable | None:
        """The image's function table, .pdata; None where the PDB has no copy of it."""
        part = self._image_part(PDATA)
        return FunctionTable(part.rva, part.data) if part else None

    @cached_property
    def xdata(self) -> ImagePart | None:
        """The image's unwind information; None where the PDB has no copy of it."""
        return self._image_part(XDATA)

    def read_image(self, rva: int, size: int) -> bytes | None:
        """Bytes at an offset from the image's base, as far as they are unwind data."""
        for part in (self.pdata, self.xdata):
            found = part.read(rva, size) if part else None
            if found is not None:
                return found
        return None

    def substream(self, name: str) -> tuple[int, int]:
        """Offset and size in bytes of a part of the DBI stream; size 0 where it has none."""
        return self._substreams[name]

    @cached_property
    def _substreams(self) -> dict[str, tuple[int, int]]:
        parts, at = {}, _DBI_HEADER
        for name, field in (  # in their order behind the header
            *(("modules", 24), ("contributions", 28), ("section map", 32), ("sources", 36)),
            *(("type servers", 40), ("edit and continue", 52), ("debug header", 48)),
        ):
            (size,) = struct.unpack_from("<i", self._header, field)
            parts[name] = (at, max(size, 0))
            at += max(size, 0)
        return parts

    def stream(self, number: int) -> Stream | None:
        """A stream by its number; None where there is none."""
        return self._file.stream(number)

    @property
    def public_symbols(self) -> tuple[Stream | None, Stream | None]:
        """The stream that has the map of public symbols, and that of all symbol records."""
        if self.dbi is None:
            return None, None
        numbers = struct.unpack_from("<H2xH", self._header, 16)
        return self.stream(numbers[0]), self.stream(numbers[1])

    def debug_stream(self, place: int) -> Stream | None:
        """A stream that the optional debug header names; None where it names none."""
        offset, size = self._substreams["debug header"]
        if self.dbi is None or 2 * place + 2 > size:
            return None
        number = self.dbi.read(offset + 2 * place, 2)
        return self.stream(int.from_bytes(number, "little")) if len(number) == 2 else None

    def section_stream(self, place: int) -> tuple[Section, ...]:
        """A section table that the optional debug header names."""
        stream = self.debug_stream(place)
        data = stream.read(0, 40 * _MAX_SECTIONS) if stream else b""
        return read_section_table(data)

    def _image_part(self, place: int) -> ImagePart | None:
        stream = self.debug_stream(place)
        head = stream.read(0, 16) if stream else b""
        if stream is None or len(head) < 16:
            return None
        version, header_size, size, rva = struct.unpack("<IIII", head)
        if version != 1 or not 16 <= header_size <= _PAGE or size > _MAX_UNWIND_DATA:
            raise PdbError(f"{self.path} has unwind data in a form that is not known")
        return ImagePart(rva, stream.read(header_size, size))
