"""Small files of every kind, for the fuzzer to start from."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import zstandard

from tests.support.sensor import built
from tests.support.synthetic_dump import BITMAP_FULL, BITMAP_KERNEL, FULL, STACK, crashed_machine
from tests.support.synthetic_formats import (
    FULL_RANGES,
    HEADER_ONLY,
    KERNEL_RANGES,
    KERNEL_USER_RANGES,
    SUMMARY,
    dump_of,
    header_32,
)
from tests.support.synthetic_triage import TriageDump

_BUG_CHECKS = (
    *(0x0A, 0x1A, 0x1E, 0x3B, 0x50, 0x7E, 0x7F, 0x9F, 0xC4, 0xD1, 0x116, 0x124, 0x133, 0x139),
    *(0x161, 0xA0000001),
)


def write_seeds(folder: Path) -> None:
    """Writes every seed that is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in _seeds():
        if not (folder / name).exists():
            (folder / name).write_bytes(data)


def _seeds() -> Iterator[tuple[str, bytes]]:
    for code in _BUG_CHECKS:
        machine = crashed_machine(code, (0xFFFF8000DEAD0000, 2, 0, STACK))
        yield f"triage-{code:x}", TriageDump(machine, blocks=[(STACK + 0x5000, 0x800)]).write()
    machine = crashed_machine()
    secondary = [(bytes(range(16)), b"log of a driver"), (bytes(16), b"")]
    yield "triage-kernel", TriageDump(machine, kernel=True, secondary=secondary).write()
    for dump_type in (FULL, BITMAP_FULL, BITMAP_KERNEL):
        yield f"type-{dump_type}", machine.dump(dump_type)
    for dump_type in (SUMMARY, HEADER_ONLY, KERNEL_RANGES, KERNEL_USER_RANGES, FULL_RANGES):
        yield f"type-{dump_type}", dump_of(machine, dump_type)
    yield "32-bit", header_32(2, 0xA, (1, 2, 3, 4), 0x1000)
    yield from _compressed(TriageDump(machine).write())
    sensor = built("a-o2")
    yield "image", (sensor / "sensor.sys").read_bytes()
    yield "pdb", (sensor / "sensor.pdb").read_bytes()


def _compressed(data: bytes) -> Iterator[tuple[str, bytes]]:
    yield "gzip", gzip.compress(data, mtime=0)
    yield "zstd", zstandard.ZstdCompressor(write_checksum=False).compress(data)
    for name, method in (("zip", zipfile.ZIP_DEFLATED), ("stored", zipfile.ZIP_STORED)):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", method) as archive:
            for member in ("a.dmp", "b"):
                archive.writestr(zipfile.ZipInfo(member), data, method)
        yield name, out.getvalue()
