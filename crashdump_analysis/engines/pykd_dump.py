"""A dump as Microsoft's engine sees it: what the portable code reads of the engine's answers."""

from __future__ import annotations

import ntpath
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from crashdump_analysis.dump.format import DumpFormat
from crashdump_analysis.dump.header import DumpHeader
from crashdump_analysis.engines import Report
from crashdump_analysis.engines.worker import WorkerEngine
from crashdump_analysis.memory import Memory
from crashdump_analysis.modules import Module, Modules

_PAGE = 0x1000


class EngineMemory(Memory):
    """Virtual memory as the engine reads it out of the dump and out of image files it has.

    by_page: whether the dump holds whole pages, so that more may be read at once.
    """

    def __init__(self, engine: WorkerEngine, *, by_page: bool) -> None:
        self._engine = engine
        self._by_page = by_page
        self._known: dict[tuple[int, int], bytes] = {}

    def read_some(self, address: int, size: int) -> bytes:
        """See Memory."""
        if size <= 0 or not 0 <= address <= (1 << 64) - size:
            return b""
        if not self._by_page:
            return self._read(address, size)
        first = address - address % _PAGE
        pages = bytearray()
        for page in range(first, address + size, _PAGE):
            part = self._read(page, _PAGE)
            pages += part
            if len(part) < _PAGE:
                break
        return bytes(pages[address - first : address - first + size])

    def _read(self, address: int, size: int) -> bytes:
        key = address, size
        if key not in self._known:
            self._known[key] = self._engine.read([key])[0] or b""
        return self._known[key]


class EngineContents(DumpFormat):
    """A dump whose memory and modules are the engine's; the rest is what the file has."""

    def __init__(self, file: DumpFormat, memory: Memory, answer: Report) -> None:
        super().__init__(file.data, file.header, file.where)
        self._file = file
        self._answer = answer
        self.required_size = file.required_size
        self.memory = memory
        self.warnings = list(answer["warnings"])

    @property
    def modules(self) -> Modules:
        """See DumpFormat."""
        return Modules(
            Module(
                one["name"],
                ntpath.basename(one["image"]) or one["name"],
                one["image"],
                one["base"],
                one["size"],
                0,
                one["checksum"],
                one["timestamp"],
            )
            for one in self._answer["modules"]
            if not one["unloaded"]
        )

    @property
    def debugger_data(self) -> bytes | None:
        """See DumpFormat."""
        return self._file.debugger_data

    @property
    def processor_block(self) -> bytes | None:
        """See DumpFormat."""
        return self._file.processor_block

    @property
    def thread(self) -> bytes | None:
        """See DumpFormat."""
        return self._file.thread

    @property
    def process(self) -> bytes | None:
        """See DumpFormat."""
        return self._file.process

    @property
    def unloaded_drivers(self) -> bytes | None:
        """See DumpFormat."""
        return self._file.unloaded_drivers

    @property
    def end(self) -> int:
        """See DumpFormat."""
        return self._file.end


def engine_header(header: DumpHeader, answer: Report) -> DumpHeader:
    """The header with what the engine says in place of what the file says."""
    system, bug_check = answer["system"], answer["bug_check"]
    first, second, third, fourth = bug_check["parameters"]
    return replace(
        header,
        bug_check_code=bug_check["code"],
        parameters=(first, second, third, fourth),
        build=system["build"],
        machine=system["machine"],
        processors=system["processors"],
        time=datetime.fromtimestamp(system["time"], UTC) if system["time"] else None,
        uptime=timedelta(seconds=system["uptime"]) if system["uptime"] else header.uptime,
    )
