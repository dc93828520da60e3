"""Whether a dump file is whole, without looking at what is in its memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from mmap import mmap
from pathlib import Path

from crashdump_analysis.dump import format_of, mapped
from crashdump_analysis.dump.header import HEADER_SIZE, SIGNATURE, DumpHeader, read_header
from crashdump_analysis.errors import DumpError

_SAMPLES = 256
_TAIL = 16 << 20  # bytes at the end that are looked at for zeros


class State(StrEnum):
    """How whole a file is."""

    COMPLETE = "complete"
    TRUNCATED = "truncated"
    ALL_ZERO = "all-zero"
    NOT_A_DUMP = "not a dump"
    UNKNOWN = "unknown"
    """A kernel dump of a type whose layout is not known here."""


@dataclass(frozen=True)
class Completeness:
    """What `check_dump` found. Sizes in bytes; `required` is None where nothing tells it.

    `zero_tail` counts the zeros that the file ends in (at most 16 MiB). Memory may end in zeros, so
    they prove nothing; a long tail in a file that was being copied is a reason to look again.
    """

    state: State
    words: str
    size: int
    required: int | None = None
    zero_tail: int = 0
    header: DumpHeader | None = None


def check_dump(
    path: str | os.PathLike[str], progress: Callable[[str], None] | None = None
) -> Completeness:
    """Says whether a kernel dump is complete; takes the paths that `open_dump` takes.

    Sizes are the dump's own, not those of a compressed file. progress: is told of unpacking that
    takes more than 2 s. Raises OSError where the file cannot be read or unpacked here.
    """
    path = Path(path)
    try:
        with mapped(path, progress) as data:
            return _check(data, path)
    except DumpError as error:
        size = path.stat().st_size if path.exists() else 0
        return Completeness(State.NOT_A_DUMP, str(error), size)


def _check(data: mmap, path: Path) -> Completeness:
    size, start = len(data), data[:HEADER_SIZE]
    try:
        header = read_header(start, str(path))
    except DumpError as error:
        if start.startswith(SIGNATURE):
            return Completeness(State.TRUNCATED, str(error), size, HEADER_SIZE)
        if _looks_zero(data):
            words = f"{path}: {size} bytes, all zero: the dump was never written"
            return Completeness(State.ALL_ZERO, words, size)
        return Completeness(State.NOT_A_DUMP, str(error), size)
    zeros = _zero_tail(data)
    known = format_of(header)
    if known is not None:
        try:
            required = known(data, header, str(path)).required_size
        except DumpError as error:
            return Completeness(
                State.TRUNCATED, str(error), size, header.required_size, zeros, header
            )
        state = State.COMPLETE if size >= required else State.TRUNCATED
        words = f"{path}: {size} bytes are there, {required} are needed"
        return Completeness(state, words, size, required, zeros, header)
    words = f"{path}: whether a dump of type {header.dump_type} is whole cannot be told yet"
    return Completeness(State.UNKNOWN, words, size, header.required_size, zeros, header)


def _looks_zero(data: mmap) -> bool:
    """Whether the beginning, the end and samples between them hold nothing but zeros."""
    step = max(len(data) // _SAMPLES, 1)
    places = (*range(0, len(data), step), max(len(data) - HEADER_SIZE, 0))
    return not any(any(data[at : at + HEADER_SIZE]) for at in places)


def _zero_tail(data: mmap) -> int:
    """Zeros at the end, looked at block by block."""
    block, zeros = 1 << 16, 0
    while zeros < min(_TAIL, len(data)):
        end = len(data) - zeros
        piece = data[max(end - block, 0) : end].rstrip(b"\0")
        if piece:
            return zeros + min(block, end) - len(piece)
        zeros += min(block, end)
    return zeros
