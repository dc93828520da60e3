"""Names of functions out of a PDB, without other packages.

Of private PDBs from the procedures of each object file, with their sizes; else, and of public PDBs,
from public symbols. Source: LLVM's "The PDB File Format" and microsoft-pdb's cvinfo.h (MIT):
section contributions, PROCSYM32, PUBSYM32, OMAP. Hostile input.
"""

from __future__ import annotations

import bisect
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from crashdump_analysis.image import Section
from crashdump_analysis.symbols.msf import PdbError
from crashdump_analysis.symbols.pdb_file import OMAP_TO_SOURCE, ORIGINAL_SECTIONS, PdbFile

_CONTRIBUTION_SIZES = {0xF12EBA2D: 28, 0xF13151E4: 32}  # bytes an entry, by the table's version
_S_PUB32 = 0x110E
_PROCEDURES = frozenset({0x110F, 0x1110, 0x1146, 0x1147})  # S_LPROC32, S_GPROC32 and their _ID
_MAX_MOVED = 1 << 22  # bytes
_MAX_MODULES = 1 << 17
_MAX_MODULE_SYMBOLS = 1 << 24  # bytes

Place = tuple[int, int]
"""An address as symbols have it: number of the section, from 1, and offset in it."""


@dataclass(frozen=True)
class Function:
    """A function: where it starts, in bytes from the image's base, and its name.

    size: in bytes; None for a public symbol, which has none.
    """

    start: int
    size: int | None
    name: str


class _Symbol(NamedTuple):
    place: Place
    size: int | None
    name: str


class PdbNames:
    """The functions of a PDB."""

    def __init__(self, pdb: PdbFile) -> None:
        self._pdb = pdb
        self._read: dict[int, list[_Symbol]] = {}

    def function(self, rva: int) -> Function | None:
        """The function around an offset from the image's base, or the public symbol before it.

        A public symbol has no size: the offset may lie behind its end. Raises PdbError where the
        PDB is damaged.
        """
        place = self._place(rva)
        if place is None:
            return None
        found = self._procedure(place) or self._public(place)
        # A procedure is also a public symbol: behind its end nothing is known.
        if found is None or (found.size is None and self._procedure(found.place)):
            return None
        return Function(rva - (place[1] - found.place[1]), found.size, plain_name(found.name))

    def _place(self, rva: int) -> Place | None:
        """Where symbols have an address: as it was before a tool moved blocks of code (OMAP)."""
        if self._moved:
            number = bisect.bisect_right(self._moved, rva, key=lambda one: one[0]) - 1
            begin, before = self._moved[number]
            if number < 0 or before == 0:
                return None
            rva += before - begin
        for number, section in enumerate(self._sections, start=1):
            if 0 <= rva - section.rva < section.size:
                return number, rva - section.rva
        return None

    @cached_property
    def _moved(self) -> list[tuple[int, int]]:
        stream = self._pdb.debug_stream(OMAP_TO_SOURCE)
        data = stream.read(0, _MAX_MOVED) if stream else b""
        return sorted(struct.iter_unpack("<II", data[: len(data) // 8 * 8]))

    @cached_property
    def _sections(self) -> tuple[Section, ...]:
        return (self._moved and self._pdb.section_stream(ORIGINAL_SECTIONS)) or self._pdb.sections

    # Procedures, of the object file that contributed the code at a place.

    def _procedure(self, place: Place) -> _Symbol | None:
        procedures = self._procedures_around(place)
        number = bisect.bisect_right(procedures, place, key=lambda one: one.place) - 1
        if number < 0:
            return None
        found = procedures[number]
        inside = found.place[0] == place[0] and place[1] - found.place[1] < (found.size or 0)
        return found if inside else None

    def _procedures_around(self, place: Place) -> list[_Symbol]:
        dbi = self._pdb.dbi
        offset, size = self._pdb.substream("contributions")
        version = dbi.read(offset, 4) if dbi else b""
        entry_size = _CONTRIBUTION_SIZES.get(int.from_bytes(version, "little"))
        if dbi is None or entry_size is None:
            return []

        def entry(number: int) -> tuple[Place, int, int]:
            data = dbi.read(offset + 4 + number * entry_size, 18).ljust(18, b"\0")
            section, begin, length, module = struct.unpack("<H2xII4xH", data)
            return (section, begin), length, module

        count = max(size - 4, 0) // entry_size
        number = bisect.bisect_right(range(count), place, key=lambda one: entry(one)[0]) - 1
        if number < 0:
            return []
        begin, length, module = entry(number)
        if begin[0] != place[0] or place[1] - begin[1] >= length:
            return []
        if module not in self._read:
            self._read[module] = self._procedures(module)
        return self._read[module]

    def _procedures(self, module: int) -> list[_Symbol]:
        """The procedures of an object file, by address."""
        if module >= len(self._modules):
            return []
        number, size = self._modules[module]
        stream = self._pdb.stream(number)
        data = stream.read(0, min(size, _MAX_MODULE_SYMBOLS)) if stream else b""
        found = []
        for kind, record in _records(data):
            if kind in _PROCEDURES and len(record) > 39:
                offset, section = struct.unpack_from("<IH", record, 32)
                (length,) = struct.unpack_from("<I", record, 16)
                found.append(_Symbol((section, offset), length, _text(record[39:])))
        return sorted(found, key=lambda one: one.place)

    @cached_property
    def _modules(self) -> list[tuple[int, int]]:
        """Of each object file the number of its stream, and how many bytes of symbols it has."""
        offset, size = self._pdb.substream("modules")
        data = self._pdb.dbi.read(offset, size) if self._pdb.dbi else b""
        modules: list[tuple[int, int]] = []
        at = 0
        while at + 64 <= len(data) and len(modules) < _MAX_MODULES:
            modules.append(struct.unpack_from("<HI", data, at + 34))
            name = data.find(b"\0", at + 64)
            end = data.find(b"\0", name + 1)
            if name < 0 or end < 0:
                break
            at = end + 4 & ~3
        return modules

    # Public symbols, through their map by address.

    def _public(self, place: Place) -> _Symbol | None:
        publics, records = self._pdb.public_symbols
        if publics is None or records is None:
            return None
        hash_size, map_size = struct.unpack("<II", publics.read(0, 8).ljust(8, b"\0"))
        start = 28 + hash_size
        count = min(map_size, max(publics.size - start, 0)) // 4

        def record(number: int) -> tuple[Place, int]:
            at = int.from_bytes(publics.read(start + 4 * number, 4), "little")
            head = records.read(at, 14)
            if len(head) < 14 or int.from_bytes(head[2:4], "little") != _S_PUB32:
                raise PdbError(f"{self._pdb.path} is damaged: no public symbol at {at:x}")
            offset, section = struct.unpack_from("<IH", head, 8)
            return (section, offset), at

        number = bisect.bisect_right(range(count), place, key=lambda one: record(one)[0]) - 1
        if number < 0:
            return None
        found, at = record(number)
        length = int.from_bytes(records.read(at, 2), "little") + 2
        name = _text(records.read(at, length)[14:])
        return _Symbol(found, None, name) if found[0] == place[0] else None


def _records(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and bytes of each symbol record of an object file, behind the stream's signature."""
    at = 4
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("<HH", data, at)
        if length < 2:
            return
        yield kind, data[at : at + 2 + length]
        at += 2 + length


def _text(data: bytes) -> str:
    text = data.partition(b"\0")[0].decode("utf-8", "replace")
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)


# ?name@inner@outer@@...: a plain name in plain scopes. Templates, operators, constructors and
# repeated names are written otherwise, and stay as they are.
_MANGLED = re.compile(r"\?([A-Za-z_]\w*)((?:@[A-Za-z_]\w*)*)@@[A-Z]")


def plain_name(name: str) -> str:
    """A C++ name as the source has it, without parameters; those of C are so already.

    Only simple mangled names are undone; others stay as the linker knows them.
    """
    found = _MANGLED.match(name)
    if found is None:
        return name
    return "::".join((*reversed(found[2].split("@")[1:]), found[1]))
