"""Kernel summary, header-only and range dumps, and what is said of 32-bit ones."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path

import kdmp_parser
import pytest

from crashdump_analysis import DumpError, State, check_dump, read_header, triage
from crashdump_analysis.addresses import PhysicalAddress
from crashdump_analysis.dump import open_dump
from tests.oracle.dbgeng import judge
from tests.support.synthetic_dump import (
    DRIVER_BASE,
    FAULT_RIP,
    NT_BASE,
    PAGE,
    STACK,
    SyntheticMachine,
    crashed_machine,
)
from tests.support.synthetic_formats import (
    FULL_RANGES,
    HEADER_ONLY,
    KERNEL_RANGES,
    KERNEL_USER_RANGES,
    SUMMARY,
    dump_of,
    header_32,
    ranges,
    runs_of,
)

with_pages = pytest.mark.parametrize(
    "dump_type", [SUMMARY, KERNEL_RANGES, KERNEL_USER_RANGES, FULL_RANGES]
)
of_ranges = pytest.mark.parametrize("dump_type", [KERNEL_RANGES, KERNEL_USER_RANGES, FULL_RANGES])


def numbered(machine: SyntheticMachine) -> SyntheticMachine:
    """The machine with its page's number at the end of each page, where it maps nothing."""
    for number, page in machine.space.pages.items():
        page[-8:] = struct.pack("<Q", 0xABCD0000 + number)
    return machine


def written(folder: Path, data: bytes) -> Path:
    path = folder / "a.dmp"
    path.write_bytes(data)
    return path


def changed(data: bytes, offset: int, value: bytes) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


def assert_holds(path: Path, machine: SyntheticMachine) -> None:
    """The dump gives every page of the machine, and no other."""
    highest = max(machine.space.pages)
    with open_dump(path) as dump:
        assert dump.pages is not None
        for number in (*range(highest + 100), 1 << 33, 1 << 40, (1 << 52) - 1):
            expected = machine.space.pages.get(number)
            found = dump.pages.read(PhysicalAddress(number * PAGE), PAGE)
            assert found == (None if expected is None else bytes(expected)), hex(number)
        last = bytes(machine.space.pages[highest])
        assert dump.pages.read(PhysicalAddress(highest * PAGE + 0x123), 5) == last[0x123:0x128]


@with_pages
def test_every_page_is_read_and_no_other(tmp_path: Path, dump_type: int) -> None:
    machine = crashed_machine()
    machine.dump()  # puts the lists of modules into its memory
    assert_holds(written(tmp_path, dump_of(numbered(machine), dump_type)), machine)


@of_ranges
def test_ranges_in_any_order(tmp_path: Path, dump_type: int) -> None:
    machine = crashed_machine()
    header = dump_of(machine, dump_type)[:0x2000]
    runs = runs_of(sorted(numbered(machine).space.pages))
    shuffled = runs[1::2] + runs[::-2]
    assert sorted(shuffled) == runs != shuffled
    assert_holds(written(tmp_path, header + ranges(machine, shuffled, dump_type)), machine)


@with_pages
def test_the_report_is_that_of_any_other_dump(tmp_path: Path, dump_type: int) -> None:
    machine = crashed_machine(0xD1)
    reference = triage(machine.write(tmp_path / "reference.dmp"))
    report = triage(written(tmp_path, dump_of(machine, dump_type)))
    assert report.stack == reference.stack
    assert report.stack[reference.context.frame].instruction == FAULT_RIP
    assert (report.bug_check, report.modules, report.culprit, report.bucket) == (
        reference.bug_check,
        reference.modules,
        reference.culprit,
        reference.bucket,
    )
    assert report.warnings == reference.warnings
    assert report.dump.type == dump_type


@of_ranges
def test_kdmp_parser_reads_the_same_ranges(tmp_path: Path, dump_type: int) -> None:
    """An independent reader, so that writer and reader do not share a mistake."""
    machine = crashed_machine()
    path = written(tmp_path, dump_of(machine, dump_type))
    other = kdmp_parser.KernelDumpParser(path)
    assert set(other.pages.keys()) == {number * PAGE for number in machine.space.pages}
    with open_dump(path) as dump:
        assert dump.pages is not None
        for number in machine.space.pages:
            address = PhysicalAddress(number * PAGE)
            assert dump.pages.read(address, PAGE) == bytes(other.read_physical_page(address))


def test_dbgeng_reads_the_same_summary_dump(tmp_path: Path) -> None:
    """Microsoft's engine, so that writer and reader do not share a mistake."""
    machine = crashed_machine(0xD1)
    path = written(tmp_path, dump_of(machine, SUMMARY))
    engine = judge()
    assert engine.open(path) == "kernel"
    found = engine.report()
    assert found["bug_check"] == {"code": 0xD1, "parameters": list(machine.parameters)}
    modules = [(one["base"], one["size"]) for one in found["modules"] if not one["unloaded"]]
    assert modules == [(base, size) for _, base, size in machine.modules]
    places = [machine.module_list, NT_BASE, DRIVER_BASE + 0x1000, STACK + 0x5FF0, NT_BASE + 0x2FF0]
    with open_dump(path) as dump:
        expected = [dump.memory.read(at, 16) for at in places]
    assert all(expected)
    assert engine.read([(at, 16) for at in places]) == expected
    engine.close()


def test_a_header_alone_has_bug_check_and_registers(tmp_path: Path) -> None:
    machine = crashed_machine(0xD1, (1, 2, 0, FAULT_RIP))
    data = dump_of(machine, HEADER_ONLY)
    assert len(data) == 0x2000
    path = written(tmp_path, data)
    report = triage(path)
    assert report.bug_check.code == 0xD1
    assert [one.value for one in report.bug_check.parameters] == [1, 2, 0, FAULT_RIP]
    assert report.context.registers["rsp"] == machine.registers["rsp"]
    assert not report.modules
    assert report.culprit.module is None
    assert any("a header alone" in one for one in report.warnings)
    assert check_dump(path).state is State.COMPLETE


@with_pages
def test_a_cut_dump_gives_the_pages_it_holds(tmp_path: Path, dump_type: int) -> None:
    machine = crashed_machine()
    data = dump_of(machine, dump_type)
    path = written(tmp_path, data[: -PAGE - 1])
    numbers = sorted(machine.space.pages)
    with open_dump(path) as dump:
        assert dump.pages is not None
        there = [dump.pages.read(PhysicalAddress(one * PAGE), PAGE) is not None for one in numbers]
    assert there == [True] * (len(numbers) - 2) + [False] * 2
    assert any("the dump is cut" in one for one in triage(path).warnings)


@with_pages
def test_check_says_complete_or_how_much_is_missing(tmp_path: Path, dump_type: int) -> None:
    data = dump_of(crashed_machine(), dump_type)
    found = check_dump(written(tmp_path, data + bytes(100)))
    assert (found.state, found.required) == (State.COMPLETE, len(data))
    for size in (len(data) - 1, 0x2020, 0x2000, 0x1000):
        found = check_dump(written(tmp_path, data[:size]))
        assert found.state is State.TRUNCATED, hex(size)


@with_pages
def test_cut_anywhere_in_front_of_the_pages(tmp_path: Path, dump_type: int) -> None:
    """What is in front of the pages must be whole; then even without pages there is a report."""
    data = dump_of(crashed_machine(), dump_type)
    reported = set()
    for size in (*range(0x1FFC, 0x2100, 4), len(data) - PAGE):
        path = written(tmp_path, data[:size])
        with suppress(DumpError):
            assert triage(path).bug_check.code == 0xD1
            reported.add(size)
    assert len(data) - PAGE in reported
    assert min(reported) > 0x2030


@pytest.mark.parametrize(
    ("dump_type", "offset", "value", "expected"),
    [
        (SUMMARY, 0x2000, b"FDMP", "SDMPDUMP"),
        (SUMMARY, 0x200C, struct.pack("<I", 0x2028), "ends before the first page"),
        (SUMMARY, 0x200C, struct.pack("<I", 0xFFFFFFFF), None),
        (SUMMARY, 0x2010, struct.pack("<I", 0xFFFFFFFF), "ends before the first page"),
        (SUMMARY, 0x2014, struct.pack("<I", 0xFFFFFFFF), "bits set in the bitmap"),
        (KERNEL_RANGES, 0x2000, b"\x41", "RDMPDUMP"),
        (KERNEL_RANGES, 0x2004, b"SDMP", "RDMPDUMP"),
        (KERNEL_RANGES, 0x2010, struct.pack("<Q", 16), "ends where the first page is"),
        (KERNEL_RANGES, 0x2018, struct.pack("<Q", 1 << 63), "ends where the first page is"),
        (KERNEL_RANGES, 0x2010, struct.pack("<QQ", 0, 0x2020), "ends where the first page is"),
        (KERNEL_RANGES, 0x2010, struct.pack("<QQ", -32 % (1 << 64), 0x2000), "ends where the"),
        (KERNEL_RANGES, 0x2030, struct.pack("<QQ", 1 << 63, 1 << 63), "a range of physical pages"),
        (KERNEL_RANGES, 0x2038, struct.pack("<Q", 0), "a range of physical pages"),
        (KERNEL_RANGES, 0x2038, struct.pack("<Q", 1 << 20), "do not overlap"),
        (FULL_RANGES, 0x2028, struct.pack("<Q", 2), "pages, as the ranges have"),
        (FULL_RANGES, 0x2028, struct.pack("<Q", 1 << 50), "a range of physical pages"),
    ],
)
def test_a_wrong_layout_is_named(
    tmp_path: Path, dump_type: int, offset: int, value: bytes, expected: str | None
) -> None:
    path = written(tmp_path, changed(dump_of(crashed_machine(), dump_type), offset, value))
    if expected is None:  # it only says that the file is cut
        assert any("the dump is cut" in one for one in triage(path).warnings)
        return
    with pytest.raises(DumpError, match=expected) as caught, open_dump(path):
        pytest.fail("was opened")
    assert str(path) in str(caught.value)


def test_more_ranges_than_memory_has(tmp_path: Path) -> None:
    """A table of 32 MiB without pages behind it is refused, and not read whole."""
    data = bytearray(dump_of(crashed_machine(), KERNEL_RANGES)[:0x2030])
    size = 32 << 20
    struct.pack_into("<QQ", data, 0x2010, 16 + size, 0x2030 + size)
    table = b"".join(struct.pack("<QQ", 2 * number + 1, 1) for number in range(1 << 16))
    path = written(tmp_path, bytes(data) + table * 32)
    with pytest.raises(DumpError, match="fewer than 65536 ranges"), open_dump(path):
        pytest.fail("was opened")


@pytest.mark.parametrize("dump_type", [1, 2, 4, 99])
def test_a_32_bit_dump_is_refused_with_its_type_and_bug_check(
    tmp_path: Path, dump_type: int
) -> None:
    data = header_32(dump_type, 0xA, (0xDEAD, 2, 1, 0x8052A1B0))
    with pytest.raises(DumpError) as caught:
        read_header(data, "old.dmp")
    name = {1: "full", 2: "kernel summary", 4: "triage (minidump)", 99: "unknown"}[dump_type]
    assert caught.value.found == (
        f"a 32-bit kernel dump (PAGEDUMP) of type {dump_type} {name}, bug check 0xA, "
        "parameters dead 2 1 8052a1b0; only 64-bit Windows is supported"
    )
    found = check_dump(written(tmp_path, data))
    assert found.state is State.NOT_A_DUMP
    assert "bug check 0xA" in found.words
    with pytest.raises(DumpError, match="a 32-bit kernel dump"):
        read_header(data[:0x100], "old.dmp")


def test_an_automatic_dump_by_type_is_refused_by_name(tmp_path: Path) -> None:
    """No public source shows what type 7 looks like: automatic memory dumps bear type 6."""
    data = changed(crashed_machine().dump(), 0xF98, struct.pack("<I", 7))
    with pytest.raises(DumpError, match="7 automatic"), open_dump(written(tmp_path, data)):
        pytest.fail("was opened")
