"""Any change to a dump of any type, plain or compressed, gives a report or a DumpError."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crashdump_analysis.dump import dump_paths
from crashdump_analysis.errors import DumpError
from tests.support.cost import SECONDS, Costs, assert_cheap
from tests.support.synthetic_dump import BITMAP_FULL, BITMAP_KERNEL, FULL, NT_BASE, crashed_machine
from tests.support.synthetic_formats import (
    FULL_RANGES,
    HEADER_ONLY,
    KERNEL_RANGES,
    SUMMARY,
    dump_of,
    header_32,
)

TYPES = {
    **{"full": FULL, "bitmap": BITMAP_FULL, "summary": SUMMARY, "header": HEADER_ONLY},
    **{"ranges": KERNEL_RANGES, "complete": FULL_RANGES},
}
COMPRESSED = ("gzip", "zstd", "zip", "stored")
MIB_64 = 64 << 20

a_few = settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def costs() -> Iterator[Costs]:
    with Costs() as costs:
        yield costs


@cache
def whole(kind: str) -> bytes:
    """A small dump of a type, or one that is compressed."""
    if kind == "32-bit":
        return header_32(1, 0xA, (1, 2, 3, 4))
    if kind in TYPES:
        dump_type = TYPES[kind]
        machine = crashed_machine(0x50, (0xBAD, 0, 0, 0))
        of_machine = dump_type in (FULL, BITMAP_FULL, BITMAP_KERNEL)
        return machine.dump(dump_type) if of_machine else dump_of(machine, dump_type)
    data = whole("full")
    if kind == "gzip":
        return gzip.compress(data, 1)
    if kind == "zstd":
        return zstandard.ZstdCompressor(level=1, write_checksum=True).compress(data)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        method = zipfile.ZIP_DEFLATED if kind == "zip" else zipfile.ZIP_STORED
        archive.writestr("a.dmp", data, method)
        archive.writestr("b.txt", b"text", method)
    return out.getvalue()


def numbers(size: int) -> st.SearchStrategy[bytes]:
    """A number of 4 or 8 bytes: limits, and places inside and around the file and memory."""
    interesting = [0, 1, 0xFFF, 0x1000, 0x2000, size - 1, size, size + 1, MIB_64, 1 << 31]
    interesting += [(1 << 32) - 1, 1 << 47, 1 << 63, NT_BASE, (1 << 64) - 0x1000, (1 << 64) - 1]
    return st.one_of(st.sampled_from(interesting), st.integers(0, size)).flatmap(
        lambda value: st.sampled_from(
            [struct.pack("<Q", value), struct.pack("<I", value & 0xFFFFFFFF)]
        )
    )


@dataclass(frozen=True)
class Change:
    """A file of a kind, with bytes changed at places, cut, and made as large again with zeros."""

    kind: str
    edits: tuple[tuple[int, bytes], ...]
    cut: int
    size: int

    @property
    def data(self) -> bytes:
        """The bytes up to where it is cut."""
        data = bytearray(whole(self.kind))
        for at, new in self.edits:
            data[at : at + len(new)] = new[: max(len(data) - at, 0)]
        return bytes(data[: self.cut])


@st.composite
def changes(draw: st.DrawFn, kinds: tuple[str, ...]) -> Change:
    """A few numbers and bytes changed, and the file perhaps cut."""
    kind = draw(st.sampled_from(kinds))
    length = len(whole(kind))
    start = st.integers(0, min(0x2140, length - 1))
    end = st.integers(max(length - 0x200, 0), length - 1)
    place = st.one_of(start, st.integers(0x2000, 0x2060), end, st.integers(0, length - 1))
    value = st.one_of(numbers(length), st.binary(min_size=1, max_size=16))
    edits = draw(st.lists(st.tuples(place, value), min_size=1, max_size=8))
    cut = draw(st.one_of(st.just(length), st.integers(0, length)))
    return Change(kind, tuple(edits), cut, draw(st.sampled_from([cut, cut, cut, MIB_64])))


def attempt(costs: Costs, path: Path, data: bytes, size: int) -> None:
    """Writes the file, which is zero behind the data, and asks for a report."""
    with path.open("wb") as file:
        file.write(data)
        file.truncate(size)
    assert_cheap(costs.of(path))


@a_few
@given(change=changes((*TYPES, "32-bit")))
def test_a_changed_dump(tmp_path: Path, costs: Costs, change: Change) -> None:
    attempt(costs, tmp_path / "a.dmp", change.data, change.size)


@a_few
@given(change=changes(COMPRESSED))
def test_a_changed_compressed_dump(tmp_path: Path, costs: Costs, change: Change) -> None:
    """It may unpack to as much as is allowed at any ratio, which takes its time, twice."""
    path = tmp_path / "a.dmp"
    path.write_bytes(change.data)
    assert_cheap(costs.of(path), seconds=4 * SECONDS)


@a_few
@given(
    kind=st.sampled_from(tuple(TYPES)),
    body=st.binary(max_size=0x400),
    size=st.sampled_from([0x3000, 0x3000, 0x3000, 1 << 20, MIB_64]),
)
def test_any_bytes_behind_a_header(
    tmp_path: Path, costs: Costs, kind: str, body: bytes, size: int
) -> None:
    attempt(costs, tmp_path / "a.dmp", whole(kind)[:0x2000] + body, size)


@a_few
@given(
    magic=st.sampled_from([b"PK\3\4", b"PK\5\6", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"P*M\x18"]),
    body=st.binary(max_size=0x400),
)
def test_any_bytes_behind_the_mark_of_a_compression(
    tmp_path: Path, costs: Costs, magic: bytes, body: bytes
) -> None:
    attempt(costs, tmp_path / "a.dmp", magic + body, len(magic) + len(body))


@a_few
@given(change=changes(("zip", "stored")))
def test_names_of_a_changed_archive(tmp_path: Path, change: Change) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(change.data)
    try:
        names = dump_paths(path)
    except DumpError:
        return
    assert names == [str(path)] or all(name.startswith(f"{path}!") for name in names)
