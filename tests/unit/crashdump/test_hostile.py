"""Any bytes give a report or a DumpError, soon. Dumps come from crashed machines and strangers."""

from __future__ import annotations

import struct
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crashdump_analysis import DumpError, Report, check_dump, read_header, triage
from crashdump_analysis.image_identity import expected_image
from tests.support.sensor import built
from tests.support.synthetic_dump import (
    BITMAP_FULL,
    BITMAP_KERNEL,
    FULL,
    STACK,
    STACK_SIZE,
    crashed_machine,
)

SECONDS = 5.0
"""For one dump of a few hundred KiB on a busy machine; alone it takes some milliseconds."""

a_few = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@cache
def whole(dump_type: int, code: int) -> bytes:
    return crashed_machine(code, (0xBAD, 0, 0, 0)).dump(dump_type)


def attempt(path: Path, data: bytes) -> Report | None:
    """The report of a dump of those bytes, None where it is refused; all else is a failure."""
    path.write_bytes(data)
    start = time.monotonic()
    check_dump(path)
    report = None
    with suppress(DumpError):
        report = triage(path)
        report.to_text()
        report.to_json()
    assert time.monotonic() - start < SECONDS
    return report


@a_few
@given(data=st.binary(max_size=0x4000), prefix=st.sampled_from([b"", b"PAGEDU64", b"PAGE"]))
def test_any_bytes(tmp_path: Path, data: bytes, prefix: bytes) -> None:
    assert attempt(tmp_path / "a.dmp", prefix + data) is None


@a_few
@given(data=st.binary(max_size=0x2100))
def test_any_header(data: bytes) -> None:
    try:
        read_header(b"PAGEDU64" + data)
    except DumpError:
        assert len(data) + 8 < 0x2000


changes = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.one_of(
            st.binary(min_size=1, max_size=16),
            st.sampled_from([1 << 63, (1 << 64) - 1, 0, STACK, STACK + STACK_SIZE - 8]).map(
                lambda value: struct.pack("<Q", value)
            ),
        ),
    ),
    min_size=1,
    max_size=12,
)


@st.composite
def damaged_dumps(draw: st.DrawFn) -> bytes:
    """A dump of some type and bug check with bytes changed here and there, perhaps cut."""
    code = draw(st.sampled_from([0x0A, 0x1E, 0x3B, 0x50, 0x7E, 0xD1, 0x133, 0x139, 0x161]))
    data = bytearray(whole(draw(st.sampled_from([FULL, BITMAP_FULL, BITMAP_KERNEL])), code))
    low, high = draw(st.sampled_from([(0x10, 0x2100), (0x2100, len(data)), (0x10, len(data))]))
    for place, value in draw(changes):
        at = low + int(place * (high - low))
        data[at : at + len(value)] = value[: len(data) - at]
    cut = draw(st.one_of(st.just(1.0), st.floats(0, 1)))
    return bytes(data[: int(len(data) * cut)])


@a_few
@given(data=damaged_dumps())
def test_damaged_dumps(tmp_path: Path, data: bytes) -> None:
    attempt(tmp_path / "a.dmp", data)


@a_few
@given(stack=st.binary(min_size=64, max_size=512), seed=st.integers(0, 7))
def test_a_stack_of_garbage(tmp_path: Path, stack: bytes, seed: int) -> None:
    machine = crashed_machine((0x0A, 0x1E, 0x50, 0xD1, 0x133, 0x139, 0x7F, 0xDEAD)[seed])
    machine.space.write(STACK, (stack * (STACK_SIZE // len(stack) + 1))[:STACK_SIZE])
    assert attempt(tmp_path / "a.dmp", machine.dump()) is not None


@pytest.mark.parametrize(("dump_type", "first_page"), [(FULL, 0x2000), (BITMAP_KERNEL, 0x3000)])
def test_cut_at_every_page(tmp_path: Path, dump_type: int, first_page: int) -> None:
    """What is in front of the pages must be whole; then even the header alone has a report."""
    data = whole(dump_type, 0xD1)
    for size in range(0, len(data), 0x1000):
        report = attempt(tmp_path / "a.dmp", data[:size])
        assert (report is None) == (size < first_page), hex(size)
        assert report is None or any("cut" in one for one in report.warnings)


@a_few
@given(changed=changes)
def test_damaged_images(tmp_path: Path, changed: list[tuple[float, bytes]]) -> None:
    data = bytearray((built("a-o2") / "sensor.sys").read_bytes())
    for place, value in changed:
        at = int(place * 0x800 if len(value) % 2 else place * len(data))
        data[at : at + len(value)] = value[: len(data) - at]
    path = tmp_path / "driver.sys"
    path.write_bytes(data)
    start = time.monotonic()
    with suppress(DumpError):
        assert expected_image(path)
    assert time.monotonic() - start < SECONDS
