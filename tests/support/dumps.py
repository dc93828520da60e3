"""Dumps made of other dumps: with memory taken out, and small ones as Windows converts them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from crashdump_analysis.addresses import VirtualAddress
from crashdump_analysis.dump import open_dump
from crashdump_analysis.image import image_in_memory
from crashdump_analysis.memory import Memory, PagedMemory
from crashdump_analysis.modules import loaded_modules
from crashdump_analysis.registers import from_context

PAGE = 0x1000

Range = tuple[int, int]
"""Address and size in bytes of a piece of virtual memory."""


def without_memory(dump: Path, to: Path, ranges: Iterable[Range]) -> Path:
    """A copy of a bitmap dump without the pages in those pieces of virtual memory."""
    with open_dump(dump) as opened:
        memory = opened.memory
        assert isinstance(memory, PagedMemory)
        places = (
            memory.translate(VirtualAddress(page))
            for address, size in ranges
            for page in range(address & -PAGE, address + size, PAGE)
        )
        gone = {place // PAGE for place in places if place is not None}
    data = bytearray(dump.read_bytes())
    first, _, bits = struct.unpack_from("<QQQ", data, 0x2020)
    pages, kept, at = bytearray(), 0, first
    for number in range(bits):
        byte, bit = 0x2038 + number // 8, 1 << number % 8
        if not data[byte] & bit:
            continue
        if number in gone:
            data[byte] &= ~bit
            gone.discard(number)
        else:
            pages += data[at : at + PAGE]
            kept += 1
        at += PAGE
    assert not gone, "the dump did not hold these pages"
    struct.pack_into("<Q", data, 0x2028, kept)
    data[first:] = pages
    struct.pack_into("<Q", data, 0xFA0, len(data))  # RequiredDumpSpace
    to.write_bytes(data)
    return to


def as_triage_dump(dump: Path, to: Path, extra: Sequence[Range] = ()) -> Path:
    """A triage dump of the same crash: header, stack, debugger data, list of drivers.

    extra: memory that it keeps as data blocks.
    """
    with open_dump(dump) as opened:
        memory, header = opened.memory, opened.header
        rsp = from_context(opened.context).rsp
        modules, problems = loaded_modules(memory, header.ps_loaded_module_list)
        assert not problems
        block = memory.read_some(header.debugger_data, 0x380)
        stack = memory.read_some(rsp, 0x4000)
        pieces = [(address, _whole(memory, address, size)) for address, size in extra]
        pool, names, timestamps = bytearray(), [], []
        for module in modules:
            names.append(len(pool))
            timestamps.append(image_in_memory(memory, module.base, module.image).timestamp)
            text = module.path.encode("utf-16-le")
            pool += struct.pack("<I", len(text) // 2) + text + b"\0\0"
            pool += bytes(-len(pool) % 8)
    data = bytearray(dump.read_bytes()[:0x2000])
    fields = {0x0C: 0x348, 0x10: 0xF00, 0x14: 0x2080}
    data += bytes(0x100)

    def put(at: int, piece: bytes, size_at: int | None = None) -> int:
        fields[at] = len(data)
        if size_at is not None:
            fields[size_at] = len(piece)
        data.extend(piece + bytes(-len(piece) % 8))
        return fields[at]

    put(0x28, stack, 0x2C)
    put(0x70, block, 0x74)
    strings = put(0x38, bytes(pool), 0x3C)
    entries = bytearray()
    for name, timestamp, module in zip(names, timestamps, modules, strict=True):
        entry = bytearray(0x90)
        struct.pack_into("<I", entry, 0, strings + name)
        struct.pack_into("<QQI", entry, 0x38, module.base, module.entry_point, module.size)
        struct.pack_into("<II", entry, 0x80, module.checksum, 0)
        struct.pack_into("<I", entry, 0x88, timestamp)
        entries += entry
    put(0x30, bytes(entries))
    fields[0x34] = len(names)
    table = put(0x78, bytes(16 * len(pieces)))
    fields[0x7C] = len(pieces)
    for number, (address, piece) in enumerate(pieces):
        struct.pack_into("<QII", data, table + 16 * number, address, len(data), len(piece))
        data += piece
    data += bytes(-len(data) % 4) + b"TRGD"
    fields |= {0x04: len(data), 0x08: len(data) - 4}
    for offset, value in fields.items():
        struct.pack_into("<I", data, 0x2000 + offset, value)
    struct.pack_into("<Q", data, 0x2048, rsp)
    struct.pack_into("<I", data, 0xF98, 4)
    struct.pack_into("<Q", data, 0xFA0, len(data))
    to.write_bytes(data)
    return to


def _whole(memory: Memory, address: int, size: int) -> bytes:
    found = memory.read(address, size)
    assert found is not None, f"{address:x} is not in the dump"
    return found
