r"""Files of a powered-off machine by their Windows paths (C:\Windows\MEMORY.DMP), on FAT32 or NTFS.

The file system is parsed in a process of its own (lab/disks/file_reader.py), which asks this one
for blocks; so any BlockSource will do. Whatever the disk holds, the answer is data,
FileNotFoundError or DiskError.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path, PureWindowsPath
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self, cast

from lab.disks import file_reader
from lab.disks.blocks import (
    BitLockerError,
    BlockSource,
    CompactFileError,
    DirtyLogError,
    DiskError,
    EncryptedFileError,
    HibernatedError,
    NoPartitionError,
    UnknownFilesystemError,
)

READ_LIMIT = 64 << 20
"""Bytes that read() returns without being told a length."""
PIECE = 4 << 20
"""Bytes of a file asked for at once."""
FRAME_LIMIT = 64 << 20
"""Most bytes taken in one answer of the reader."""

_REFUSALS: dict[str, type[DiskError]] = {
    kind.reason: kind
    for kind in (
        BitLockerError,
        CompactFileError,
        EncryptedFileError,
        NoPartitionError,
        UnknownFilesystemError,
    )
}


@dataclass(frozen=True)
class FileInfo:
    r"""A file or folder.

    path: C:\... as the disk spells it. size and allocated_bytes: bytes, of the content and on the
    disk (0 for what fits into the file's NTFS record). modified: UTC; FAT32 keeps local time and no
    zone, which is taken for UTC; None when the disk holds no time that is one.
    """

    path: str
    size: int
    modified: datetime | None
    allocated_bytes: int
    is_folder: bool = False


def open_files(source: BlockSource, *, deadline: float = 60.0) -> DiskFiles:
    r"""The files of the volume with \Windows, else of the first FAT32 or NTFS volume.

    deadline: seconds for one question to the reader, reading the blocks included; a piece of a
    file is one. The source now belongs to the DiskFiles and is closed with it, at once on an error.

    Raises NoPartitionError, UnknownFilesystemError, BitLockerError and, for the rest, DiskError.
    """
    try:
        return DiskFiles(source, deadline)
    except BaseException:
        source.close()
        raise


class DiskFiles:
    """See open_files. A context manager; methods may be called by any thread.

    filesystem: of the volume. volume_offset, volume_length: where it lies on the disk, in bytes.
    warnings: sentences that belong with the evidence. edit_refusal: why
    the files must not be edited, if so.
    """

    filesystem: Literal["fat32", "ntfs"]

    def __init__(self, source: BlockSource, deadline: float) -> None:
        self._source = source
        self._reader = _Reader(source, deadline)
        self.warnings: list[str] = []
        self.edit_refusal: DiskError | None = None
        try:
            found = self._ask("the disk", ask="open", size=source.size)
        except BaseException:
            self._reader.close()
            raise
        self.filesystem = found["filesystem"]
        self.volume_offset: int = found["offset"]
        self.volume_length: int = found["length"]
        if found["hibernated"]:
            self.edit_refusal = HibernatedError("Windows is hibernated on this disk (hiberfil.sys)")
        if found["dirty"]:
            self.edit_refusal = DirtyLogError(
                f"NTFS was not shut down cleanly, {found['dirty']}: the newest may be missing"
            )
        if self.edit_refusal:
            self.warnings.append(str(self.edit_refusal))

    @property
    def reader_process(self) -> int:
        """The id of the process that parses."""
        return self._reader.process_id

    def stat(self, path: str) -> FileInfo:
        """Raises FileNotFoundError."""
        return _file_info(self._ask(path, ask="stat", path=_names(path)))

    def exists(self, path: str) -> bool:
        """Whether there is such a file or folder."""
        try:
            self.stat(path)
        except FileNotFoundError:
            return False
        return True

    def list(self, folder: str, pattern: str = "*") -> list[FileInfo]:
        """What is in the folder and matches, * and ? being wild. Raises FileNotFoundError."""
        found = self._ask(folder, ask="list", path=_names(folder), pattern=pattern)
        return [_file_info(file) for file in found]

    def read(
        self,
        path: str,
        offset: int = 0,
        length: int | None = None,
        *,
        past_valid_data: bool = False,
    ) -> bytes:
        """Bytes of a file; fewer than `length` only at its end.

        past_valid_data: what lies on the disk beyond the file's valid data length, where Windows
        would show zeros. A bug check writes below the file system and does not move that length.

        Raises FileNotFoundError, and DiskError for a file above 64 MiB when no length is given.
        """
        if length is None:
            length = max(self._file(path).size - offset, 0)
            if length > READ_LIMIT:
                raise DiskError(f"{path} has {length} bytes to read: give a length, or copy it")
        pieces = []
        end = offset + length
        while offset < end:
            piece = self._piece(path, offset, min(PIECE, end - offset), past_valid_data)
            if not piece:
                break
            pieces.append(piece)
            offset += len(piece)
        return b"".join(pieces)

    def copy(
        self,
        path: str,
        destination: Path | BinaryIO,
        *,
        length: int | None = None,
        past_valid_data: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Copies a file, or its first `length` bytes, to this host; returns the bytes copied.

        A Path is created or replaced, and is on stable storage on return. progress: told the bytes
        copied so far after each piece. past_valid_data: see read().

        Raises FileNotFoundError, DiskError, and OSError when the host cannot take it (ENOSPC);
        what was written by then stays for the caller to judge.
        """
        size = self._file(path).size
        end = size if length is None else min(size, length)
        done = 0
        with contextlib.ExitStack() as stack:
            if isinstance(destination, Path):
                sink: BinaryIO = stack.enter_context(destination.open("wb"))
            else:
                sink = destination
            while done < end:
                piece = self._piece(path, done, min(PIECE, end - done), past_valid_data)
                if not piece:
                    raise DiskError(f"{path} ends at byte {done}, but its size is {size}")
                sink.write(piece)
                done += len(piece)
                if progress:
                    progress(done)
            sink.flush()
            if isinstance(destination, Path):
                os.fsync(sink.fileno())
        return done

    def close(self) -> None:
        """Ends the reader and closes the block source."""
        self._reader.close()
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _file(self, path: str) -> FileInfo:
        found = self.stat(path)
        if found.is_folder:
            raise DiskError(f"{path} is a folder, not a file")
        return found

    def _piece(self, path: str, offset: int, length: int, past_valid_data: bool) -> bytes:
        found = self._ask(
            path,
            ask="read",
            path=_names(path),
            offset=offset,
            length=length,
            past_valid_data=past_valid_data,
        )
        if not isinstance(found, bytes) or len(found) > length:
            raise DiskError(f"{path}: the reader of the disk gave what was not asked for")
        return found

    def _ask(self, subject: str, **question: object) -> Any:
        kind, payload = self._reader.ask(subject, json.dumps(question).encode())
        if (
            self._reader.source_failure
            and kind != file_reader.FAILURE
            and question["ask"] != "open"
        ):
            # The Sleuth Kit may have gone on without the blocks; the answer cannot be trusted.
            raise DiskError(f"{subject}: {self._reader.source_failure}")
        if kind == file_reader.BLOCKS:
            return payload
        found = json.loads(payload)
        if kind == file_reader.ANSWER:
            return found
        if found["reason"] == "not-found":
            raise FileNotFoundError(f"{subject} is not on the disk")
        message = f"{subject}: {found['message']}"
        if self._reader.source_failure:
            message += f" ({self._reader.source_failure})"
        raise _REFUSALS.get(found["reason"], DiskError)(message)


class _Reader:
    """The process that parses, and the blocks it asks for."""

    def __init__(self, source: BlockSource, deadline: float) -> None:
        self._source = source
        self._deadline = deadline
        self._lock = threading.Lock()
        self.source_failure: DiskError | None = None
        kit = importlib.util.find_spec("pytsk3")
        if kit is None or kit.origin is None:
            raise DiskError("pytsk3 is not installed; it comes with bugcheck-lab[lab]")
        self._process = subprocess.Popen(
            # -S: what site does at the start takes longer than all else; one folder is needed.
            [sys.executable, "-IS", file_reader.__file__, os.path.dirname(kit.origin)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"TZ": "UTC"},  # FAT32's times are read as this zone's
            cwd="/",
            start_new_session=True,  # Ctrl-C is for the harness, which may have evidence to copy
        )
        self._pipes = cast(tuple[BinaryIO, BinaryIO], (self._process.stdin, self._process.stdout))

    @property
    def process_id(self) -> int:
        return self._process.pid

    def ask(self, subject: str, question: bytes) -> tuple[bytes, bytes]:
        """The reader's answer. Raises DiskError when it dies over the question or takes too long.

        The reader does not start again: what killed it would kill it again.
        """
        with self._lock:
            if self._process.poll() is not None:
                raise DiskError(
                    f"{subject}: the reader of this disk has ended before; open it anew"
                )
            self.source_failure = None
            watchdog = threading.Timer(self._deadline, self._process.kill)
            watchdog.daemon = True
            watchdog.start()
            try:
                return self._converse(question)
            except (EOFError, OSError):
                self._process.kill()
                code = self._process.wait()
                assert self._process.stderr is not None
                said = self._process.stderr.read(4000).decode(errors="replace").strip()
                death = _death(code, self._deadline, said.rpartition("\n")[2])
                raise DiskError(f"{subject}: {death}") from None
            except BaseException:
                self._process.kill()  # in mid-answer: nothing it says from here on would fit
                raise
            finally:
                watchdog.cancel()

    def _converse(self, question: bytes) -> tuple[bytes, bytes]:
        """Serves blocks until the answer comes. Raises EOFError or OSError when the reader dies."""
        to, back = self._pipes
        file_reader.send(to, file_reader.QUESTION, question)
        while True:
            kind, payload = file_reader.receive(back, FRAME_LIMIT)
            if kind != file_reader.WANTED:
                return kind, payload
            offset, length = struct.unpack(">QQ", payload)
            try:
                if length > FRAME_LIMIT:
                    raise DiskError(f"{length} bytes wanted at once")
                blocks = self._source.read(offset, length)
            except DiskError as error:
                self.source_failure = error
                file_reader.send(to, file_reader.FAILURE, b"")
            else:
                file_reader.send(to, file_reader.BLOCKS, blocks)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        assert self._process.stderr is not None
        for stream in (*self._pipes, self._process.stderr):
            with contextlib.suppress(BrokenPipeError):  # closing flushes what it did not read
                stream.close()


def _death(code: int, deadline: float, said: str) -> str:
    """How the reader ended; code as subprocess gives it, and its last words."""
    if code == -signal.SIGKILL:
        return f"reading it took longer than {deadline:g} s, or was killed"
    if code == -signal.SIGXCPU:
        return f"reading it took more than {file_reader.PROCESSOR_LIMIT} s of processor time"
    if code < 0:
        return f"the reader of the disk died of {signal.Signals(-code).name}"
    return f"the reader of the disk failed (exit code {code}): {said}"


def _names(path: str) -> list[str]:
    """The names below the root in an absolute path on drive C. Raises ValueError."""
    windows = PureWindowsPath(path)
    if windows.drive.upper() != "C:" or not windows.root or ".." in windows.parts:
        raise ValueError(rf"{path!r}: expected an absolute path such as C:\Windows\MEMORY.DMP")
    return list(windows.parts[1:])


def _file_info(found: dict[str, Any]) -> FileInfo:
    """A FileInfo out of the reader's answer; any number is possible in it."""
    modified: datetime | None = None
    if found["seconds"]:
        with contextlib.suppress(OverflowError):
            modified = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(
                seconds=found["seconds"], microseconds=found["nanoseconds"] // 1000
            )
    return FileInfo(
        path="C:\\" + "\\".join(found["names"]),
        size=found["size"],
        modified=modified,
        allocated_bytes=found["allocated"],
        is_folder=found["folder"],
    )
