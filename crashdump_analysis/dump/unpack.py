"""Compressed dumps, unpacked into a temporary file that has no name: gzip, zstd, members of zips.

What a file is, its first bytes say, not its name. Compressed input is hostile: it may unpack to
more than any disk holds, so there are limits, and what is beyond them is refused.

- A dump of up to `ANY_RATIO` bytes may be as empty as it likes: on a disk it does no harm.
- Beyond that it may be `MAX_RATIO` times its compressed size. Zeros take next to no room, memory in
  use takes a half of its size or less: 200 is a machine that uses 1 % of its memory.
- `MAX_SIZE` is the memory of a large workstation. Who has a larger dump unpacks it by hand.

What does not begin as a dump is unpacked no further. Zeros are left out of the temporary file, as
holes. An archive inside an archive is not looked into.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, Literal, cast

from crashdump_analysis.errors import DumpError

ANY_RATIO: Final = 256 << 20
MAX_RATIO: Final = 200
MAX_SIZE: Final = 64 << 30

Progress = Callable[[str], None]
"""Is told in words how far something is that takes more than 2 s."""

_CHUNK = 1 << 20
_HOLE = bytes(1 << 16)  # zeros that are worth leaving out
_ROOM = 16 << 20  # bytes between looks at how much room is left
_SPARE = 64 << 20  # bytes of the temporary folder that are left to others
_SECONDS = 2.0  # between words of progress
_DUMP, _EMPTY = b"PAGE", bytes(4)  # how a dump begins, and one that was never written
_MAX_WINDOW = 128 << 20  # of zstd, as its own program has it

# A frame of zstd (RFC 8878) without checksum: one block, the last, of 16 times 0xA5.
_END_FRAME = b"\x28\xb5\x2f\xfd\x20\x10" + (16 << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\xa5"
_END = b"\xa5" * 16


class BrokenStreamError(Exception):
    """Compressed data is not what it should be. `kind`: gzip, zstd or zip."""

    def __init__(self, kind: str, words: object) -> None:
        super().__init__(str(words))
        self.kind = kind


@contextmanager
def unpacked_stream(
    path: Path, file: IO[bytes], compression: Literal["gzip", "zstd"], progress: Progress | None
) -> Iterator[IO[bytes]]:
    """What a gzip or zstd file holds, as `unpacked` gives it."""
    packed = os.fstat(file.fileno()).st_size
    chunks = _gzip(file) if compression == "gzip" else _zstd(file)
    with unpacked(chunks, str(path), packed=packed, size=None, progress=progress) as plain:
        yield plain


@contextmanager
def unpacked(
    chunks: Iterator[bytes],
    where: str,
    *,
    packed: int,
    size: int | None,
    progress: Progress | None = None,
) -> Iterator[IO[bytes]]:
    """A temporary file with what the chunks are, for as long as the context lasts.

    Of what does not begin as a dump it has only the beginning, which says what it is.

    where: the name of the source in errors. packed: its compressed size in bytes. size: the size
    that it says it has unpacked. Raises DumpError where the source is broken or over the limits,
    and OSError where the temporary folder has no room.
    """
    limit = min(MAX_SIZE, max(ANY_RATIO, MAX_RATIO * packed))
    if size is not None and size > limit:
        raise _too_large(where, packed, limit, f"{size}")
    with tempfile.TemporaryFile(prefix="bugcheck-lab-") as file:
        _check_room(where, size or 0)
        told = time.monotonic()
        for done in _copied(chunks, file, where):
            if done > limit:
                raise _too_large(where, packed, limit, "more")
            if progress and time.monotonic() - told > _SECONDS:
                told = time.monotonic()
                of = f" of {size >> 20}" if size else ""
                progress(f"unpacking {where}: {done >> 20}{of} MiB")
        file.seek(0)
        yield file


def _copied(chunks: Iterator[bytes], file: IO[bytes], where: str) -> Iterator[int]:
    """Writes the chunks; gives again and again how many bytes were written."""
    done, start = 0, b""
    try:
        for chunk in chunks:
            _write(file, chunk)
            done += len(chunk)
            yield done
            if done % _ROOM < len(chunk):
                _check_room(where, 0)
            start += chunk[: len(_DUMP) - len(start)]
            if len(start) == len(_DUMP) and start not in (_DUMP, _EMPTY):
                break  # whatever it is, its beginning is enough to say so
        file.truncate(done)
    except EOFError:
        raise DumpError(
            where, expected="the end of the compressed data", found="the end of the file"
        ) from None
    except BrokenStreamError as error:
        raise DumpError(
            where, expected=f"{error.kind} data", found=f"after {done} bytes: {error}"
        ) from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _no_room(where, done) from None
        raise


def _write(file: IO[bytes], chunk: bytes) -> None:
    for at in range(0, len(chunk), len(_HOLE)):
        piece = chunk[at : at + len(_HOLE)]
        if piece == _HOLE:
            file.seek(len(piece), os.SEEK_CUR)
        else:
            file.write(piece)


def _too_large(where: str, packed: int, limit: int, found: str) -> DumpError:
    return DumpError(
        where,
        expected=f"at most {limit} bytes out of {packed} compressed ones (a dump may be "
        f"{MAX_RATIO} times as large, {ANY_RATIO >> 20} MiB at any ratio, {MAX_SIZE >> 30} GiB at "
        "most; unpack it by hand if you trust it)",
        found=found,
    )


def _check_room(where: str, size: int) -> None:
    if shutil.disk_usage(tempfile.gettempdir()).free < size + _SPARE:
        raise _no_room(where, size)


def _no_room(where: str, size: int) -> OSError:
    return OSError(
        errno.ENOSPC,
        f"no room to unpack {where} ({size >> 20} MiB and more) in the temporary folder; TMPDIR "
        "names another",
        tempfile.gettempdir(),
    )


def _gzip(file: IO[bytes]) -> Iterator[bytes]:
    """The contents of a gzip file's members, one after another. Raises EOFError too."""
    data = file.read(_CHUNK)
    while data:
        decoder = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        while not decoder.eof:
            data = data or file.read(_CHUNK)
            try:
                chunk = decoder.decompress(data, _CHUNK)
            except zlib.error as error:
                raise BrokenStreamError("gzip", error) from None
            if not data and not chunk:
                raise EOFError
            yield chunk
            data = decoder.unconsumed_tail
        data = decoder.unused_data
        while data := data.lstrip(b"\0") or file.read(_CHUNK):  # tapes are filled with zeros
            if data[0]:
                break


def _zstd(file: IO[bytes]) -> Iterator[bytes]:
    """The contents of a zstd file's frames. Raises EOFError too.

    The reader does not tell an input that ends early from one that ends. So a frame of our own
    follows the input: it comes out where the frame before it was whole.
    """
    import zstandard  # noqa: PLC0415 - zip and gzip do not need it

    decoder = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    held = b""
    try:
        whole = cast(IO[bytes], _WithEnd(file))
        with decoder.stream_reader(whole, read_across_frames=True) as reader:
            while chunk := reader.read(_CHUNK):
                held += chunk
                yield held[: -len(_END)]
                held = held[-len(_END) :]
    except zstandard.ZstdError as error:
        raise BrokenStreamError("zstd", error) from None
    if held != _END:
        raise EOFError


class _WithEnd(io.RawIOBase):
    """A file with the end frame behind it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._end = _END_FRAME

    def readable(self) -> bool:
        """It is."""
        return True

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes."""
        data = self._file.read(size)
        if not data:
            data, self._end = self._end[:size], self._end[size:]
        return data
