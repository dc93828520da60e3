"""Where two engines' reports of one dump differ: portable's and Microsoft's.

Every difference is a value of DifferenceKind. Known ways of the engine of 2017, each held against
the dump or the PDB, bear names of their own; they are told apart from differences, never left out.
"""

from __future__ import annotations

import ntpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import groupby, zip_longest
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crashdump_analysis.report import LoadedModule, Report, StackFrame
    from crashdump_analysis.symbols import SourceFrame

InlinedAt = Callable[[int], "Sequence[SourceFrame]"]
"""The functions inlined at an address, innermost first, by the portable engine's symbols."""


class DifferenceKind(StrEnum):
    """All the ways in which two reports of one dump can differ."""

    REFUSED = "dump.refused"
    TIME = "dump.time"
    BUG_CHECK_CODE = "bug_check.code"
    BUG_CHECK_PARAMETERS = "bug_check.parameters"
    BUILD = "machine.build"
    PROCESSORS = "machine.processors"
    MODULE_MISSING = "modules.missing"
    MODULE_EXTRA = "modules.extra"
    MODULE_BASE = "modules.base"
    MODULE_NAME = "modules.name"
    MODULE_SIZE = "modules.size"
    MODULE_TIMESTAMP = "modules.timestamp"
    MODULE_CHECKSUM = "modules.checksum"
    FAULT = "context.fault"
    REGISTER = "context.register"
    FRAME = "stack.frame"
    DEPTH = "stack.depth"
    FRAME_MODULE = "stack.module"
    FUNCTION = "stack.function"
    OFFSET = "stack.offset"
    FILE = "stack.file"
    LINE = "stack.line"
    INLINE = "stack.inline"
    CULPRIT = "culprit.module"
    # Known ways of the engine.
    KERNEL_NAME = "known.kernel-name"
    INLINE_EARLY = "known.inline-one-byte-early"


KNOWN: Final[Mapping[DifferenceKind, str]] = {
    DifferenceKind.KERNEL_NAME: "the kernel's image is called as it was built (ntkrnlmp.exe) or as "
    "it is installed (ntoskrnl.exe)",
    DifferenceKind.INLINE_EARLY: "the engine takes an interrupted instruction for a return address "
    "and looks inlined functions up one byte before it",
}
"""Why the engine of 2017 differs in these, although both are right by their own lights."""

_KERNELS = frozenset({"ntoskrnl.exe", "ntkrnlmp.exe", "ntkrnlpa.exe", "ntkrpamp.exe"})


@dataclass(frozen=True)
class Difference:
    """What differs, where (a register, a module, a frame), and what each engine says of it.

    known: why the engine is known to differ in this; empty where it is not.
    """

    kind: DifferenceKind
    place: str
    portable: str
    pykd: str
    known: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "known", KNOWN.get(self.kind, ""))


@dataclass(frozen=True)
class Comparison:
    """What came of comparing the reports of `portable` and `pykd`.

    known: where they differ as the engine is known to; differences: all else. frames: how many
    frames were compared, inlined functions not counted. limit: in words, why not all of them; empty
    where they were. failure: in words, why nothing was compared; empty where it was.
    """

    differences: tuple[Difference, ...]
    frames: int = 0
    limit: str = ""
    failure: str = ""
    known: tuple[Difference, ...] = ()


def compare(portable: Report, pykd: Report, inlined_at: InlinedAt) -> Comparison:
    """Compares two reports of one dump."""
    ours, theirs = _physical(portable.stack), _physical(pykd.stack)
    frames, limit = _comparable(ours, theirs)
    begin = ""
    faults = [_from_the_fault(portable), _from_the_fault(pykd)]
    if all(faults) and _place(ours[0]) != _place(theirs[0]):
        # Where the registers of the bug check are missing, a stack can begin at the fault only.
        ours, theirs = faults
        frames, limit = _comparable(ours, theirs)
        begin = "frames are compared from the fault on, where one of the stacks begins"
    found = (
        *_facts(portable, pykd),
        *_modules(portable.modules, pykd.modules),
        *_context(portable, pykd),
        *_stacks(ours[:frames], theirs[:frames], inlined_at),
        # Follows from the stacks, so not where they could be compared in part only.
        *(() if limit else _culprits(portable, pykd)),
    )
    return Comparison(
        tuple(one for one in found if not one.known),
        min(frames, len(ours), len(theirs)),
        "; ".join(one for one in (begin, limit) if one),
        known=tuple(one for one in found if one.known),
    )


def _differing(
    kind: DifferenceKind, place: str, ours: object, theirs: object
) -> Iterator[Difference]:
    if ours != theirs:
        yield Difference(kind, place, _text(ours), _text(theirs))


def _text(value: object) -> str:
    return f"0x{value:x}" if isinstance(value, int) else "nothing" if value is None else str(value)


def _facts(portable: Report, pykd: Report) -> Iterator[Difference]:
    ours, theirs = portable.bug_check, pykd.bug_check
    yield from _differing(DifferenceKind.BUG_CHECK_CODE, "bug check", ours.code, theirs.code)
    for number, (one, other) in enumerate(zip(ours.parameters, theirs.parameters, strict=True), 1):
        yield from _differing(
            DifferenceKind.BUG_CHECK_PARAMETERS, f"parameter {number}", one.value, other.value
        )
    machines = portable.machine, pykd.machine
    yield from _differing(DifferenceKind.BUILD, "build", *(str(one.build) for one in machines))
    yield from _differing(
        DifferenceKind.PROCESSORS, "processors", *(str(one.processors) for one in machines)
    )
    times = [one.dump.time and int(one.dump.time.timestamp()) for one in (portable, pykd)]
    if None not in times:
        yield from _differing(DifferenceKind.TIME, "seconds since 1970", *map(str, times))


def _modules(ours: Sequence[LoadedModule], theirs: Sequence[LoadedModule]) -> Iterator[Difference]:
    mine = {one.base: one for one in ours}
    others = {one.base: one for one in theirs}
    my_names = {one.name: one for one in ours if one.base not in others}
    for base, other in others.items():
        if base in mine:
            yield from _module(mine[base], other)
        elif other.name in my_names:
            moved = my_names.pop(other.name)
            yield from _differing(DifferenceKind.MODULE_BASE, other.name, moved.base, base)
        else:
            yield Difference(DifferenceKind.MODULE_MISSING, f"{base:x}", "nothing", other.image)
    for one in my_names.values():
        yield Difference(DifferenceKind.MODULE_EXTRA, f"{one.base:x}", one.image, "nothing")


def _module(mine: LoadedModule, other: LoadedModule) -> Iterator[Difference]:
    place = mine.name
    yield from _differing(DifferenceKind.MODULE_NAME, f"{mine.base:x}", mine.name, other.name)
    images = [ntpath.basename(one.image).lower() for one in (mine, other)]
    kernels = images[0] != images[1] and _KERNELS.issuperset(images)
    name = DifferenceKind.KERNEL_NAME if kernels else DifferenceKind.MODULE_NAME
    yield from _differing(name, f"{mine.base:x}", *images)
    yield from _differing(DifferenceKind.MODULE_SIZE, place, mine.size, other.size)
    if mine.timestamp is not None and other.timestamp is not None:
        yield from _differing(
            DifferenceKind.MODULE_TIMESTAMP, place, mine.timestamp, other.timestamp
        )
    yield from _differing(DifferenceKind.MODULE_CHECKSUM, place, mine.checksum, other.checksum)


def _context(portable: Report, pykd: Report) -> Iterator[Difference]:
    ours, theirs = portable.context, pykd.context
    if (ours.instruction is None) != (theirs.instruction is None):
        yield Difference(DifferenceKind.FAULT, "fault", ours.source, theirs.source)
        return
    for name, value in ours.registers.items():
        if name in theirs.registers:
            yield from _differing(DifferenceKind.REGISTER, name, value, theirs.registers[name])


@dataclass(frozen=True)
class _Physical:
    """A function's frame on the stack, and those inlined in it, innermost first."""

    frame: StackFrame
    inlined: tuple[StackFrame, ...]


def _physical(stack: Sequence[StackFrame]) -> list[_Physical]:
    groups = groupby(stack, lambda one: (one.instruction, one.stack_pointer))
    whole = [tuple(group) for _, group in groups]
    return [_Physical(group[-1], group[:-1]) for group in whole]


def _from_the_fault(report: Report) -> list[_Physical]:
    """The frames from that of the fault on; none where there is no fault."""
    if report.context.instruction is None:
        return []
    return _physical(report.stack[report.context.frame :])


def _place(one: _Physical) -> str:
    return f"{one.frame.instruction:x} at {one.frame.stack_pointer:x}"


def _comparable(ours: Sequence[_Physical], theirs: Sequence[_Physical]) -> tuple[int, str]:
    """How many frames from the first on can be compared, and why not all."""
    for number, (mine, other) in enumerate(zip_longest(ours, theirs)):
        for who, one in (("the engine's", other), ("the portable engine's", mine)):
            if one is not None and one.frame.guess:
                return number, (
                    "only bug check, parameters, modules, context and "
                    f"{'frame 0' if number == 1 else f'frames 0 to {number - 1}'} are compared: "
                    f"from there on {who} frames are guesses, for want of unwind data"
                )
    return max(len(ours), len(theirs)), ""


def _stacks(
    ours: Sequence[_Physical], theirs: Sequence[_Physical], inlined_at: InlinedAt
) -> Iterator[Difference]:
    for number, (mine, other) in enumerate(zip(ours, theirs, strict=False)):
        place = f"frame {number}"
        places = [_place(mine), _place(other)]
        if places[0] != places[1]:
            # What lies behind it is another stack; one difference says so.
            yield Difference(DifferenceKind.FRAME, place, *places)
            return
        yield from _names(place, mine.frame, other.frame)
        yield from _inlined(place, mine, other, inlined_at)
    if len(ours) != len(theirs):
        yield Difference(DifferenceKind.DEPTH, "stack", str(len(ours)), str(len(theirs)))


def _names(place: str, mine: StackFrame, other: StackFrame) -> Iterator[Difference]:
    yield from _differing(DifferenceKind.FRAME_MODULE, place, mine.module, other.module)
    yield from _differing(DifferenceKind.FUNCTION, place, mine.function, other.function)
    if mine.function == other.function:
        yield from _differing(DifferenceKind.OFFSET, place, mine.offset, other.offset)
    yield from _differing(DifferenceKind.FILE, place, _file(mine), _file(other))
    yield from _differing(DifferenceKind.LINE, place, _line(mine), _line(other))


def _inlined(
    place: str, mine: _Physical, other: _Physical, inlined_at: InlinedAt
) -> Iterator[Difference]:
    ours = [_shown(one) for one in mine.inlined]
    theirs = [_shown(one) for one in other.inlined]
    if ours == theirs:
        return
    kind = DifferenceKind.INLINE
    if mine.frame.trapped:
        early = inlined_at(mine.frame.instruction - 1)
        if [_shown(one) for one in early] == theirs:
            kind = DifferenceKind.INLINE_EARLY
    yield Difference(kind, place, " < ".join(ours) or "none", " < ".join(theirs) or "none")


def _shown(frame: StackFrame | SourceFrame) -> str:
    return f"{frame.function} [{_file(frame)} @ {frame.line}]"


def _file(frame: StackFrame | SourceFrame) -> str | None:
    return ntpath.basename(frame.file) if frame.file else None


def _line(frame: StackFrame) -> str | None:
    return None if frame.line is None else str(frame.line)


def _culprits(portable: Report, pykd: Report) -> Iterator[Difference]:
    yield from _differing(
        DifferenceKind.CULPRIT, "culprit", portable.culprit.module, pykd.culprit.module
    )
