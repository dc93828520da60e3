"""From an open dump to a report: the portable engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import ClassVar

from crashdump_analysis.bugchecks import Description, describe
from crashdump_analysis.bugchecks.faults import Crash, Fault, find_fault
from crashdump_analysis.debugger_data import DebuggerData, read_debugger_data
from crashdump_analysis.dump import Dump, open_dump
from crashdump_analysis.dump.header import MACHINE_ARM64
from crashdump_analysis.errors import DumpError
from crashdump_analysis.loaded_image import Images
from crashdump_analysis.modules import Module, Modules, loaded_modules
from crashdump_analysis.owners import Owners, owners_with
from crashdump_analysis.processor import crashed_processor
from crashdump_analysis.registers import Registers, from_context
from crashdump_analysis.registers_arm64 import arm64_frames, from_arm64_context
from crashdump_analysis.report import (
    BugCheck,
    BugCheckParameter,
    Context,
    Culprit,
    DumpInfo,
    LoadedModule,
    Machine,
    Processor,
    Report,
    StackFrame,
    UnloadedDriver,
)
from crashdump_analysis.secondary_data import secondary_data
from crashdump_analysis.stack import Frame, walk
from crashdump_analysis.symbols import SourceFrame, SymbolPath, Symbols
from crashdump_analysis.triage.judgement import judge
from crashdump_analysis.unloaded_drivers import triage_unloaded_drivers, unloaded_drivers

Paths = str | PathLike[str] | Iterable[str | PathLike[str]]
"""One path, or several."""
_VENDORS = ("GenuineIntel", "AuthenticAMD")  # as CPUID has them, and the kernel after it


def triage(
    path: str | PathLike[str],
    symbols: SymbolPath | Paths = (),
    owners: Paths = (),
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Opens a kernel dump and reports on it.

    path: of a dump, plain or compressed, of a zip with one dump, or PATH!member (`dump_paths` names
    them). symbols: a folder with PDBs and images, or a symbol path as Windows' debuggers read it,
    or several; a SymbolPath made once serves many dumps. owners: a file of owner rules, or several,
    read before those that come along. progress: is told of unpacking that takes more than 2 s.
    Raises DumpError where the file is no dump that is supported or a rule is wrong, and OSError
    where a file cannot be read or unpacked here; what is missing inside a dump is a warning in the
    report.
    """
    with open_dump(path, progress) as dump:
        path_of_symbols = symbols if isinstance(symbols, SymbolPath) else several(symbols)
        return Analysis(dump, Symbols(path_of_symbols), owners_with(several(owners))).report()


def several(paths: Paths) -> tuple[str | PathLike[str], ...]:
    """The paths; a single one would else be taken for one a letter."""
    return (paths,) if isinstance(paths, (str, PathLike)) else tuple(paths)


@dataclass(frozen=True)
class _Walk:
    """The stack to show, where on it the fault is, and its registers with their source.

    at_entry: the header's registers are those at the first instruction of KeBugCheckEx.
    """

    frames: Sequence[Frame]
    fault: Fault | None
    index: int
    at_entry: bool = False

    @property
    def first(self) -> int:
        """Number of the first frame that may be at fault: KeBugCheckEx itself never is."""
        return 1 if self.at_entry and self.fault is None and len(self.frames) > 1 else self.index


class Analysis:
    """One dump on its way to a report. Another engine overrides what it finds by other means."""

    engine: ClassVar[str] = "portable"

    def __init__(self, dump: Dump, symbols: Symbols, owners: Owners | None = None) -> None:
        self.dump = dump
        self.symbols = symbols
        self.owners = owners or owners_with(())
        self.warnings: list[str] = []
        header = dump.header
        if header.bug_check_text is not None:
            raise DumpError(
                f"{dump.path} at 0x38",
                expected="a bug check's code and parameters",
                found=f"text in the bug-check fields, {header.bug_check_text!r}: such a file is "
                "the memory of a machine that did not crash (DumpIt writes words there)",
            )
        self.memory = dump.memory
        if dump.size < dump.contents.required_size:
            self.warnings.append(
                f"the dump is cut: {dump.size} of {dump.contents.required_size} bytes are there"
            )
        self.debugger_data = self._debugger_data()
        self.modules = self._modules()
        self.images = Images(self.memory, self.modules, symbols)
        self.description: Description = describe(header.stop_code, header.parameters)
        self._secondary, problems = secondary_data(dump.contents.data, dump.contents.end)
        self.warnings += problems

    def _debugger_data(self) -> DebuggerData | None:
        copy = self.dump.contents.debugger_data
        found, problems = read_debugger_data(self.memory, self.dump.header, copy)
        self.warnings += problems
        return found

    def _modules(self) -> Modules:
        kept = self.dump.contents.modules
        if kept is not None:
            return kept
        kernel = self.debugger_data.kernel_base if self.debugger_data else None
        head = self.dump.header.ps_loaded_module_list
        modules, problems = loaded_modules(self.memory, head, kernel)
        self.warnings += problems
        return modules

    def report(self) -> Report:
        """Everything that can be said of the dump."""
        description = self.description
        walked = self._walk()
        stack, starts = self._symbolize(walked)
        start = starts[walked.index]
        processor, unloaded = self._processor(), self._unloaded_drivers()
        judgement = judge(
            replace(self._crash(walked.frames), unloaded=unloaded),
            description,
            walked.fault,
            stack,
            start=starts[walked.first],
            owners=self.owners,
            image_at=self.images.at,
            build_of=self._build,
            process=processor.process_name or "",
            vendor=self._vendor(),
        )
        return Report(
            self.engine,
            self._dump_info(),
            self._machine(),
            self._bug_check(),
            self._as_sure(judgement.culprit),
            judgement.bucket,
            self._context(walked, start),
            tuple(stack),
            tuple(self._module(one) for one in self.modules),
            self._all_warnings(),
            processor,
            unloaded,
            self._secondary,
        )

    def _machine(self) -> Machine:
        header, data = self.dump.header, self.debugger_data
        return Machine(
            header.machine_name,
            header.processors,
            header.build,
            data.build_lab if data else "",
            ("encoded" if data.decoded else "plain") if data else None,
        )

    def _processor(self) -> Processor:
        registers = self._header_registers()
        return crashed_processor(
            self.dump.contents, self.debugger_data, registers.rip, registers.rsp
        )

    def _unloaded_drivers(self) -> tuple[UnloadedDriver, ...]:
        kept = self.dump.contents.unloaded_drivers
        if kept is not None:
            return triage_unloaded_drivers(kept)
        data = self.debugger_data
        return unloaded_drivers(self.memory, data) if data else ()

    def _header_registers(self) -> Registers:
        """The registers in the dump's header; none where the record is of another kind."""
        if self.dump.header.machine == MACHINE_ARM64:
            return from_arm64_context(self.dump.context)
        return from_context(self.dump.context)

    def _all_warnings(self) -> tuple[str, ...]:
        contents = self.dump.contents.warnings
        return tuple(dict.fromkeys((*self.warnings, *contents, *self.symbols.warnings)))

    def _dump_info(self) -> DumpInfo:
        header = self.dump.header
        return DumpInfo(
            str(self.dump.path),
            header.dump_type,
            header.type_name,
            self.dump.size,
            self.dump.contents.required_size,
            header.time,
            header.uptime.total_seconds() if header.uptime is not None else None,
        )

    def _bug_check(self) -> BugCheck:
        header, described = self.dump.header, self.description
        parameters = tuple(
            BugCheckParameter(one.value, one.name, one.meaning) for one in described.parameters
        )
        return BugCheck(
            header.stop_code, header.bug_check_code, described.name, described.meaning, parameters
        )

    def _walk(self) -> _Walk:
        """The stack from KeBugCheckEx, and the fault on it; or the stack from the fault."""
        header, registers = self.dump.header, self._header_registers()
        if header.machine == MACHINE_ARM64:
            frames, problems = self._stack_of_arm64(registers)
            self.warnings += problems
            return _Walk(frames, None, 0)
        crash = self._crash(())
        at_entry = crash.raw_parameter(0) is not None
        frames, problems = self._stack(registers, entered=at_entry)
        crash = replace(crash, stack=frames)
        fault = find_fault(self.description.family, crash)
        if fault is None:
            if self.description.family:
                self.warnings.append(
                    f"the registers at the fault of a {self.description.name} were not found"
                )
            self.warnings += problems
            return _Walk(frames, None, 0, at_entry)
        place = (fault.registers.rip, fault.registers.rsp)
        for index, frame in enumerate(frames):
            if (frame.registers.rip, frame.registers.rsp) == place and not frame.guess:
                self.warnings += problems
                # A trap frame holds some of the registers, and the walk knows others.
                whole = fault.registers.completed_by(frame.registers)
                return _Walk(frames, replace(fault, registers=whole), index)
        frames, problems = self._stack_from(fault)
        self.warnings += problems
        if not fault.without_bug_check:
            self.warnings.append(
                "the stack of the bug check does not lead to the fault; the stack shown begins "
                "there"
            )
        return _Walk(frames, fault, 0)

    def _crash(self, frames: Sequence[Frame]) -> Crash:
        header = self.dump.header
        return Crash(
            header.stop_code,
            header.parameters,
            self.memory,
            self._header_registers(),
            frames,
            self.debugger_data,
            self.modules,
        )

    def _stack(self, registers: Registers, *, entered: bool) -> tuple[list[Frame], list[str]]:
        """The stack from the dump's registers, and what was wrong with it."""
        return walk(self.memory, self.images, registers, entered=entered)

    def _stack_of_arm64(self, registers: Registers) -> tuple[list[Frame], list[str]]:
        if not registers.by_name():
            return [Frame(registers, trapped=True)], ["the header holds no ARM64 registers"]
        return arm64_frames(registers, self.modules), [
            "stacks of ARM64 are not unwound: the second frame is where lr points to"
        ]

    def _stack_from(self, fault: Fault) -> tuple[list[Frame], list[str]]:
        """The stack from a fault that does not lie on the other one."""
        return walk(self.memory, self.images, fault.registers)

    def inlined_at(self, address: int) -> list[SourceFrame]:
        """The functions inlined at an address, innermost first."""
        module = self.modules.at(address)
        functions = self._functions(module, address) if module else []
        return [one for one in functions if one.inline]

    def _symbolize(self, walked: _Walk) -> tuple[list[StackFrame], list[int]]:
        """Frames with names, inlined functions as frames of their own; and where each began."""
        out: list[StackFrame] = []
        starts = []
        for number, frame in enumerate(walked.frames):
            starts.append(len(out))
            # The first frame is where the registers were taken: nothing interrupted KeBugCheckEx.
            trapped = frame.trapped and (
                number > 0 or (walked.fault is not None and not walked.index)
            )
            module = self.modules.at(frame.lookup_address)
            functions = self._functions(module, frame.lookup_address) if module else []
            out += [self._frame(frame, module, one, trapped) for one in functions or (None,)]
        return out, starts

    def _functions(self, module: Module, address: int) -> list[SourceFrame]:
        return self.images.of(module).functions(address - module.base)

    def _frame(
        self, frame: Frame, module: Module | None, function: SourceFrame | None, trapped: bool
    ) -> StackFrame:
        instruction = frame.registers.rip
        offset = None
        if module and function is None:
            offset = instruction - module.base
        elif module and function and not function.inline and function.start is not None:
            offset = instruction - module.base - function.start
        return StackFrame(
            module.name if module else None,
            function.function if function else None,
            function.file if function else None,
            function.line if function else None,
            offset,
            instruction,
            frame.registers.rsp,
            function.inline if function else False,
            trapped,
            frame.guess,
        )

    def _build(self, module: Module) -> str:
        """What tells builds of a module apart: its timestamp and size, as symbol stores have it."""
        return self.images.of(module).build

    def _vendor(self) -> str:
        """The processor's maker, by its letters in the control block of the dump."""
        block = self.dump.contents.processor_block or b""
        return next((one for one in _VENDORS if one.encode() in block), "")

    def _as_sure(self, culprit: Culprit) -> Culprit:
        """The culprit, less sure where the names in it are of a PDB that may be another build's."""
        module = self.modules.named(culprit.module) if culprit.module else None
        if module is None or self.images.of(module).verified:
            return culprit
        return replace(
            culprit,
            reason=f"{culprit.reason}; its symbols are unverified",
            confidence="medium" if culprit.confidence == "high" else "low",
        )

    def _context(self, walked: _Walk, start: int) -> Context:
        if walked.fault is None:
            source = "the dump's header" + (", at KeBugCheckEx" if walked.at_entry else "")
            registers = self._header_registers().by_name()
            return Context(source, registers, None, None, None, 0)
        instruction = walked.fault.registers.rip
        module = self.modules.at(instruction)
        return Context(
            walked.fault.source,
            walked.fault.registers.by_name(),
            instruction,
            module.name if module else None,
            instruction - module.base if module else None,
            start,
        )

    def _module(self, module: Module) -> LoadedModule:
        image = self.images.of(module)
        symbols, identity = image.pdb_in_use, image.identity
        return LoadedModule(
            module.name,
            module.image,
            module.path,
            module.base,
            module.size,
            image.timestamp or None,
            module.checksum,
            str(identity) if identity else None,
            str(symbols.path) if symbols else None,
            image.verified if symbols else None,
            image.unwind_source,
        )
