"""Damaged file systems give data or DiskError, in bounded time, and do no harm."""

from __future__ import annotations

import contextlib
import time
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.disks.blocks import DiskError
from lab.disks.files import DiskFiles, open_files
from tests.unit.disks.making import (
    MIB,
    VOLUME_OFFSET,
    MemoryBlocks,
    mbr_disk,
    ntfs_volume,
    run,
)

FAT32_TYPE = 0x0C
READ_AT_MOST = 4 * MIB
QUESTION_SECONDS = 20.0
"""No question to a reader may take longer, whatever the disk."""


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A small volume of each file system, with the same few files."""
    folder = tmp_path_factory.mktemp("volumes")
    script = """
os.makedirs("Windows/System32")
for number in range(20): open(f"Windows/file number {number}.txt", "wb").write(b"x" * 700 * number)
"""
    fat = folder / "fat"
    with fat.open("wb") as file:
        file.truncate(34 * MIB)
    start = str(VOLUME_OFFSET // 512)
    run("mkfs.fat", "-F", "32", "-s", "1", "-h", start, str(fat))
    content = folder / "content"
    content.write_bytes(b"x" * 9000)
    run("mmd", "-i", str(fat), "::/Windows", "::/Windows/System32")
    for number in range(8):
        run("mcopy", "-i", str(fat), str(content), f"::/Windows/file number {number}.txt")
    return {
        "fat32": bytes(mbr_disk(fat.read_bytes(), FAT32_TYPE)),
        "ntfs": bytes(
            mbr_disk(ntfs_volume(folder / "ntfs", megabytes=4, script=script).read_bytes())
        ),
    }


@cache
def _places(disk: bytes) -> list[int]:
    """Sectors that hold something: damage elsewhere would do nothing."""
    return [place for place in range(0, len(disk), 512) if any(disk[place : place + 512])]


def _look_at_everything(files: DiskFiles, folder: str, depth: int = 0) -> int:
    """Bytes read of all files below a folder, three folders deep and 60 entries wide."""
    found = 0
    for file in files.list(folder)[:60]:
        try:
            if file.is_folder and depth < 3:
                found += _look_at_everything(files, file.path, depth + 1)
            elif not file.is_folder:
                found += len(files.read(file.path, 0, READ_AT_MOST))
        except (DiskError, FileNotFoundError):
            continue
    return found


@pytest.mark.parametrize("kind", ["fat32", "ntfs"])
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_random_damage(volumes: dict[str, bytes], kind: str, data: st.DataObject) -> None:
    disk = bytearray(volumes[kind])
    damage = st.tuples(
        st.sampled_from(_places(volumes[kind])),
        st.integers(0, 511),
        st.binary(min_size=1, max_size=8),
    )
    for place, offset, content in data.draw(st.lists(damage, min_size=1, max_size=12)):
        disk[place + offset : place + offset + len(content)] = content
    started = time.monotonic()
    try:
        with open_files(MemoryBlocks(disk), deadline=QUESTION_SECONDS) as files:
            _look_at_everything(files, "C:\\")
    except DiskError:
        pass
    assert time.monotonic() - started < 3 * QUESTION_SECONDS


def _fat_entry(disk: bytearray, cluster: int, value: int) -> None:
    """Writes an entry of both FATs (fatgen103: after the reserved sectors, 32 bits a cluster)."""
    boot = disk[VOLUME_OFFSET : VOLUME_OFFSET + 512]
    reserved = int.from_bytes(boot[14:16], "little") * 512
    size = int.from_bytes(boot[36:40], "little") * 512
    for table in (0, 1):
        at = VOLUME_OFFSET + reserved + table * size + cluster * 4
        disk[at : at + 4] = value.to_bytes(4, "little")


def test_loops_in_the_cluster_chain(volumes: dict[str, bytes]) -> None:
    path = r"C:\Windows\file number 3.txt"
    with open_files(MemoryBlocks(volumes["fat32"])) as files:
        whole = files.read(path)
    entries = [
        int.from_bytes(volumes["fat32"][at : at + 4], "little")
        for at in range(VOLUME_OFFSET + 32 * 512, VOLUME_OFFSET + 32 * 512 + 400 * 4, 4)
    ]
    used = [cluster for cluster, entry in enumerate(entries) if cluster > 1 and entry]
    assert len(used) > 100
    outcomes = set()
    for cluster in used[::12]:
        disk = bytearray(volumes["fat32"])
        _fat_entry(disk, cluster, used[0] if cluster % 2 else cluster)
        try:
            with open_files(MemoryBlocks(disk), deadline=QUESTION_SECONDS) as files:
                outcomes.add(files.read(path) == whole)
        except (DiskError, FileNotFoundError):
            outcomes.add(False)
    assert outcomes == {True, False}  # some loops lie in this file's way, some do not


def test_a_file_whose_chain_ends_before_its_size(volumes: dict[str, bytes]) -> None:
    """As after a power cut while it grew: what the chain has is there, and the size says so."""
    disk = bytearray(volumes["fat32"])
    path = r"C:\Windows\file number 3.txt"
    with open_files(MemoryBlocks(disk)) as files:
        assert files.stat(path).size == 9000
    first = _first_cluster(disk, b"FILENU~4TXT")
    _fat_entry(disk, first + 7, 0x0FFFFFFF)
    with open_files(MemoryBlocks(disk)) as files:
        assert files.stat(path).size == 4096
        assert files.read(path) == b"x" * 4096
        assert files.read(path, 4000, 500) == b"x" * 96
        assert files.read(path, 4096, 500) == b""
    _fat_entry(disk, first, 0)  # it begins with a cluster that is free
    with open_files(MemoryBlocks(disk)) as files:
        assert len(files.read(path)) == files.stat(path).size <= 512


def _first_cluster(disk: bytes | bytearray, short_name: bytes) -> int:
    """Where a file's chain begins (fatgen103: its entry's bytes 26 and 20)."""
    entry = disk.index(short_name)
    low, high = disk[entry + 26 : entry + 28], disk[entry + 20 : entry + 22]
    return int.from_bytes(low + high, "little")


def test_a_partition_table_that_lies(volumes: dict[str, bytes]) -> None:
    disk = bytearray(volumes["ntfs"])
    for field, value in ((454, 0xFFFFFFF0), (454, 0), (458, 0xFFFFFFFF), (458, 0)):
        changed = bytearray(disk)
        changed[field : field + 4] = value.to_bytes(4, "little")
        with (
            contextlib.suppress(DiskError),  # the volume may be found nevertheless
            open_files(MemoryBlocks(changed), deadline=QUESTION_SECONDS) as files,
        ):
            assert files.exists(r"C:\Windows")


def test_the_reader_has_few_rights(volumes: dict[str, bytes]) -> None:
    with open_files(MemoryBlocks(volumes["ntfs"])) as files:
        process = Path(f"/proc/{files.reader_process}")
        limits = (process / "limits").read_text()
        status = (process / "status").read_text()
    for limit in ("Max file size", "Max core file size"):
        assert f"{limit:<26}0 " in limits
    assert f"{'Max address space':<26}{512 * MIB} " in limits
    user = next(line for line in status.splitlines() if line.startswith("Uid:"))
    assert "0" not in user.split()[1:]
