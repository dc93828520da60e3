"""The analysis of a dump that is open in Microsoft's engine: its stacks, names and registers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from crashdump_analysis.bugchecks.faults import Fault
from crashdump_analysis.dump import Dump
from crashdump_analysis.dump.header import MACHINE_ARM64
from crashdump_analysis.engines import EngineError, Place, Report, StackFrame
from crashdump_analysis.engines.pykd_dump import EngineContents, EngineMemory, engine_header
from crashdump_analysis.engines.worker import WorkerEngine
from crashdump_analysis.modules import Module
from crashdump_analysis.owners import Owners
from crashdump_analysis.registers import NAMES, Registers
from crashdump_analysis.registers_arm64 import ARM64_NAMES, Arm64Registers
from crashdump_analysis.report import LoadedModule
from crashdump_analysis.stack import Frame, walk
from crashdump_analysis.symbols import SourceFrame, Symbols
from crashdump_analysis.triage.analysis import Analysis


class PykdAnalysis(Analysis):
    """The analysis of a dump that is open in the engine."""

    engine = "pykd"

    def __init__(
        self,
        worker: WorkerEngine,
        kind: str,
        answer: Report,
        dump: Dump,
        owners: Owners,
    ) -> None:
        self._worker = worker
        self._answer = answer
        self._in_engine = {one["base"]: one for one in answer["modules"] if not one["unloaded"]}
        self._names: dict[int, list[SourceFrame]] = {}
        self._symbol_files: dict[int, str] = {}
        memory = EngineMemory(worker, by_page=kind != "triage")
        contents = EngineContents(dump.contents, memory, answer)
        dump = replace(dump, header=engine_header(dump.header, answer), contents=contents)
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


def _has_image(place: Place) -> bool:
    """Whether the engine has found the image's file: it then gives a path with a drive or host."""
    return bool(re.match(r"[A-Za-z]:[\\/]|\\\\", place["loaded_image"]))
