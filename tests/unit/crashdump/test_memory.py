"""Virtual memory through page tables, and the list of modules in it."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from crashdump_analysis import read_header
from crashdump_analysis.addresses import VirtualAddress
from crashdump_analysis.debugger_data import read_debugger_data
from crashdump_analysis.memory import PagedMemory
from crashdump_analysis.modules import MAX_MODULES, Module, Modules, loaded_modules, module_name
from tests.support.synthetic_dump import (
    DRIVER_BASE,
    NT_BASE,
    PAGE,
    PRCB,
    STRUCTURES,
    AddressSpace,
    SyntheticMachine,
    pe_image,
)

HIGH = 0xFFFF8000_12345000


def memory_of(space: AddressSpace) -> PagedMemory:
    return PagedMemory(space, space.root << 12 | 0x5)  # the low bits of CR3 are flags


def test_small_pages() -> None:
    space = AddressSpace()
    space.write(HIGH + 0xFF0, bytes(range(0x20)))
    memory = memory_of(space)
    assert memory.read(HIGH + 0xFF0, 0x20) == bytes(range(0x20))
    assert memory.read(HIGH + 0xFFC, 8) == bytes(range(0xC, 0x14))  # over the end of a page
    assert memory.u16(HIGH + 0xFF2) == 0x0302
    assert memory.u32(HIGH + 0xFF4) == 0x07060504
    assert memory.u64(HIGH + 0xFF8) == 0x0F0E0D0C0B0A0908
    assert memory.translate(VirtualAddress(HIGH + 5)) == space.map(HIGH) * PAGE + 5


def test_what_is_not_mapped() -> None:
    space = AddressSpace()
    space.write(HIGH, b"x" * PAGE)
    memory = memory_of(space)
    assert memory.read(HIGH + PAGE, 1) is None
    assert memory.read(HIGH + PAGE - 4, 8) is None
    assert memory.read_some(HIGH + PAGE - 4, 8) == b"xxxx"
    assert memory.read_some(HIGH + PAGE, 8) == b""
    assert memory.u64(HIGH + PAGE - 4) is None
    for address in (0, 0x1234_5678_0000_0000, 0x0000_8000_0000_0000, (1 << 64) - 4, 1 << 64):
        assert memory.read(address, 8) is None


def set_bits(space: AddressSpace, address: int, bits: int, *, size: int) -> None:
    """Sets bits in the page table entry that maps an address with pages of a size."""
    table, shift = space.root, 39
    while True:
        place = (address >> shift & 0x1FF) * 8
        (entry,) = struct.unpack_from("<Q", space.pages[table], place)
        if 1 << shift == size:
            struct.pack_into("<Q", space.pages[table], place, entry | bits)
            return
        table, shift = entry >> 12 & 0xFFFFFFFFFF, shift - 9


def test_no_page_is_as_large_as_the_first_levels_entries() -> None:
    space = AddressSpace()
    space.write(HIGH, b"there")
    set_bits(space, HIGH, 0x80, size=1 << 39)
    assert memory_of(space).read(HIGH, 5) == b"there"


def test_large_pages() -> None:
    space = AddressSpace()
    for size, base in ((1 << 21, 0xFFFF9000_00000000), (1 << 30, 0xFFFFA000_00000000)):
        first = (size << 3) // PAGE
        space.map(base, first, size=size)
        for offset in (0, 0x12345, size - 8):
            space.pages[first + offset // PAGE] = bytearray(PAGE)
            struct.pack_into("<Q", space.pages[first + offset // PAGE], offset % PAGE, offset + 1)
        set_bits(space, base, 1 << 12, size=size)  # PAT, which is no part of the address
        memory = memory_of(space)
        for offset in (0, 0x12345, size - 8):
            assert memory.u64(base + offset) == offset + 1
        assert memory.translate(VirtualAddress(base + 0x54321)) == first * PAGE + 0x54321
        assert memory.read(base + 0x100000, 8) is None  # mapped, but the page is not there


def test_page_tables_that_point_to_themselves() -> None:
    space = AddressSpace()
    for index in range(512):
        struct.pack_into("<Q", space.pages[space.root], index * 8, space.root << 12 | 1)
    memory = memory_of(space)
    # Each level is the root again: its first entry is the data, as it would be on a machine.
    assert memory.u64(HIGH & ~0xFFF) == space.root << 12 | 1


def test_modules_in_load_order() -> None:
    machine = SyntheticMachine()
    machine.load("ntoskrnl.exe", NT_BASE, pe_image())
    machine.load("victim-1.0.sys", DRIVER_BASE, pe_image())
    machine.dump()
    memory = memory_of(machine.space)
    modules, warnings = loaded_modules(memory, machine.module_list, NT_BASE)
    assert warnings == []
    assert [(one.name, one.image, one.base) for one in modules] == [
        ("nt", "ntoskrnl.exe", NT_BASE),
        ("victim_1_0", "victim-1.0.sys", DRIVER_BASE),
    ]
    driver = modules.named("VICTIM_1_0")
    assert driver is not None
    assert driver.path == r"\SystemRoot\System32\drivers\victim-1.0.sys"
    assert (driver.size, driver.entry_point) == (len(pe_image()), DRIVER_BASE + 0x1000)
    assert modules.at(DRIVER_BASE) == driver
    assert modules.at(DRIVER_BASE + driver.size - 1) == driver
    assert modules.at(DRIVER_BASE + driver.size) is None
    assert modules.at(0) is None
    assert Modules().at(NT_BASE) is None


def machine_with_modules(count: int) -> SyntheticMachine:
    machine = SyntheticMachine()
    machine.load("ntoskrnl.exe", NT_BASE, pe_image())
    for number in range(1, count):
        machine.modules.append((f"d{number}.sys", DRIVER_BASE + number * PAGE, PAGE))
    return machine


def test_a_list_of_modules_that_runs_in_a_circle() -> None:
    machine = machine_with_modules(3)
    machine.dump()
    entry = STRUCTURES + 0x1000
    machine.write_u64(entry + 0x400, entry)  # the third leads back to the first
    modules, warnings = loaded_modules(memory_of(machine.space), machine.module_list)
    assert len(modules) == 3
    assert warnings == [f"the list of modules runs in a circle at {entry:x}"]


def test_a_list_of_modules_that_breaks_off() -> None:
    machine = machine_with_modules(3)
    machine.dump()
    machine.write_u64(STRUCTURES + 0x1000 + 0x200, 0xFFFF8000_DEAD0000)
    modules, warnings = loaded_modules(memory_of(machine.space), machine.module_list)
    assert [one.image for one in modules] == ["ntoskrnl.exe", "d1.sys"]
    assert "breaks off" in warnings[0]
    modules, warnings = loaded_modules(memory_of(machine.space), 0xFFFF8000_DEAD0000)
    assert (len(modules), len(warnings)) == (0, 1)


def test_a_list_of_modules_without_end() -> None:
    space = AddressSpace()
    count = MAX_MODULES + 10
    for number in range(count + 1):
        entry = HIGH + 0x80 * number
        data = struct.pack("<QQ32xQQI", entry + 0x80, 0, DRIVER_BASE + number * PAGE, 0, PAGE)
        space.write(entry, data.ljust(0x80, b"\0"))
    modules, warnings = loaded_modules(memory_of(space), HIGH)
    assert len(modules) == MAX_MODULES
    assert "the rest is left out" in warnings[0]


def test_module_entries_that_describe_no_image() -> None:
    for offset, value in ((0x30, 0x1000), (0x30, NT_BASE + 1), (0x40, 0), (0x40, 0xFFFFFFFF)):
        machine = machine_with_modules(2)
        machine.dump()
        machine.write_u64(STRUCTURES + 0x1200 + offset, value)
        modules, warnings = loaded_modules(memory_of(machine.space), machine.module_list)
        assert [one.name for one in modules] == ["nt"]
        assert "describes no image" in warnings[0]


def test_hostile_names_of_modules() -> None:
    machine = machine_with_modules(2)
    machine.dump()
    entry = STRUCTURES + 0x1200
    machine.space.write(entry + 0x58, struct.pack("<HHIQ", 0xFFFF, 0xFFFF, 0, NT_BASE))
    machine.space.write(entry + 0x48, struct.pack("<HHIQ", 6, 6, 0, entry + 0xA0))
    machine.space.write(entry + 0xA0, "\x1b[2".encode("utf-16-le"))
    modules, _ = loaded_modules(memory_of(machine.space), machine.module_list)
    (_, module) = modules
    assert module.path == "\N{REPLACEMENT CHARACTER}[2"
    assert module_name(module.image).isascii()


def test_module_names() -> None:
    assert module_name("sensor.sys") == "sensor"
    assert module_name(r"\??\C:\x\my driver-2.sys") == "my_driver_2"
    assert 5 in Module("a", "a.sys", "", 5, 1, 0, 0)


def test_debugger_data() -> None:
    machine = machine_with_modules(1)
    header = read_header(machine.dump()[:0x2000])
    data, problems = read_debugger_data(memory_of(machine.space), header)
    assert problems == []
    assert data is not None
    assert not data.decoded
    assert data.kernel_base == NT_BASE
    assert data.build_lab == "19041.1.amd64fre.synthetic"
    assert data.processor_block(0) == PRCB
    assert data.processor_context(0) == 0


def test_debugger_data_that_is_missing_or_none() -> None:
    machine = machine_with_modules(1)
    header = read_header(machine.dump()[:0x2000])
    machine.space.write(HIGH, bytes(PAGE))
    machine.space.write(HIGH + PAGE, bytes(range(1, 251)) * 16)
    memory = memory_of(machine.space)
    for address, told in (
        (HIGH - PAGE, "is not in the dump"),
        (HIGH, "holds only zeros"),
        (HIGH + PAGE, "or it is none"),
    ):
        asked = replace(header, debugger_data=VirtualAddress(address))
        data, problems = read_debugger_data(memory, asked)
        assert data is None
        assert told in problems[0]


@pytest.mark.parametrize("wait_never", [0, 1, 0x3F, 0x0123456789ABCDEF, 0xFEDCBA98765432C0])
def test_encoded_debugger_data_is_decoded_by_what_the_header_says(wait_never: int) -> None:
    machine = machine_with_modules(1)
    machine.encoding = (wait_never, 0x8BADF00DCAFEBABE, 0xFFFFF80312345670)
    header = read_header(machine.dump()[:0x2000])
    memory = memory_of(machine.space)
    assert b"KDBG" not in (memory.read(header.debugger_data, 0x20) or b"")
    data, problems = read_debugger_data(memory, header)
    assert problems == []
    assert data is not None
    assert data.decoded
    assert data.kernel_base == NT_BASE
    assert data.build_lab == "19041.1.amd64fre.synthetic"
    for offset in (0x20, 0x28):  # PsLoadedModuleList and PsActiveProcessHead
        other = bytearray(machine.dump()[:0x2000])
        struct.pack_into("<Q", other, offset, HIGH)
        data, problems = read_debugger_data(memory, read_header(other))
        assert data is None
        assert "encoded" in problems[0]
        # One of the two is enough where the header lacks the other.
        other[offset : offset + 8] = b"PAGEPAGE"
        data, _ = read_debugger_data(memory, read_header(other))
        assert data is not None
