"""What every dump format has: one class a format, each in a file of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from mmap import mmap
from typing import ClassVar

from crashdump_analysis.addresses import PhysicalAddress
from crashdump_analysis.dump.header import MACHINE_X64, DumpHeader
from crashdump_analysis.memory import Memory, PagedMemory
from crashdump_analysis.modules import Modules


class DumpFormat(ABC):
    """The contents of a mapped dump file. Constructors raise DumpError where the layout is wrong.

    TYPES: values of the header's DumpType; MACHINES: machine types that can be read.
    required_size: bytes that the file must have to hold everything. warnings: in words, what is
    wrong with the file.
    """

    TYPES: ClassVar[frozenset[int]]
    MACHINES: ClassVar[frozenset[int]] = frozenset({MACHINE_X64})

    required_size: int
    memory: Memory
    """Virtual memory as the crashed processor saw it."""

    def __init__(self, data: mmap, header: DumpHeader, where: str) -> None:
        self.data = data
        self.header = header
        self.where = where
        self.warnings: list[str] = []

    # What some formats keep beside memory; None where it is to be read from memory.

    @property
    def debugger_data(self) -> bytes | None:
        """KDDEBUGGER_DATA64."""
        return None

    @property
    def modules(self) -> Modules | None:
        """The loaded images. What is wrong with the list is added to `warnings`."""
        return None

    @property
    def processor_block(self) -> bytes | None:
        """The KPRCB of the processor that crashed."""
        return None

    @property
    def thread(self) -> bytes | None:
        """The ETHREAD that ran there."""
        return None

    @property
    def process(self) -> bytes | None:
        """The EPROCESS of that thread."""
        return None

    @property
    def unloaded_drivers(self) -> bytes | None:
        """The list of unloaded drivers in the form that triage dumps have."""
        return None

    @property
    def end(self) -> int:
        """Where in the file the dump itself ends, and secondary data may follow."""
        return self.required_size


class PhysicalDump(DumpFormat):
    """A dump of physical pages, which the machine's own page tables make virtual memory of."""

    @abstractmethod
    def read(self, address: PhysicalAddress, size: int) -> bytes | None:
        """Physical memory within one page; None where the file does not hold it."""

    @cached_property
    def memory(self) -> Memory:  # type: ignore[override]
        """Virtual memory by the page tables of the header's directory table base."""
        return PagedMemory(self, self.header.directory_table_base)
