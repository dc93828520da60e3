"""File systems of a chosen size, and programs hidden: in a mount namespace of a test's own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HOLD = "mount --make-rprivate / && echo ready && read _"


@dataclass(frozen=True)
class MountNamespace:
    """Mounts that only commands started through it see; they end with the block."""

    holder: subprocess.Popen[str]

    def command(self, command: Sequence[str | Path]) -> list[str]:
        """The command line that runs a command in it, as the user that the test runs as."""
        enter = ["nsenter", "--mount", f"--target={self.holder.pid}"]
        user = []
        if os.geteuid():
            # In the namespace the user is root; the lab must see who it is.
            enter += ["--user", "--preserve-credentials"]
            user = ["unshare", f"--map-user={os.getuid()}", f"--map-group={os.getgid()}"]
        return [*enter, f"--wd={Path.cwd()}", *user, *map(str, command)]

    def root(self, *command: str | Path) -> None:
        """Runs a command in it that may mount."""
        enter = ["nsenter", "--mount", f"--target={self.holder.pid}"]
        if os.geteuid():
            enter += ["--user", "--preserve-credentials"]
        subprocess.run([*enter, *map(str, command)], check=True, stdin=subprocess.DEVNULL)

    def small_folder(self, folder: Path, mebibytes: int) -> None:
        """A folder with so much room; its files can be read at seen()."""
        folder.mkdir(exist_ok=True)
        self.root("mount", "-t", "tmpfs", "-o", f"size={mebibytes}M,mode=755", "small", folder)

    def resize(self, folder: Path, mebibytes: int) -> None:
        """Gives a small folder another size, which takes no time whatever it holds."""
        # With its source named, mount takes none of the old options: uid= would be another's here.
        self.root("mount", "-t", "tmpfs", "-o", f"remount,size={mebibytes}M", "small", folder)

    def hide(self, program: str) -> None:
        """Makes a program one that cannot be started."""
        self.root("mount", "--bind", "/dev/null", program)

    def seen(self, path: Path) -> Path:
        """Where a path of the namespace can be read from outside."""
        return Path(f"/proc/{self.holder.pid}/root{path}")


@contextmanager
def mount_namespace() -> Iterator[MountNamespace]:
    """A new mount namespace; for an ordinary user, with a user namespace around it."""
    options = ["--mount"] if os.geteuid() == 0 else ["--mount", "--user", "--map-root-user"]
    with subprocess.Popen(
        ["unshare", *options, "sh", "-c", HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "ready\n"
            yield MountNamespace(holder)
        finally:
            holder.kill()
