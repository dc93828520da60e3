"""Which crashes are one bug: a key that outlives builds, inlining, offsets and bug checks.

The key is made of what a source change alone can change: the culprit's module, and the names of
the innermost functions there as the source has them, functions that the compiler inlined included.
It holds no addresses, offsets, lines, bug checks, and no frames of other modules.

Without names the shapes of functions take their place: how long each is and how it sets up its
frame. Those stay as they are in every build that leaves the function as it is, so they join fewer
crashes than names do. Without unwind data either, nothing outlives a build. The report says which
of these it was (`Family.basis`); docs/triage.md says what can still split or join families.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from crashdump_analysis.owners import IGNORE, Owners
from crashdump_analysis.report import Culprit, StackFrame
from crashdump_analysis.unwind_info import (
    MAX_CHAIN,
    UnwindData,
    UnwindError,
    UnwindInfo,
    direct_entry,
    read_unwind_info,
)

DEPTH: Final = 3
"""Functions in a family: one joins bugs that die in a shared helper, many split one bug's paths."""

LEAF: Final = "leaf"
"""The shape of every function that neither calls others nor moves the stack pointer."""

Basis = Literal["functions", "shapes", "places", "guess", "own bug check", "evidence", "bug check"]

_MOST_SMALL: Final = 0xFFFF
"""A first parameter up to this is taken for a kind; what is greater may be an address."""


@dataclass(frozen=True)
class Place:
    """Where a function without a name starts, from its module's base, and what it looks like.

    None where the dump does not tell.
    """

    start: int | None = None
    shape: str | None = None


@dataclass(frozen=True)
class Family:
    """The key, the functions in it from the innermost outwards, and what it is made of."""

    key: str
    frames: tuple[str, ...]
    basis: Basis


def family_of(
    code: int,
    parameters: Sequence[int],
    *,
    culprit: Culprit,
    stack: Sequence[StackFrame],
    frame: int | None,
    owners: Owners,
    place_of: Callable[[StackFrame], Place],
    build: str,
    own_bug_check: bool = False,
) -> Family:
    """The family of a crash whose culprit is the stack's frame of that index.

    place_of: asked only for frames without a name. build: what tells builds of the culprit's image
    apart. own_bug_check: the culprit itself stopped the machine, with a code of its own.
    """
    if culprit.module is None:
        return Family(f"no culprit: 0x{code:X}", (), "bug check")
    module = culprit.module.lower()  # Windows has it as whoever installed the driver wrote it
    kind = f" ({parameters[0]:x})" if parameters[0] <= _MOST_SMALL else ""
    named = frame is not None and stack[frame].function is not None
    if own_bug_check and not named:
        # A driver that numbers its own failures has told them apart already.
        return Family(f"{module} raises 0x{code:X}{kind}", (), "own bug check")
    if frame is None:
        return Family(f"{module} by 0x{code:X}{kind}", (), "evidence")
    frames = tuple(_frames(stack, frame, owners, place_of))
    if set(frames) == {f"~{LEAF}"}:  # that is no shape to tell bugs apart by
        frames = (_unnamed(stack[frame], Place()),)
    key = f"{module}!{' < '.join(frames)}"
    in_one_build = any(one.startswith("+") for one in frames)
    if in_one_build:
        key = f"{key} of build {build}"
    if stack[frame].guess:
        return Family(key, frames, "guess")
    if in_one_build:
        return Family(key, frames, "places")
    shapes = any(one.startswith("~") for one in frames)
    return Family(key, frames, "shapes" if shapes else "functions")


def _frames(
    stack: Sequence[StackFrame],
    first: int,
    owners: Owners,
    place_of: Callable[[StackFrame], Place],
) -> list[str]:
    """The innermost functions of the culprit's module from its frame outwards.

    Other modules' frames end it: what lies behind them is another entry into the module; so do
    guesses. Functions that owner rules ignore do not count, nor does a function that calls itself.
    """
    module = stack[first].module or ""
    names: list[str] = []
    for index in range(first, len(stack)):
        frame = stack[index]
        if frame.module != module or len(names) == DEPTH or (frame.guess and names):
            break
        if owners.of(module, frame.function) == IGNORE:
            continue
        name = source_name(frame.function) if frame.function else _unnamed(frame, place_of(frame))
        if not names or names[-1] != name:
            names.append(name)
    return names


def _unnamed(frame: StackFrame, place: Place) -> str:
    if place.shape is not None:
        return f"~{place.shape}"
    return f"+{(frame.offset or 0) if place.start is None else place.start:x}"


def source_name(function: str) -> str:
    """A function's name as in the source, without what compilers add to parts and clones of it."""
    name = re.sub(r"\$(fin|filt|catch|dtor|handler)\$\d+$", "", function)
    return re.sub(r"(\.(cold|part|constprop|isra|llvm|localalias|lto_priv)(\.\d+)*)+$", "", name)


def place_in(image: UnwindData, rva: int) -> Place:
    """The place of the function around an offset from the image's base, by its unwind data.

    Its shape is a digest of its length in bytes and of its UNWIND_INFO without addresses: sizes of
    prologue and frame, registers saved and where. Of a function in chained parts the first counts.
    A leaf has no unwind data, which is all there is to tell of it.
    """
    try:
        function = image.runtime_function(rva)
        if function is None:
            return Place(None, LEAF)
        for _ in range(MAX_CHAIN):
            begin, end, unwind = direct_entry(image, function)
            info = read_unwind_info(image, unwind)
            if info.chained is None:
                return Place(begin, _shape(end - begin, info))
            function = info.chained
    except (LookupError, UnwindError):
        pass
    return Place()


def _shape(length: int, info: UnwindInfo) -> str:
    codes = [tuple(one) for one in info.codes]
    parts = (length, info.prologue_size, info.frame_register, info.frame_offset, codes)
    return hashlib.blake2s(repr(parts).encode(), digest_size=4).hexdigest()
