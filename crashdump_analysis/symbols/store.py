"""Folders in which symbol files lie: as they are, or laid out as a symbol store.

Source: Microsoft's "Symbol path", "Symbol Store Folder Tree" and "Symbol Storage Format": a store
keeps name/key/name, with index2.txt in its root na/name/key/name; beside a file may lie file.ptr,
which names another place; a last letter replaced by "_" says that a file is compressed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

TWO_TIER_MARK: Final = "index2.txt"
POINTER: Final = "file.ptr"
MAX_POINTER: Final = 4096
"""Bytes of a file.ptr."""

_LONGEST_NAME = 200  # bytes: with a key before it, what a file system takes
_NOT_IN_NAMES = frozenset('/\\:*?"<>|')


@dataclass(frozen=True)
class Wanted:
    """A file that is looked for: its name, and what a store calls the folder that it lies in.

    check: says why a file is not the one, or "" where it is. Only such files are ever used.
    """

    name: str
    key: str
    check: Callable[[Path], str]

    @property
    def allowed(self) -> bool:
        """Whether the name, which comes out of a dump, can only be that of a file in a folder."""
        bad = any(one in _NOT_IN_NAMES or not one.isprintable() for one in self.name)
        size = len(self.name.encode("utf-8", "replace"))
        return not bad and bool(self.name.strip(". ")) and size <= _LONGEST_NAME

    @property
    def compressed_name(self) -> str:
        """The name under which a store keeps it compressed."""
        return self.name[:-1] + "_"

    def __str__(self) -> str:
        return f"{self.name} {self.key}"


def place_in_store(wanted: Wanted, *, two_tier: bool) -> PurePosixPath:
    """The folder for a file, from the root of a store."""
    place = PurePosixPath(wanted.name, wanted.key)
    return wanted.name[:2] / place if two_tier else place


def pointed_at(text: str) -> tuple[str, str]:
    """What a file.ptr says: a path, and a message where it has that instead."""
    text = text.strip("\0 \r\n\t")
    kind, colon, rest = text.partition(":")
    if colon and kind.upper() == "MSG":
        return "", rest.strip()
    return (rest.strip() if kind.upper() == "PATH" and colon else text), ""


@dataclass
class Problems:
    """What stood in the way of a file, in words.

    not_found: matters only where it is not found in the end. always: matters in any case.
    """

    not_found: list[str] = field(default_factory=list)
    always: list[str] = field(default_factory=list)


class Folder:
    """A folder, in which files lie as they are or as in a store."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def get(self, wanted: Wanted, problems: Problems) -> Path | None:
        """The file, checked; None where it is not here."""
        for path in (*self._stored(wanted, problems), *self._flat(wanted)):
            try:
                if not os.path.isfile(path):
                    continue
                reason = wanted.check(path)
            except OSError as error:
                reason = f"{path} cannot be read: {error.strerror}"
            if not reason:
                return path
            problems.not_found.append(reason)
        return None

    def _stored(self, wanted: Wanted, problems: Problems) -> Iterator[Path]:
        two_tier = os.path.isfile(self.path / TWO_TIER_MARK)
        for one in _spellings(wanted):
            folder = self.path / place_in_store(one, two_tier=two_tier)
            if not os.path.isdir(folder):  # which raises nothing, whatever the name
                continue
            yield folder / one.name
            with suppress(OSError):
                pointer = (folder / POINTER).read_bytes()[:MAX_POINTER]
                place, message = pointed_at(pointer.decode("utf-8", "replace"))
                if message:
                    problems.not_found.append(f"{folder / POINTER} says: {message}")
                elif place:
                    yield Path(place)
            if os.path.isfile(folder / one.compressed_name):
                problems.not_found.append(
                    f"{folder / one.compressed_name} is compressed (a cabinet), which is not "
                    f"supported: expand it to {one.name} beside it"
                )

    def _flat(self, wanted: Wanted) -> Iterator[Path]:
        # Debuggers look into folder/symbols/sys and folder/sys too, by the kind of image.
        kinds = [Path(above, kind) for kind in ("sys", "exe", "dll") for above in ("symbols", "")]
        for folder in (Path(), *kinds):
            for name in dict.fromkeys((wanted.name, wanted.name.lower())):
                yield self.path / folder / name


class Store(Folder):
    """A symbol store that files are copied into; made when the first is."""

    def _flat(self, wanted: Wanted) -> Iterator[Path]:
        return iter(())

    def put(self, wanted: Wanted, source: Path, problems: Problems) -> Path | None:
        """Copies a checked file into the store; None, with a problem, where that cannot be.

        Any number of processes may do so at once: the file appears whole or not at all.
        """
        two_tier = os.path.isfile(self.path / TWO_TIER_MARK)
        target = self.path / place_in_store(wanted, two_tier=two_tier) / wanted.name
        part = ""
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            descriptor, part = tempfile.mkstemp(prefix=f"{wanted.name}.", dir=target.parent)
            with open(descriptor, "wb") as to, source.open("rb") as file:
                shutil.copyfileobj(file, to, 1 << 20)
            os.chmod(part, 0o644)  # a store is shared; temporary files are their maker's only
            os.replace(part, target)
        except OSError as error:
            if part:
                with suppress(OSError):
                    os.unlink(part)
            if os.path.isfile(target) and not wanted.check(target):
                return target  # another process has it open, which Windows does not replace
            problems.always.append(f"{wanted.name} cannot be kept in {self.path}: {error.strerror}")
            return None
        return target


def _spellings(wanted: Wanted) -> Iterator[Wanted]:
    """Names and keys in the cases in which they are met: file systems may tell them apart."""
    for name in dict.fromkeys((wanted.name, wanted.name.lower())):
        for key in dict.fromkeys((wanted.key, wanted.key.lower(), wanted.key.upper())):
            yield Wanted(name, key, wanted.check)
