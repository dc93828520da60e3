"""The test kernel's Zw file calls (io/file.c) over its FAT32, compiled for this machine.

What is expected is what Microsoft documents for ZwCreateFile, ZwReadFile, ZwWriteFile,
Zw(Query|Set)InformationFile and ZwQueryDirectoryFile; none of it was compared with a real Windows.
"""

from __future__ import annotations

import ctypes
import fnmatch
import random
import re
import struct
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.native import ObjectAttributes, String, build
from tests.unit.test_kernel_fat32 import Volume, fsck, make_volume

SUPERSEDE, OPEN, CREATE, OPEN_IF, OVERWRITE, OVERWRITE_IF = range(6)  # FILE_SUPERSEDE ...
SUPERSEDED, OPENED, CREATED, OVERWRITTEN, EXISTS, ABSENT = range(6)  # IO_STATUS_BLOCK.Information
DIRECTORY_FILE, SYNCHRONOUS, NON_DIRECTORY_FILE, DELETE_ON_CLOSE = 0x1, 0x20, 0x40, 0x1000
GENERIC_READ, GENERIC_WRITE, FILE_APPEND_DATA = 0x80000000, 0x40000000, 4
END_OF_FILE_OFFSET, CURRENT_OFFSET = -1, -2
# FILE_INFORMATION_CLASS
DIRECTORY, FULL, STANDARD, DISPOSITION, END_OF_FILE = 1, 2, 5, 13, 20
NAME_OFFSET = 64
"""Of FILE_DIRECTORY_INFORMATION."""

STATUS_BUFFER_OVERFLOW = 0x80000005
STATUS_NO_MORE_FILES = 0x80000006
STATUS_INVALID_INFO_CLASS = 0xC0000003
STATUS_INFO_LENGTH_MISMATCH = 0xC0000004
STATUS_INVALID_HANDLE = 0xC0000008
STATUS_INVALID_PARAMETER = 0xC000000D
STATUS_NO_SUCH_FILE = 0xC000000F
STATUS_INVALID_DEVICE_REQUEST = 0xC0000010
STATUS_END_OF_FILE = 0xC0000011
STATUS_OBJECT_NAME_NOT_FOUND = 0xC0000034
STATUS_OBJECT_NAME_COLLISION = 0xC0000035
STATUS_OBJECT_PATH_NOT_FOUND = 0xC000003A
STATUS_DISK_FULL = 0xC000007F
STATUS_FILE_IS_A_DIRECTORY = 0xC00000BA
STATUS_DIRECTORY_NOT_EMPTY = 0xC0000101
STATUS_NOT_A_DIRECTORY = 0xC0000103
STATUS_CANNOT_DELETE = 0xC0000121

NOW = datetime(2024, 7, 19, 4, 9, 30, tzinfo=UTC)
NOW_FILETIME = int((NOW - datetime(1601, 1, 1, tzinfo=UTC)).total_seconds()) * 10_000_000


class IoStatusBlock(ctypes.Structure):
    """IO_STATUS_BLOCK."""

    _fields_ = [("status", ctypes.c_uint64), ("information", ctypes.c_uint64)]


class NtError(Exception):
    """A call failed; `status` is its NTSTATUS, `information` that of its IO_STATUS_BLOCK."""

    def __init__(self, status: int, information: int) -> None:
        super().__init__(f"{status:#010x}")
        self.status = status
        self.information = information


class Files:
    """The Zw calls, as a driver makes them."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def _call(self, name: str, *arguments: object) -> tuple[int, int]:
        """Status and information; IO_STATUS_BLOCK goes where Ellipsis is."""
        block = IoStatusBlock(0, ABSENT)
        passed = [ctypes.byref(block) if item is ... else item for item in arguments]
        status = getattr(self._library, name)(*passed) & 0xFFFFFFFF
        if status >> 30 == 3 or status == STATUS_NO_MORE_FILES:
            raise NtError(status, block.information)
        assert block.status & 0xFFFFFFFF == status
        return status, block.information

    def create(
        self,
        path: str,
        disposition: int = OPEN,
        options: int = SYNCHRONOUS,
        access: int = GENERIC_READ | GENERIC_WRITE,
    ) -> tuple[int, int]:
        """A handle, and what was done to get it."""
        handle, name = ctypes.c_void_p(), String.wide(path)
        attributes = ObjectAttributes(48, None, ctypes.pointer(name), 0x240)
        _, information = self._call(
            "ZwCreateFile", ctypes.byref(handle), ctypes.c_uint32(access),
            ctypes.byref(attributes), ..., None, 0x80, 7, disposition, options, None, 0,
        )  # fmt: skip
        assert handle.value is not None
        return handle.value, information

    def open(self, path: str, options: int = SYNCHRONOUS) -> int:
        return self.create(path, OPEN, options)[0]

    def close(self, *handles: int) -> None:
        for handle in handles:
            status = self._library.ZwClose(ctypes.c_void_p(handle)) & 0xFFFFFFFF
            if status:
                raise NtError(status, 0)

    def read(self, handle: int, size: int, offset: int | None = None) -> bytes:
        buffer = ctypes.create_string_buffer(size + 1)
        at = None if offset is None else ctypes.byref(ctypes.c_int64(offset))
        _, count = self._call(
            "ZwReadFile", ctypes.c_void_p(handle), None, None, None, ..., buffer, size, at, None
        )
        return buffer.raw[:count]

    def write(self, handle: int, data: bytes, offset: int | None = None) -> None:
        at = None if offset is None else ctypes.byref(ctypes.c_int64(offset))
        _, count = self._call(
            "ZwWriteFile", ctypes.c_void_p(handle), None, None, None, ..., data, len(data), at, None
        )
        assert count == len(data)

    def query(self, handle: int, kind: int, size: int) -> bytes:
        buffer = ctypes.create_string_buffer(b"\xcc" * size, size)
        _, count = self._call(
            "ZwQueryInformationFile", ctypes.c_void_p(handle), ..., buffer, size, kind
        )
        return buffer.raw[:count]

    def next_entry(
        self,
        handle: int,
        pattern: str | None = None,
        *,
        kind: int = DIRECTORY,
        size: int = 4096,
        restart: bool = False,
    ) -> tuple[int, str, bytes]:
        """Status, and the name and the fixed part of one entry."""
        buffer = ctypes.create_string_buffer(b"\xcc" * (size + 8), size + 8)
        name = None if pattern is None else ctypes.byref(String.wide(pattern))
        status, count = self._call(
            "ZwQueryDirectoryFile", ctypes.c_void_p(handle), None, None, None, ..., buffer, size,
            kind, True, name, restart,
        )  # fmt: skip
        assert buffer.raw[count:] == b"\xcc" * (size + 8 - count)
        entry = buffer.raw[:count]
        length = struct.unpack_from("<I", entry, 60)[0]
        assert count == min(NAME_OFFSET + length, size)
        return status, entry[NAME_OFFSET:].decode("utf-16-le"), entry[:NAME_OFFSET]

    def names(self, handle: int, pattern: str | None = None, *, restart: bool = False) -> list[str]:
        """All of a directory, entry by entry."""
        found: list[str] = []
        try:
            while True:
                found.append(self.next_entry(handle, pattern, restart=restart and not found)[1])
        except NtError as error:
            if error.status != (STATUS_NO_MORE_FILES if found else STATUS_NO_SUCH_FILE):
                raise
        return found


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    sources = ("fat32_harness.c", "io/fat32.c", "io/file.c", "ob/object.c")
    return build(tmp_path_factory.mktemp("file"), *sources)


@pytest.fixture
def volume(library: ctypes.CDLL, tmp_path: Path) -> Iterator[Volume]:
    make_volume(tmp_path / "volume")
    mounted = Volume(library, tmp_path / "volume")
    mounted.set_time(NOW)
    mounted.create("Windows", directory=True)
    mounted.create("Windows\\Sensor", directory=True)
    yield mounted
    mounted.close()  # checks that no object and no lock is left
    assert fsck(mounted.path) == []


@pytest.fixture
def files(library: ctypes.CDLL, volume: Volume) -> Files:
    assert volume.memory
    return Files(library)


def status_of(function: Callable[..., object], *arguments: object, **options: object) -> int:
    with pytest.raises(NtError) as error:
        function(*arguments, **options)
    return error.value.status


PATH = r"\SystemRoot\Sensor\C-00000291-1.sys"


@pytest.mark.parametrize(
    ("disposition", "absent", "existing"),
    [
        (SUPERSEDE, CREATED, SUPERSEDED),
        (OPEN, STATUS_OBJECT_NAME_NOT_FOUND, OPENED),
        (CREATE, CREATED, STATUS_OBJECT_NAME_COLLISION),
        (OPEN_IF, CREATED, OPENED),
        (OVERWRITE, STATUS_OBJECT_NAME_NOT_FOUND, OVERWRITTEN),
        (OVERWRITE_IF, CREATED, OVERWRITTEN),
    ],
)
def test_dispositions(
    files: Files, volume: Volume, disposition: int, absent: int, existing: int
) -> None:
    if absent < STATUS_BUFFER_OVERFLOW:
        handle, information = files.create(PATH, disposition)
        assert information == absent
        files.close(handle)
        assert volume.load("Windows\\Sensor\\C-00000291-1.sys") == b""
    else:
        assert status_of(files.create, PATH, disposition) == absent
        assert volume.names("Windows\\Sensor") == []
    volume.store("Windows\\Sensor\\C-00000291-1.sys", b"before")
    if existing < STATUS_BUFFER_OVERFLOW:
        handle, information = files.create(PATH.upper(), disposition)
        assert information == existing
        files.close(handle)
    else:
        with pytest.raises(NtError) as error:
            files.create(PATH, disposition)
        assert (error.value.status, error.value.information) == (existing, EXISTS)
    kept = b"before" if existing in (OPENED, STATUS_OBJECT_NAME_COLLISION) else b""
    assert volume.load("Windows\\Sensor\\C-00000291-1.sys") == kept


def test_paths_and_kinds_that_do_not_fit(files: Files, volume: Volume) -> None:
    volume.store("Windows\\file", b"x")
    for path, options, status in [
        (r"\??\C:\Absent\file", 0, STATUS_OBJECT_PATH_NOT_FOUND),
        (r"\??\C:\Windows\file\below", 0, STATUS_OBJECT_PATH_NOT_FOUND),
        (r"\??\D:\Windows\file", 0, STATUS_OBJECT_PATH_NOT_FOUND),
        (r"\??\C:\Windows\absent", 0, STATUS_OBJECT_NAME_NOT_FOUND),
        (r"\??\C:\Windows\file", DIRECTORY_FILE, STATUS_NOT_A_DIRECTORY),
        (r"\??\C:\Windows", NON_DIRECTORY_FILE, STATUS_FILE_IS_A_DIRECTORY),
    ]:
        assert status_of(files.open, path, options) == status, path
    assert status_of(files.create, r"\SystemRoot", OVERWRITE_IF) == STATUS_OBJECT_NAME_COLLISION
    assert status_of(files.create, r"\SystemRoot\file", 6) == STATUS_INVALID_PARAMETER
    handle, information = files.create(r"\SystemRoot\new", CREATE, DIRECTORY_FILE)
    assert information == CREATED
    assert status_of(files.read, handle, 1, 0) == STATUS_INVALID_DEVICE_REQUEST
    files.close(handle)
    assert volume.names("Windows") == ["Sensor", "file", "new"]
    assert status_of(files.close, handle) == STATUS_INVALID_HANDLE
    assert status_of(files.read, handle, 1, 0) == STATUS_INVALID_HANDLE


def test_offsets_and_the_current_position(files: Files) -> None:
    handle, _ = files.create(PATH, CREATE)
    files.write(handle, b"0123456789")
    assert status_of(files.read, handle, 1) == STATUS_END_OF_FILE
    assert files.read(handle, 4, 2) == b"2345"
    assert files.read(handle, 4) == b"6789"
    assert files.read(handle, 0, 100) == b""
    files.write(handle, b"8", 7)
    assert files.read(handle, 100, CURRENT_OFFSET) == b"89"
    files.write(handle, b"end", END_OF_FILE_OFFSET)
    files.write(handle, b"AB", 1)
    files.write(handle, b"far", 5000)
    assert files.read(handle, 6000, 0) == b"0AB3456889end".ljust(5000, b"\0") + b"far"
    assert status_of(files.read, handle, 1, -3) == STATUS_INVALID_PARAMETER
    unsynchronized = files.open(PATH, 0)
    assert status_of(files.read, unsynchronized, 1) == STATUS_INVALID_PARAMETER
    assert status_of(files.write, unsynchronized, b"x") == STATUS_INVALID_PARAMETER
    appending, _ = files.create(PATH, OPEN, SYNCHRONOUS, FILE_APPEND_DATA)
    files.write(appending, b"+", 0)
    assert files.read(unsynchronized, 10, 5000) == b"far+"
    files.close(handle, unsynchronized, appending)


def test_information(files: Files) -> None:
    handle, _ = files.create(PATH, CREATE)
    files.write(handle, bytes(5000))
    assert files.query(handle, STANDARD, 24)[:22] == struct.pack("<QQI??", 8192, 5000, 1, 0, 0)
    assert status_of(files.query, handle, STANDARD, 23) == STATUS_INFO_LENGTH_MISMATCH
    assert status_of(files.query, handle, 99, 100) == STATUS_INVALID_INFO_CLASS
    folder = files.open(r"\SystemRoot\Sensor", DIRECTORY_FILE)
    assert files.query(folder, STANDARD, 24)[:22] == struct.pack("<QQI??", 0, 0, 1, 0, 1)
    other = files.open(PATH)
    files.write(other, b"\xaa" * 10, 4995)
    assert files.query(handle, STANDARD, 24)[8:16] == struct.pack("<Q", 5005)
    assert files.read(handle, 20, 4990) == bytes(5) + b"\xaa" * 10
    files.close(handle, folder, other)


def test_delete_on_close(files: Files, volume: Volume) -> None:
    handle, _ = files.create(PATH, CREATE, DELETE_ON_CLOSE)
    assert files.query(handle, STANDARD, 24)[20] == 1
    assert volume.names("Windows\\Sensor") == ["C-00000291-1.sys"]
    files.close(handle)
    assert volume.names("Windows\\Sensor") == []


def test_directories_are_listed(files: Files, volume: Volume) -> None:
    names = ["C-00000291-1.sys", "C-00000291-22.sys", "README", "c-00000292.SYS"]
    for size, name in enumerate(names):
        volume.store(f"Windows\\Sensor\\{name}", bytes(size))
    folder = files.open(r"\SystemRoot\Sensor", DIRECTORY_FILE)
    for restart in (False, True):
        for size, name in enumerate(names):
            status, found, fixed = files.next_entry(folder, restart=restart and size == 0)
            assert (status, found) == (0, name)
            times = struct.pack("<4Q", *[NOW_FILETIME] * 4)
            allocation = 4096 if size else 0
            assert fixed[:60] == bytes(8) + times + struct.pack("<QQI", size, allocation, 0x20)
        assert status_of(files.next_entry, folder) == STATUS_NO_MORE_FILES
    files.close(folder)


def test_the_first_pattern_stays(files: Files, volume: Volume) -> None:
    for name in ("one.sys", "two.txt", "three.sys"):
        volume.store(f"Windows\\Sensor\\{name}", b"")
    folder = files.open(r"\SystemRoot\Sensor", DIRECTORY_FILE)
    assert files.names(folder, "*.SYS") == ["one.sys", "three.sys"]
    assert files.names(folder, "*.txt", restart=True) == ["one.sys", "three.sys"]
    files.close(folder)


def test_buffers_too_small_for_one_entry(files: Files, volume: Volume) -> None:
    volume.store("Windows\\Sensor\\name.sys", b"")
    folder = files.open(r"\SystemRoot\Sensor", DIRECTORY_FILE)
    assert status_of(files.next_entry, folder, size=63) == STATUS_INFO_LENGTH_MISMATCH
    assert status_of(files.next_entry, folder, kind=FULL) == STATUS_INVALID_INFO_CLASS
    status, name, _ = files.next_entry(folder, size=64 + 6)
    assert (status, name) == (STATUS_BUFFER_OVERFLOW, "nam")
    file = files.open(r"\SystemRoot\Sensor\name.sys")
    assert status_of(files.next_entry, file) == STATUS_INVALID_PARAMETER
    files.close(file, folder)


LETTERS = st.text(st.sampled_from("ab.-"), min_size=1, max_size=8).filter(
    lambda name: name.strip(".") == name
)


@settings(max_examples=150, deadline=None)
@given(
    names=st.lists(LETTERS, max_size=6, unique=True),
    pattern=st.text(st.sampled_from("aB.-*?"), min_size=1, max_size=6),
)
def test_patterns(library: ctypes.CDLL, blank: Path, names: list[str], pattern: str) -> None:
    volume, files = Volume(library, blank), Files(library)
    for name in names:
        volume.create(name)
    folder = files.open("\\??\\C:\\", DIRECTORY_FILE)
    matching = re.compile(fnmatch.translate(pattern), re.IGNORECASE).match
    assert files.names(folder, pattern) == list(filter(matching, volume.names("")))
    files.close(folder)
    for name in names:
        volume.delete(volume.open(name))
    volume.close()


@pytest.fixture(scope="session")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("patterns") / "volume"
    make_volume(path)
    return path


@pytest.mark.parametrize("seed", range(4))
def test_random_work_on_several_handles(files: Files, volume: Volume, seed: int) -> None:
    source = random.Random(seed)
    contents = b""
    handles = [files.create(PATH, OPEN_IF)[0] for _ in range(3)]
    for _ in range(200):
        handle, at = source.choice(handles), source.randrange(9000)
        match source.randrange(3):
            case 0:
                data = source.randbytes(source.randrange(1, 3000))
                files.write(handle, data, at)
                contents = contents.ljust(at, b"\0")
                contents = contents[:at] + data + contents[at + len(data) :]
            case 1:
                data = source.randbytes(100)
                files.write(handle, data, END_OF_FILE_OFFSET)
                contents += data
            case _:
                if at < len(contents):
                    assert files.read(handle, 2000, at) == contents[at : at + 2000]
                else:
                    assert status_of(files.read, handle, 2000, at) == STATUS_END_OF_FILE
    files.close(*handles)
    assert volume.load("Windows\\Sensor\\C-00000291-1.sys") == contents
