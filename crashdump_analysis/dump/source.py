"""Where the bytes of a dump come from: a file, plain or compressed, or a member of a zip archive.

A member is named as PATH!member. What a file is, its first bytes say. No file is ever written to.
What unpacks is imported where it is needed, so that a command that opens plain dumps is fast.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from crashdump_analysis.errors import DumpError

if TYPE_CHECKING:
    from crashdump_analysis.dump.unpack import Progress

_START = 8  # bytes that tell what a file is


def dump_paths(path: str | os.PathLike[str]) -> list[str]:
    """The dumps in a file, each by a path that `open_dump` takes.

    A file that is no zip archive is itself; a zip is its members that are dumps, as PATH!member.
    Raises DumpError where a zip has none, and OSError where the file cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        return [str(path)]
    with path.open("rb") as file:
        if _compression(file) != "zip":
            return [str(path)]
        from crashdump_analysis.dump.zip_members import ZipDumps  # noqa: PLC0415

        return ZipDumps(path, file).dumps()


@contextmanager
def mapped(path: Path, progress: Progress | None = None) -> Iterator[mmap.mmap]:
    """A dump's bytes, unpacked if need be, mapped and read-only.

    progress: is told of what takes more than 2 s. Raises DumpError where there is nothing, no
    file, or no dump to unpack, and OSError where it cannot be read or unpacked here.
    """
    archive, member = _split(path)
    if not archive.is_file():
        found = (
            "a folder" if path.is_dir() else "nothing there" if not path.exists() else "a device"
        )
        raise DumpError(str(path), expected="a dump file", found=found)
    with archive.open("rb") as file, _plain(file, archive, member, progress) as plain:
        if os.fstat(plain.fileno()).st_size == 0:
            raise DumpError(str(path), expected="a kernel dump", found="an empty file")
        with mmap.mmap(plain.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


def _split(path: Path) -> tuple[Path, Path | None]:
    """The file of a path, and the path again where it goes on to a member of that file."""
    if path.is_file():
        return path, None
    text = str(path)
    at = text.find("!")
    while at > 0:
        if (archive := Path(text[:at])).is_file():
            return archive, path
        at = text.find("!", at + 1)
    return path, None


@contextmanager
def _plain(
    file: IO[bytes], path: Path, member: Path | None, progress: Progress | None
) -> Iterator[IO[bytes]]:
    """The file, or a temporary one with what it holds compressed."""
    compression = _compression(file)
    if member is not None and compression != "zip":
        raise DumpError(str(member), expected=f"a zip archive as {path}", found="another file")
    if compression == "":
        yield file
    elif compression == "zip":
        from crashdump_analysis.dump.zip_members import unpacked_member  # noqa: PLC0415

        with unpacked_member(path, file, member, progress) as plain:
            yield plain
    else:
        from crashdump_analysis.dump.unpack import unpacked_stream  # noqa: PLC0415

        with unpacked_stream(path, file, compression, progress) as plain:
            yield plain


def _compression(file: IO[bytes]) -> Literal["", "zip", "gzip", "zstd"]:
    """How a file is compressed; it is at its start then."""
    start = file.read(_START)
    file.seek(0)
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if start.startswith(b"\x1f\x8b"):
        return "gzip"
    skippable = start[1:4] == b"\x2a\x4d\x18" and start[0] >> 4 == 5  # a frame that says nothing
    return "zstd" if skippable or start.startswith(b"\x28\xb5\x2f\xfd") else ""
