"""Microsoft's engine says the same of every crash: a judge of its own, beside the comparison.

It is asked for its own report, and neither the comparison nor the pykd engine of lab triage has a
part in it. What it must agree on is bug check, parameters, modules, registers and every frame.
Where it and the report are made to differ, a rule says how. Skipped where the engine's terms were
not accepted.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PureWindowsPath

import pefile
import pytest

from crashdump_analysis import Report, triage
from crashdump_analysis.engines import StackFrame as EngineFrame
from crashdump_analysis.report import StackFrame
from images.test_kernel.build import BUILT
from tests.integration.conftest import CrashFactory
from tests.oracle.dbgeng import judge
from tests.support.sensor import BUGS, ONE_OF_EACH, built
from tests.support.symbols import Place, places

PDBS = {"nt": BUILT / "ntkrnlmp.pdb"}
KTRAP_FRAME = {
    "rax": 0x30,
    "rcx": 0x38,
    "rdx": 0x40,
    "r8": 0x48,
    "r9": 0x50,
    "r10": 0x58,
    "r11": 0x60,
}
"""Offsets of the volatile registers (public symbols)."""


@dataclass(frozen=True)
class Shown:
    """A frame as an engine shows it: names, and where the instruction and stack pointer are."""

    module: str | None
    function: str | None
    file: str
    line: int | None
    offset: int | None
    instruction: int
    stack_pointer: int
    inline: bool


def shown_by_engine(frame: EngineFrame) -> Shown:
    return Shown(
        frame["module"],
        frame["function"],
        _file_name(frame["file"]),
        frame["line"],
        None if frame["inline"] else frame["displacement"],
        frame["instruction"],
        frame["child_sp"],
        frame["inline"],
    )


def _file_name(path: str | None) -> str:
    return PureWindowsPath((path or "").replace("/", "\\")).name


def engine_places(pdb: Path, rva: int, *, first: bool) -> list[Place]:
    """What this engine shows at an instruction: it looks at two addresses.

    A function's own line is that of the instruction the frame names, so after a call it is the
    line behind the call. Functions inlined there, and their lines, are those of the byte before it
    as long as that is in the same function: right after a call, one byte early where the
    instruction was interrupted. In the first frame, where the processor was, nothing is inlined
    that is not at the instruction itself. The report looks at the byte before a return address and
    at an interrupted instruction itself.
    """
    at, before = places(pdb, rva), places(pdb, rva if first else rva - 1)
    if not before or before[-1].function != at[-1].function:
        before = at
    return [*before[:-1], at[-1]]


def expected_of_engine(report: Report, pdbs: dict[str, Path]) -> list[Shown]:
    """The report's stack as the engine should show it."""
    bases = {one.name: one.base for one in report.modules}
    expected = []
    groups = groupby(report.stack, lambda one: (one.instruction, one.stack_pointer))
    for number, (_, group) in enumerate(groups):
        *_, own = group  # the function itself, behind those inlined in it
        assert own.module is not None
        rva = own.instruction - bases[own.module]
        *inlined, place = engine_places_or_own(pdbs[own.module], rva, own, first=number == 0)
        for one in inlined:
            expected.append(_shown(own, one, inline=True))
        expected.append(_shown(own, place, inline=False))
    return expected


def engine_places_or_own(pdb: Path, rva: int, own: StackFrame, *, first: bool) -> list[Place]:
    """As `engine_places`, but a function without lines is shown as the report has it."""
    if own.file is None:
        return [Place(own.function or "", "", 0)]
    return engine_places(pdb, rva, first=first)


def _shown(own: StackFrame, place: Place, *, inline: bool) -> Shown:
    return Shown(
        own.module,
        place.function,
        _file_name(place.file),
        place.line or None,
        None if inline else own.offset,
        own.instruction,
        own.stack_pointer,
        inline,
    )


def test_the_engines_rule_about_inlined_functions() -> None:
    """It is needed: there are instructions at which the byte before tells another story."""
    pdb = built("a-inlined") / "sensor.pdb"
    differing = same = 0
    with pefile.PE(str(pdb.with_name("sensor.sys")), fast_load=True) as image:
        (text,) = [one for one in image.sections if one.Name.startswith(b".text")]
    for rva in range(text.VirtualAddress + 1, text.VirtualAddress + text.Misc_VirtualSize):
        try:
            at = places(pdb, rva)
            shown = engine_places(pdb, rva, first=False) if at else []
        except TypeError:
            continue  # no lines there
        if shown:
            assert shown[-1] == at[-1]
            differing += shown != at
            same += shown == at
    assert differing > 100
    assert same > differing


@pytest.mark.parametrize(("kind", "variant"), ONE_OF_EACH)
def test_microsofts_engine_agrees(crash_of: CrashFactory, kind: str, variant: str) -> None:
    engine = judge()
    crash = crash_of(kind, variant)
    folders = [BUILT, built(variant)]
    engine.open(crash.dump, symbols=folders, images=folders)
    theirs, ours = engine.report(), triage(crash.dump, symbols=folders)
    assert ours.bug_check.raw_code == theirs["bug_check"]["code"]
    assert [one.value for one in ours.bug_check.parameters] == theirs["bug_check"]["parameters"]
    assert sorted(
        (one.name, one.base, one.size, one.timestamp, one.checksum) for one in ours.modules
    ) == sorted(
        (one["name"], one["base"], one["size"], one["timestamp"], one["checksum"])
        for one in theirs["modules"]
        if not one["unloaded"]
    )
    system = theirs["system"]
    assert (ours.machine.build, ours.machine.processors) == (system["build"], system["processors"])
    assert ours.machine.build_lab in system["build_text"] or system["build_text"] in (
        ours.machine.build_lab
    )
    assert ours.dump.time is not None
    assert int(ours.dump.time.timestamp()) == system["time"]
    pdbs = {**PDBS, "sensor": built(variant) / "sensor.pdb"}
    assert expected_of_engine(ours, pdbs) == [shown_by_engine(one) for one in theirs["stack"]]


@pytest.mark.parametrize(("kind", "variant"), BUGS)
def test_microsofts_engine_agrees_on_the_fault(
    crash_of: CrashFactory, kind: str, variant: str
) -> None:
    """Registers at the fault, by the records that `.trap` and `.cxr` are given."""
    engine = judge()
    crash = crash_of(kind, variant)
    folders = [BUILT, built(variant)]
    engine.open(crash.dump, symbols=folders, images=folders)
    ours = triage(crash.dump, symbols=folders)
    if kind == "hang":
        # Found by walking, which the test of the stack compares.
        assert ours.context.source == "the first interrupt on the stack"
        return
    record = int(ours.context.source.partition(" at ")[2].split()[0], 16)
    if kind == "exception":
        names = ["rip", "rsp", *KTRAP_FRAME]
        theirs = engine.context_record(record)["registers"]
    else:
        names = ["rip", "rsp", "rbp"]
        theirs = engine.trap_frame(record)["registers"]
        # `.trap` shows these as zero where a byte of the frame says that they were not saved, and
        # that byte is not always written. So they are compared in memory, as the engine reads it.
        saved = engine.read([(record + offset, 8) for offset in KTRAP_FRAME.values()])
        for name, data in zip(KTRAP_FRAME, saved, strict=True):
            assert data is not None
            assert ours.context.registers[name] == int.from_bytes(data, "little")
    assert {one: ours.context.registers[one] for one in names} == {
        one: theirs[one] for one in names
    }
