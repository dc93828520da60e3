"""The worst dumps of 64 MiB that could be thought of: none over 1 s or 200 MiB.

Each is built to make one part of the analysis work as long, or keep as much, as it can.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.cost import Costs, assert_cheap
from tests.support.synthetic_dump import (
    BITMAP_FULL,
    BITMAP_KERNEL,
    DRIVER_BASE,
    ENTRY,
    FAULT_RSP,
    NT_BASE,
    PAGE,
    PUSH_NONVOL,
    RETURN_TO_ENTRY,
    STACK,
    STACK_SIZE,
    STRUCTURES,
    Function,
    SyntheticMachine,
    code,
    crashed_machine,
    pe_image,
    unwind_info,
)
from tests.support.synthetic_formats import KERNEL_RANGES, SUMMARY, dump_of

SIZE = 64 << 20


@pytest.fixture(scope="module")
def costs() -> Iterator[Costs]:
    with Costs() as costs:
        yield costs


def every_address_mapped(machine: SyntheticMachine) -> bytes:
    """Page tables that make all of kernel space one page, and so everything is there."""
    space = machine.space
    machine.dump()
    pointers = struct.pack("<Q", NT_BASE + 0x1010) * 512
    page = space.allocate()
    space.pages[page][:] = pointers
    tables = [space.root]
    for _ in range(3):
        tables.append(space.allocate())
    for table, following in zip(tables, (*tables[1:], page), strict=True):
        for index in range(256 if table == space.root else 0, 512):
            at = space.pages[table]
            if not any(at[8 * index : 8 * index + 8]):
                struct.pack_into("<Q", at, 8 * index, following << 12 | 0x63)
    return machine.dump()


def stack_of_return_addresses(machine: SyntheticMachine) -> bytes:
    """Every word of the stack could be one, and each lies in code without unwind data."""
    machine.space.write(STACK, struct.pack("<Q", RETURN_TO_ENTRY) * (STACK_SIZE // 8))
    return machine.dump()


def stack_of_near_misses(machine: SyntheticMachine) -> bytes:
    """Every word points into code, and none behind a call."""
    machine.space.write(STACK, struct.pack("<Q", DRIVER_BASE + 0x1003) * (STACK_SIZE // 8))
    return machine.dump()


def endless_recursion(machine: SyntheticMachine) -> bytes:
    """A megabyte of stack in frames of eight bytes."""
    push = unwind_info(code(1, PUSH_NONVOL, 3), prologue=1)
    body = Function("Recurse", ENTRY.rva, b"\x53" + b"\xe8\0\0\0\0" * 6, push)
    machine.space.write(DRIVER_BASE, pe_image([body]))
    machine.space.write(
        FAULT_RSP - 0x100, struct.pack("<Q", DRIVER_BASE + ENTRY.rva + 6) * (1 << 17)
    )
    return machine.dump()


def many_modules(machine: SyntheticMachine) -> bytes:
    """A list of modules that never ends, with long names."""
    machine.dump()
    first = STRUCTURES + 0x100000
    name = "n" * 500
    entries = bytearray()
    for number in range(4000):
        entry = first + 0x100 * number
        data = bytearray(0x100)
        struct.pack_into("<Q", data, 0, entry + 0x100)
        struct.pack_into("<QQI", data, 0x30, NT_BASE + (number << 20), 0, 0x100000)
        struct.pack_into("<HHIQ", data, 0x48, 1000, 1000, 0, first - 0x1000)
        struct.pack_into("<HHIQ", data, 0x58, 1000, 1000, 0, first - 0x1000)
        entries += data
    machine.space.write(first - 0x1000, name.encode("utf-16-le"))
    machine.space.write(first, bytes(entries))
    result = bytearray(machine.dump())
    struct.pack_into("<Q", result, 0x20, first)
    return bytes(result)


def huge_exception_directory(machine: SyntheticMachine) -> bytes:
    """.pdata and sections of 4 GiB, as an image in memory may claim."""
    image = bytearray(pe_image([ENTRY]))
    struct.pack_into("<I", image, 0x40 + 0x88 + 8 * 3 + 4, 0xFFFFFFFC)
    struct.pack_into("<I", image, 0x40 + 0x88 + 8 * 6 + 4, 0xFFFFFFFF)
    for section in range(2):
        struct.pack_into("<I", image, 0x40 + 0x108 + 40 * section + 8, 0xFFFFFFFF)
    machine.space.write(DRIVER_BASE, bytes(image))
    return machine.dump()


@pytest.mark.parametrize(
    "make",
    [
        every_address_mapped,
        stack_of_return_addresses,
        stack_of_near_misses,
        endless_recursion,
        many_modules,
        huge_exception_directory,
    ],
    ids=lambda one: one.__name__,
)
@pytest.mark.parametrize("bug_check", [0xD1, 0x50, 0x1E, 0x133, 0x139, 0xDEAD])
def test_worst_memory(
    tmp_path: Path, costs: Costs, make: Callable[[SyntheticMachine], bytes], bug_check: int
) -> None:
    path = tmp_path / "a.dmp"
    path.write_bytes(make(crashed_machine(bug_check)))
    cost = costs.of(path)
    assert cost.outcome == "report"
    assert_cheap(cost)


def bitmap_of_ones() -> bytes:
    head = bytearray(crashed_machine().dump(BITMAP_FULL)[:0x2038])
    bits = (SIZE - 0x4000) * 8
    struct.pack_into("<QQQ", head, 0x2020, SIZE - 0x1000, bits, bits)
    return bytes(head).ljust(SIZE, b"\xff")


def summary_of_ones() -> bytes:
    head = bytearray(dump_of(crashed_machine(), SUMMARY)[:0x2028])
    bits = (SIZE - 0x4000) * 8
    struct.pack_into("<III", head, 0x200C, SIZE - 0x1000, bits, bits)
    return bytes(head).ljust(SIZE, b"\xff")


def ranges_to_the_end() -> bytes:
    """One less than the most that are allowed, in falling order."""
    head = bytearray(dump_of(crashed_machine(), KERNEL_RANGES)[:0x2030])
    count = (1 << 16) - 1
    struct.pack_into("<QQ", head, 0x2010, 16 + 16 * count, 0x2030 + 16 * count)
    table = b"".join(struct.pack("<QQ", 2 * number, 1) for number in range(count, 0, -1))
    return bytes(head) + table


def one_kind_of_bytes(dump_type: int, pattern: bytes) -> bytes:
    """A header that is right, and behind it the same bytes again and again."""
    head = bytearray(crashed_machine().dump(BITMAP_KERNEL)[:0x2000])
    struct.pack_into("<I", head, 0xF98, dump_type)
    return bytes(head) + pattern * ((SIZE - 0x2000) // len(pattern))


def triage_tables(*, block_size: int, overlap: int) -> bytes:
    """As many blocks as are read, one behind the other, and all counts at their most."""
    head = bytearray(crashed_machine().dump(BITMAP_KERNEL)[:0x2000])
    struct.pack_into("<I", head, 0xF98, 4)
    step = block_size - overlap
    blocks = b"".join(
        struct.pack("<QII", STACK + step * number, 0x8000, block_size)
        for number in range((1 << 17) + 1)
    )
    fields = [0, SIZE, SIZE - 4, 0x348, 0xF00, 0x8000, 0x8000, 0x8000, 0x8000, 0x8000, 0x8000]
    fields += [0xFFFFFFFF, 0x8000, 0xFFFFFFFF, 0x8000, 0xFFFFFFFF, 0, 0]
    body = struct.pack("<18IQ16xQ6I", *fields, STACK, STACK, 0x8000, 0xFFFFFFFF, 0x8000,
                       0xFFFFFFFF, 0x10000, 0xFFFFFFFF)  # fmt: skip
    head += body + struct.pack("<Q", NT_BASE + 0x1008) * 0xC00
    head = head.ljust(0x10000, b"\x10")
    return (bytes(head) + blocks).ljust(SIZE - 4, b"\x80") + b"TRGD"


@pytest.mark.parametrize(
    "make",
    [
        bitmap_of_ones,
        summary_of_ones,
        ranges_to_the_end,
        lambda: triage_tables(block_size=1, overlap=0),
        lambda: triage_tables(block_size=0x4000, overlap=0x3FFF),
        lambda: triage_tables(block_size=256, overlap=0),
        *(
            (lambda dump_type=dump_type, pattern=pattern: one_kind_of_bytes(dump_type, pattern))
            for dump_type in (1, 3, 4)
            for pattern in (b"\xff" * PAGE, struct.pack("<Q", NT_BASE + 0x1010) * 512)
        ),
    ],
)
def test_worst_layout(tmp_path: Path, costs: Costs, make: Callable[[], bytes]) -> None:
    path = tmp_path / "a.dmp"
    path.write_bytes(make())
    assert path.stat().st_size <= SIZE
    assert_cheap(costs.of(path))


def test_a_whole_dump_of_64_mib(tmp_path: Path, costs: Costs) -> None:
    machine = crashed_machine()
    machine.space.write(0xFFFF_9000_0000_0000, b"\x01" * (60 << 20))
    path = machine.write(tmp_path / "a.dmp", BITMAP_FULL)
    cost = costs.of(path)
    assert cost.outcome == "report"
    assert_cheap(cost)
