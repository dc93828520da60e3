"""What a PDB says of an image: functions by address through symbolic, public symbols by hand."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pefile
from symbolic.debuginfo import Archive

S_PUB32 = 0x110E
"""Record type of a public symbol (Microsoft's cvinfo.h)."""


@dataclass(frozen=True)
class Place:
    """A function at an address, and the source line."""

    function: str
    file: str
    line: int


def places(pdb: Path, offset: int) -> list[Place]:
    """The functions at an offset from the image's base, inlined ones before their callers."""
    return [
        Place(found.symbol.partition("(")[0], Path(found.full_path).name, found.line)
        for found in _symcache(pdb, pdb.stat().st_mtime_ns).lookup(offset)
    ]


@lru_cache(maxsize=16)
def _symcache(pdb: Path, _changed: int) -> Any:
    return Archive.open(str(pdb)).get_object(arch="x86_64").make_symcache()


def public_symbol(pdb: Path, image: Path, name: str) -> int:
    """A public symbol's offset in bytes from the image's base. Raises LookupError.

    symbolic has functions only. Layout: LLVM's "The PDB File Format", MSF, DBI and publics.
    """
    data = pdb.read_bytes()
    block, _, _, directory_bytes, _, map_block = struct.unpack_from("<6I", data, 32)

    def blocks(numbers: tuple[int, ...]) -> bytes:
        return b"".join(data[number * block : (number + 1) * block] for number in numbers)

    map_count = -(-directory_bytes // block)
    directory = blocks(struct.unpack_from(f"<{map_count}I", data, map_block * block))
    (count,) = struct.unpack_from("<I", directory)
    sizes = struct.unpack_from(f"<{count}I", directory, 4)
    streams, at = [], 4 + 4 * count
    for size in sizes:
        used = 0 if size == 0xFFFFFFFF else -(-size // block)
        streams.append(blocks(struct.unpack_from(f"<{used}I", directory, at))[:size])
        at += 4 * used
    (symbol_stream,) = struct.unpack_from("<H", streams[3], 20)  # DBI header: SymRecordStream
    records, at = streams[symbol_stream], 0
    while at < len(records):
        length, kind = struct.unpack_from("<HH", records, at)
        if kind == S_PUB32:
            _, offset, segment = struct.unpack_from("<IIH", records, at + 4)
            if records[at + 14 : at + 2 + length].split(b"\0")[0] == name.encode():
                with pefile.PE(str(image), fast_load=True) as parsed:
                    return int(parsed.sections[segment - 1].VirtualAddress + offset)
        at += 2 + length
    raise LookupError(f"{pdb} has no public symbol {name}")


def export(image: Path, name: str) -> int:
    """An export's offset in bytes from the image's base. Raises LookupError."""
    with pefile.PE(str(image)) as parsed:
        for symbol in parsed.DIRECTORY_ENTRY_EXPORT.symbols:
            if symbol.name == name.encode():
                return int(symbol.address)
    raise LookupError(f"{image} has no export {name}")
