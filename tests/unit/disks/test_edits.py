"""Edits of an overlay: what they do, what they refuse, and that nothing before is changed."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from images.test_kernel.build import build_image
from lab.disks.blocks import (
    BaseImageError,
    BitLockerError,
    DirtyLogError,
    DiskError,
    DiskInUseError,
    HibernatedError,
)
from lab.disks.edit import Delete, Edit, EditDone, Replace, edit
from lab.disks.files import open_files
from lab.disks.overlay import open_overlay
from tests.support.waiting import wait_for
from tests.unit.disks.making import (
    MIB,
    VOLUME_OFFSET,
    mbr_disk,
    new_overlay,
    ntfs_volume,
    run,
    write_log,
    write_qcow2,
)

SENSOR = r"C:\Windows\System32\drivers\Sensor"
BAD = rf"{SENSOR}\C-00000291-00000002.sys"
GOOD = rf"{SENSOR}\C-00000290-00000001.sys"
FILES = {
    rf"{SENSOR}\C-00000291-00000001.sys": b"one" * 9000,
    BAD: b"two" * 9000,
    GOOD: b"good" * 5000,
    r"C:\Windows\Prüfung ファイル.txt": b"name",
}
TOOL_SECONDS = 60.0


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base disk of each file system, with FILES."""
    folder = tmp_path_factory.mktemp("bases")
    script = f"""
for name, content in {FILES!r}.items():
    path = name[3:].replace(chr(92), "/")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    open(path, "wb").write(content)
os.symlink("/etc", "Windows/elsewhere")
"""
    volume = ntfs_volume(folder / "volume", megabytes=8, script=script)
    return {
        "fat32": build_image(
            folder / "fat32.qcow2",
            files=FILES,
            disk_bytes=300 * MIB,
            pagefile_bytes=280 * MIB,  # leaves little room
        ),
        "ntfs": write_qcow2(folder / "ntfs.qcow2", mbr_disk(volume.read_bytes())),
    }


@pytest.fixture(params=["fat32", "ntfs"])
def overlay(request: pytest.FixtureRequest, bases: dict[str, Path], tmp_path: Path) -> Path:
    """An overlay on such a base, in a folder of its own."""
    (tmp_path / "machine").mkdir()
    return new_overlay(tmp_path / "machine/disk.qcow2", bases[request.param])


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _names(disk: Path) -> set[str]:
    with open_files(open_overlay(disk)) as files:
        return {file.path for file in files.list(SENSOR)}


def test_delete_and_replace(overlay: Path, tmp_path: Path) -> None:
    mode = overlay.stat().st_mode
    backing = _backing_file(overlay)
    base_before = _sha256(backing.read_bytes())
    new_content = os.urandom(300_000)
    edits: list[Edit] = [
        Delete(r"c:\windows\SYSTEM32\drivers\sensor\c-00000291-*.sys"),
        Replace(GOOD.upper(), new_content),
        Replace(rf"{SENSOR}\New Ünit.sys", b"fresh"),
        Delete(r"C:\Windows\Prüfung ファイル.txt"),
        Delete(r"C:\Windows\nothing*.txt"),
        Delete(r"C:\No such folder\a.txt"),
    ]
    done = edit(overlay, edits)
    assert sorted(done, key=lambda one: one.path) == sorted(
        [
            EditDone(rf"{SENSOR}\C-00000291-00000001.sys", "deleted", _sha256(b"one" * 9000), None),
            EditDone(BAD, "deleted", _sha256(b"two" * 9000), None),
            EditDone(GOOD, "replaced", _sha256(b"good" * 5000), _sha256(new_content)),
            EditDone(rf"{SENSOR}\New Ünit.sys", "created", None, _sha256(b"fresh")),
            EditDone(r"C:\Windows\Prüfung ファイル.txt", "deleted", _sha256(b"name"), None),
            EditDone(r"C:\Windows\nothing*.txt", "absent", None, None),
            EditDone(r"C:\No such folder\a.txt", "absent", None, None),
        ],
        key=lambda one: one.path,
    )
    with open_files(open_overlay(overlay)) as files:
        assert {file.path for file in files.list(SENSOR)} == {GOOD, rf"{SENSOR}\New Ünit.sys"}
        assert files.read(GOOD) == new_content
    before = overlay.with_name("disk.qcow2.before-edit-1")
    assert sorted(overlay.parent.iterdir()) == [overlay, before]
    assert BAD in _names(before)
    assert _sha256(backing.read_bytes()) == base_before
    assert overlay.stat().st_mode == mode
    run("qemu-img", "check", "-q", str(overlay))
    _check_volume(overlay, tmp_path)


def _backing_file(disk: Path) -> Path:
    line = next(
        line
        for line in run("qemu-img", "info", str(disk)).splitlines()
        if line.startswith("backing file:")
    )
    return Path(line.split()[2])


def _check_volume(disk: Path, scratch: Path) -> None:
    """Other people's checkers find nothing wrong with the volume."""
    raw = scratch / "check.raw"
    run("qemu-img", "convert", "-O", "raw", str(disk), str(raw))
    data = raw.read_bytes()[VOLUME_OFFSET:]
    if data[82:87] == b"FAT32":
        raw.write_bytes(data)
        run("fsck.fat", "-n", str(raw))
    else:
        raw.write_bytes(data[:-MIB])  # the second boot sector is at the end of the partition
        assert "processed successfully" in run("ntfsfix", "--no-action", str(raw))


def test_edits_of_edits(overlay: Path) -> None:
    """Each goes on top of the last; of several edits of one file the last counts."""
    edit(overlay, [Delete(BAD)])
    done = edit(overlay, [Delete(rf"{SENSOR}\*"), Replace(GOOD, b"second")])
    assert [(one.path, one.action) for one in done if one.path == GOOD] == [(GOOD, "replaced")]
    assert _names(overlay) == {GOOD}
    assert _names(overlay.with_name("disk.qcow2.before-edit-2")) > {GOOD}
    assert edit(overlay, [Delete(BAD)]) == [EditDone(BAD, "absent", None, None)]
    assert not overlay.with_name("disk.qcow2.before-edit-3").exists()  # nothing to do, no layer


def test_bases_and_other_files_are_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    for base in bases.values():
        before = _sha256(base.read_bytes())
        with pytest.raises(BaseImageError, match="base"):
            edit(base, [Delete(BAD)])
        assert _sha256(base.read_bytes()) == before
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(4096))
    with pytest.raises(DiskError, match="no qcow2"):
        edit(raw, [Delete(BAD)])


def test_folders_and_folders_that_are_not_there(overlay: Path) -> None:
    with pytest.raises(DiskError, match="folder"):
        edit(overlay, [Delete(SENSOR)])
    with pytest.raises(FileNotFoundError, match="No such folder"):
        edit(overlay, [Delete(BAD), Replace(r"C:\No such folder\a.txt", b"a")])
    assert BAD in _names(overlay)  # all or nothing


def test_a_disk_in_use_is_refused(overlay: Path) -> None:
    machine = subprocess.Popen(
        ["qemu-storage-daemon", "--chardev", "stdio,id=monitor", "--monitor", "monitor",
         "--blockdev", f"driver=qcow2,node-name=disk,file.driver=file,file.filename={overlay}",
         "--nbd-server", f"addr.type=unix,addr.path={overlay}.socket",
         "--export", "type=nbd,id=disk,node-name=disk,writable=on"],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        socket = Path(f"{overlay}.socket")
        wait_for("the disk to be open", socket.exists, TOOL_SECONDS)
        with pytest.raises(DiskInUseError, match="in use"):
            edit(overlay, [Delete(BAD)])
        with pytest.raises(DiskInUseError):
            open_overlay(overlay)
        with open_files(open_overlay(overlay, in_use=True)) as files:
            assert files.exists(BAD)
    finally:
        machine.kill()
        machine.communicate()
    edit(overlay, [Delete(BAD)])
    assert BAD not in _names(overlay)


def test_no_machine_can_open_a_disk_that_is_being_read(overlay: Path) -> None:
    write = ["qemu-io", "-f", "qcow2", "-c", "write -q 0 512", str(overlay)]
    with open_overlay(overlay):
        refused = subprocess.run(write, capture_output=True, text=True)
        assert "lock" in refused.stderr
    run(*write)


def _hibernated(folder: Path) -> bytes:
    script = 'os.mkdir("Windows"); open("hiberfil.sys", "wb").write(b"hibr" * 2000)'
    return ntfs_volume(folder / "volume", megabytes=8, script=script).read_bytes()


def _dirty(folder: Path) -> bytes:
    volume = bytearray(ntfs_volume(folder / "volume", megabytes=8).read_bytes())
    write_log(volume, (7, 0, 0))
    return bytes(volume)


def _locked(folder: Path) -> bytes:
    volume = bytearray(ntfs_volume(folder / "volume", megabytes=8).read_bytes())
    volume[3:11] = b"-FVE-FS-"
    return bytes(volume)


@pytest.mark.parametrize(
    ("make", "refusal"),
    [(_hibernated, HibernatedError), (_dirty, DirtyLogError), (_locked, BitLockerError)],
)
def test_ntfs_that_windows_did_not_let_go(
    make: Callable[[Path], bytes], refusal: type[DiskError], tmp_path: Path
) -> None:
    base = write_qcow2(tmp_path / "base.qcow2", mbr_disk(make(tmp_path)))
    overlay = new_overlay(tmp_path / "disk.qcow2", base)
    with pytest.raises(refusal):
        edit(overlay, [Replace(r"C:\a.txt", b"a")])
    assert not list(tmp_path.glob("disk.qcow2.*"))


def test_links_on_the_disk_lead_nowhere(bases: dict[str, Path], tmp_path: Path) -> None:
    overlay = new_overlay(tmp_path / "disk.qcow2", bases["ntfs"])
    with pytest.raises((DiskError, FileNotFoundError)):
        edit(overlay, [Replace(r"C:\Windows\elsewhere\lab-test-link", b"a")])
    assert not Path("/etc/lab-test-link").exists()


def test_a_volume_without_room(overlay: Path) -> None:
    before = _sha256(overlay.read_bytes())
    with pytest.raises(DiskError, match=r"(?i)full|space"):
        edit(overlay, [Delete(BAD), Replace(GOOD, bytes(20 * MIB))])
    assert _sha256(overlay.read_bytes()) == before
    assert list(overlay.parent.iterdir()) == [overlay]


def test_tools_that_take_too_long(overlay: Path) -> None:
    with pytest.raises(DiskError, match="not done in 0 s"):
        edit(overlay, [Delete(BAD)], deadline=0)
    assert list(overlay.parent.iterdir()) == [overlay]
    assert BAD in _names(overlay)
