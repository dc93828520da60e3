"""Files read from disks of both file systems, and disks that are none."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from images.test_kernel.build import build_image
from lab.disks.blocks import (
    BitLockerError,
    CompactFileError,
    DirtyLogError,
    DiskError,
    EncryptedFileError,
    HibernatedError,
    NoPartitionError,
    UnknownFilesystemError,
)
from lab.disks.files import DiskFiles, open_files
from lab.disks.overlay import open_overlay
from tests.support.disk import DiskFiles as MtoolsFiles
from tests.unit.disks.making import (
    MIB,
    VOLUME_OFFSET,
    MemoryBlocks,
    gpt_disk,
    mbr_disk,
    new_overlay,
    ntfs_attribute,
    ntfs_volume,
    record_of,
    run,
    write_log,
    write_qcow2,
)

LONG_NAME = "Ünïcode ファイル, a name that is long.txt"
NTFS_FILES = f"""
os.makedirs("Windows/System32/drivers")
open("Windows/tiny.txt", "wb").write(b"tiny")
open("Windows/{LONG_NAME}", "wb").write(b"u" * 3000)
os.utime("Windows/tiny.txt", (1721362140.5, 1721362140.5))
os.mkdir("packed")
os.setxattr("packed", "system.ntfs_attrib", (0x800).to_bytes(4, "little"))
open("packed/words.txt", "wb").write(b"hello world " * 50000)
with open("sparse.bin", "wb") as file:
    file.write(b"a" * 5000); file.seek(9 << 20); file.write(b"end")
open("compact.exe", "wb").write(bytes(9000))
os.setxattr("compact.exe", "user.WofCompressedData", b"abc")
with open("one", "wb", buffering=0) as one, open("two", "wb", buffering=0) as two:
    for number in range(200):
        one.write(bytes([number]) * 5000); two.write(bytes([number]) * 4500)
        os.fsync(one); os.fsync(two)
open("partly.bin", "wb").write(b"v" * 40000)
open("secret.txt", "wb").write(b"s" * 5000)
"""


@pytest.fixture(scope="module")
def ntfs(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An NTFS volume with NTFS_FILES."""
    folder = tmp_path_factory.mktemp("ntfs")
    return ntfs_volume(folder / "volume", megabytes=24, script=NTFS_FILES).read_bytes()


@pytest.fixture(scope="module")
def ntfs_files(ntfs: bytes) -> Iterator[DiskFiles]:
    with open_files(MemoryBlocks(mbr_disk(ntfs))) as files:
        yield files


@pytest.fixture(scope="module")
def small_ntfs(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    r"""An NTFS volume with \Windows\a.txt and a hiberfil.sys of zeros."""
    script = """
os.mkdir("Windows")
open("Windows/a.txt", "wb").write(b"content")
open("hiberfil.sys", "wb").write(bytes(8192))
"""
    folder = tmp_path_factory.mktemp("small")
    return ntfs_volume(folder / "volume", megabytes=8, script=script).read_bytes()


@pytest.fixture(scope="module")
def fat32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FAT32 system disk with a pagefile in 50 pieces and a file of 100 MiB."""
    folder = tmp_path_factory.mktemp("fat32")
    big = folder / "big"
    big.write_bytes(os.urandom(100 * MIB))
    return build_image(
        folder / "base.qcow2",
        files={
            rf"C:\Windows\{LONG_NAME}": b"hello",
            r"C:\Windows\System32\drivers\Sensor\C-00000291-1.sys": b"x" * 40000,
            r"C:\Windows\MEMORY.DMP": big,
        },
        pagefile_extents=50,
        pagefile_bytes=8 * MIB,
    )


def test_fat32_folder_and_files(fat32: Path) -> None:
    with open_files(open_overlay(fat32)) as files:
        assert files.filesystem == "fat32"
        assert files.warnings == []
        names = {file.path for file in files.list("c:\\")}
        assert names == {"C:\\pagefile.sys", "C:\\Windows"}  # no label, no deleted file
        info = files.stat(r"c:\WINDOWS\system32\DRIVERS\sensor\c-00000291-1.SYS")
        assert info.path == r"C:\Windows\System32\drivers\Sensor\C-00000291-1.sys"
        assert (info.size, info.allocated_bytes) == (40000, 40960)
        assert info.modified == datetime(2024, 7, 19, 4, 9, tzinfo=UTC)
        assert files.read(rf"C:\Windows\{LONG_NAME.upper()}") == b"hello"
        sensor = r"C:\Windows\System32\drivers\Sensor"
        assert [f.size for f in files.list(sensor, "c-00000291-*.SYS")] == [40000]
        assert files.list(sensor, "c-00000292-*.sys") == []
        assert not files.exists(r"C:\Windows\nothing")
        with pytest.raises(FileNotFoundError, match="nothing"):
            files.read(r"C:\Windows\nothing\at all")


def test_short_names_find_files_too(fat32: Path) -> None:
    with open_files(open_overlay(fat32)) as files:
        path = r"C:\Windows\System32\drivers\Sensor\C-0000~1.SYS"
        assert files.stat(path).path.endswith("C-00000291-1.sys")


def test_a_big_file_comes_whole(fat32: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    with open_files(open_overlay(fat32)) as files:
        with pytest.raises(DiskError, match="give a length"):
            files.read(r"C:\Windows\MEMORY.DMP")
        target = tmp_path / "copy"
        assert files.copy(r"C:\Windows\MEMORY.DMP", target, progress=seen.append) == 100 * MIB
        part = files.read(r"C:\Windows\MEMORY.DMP", 5 * MIB + 7, 9 * MIB)
    assert seen[-1] == 100 * MIB
    assert seen == sorted(seen)
    original = (fat32.parent / "big").read_bytes()
    assert hashlib.sha256(target.read_bytes()).digest() == hashlib.sha256(original).digest()
    assert part == original[5 * MIB + 7 : 14 * MIB + 7]


def test_a_chain_of_three_layers_and_a_fragmented_file(fat32: Path, tmp_path: Path) -> None:
    with MtoolsFiles(fat32, tmp_path) as judge:
        pieces = judge.extents(r"C:\pagefile.sys")
    assert len(pieces) == 50
    layers = [new_overlay(tmp_path / "one.qcow2", fat32)]
    layers.append(new_overlay(tmp_path / "two.qcow2", layers[0]))
    layers.append(new_overlay(tmp_path / "three.qcow2", layers[1]))
    expected = b""
    for number, (offset, size) in enumerate(pieces, 1):
        if number % 4:  # every fourth piece stays as the base has it
            write = f"write -q -P {number} {offset} {size}"
            run("qemu-io", "-f", "qcow2", "-c", write, str(layers[number % 4 - 1]))
        expected += bytes([number if number % 4 else 0]) * size
    with open_files(open_overlay(layers[2])) as files:
        assert files.read(r"C:\pagefile.sys") == expected
    with open_files(open_overlay(fat32)) as files:
        assert files.read(r"C:\pagefile.sys") == bytes(8 * MIB)


def test_ntfs_folder_and_files(ntfs_files: DiskFiles) -> None:
    assert ntfs_files.filesystem == "ntfs"
    assert ntfs_files.warnings == []
    assert ntfs_files.edit_refusal is None
    names = {file.path for file in ntfs_files.list("C:\\", "*.*")}
    assert names == {r"C:\sparse.bin", r"C:\compact.exe", r"C:\partly.bin", r"C:\secret.txt"}
    assert ntfs_files.stat("C:\\").is_folder
    info = ntfs_files.stat(r"c:\windows\TINY.TXT")
    assert (info.path, info.size, info.allocated_bytes) == (r"C:\Windows\tiny.txt", 4, 0)
    assert info.modified == datetime(2024, 7, 19, 4, 9, 0, 500000, tzinfo=UTC)
    assert ntfs_files.read(rf"C:\Windows\{LONG_NAME.upper()}") == b"u" * 3000


def test_ntfs_compressed_sparse_and_fragmented_files(ntfs_files: DiskFiles) -> None:
    assert ntfs_files.read(r"C:\packed\words.txt") == b"hello world " * 50000
    assert ntfs_files.stat(r"C:\packed\words.txt").allocated_bytes < 60_000
    assert ntfs_files.read(r"C:\sparse.bin") == (b"a" * 5000).ljust(9 * MIB, b"\0") + b"end"
    assert ntfs_files.stat(r"C:\sparse.bin").allocated_bytes < 20_000
    assert ntfs_files.read(r"C:\one") == b"".join(bytes([n]) * 5000 for n in range(200))
    assert ntfs_files.read(r"C:\two") == b"".join(bytes([n]) * 4500 for n in range(200))


def test_what_would_read_wrong_is_refused(ntfs: bytes, ntfs_files: DiskFiles) -> None:
    with pytest.raises(CompactFileError, match=r"C:\\compact\.exe"):
        ntfs_files.read(r"C:\compact.exe")
    with pytest.raises(DiskError, match="folder"):
        ntfs_files.read(r"C:\Windows")
    with pytest.raises(DiskError, match="not a folder"):
        ntfs_files.list(r"C:\Windows\tiny.txt")
    volume = bytearray(ntfs)
    data = ntfs_attribute(volume, record_of(ntfs, "secret.txt"), 0x80)
    volume[data + 12 : data + 14] = (0x4000).to_bytes(2, "little")  # attribute flag: encrypted
    with (
        open_files(MemoryBlocks(mbr_disk(volume))) as files,
        pytest.raises(EncryptedFileError, match="secret"),
    ):
        files.read(r"C:\secret.txt")


def test_beyond_the_valid_data_length_are_zeros_unless_asked(ntfs: bytes) -> None:
    volume = bytearray(ntfs)
    data = ntfs_attribute(volume, record_of(ntfs, "partly.bin"), 0x80)
    assert int.from_bytes(volume[data + 56 : data + 64], "little") == 40000
    volume[data + 56 : data + 64] = (10000).to_bytes(8, "little")  # initialized size
    with open_files(MemoryBlocks(mbr_disk(volume))) as files:
        assert files.read(r"C:\partly.bin") == (b"v" * 10000).ljust(40000, b"\0")
        assert files.read(r"C:\partly.bin", past_valid_data=True) == b"v" * 40000


@pytest.mark.parametrize("path", ["Windows", r"D:\a", r"C:a", r"C:\a\..\b", r"\\host\share\a"])
def test_paths_that_are_not_on_the_disk(ntfs_files: DiskFiles, path: str) -> None:
    with pytest.raises(ValueError, match="expected an absolute path"):
        ntfs_files.exists(path)


def test_gpt_and_the_volume_that_holds_windows(small_ntfs: bytes, tmp_path: Path) -> None:
    recovery = ntfs_volume(tmp_path / "recovery", megabytes=8).read_bytes()
    with open_files(MemoryBlocks(gpt_disk([recovery, small_ntfs]))) as files:
        assert files.read(r"C:\Windows\a.txt") == b"content"
        assert files.volume_offset == VOLUME_OFFSET + len(recovery)
        assert files.volume_length == len(small_ntfs)
    with open_files(MemoryBlocks(gpt_disk([recovery]))) as files:
        assert files.list("C:\\") == []


def _dirty_flag(volume: bytearray) -> None:
    attribute = ntfs_attribute(volume, 3, 0x70)
    content = attribute + int.from_bytes(volume[attribute + 20 : attribute + 22], "little")
    volume[content + 10] |= 1


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        (_dirty_flag, DirtyLogError),
        (lambda volume: write_log(volume, (7, 0, 0)), DirtyLogError),
        (lambda volume: write_log(volume, (7, 0, 2)), None),
        (lambda volume: write_log(volume, (7, 0xFFFF, 0)), None),
        (lambda volume: write_log(volume, (7, 0, 0), (8, 0xFFFF, 0)), None),
        (lambda volume: write_log(volume, (9, 0, 0), (8, 0xFFFF, 0)), DirtyLogError),
    ],
)
def test_unclean_ntfs_is_read_with_a_warning(
    small_ntfs: bytes, change: Callable[[bytearray], None], refusal: type[DiskError] | None
) -> None:
    volume = bytearray(small_ntfs)
    change(volume)
    with open_files(MemoryBlocks(mbr_disk(volume))) as files:
        assert files.read(r"C:\Windows\a.txt") == b"content"
        if refusal is None:
            assert (files.warnings, files.edit_refusal) == ([], None)
        else:
            assert type(files.edit_refusal) is refusal
            assert files.warnings == [str(files.edit_refusal)]


def test_hibernated_windows_is_read_with_a_warning(tmp_path: Path) -> None:
    script = 'os.mkdir("Windows"); open("hiberfil.sys", "wb").write(b"HIBR".ljust(8192, b"x"))'
    volume = ntfs_volume(tmp_path / "volume", megabytes=8, script=script).read_bytes()
    with open_files(MemoryBlocks(mbr_disk(volume))) as files:
        assert isinstance(files.edit_refusal, HibernatedError)
        assert "hibernated" in files.warnings[0]


def test_bitlocker_is_refused_even_beside_a_readable_volume(small_ntfs: bytes) -> None:
    locked = bytearray(small_ntfs)
    locked[3:11] = b"-FVE-FS-"
    with pytest.raises(BitLockerError, match="BitLocker"):
        open_files(MemoryBlocks(mbr_disk(locked)))
    plain = bytearray(small_ntfs)  # without \Windows it is not the system volume
    plain = bytearray(
        bytes(plain).replace("Windows".encode("utf-16-le"), "Wimdows".encode("utf-16-le"))
    )
    with pytest.raises(BitLockerError):
        open_files(MemoryBlocks(gpt_disk([bytes(plain), bytes(locked)])))


@pytest.mark.parametrize(
    ("disk", "refusal"),
    [
        (b"", NoPartitionError),
        (bytes(4 * MIB), NoPartitionError),
        (hashlib.shake_128(b"noise").digest(4 * MIB), NoPartitionError),
        (bytes(mbr_disk(bytes(4 * MIB))), UnknownFilesystemError),
        (bytes(mbr_disk(hashlib.shake_128(b"more").digest(4 * MIB))), UnknownFilesystemError),
        (bytes(mbr_disk(b"\xeb\x52\x90NTFS    ".ljust(4 * MIB, b"\xff"))), DiskError),
    ],
    ids=["empty", "zeros", "noise", "zero volume", "noise volume", "boot sector only"],
)
def test_disks_without_files(disk: bytes, refusal: type[DiskError]) -> None:
    source = MemoryBlocks(disk)
    with pytest.raises(refusal) as caught:
        open_files(source)
    assert type(caught.value) is refusal
    assert source.is_closed


@pytest.mark.parametrize("is_cut", [True, False], ids=["cut", "bad blocks"])
def test_a_disk_without_its_end(ntfs: bytes, ntfs_files: DiskFiles, is_cut: bool) -> None:
    disk = mbr_disk(ntfs)
    paths = [file.path for file in ntfs_files.list("C:\\") if not file.is_folder]
    paths.remove(r"C:\compact.exe")
    right = 0
    errors = []
    for eighth in range(2, 9):
        end = VOLUME_OFFSET + len(ntfs) * eighth // 8
        source = MemoryBlocks(disk[:end]) if is_cut else MemoryBlocks(disk, broken_from=end)
        try:
            with open_files(source) as files:
                for path in paths:
                    try:
                        assert files.read(path) == ntfs_files.read(path)
                        right += 1
                    except DiskError as error:
                        errors.append(str(error))
        except DiskError as error:
            errors.append(str(error))
    assert right > 5
    assert len(errors) > 5
    assert is_cut or all("bad block" in error for error in errors)


def test_damaged_image_files(fat32: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.qcow2"
    whole = fat32.read_bytes()
    for content in (b"", b"QFI\xfb" + bytes(200), os.urandom(4096)):
        broken.write_bytes(content)
        with pytest.raises(DiskError, match="cannot be opened as qcow2"):
            open_overlay(broken)
    broken.write_bytes(whole[:65536])  # its tables are gone: QEMU reads zeros beyond the end
    with pytest.raises(NoPartitionError):
        open_files(open_overlay(broken))
    with pytest.raises(DiskError, match="No such file"):
        open_overlay(tmp_path / "absent.qcow2")


def test_a_raw_disk_is_never_taken_for_qcow2(fat32: Path) -> None:
    with open_overlay(fat32, image_format="raw") as source:
        assert source.read(0, 4) == b"QFI\xfb"
        with pytest.raises(NoPartitionError):
            open_files(source)


def test_extents_say_what_is_allocated(tmp_path: Path) -> None:
    disk = bytearray(8 * MIB)
    disk[2 * MIB : 3 * MIB] = os.urandom(MIB)
    base = write_qcow2(tmp_path / "disk.qcow2", disk)
    with open_overlay(new_overlay(tmp_path / "layer, two.qcow2", base)) as source:
        assert source.size == 8 * MIB
        found = [(e.offset, e.length, e.allocated) for e in source.extents(MIB, 100 * MIB)]
        assert found == [(MIB, MIB, False), (2 * MIB, MIB, True), (3 * MIB, 5 * MIB, False)]
        assert source.read(2 * MIB - 3, 4 * MIB) == disk[2 * MIB - 3 : 6 * MIB - 3]
        assert source.read(8 * MIB - 2, 100) == b"\0\0"
        assert source.read(9 * MIB, 1) == b""


def test_a_full_host_is_said_as_it_is(ntfs_files: DiskFiles) -> None:
    with (
        pytest.raises(OSError, match="No space") as caught,
        open("/dev/full", "wb", buffering=0) as full,
    ):
        ntfs_files.copy(r"C:\one", full)
    assert caught.value.errno == errno.ENOSPC
    assert ntfs_files.read(r"C:\Windows\tiny.txt") == b"tiny"  # and the disk is still there
