"""The tests' own libvirt: two do not meet, and none is left when its owner is killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.libvirt import Domain, Libvirt
from tests.support.waiting import wait_for

OWNER = """
import sys
from pathlib import Path
from tests.support.libvirt import Domain, Libvirt
libvirt = Libvirt()
machine = Domain(libvirt, Path(sys.argv[1]))
machine.start()
print(libvirt.folder, flush=True)
sys.stdin.read()
"""


def empty_disk(folder: Path) -> Path:
    """A disk that boots nothing: the machine runs and its firmware waits."""
    disk = folder / "empty.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(disk), "1M"], check=True)
    return disk


def processes_naming(text: str) -> list[str]:
    """Command lines of processes that hold `text` in an argument or in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            surroundings = (process / "environ").read_bytes()
        except OSError:
            continue  # it ended, or is another user's
        if text.encode() in command + surroundings:
            found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found


def test_two_libvirts_do_not_see_each_other(libvirt: Libvirt) -> None:
    with Libvirt() as other:
        machine = Domain(other, empty_disk(other.folder))
        machine.start()
        assert machine.name in other.virsh("list", "--name")
        assert machine.name not in libvirt.virsh("list", "--name")
        assert not [line for line in libvirt.events() if machine.name in line]
    libvirt.virsh("version")


def test_nothing_is_left_when_the_owner_is_killed(libvirt: Libvirt) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(empty_disk(libvirt.folder))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    assert owner.stdin is not None
    folder = Path(owner.stdout.readline().strip())
    commands = processes_naming(str(folder))
    for program in ("virtlogd", "libvirtd", "qemu-system-x86_64", "virsh"):
        assert any(program in command for command in commands), commands
    owner.kill()
    owner.wait()
    owner.stdout.close()
    owner.stdin.close()
    wait_for("all of it to end", lambda: not processes_naming(str(folder)), 20)
    wait_for("the folder to be removed", lambda: not folder.exists(), 20)
