"""The dumps on a machine's disk, and which of them belongs to the boot that just crashed.

A crash writes into the pagefile (or DedicatedDumpFile); the next boot moves that aside as
DUMPxxxx.tmp and copies it to MEMORY.DMP. A dump can therefore lie in any of these places, cut
short, left over from an earlier crash, or be overwritten by the next one.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path, PureWindowsPath
from typing import Protocol

from crashdump_analysis.dump.header import HEADER_SIZE, DumpHeader, read_header
from crashdump_analysis.errors import DumpError
from images.contract import Contract
from lab.disks.blocks import DiskError
from lab.disks.files import FileInfo

CLOCK_TOLERANCE = timedelta(seconds=2)
"""A PC's clock counts whole seconds, and the crash is signalled a moment after its time is taken;
times the contract's slowdown."""
MOVED_ASIDE = "DUMP*.tmp"
"""How the next boot names what it moves aside."""
SMALL = 4
"""DumpType of a triage dump (minidump)."""
SPARE_BYTES = 64 << 20
"""Left free on the evidence store beside a dump, for the record and the logs."""


class DumpFiles(Protocol):
    """Where dumps lie: files of a powered-off disk (lab.disks.files) or of a running Windows."""

    warnings: list[str]

    def stat(self, path: str) -> FileInfo:
        """Raises FileNotFoundError."""

    def list(self, folder: str, pattern: str = "*") -> list[FileInfo]:
        """What is in the folder and matches. Raises FileNotFoundError."""

    def read(
        self,
        path: str,
        offset: int = 0,
        length: int | None = None,
        *,
        past_valid_data: bool = False,
    ) -> bytes:
        """Bytes of a file. Raises FileNotFoundError and DiskError."""

    def copy(
        self,
        path: str,
        destination: Path,
        *,
        length: int | None = None,
        past_valid_data: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Copies a file to this host. Raises FileNotFoundError, DiskError and OSError."""


class DumpStatus(StrEnum):
    """What a place on the disk holds."""

    THIS_BOOT = "this boot's"
    """A whole dump whose time and bug check are those of the boot that crashed."""
    EARLIER = "of an earlier crash of this run"
    """A whole dump, already collected or overwritten by nobody yet."""
    STALE = "stale"
    """A whole dump from before this run."""
    OTHER = "another bug check's or time's"
    """A whole dump that does not match what was seen of this boot."""
    HALF_COPIED = "half copied"
    """Its header says more bytes than the file has; its source is still there."""
    TRUNCATED = "truncated"
    """Its header says more bytes than the file has, and there is no other copy."""
    ALL_ZERO = "all zero"
    NO_DUMP = "no dump"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class SeenBoot:
    """What was seen from outside of the boot that crashed.

    name: for messages. started, crashed: the host's clock, UTC. clock_offset: the guest's clock
    less the host's, as measured or assumed. stop_code: where the console told it.
    may_have_crashed: False where a bug check would have been signalled, and none was.
    """

    name: str
    started: datetime
    crashed: datetime
    clock_offset: timedelta
    stop_code: int | None
    may_have_crashed: bool = True


@dataclass(frozen=True)
class FoundDump:
    """One place on the disk that can hold a dump. fingerprint: SHA-256 of its header."""

    path: str
    status: DumpStatus
    detail: str
    size: int = 0
    header: DumpHeader | None = None
    fingerprint: str = ""


def find_dumps(
    files: DumpFiles,
    contract: Contract,
    boot: SeenBoot,
    *,
    run_began: datetime,
    collected: Collection[str],
    running: bool = False,
) -> list[FoundDump]:
    """Looks at every place; the boot's own dumps first. `collected`: fingerprints that are safe.

    running: these are files of a Windows that runs, which uses the place a bug check writes to.
    """
    found = [
        _look(files, path, contract, boot, run_began=run_began, collected=collected)
        for path in _places(files, contract)
        if not (running and path == contract.dump.staged_in)
    ]
    cut = {DumpStatus.TRUNCATED, DumpStatus.NO_DUMP}
    whole = {one.fingerprint for one in found if one.status not in cut}
    settled = [
        one
        if one.status is not DumpStatus.TRUNCATED or one.fingerprint not in whole
        else FoundDump(
            one.path, DumpStatus.HALF_COPIED, one.detail, one.size, one.header, one.fingerprint
        )
        for one in found
    ]
    return sorted(settled, key=lambda one: one.status is not DumpStatus.THIS_BOOT)


def is_being_copied(files: DumpFiles, contract: Contract, found: Sequence[FoundDump]) -> bool:
    """Whether a running Windows has not finished to copy its last dump out of the pagefile.

    It moves that aside before its agent can answer, and deletes it when its copy is whole.
    """
    aside = _names(files, PureWindowsPath(contract.dump.staged_in).anchor, MOVED_ASIDE)
    parts = {DumpStatus.HALF_COPIED, DumpStatus.TRUNCATED, DumpStatus.ALL_ZERO}
    return bool(aside) or any(one.status in parts for one in found)


def copy_dump(
    files: DumpFiles, found: FoundDump, folder: Path, progress: Callable[[int], None] | None = None
) -> Path:
    """Copies a dump off the disk; a copy that was not finished is named *.partial.

    progress: told the bytes copied so far.

    Raises OSError where the host has no room, DiskError where the disk cannot be read.
    """
    name = PureWindowsPath(found.path).name
    if not name.lower().endswith(".dmp"):
        name += ".dmp"
    if (folder / name).exists():  # of another disk, or of another time
        name = f"{found.fingerprint[:8]}-{name}"
    free = shutil.disk_usage(folder).free
    if free < found.size + SPARE_BYTES:
        raise OSError(
            errno.ENOSPC, f"{found.size} bytes are wanted and {free} are free", str(folder)
        )
    partial = folder / f"{name}.partial"
    # A bug check writes below the file system, which does not move the file's valid length.
    files.copy(found.path, partial, length=found.size, past_valid_data=True, progress=progress)
    return partial.rename(folder / name)


def _places(files: DumpFiles, contract: Contract) -> list[str]:
    dump = contract.dump
    root = PureWindowsPath(dump.staged_in).anchor
    minidumps = str(PureWindowsPath(dump.file).parent / "Minidump")
    # What is moved aside comes before its copy, which may have its full size before its content.
    return [
        dump.staged_in,
        *_names(files, root, MOVED_ASIDE),
        dump.file,
        *_names(files, minidumps, "*.dmp"),
    ]


def _names(files: DumpFiles, folder: str, pattern: str) -> list[str]:
    try:
        return [info.path for info in files.list(folder, pattern)]
    except FileNotFoundError:
        return []  # a folder that no crash has made yet


def _look(
    files: DumpFiles,
    path: str,
    contract: Contract,
    boot: SeenBoot,
    *,
    run_began: datetime,
    collected: Collection[str],
) -> FoundDump:
    try:
        size = files.stat(path).size
        start = files.read(path, 0, min(size, HEADER_SIZE), past_valid_data=True)
    except FileNotFoundError:
        return FoundDump(path, DumpStatus.NO_DUMP, f"{path} is not there")
    except DiskError as error:
        return FoundDump(path, DumpStatus.UNREADABLE, str(error))
    try:
        header = read_header(start, path)
    except DumpError as error:
        if size and not any(start) and path != contract.dump.staged_in:
            return FoundDump(path, DumpStatus.ALL_ZERO, f"{path} begins with zeros only", size)
        return FoundDump(path, DumpStatus.NO_DUMP, str(error), size)
    fingerprint = hashlib.sha256(start).hexdigest()
    # A small dump may be shorter than its header says: the debugger cuts what it did not need.
    required = size if header.dump_type == SMALL else header.required_size or size
    if size < required:
        detail = f"{path} has {size} of the {required} bytes that its header says"
        return FoundDump(path, DumpStatus.TRUNCATED, detail, size, header, fingerprint)
    status, detail = _compare(header, contract, boot, run_began)
    if fingerprint in collected:
        status, detail = DumpStatus.EARLIER, "collected after an earlier boot already"
    return FoundDump(path, status, f"{path}: {detail}", required, header, fingerprint)


def _compare(
    header: DumpHeader, contract: Contract, boot: SeenBoot, run_began: datetime
) -> tuple[DumpStatus, str]:
    tolerance = CLOCK_TOLERANCE * contract.deadlines.slowdown
    if header.time is None:
        return DumpStatus.OTHER, "its header bears no time"
    time = header.time - boot.clock_offset  # by the host's clock
    said = f"bug check 0x{header.stop_code:X} at {time:%Y-%m-%d %H:%M:%S}"
    if time < run_began - tolerance:
        return DumpStatus.STALE, f"{said}, before this run began ({run_began:%H:%M:%S})"
    if time < boot.started - tolerance or not boot.may_have_crashed:
        return DumpStatus.EARLIER, f"{said}, before {boot.name} ({boot.started:%H:%M:%S})"
    if time > boot.crashed + tolerance:
        return DumpStatus.OTHER, f"{said}, after the crash was seen ({boot.crashed:%H:%M:%S})"
    if boot.stop_code is not None and header.stop_code != boot.stop_code:
        return DumpStatus.OTHER, f"{said}, but the console said 0x{boot.stop_code:X}"
    return DumpStatus.THIS_BOOT, f"{said}, within {boot.name}"
