"""The test kernel's FAT32 (src/io/fat32.c), compiled for this machine and judged by other code.

Random work on a volume must read back by mtools exactly as a Python dictionary remembers it, and
fsck.fat must find nothing. A power cut after any sector write may leave lost clusters, or a chain
longer than its file, and nothing else.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import re
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest

from tests.unit.native import build

SECTOR = 512
PARTITION_LBA = 2048
MIB = 1024 * 1024
ENVIRONMENT = {**os.environ, "MTOOLS_SKIP_CHECK": "1", "TZ": "UTC", "LC_ALL": "C"}

STATUS_SUCCESS = 0
STATUS_NO_MORE_FILES = 0x80000006
STATUS_NO_SUCH_FILE = 0xC000000F
STATUS_END_OF_FILE = 0xC0000011
STATUS_BUFFER_TOO_SMALL = 0xC0000023
STATUS_OBJECT_NAME_INVALID = 0xC0000033
STATUS_OBJECT_NAME_NOT_FOUND = 0xC0000034
STATUS_OBJECT_NAME_COLLISION = 0xC0000035
STATUS_OBJECT_PATH_NOT_FOUND = 0xC000003A
STATUS_DISK_FULL = 0xC000007F
STATUS_FILE_IS_A_DIRECTORY = 0xC00000BA
STATUS_DIRECTORY_NOT_EMPTY = 0xC0000101
STATUS_IO_DEVICE_ERROR = 0xC0000185


class NtError(Exception):
    """A Fat function failed; `status` is its NTSTATUS."""

    def __init__(self, function: str, status: int) -> None:
        super().__init__(f"{function}: {status:#010x}")
        self.status = status


class FatFile(ctypes.Structure):
    """FAT_FILE of ki.h."""

    _fields_ = [
        ("first_cluster", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("directory_cluster", ctypes.c_uint32),
        ("entry_index", ctypes.c_uint32),
        ("write_time", ctypes.c_int64),
        ("create_time", ctypes.c_int64),
        ("attributes", ctypes.c_uint8),
        ("name", ctypes.c_char * 256),
        ("short_name", ctypes.c_uint8 * 11),
    ]


class Extent(ctypes.Structure):
    """FAT_EXTENT of ki.h."""

    _fields_ = [("lba", ctypes.c_uint64), ("sectors", ctypes.c_uint32)]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build(tmp_path_factory.mktemp("fat32"), "fat32_harness.c", "io/fat32.c")


class Volume:
    """A FAT32 partition in a file, worked on by fat32.c. One at a time: the C side is global."""

    def __init__(self, library: ctypes.CDLL, path: Path) -> None:
        self.path = path
        self._library = library
        with path.open("r+b") as file:
            self.memory = mmap.mmap(file.fileno(), 0)
        self.attach()

    def attach(self) -> None:
        """Power on again and mount."""
        start = (ctypes.c_char * len(self.memory)).from_buffer(self.memory)
        self._library.HarnessAttach(start, ctypes.c_uint64(len(self.memory) // SECTOR))
        self.set_time(datetime(2024, 7, 19, 4, 9, 30, tzinfo=UTC))
        self._call("FatMount")

    def close(self) -> None:
        """Detach; nothing was held back, as the driver writes through."""
        assert ctypes.c_int32.in_dll(self._library, "HarnessLockErrors").value == 0
        assert ctypes.c_int32.in_dll(self._library, "HarnessPoolBlocks").value == 0
        assert ctypes.c_char.in_dll(self._library, "HarnessDebugText").value == b"\0"
        self.memory.flush()
        self.memory.close()

    def set_time(self, time: datetime) -> None:
        """Set the clock; FILETIME counts 100 ns since 1601."""
        seconds = int((time - datetime(1601, 1, 1, tzinfo=UTC)).total_seconds())
        self._library.HarnessSetTime(ctypes.c_int64(seconds * 10_000_000))

    def cut_power(self, sectors: int) -> None:
        """Refuse all sector writes after the next `sectors`."""
        self._library.HarnessCutPower(ctypes.c_uint64(sectors))

    @property
    def written(self) -> int:
        """Sectors written since `attach`."""
        function = self._library.HarnessWritten
        function.restype = ctypes.c_uint64
        return int(function())

    def _call(self, function: str, *arguments: object) -> None:
        status = getattr(self._library, function)(*arguments) & 0xFFFFFFFF
        if status != STATUS_SUCCESS:
            raise NtError(function, status)

    def open(self, path: str) -> FatFile:
        file = FatFile()
        self._call("FatOpen", path.encode(), ctypes.byref(file))
        return file

    def create(self, path: str, *, directory: bool = False) -> FatFile:
        file = FatFile()
        self._call("FatCreate", path.encode(), ctypes.c_ubyte(directory), ctypes.byref(file))
        return file

    def read(self, file: FatFile, offset: int, length: int) -> bytes:
        buffer = ctypes.create_string_buffer(length + 1)
        done = ctypes.c_uint32()
        self._call("FatRead", ctypes.byref(file), offset, buffer, length, ctypes.byref(done))
        return buffer.raw[: done.value]

    def write(self, file: FatFile, offset: int, data: bytes) -> None:
        done = ctypes.c_uint32()
        self._call("FatWrite", ctypes.byref(file), offset, data, len(data), ctypes.byref(done))
        assert done.value == len(data)

    def set_size(self, file: FatFile, size: int) -> None:
        self._call("FatSetSize", ctypes.byref(file), size)

    def rename(self, file: FatFile, name: str) -> None:
        self._call("FatRename", ctypes.byref(file), name.encode())

    def delete(self, file: FatFile) -> None:
        self._call("FatDelete", ctypes.byref(file))

    def store(self, path: str, data: bytes) -> None:
        self._call("FatStoreFile", path.encode(), data, len(data))

    def load(self, path: str) -> bytes:
        buffer, size = ctypes.c_void_p(), ctypes.c_uint32()
        self._call("FatLoadFile", path.encode(), ctypes.byref(buffer), ctypes.byref(size))
        assert buffer.value is not None
        data = ctypes.string_at(buffer.value, size.value + 1)
        self._library.ExFreePoolWithTag(buffer, 0)
        assert data[-1] == 0
        return data[:-1]

    def names(self, path: str) -> list[str]:
        directory, entry, cursor = self.open(path), FatFile(), ctypes.c_uint32(0)
        found: list[str] = []
        while True:
            try:
                arguments = (ctypes.byref(item) for item in (directory, cursor, entry))
                self._call("FatReadDirectory", *arguments)
            except NtError as error:
                if error.status == STATUS_NO_MORE_FILES:
                    return found
                raise
            found.append(entry.name.decode())

    def extents(self, file: FatFile, maximum: int = 4096) -> list[tuple[int, int]]:
        found, count = (Extent * max(maximum, 1))(), ctypes.c_uint32()
        self._call("FatGetExtents", ctypes.byref(file), found, maximum, ctypes.byref(count))
        return [(extent.lba, extent.sectors) for extent in found[: count.value]]

    @property
    def free_bytes(self) -> int:
        """Counted in the first FAT; a volume with one sector a cluster."""
        reserved = int.from_bytes(self.memory[14:16], "little")
        fat_sectors = int.from_bytes(self.memory[36:40], "little")
        clusters = len(self.memory) // SECTOR - reserved - self.memory[16] * fat_sectors
        fat = self.memory[reserved * SECTOR :][8 : 8 + 4 * clusters]
        return sum(entry == (0,) for entry in struct.iter_unpack("<I", fat)) * SECTOR


def make_volume(path: Path, *, mib: int = 40, sectors_per_cluster: int = 1) -> None:
    """Make a file system; 40 MiB with one sector a cluster is about the smallest real FAT32."""
    path.write_bytes(b"")
    os.truncate(path, mib * MIB)
    command = ["mkfs.fat", "-F", "32", "-s", str(sectors_per_cluster), "-i", "19072024"]
    subprocess.run([*command, str(path)], check=True, capture_output=True)


def fsck(path: Path) -> list[str]:
    """What fsck.fat complains of, line by line; the version and the summary are left out.

    So is that the free clusters are not counted in FSInfo: the driver marks that hint unknown.
    """
    command = ["fsck.fat", "-n", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert "clusters" in lines[-1], done.stdout + done.stderr
    noted = [line for line in lines[1:-1] if line.strip()]
    complaints = [line for line in noted if "summary uninitialized" not in line]
    assert (done.returncode == 0) == (not complaints), done.stdout
    return complaints


def mtools_tree(path: Path, target: Path) -> dict[str, bytes | None]:
    """Path -> contents of everything on the volume as mtools reads it; directories are None."""
    target.mkdir()
    command = ["mcopy", "-s", "-n", "-i", str(path), "::/", str(target)]
    subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT)
    return {
        str(item.relative_to(target)).replace("/", "\\"): None
        if item.is_dir()
        else item.read_bytes()
        for item in target.rglob("*")
    }


def kernel_tree(volume: Volume, path: str = "") -> dict[str, bytes | None]:
    """The same as fat32.c reads it."""
    tree: dict[str, bytes | None] = {}
    for name in volume.names(path):
        child = f"{path}\\{name}" if path else name
        if volume.open(child).attributes & 0x10:
            tree[child] = None
            tree.update(kernel_tree(volume, child))
        else:
            tree[child] = volume.load(child)
    return tree


@contextmanager
def mounted(library: ctypes.CDLL, path: Path) -> Iterator[Volume]:
    volume = Volume(library, path)
    try:
        yield volume
    finally:
        volume.close()


@contextmanager
def nt_error(status: int) -> Iterator[None]:
    with pytest.raises(NtError) as caught:
        yield
    assert f"{caught.value.status:#x}" == f"{status:#x}"


class Worker:
    """Does random work on a volume and remembers what must be there afterwards."""

    def __init__(self, volume: Volume, seed: int) -> None:
        self.volume = volume
        self.random = random.Random(seed)
        self.tree: dict[str, bytes | None] = {}

    def step(self) -> None:
        """One operation; none of them may fail."""
        actions = [self.create] * 4 + [self.write] * 6 + [self.resize] * 2 + [self.store] * 2
        actions += [self.rename] * 2 + [self.delete] * 3 + [self.make_directory]
        self.random.choice(actions)()

    def new_path(self, parent: str | None = None) -> str:
        """A path that is not taken, in upper, lower and mixed case, short and long."""
        if parent is None:
            folders = [
                path for path, data in self.tree.items() if data is None and path.count("\\") < 3
            ]
            parent = self.random.choice(["", *folders])
        while True:
            number = self.random.randrange(1000)
            name = self.random.choice(
                [
                    f"C-00000291-{number:08}-00000032.sys",
                    f"FILE{number}.TXT",
                    f"file{number}.sys",
                    f"Lower{number}.dll",
                    f"UPPER{number}.low",
                    f"noextension{number}",
                    f"a.b {number}+[x].tar.gz",
                    f".hidden{number}",
                    f"{'long ' * self.random.randrange(1, 39)}{number}",
                    f"{number}",
                ]
            )
            path = f"{parent}\\{name}" if parent else name
            if path.lower() not in {taken.lower() for taken in self.tree}:
                return path

    def files(self) -> list[str]:
        return [path for path, data in self.tree.items() if data is not None]

    def some_file(self) -> tuple[str, bytes]:
        if not self.files():
            self.create()
        path = self.random.choice(self.files())
        data = self.tree[path]
        assert data is not None
        return path, data

    def bytes(self, limit: int) -> bytes:
        return self.random.randbytes(
            self.random.choice([0, 1, 511, 512, 513, self.random.randrange(limit)])
        )

    def create(self) -> None:
        path = self.new_path()
        self.volume.create(path)
        self.tree[path] = b""

    def make_directory(self) -> None:
        path = self.new_path()
        self.volume.create(path, directory=True)
        self.tree[path] = None

    def write(self) -> None:
        path, data = self.some_file()
        offset = self.random.choice([0, len(data), self.random.randrange(len(data) + 3000)])
        piece = self.bytes(60_000)
        self.volume.write(self.volume.open(path), offset, piece)
        if piece:
            grown = data.ljust(offset, b"\0")
            self.tree[path] = grown[:offset] + piece + grown[offset + len(piece) :]

    def resize(self) -> None:
        path, data = self.some_file()
        size = self.random.choice([0, len(data), self.random.randrange(len(data) + 20_000)])
        file = self.volume.open(path)
        self.volume.set_size(file, size)
        assert file.size == size
        if size > len(data):  # what is between is undefined: define it
            self.volume.write(file, len(data), b"\x55" * (size - len(data)))
        self.tree[path] = data[:size].ljust(size, b"\x55")

    def store(self) -> None:
        path = self.random.choice([self.new_path(), self.some_file()[0]])
        data = self.bytes(30_000)
        self.volume.store(path, data)
        self.tree[path] = data

    def rename(self) -> None:
        path = self.random.choice([*self.tree, self.some_file()[0]])
        parent, _, name = path.rpartition("\\")
        new = self.random.choice(
            [self.new_path(parent), path[: len(path) - len(name)] + name.swapcase()]
        )
        self.volume.rename(self.volume.open(path), new.rpartition("\\")[2])
        for old in [old for old in self.tree if old == path or old.startswith(path + "\\")]:
            self.tree[new + old[len(path) :]] = self.tree.pop(old)

    def delete(self) -> None:
        path = self.random.choice([*self.tree, self.some_file()[0]])
        if any(other.startswith(path + "\\") for other in self.tree):
            with nt_error(STATUS_DIRECTORY_NOT_EMPTY):
                self.volume.delete(self.volume.open(path))
        else:
            self.volume.delete(self.volume.open(path))
            del self.tree[path]


@pytest.mark.parametrize("seed", range(6))
def test_random_work_reads_back_by_mtools_and_passes_fsck(
    library: ctypes.CDLL, tmp_path: Path, seed: int
) -> None:
    path = tmp_path / "volume"
    make_volume(path, sectors_per_cluster=(1, 8)[seed % 2], mib=(40, 300)[seed % 2])
    with mounted(library, path) as volume:
        worker = Worker(volume, seed)
        for round_ in range(3):
            for _ in range(150):
                worker.step()
            assert kernel_tree(volume) == worker.tree
            volume.memory.flush()
            assert fsck(path) == []
            assert mtools_tree(path, tmp_path / f"tree{round_}") == worker.tree
            volume.attach()  # what was cached is forgotten


def test_what_mtools_made_can_be_read_renamed_and_deleted(
    library: ctypes.CDLL, tmp_path: Path
) -> None:
    path, source = tmp_path / "volume", tmp_path / "source"
    make_volume(path)
    wanted: dict[str, bytes | None] = {"Some Folder": None}
    (source / "Some Folder").mkdir(parents=True)
    for number in range(60):
        name = rf"Some Folder\{'A long name with spaces ' * (number % 9)}{number}.Text"
        data = random.Random(number).randbytes(number * 37)
        (source / name.replace("\\", "/")).write_bytes(data)
        wanted[name] = data
    command = ["mcopy", "-s", "-i", str(path), str(source / "Some Folder"), "::/"]
    subprocess.run(command, check=True, env=ENVIRONMENT)
    with mounted(library, path) as volume:
        assert kernel_tree(volume) == wanted
        for number, name in enumerate(sorted(name for name in wanted if "\\" in name)):
            if number % 3 == 0:
                volume.delete(volume.open(name.upper()))
                del wanted[name]
            elif number % 3 == 1:
                volume.rename(volume.open(name), f"renamed {number}")
                wanted[rf"Some Folder\renamed {number}"] = wanted.pop(name)
        assert kernel_tree(volume) == wanted
    assert fsck(path) == []
    assert mtools_tree(path, tmp_path / "tree") == wanted


def test_short_names_follow_windows(library: ctypes.CDLL, tmp_path: Path) -> None:
    """Numbered where the name loses something; MEMORY.DMP needs no long name, Config no tail."""
    path = tmp_path / "volume"
    make_volume(path)
    names = [
        "ntoskrnl.exe",
        "Config",
        "MEMORY.DMP",
        "a b.sys",
        "C-00000291-1.sys",
        "C-00000291-2.sys",
        ".git",
        "a.b.c",
    ]
    with mounted(library, path) as volume:
        for name in names:
            volume.create(name)
        for alias in ("NTOSKRNL.EXE", "CONFIG", "AB~1.SYS", "C-0000~1.SYS", "~1.GIT", "A~1.C"):
            volume.open(alias)
        assert volume.names("") == names
    listing = subprocess.run(
        ["mdir", "-i", str(path), "::/"],
        check=True,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    ).stdout
    assert re.search(r"^MEMORY +DMP +0 2024-07-19 +4:09 *$", listing, re.MULTILINE)
    assert re.search(r"^NTOSKRNL EXE .* ntoskrnl\.exe *$", listing, re.MULTILINE)
    assert re.search(r"^C-0000~2 SYS .* C-00000291-2\.sys *$", listing, re.MULTILINE)


def test_errors_are_the_ones_windows_gives(library: ctypes.CDLL, tmp_path: Path) -> None:
    path = tmp_path / "volume"
    make_volume(path)
    with mounted(library, path) as volume:
        volume.create("Windows", directory=True)
        file = volume.create(r"Windows\a.txt")
        failing: dict[int, Callable[[], object]] = {
            STATUS_OBJECT_NAME_NOT_FOUND: lambda: volume.open(r"Windows\b.txt"),
            STATUS_OBJECT_PATH_NOT_FOUND: lambda: volume.open(r"Nowhere\b.txt"),
            STATUS_OBJECT_NAME_COLLISION: lambda: volume.create(r"windows\A.TXT"),
            STATUS_OBJECT_NAME_INVALID: lambda: volume.create(r"Windows\a*b"),
            STATUS_FILE_IS_A_DIRECTORY: lambda: volume.write(volume.open("Windows"), 0, b"x"),
            STATUS_END_OF_FILE: lambda: volume.read(file, 0, 1),
            STATUS_DISK_FULL: lambda: volume.set_size(file, 41 * MIB),
        }
        for status, action in failing.items():
            with nt_error(status):
                action()
        assert file.size == 0
        with nt_error(STATUS_OBJECT_PATH_NOT_FOUND):
            volume.open(r"Windows\a.txt\b")
        other = volume.open(r"Windows\a.txt")
        volume.write(other, 0, b"longer")  # a second handle sees the new size
        assert volume.read(file, 0, 100) == b"longer"
        volume.delete(other)
        with nt_error(STATUS_NO_SUCH_FILE):
            volume.read(file, 0, 1)
    assert fsck(path) == []


def test_a_full_volume_refuses_and_stays_whole(library: ctypes.CDLL, tmp_path: Path) -> None:
    path = tmp_path / "volume"
    make_volume(path)
    with mounted(library, path) as volume:
        file = volume.create("fill")
        volume.set_size(file, volume.free_bytes)
        assert volume.free_bytes == 0
        small = volume.create("small")
        with nt_error(STATUS_DISK_FULL):
            volume.write(small, 0, b"x")
        volume.set_size(file, 100 * SECTOR)
        volume.write(small, 0, b"x")
    assert fsck(path) == []


def test_extents_are_the_file_and_merged(library: ctypes.CDLL, tmp_path: Path) -> None:
    path = tmp_path / "volume"
    make_volume(path, sectors_per_cluster=8, mib=300)
    with mounted(library, path) as volume:
        whole = volume.create("pagefile.sys")
        volume.set_size(whole, 80 * MIB)
        assert len(volume.extents(whole)) == 1
        first, second = volume.create("first"), volume.create("second")
        data = random.Random(1).randbytes(200_001)
        for offset in range(0, len(data), 20_000):  # turn by turn, so that both are in pieces
            volume.write(first, offset, data[offset : offset + 20_000])
            volume.write(second, offset, b"other" * 4_000)
        extents = volume.extents(first)
        assert len(extents) > 5
        assert all(a[0] + a[1] != b[0] for a, b in pairwise(extents))
        assert sum(sectors for _, sectors in extents) == -(-len(data) // SECTOR)
        raw = b"".join(
            volume.memory[start * SECTOR : (start + sectors) * SECTOR]
            for start, sectors in ((lba - PARTITION_LBA, sectors) for lba, sectors in extents)
        )
        assert raw[: len(data)] == data
        with nt_error(STATUS_BUFFER_TOO_SMALL):
            volume.extents(first, maximum=2)


LEFT_BY_A_POWER_CUT = [
    r"Reclaimed \d+ unused clusters? \(\d+ bytes\)\.?",  # lost clusters
    r"/.*",  # the file the next line is about
    r"  File size is \d+ bytes, cluster chain length is > \d+ bytes\.",
    r"  Truncating file to \d+ bytes\.",
    r"  Auto-correcting\.",
    r"Leaving filesystem unchanged\.",
    r"FATs differ but appear to be intact\.",  # cut between the two copies
    r"  Using first FAT\.",
]


def small_work(volume: Volume) -> None:
    """A bit of everything, in a few hundred sector writes."""
    big = volume.create(r"Windows\MEMORY.DMP")
    for offset in range(0, 12_000, 4_000):
        volume.write(big, offset, b"PAGEDU64" * 500)
    volume.store(r"Windows\bootstat.dat", b"2")
    volume.create(r"Windows\A directory with a long name", directory=True)
    for number in range(12):
        volume.store(rf"Windows\A directory with a long name\Content file {number}.sys", b"x" * 700)
    volume.rename(volume.open("pagefile.sys"), "DUMP4f2a.tmp")
    volume.set_size(volume.create("pagefile.sys"), 6_000)
    volume.rename(volume.open(r"Windows\keep.txt"), "A name that takes more slots than before.txt")
    volume.set_size(big, 5_000)
    volume.set_size(big, 9_000)
    volume.delete(volume.open("DUMP4f2a.tmp"))
    for number in (3, 4):  # the fifth would lie in two sectors, were sets not kept in one
        volume.delete(
            volume.open(rf"Windows\A directory with a long name\Content file {number}.sys")
        )
    volume.store(r"Windows\bootstat.dat", b"3")


def prepare_small_work(volume: Volume) -> None:
    volume.create("Windows", directory=True)
    volume.store("untouched", b"must survive" * 100)
    volume.store(r"Windows\keep.txt", b"kept under either name")
    volume.store(r"Windows\bootstat.dat", b"1")
    volume.store("pagefile.sys", b"dump" * 1_000)


@pytest.mark.parametrize(("sectors_per_cluster", "mib"), [(1, 40), (8, 300)])
def test_a_power_cut_leaves_at_worst_lost_clusters(
    library: ctypes.CDLL, tmp_path: Path, sectors_per_cluster: int, mib: int
) -> None:
    base, path = tmp_path / "base", tmp_path / "volume"
    make_volume(base, sectors_per_cluster=sectors_per_cluster, mib=mib)
    with mounted(library, base) as volume:
        prepare_small_work(volume)
    assert fsck(base) == []
    subprocess.run(["cp", "--sparse=always", str(base), str(path)], check=True)
    with mounted(library, path) as volume:
        small_work(volume)
        total = volume.written
    assert fsck(path) == []
    seen: set[str] = set()
    reported = 0
    for kept in range(total):
        subprocess.run(["cp", "--sparse=always", str(base), str(path)], check=True)
        with mounted(library, path) as volume:
            volume.cut_power(kept)
            try:
                small_work(volume)
            except NtError as error:
                reported += error.status == STATUS_IO_DEVICE_ERROR
            volume.attach()
            assert volume.load("untouched") == b"must survive" * 100
            assert volume.load(r"Windows\bootstat.dat") in (b"1", b"2", b"3")
            names = volume.names("Windows")
            assert ("keep.txt" in names) != (
                "A name that takes more slots than before.txt" in names
            )
            assert sum(name in ("pagefile.sys", "DUMP4f2a.tmp") for name in volume.names("")) >= 1
        for line in fsck(path):
            assert any(re.fullmatch(allowed, line) for allowed in LEFT_BY_A_POWER_CUT), (kept, line)
            seen.add(re.sub(r"\d+", "N", line))
    assert any("Reclaimed" in line for line in seen)
    assert reported == total


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        (r"\SystemRoot\System32\drivers\sensor.sys", r"Windows\System32\drivers\sensor.sys"),
        (r"%SystemRoot%\MEMORY.DMP", r"Windows\MEMORY.DMP"),
        (r"\??\C:\pagefile.sys", "pagefile.sys"),
        (r"c:\windows\x", r"windows\x"),
        ("C:\\", ""),
        (r"system32\DRIVERS\x.sys", r"Windows\System32\DRIVERS\x.sys"),
        (r"\Device\Null", None),
        (r"D:\x", None),
        (r"System32x\y", None),
    ],
)
def test_paths_of_windows_become_paths_of_the_volume(
    library: ctypes.CDLL, path: str, wanted: str | None
) -> None:
    buffer = ctypes.create_string_buffer(64)
    status = library.IopVolumePath(path.encode(), buffer, 64) & 0xFFFFFFFF
    assert (buffer.value.decode() if status == STATUS_SUCCESS else None) == wanted
