"""Dumps of the header alone (type 3): a bug check, registers, and no memory."""

from __future__ import annotations

from mmap import mmap
from typing import ClassVar

from crashdump_analysis.addresses import PhysicalAddress
from crashdump_analysis.dump.format import PhysicalDump
from crashdump_analysis.dump.header import HEADER_SIZE, MACHINE_ARM64, MACHINE_X64, DumpHeader


class HeaderDump(PhysicalDump):
    """A dump without pages."""

    TYPES: ClassVar = frozenset({3})
    MACHINES: ClassVar = frozenset({MACHINE_X64, MACHINE_ARM64})

    def __init__(self, data: mmap, header: DumpHeader, where: str) -> None:
        super().__init__(data, header, where)
        self.required_size = HEADER_SIZE
        self.warnings.append("the dump is a header alone: it holds no memory, modules or stack")

    def read(self, address: PhysicalAddress, size: int) -> bytes | None:
        """Nothing: there are no pages."""
        return None
