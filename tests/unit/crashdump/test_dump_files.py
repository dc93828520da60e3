"""Dump files: headers, full and bitmap formats, and what is said of files that are none."""

from __future__ import annotations

import io
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from crashdump_analysis import DumpError, State, check_dump, read_header
from crashdump_analysis.addresses import PhysicalAddress
from crashdump_analysis.dump import Dump, open_dump
from crashdump_analysis.memory import PhysicalMemory
from tests.support.synthetic_dump import (
    BITMAP_FULL,
    BITMAP_KERNEL,
    FULL,
    PAGE,
    SyntheticMachine,
    crashed_machine,
)

every_type = pytest.mark.parametrize("dump_type", [FULL, BITMAP_FULL, BITMAP_KERNEL])


def pages_of(dump: Dump) -> PhysicalMemory:
    assert dump.pages is not None
    return dump.pages


def changed(data: bytes, offset: int, value: bytes) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


@every_type
def test_header(dump_type: int) -> None:
    machine = crashed_machine(0x50, (1, 0x10, 3, 2))
    data = machine.dump(dump_type)
    header = read_header(data[:0x2000])
    assert header == read_header(io.BytesIO(data))
    assert (header.dump_type, header.bug_check_code, header.parameters) == (
        dump_type,
        0x50,
        (1, 0x10, 3, 2),
    )
    assert header.time == datetime(2024, 7, 19, 4, 9, tzinfo=UTC)
    assert header.uptime == timedelta(seconds=90)
    assert header.required_size == len(data)
    assert (header.build, header.machine, header.machine_name) == (19041, 0x8664, "x64")
    assert header.processors == 1
    assert header.directory_table_base == machine.space.root * PAGE
    assert header.ps_loaded_module_list == machine.module_list


def test_header_fields_that_nobody_wrote_are_absent() -> None:
    data = crashed_machine().dump()
    for offset in (0xFA0, 0xFA8, 0x1030):
        data = changed(data, offset, b"PAGEPAGE")
    header = read_header(data)
    assert (header.required_size, header.time, header.uptime) == (None, None, None)


def test_a_time_that_cannot_be_is_absent() -> None:
    assert read_header(changed(crashed_machine().dump(), 0xFA8, b"\xff" * 8)).time is None


@pytest.mark.parametrize(
    ("code", "stop_code"), [(0x1000007E, 0x7E), (0xA0000001, 0xA0000001), (0xB0000001, 0xB0000001)]
)
def test_the_stop_code_is_without_bit_28(code: int, stop_code: int) -> None:
    header = read_header(SyntheticMachine(code).dump())
    assert (header.bug_check_code, header.stop_code) == (code, stop_code)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "an empty file"),
        (bytes(0x3000), "only zeros"),
        (b"PAGEDUMP".ljust(0x3000), "32-bit kernel dump"),
        (b"MDMP".ljust(0x3000), "user-mode minidump"),
        (b"\x7fELF".ljust(0x3000), "ELF"),
        (b"PK\x03\x04".ljust(0x3000), "zip"),
        (b"hello, I am no dump", "68 65 6c 6c 6f"),
        (b"PAGEDU64".ljust(0x1FFF), "8191 bytes"),
    ],
)
def test_what_is_no_dump_is_named(tmp_path: Path, data: bytes, found: str) -> None:
    with pytest.raises(DumpError) as caught:
        read_header(data, "some.dmp")
    assert found in caught.value.found
    assert str(caught.value).startswith("some.dmp: expected")
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(DumpError), open_dump(path):
        pytest.fail("was opened")


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    for path, found in ((tmp_path, "a folder"), (tmp_path / "none", "nothing there")):
        with pytest.raises(DumpError, match=found), open_dump(path):
            pytest.fail("was opened")


@pytest.mark.parametrize(
    ("offset", "value", "expected", "found"),
    [
        (0x30, 0xAA64, "x64", "ARM64"),
        (0xF98, 0x6B, "1 full", "107 unknown"),
        (0xF98, 99, "1 full", "99 unknown"),
    ],
)
def test_what_is_not_supported_is_named(
    tmp_path: Path, offset: int, value: int, expected: str, found: str
) -> None:
    path = tmp_path / "other.dmp"
    path.write_bytes(changed(crashed_machine().dump(), offset, struct.pack("<I", value)))
    with pytest.raises(DumpError) as caught, open_dump(path):
        pytest.fail("was opened")
    assert expected in caught.value.expected
    assert caught.value.found == found
    assert f"{path} at 0x{offset:x}" in str(caught.value)


@every_type
def test_every_page_is_read_and_no_other(tmp_path: Path, dump_type: int) -> None:
    machine = crashed_machine()
    for number in range(machine.space.allocate()):
        if number in machine.space.pages:
            machine.space.pages[number][:8] = struct.pack("<Q", 0xABCD0000 + number)
    path = machine.write(tmp_path / "a.dmp", dump_type)
    highest = max(machine.space.pages)
    with open_dump(path) as dump:
        for number in range(highest + 100):
            expected = machine.space.pages.get(number)
            found = pages_of(dump).read(PhysicalAddress(number * PAGE), PAGE)
            assert found == (None if expected is None else bytes(expected)), hex(number)
        for number in (1 << 40, (1 << 52) - 1):
            assert pages_of(dump).read(PhysicalAddress(number * PAGE), PAGE) is None
        some = PhysicalAddress(highest * PAGE + 0x123)
        assert pages_of(dump).read(some, 5) == bytes(machine.space.pages[highest][0x123:0x128])


@every_type
def test_a_cut_dump_gives_the_pages_it_holds(tmp_path: Path, dump_type: int) -> None:
    machine = crashed_machine()
    data = machine.dump(dump_type)
    path = tmp_path / "cut.dmp"
    path.write_bytes(data[: -PAGE - 1])
    numbers = sorted(machine.space.pages)
    with open_dump(path) as dump:
        pages = pages_of(dump)
        there = [pages.read(PhysicalAddress(one * PAGE), PAGE) is not None for one in numbers]
    assert there == [True] * (len(numbers) - 2) + [False] * 2


@pytest.mark.parametrize(
    ("offset", "value", "expected"),
    [
        (0x88, struct.pack("<I", 0), "1 to 42 runs"),
        (0x88, struct.pack("<I", 43), "1 to 42 runs"),
        (0x88, struct.pack("<I", 0xFFFFFFFF), "1 to 42 runs"),
        (0x98, struct.pack("<QQ", 1 << 63, 1 << 63), "behind the one before"),
        (0x98, struct.pack("<QQ", 0x10, 0), "behind the one before"),
        (0xA8, struct.pack("<QQ", 0, 1), "behind the one before"),
    ],
)
def test_wrong_runs_of_memory(tmp_path: Path, offset: int, value: bytes, expected: str) -> None:
    path = tmp_path / "runs.dmp"
    path.write_bytes(changed(crashed_machine().dump(FULL), offset, value))
    with pytest.raises(DumpError, match=expected), open_dump(path):
        pytest.fail("was opened")


@pytest.mark.parametrize(
    ("offset", "value", "expected"),
    [
        (0x2000, b"XDMP", "SDMPDUMP or FDMPDUMP"),
        (0x2030, struct.pack("<Q", 1 << 62), "ends before the first page"),
        (0x2020, struct.pack("<Q", 0x2038), "ends before the first page"),
        (0x2028, struct.pack("<Q", 1 << 40), "bits set in the bitmap"),
    ],
)
def test_a_wrong_bitmap(tmp_path: Path, offset: int, value: bytes, expected: str) -> None:
    path = tmp_path / "bitmap.dmp"
    path.write_bytes(changed(crashed_machine().dump(), offset, value))
    with pytest.raises(DumpError, match=expected), open_dump(path):
        pytest.fail("was opened")


@every_type
def test_check_says_complete_or_how_much_is_missing(tmp_path: Path, dump_type: int) -> None:
    data = crashed_machine().dump(dump_type)
    path = tmp_path / "a.dmp"
    path.write_bytes(data + bytes(100))  # in a page file more follows
    found = check_dump(path)
    assert (found.state, found.required) == (State.COMPLETE, len(data))
    assert found.header is not None
    for size in (len(data) - 1, 0x2000, 0x1000):
        path.write_bytes(data[:size])
        found = check_dump(path)
        assert found.state is State.TRUNCATED, size
        assert str(path) in found.words
        assert found.size == size


def test_check_counts_the_zeros_at_the_end(tmp_path: Path) -> None:
    data = crashed_machine().dump()
    path = tmp_path / "a.dmp"
    for tail in (0, 1, 0x10000, 0x23456):
        path.write_bytes(data + b"\x01" + bytes(tail))
        assert check_dump(path).zero_tail == tail


def test_check_of_other_files(tmp_path: Path) -> None:
    path = tmp_path / "a.dmp"
    for data, state in (
        (bytes(0x123456), State.ALL_ZERO),
        (bytes(0x2000) + b"\x01" * 0x2000 + bytes(0x2000), State.NOT_A_DUMP),
        (b"\x7fELF" * 0x1000, State.NOT_A_DUMP),
        (b"", State.NOT_A_DUMP),
        (changed(crashed_machine().dump(), 0xF98, b"\x6b"), State.UNKNOWN),
    ):
        path.write_bytes(data)
        assert check_dump(path).state is state
    assert check_dump(tmp_path / "none").state is State.NOT_A_DUMP


def test_opening_costs_what_is_touched(tmp_path: Path) -> None:
    """A full dump of 16 GiB with nothing in most of it is opened in no time, and little memory."""
    machine = crashed_machine()
    data = bytearray(machine.dump(FULL))
    (runs,) = struct.unpack_from("<I", data, 0x88)
    first, _ = struct.unpack_from("<QQ", data, 0x98 + 16 * (runs - 1))
    struct.pack_into("<QQ", data, 0x98 + 16 * (runs - 1), first, (16 << 30) // PAGE)
    path = tmp_path / "sparse.dmp"
    with path.open("wb") as file:
        file.write(data)
        file.truncate(len(data) + (16 << 30))
    with open_dump(path) as dump:
        assert dump.contents.required_size > 16 << 30
        last = PhysicalAddress((first + (16 << 30) // PAGE - 1) * PAGE)
        assert pages_of(dump).read(last, 8) == bytes(8)
