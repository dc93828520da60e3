"""Kernel dump files: one file a format, each gives pages by physical address.

A format is a class with TYPES (values of the header's DumpType), made from the mapped file. To add
one, write its file and name it in FORMATS.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from crashdump_analysis.dump.bitmap import BitmapDump
from crashdump_analysis.dump.full import FullDump
from crashdump_analysis.dump.header import (
    CONTEXT_OFFSET,
    HEADER_SIZE,
    MACHINE_X64,
    TYPE_NAMES,
    DumpHeader,
    read_header,
)
from crashdump_analysis.errors import DumpError
from crashdump_analysis.memory import Memory, PagedMemory, PhysicalMemory

_CONTEXT_SIZE = 0x4D0  # of an x64 CONTEXT


class Pages(PhysicalMemory, Protocol):
    """The pages of a dump file, and how large in bytes the file must be to hold them all."""

    required_size: int


FORMATS: Final = (FullDump, BitmapDump)


@dataclass(frozen=True)
class Dump:
    """An open dump. `size` is the file's in bytes; `context` the header's x64 CONTEXT record.

    memory: virtual memory as the crashed processor saw it. pages: physical memory.
    """

    path: Path
    size: int
    header: DumpHeader
    context: bytes
    memory: Memory
    pages: Pages


@contextmanager
def open_dump(path: str | os.PathLike[str]) -> Iterator[Dump]:
    """Maps a dump into memory while the context lasts, and finds out which format it has.

    Pages may be missing at the end of a file that was cut; see `check_dump`. The file must not be
    made shorter meanwhile: the process would be ended by a bus error, as with any mapped file.
    Raises DumpError, and OSError where the file cannot be read.
    """
    path = Path(path)
    with mapped(path) as data:
        header = read_header(data[:HEADER_SIZE], str(path))
        if header.machine != MACHINE_X64:
            raise DumpError(
                f"{path} at 0x30", expected="a dump of an x64 machine", found=header.machine_name
            )
        for known in FORMATS:
            if header.dump_type in known.TYPES:
                context = data[CONTEXT_OFFSET : CONTEXT_OFFSET + _CONTEXT_SIZE]
                pages = known(data, str(path))
                memory = PagedMemory(pages, header.directory_table_base)
                yield Dump(path, len(data), header, context, memory, pages)
                return
        supported = sorted(number for known in FORMATS for number in known.TYPES)
        raise DumpError(
            f"{path} at 0xf98",
            expected="a dump type that is supported: "
            + ", ".join(f"{number} {TYPE_NAMES[number]}" for number in supported),
            found=f"{header.dump_type} {header.type_name}",
        )


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """A file's bytes, mapped and read-only. Raises DumpError where it is empty or no file."""
    if not path.is_file():
        found = (
            "a folder" if path.is_dir() else "nothing there" if not path.exists() else "a device"
        )
        raise DumpError(str(path), expected="a dump file", found=found)
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise DumpError(str(path), expected="a kernel dump", found="an empty file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
