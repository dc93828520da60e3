"""A writer of triage dumps (type 4) of a synthetic machine, in the ways of both of their makers.

Written from the layout in the facts about real dumps, and not with the code under test.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.support.synthetic_dump import (
    EPROCESS,
    ETHREAD,
    PRCB,
    PRCB_SIZE,
    STACK,
    STACK_SIZE,
    TIMESTAMP,
    SyntheticMachine,
)

TRIAGE = 4
_STACK_LIMIT = 0x2000


@dataclass
class TriageDump:
    """What the dump has of a machine.

    kernel: made by the kernel as it crashed, with base names; else converted from a kernel dump at
    the next start, with full paths. blocks: (address, size) of the memory to hold. stack: whether
    the stack is saved. secondary: (GUID as it lies in the file, data). changes: u32 values to put
    over fields of TRIAGE_DUMP64, by their offset in it.
    """

    machine: SyntheticMachine
    kernel: bool = False
    blocks: Sequence[tuple[int, int]] = ()
    stack: bool = True
    secondary: Sequence[tuple[bytes, bytes]] = ()
    changes: dict[int, int] = field(default_factory=dict)

    def write(self) -> bytes:
        """The bytes of the dump."""
        self.machine.dump()  # writes the structures into its memory
        self._data = bytearray(0x2080 + 0x50)
        self._fields: dict[int, int] = {0x0C: 0x348, 0x10: 0xF00, 0x14: 0x2080}
        peek = self.machine.space.peek
        rsp = self.machine.registers.get("rsp") or self.machine.registers.get("sp", 0)
        if not self.kernel:
            self._put(0x18, self._unloaded())
        self._put(0x1C, peek(PRCB + 0x1000 * self.machine.processor, PRCB_SIZE))
        self._put(0x20, peek(EPROCESS, 0xA40))
        self._put(0x24, peek(ETHREAD, 0x898))
        on_stack = self.stack and STACK <= rsp < STACK + STACK_SIZE
        saved = peek(rsp, min(STACK + STACK_SIZE - rsp, _STACK_LIMIT)) if on_stack else b""
        self._put(0x28, saved, size_at=0x2C)
        self._put(0x70, self.machine.debugger_data(), size_at=0x74)
        if self.kernel:
            self._put(0x18, self._unloaded())
        self._put_drivers()
        table = len(self._data)
        self._put(0x78, bytes(16 * len(self.blocks)))
        self._fields[0x7C] = len(self.blocks)
        for number, (address, size) in enumerate(self.blocks):
            place = len(self._data)
            self._data += peek(address, size)
            struct.pack_into("<QII", self._data, table + 16 * number, address, place, size)
        self._data += bytes(-len(self._data) % 4) + b"TRGD"
        size = len(self._data)
        self._fields |= {0x04: size, 0x08: size - 4, 0x44: 0x41 if self.kernel else 0xFFFFFFFF}
        for offset, value in (self._fields | self.changes).items():
            struct.pack_into("<I", self._data, 0x2000 + offset, value & 0xFFFFFFFF)
        struct.pack_into("<Q", self._data, 0x2048, rsp)
        self._data += self._secondary()
        self._data[:0x2000] = self.machine.header(TRIAGE, len(self._data))
        if self.kernel:
            struct.pack_into("<I", self._data, 0x1050, 0xC)
        return bytes(self._data)

    def _put(self, field_at: int, data: bytes, *, size_at: int | None = None) -> None:
        self._fields[field_at] = len(self._data)
        if size_at is not None:
            self._fields[size_at] = len(data)
        self._data += data + bytes(-len(data) % 8)

    def _put_drivers(self) -> None:
        modules = self.machine.modules
        entries, pool = bytearray(0x90 * len(modules)), bytearray()
        start = len(self._data) + len(entries)
        for number, (name, base, size) in enumerate(modules):
            text = name if self.kernel else f"\\SystemRoot\\System32\\drivers\\{name}"
            at = 0x90 * number
            struct.pack_into("<I", entries, at, start + len(pool))
            struct.pack_into("<QQI", entries, at + 8 + 0x30, base, base + 0x1000, size)
            struct.pack_into("<I", entries, at + 8 + 0x80, TIMESTAMP)
            pool += struct.pack("<I", len(text)) + text.encode("utf-16-le") + b"\0\0"
            pool += bytes(-len(pool) % 8)
        self._put(0x30, bytes(entries))
        self._fields[0x34] = len(modules)
        self._put(0x38, bytes(pool), size_at=0x3C)

    def _unloaded(self) -> bytes:
        data = bytearray(struct.pack("<Q", len(self.machine.unloaded)))
        for name, start, end in self.machine.unloaded:
            text = name.encode("utf-16-le")[:24]
            data += struct.pack("<HH12x24sQQ", len(text), len(text), text, start, end)
        return bytes(data)

    def _secondary(self) -> bytes:
        if not self.secondary:
            return b""
        data = b"DumpBlob" + struct.pack("<II", 0x10, 0xF0000000 | self.machine.build)
        for tag, piece in self.secondary:
            padding = -len(piece) % 8
            data += struct.pack("<I16sIII", 0x20, tag, len(piece), 0, padding)
            data += piece + bytes(padding)
        return data + bytes(0x20)


def triage_dump(
    machine: SyntheticMachine, *, kernel: bool = False, blocks: Sequence[tuple[int, int]] = ()
) -> bytes:
    """The bytes of a triage dump of a machine."""
    return TriageDump(machine, kernel, blocks).write()
