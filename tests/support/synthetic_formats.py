"""Synthetic dumps of the other types: kernel summary, header only, ranges, 32-bit.

Written from the public layouts named in crashdump_analysis/dump, and not with its code. Each holds
what the machine's bitmap dump holds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from itertools import groupby

from tests.support.synthetic_dump import BITMAP_KERNEL, PAGE, SyntheticMachine

SUMMARY, HEADER_ONLY, KERNEL_RANGES, KERNEL_USER_RANGES, FULL_RANGES = 2, 3, 8, 9, 10


def dump_of(machine: SyntheticMachine, dump_type: int) -> bytes:
    """The bytes of a machine's dump of any type that has no writer in `SyntheticMachine`."""
    header = machine.dump(BITMAP_KERNEL)[:0x2000]
    numbers = sorted(machine.space.pages)
    if dump_type == HEADER_ONLY:
        return _finished(header, dump_type, b"")
    if dump_type == SUMMARY:
        # All of the machine's memory, whether or not it is in the dump.
        memory = struct.pack("<I4xQQQ", 1, numbers[-1] + 1, 0, numbers[-1] + 1)
        header = header[:0x88] + memory + header[0x88 + len(memory) :]
        return _finished(header, dump_type, _summary(machine, numbers))
    return _finished(header, dump_type, ranges(machine, runs_of(numbers), dump_type))


def _finished(header: bytes, dump_type: int, rest: bytes) -> bytes:
    data = bytearray(header + rest)
    struct.pack_into("<IIQ", data, 0xF98, dump_type, 0, len(data))
    return bytes(data)


def _summary(machine: SyntheticMachine, numbers: Sequence[int]) -> bytes:
    bits = -(-(numbers[-1] + 1) // 32) * 32
    bitmap = sum(1 << number for number in numbers).to_bytes(bits // 8, "little")
    first = 0x2000 + -(-(0x28 + len(bitmap)) // PAGE) * PAGE
    head = struct.pack("<8s4I", b"SDMPDUMP", 1, first, bits, len(numbers))
    head += struct.pack("<I4xQ", bits, 0xFFFFF800_12345678)
    pages = b"".join(machine.space.pages[number] for number in numbers)
    return (head + bitmap).ljust(first - 0x2000, b"\0") + pages


def runs_of(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """(first, how many) of each run of consecutive numbers in a rising sequence."""
    groups = groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    runs = [[number for _, number in group] for _, group in groups]
    return [(run[0], len(run)) for run in runs]


def ranges(machine: SyntheticMachine, runs: Sequence[tuple[int, int]], dump_type: int) -> bytes:
    """What follows the header in a dump of those runs of pages, in that order.

    Only a complete dump (type 10) says how many pages there are; its metadata has room to spare.
    """
    table = b"".join(struct.pack("<QQ", *run) for run in runs)
    count = sum(number for _, number in runs)
    if dump_type == FULL_RANGES:
        head, table = struct.pack("<IHHQ", len(runs), 0, 0, count), table + b"\xee" * 64
    else:
        head, table = bytes(16), table + bytes(16)
    size = len(head) + len(table)
    start = struct.pack("<I8s4xQQ", 0x40, b"RDMPDUMP", size, 0x2020 + size)
    pages = (
        machine.space.pages[number] for first, many in runs for number in range(first, first + many)
    )
    return start + head + table + b"".join(pages)


def header_32(
    dump_type: int, code: int, parameters: tuple[int, int, int, int], size: int = 0x3000
) -> bytes:
    """A 32-bit kernel dump with nothing behind its header."""
    data = bytearray(b"PAGE" * (size // 4))
    struct.pack_into("<8sII", data, 0, b"PAGEDUMP", 15, 7601)
    struct.pack_into("<II5I", data, 0x20, 0x14C, 1, code, *parameters)
    struct.pack_into("<I", data, 0xF88, dump_type)
    return bytes(data)
