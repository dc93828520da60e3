"""The libvirt of the system and of an ordinary user: the same machine lives on each."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from images.test_kernel.build import build_image
from lab.virtual import reaper

LIFE = "tests.integration.virtual.life_on_host"
ROOT = Path(__file__).parents[3]
PRIVATE_SYSTEM = r"""
set -e
cp /etc/passwd /etc/group "$1"
grep -q libvirt-qemu "$1/passwd" || {
    echo libvirt-qemu:x:64055:64055::/nonexistent:/bin/false >> "$1/passwd"
    echo libvirt-qemu:x:64055: >> "$1/group"
}
for folder in /run /var/lib /var/cache /var/log /etc/libvirt; do mount -t tmpfs none "$folder"; done
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/group" /etc/group
if [ -e /dev/kvm ]; then touch "$1/kvm"; chmod 0 "$1/kvm"; mount --bind "$1/kvm" /dev/kvm; fi
echo 'namespaces = []' > /etc/libvirt/qemu.conf
shift
exec "$@"
"""
"""A system libvirt that nobody else sees: its folders, the user that Debian's libvirt-daemon-system
makes, and no KVM, whose examination takes libvirt ten seconds where it is emulated."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for the sockets below."""
    made = Path(tempfile.mkdtemp(prefix="lab-life-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def lives(command: list[str], environment: dict[str, str] | None = None) -> None:
    """Runs it under a reaper, which ends the daemons that libvirt started, too."""
    with subprocess.Popen(
        [sys.executable, reaper.__file__, "tied", "", "", shlex.join(command)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout
        said = process.stdout.read()
    assert "\nlived\n" in f"\n{said}", said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a system of its own")
def test_system_libvirt_is_started_where_no_service_manager_does(folder: Path) -> None:
    disk = build_image(folder / "idle.qcow2")
    namespace = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    life = [sys.executable, "-m", LIFE, "qemu:///system", str(disk), str(folder)]
    lives([*namespace, "sh", "-c", PRIVATE_SYSTEM, "sh", str(folder), *life])


def test_session_libvirt_of_an_ordinary_user(folder: Path) -> None:
    disk = build_image(folder / "idle.qcow2")
    user = ["nobody"] if os.geteuid() == 0 else []
    homes = {
        "HOME": str(folder),
        "XDG_RUNTIME_DIR": str(folder / "r"),
        "XDG_CONFIG_HOME": str(folder / "c"),
        "XDG_CACHE_HOME": str(folder / "h"),
    }
    lives([sys.executable, "-m", LIFE, "qemu:///session", str(disk), str(folder), *user], homes)
