"""Kernel dump files: one file a format, each gives the memory of a crashed machine.

A format is a subclass of DumpFormat (dump/format.py) with TYPES, values of the header's DumpType.
To add one, write its file and name it in FORMATS.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from crashdump_analysis.dump.bitmap import BitmapDump
from crashdump_analysis.dump.format import DumpFormat, PhysicalDump
from crashdump_analysis.dump.full import FullDump
from crashdump_analysis.dump.header import (
    CONTEXT_OFFSET,
    HEADER_SIZE,
    MACHINES,
    TYPE_NAMES,
    DumpHeader,
    read_header,
)
from crashdump_analysis.dump.header_only import HeaderDump
from crashdump_analysis.dump.ranges import RangeDump
from crashdump_analysis.dump.source import dump_paths, mapped
from crashdump_analysis.dump.summary import SummaryDump
from crashdump_analysis.dump.triage import TriageDump
from crashdump_analysis.errors import DumpError
from crashdump_analysis.memory import Memory, PhysicalMemory

__all__ = ["FORMATS", "Dump", "dump_paths", "format_of", "mapped", "open_dump"]

_CONTEXT_SIZE = 3000  # bytes that the header has for the record

FORMATS: Final[tuple[type[DumpFormat], ...]] = (
    FullDump,
    SummaryDump,
    HeaderDump,
    TriageDump,
    BitmapDump,
    RangeDump,
)


@dataclass(frozen=True)
class Dump:
    """An open dump. `size` is the file's in bytes; `context` the header's CONTEXT record.

    contents: what its format keeps.
    """

    path: Path
    size: int
    header: DumpHeader
    context: bytes
    contents: DumpFormat

    @property
    def memory(self) -> Memory:
        """Virtual memory as the crashed processor saw it."""
        return self.contents.memory

    @property
    def pages(self) -> PhysicalMemory | None:
        """Physical memory; None where the format has none, as in triage dumps."""
        return self.contents if isinstance(self.contents, PhysicalDump) else None


def format_of(header: DumpHeader) -> type[DumpFormat] | None:
    """The format of a dump; None where its type is not known here."""
    return next((known for known in FORMATS if header.dump_type in known.TYPES), None)


@contextmanager
def open_dump(
    path: str | os.PathLike[str], progress: Callable[[str], None] | None = None
) -> Iterator[Dump]:
    """Maps a dump into memory while the context lasts, and finds out which format it has.

    path: of a dump, plain or compressed with gzip or zstd; of a zip archive with one dump; or
    PATH!member. progress: is told of unpacking that takes more than 2 s.

    Memory may be missing at the end of a file that was cut; see `check_dump`. The file must not be
    made shorter meanwhile: the process would be ended by a bus error, as with any mapped file.
    Raises DumpError, and OSError where the file cannot be read or unpacked here.
    """
    path = Path(path)
    with mapped(path, progress) as data:
        header = read_header(data[:HEADER_SIZE], str(path))
        known = format_of(header)
        if known is None:
            supported = sorted(number for one in FORMATS for number in one.TYPES)
            raise DumpError(
                f"{path} at 0xf98",
                expected="a dump type that is supported: "
                + ", ".join(f"{number} {TYPE_NAMES[number]}" for number in supported),
                found=f"{header.dump_type} {header.type_name}",
            )
        if header.machine not in known.MACHINES:
            machines = " or ".join(MACHINES[one] for one in sorted(known.MACHINES))
            raise DumpError(
                f"{path} at 0x30",
                expected=f"{machines} as the machine of a {header.type_name} dump",
                found=header.machine_name,
            )
        context = data[CONTEXT_OFFSET : CONTEXT_OFFSET + _CONTEXT_SIZE]
        yield Dump(path, len(data), header, context, known(data, header, str(path)))
