"""x64 unwind information as it lies in an image: UNWIND_INFO and its codes.

Source: Microsoft's "x64 exception handling" (cpp-docs) for version 1. Version 2 adds codes that say
where epilogues are; what they mean is in the unwinder of .NET (dotnet/runtime, MIT,
src/coreclr/unwinder/amd64), which follows Windows'. Hostile input.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from crashdump_analysis.image import RuntimeFunction

PUSH_NONVOL, ALLOC_LARGE, ALLOC_SMALL, SET_FPREG, SAVE_NONVOL, SAVE_NONVOL_FAR = range(6)
_EPILOG, _SPARE, _SAVE_XMM128, _SAVE_XMM128_FAR, PUSH_MACHFRAME = range(6, 11)
_CHAIN_FLAG: Final = 4
MAX_CHAIN: Final = 32
"""Chained or indirect entries that are followed; as many as Windows' own unwinder."""

# Old images have two more codes for XMM registers, with the numbers 6 and 7.
NOT_OF_INTEGERS = frozenset({_EPILOG, _SPARE, _SAVE_XMM128, _SAVE_XMM128_FAR})
_SLOTS = {
    **{ALLOC_LARGE: 2, SAVE_NONVOL: 2, _EPILOG: 2, _SAVE_XMM128: 2},
    **{SAVE_NONVOL_FAR: 3, _SPARE: 3, _SAVE_XMM128_FAR: 3},
}


class UnwindError(Exception):
    """Why no step up could be made, in words."""


class UnwindData(Protocol):
    """An image's function table, and what it leads to; offsets are from the image's base."""

    def runtime_function(self, rva: int) -> RuntimeFunction | None:
        """The entry for an offset; None where it has none. Raises LookupError without a table."""

    def read(self, rva: int, size: int) -> bytes | None:
        """Bytes of unwind information or code; None where they are not to be had."""


class UnwindCode(NamedTuple):
    """One unwind code: where in the prologue its instruction ends, and what that does."""

    offset: int
    operation: int
    argument: int
    operand: int


@dataclass(frozen=True)
class UnwindInfo:
    """UNWIND_INFO. codes: in its order, the prologue's last first. Sizes and offsets in bytes.

    epilogues: how far before the function's end they begin; only version 2 says so.
    """

    version: int
    prologue_size: int
    frame_register: int
    frame_offset: int
    codes: tuple[UnwindCode, ...]
    chained: RuntimeFunction | None
    epilogues: tuple[int, ...]
    epilogue_size: int


def direct_entry(image: UnwindData, function: RuntimeFunction) -> RuntimeFunction:
    """The entry itself, or the one that it points to: its unwind information is then odd.

    Raises UnwindError where that leads nowhere.
    """
    for _ in range(MAX_CHAIN):
        if not function[2] & 1:
            return function
        entry = image.read(function[2] & ~1, 12)
        if entry is None:
            raise UnwindError("the unwind data is not in memory")
        function = struct.unpack("<III", entry)
    raise UnwindError("entries of unwind data that point to each other without end")


def read_unwind_info(image: UnwindData, rva: int) -> UnwindInfo:
    """UNWIND_INFO at an offset from the base. Raises UnwindError."""
    if rva & 1:
        rva = direct_entry(image, (0, 0, rva))[2]
    head = image.read(rva, 4)
    slots = image.read(rva + 4, head[2] * 2) if head and head[2] else b""
    if head is None or slots is None:
        raise UnwindError("the unwind data is not in memory")
    version, flags = head[0] & 7, head[0] >> 3
    if version not in (1, 2):
        raise UnwindError(f"unwind data of version {version}")
    chained = None
    if flags & _CHAIN_FLAG:
        entry = image.read(rva + 4 + (head[2] + 1 & ~1) * 2, 12)
        if entry is None:
            raise UnwindError("the unwind data is not in memory")
        chained = struct.unpack("<III", entry)
    size, epilogues, taken = _epilogues(slots) if version > 1 else (0, (), 0)
    return UnwindInfo(
        version,
        head[1],
        head[3] & 15,
        (head[3] >> 4) * 16,
        tuple(_codes(slots[taken:])),
        chained,
        epilogues,
        size,
    )


def _epilogues(slots: bytes) -> tuple[int, tuple[int, ...], int]:
    """Size of all epilogues, how far before the end each begins, and the bytes that say so.

    The first slot has the size, and whether one is at the very end; others a start each. A slot of
    zero makes their number even.
    """
    size, starts, at = 0, [], 0
    while at < len(slots) and slots[at + 1] & 15 == _EPILOG:
        low, high = slots[at], slots[at + 1] >> 4
        if at == 0:
            size = low
            starts += [size] if high & 1 else []
        elif low or high:
            starts.append(low | high << 8)
        at += 2
    if at % 4 and slots[at : at + 2] == b"\0\0":
        at += 2
    return size, tuple(starts), at


def _codes(slots: bytes) -> Iterator[UnwindCode]:
    """The codes. Raises UnwindError where they break off."""
    at = 0
    while at < len(slots):
        operation, argument = slots[at + 1] & 15, slots[at + 1] >> 4
        size = 6 if operation == ALLOC_LARGE and argument else 2 * _SLOTS.get(operation, 1)
        if at + size > len(slots):
            raise UnwindError("unwind codes that break off")
        operand = int.from_bytes(slots[at + 2 : at + size], "little")
        yield UnwindCode(slots[at], operation, argument, operand)
        at += size
