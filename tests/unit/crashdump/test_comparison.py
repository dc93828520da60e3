"""Every way in which two engines' reports can differ, made to occur one at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from crashdump_analysis import triage
from crashdump_analysis.comparison import KNOWN, Comparison, Difference, DifferenceKind, compare
from crashdump_analysis.report import SCHEMA, Report
from crashdump_analysis.symbols import SourceFrame
from tests.support.synthetic_dump import FAULT_RIP, crashed_machine

Change = Callable[[Report], Report]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """KeBugCheckEx <- KiPageFault (trap) <- victim!Fault <- victim!Entry <- StartThread."""
    plain = triage(crashed_machine().write(tmp_path_factory.mktemp("dump") / "a.dmp"))
    names = ("KeBugCheckEx", "KiPageFault", "Fault", "Entry", "StartThread")
    stack = tuple(
        replace(one, function=name, file=f"/src/{name}.c", line=7, offset=4)
        for one, name in zip(plain.stack, names, strict=True)
    )
    return replace(plain, stack=stack)


def machine(**changes: Any) -> Change:
    return lambda report: replace(report, machine=replace(report.machine, **changes))


def parameter(report: Report) -> Report:
    first, *others = report.bug_check.parameters
    parameters = (replace(first, value=first.value + 1), *others)
    return replace(report, bug_check=replace(report.bug_check, parameters=parameters))


def module(**changes: Any) -> Change:
    """Changes the second module, victim."""
    return lambda report: replace(
        report, modules=(report.modules[0], replace(report.modules[1], **changes))
    )


def frame(number: int, **changes: Any) -> Change:
    def change(report: Report) -> Report:
        stack = list(report.stack)
        stack[number] = replace(stack[number], **changes)
        return replace(report, stack=tuple(stack))

    return change


def register(report: Report) -> Report:
    registers = {**report.context.registers, "rcx": 1}
    return replace(report, context=replace(report.context, registers=registers))


def inlined(function: str) -> Change:
    """A function inlined in victim!Fault, whose frame is the third."""

    def change(report: Report) -> Report:
        at = report.stack[2]
        one = replace(at, function=function, file="/src/x.c", line=3, inline=True, offset=None)
        return replace(report, stack=(*report.stack[:2], one, *report.stack[2:]))

    return change


def later(report: Report) -> Report:
    assert report.dump.time
    return replace(report, dump=replace(report.dump, time=report.dump.time + timedelta(seconds=1)))


CHANGES: list[tuple[DifferenceKind, str, Change]] = [
    (DifferenceKind.TIME, "seconds since 1970", later),
    (
        DifferenceKind.BUG_CHECK_CODE,
        "bug check",
        lambda report: replace(report, bug_check=replace(report.bug_check, code=0x50)),
    ),
    (DifferenceKind.BUG_CHECK_PARAMETERS, "parameter 1", parameter),
    (DifferenceKind.BUILD, "build", machine(build=9600)),
    (DifferenceKind.PROCESSORS, "processors", machine(processors=64)),
    (
        DifferenceKind.MODULE_EXTRA,
        "fffff80020000000",
        lambda report: replace(report, modules=report.modules[:1]),
    ),
    (DifferenceKind.MODULE_BASE, "victim", module(base=0xFFFFF800_30000000)),
    (DifferenceKind.MODULE_NAME, "fffff80020000000", module(name="other")),
    (DifferenceKind.MODULE_SIZE, "victim", module(size=0x1000)),
    (DifferenceKind.MODULE_TIMESTAMP, "victim", module(timestamp=1)),
    (DifferenceKind.MODULE_CHECKSUM, "victim", module(checksum=1)),
    (
        DifferenceKind.FAULT,
        "fault",
        lambda report: replace(
            report, context=replace(report.context, instruction=None, source="the header")
        ),
    ),
    (DifferenceKind.REGISTER, "rcx", register),
    (DifferenceKind.FRAME, "frame 3", frame(3, stack_pointer=8)),
    (DifferenceKind.DEPTH, "stack", lambda report: replace(report, stack=report.stack[:-1])),
    (DifferenceKind.FRAME_MODULE, "frame 3", frame(3, module="other")),
    (DifferenceKind.FUNCTION, "frame 3", frame(3, function="Other")),
    (DifferenceKind.OFFSET, "frame 3", frame(3, offset=5)),
    (DifferenceKind.FILE, "frame 3", frame(3, file="C:\\src\\other.c")),
    (DifferenceKind.LINE, "frame 3", frame(3, line=8)),
    (DifferenceKind.INLINE, "frame 2", inlined("Copy")),
    (DifferenceKind.INLINE_EARLY, "frame 2", inlined("Early")),
    (
        DifferenceKind.CULPRIT,
        "culprit",
        lambda report: replace(report, culprit=replace(report.culprit, module="other")),
    ),
    (
        DifferenceKind.KERNEL_NAME,
        "fffff80010000000",
        lambda report: replace(
            report,
            modules=(replace(report.modules[0], image="ntkrnlmp.exe"), report.modules[1]),
        ),
    ),
]
OTHERS = {
    DifferenceKind.MODULE_MISSING: "below: where it is the portable engine that lacks one",
    DifferenceKind.REFUSED: "tests/unit/test_engines.py: where there is no second report",
}


def inlined_at(address: int) -> list[SourceFrame]:
    """What symbols say: a byte before the fault Early is inlined."""
    early = SourceFrame("Early", "/src/x.c", 3, None, inline=True)
    return [early] if address == FAULT_RIP - 1 else []


@pytest.mark.parametrize(
    ("kind", "place", "change"), CHANGES, ids=[f"{kind}-{place}" for kind, place, _ in CHANGES]
)
def test_each_difference_is_told(
    report: Report, kind: DifferenceKind, place: str, change: Change
) -> None:
    found = compare(report, change(report), inlined_at)
    is_known = kind.value.startswith("known.")
    told, empty = (found.known, found.differences) if is_known else (found.differences, found.known)
    assert empty == ()
    (one,) = told
    assert (one.kind, one.place) == (kind, place)
    assert one.portable != one.pykd
    assert one.known == KNOWN.get(kind, "")
    assert bool(one.known) == is_known
    assert (found.failure, found.limit) == ("", "")


def test_every_kind_of_difference_has_its_test() -> None:
    assert {kind for kind, _, _ in CHANGES} | set(OTHERS) == set(DifferenceKind)


def test_a_module_that_the_portable_engine_lacks(report: Report) -> None:
    found = compare(replace(report, modules=report.modules[:1]), report, inlined_at)
    assert [one.kind for one in found.differences] == [DifferenceKind.MODULE_MISSING]


def test_nothing_differs_from_itself(report: Report) -> None:
    assert compare(report, report, inlined_at) == Comparison((), frames=5)


def test_bit_28_of_the_stop_code_is_no_difference(tmp_path: Path) -> None:
    ours = triage(crashed_machine().write(tmp_path / "a.dmp"))
    raw = ours.bug_check.raw_code | 0x10000000
    theirs = replace(ours, bug_check=replace(ours.bug_check, raw_code=raw))
    assert compare(ours, theirs, inlined_at).differences == ()


@pytest.mark.parametrize("who", ["ours", "theirs"])
def test_frames_are_compared_up_to_the_first_guess(report: Report, who: str) -> None:
    """As in triage dumps without images: what lies behind is not held against anybody."""
    guessing = frame(2, guess=True, function="Wrong", module="other", instruction=1)(report)
    guessing = replace(guessing, culprit=replace(report.culprit, module="other"))
    pair = (guessing, report) if who == "ours" else (report, guessing)
    found = compare(*pair, inlined_at)
    assert found.differences == ()
    assert found.frames == 2
    assert "frames 0 to 1 are compared" in found.limit
    assert ("portable" in found.limit) == (who == "ours")


def test_a_stack_that_begins_at_the_fault_is_compared_from_there(report: Report) -> None:
    """As in small dumps of other makers, which lack the registers of the bug check."""
    context = replace(report.context, frame=0)
    from_fault = replace(report, stack=report.stack[report.context.frame :], context=context)
    assert len(from_fault.stack) == 3
    for pair in ((report, from_fault), (from_fault, report)):
        found = compare(*pair, inlined_at)
        assert found.differences == ()
        assert found.frames == 3
        assert "from the fault on" in found.limit
    other = frame(1, line=8)(from_fault)
    kinds = [one.kind for one in compare(report, other, inlined_at).differences]
    assert kinds == [DifferenceKind.LINE]


def test_the_first_frame_that_differs_ends_the_comparison_of_stacks(report: Report) -> None:
    other = frame(1, instruction=1)(frame(3, function="Other")(report))
    kinds = [one.kind for one in compare(report, other, inlined_at).differences]
    assert kinds == [DifferenceKind.FRAME]


def test_schema_lists_the_same_kinds() -> None:
    schema = json.loads(SCHEMA.read_text())
    comparison = schema["properties"]["comparison"]["anyOf"][1]
    kinds = comparison["properties"]["differences"]["items"]["properties"]["kind"]["enum"]
    assert kinds == list(DifferenceKind)


def test_report_with_a_comparison(report: Report) -> None:
    differences = (Difference(DifferenceKind.LINE, "frame 3", "7", "8"),)
    known = (Difference(DifferenceKind.KERNEL_NAME, "0", "ntoskrnl.exe", "ntkrnlmp.exe"),)
    found = Comparison(differences, 2, limit="for want of images", known=known)
    compared = replace(report, comparison=found)
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(compared.to_dict())
    text = compared.to_text()
    assert "PYKD     1 difference, 1 as the engine is known for (2 frames compared)" in text
    assert "for want of images" in text
    assert "stack.line frame 3: portable 7, pykd 8" in text
    assert f"known: {KNOWN[DifferenceKind.KERNEL_NAME]}" in text
    failed = replace(report, comparison=Comparison((), failure="host-gone: away"))
    assert "not compared: host-gone: away" in failed.to_text()
