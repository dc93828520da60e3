"""Drivers that were unloaded before the crash: the kernel keeps the last 50.

In memory (MmUnloadedDrivers, by KDDEBUGGER_DATA64) an array of UNLOADED_DRIVERS: a UNICODE_STRING,
first and last address, time; MmLastUnloadedDriver says where the next will be written. A triage
dump has a list of its own: u64 count, then entries of 0x38 bytes: a UNICODE_STRING whose text of at
most 12 characters follows it, first and last address. Both as seen in real dumps and in the
published structures of the debugger (volatility's unloadedmodules).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from crashdump_analysis.addresses import KERNEL_SPACE
from crashdump_analysis.debugger_data import DebuggerData
from crashdump_analysis.dump.header import filetime
from crashdump_analysis.memory import Memory
from crashdump_analysis.modules import printable
from crashdump_analysis.report import UnloadedDriver

MAX_UNLOADED: Final = 50
_ENTRY_SIZE, _TRIAGE_ENTRY_SIZE = 0x28, 0x38
_TRIAGE_NAME_SIZE = 24  # bytes
_MAX_NAME = 512  # bytes


def triage_unloaded_drivers(data: bytes) -> tuple[UnloadedDriver, ...]:
    """The list of a triage dump, which starts at `data`; as far as it is there."""
    count = min(int.from_bytes(data[:8], "little"), MAX_UNLOADED)
    table = data[8 : 8 + _TRIAGE_ENTRY_SIZE * count]
    found = []
    for at in range(0, len(table) - _TRIAGE_ENTRY_SIZE + 1, _TRIAGE_ENTRY_SIZE):
        size, name, start, end = struct.unpack_from(f"<H14x{_TRIAGE_NAME_SIZE}sQQ", table, at)
        if _is_range(start, end):
            text = printable(name[: min(size & ~1, _TRIAGE_NAME_SIZE)])
            found.append(UnloadedDriver(text, start, end, None))
    return tuple(found)


def unloaded_drivers(memory: Memory, debugger_data: DebuggerData) -> tuple[UnloadedDriver, ...]:
    """The kernel's own list, the last that went first; empty where it is not in the dump."""
    return tuple(_in_memory(memory, debugger_data))


def _in_memory(memory: Memory, debugger_data: DebuggerData) -> Iterator[UnloadedDriver]:
    place, last = debugger_data.unloaded_drivers, debugger_data.last_unloaded_driver
    array = memory.u64(place) if place else None
    following = memory.u32(last) if last else None
    if not array or following is None or following > MAX_UNLOADED:
        return
    for number in range(MAX_UNLOADED):
        index = (following - 1 - number) % MAX_UNLOADED
        entry = memory.read(array + _ENTRY_SIZE * index, _ENTRY_SIZE)
        if entry is None:
            return
        size, name, start, end, time = struct.unpack("<H6xQQQQ", entry)
        if _is_range(start, end):
            text = printable(memory.read_some(name, min(size & ~1, _MAX_NAME)))
            yield UnloadedDriver(text, start, end, filetime(time))


def _is_range(start: int, end: int) -> bool:
    return KERNEL_SPACE <= start < end
