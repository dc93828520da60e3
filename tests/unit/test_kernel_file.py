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
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_kernel_fat32 import Volume, fsck, make_volume

ROOT = Path(__file__).parents[2]
KERNEL = ROOT / "images/test_kernel/src"
HARNESS = Path(__file__).parent / "native/file_harness.c"

SUPERSEDE, OPEN, CREATE, OPEN_IF, OVERWRITE, OVERWRITE_IF = range(6)  # FILE_SUPERSEDE ...
SUPERSEDED, OPENED, CREATED, OVERWRITTEN, EXISTS, ABSENT = range(6)  # IO_STATUS_BLOCK.Information
DIRECTORY_FILE, SYNCHRONOUS, NON_DIRECTORY_FILE, DELETE_ON_CLOSE = 0x1, 0x20, 0x40, 0x1000
GENERIC_READ, GENERIC_WRITE, FILE_APPEND_DATA = 0x80000000, 0x40000000, 4
END_OF_FILE_OFFSET, CURRENT_OFFSET = -1, -2
# FILE_INFORMATION_CLASS
DIRECTORY, FULL, BOTH, BASIC, STANDARD, NAMES = 1, 2, 3, 4, 5, 12
DISPOSITION, POSITION, END_OF_FILE, NETWORK_OPEN = 13, 14, 20, 34
NAME_OFFSETS = {DIRECTORY: 64, FULL: 68, BOTH: 94, NAMES: 12}

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
STATUS_FILE_IS_A_DIRECTORY = 0xC00000BA
STATUS_DIRECTORY_NOT_EMPTY = 0xC0000101
STATUS_NOT_A_DIRECTORY = 0xC0000103
STATUS_CANNOT_DELETE = 0xC0000121

NOW = datetime(2024, 7, 19, 4, 9, 30, tzinfo=UTC)
NOW_FILETIME = int((NOW - datetime(1601, 1, 1, tzinfo=UTC)).total_seconds()) * 10_000_000


class UnicodeString(ctypes.Structure):
    """UNICODE_STRING."""

    _fields_ = [
        ("length", ctypes.c_uint16),
        ("maximum_length", ctypes.c_uint16),
        ("buffer", ctypes.c_char_p),
    ]

    @classmethod
    def of(cls, text: str) -> UnicodeString:
        data = text.encode("utf-16-le")
        return cls(len(data), len(data), data)


class ObjectAttributes(ctypes.Structure):
    """OBJECT_ATTRIBUTES."""

    _fields_ = [
        ("length", ctypes.c_uint32),
        ("root_directory", ctypes.c_void_p),
        ("object_name", ctypes.POINTER(UnicodeString)),
        ("attributes", ctypes.c_uint32),
        ("security_descriptor", ctypes.c_void_p),
        ("security_quality_of_service", ctypes.c_void_p),
    ]


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
        root: int | None = None,
    ) -> tuple[int, int]:
        """A handle, and what was done to get it."""
        handle, name = ctypes.c_void_p(), UnicodeString.of(path)
        attributes = ObjectAttributes(48, root, ctypes.pointer(name), 0x240)
        _, information = self._call(
            "ZwCreateFile", ctypes.byref(handle), ctypes.c_uint32(access),
            ctypes.byref(attributes), ..., None, 0x80, 7, disposition, options, None, 0,
        )  # fmt: skip
        assert handle.value is not None
        return handle.value, information

    def open(self, path: str, options: int = SYNCHRONOUS, root: int | None = None) -> int:
        return self.create(path, OPEN, options, root=root)[0]

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

    def set(self, handle: int, kind: int, data: bytes) -> None:
        self._call("ZwSetInformationFile", ctypes.c_void_p(handle), ..., data, len(data), kind)

    def list_once(
        self,
        handle: int,
        pattern: str | None = None,
        *,
        kind: int = DIRECTORY,
        size: int = 4096,
        single: bool = False,
        restart: bool = False,
    ) -> tuple[int, list[tuple[str, bytes]]]:
        """Status, and the name and the fixed part of each entry."""
        buffer = ctypes.create_string_buffer(b"\xcc" * (size + 8), size + 8)
        name = None if pattern is None else ctypes.byref(UnicodeString.of(pattern))
        status, count = self._call(
            "ZwQueryDirectoryFile", ctypes.c_void_p(handle), None, None, None, ..., buffer, size,
            kind, single, name, restart,
        )  # fmt: skip
        assert buffer.raw[size:] == b"\xcc" * 8
        assert 0 < count <= size
        entries, at, start = [], 0, NAME_OFFSETS[kind]
        while True:
            entry = buffer.raw[at:count]
            step, length = struct.unpack_from("<I", entry)[0], self._name_length(entry, kind)
            entries.append((entry[start : start + length].decode("utf-16-le"), entry[:start]))
            if not step:
                assert count == at + min(start + length, size)
                return status, entries
            assert step % 8 == 0
            at += step

    @staticmethod
    def _name_length(entry: bytes, kind: int) -> int:
        return int(struct.unpack_from("<I", entry, 8 if kind == NAMES else 60)[0])

    def names(self, handle: int, pattern: str | None = None, **options: Any) -> list[str]:
        """All of a directory, in as many calls as it takes."""
        found: list[str] = []
        try:
            while True:
                found += [name for name, _ in self.list_once(handle, pattern, **options)[1]]
        except NtError as error:
            if error.status != (STATUS_NO_MORE_FILES if found else STATUS_NO_SUCH_FILE):
                raise
        return found


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    target = tmp_path_factory.mktemp("file") / "file.so"
    command = ["clang-14", "-std=gnu17", "-O1", "-g", "-Wall", "-Wextra", "-Werror"]
    command += ["-Wno-multichar", "-Wno-ignored-attributes", "-fdeclspec", "-fshort-wchar"]
    command += ["-ffreestanding", "-fPIC", "-shared", "-nostdlib", "-fuse-ld=lld", "-Wl,-Bsymbolic"]
    command += ["-fsanitize=undefined", "-fsanitize-trap=undefined", f"-I{KERNEL / 'include'}"]
    sources = [KERNEL / name for name in ("io/fat32.c", "io/file.c", "ob/object.c", "rtl/text.c")]
    command += [str(HARNESS), *map(str, sources), "-o", str(target)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(target))


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
    below, _ = files.create("below", CREATE, root=handle)
    files.write(below, b"relative")
    files.close(below, handle)
    assert volume.load("Windows\\new\\below") == b"relative"
    assert status_of(files.close, below) == STATUS_INVALID_HANDLE
    assert status_of(files.read, below, 1, 0) == STATUS_INVALID_HANDLE


def test_offsets_and_the_current_position(files: Files) -> None:
    handle, _ = files.create(PATH, CREATE)
    files.write(handle, b"0123456789")
    assert status_of(files.read, handle, 1) == STATUS_END_OF_FILE
    assert files.read(handle, 4, 2) == b"2345"
    assert files.read(handle, 4) == b"6789"
    assert files.read(handle, 0, 100) == b""
    files.set(handle, POSITION, struct.pack("<q", 8))
    assert files.query(handle, POSITION, 8) == struct.pack("<q", 8)
    assert files.read(handle, 100, CURRENT_OFFSET) == b"89"
    files.write(handle, b"end", END_OF_FILE_OFFSET)
    files.write(handle, b"AB", 1)
    files.write(handle, b"far", 5000)
    assert files.read(handle, 6000, 0) == b"0AB3456789end".ljust(5000, b"\0") + b"far"
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
    times = struct.pack("<2Q", NOW_FILETIME, NOW_FILETIME) * 2
    archive = 0x20
    assert files.query(handle, BASIC, 40) == times + struct.pack("<II", archive, 0)
    assert files.query(handle, STANDARD, 24)[:22] == struct.pack("<QQI??", 8192, 5000, 1, 0, 0)
    network = files.query(handle, NETWORK_OPEN, 56)
    assert network[:52] == times + struct.pack("<QQI", 8192, 5000, archive)
    assert status_of(files.query, handle, STANDARD, 23) == STATUS_INFO_LENGTH_MISMATCH
    assert status_of(files.query, handle, 99, 100) == STATUS_INVALID_INFO_CLASS
    assert status_of(files.set, handle, 99, bytes(100)) == STATUS_INVALID_INFO_CLASS
    assert status_of(files.set, handle, POSITION, bytes(7)) == STATUS_INFO_LENGTH_MISMATCH
    assert status_of(files.set, handle, POSITION, b"\xff" * 8) == STATUS_INVALID_PARAMETER
    folder = files.open(r"\SystemRoot\Sensor", DIRECTORY_FILE)
    assert files.query(folder, STANDARD, 24)[:22] == struct.pack("<QQI??", 0, 0, 1, 0, 1)
    other = files.open(PATH)
    files.set(other, END_OF_FILE, struct.pack("<Q", 10))
    assert files.query(handle, STANDARD, 24)[8:16] == struct.pack("<Q", 10)
    files.write(handle, b"\xaa" * 10, 0)
    files.set(other, END_OF_FILE, struct.pack("<Q", 4))
    files.set(other, END_OF_FILE, struct.pack("<Q", 12))
    assert files.read(handle, 20, 0) == b"\xaa" * 4 + bytes(8)
    files.close(handle, folder, other)


def test_deletion(files: Files, volume: Volume) -> None:
    handle, _ = files.create(PATH, CREATE)
    folder = files.open(r"\SystemRoot\Sensor", DIRECTORY_FILE)
    assert status_of(files.set, folder, DISPOSITION, b"\1") == STATUS_DIRECTORY_NOT_EMPTY
    files.set(handle, DISPOSITION, b"\1")
    assert files.query(handle, STANDARD, 24)[20] == 1
    files.set(handle, DISPOSITION, b"\0")
    files.close(handle)
    assert volume.names("Windows\\Sensor") == ["C-00000291-1.sys"]
    handle = files.open(PATH)
    files.set(handle, DISPOSITION, b"\1")
    assert volume.names("Windows\\Sensor") == ["C-00000291-1.sys"]
    files.close(handle)
    assert volume.names("Windows\\Sensor") == []
    files.close(files.create(PATH, CREATE, DELETE_ON_CLOSE)[0])
    assert volume.names("Windows\\Sensor") == []
    files.set(folder, DISPOSITION, b"\1")
    files.close(folder)
    assert volume.names("Windows") == []
    top = files.open("\\??\\C:\\", DIRECTORY_FILE)
    assert status_of(files.set, top, DISPOSITION, b"\1") == STATUS_CANNOT_DELETE
    files.close(top)


def test_directories_are_listed(files: Files, volume: Volume) -> None:
    names = ["C-00000291-1.sys", "C-00000291-22.sys", "README", "c-00000292.SYS"]
    for size, name in enumerate(names):
        volume.store(f"Windows\\Sensor\\{name}", bytes(size))
    folder = files.open(r"\SystemRoot\Sensor", DIRECTORY_FILE)
    for kind, start in NAME_OFFSETS.items():
        status, entries = files.list_once(folder, kind=kind, restart=True)
        assert status == 0
        assert [name for name, _ in entries] == names
        for size, (_, fixed) in enumerate(entries if kind != NAMES else []):
            times = struct.pack("<4Q", *[NOW_FILETIME] * 4)
            allocation = 4096 if size else 0
            assert fixed[8:60] == times + struct.pack("<QQI", size, allocation, 0x20)
            assert fixed[64:] == bytes(start - 64)
    assert status_of(files.list_once, folder) == STATUS_NO_MORE_FILES
    files.close(folder)


def test_a_listing_goes_on_where_it_stopped(files: Files, volume: Volume) -> None:
    names = [f"{'n' * (number * 7 % 50)}{number}.sys" for number in range(40)]
    for name in names:
        volume.store(f"Windows\\Sensor\\{name}", b"")
    assert sorted(volume.names("Windows\\Sensor")) == sorted(names)
    names = volume.names("Windows\\Sensor")  # in the order of the directory
    for kind in NAME_OFFSETS:
        for options in ({"single": True}, {"size": 210}, {"size": 333}, {"size": 4096}):
            folder = files.open(r"\SystemRoot\Sensor", DIRECTORY_FILE)
            assert files.names(folder, kind=kind, **options) == names
            assert status_of(files.list_once, folder) == STATUS_NO_MORE_FILES
            files.close(folder)


def test_buffers_too_small_for_one_entry(files: Files, volume: Volume) -> None:
    volume.store("Windows\\Sensor\\name.sys", b"")
    folder = files.open(r"\SystemRoot\Sensor", DIRECTORY_FILE)
    assert status_of(files.list_once, folder, size=63) == STATUS_INFO_LENGTH_MISMATCH
    assert status_of(files.list_once, folder, kind=STANDARD) == STATUS_INVALID_INFO_CLASS
    status, entries = files.list_once(folder, size=64 + 6)
    assert (status, [name for name, _ in entries]) == (STATUS_BUFFER_OVERFLOW, ["nam"])
    file = files.open(r"\SystemRoot\Sensor\name.sys")
    assert status_of(files.list_once, file) == STATUS_INVALID_PARAMETER
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
        match source.randrange(4):
            case 0:
                data = source.randbytes(source.randrange(1, 3000))
                files.write(handle, data, at)
                contents = contents.ljust(at, b"\0")
                contents = contents[:at] + data + contents[at + len(data) :]
            case 1:
                data = source.randbytes(100)
                files.write(handle, data, END_OF_FILE_OFFSET)
                contents += data
            case 2:
                files.set(handle, END_OF_FILE, struct.pack("<Q", at))
                contents = contents[:at].ljust(at, b"\0")
            case 3:
                if at < len(contents):
                    assert files.read(handle, 2000, at) == contents[at : at + 2000]
                else:
                    assert status_of(files.read, handle, 2000, at) == STATUS_END_OF_FILE
    files.close(*handles)
    assert volume.load("Windows\\Sensor\\C-00000291-1.sys") == contents
