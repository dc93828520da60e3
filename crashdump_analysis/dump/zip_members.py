"""Dumps inside zip archives. A member is named as PATH!member, and never becomes a path.

Members that are dumps are found by their first bytes, or by a name that ends in .dmp, so that a
broken one is not passed over; other files of the archive, such as a list of drivers, are.
"""

from __future__ import annotations

import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from crashdump_analysis.dump.unpack import BrokenStreamError, Progress, unpacked
from crashdump_analysis.errors import DumpError

_CHUNK = 1 << 20
_MAX_DIRECTORY = 1 << 20  # bytes, of about 10,000 members
_SHOWN = 5  # names in an error
_ENCRYPTED = 1  # flag of a member
_METHODS: Final = {
    **{1: "shrink", 6: "implode", 9: "deflate64", 12: "bzip2", 14: "LZMA", 93: "zstd"},
    **{95: "xz", 98: "PPMd", 99: "AES encryption"},
}
# What zipfile raises on archives that are none, or broken.
_ZIP_ERRORS: Final = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(NotImplementedError, RuntimeError, ValueError, OverflowError),
)


@contextmanager
def unpacked_member(
    path: Path, file: IO[bytes], name: Path | None, progress: Progress | None
) -> Iterator[IO[bytes]]:
    """A member of a zip archive, as `unpacked` gives it.

    name: PATH!member; without it the archive must hold one dump.
    """
    archive = ZipDumps(path, file)
    member = archive.only_member() if name is None else archive.member(name)
    with unpacked(
        archive.chunks(member),
        str(path if name is None else name),
        packed=archive.packed_size(member),
        size=member.file_size,
        progress=progress,
    ) as plain:
        yield plain


class ZipDumps:
    """An open zip archive, as a place of dumps."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path = path
        try:
            self._archive = zipfile.ZipFile(_BoundedReads(file))
        except (*_ZIP_ERRORS, EOFError) as error:
            raise DumpError(str(path), expected="a zip archive", found=str(error)) from None
        # Not is_dir(), which takes no member without a name.
        self._members = [one for one in self._archive.infolist() if not one.filename.endswith("/")]
        self._size = file.seek(0, io.SEEK_END)
        together = sum(one.compress_size for one in self._members)
        if together > self._size:
            raise DumpError(
                str(path),
                expected="members that do not overlap",
                found=f"{len(self._members)} of {together} bytes together in {self._size}",
            )

    def dumps(self) -> list[str]:
        """The names, as PATH!member, of the members that are dumps.

        Raises DumpError where there are none.
        """
        members = [one for one in self._members if self._is_dump(one)]
        if not members:
            raise DumpError(
                str(self._path), expected="a zip with a kernel dump", found=self._contents()
            )
        return [self._name(one) for one in members]

    def member(self, path: Path) -> zipfile.ZipInfo:
        """The member that a path names. Raises DumpError where there is none, or more than one."""
        found = [one for one in self._members if Path(self._name(one)) == path]
        if len(found) == 1:
            return found[0]
        raise DumpError(
            str(path),
            expected="the name of one member",
            found=f"{len(found)} members of that name"
            if found
            else f"an archive with {self._contents()}",
        )

    def only_member(self) -> zipfile.ZipInfo:
        """The one member that is a dump. Raises DumpError where there is not one."""
        names = self.dumps()
        if len(names) > 1:
            raise DumpError(
                str(self._path),
                expected=f"the name of one dump, as in {names[0]}",
                found=f"a zip with {len(names)} dumps",
            )
        return self.member(Path(names[0]))

    def chunks(self, member: zipfile.ZipInfo) -> Iterator[bytes]:
        """The member's bytes. Raises BrokenStreamError and EOFError."""
        if member.flag_bits & _ENCRYPTED:
            raise BrokenStreamError("unencrypted zip", "a member that only a password opens")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            method = _METHODS.get(member.compress_type, str(member.compress_type))
            raise BrokenStreamError("stored or deflated zip", f"compression method {method}")
        try:
            with self._archive.open(member) as file:
                while chunk := file.read(_CHUNK):
                    yield chunk
        except _ZIP_ERRORS as error:
            raise BrokenStreamError("zip", error) from None

    def packed_size(self, member: zipfile.ZipInfo) -> int:
        """How many bytes of the archive a member can take."""
        return min(member.compress_size, self._size)

    def _name(self, member: zipfile.ZipInfo) -> str:
        letters = (
            one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in member.filename
        )
        return f"{self._path}!{''.join(letters)}"

    def _is_dump(self, member: zipfile.ZipInfo) -> bool:
        if member.filename.lower().endswith(".dmp"):
            return True
        try:
            with self._archive.open(member) as file:
                return file.read(4) == b"PAGE"
        except (*_ZIP_ERRORS, EOFError):
            return False

    def _contents(self) -> str:
        names = [self._name(one).removeprefix(f"{self._path}!") for one in self._members]
        more = f" and {len(names) - _SHOWN} others" if len(names) > _SHOWN else ""
        locked = any(one.flag_bits & _ENCRYPTED for one in self._members)
        return (
            f"{len(names)} members"
            + (": " + ", ".join(names[:_SHOWN]) + more if names else "")
            + (", some of which only a password opens" if locked else "")
        )


class _BoundedReads(io.RawIOBase):
    """A file of which zipfile does not read an endless directory into memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """The new position. Raises BadZipFile where the archive names a place before its start."""
        if whence == io.SEEK_SET and offset < 0:
            raise zipfile.BadZipFile(f"an offset of {offset}")
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The position."""
        return self._file.tell()

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes. Raises BadZipFile where they are too many."""
        if size <= _MAX_DIRECTORY:
            data = self._file.read(size if size >= 0 else _MAX_DIRECTORY + 1)
            if len(data) <= _MAX_DIRECTORY:
                return data
        raise zipfile.BadZipFile(f"a directory of more than {_MAX_DIRECTORY} bytes")
