"""Files on the FAT32 system disk of a machine, read and edited from outside by mtools."""

from __future__ import annotations

import os
import struct
import subprocess
import tempfile
from pathlib import Path, PureWindowsPath
from types import TracebackType
from typing import Self

PARTITION_OFFSET = 1024 * 1024
"""Bytes from the start of the disk to its one partition."""
DUMP_SIGNATURE = b"PAGEDU64"
REQUIRED_DUMP_SPACE = 0xFA0
"""Offset in DUMP_HEADER64 of the dump's whole size in bytes (u64)."""
SYSTEM_TIME = 0xFA8
"""Offset in DUMP_HEADER64 of when the dump was written (100 ns since 1601)."""


def dump_in_pagefile(pagefile: bytes) -> bytes:
    """The dump a crash left at the start of pagefile.sys. Raises ValueError if there is none."""
    if not pagefile.startswith(DUMP_SIGNATURE):
        raise ValueError(f"pagefile.sys holds no dump: it starts with {pagefile[:8]!r}")
    (size,) = struct.unpack_from("<Q", pagefile, REQUIRED_DUMP_SPACE)
    if not 0x2000 < size <= len(pagefile):
        raise ValueError(f"the dump says it has {size} bytes, the pagefile {len(pagefile)}")
    return pagefile[:size]


def dump_time(dump: bytes) -> int:
    """When a dump was written, in 100 ns since 1601."""
    return int(struct.unpack_from("<Q", dump, SYSTEM_TIME)[0])


class DiskFiles:
    """The files of a qcow2 disk; a context manager over a raw copy of it.

    The disk may be in use: then the copy is what a power cut at this moment would leave.
    """

    def __init__(self, disk: Path, scratch: Path) -> None:
        self._disk = disk
        self._scratch = tempfile.TemporaryDirectory(prefix="raw-", dir=scratch)
        self._raw = Path(self._scratch.name) / "disk.raw"

    def __enter__(self) -> Self:
        _run("qemu-img", "convert", "-U", "-O", "raw", str(self._disk), str(self._raw))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._scratch.cleanup()

    def read(self, path: str) -> bytes:
        r"""The bytes of C:\... on the disk. Raises FileNotFoundError."""
        try:
            return self._mtools("mcopy", "-n", _mtools_path(path), "-")
        except AssertionError as error:
            if "not found" in str(error):
                raise FileNotFoundError(path) from None
            raise

    def exists(self, path: str) -> bool:
        r"""Whether C:\... is on the disk."""
        return bool(self.names(str(PureWindowsPath(path).parent), PureWindowsPath(path).name))

    def names(self, folder: str, pattern: str = "*") -> list[str]:
        r"""Names in the folder C:\... that match `pattern`, as they are spelled on the disk."""
        wanted = _mtools_path(str(PureWindowsPath(folder) / pattern))
        try:
            found = self._mtools("mdir", "-b", wanted)
        except AssertionError as error:
            if "not found" in str(error):
                return []
            raise
        return [line.rstrip("/").rpartition("/")[2] for line in found.decode().splitlines()]

    def write(self, path: str, content: bytes) -> None:
        """Creates or replaces a file in the copy; commit() puts it on the disk."""
        source = Path(self._scratch.name) / "content"
        source.write_bytes(content)
        self._mtools("mcopy", "-o", str(source), _mtools_path(path))

    def delete(self, path: str) -> None:
        """Deletes a file in the copy; commit() makes it true."""
        self._mtools("mdel", _mtools_path(path))

    def commit(self) -> None:
        """Replaces the disk by the edited copy; its machine must be off."""
        owner = self._disk.stat()
        _run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(self._raw), str(self._disk))
        if os.geteuid() == 0:
            os.chown(self._disk, owner.st_uid, owner.st_gid)

    def extents(self, path: str) -> list[tuple[int, int]]:
        """Where a file lies: (byte offset on the disk, bytes) of each piece, in order."""
        shown = self._mtools("mshowfat", _mtools_path(path)).decode()
        first_data, cluster_bytes = self._geometry()
        found = []
        for piece in shown.split("<")[1:]:
            first, _, last = piece.partition(">")[0].partition("-")
            start, end = int(first), int(last or first)
            offset = first_data + (start - 2) * cluster_bytes
            found.append((offset, (end - start + 1) * cluster_bytes))
        return found

    def bytes_at(self, offset: int, size: int) -> bytes:
        """Raw bytes of the disk."""
        with self._raw.open("rb") as disk:
            disk.seek(offset)
            return disk.read(size)

    def _geometry(self) -> tuple[int, int]:
        """(byte offset of cluster 2, bytes in a cluster), from the boot sector."""
        boot = self.bytes_at(PARTITION_OFFSET, 512)
        sector = int.from_bytes(boot[11:13], "little")
        reserved = int.from_bytes(boot[14:16], "little")
        fats = boot[16] * int.from_bytes(boot[36:40], "little")
        return PARTITION_OFFSET + (reserved + fats) * sector, boot[13] * sector

    def _mtools(self, program: str, *arguments: str) -> bytes:
        return _run(program, "-i", f"{self._raw}@@{PARTITION_OFFSET}", *arguments)


def _mtools_path(path: str) -> str:
    return "::/" + "/".join(PureWindowsPath(path).parts[1:])


def _run(*command: str) -> bytes:
    environment = {**os.environ, "MTOOLS_SKIP_CHECK": "1", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        message = done.stderr.decode(errors="replace").strip()
        raise AssertionError(f"{' '.join(command)}: {message}")
    return done.stdout
