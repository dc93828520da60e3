"""Disks for the tests: partition tables by hand, NTFS by mkntfs and ntfs-3g, blocks in memory."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path

from lab.disks.blocks import BlockSource, DiskError, Extent

MIB = 1 << 20
SECTOR = 512
VOLUME_OFFSET = MIB
"""Of the one partition, on every disk made here."""
NTFS_TYPE = 7
BASIC_DATA = uuid.UUID("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7")
"""GPT's partition type of a Windows volume."""

_FILL = """
import ctypes, os, subprocess, sys
volume, mount, script = sys.argv[1:]
options = "norecover,compression,streams_interface=xattr"
options += f",uid={os.getuid()},gid={os.getgid()},umask=0"  # all of it is ours
subprocess.run(["ntfs-3g", "-o", options, volume, mount], check=True)
os.chdir(mount)
exec(script)
os.chdir("/")
assert ctypes.CDLL(None).umount2(mount.encode(), 0) == 0
_, status = os.wait()  # ntfs-3g, which we are given as the first process here
assert status == 0
"""


class MemoryBlocks(BlockSource):
    """A disk held in memory. `broken_from`: reads that reach this offset fail."""

    def __init__(self, data: bytes | bytearray, broken_from: int | None = None) -> None:
        self.data = data
        self.size = len(data)
        self.is_closed = False
        self._broken_from = broken_from

    def read(self, offset: int, length: int) -> bytes:
        if self._broken_from is not None and offset + length > self._broken_from:
            raise DiskError("bad block")
        return bytes(self.data[offset : offset + length])

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(offset, min(length, self.size - offset), allocated=True)

    def close(self) -> None:
        self.is_closed = True


def ntfs_volume(path: Path, *, megabytes: int = 16, script: str = "") -> Path:
    """Makes an NTFS volume and runs Python in it: `script`, its root the current folder."""
    with path.open("wb") as file:
        file.truncate(megabytes * MIB)
    start = str(VOLUME_OFFSET // SECTOR)
    subprocess.run(
        ["mkntfs", "-q", "-F", "-Q", "-s", "512", "-p", start, "-H", "255", "-S", "63", str(path)],
        check=True, capture_output=True, env=_environment(),
    )  # fmt: skip
    if script:
        mount = path.with_suffix(".mount")
        mount.mkdir()
        # Not --map-root-user: ntfs-3g would then try to drop privileges that it does not have.
        user = ["--user", "--map-current-user", "--keep-caps"] if os.geteuid() else []
        filled = subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", *user,
             sys.executable, "-I", "-c", _FILL, str(path), str(mount), script],
            capture_output=True, text=True, env=_environment(),
        )  # fmt: skip
        assert filled.returncode == 0, filled.stdout + filled.stderr
    return path


def mbr_disk(volume: bytes | bytearray, partition_type: int = NTFS_TYPE) -> bytearray:
    """A disk with one partition, of that type, that holds the volume."""
    entry = _mbr_entry(partition_type, VOLUME_OFFSET // SECTOR, len(volume) // SECTOR)
    return _disk(
        bytes(440) + struct.pack("<IH", 1, 0) + entry.ljust(64, b"\0") + b"\x55\xaa", volume
    )


def gpt_disk(volumes: list[bytes]) -> bytearray:
    """A disk with a GPT and the volumes one after the other from VOLUME_OFFSET."""
    start = VOLUME_OFFSET // SECTOR
    entries = b""
    for volume in volumes:
        end = start + len(volume) // SECTOR - 1
        identity = uuid.uuid5(BASIC_DATA, str(start)).bytes_le
        name = "Basic data partition".encode("utf-16-le").ljust(72, b"\0")
        entries += BASIC_DATA.bytes_le + identity + struct.pack("<QQQ", start, end, 0) + name
        start = end + 1
    entries = entries.ljust(128 * 128, b"\0")
    # UEFI specification 2.10, 5.3.2: the header's checksum is taken with its own field zero.
    header = struct.pack(
        "<8sIIIIQQQQ16sQIII",
        b"EFI PART", 0x10000, 92, 0, 0, 1, start + 33, 34, start - 1, bytes(16), 2, 128, 128,
        zlib.crc32(entries),
    )  # fmt: skip
    header = header[:16] + struct.pack("<I", zlib.crc32(header)) + header[20:]
    protective = bytes(446) + _mbr_entry(0xEE, 1, start).ljust(64, b"\0") + b"\x55\xaa"
    return _disk(protective + header.ljust(SECTOR, b"\0") + entries, b"".join(volumes))


def _mbr_entry(kind: int, start: int, sectors: int) -> bytes:
    beyond = b"\xfe\xff\xff"  # cylinder/head/sector that nobody uses
    return struct.pack("<B3sB3sII", 0x80, beyond, kind, beyond, start, sectors)


def _disk(head: bytes, volume: bytes | bytearray) -> bytearray:
    return bytearray(head.ljust(VOLUME_OFFSET, b"\0") + volume + bytes(MIB))


def write_qcow2(path: Path, disk: bytes | bytearray) -> Path:
    """Makes a qcow2 file of a disk's bytes."""
    raw = path.with_suffix(".raw")
    raw.write_bytes(disk)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(path))
    raw.unlink()
    return path


def new_overlay(path: Path, base: Path) -> Path:
    """Makes an overlay on a qcow2 file."""
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base), str(path))
    return path


def run(*command: str) -> str:
    """Runs a program; returns its output, and fails the test where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env=_environment())
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


def ntfs_attribute(volume: bytes | bytearray, record: int, kind: int) -> int:
    """Where in the volume the first attribute of that type of a file record starts.

    Source: https://flatcap.github.io/linux-ntfs/ntfs/concepts/file_record.html
    """
    cluster = int.from_bytes(volume[11:13], "little") * volume[13]
    start = int.from_bytes(volume[48:56], "little") * cluster + record * 1024
    offset = start + int.from_bytes(volume[start + 20 : start + 22], "little")
    while (found := int.from_bytes(volume[offset : offset + 4], "little")) != kind:
        assert found != 0xFFFFFFFF, f"record {record} has no attribute {kind:#x}"
        offset += int.from_bytes(volume[offset + 4 : offset + 8], "little")
    return offset


def record_of(volume: bytes, name: str) -> int:
    """The number of the last file record, of the first 256, that holds this name."""
    cluster = int.from_bytes(volume[11:13], "little") * volume[13]
    start = int.from_bytes(volume[48:56], "little") * cluster
    table = volume[start : start + 256 * 1024]
    place = table.rindex(name.encode("utf-16-le"))
    return place // 1024


def write_log(volume: bytearray, *pages: tuple[int, int, int]) -> None:
    """Writes restart pages (sequence number, clients in use, flags) at the start of $LogFile."""
    data = ntfs_attribute(volume, 2, 0x80)
    runs = data + int.from_bytes(volume[data + 32 : data + 34], "little")
    lengths, offsets = volume[runs] & 15, volume[runs] >> 4
    first = int.from_bytes(volume[runs + 1 + lengths : runs + 1 + lengths + offsets], "little")
    cluster = int.from_bytes(volume[11:13], "little") * volume[13]
    for number, (sequence, clients, flags) in enumerate(pages):
        page = struct.pack("<4sHHQIIHHHH", b"RSTR", 0x1E, 9, 0, 4096, 4096, 0x30, 0, 1, 1)
        area = struct.pack("<QHHHH", sequence, 1, 0xFFFF, clients, flags)
        start = first * cluster + number * 4096
        volume[start : start + 0x30] = page.ljust(0x30, b"\0")
        volume[start + 0x30 : start + 0x30 + len(area)] = area


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
