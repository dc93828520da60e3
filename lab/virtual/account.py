"""The user that machines run as, where that is not the user who runs the lab."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lab.backend import BackendError


@dataclass(frozen=True)
class Account:
    """A user who must be able to read images and write what belongs to a machine."""

    name: str
    uid: int
    gid: int

    @classmethod
    def named(cls, name: str) -> Self:
        """Raises KeyError if there is none."""
        entry = pwd.getpwnam(name)
        return cls(name, entry.pw_uid, entry.pw_gid)

    def own(self, path: Path) -> None:
        """Gives it a file, or a folder with all that is in it."""
        os.chown(path, self.uid, self.gid, follow_symlinks=False)
        if path.is_dir() and not path.is_symlink():
            for inside in path.iterdir():
                self.own(inside)

    def require_access(self, path: Path) -> None:
        """Raises BackendError if it cannot read the file or enter the folder."""
        whole = path.resolve()
        for part in (*reversed(whole.parents), whole):
            bit = 0o1 if part.is_dir() else 0o4
            if not self._may(part, bit):
                verb = "enter" if bit == 0o1 else "read"
                raise BackendError(
                    f"{whole}: the user {self.name}, as whom this host's machines run, cannot"
                    f" {verb} {part}. Choose another store in lab.toml, or allow it:"
                    f" chmod o+{'x' if bit == 0o1 else 'r'} {part}"
                )

    def _may(self, path: Path, bit: int) -> bool:
        found = path.stat()
        mode = stat.S_IMODE(found.st_mode)
        if found.st_uid == self.uid:
            return bool(mode >> 6 & bit)
        if found.st_gid == self.gid:
            return bool(mode >> 3 & bit)
        return bool(mode & bit)


def take_back(path: Path) -> None:
    """Makes the lab's own user the owner, where it may."""
    if os.geteuid() == 0:
        shutil.chown(path, os.geteuid(), os.getegid())
