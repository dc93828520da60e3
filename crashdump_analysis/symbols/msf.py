"""The container of a PDB: numbered streams, scattered over blocks of a file.

Source: LLVM's "The MSF File Format" and microsoft-pdb (MIT). Hostile input: sizes and counts are
held against the file's, nothing is read before it is asked for.
"""

from __future__ import annotations

import mmap
import struct
from itertools import accumulate
from pathlib import Path
from typing import Final

MAGIC: Final = b"Microsoft C/C++ MSF 7.00\r\n\x1aDS\0\0\0"
_BLOCK_SIZES = frozenset(1 << power for power in range(9, 17))
_NO_STREAM = 0xFFFF_FFFF
_MAX_DIRECTORY = 1 << 25  # bytes; a PDB of 4 GiB has 4 MiB
MAX_READ: Final = 1 << 28
"""Bytes that are read of a stream at once: more than any stream of a driver's PDB has."""


class PdbError(Exception):
    """A PDB cannot be used; says why and what to do."""


class Stream:
    """One stream: `size` bytes, to be read at any offset."""

    def __init__(self, file: MsfFile, size: int, blocks: int) -> None:
        self.size = size
        self._file = file
        self._blocks = blocks  # where in the directory the numbers of its blocks are

    def read(self, offset: int, size: int) -> bytes:
        """As many of `size` bytes as the stream has. Raises PdbError where the file is cut."""
        end = min(offset + min(size, MAX_READ), self.size)
        if offset < 0 or end <= offset:
            return b""
        block = self._file.block_size
        first, last = offset // block, (end - 1) // block
        numbers = self._file.block_numbers(self._blocks + first, last - first + 1)
        data = b"".join(map(self._file.block, numbers))
        return data[offset - first * block : end - first * block]


class MsfFile:
    """An MSF 7.00 file, mapped. Raises PdbError where it is none, OSError where it is not there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            if file.seek(0, 2) == 0:
                raise PdbError(f"{path} is empty")
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        head = self._data[: len(MAGIC) + 24]
        if not head.startswith(MAGIC) or len(head) < len(MAGIC) + 24:
            raise PdbError(f"{path} is no PDB: it begins with {head[:16]!r}")
        self.block_size, _, _, size, _, block_map = struct.unpack_from("<6I", head, len(MAGIC))
        if self.block_size not in _BLOCK_SIZES:
            raise PdbError(f"{path} is damaged: blocks of {self.block_size} bytes")
        count = -(-min(size, _MAX_DIRECTORY) // self.block_size)
        place = block_map * self.block_size
        numbers = self._data[place : place + 4 * count]
        if not 4 <= size <= min(len(self._data), _MAX_DIRECTORY) or len(numbers) < 4 * count:
            raise PdbError(f"{path} is damaged or cut: its directory of {size} bytes is not there")
        self._directory = b"".join(map(self.block, struct.unpack(f"<{count}I", numbers)))[:size]
        (streams,) = struct.unpack_from("<I", self._directory)
        if 4 + 4 * streams > size:
            raise PdbError(f"{path} is damaged: {streams} streams in a directory of {size} bytes")
        self._sizes = struct.unpack_from(f"<{streams}I", self._directory, 4)
        counts = (0 if one == _NO_STREAM else -(-one // self.block_size) for one in self._sizes)
        self._first = tuple(accumulate(counts, initial=1 + streams))

    def __len__(self) -> int:
        return len(self._sizes)

    def stream(self, number: int) -> Stream | None:
        """A stream; None where the file has none of that number."""
        if number >= len(self._sizes) or self._sizes[number] == _NO_STREAM:
            return None
        return Stream(self, self._sizes[number], self._first[number])

    def block_numbers(self, first: int, count: int) -> tuple[int, ...]:
        """Numbers of blocks, from their place in the directory. Raises PdbError."""
        if 4 * (first + count) > len(self._directory):
            raise PdbError(f"{self.path} is damaged: a stream is larger than its blocks")
        return struct.unpack_from(f"<{count}I", self._directory, 4 * first)

    def block(self, number: int) -> bytes:
        """The bytes of a block. Raises PdbError where it is behind the end of the file."""
        data = self._data[number * self.block_size : (number + 1) * self.block_size]
        if len(data) < self.block_size:
            raise PdbError(f"{self.path} is damaged or cut: block {number} is not there")
        return data
