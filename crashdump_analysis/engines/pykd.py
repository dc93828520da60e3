"""Microsoft's engine: the same report, out of what dbgeng.dll says of a dump.

Memory, modules, registers, stacks and names are the engine's. What follows from them (the words of
the bug check, where its fault is, culprit, bucket and family) is found by the same code as in the
portable engine's report. The dump's file is opened here too, for its header.
"""

from __future__ import annotations

import contextlib
import ntpath
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from mmap import mmap
from pathlib import Path
from typing import Final

from crashdump_analysis.bugchecks.faults import Fault
from crashdump_analysis.dump import Dump, open_dump
from crashdump_analysis.dump.format import DumpFormat
from crashdump_analysis.dump.header import HEADER_SIZE, MACHINE_ARM64, DumpHeader, read_header
from crashdump_analysis.dump.source import mapped
from crashdump_analysis.engines import EngineError, Place, StackFrame
from crashdump_analysis.engines import Report as EngineReport
from crashdump_analysis.engines.analysis_host import AnalysisHost
from crashdump_analysis.engines.analyze import COMMAND, Analyze, is_missing, parse
from crashdump_analysis.engines.base import Answer, EngineOptions, TriageEngine
from crashdump_analysis.engines.portable import Engine as PortableEngine
from crashdump_analysis.engines.worker import Progress, WorkerEngine, silent
from crashdump_analysis.errors import DumpError
from crashdump_analysis.memory import Memory
from crashdump_analysis.modules import Module, Modules
from crashdump_analysis.owners import Owners, owners_with
from crashdump_analysis.registers import NAMES, Registers
from crashdump_analysis.registers_arm64 import ARM64_NAMES, Arm64Registers
from crashdump_analysis.report import LoadedModule, Report
from crashdump_analysis.stack import Frame, walk
from crashdump_analysis.symbols import SourceFrame, Symbols
from crashdump_analysis.triage.analysis import Analysis

PYTHON_VARIABLE: Final = "LAB_PYKD_PYTHON"
ANALYZE_SECONDS: Final = 600.0  # it may wait for a symbol server

# What is wrong with the dump, not with the way to the engine.
_OF_DUMP = frozenset({"dump-missing", "dump-refused", "not-a-kernel-dump", "engine-failed"})
# Not to be tried again for the next dump.
_UNAVAILABLE = frozenset(
    {
        "engine-missing",
        "setup",
        "terms",
        "host-unreachable",
        "host-key",
        "host-refused",
        "host-setup",
    }
)
_PAGE = 0x1000
_COPIED = 1 << 24  # bytes at once


def pykd_host(host: AnalysisHost | None = None, *, say: Progress = silent) -> WorkerEngine:
    """The engine where it is to run: on the analysis host, on this Windows, or under Wine."""
    if host is not None:
        try:
            from crashdump_analysis.engines.ssh import SshEngine  # noqa: PLC0415
        except ImportError as error:
            raise EngineError(
                "host-setup",
                f"an analysis host needs a package that is not here ({error.name}): "
                "pip install 'bugcheck-lab[lab]'",
            ) from None
        return SshEngine(host, say=say)
    if sys.platform == "win32" or PYTHON_VARIABLE in os.environ:
        from crashdump_analysis.engines.windows import WindowsEngine  # noqa: PLC0415

        return WindowsEngine(say=say)
    from crashdump_analysis.engines.wine import WineEngine  # noqa: PLC0415

    return WineEngine(say=say)


@dataclass(frozen=True)
class Refusal:
    """Why there is no report, in words. of_dump: because of the dump, not of the way there."""

    words: str
    of_dump: bool


class Microsoft:
    """Reports of Microsoft's engine, one dump after another in one worker."""

    def __init__(self, options: EngineOptions, owners: Owners) -> None:
        self._options = options
        self._owners = owners
        self._symbols = [
            _without_servers(one) if options.offline else one for one in options.symbols
        ]
        self._engine: WorkerEngine | None = None
        self._unavailable: Refusal | None = None

    def close(self) -> None:
        """Ends the worker."""
        if self._engine:
            self._engine.shut_down()
            self._engine = None

    def report(self, path: str) -> Report | Refusal:
        """The engine's report on a dump, or why there is none. Raises OSError."""
        if self._unavailable is not None:
            return self._unavailable
        try:
            if self._engine is None:
                self._engine = pykd_host(self._options.analysis_host(), say=self._options.say)
            with _opened(path, self._options.say) as (file, dump):
                return self._report(self._engine, file, dump)
        except EngineError as error:
            refusal = Refusal(f"{error.kind}: {error}", error.kind in _OF_DUMP)
            if error.kind in _UNAVAILABLE:
                self._unavailable = refusal  # the next dump would wait for nothing
            return refusal
        except DumpError as error:
            return Refusal(str(error), of_dump=True)

    def _report(self, engine: WorkerEngine, file: str, dump: Dump) -> Report:
        self._options.say(f"Microsoft's engine opens it, {engine.place}")
        kind = engine.open(file, self._symbols)
        answer = engine.report()
        self._options.say(f"Microsoft's engine {engine.place}: {kind} dump")
        report = _PykdAnalysis(engine, kind, answer, dump, self._owners).report()
        analyze, warning = _analyze(engine)
        with contextlib.suppress(EngineError):
            engine.close()  # which deletes what was sent
        return replace(report, analyze=analyze, warnings=(*report.warnings, *warning))


class Engine(TriageEngine):
    """Microsoft's engine; where it gives no report, the portable engine's, which says so."""

    def __init__(self, options: EngineOptions) -> None:
        super().__init__(options)
        self._portable = PortableEngine(options)
        self._microsoft = Microsoft(options, owners_with(options.owners))

    def close(self) -> None:
        """See TriageEngine."""
        self._microsoft.close()

    def answer(self, path: str) -> Answer:
        """See TriageEngine."""
        try:
            theirs = self._microsoft.report(path)
        except OSError as error:
            return Answer(None, str(error))
        if not isinstance(theirs, Refusal):
            return Answer(theirs)
        ours = self._portable.answer(path).report
        if ours is not None:
            warning = f"this is the portable engine's report: Microsoft's gave none: {theirs.words}"
            ours = replace(ours, warnings=(warning, *ours.warnings))
        return Answer(ours, theirs.words)


@contextlib.contextmanager
def _opened(path: str, say: Progress) -> Iterator[tuple[str, Dump]]:
    """A dump as a plain file, and what is known of it here. Raises DumpError, OSError."""
    with contextlib.ExitStack() as stack:
        try:
            dump = stack.enter_context(open_dump(path, say))
        except DumpError:
            # Microsoft's engine may think otherwise, as long as there is a header of such a dump.
            data = stack.enter_context(mapped(Path(path), say))
            header = read_header(data[:HEADER_SIZE], path)
            dump = Dump(Path(path), len(data), header, b"", _Unread(data, header, path))
        yield stack.enter_context(_plain_file(path, dump.contents)), dump


class _Unread(DumpFormat):
    """What is known of a dump that the portable engine does not take: nothing."""

    def __init__(self, data: mmap, header: DumpHeader, where: str) -> None:
        super().__init__(data, header, where)
        self.required_size = header.required_size or len(data)
        self.memory = _NoMemory()


class _NoMemory(Memory):
    def read_some(self, address: int, size: int) -> bytes:
        """See Memory."""
        return b""


@contextlib.contextmanager
def _plain_file(path: str, contents: DumpFormat) -> Iterator[str]:
    """The path of a file that is the dump itself: a temporary one where it was unpacked."""
    data = contents.data
    file = Path(path)
    if file.is_file() and file.stat().st_size == len(data):
        with file.open("rb") as plain:
            if plain.read(8) == data[:8]:
                yield path
                return
    with tempfile.TemporaryDirectory(prefix="dump-") as folder:
        file = Path(folder, "MEMORY.DMP")
        with file.open("wb") as out:
            for start in range(0, len(data), _COPIED):
                out.write(data[start : start + _COPIED])
        yield str(file)


def _has_image(place: Place) -> bool:
    """Whether the engine has found the image's file: it then gives a path with a drive or host."""
    return bool(re.match(r"[A-Za-z]:[\\/]|\\\\", place["loaded_image"]))


def _without_servers(symbol_path: str) -> str:
    """A symbol path of the debuggers without what would go over the network by HTTP."""
    elements = (
        "*".join(p for p in one.split("*") if "://" not in p) for one in symbol_path.split(";")
    )
    return ";".join(
        one for one in elements if one.lower() not in ("srv", "symsrv", "symsrv*symsrv.dll")
    )


def _analyze(engine: WorkerEngine) -> tuple[Analyze | None, tuple[str, ...]]:
    """What `!analyze -v` says, or a warning that there is none."""
    try:
        text = engine.command(COMMAND, deadline=ANALYZE_SECONDS)
    except EngineError as error:
        return None, (f"!analyze: {error.kind}: {error}",)
    if is_missing(text):
        return None, (f"there is no !analyze {engine.place}: the engine's ext.dll is not there",)
    return parse(text), ()


class _EngineMemory(Memory):
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


class _EngineContents(DumpFormat):
    """A dump whose memory and modules are the engine's; the rest is what the file has."""

    def __init__(self, file: DumpFormat, memory: Memory, answer: EngineReport) -> None:
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


def _header(header: DumpHeader, answer: EngineReport) -> DumpHeader:
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


class _PykdAnalysis(Analysis):
    """The analysis of a dump that is open in the engine."""

    engine = "pykd"

    def __init__(
        self,
        worker: WorkerEngine,
        kind: str,
        answer: EngineReport,
        dump: Dump,
        owners: Owners,
    ) -> None:
        self._worker = worker
        self._answer = answer
        self._in_engine = {one["base"]: one for one in answer["modules"] if not one["unloaded"]}
        self._names: dict[int, list[SourceFrame]] = {}
        self._symbol_files: dict[int, str] = {}
        memory = _EngineMemory(worker, by_page=kind != "triage")
        contents = _EngineContents(dump.contents, memory, answer)
        dump = replace(dump, header=_header(dump.header, answer), contents=contents)
        super().__init__(dump, Symbols(), owners)

    def _header_registers(self) -> Registers:
        """The registers that the engine shows when it has opened the dump."""
        values = self._answer["registers"]
        if self.dump.header.machine == MACHINE_ARM64:
            named = {name: values[name] for name in ARM64_NAMES if name in values}
            arm64 = Arm64Registers(rip=named.get("pc", 0), named=named)
            arm64.rsp = named.get("sp", 0)
            return arm64
        return Registers(
            [values.get(name) for name in NAMES],
            values.get("rip", 0),
            values.get("efl"),
            values.get("cs"),
        )

    def _stack(self, registers: Registers, *, entered: bool) -> tuple[list[Frame], list[str]]:
        return self._frames(self._answer["stack"], registers, entered=entered), []

    def _stack_from(self, fault: Fault) -> tuple[list[Frame], list[str]]:
        if fault.record is None:
            return super()._stack_from(fault)
        kind, address = fault.record
        show = self._worker.trap_frame if kind == "trap" else self._worker.context_record
        try:
            scope = show(address)
        except EngineError as error:
            if error.kind != "engine-failed":
                raise
            return [Frame(fault.registers, trapped=True)], [f"no stack of the fault: {error}"]
        return self._frames(scope["stack"], fault.registers, entered=False), []

    def _stack_of_arm64(self, registers: Registers) -> tuple[list[Frame], list[str]]:
        return self._frames(self._answer["stack"], registers, entered=True), []

    def _frames(
        self, stack: Sequence[StackFrame], registers: Registers, *, entered: bool
    ) -> list[Frame]:
        """The engine's frames; what it gives of inlined functions is kept with their names."""
        groups = [
            list(group)
            for _, group in groupby(stack, lambda one: (one["instruction"], one["child_sp"]))
        ]
        # Which frames were interrupted the engine does not tell.
        trapped = {
            (one.registers.rip, one.registers.rsp)
            for one in self._walked(registers, entered=entered)
            if one.trapped
        }
        frames = []
        for number, group in enumerate(groups):
            place = group[-1]["instruction"], group[-1]["child_sp"]
            found = Registers() if number else registers.copy()
            found.rip, found.rsp = place
            frames.append(Frame(found, trapped=number == 0 or place in trapped))
        # The engine names the line behind a call; the report has that of the call. And only now
        # has the engine looked for symbols and images.
        places = self._worker.lookup([one.lookup_address for one in frames])
        self._learn_names(groups, frames, places)
        # A dump that was cut may leave the engine without a stack, which it has warned of.
        return self._marked(frames, places, entered=entered) or [Frame(registers, trapped=True)]

    def _marked(
        self, frames: list[Frame], places: Sequence[Place], *, entered: bool
    ) -> list[Frame]:
        """The frames, those behind one whose size the engine cannot know as guesses."""
        marked = []
        certain = True
        for number, (frame, place) in enumerate(zip(frames, places, strict=True)):
            # What unwinding leads to is code of a module.
            certain = certain and (number == 0 or frame.trapped or place["module"] is not None)
            marked.append(replace(frame, guess=not certain))
            certain = certain and (
                (number == 0 and entered)
                or _has_image(place)
                or self._has_unwind_data(frame.lookup_address)
            )
        return marked

    def _walked(self, registers: Registers, *, entered: bool) -> list[Frame]:
        if self.dump.header.machine == MACHINE_ARM64:
            return []
        return walk(self.memory, self.images, registers, entered=entered)[0]

    def _has_unwind_data(self, address: int) -> bool:
        """Whether the dump, or a file that the engine has, tells the size of frames there."""
        module = self.modules.at(address)
        try:
            if module is not None:
                self.images.of(module).runtime_function(address - module.base)
        except LookupError:
            return False
        return module is not None

    def _learn_names(
        self, groups: list[list[StackFrame]], frames: list[Frame], places: Sequence[Place]
    ) -> None:
        for group, frame, place in zip(groups, frames, places, strict=True):
            address = frame.lookup_address
            module = self.modules.at(address)
            if module is None or place["function"] is None:
                continue
            if not self._are_its_symbols(module, place):
                continue
            start = address - (place["displacement"] or 0) - module.base
            self._names[address] = [
                *(
                    SourceFrame(one["function"] or "", one["file"], one["line"], None, inline=True)
                    for one in group[:-1]
                ),
                SourceFrame(place["function"], place["file"], place["line"], start, inline=False),
            ]

    def _are_its_symbols(self, module: Module, place: Place) -> bool:
        """Whether the symbols that name a place belong to the module."""
        if place["symbols"] in ("none", "export", "deferred"):
            return False  # exports alone mislead
        # Without the image the engine takes a PDB by its file name alone.
        checked = _has_image(place) or self.images.of(module).in_dump is not None
        if place["symbols_mismatch"] or not checked:
            self.warnings.append(
                f"{module.name}: the engine's symbols are left out: they "
                + (
                    "belong to another build"
                    if checked
                    else "were found by their name alone, for want of the image file"
                )
            )
            return False
        self._symbol_files[module.base] = place["symbol_file"]
        return True

    def _functions(self, module: Module, address: int) -> list[SourceFrame]:
        return self._names.get(address, [])

    def _module(self, module: Module) -> LoadedModule:
        one = self._in_engine[module.base]
        return replace(
            super()._module(module),
            timestamp=one["timestamp"] or None,
            checksum=one["checksum"],
            symbols=self._symbol_files.get(module.base),
        )

    def _all_warnings(self) -> tuple[str, ...]:
        self.symbols.warnings.clear()  # of the portable engine's symbols, which are not asked
        return super()._all_warnings()
