"""The dumps that the benchmark of triage looks at; all synthetic, or the test kernel's."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from images.contract import CATALOG, load_contract
from images.test_kernel.build import PAGEFILE_PATH, build_image
from tests.support.disk import DUMP_SIGNATURE, dump_in_pagefile
from tests.support.libvirt import Domain, Libvirt
from tests.support.synthetic_dump import BITMAP_FULL, FULL, PAGE, STACK, crashed_machine
from tests.support.synthetic_triage import TriageDump
from tests.support.waiting import wait_for

_MODULES = 165  # besides those of the crash: as many as real dumps of Windows 8.1 have
_BLOCKS = 400  # of 256 bytes: real ones that were converted have 330 to 2700
_CODES = (0x0A, 0x1E, 0x3B, 0x50, 0x7E, 0xD1, 0x133, 0x139)
_HOLE_PAGE = 1 << 20
"""The first page of a sparse dump's empty part: 4 GiB into memory."""


def triage_dump(code: int = 0xD1) -> bytes:
    """A triage dump of a usual size."""
    machine = crashed_machine(code)
    for number in range(_MODULES):
        base = 0xFFFFF801_00000000 + (number << 20)
        machine.modules.append((f"driver{number}.sys", base, 0x80000))
    blocks = [(STACK + 0x1000 + 0x10 * number, 0x100) for number in range(_BLOCKS)]
    return TriageDump(machine, blocks=blocks).write()


def distinct_triage_dumps(folder: Path, count: int) -> list[Path]:
    """Writes triage dumps of several bug checks, each with another address, time and register."""
    wholes = [bytearray(triage_dump(code)) for code in _CODES]
    paths = []
    for number in range(count):
        data = wholes[number % len(wholes)]
        struct.pack_into("<Q", data, 0x40, 0xFFFF8000_00000000 + 0x1230 * number)
        struct.pack_into("<Q", data, 0xFA8, 133_658_357_400_000_000 + number * 600_000_000)
        struct.pack_into("<Q", data, 0x348 + 0x78, number)  # rax
        path = folder / f"{number:05}.dmp"
        path.write_bytes(data)
        paths.append(path)
    return paths


def sparse_dump(path: Path, dump_type: int, gibibytes: int) -> Path:
    """A full or bitmap dump of a machine with so much memory, nearly all of it a hole."""
    machine = crashed_machine()
    whole = bytearray(machine.dump(dump_type))
    empty = gibibytes * (1 << 30) // PAGE
    if dump_type == FULL:
        (runs,) = struct.unpack_from("<I", whole, 0x88)
        struct.pack_into("<I", whole, 0x88, runs + 1)
        struct.pack_into("<QQ", whole, 0x98 + 16 * runs, _HOLE_PAGE, empty)
        data = bytes(whole)
    else:
        numbers = sorted(machine.space.pages)
        bits = _HOLE_PAGE + empty
        bitmap = bytearray(bits // 8)
        for number in numbers:
            bitmap[number // 8] |= 1 << number % 8
        bitmap[_HOLE_PAGE // 8 :] = b"\xff" * (empty // 8)
        first = 0x2000 + -(-(0x38 + len(bitmap)) // PAGE) * PAGE
        head = struct.pack("<8s24xQQQ", b"SDMPDUMP", first, len(numbers) + empty, bits)
        pages = b"".join(machine.space.pages[number] for number in numbers)
        data = bytes(whole[:0x2000]) + (head + bitmap).ljust(first - 0x2000, b"\0") + pages
    with path.open("wb") as file:
        file.write(data)
        file.truncate(len(data) + empty * PAGE)
    return path


def sparse_dumps(folder: Path, sizes: tuple[int, ...]) -> Iterator[tuple[str, int, Path]]:
    """Kind, size in GiB and file of a full and a bitmap dump of each size, one at a time."""
    for kind, dump_type in (("full", FULL), ("bitmap", BITMAP_FULL)):
        for size in sizes:
            path = sparse_dump(folder / f"{kind}-{size}.dmp", dump_type, size)
            yield kind, size, path
            path.unlink()


def dump_of_test_kernel(path: Path) -> Path:
    """The kernel dump of a machine that an NMI stopped."""
    deadlines = load_contract(CATALOG.parent / "test_kernel/contract.toml").deadlines
    with Libvirt() as libvirt:
        machine = Domain(libvirt, build_image(libvirt.new_image_path()))
        with machine.disk() as disk:
            place = disk.extents(PAGEFILE_PATH)[0][0]
        machine.start()
        machine.wait_for_agent(deadlines.boot_to_agent)
        machine.inject_nmi()
        wait_for(
            "the dump's first sector, which is written last",
            lambda: machine.disk_bytes_at(place, 512).startswith(DUMP_SIGNATURE),
            deadlines.dump_writing,
        )
        machine.destroy()
        with machine.disk() as disk:
            path.write_bytes(dump_in_pagefile(disk.read(PAGEFILE_PATH)))
        machine.close()
    return path
