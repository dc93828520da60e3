"""What is started for a disk ends with it, and with the one who started it, however that ends."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from images.test_kernel.build import build_image
from lab.disks.blocks import DiskError
from lab.disks.edit import Delete, Replace, edit
from lab.disks.files import open_files
from lab.disks.overlay import open_overlay
from tests.support.waiting import wait_for
from tests.unit.disks.making import MemoryBlocks, mbr_disk, new_overlay, ntfs_volume, write_qcow2

PROCESS = [sys.executable, "-m", "tests.unit.disks.reading_process"]
END_SECONDS = 20.0
SCRIPT = """
os.mkdir("Windows")
open("big.bin", "wb").write(b"old" * 2_000_000)
for number in range(5): open(f"delete {number}.txt", "wb").write(b"x" * 5000)
"""
FUSE_DEVICE = Path("/dev/fuse")
NOBODY = 65534


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("disk")
    volume = ntfs_volume(folder / "volume", megabytes=24, script=SCRIPT)
    return bytes(mbr_disk(volume.read_bytes()))


@pytest.fixture
def overlay(disk: bytes, tmp_path: Path) -> Path:
    base = write_qcow2(tmp_path / "base.qcow2", disk)
    (tmp_path / "machine").mkdir()
    return new_overlay(tmp_path / "machine/disk.qcow2", base)


def _processes_of(parent: int) -> set[int]:
    """Process ids of all descendants; field 4 of /proc/PID/stat (proc(5)) is the parent."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "stat").read_text()
            except OSError:
                continue  # it ended meanwhile
            parents[int(entry.name)] = int(text.rpartition(")")[2].split()[1])
    found = {parent}
    while more := {child for child, of in parents.items() if of in found} - found:
        found |= more
    return found - {parent}


def _is_alive(process: int) -> bool:
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


def _wait_for_end(processes: set[int]) -> None:
    wait_for("the processes to end", lambda: not any(map(_is_alive, processes)), END_SECONDS)


def test_close_ends_everything(overlay: Path) -> None:
    before = _processes_of(os.getpid())
    with open_files(open_overlay(overlay)) as files:
        assert files.exists(r"C:\big.bin")
        started = _processes_of(os.getpid()) - before
        assert len(started) >= 3  # a shell, qemu-nbd, the reader
    assert not any(map(_is_alive, started))
    with pytest.raises(DiskError):
        files.exists(r"C:\big.bin")


def test_a_disk_outlives_the_thread_that_opened_it(overlay: Path) -> None:
    opened = []
    thread = threading.Thread(target=lambda: opened.append(open_files(open_overlay(overlay))))
    thread.start()
    thread.join()
    with opened[0] as files:
        assert files.exists(r"C:\big.bin")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_everything_ends_with_the_one_who_opened_it(overlay: Path, how: signal.Signals) -> None:
    owner = subprocess.Popen([*PROCESS, "open", str(overlay)], stdout=subprocess.PIPE)
    with owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"open\n"
        started = _processes_of(owner.pid)
        assert len(started) >= 3
        owner.send_signal(how)
    _wait_for_end(started)


def test_the_one_who_opens_it_dies_on_the_way(overlay: Path) -> None:
    for _ in range(6):
        owner = subprocess.Popen([*PROCESS, "open", str(overlay)], stdout=subprocess.DEVNULL)
        started = wait_for("a child", partial(_processes_of, owner.pid), END_SECONDS, 0.002)
        owner.kill()
        owner.wait()
        _wait_for_end(started)


def test_a_reader_that_is_killed(disk: bytes) -> None:
    class Killing(MemoryBlocks):
        victim = 0

        def read(self, offset: int, length: int) -> bytes:
            if self.victim:
                os.kill(self.victim, signal.SIGKILL)
            return super().read(offset, length)

    source = Killing(disk)
    with open_files(source) as files:
        source.victim = files.reader_process
        with pytest.raises(DiskError, match="was killed"):
            files.read(r"C:\big.bin")
        with pytest.raises(DiskError, match="ended before"):
            files.read(r"C:\big.bin")
    with open_files(MemoryBlocks(disk)) as files:
        assert files.read(r"C:\big.bin") == b"old" * 2_000_000


def test_a_reader_that_hangs(disk: bytes) -> None:
    with open_files(MemoryBlocks(disk), deadline=0.5) as files:
        os.kill(files.reader_process, signal.SIGSTOP)
        with pytest.raises(DiskError, match=r"longer than 0\.5 s"):
            files.read(r"C:\big.bin")


def test_a_block_server_that_is_killed(overlay: Path) -> None:
    with open_files(open_overlay(overlay)) as files:
        (server,) = (
            process
            for process in _processes_of(os.getpid())
            if Path(f"/proc/{process}/comm").read_text() == "qemu-nbd\n"
        )
        os.kill(server, signal.SIGKILL)
        with pytest.raises(DiskError, match="block server"):
            files.read(r"C:\big.bin")


def test_an_edit_cut_off_at_any_moment_leaves_the_disk_whole(overlay: Path) -> None:
    chance = random.Random(291)
    cut = 0
    for attempt in range(8):
        editor = subprocess.Popen([*PROCESS, "edit", str(overlay)], stdout=subprocess.PIPE)
        assert editor.stdout is not None
        assert editor.stdout.readline() == b"editing\n"
        started: set[int] = set()
        end = chance.uniform(0, 0.7) if attempt else 30.0

        def has_ended(editor: subprocess.Popen[bytes] = editor, all_of: set[int] = started) -> bool:
            all_of.update(_processes_of(editor.pid))
            return editor.poll() is not None

        try:
            wait_for("the edit", has_ended, end, 0.01)
        except AssertionError:
            editor.kill()
            cut += 1
        editor.communicate()
        _wait_for_end(started)
        with open_files(open_overlay(overlay)) as files:
            texts = files.list("C:\\", "delete*.txt")
            is_edited = files.read(r"C:\big.bin") == b"new" * 2_000_000
            assert is_edited or files.read(r"C:\big.bin") == b"old" * 2_000_000
            assert len(texts) == (0 if is_edited else 5)
        if is_edited:  # back to the start
            first = overlay.with_name("disk.qcow2.before-edit-1")
            for file in overlay.parent.iterdir():
                if file.is_file() and file != first:
                    file.unlink()
            first.rename(overlay)
    assert cut >= 3
    assert edit(overlay, [Delete(r"C:\delete 1.txt")])[0].action == "deleted"
    assert not list(overlay.parent.glob("*.edited"))


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that other users may enter, as pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="disks-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def ordinary_user(public_folder: Path) -> list[str]:
    """The start of a command: Python, run by an ordinary user.

    Where /dev/fuse is root's alone (a machine without udev), it is shown as udev would make it, to
    that command only.
    """
    if os.geteuid():
        return [sys.executable]
    device = public_folder / "fuse"
    os.mknod(device, 0o666 | stat.S_IFCHR, FUSE_DEVICE.stat().st_rdev)
    device.chmod(0o666)
    return [
        "unshare", "--mount", "sh", "-c",
        f'mount --bind "{device}" {FUSE_DEVICE} && exec setpriv --reuid nobody --regid nogroup'
        ' --clear-groups "$@"', "sh", str(_python_of_the_system(public_folder / "python")),
    ]  # fmt: skip


def _python_of_the_system(folder: Path) -> Path:
    """A virtual environment on the system's Python with our packages: ours may be root's alone."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python").symlink_to("/usr/bin/python3")
    (folder / "pyvenv.cfg").write_text("home = /usr/bin\n")
    packages = folder / f"lib/python3.{sys.version_info.minor}/site-packages"
    packages.mkdir(parents=True)
    (packages / "ours.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder / "bin/python"


@pytest.mark.parametrize("filesystem", ["fat32", "ntfs"])
def test_an_ordinary_user_reads_and_edits(
    disk: bytes, ordinary_user: list[str], public_folder: Path, filesystem: str
) -> None:
    base = public_folder / "base.qcow2"
    if filesystem == "ntfs":
        write_qcow2(base, disk)
    else:
        texts = {rf"C:\delete {number}.txt": b"x" for number in range(5)}
        build_image(base, files={r"C:\big.bin": b"old", **texts}, pagefile_bytes=0)
    machine = public_folder / "machine"
    machine.mkdir()
    overlay = new_overlay(machine / "disk.qcow2", base)
    if os.geteuid() == 0:
        for path in (machine, overlay):
            os.chown(path, NOBODY, NOBODY)
    said = []
    for command in ("list", "edit", "list"):
        done = subprocess.run(
            [*ordinary_user, *PROCESS[1:], command, str(overlay)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert "delete 3.txt" in said[0]
    assert "edited" in said[1]
    assert "delete 3.txt" not in said[2]
    assert "big.bin" in said[2]
    assert overlay.with_name("disk.qcow2.before-edit-1").exists()


def test_root_leaves_the_disk_to_its_owner(overlay: Path) -> None:
    if os.geteuid():
        pytest.skip("only root edits the disks of other users")
    os.chown(overlay, NOBODY, NOBODY)
    overlay.chmod(0o640)
    edit(overlay, [Replace(r"C:\new.txt", b"new")])
    found = overlay.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (NOBODY, NOBODY, 0o640)
