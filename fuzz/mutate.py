"""Changes to inputs that tell more than a flipped bit: numbers where structures are."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Final

from tests.support.synthetic_dump import DRIVER_BASE, NT_BASE, STACK, STACK_SIZE, STRUCTURES

_WINDOW = 0x100  # bytes that libFuzzer's own changes are made in
_HEADERS = ((0, 0x100), (0x348, 0x450), (0xF98, 0x1060), (0x2000, 0x2100))
_NUMBERS: Final = (
    *(0, 1, 2, 7, 8, 0xFFF, 0x1000, 0x2000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF),
    *(1 << 47, 1 << 63, (1 << 64) - 1, (1 << 64) - 8, NT_BASE, NT_BASE + 0x1000, DRIVER_BASE),
    *(DRIVER_BASE + 0x1010, STACK, STACK + STACK_SIZE - 8, STRUCTURES, STRUCTURES + 0x1000),
)


def mutated(data: bytes, most: int, seed: int, mutate: Callable[[bytes, int], bytes]) -> bytes:
    """The data, changed in a few places. most: its largest size. mutate: libFuzzer's own way."""
    if not data:
        return mutate(data, most)
    generator = random.Random(seed)
    out = bytearray(data)
    for _ in range(generator.choice((1, 1, 2, 4))):
        at = _place(out, generator)
        kind = generator.random()
        if kind < 0.4:
            window = bytes(out[at : at + _WINDOW])
            out[at : at + _WINDOW] = mutate(window, len(window)).ljust(len(window), b"\0")
        elif kind < 0.9:
            value = generator.choice((*_NUMBERS, len(out), at, generator.randrange(len(out))))
            value += generator.choice((0, 0, 0, 1, -1, 8))
            new = struct.pack("<Q", value % (1 << 64))[: generator.choice((1, 2, 4, 8))]
            out[at : at + len(new)] = new
        else:
            other = _place(out, generator)
            size = generator.choice((4, 8, 16, 0x90, 0x1000))
            out[at : at + size] = out[other : other + size]
    if generator.random() < 0.05:
        del out[generator.randrange(len(out)) :]
    return bytes(out[:most])


def _place(data: bytearray, generator: random.Random) -> int:
    """A place in a header, or where the next byte is that is not zero."""
    if generator.random() < 0.3:
        at = generator.randrange(*generator.choice(_HEADERS))
        return at & ~3 if at < len(data) else generator.randrange(len(data))
    at = generator.randrange(len(data))
    while at < len(data):
        block = data[at : at + 0x400]
        if skipped := len(block) - len(block.lstrip(b"\0")):
            at += skipped
        if skipped < len(block):
            return at & ~3
    return generator.randrange(len(data))
