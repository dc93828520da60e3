"""A writer of PDBs whose every byte is known, and of copies of real ones with unwind data added.

Written from LLVM's "The PDB File Format" and microsoft-pdb's structures, and not with the code
under test. Compilers here leave .pdata and .xdata out of PDBs; Microsoft's linker puts them in.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pefile

BLOCK = 0x400
MAGIC = b"Microsoft C/C++ MSF 7.00\r\n\x1aDS\0\0\0"
NONE = 0xFFFF
"""Number of a stream that is not there."""

SECTION_HEADERS, XDATA, PDATA, ORIGINAL_HEADERS, OMAP_TO_SOURCE = 5, 7, 8, 10, 3
"""Places in the optional debug header."""


def msf(streams: Sequence[bytes], block: int = BLOCK) -> bytes:
    """An MSF file with those streams."""
    pages: list[bytes] = [b"", bytes(block), bytes(block)]  # superblock and free block maps

    def put(data: bytes) -> list[int]:
        numbers = []
        for at in range(0, len(data), block):
            numbers.append(len(pages))
            pages.append(data[at : at + block].ljust(block, b"\0"))
        return numbers

    places = [put(one) for one in streams]
    directory = struct.pack("<I", len(streams))
    directory += b"".join(struct.pack("<I", len(one)) for one in streams)
    directory += b"".join(struct.pack(f"<{len(one)}I", *one) for one in places)
    numbers = put(directory)
    (block_map, *_) = put(struct.pack(f"<{len(numbers)}I", *numbers))
    head = (block, 1, len(pages), len(directory), 0, block_map)
    pages[0] = (MAGIC + struct.pack("<6I", *head)).ljust(block, b"\0")
    return b"".join(pages)


def streams_of(data: bytes) -> list[bytes]:
    """The streams of an MSF file."""
    block, _, _, size, _, block_map = struct.unpack_from("<6I", data, 32)

    def blocks(numbers: Sequence[int]) -> bytes:
        return b"".join(data[number * block : (number + 1) * block] for number in numbers)

    directory = blocks(struct.unpack_from(f"<{-(-size // block)}I", data, block_map * block))
    (count,) = struct.unpack_from("<I", directory)
    sizes = struct.unpack_from(f"<{count}I", directory, 4)
    streams, at = [], 4 + 4 * count
    for one in sizes:
        used = 0 if one == 0xFFFFFFFF else -(-one // block)
        streams.append(blocks(struct.unpack_from(f"<{used}I", directory, at))[:one])
        at += 4 * used
    return streams


@dataclass(frozen=True)
class Symbol:
    """A public symbol, or with a size a procedure: section from 1, offset in it, name."""

    section: int
    offset: int
    name: str
    size: int | None = None


def section_header(name: str, rva: int, size: int, flags: int = 0x60000020) -> bytes:
    """An IMAGE_SECTION_HEADER."""
    return struct.pack("<8sIIII12xI", name.encode(), size, rva, size, 0, flags)


TEXT = section_header(".text", 0x1000, 0x2000)


def pdb(
    guid: bytes = b"G" * 16,
    *,
    age: int = 1,
    info_age: int | None = None,
    symbols: Sequence[Symbol] = (),
    sections: Sequence[bytes] = (TEXT,),
    pdata: tuple[int, bytes] | None = None,
    xdata: tuple[int, bytes] | None = None,
    moved: tuple[Sequence[tuple[int, int]], Sequence[bytes]] | None = None,
) -> bytes:
    """A PDB. `age` is the DBI stream's, which the image has; info_age the info stream's.

    Symbols with a size are of one object file, which contributed all of the first section. pdata,
    xdata: offset from the image's base, and bytes. moved: blocks (now, before), and the sections
    before.
    """
    info = struct.pack("<III", 20000404, 0x5EC0DE, age if info_age is None else info_age) + guid
    streams = [b"", info, b"", b"", b""]

    def add(data: bytes) -> int:
        streams.append(data)
        return len(streams) - 1

    records, places = bytearray(), []
    for one in sorted(symbols, key=lambda one: (one.section, one.offset)):
        if one.size is None:
            places.append(len(records))
            records += _record(0x110E, struct.pack("<IIH", 2, one.offset, one.section), one.name)
    map_ = struct.pack(f"<{len(places)}I", *places)
    publics = add(struct.pack("<IIIIHHII", 12, len(map_), 0, 0, 0, 0, 0, 0) + bytes(12) + map_)
    symbol_records = add(bytes(records))
    object_symbols = bytearray(struct.pack("<I", 4))
    for one in symbols:
        if one.size is not None:
            head = struct.pack(
                "<IIIIIIIIHB", 0, 0, 0, one.size, 0, one.size, 0, one.offset, one.section, 0
            )
            object_symbols += _record(0x1110, head, one.name) + _record(0x0006, b"", "")
    modules = struct.pack("<I28xHHIII", 0, 0, add(bytes(object_symbols)), len(object_symbols), 0, 0)
    modules += bytes(16) + b"object.obj\0object.obj\0"
    modules += bytes(-len(modules) % 4)
    contributions = struct.pack("<I", 0xF12EBA2D)
    contributions += struct.pack("<HHIIIHHII", 1, 0, 0, 0x10000, 0, 0, 0, 0, 0)
    debug = [NONE] * 11
    debug[SECTION_HEADERS] = add(b"".join(sections))
    for place, part in ((PDATA, pdata), (XDATA, xdata)):
        if part:
            debug[place] = add(image_part(*part))
    if moved:
        blocks, before = moved
        debug[OMAP_TO_SOURCE] = add(b"".join(struct.pack("<II", *one) for one in blocks))
        debug[ORIGINAL_HEADERS] = add(b"".join(before))
    header = struct.pack(
        "<iII6HiiiiiIiiHHI",
        *(-1, 19990903, age, NONE, 0, publics, 0, symbol_records, 0),
        *(len(modules), len(contributions), 0, 0, 0, 0, 2 * len(debug), 0, 0, 0x8664, 0),
    )
    streams[3] = header + modules + contributions + struct.pack(f"<{len(debug)}H", *debug)
    return msf(streams)


def _record(kind: int, head: bytes, name: str) -> bytes:
    data = struct.pack("<H", kind) + head + (name.encode() + b"\0" if name else b"")
    data += bytes(-(len(data) + 2) % 4)
    return struct.pack("<H", len(data)) + data


def image_part(rva: int, data: bytes) -> bytes:
    """A stream with a copy of a part of an image."""
    return struct.pack("<IIIIQII", 1, 0x20, len(data), rva, 0x1_4000_0000, 0, 0) + data


def with_unwind_data(pdb_path: Path, image_path: Path, *, age: int | None = None) -> bytes:
    """A PDB with .pdata and .xdata of its image as streams, as Microsoft's linker makes them.

    age: another one for both of its streams.
    """
    streams = streams_of(pdb_path.read_bytes())
    with pefile.PE(str(image_path), fast_load=True) as image:
        directory = image.OPTIONAL_HEADER.DATA_DIRECTORY[3]
        table = image.get_data(directory.VirtualAddress, directory.Size)
        infos = [entry[2] for entry in struct.iter_unpack("<III", table)]
        end = max(infos) + 0x200
        xdata = image.get_data(min(infos), end - min(infos))
    dbi = bytearray(streams[3])
    sizes = struct.unpack_from("<iiiii", dbi, 24)
    debug_size, ec = struct.unpack_from("<ii", dbi, 48)
    debug = 64 + sum(sizes) + ec
    assert debug_size >= 2 * PDATA + 2
    for place, rva, data in (
        (PDATA, directory.VirtualAddress, table),
        (XDATA, min(infos), xdata),
    ):
        struct.pack_into("<H", dbi, debug + 2 * place, len(streams))
        streams.append(image_part(rva, data))
    if age is not None:
        struct.pack_into("<I", dbi, 8, age)
        info = bytearray(streams[1])
        struct.pack_into("<I", info, 8, age)
        streams[1] = bytes(info)
    streams[3] = bytes(dbi)
    return msf(streams, 0x1000)
