"""Which crashes belong together: WinDbg's bucket, and a family that outlives a build.

FAILURE_BUCKET_ID: `head[_detail]_module!function`, the grammar inferred from published !analyze
output. FAILURE_ID_HASH: the MD5 of "km:" and the bucket in lower case, UTF-16, as a GUID; verified
with published pairs.

The family is made of what a source change alone can change: the culprit's module, and the names of
the innermost functions there as the source has them, functions that the compiler inlined included.
It holds no addresses, offsets, lines, bug checks, and no frames of other modules, so it is the same
in every build and for each face that one bug shows. docs/triage.md says what can still split or
join families.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Sequence
from typing import Final

from crashdump_analysis.blame import IGNORE, Owners
from crashdump_analysis.report import Bucket, Culprit, StackFrame

FAMILY_DEPTH: Final = 3
"""Functions in a family: one joins bugs that die in a shared helper, many split one bug's paths."""

_ACCESS_VIOLATION = 0xC0000005
_BY_EXCEPTION = frozenset({0x1E, 0x3B, 0x7E, 0x8E})
_BAD_ADDRESS = frozenset({0x0A, 0xC5, 0xD1})
_FAST_FAIL = {
    0x2: "MISSING_GSFRAME",
    0x3: "CORRUPT_LIST_ENTRY",
    0x5: "INVALID_ARG",
    0x8: "RANGE_CHECK_FAILURE",
    0xA: "GUARD_ICALL_CHECK_FAILURE",
    0xE: "INVALID_REFERENCE_COUNT",
    0x1D: "INVALID_BALANCED_TREE",
}
_WITH_SUBCODE = frozenset({0x19, 0x1A, 0x9F, 0xC2, 0xC4, 0x124, 0x13A})
_UNKNOWN = "unknown_function"


def failure_id_hash(bucket_id: str, *, user_mode: bool = False) -> str:
    """WinDbg's FAILURE_ID_HASH of a FAILURE_BUCKET_ID."""
    text = ("um:" if user_mode else "km:") + bucket_id
    digest = hashlib.md5(text.lower().encode("utf-16-le"), usedforsecurity=False).digest()
    return str(uuid.UUID(bytes_le=digest))


def bucket(
    code: int,
    parameters: Sequence[int],
    *,
    culprit: Culprit,
    stack: Sequence[StackFrame],
    frame: int | None,
    owners: Owners,
    starts: Sequence[int | None],
    build: str,
) -> Bucket:
    """The bucket of a crash whose culprit is the stack's frame of that index.

    starts: for each frame where its function starts, in bytes from the module's base. build: what
    tells builds of the culprit's image apart. Both serve where functions have no names.
    """
    head = _head(code, parameters)
    if culprit.module is None or frame is None:
        return Bucket(head, failure_id_hash(head), f"no culprit: 0x{code:X}", ())
    name = f"{head}_{culprit.module}!{culprit.function or _UNKNOWN}"
    frames = _family_frames(stack, frame, owners, starts)
    family = f"{culprit.module}!{' < '.join(frames)}"
    if any(one.startswith("+") for one in frames):
        family += f" of build {build}"  # places without names are another build's other places
    return Bucket(name, failure_id_hash(name), family, frames)


def _head(code: int, parameters: Sequence[int]) -> str:
    """What stands before the module: the kind of the failure."""
    first = parameters[0]
    if code == 0x50:
        access = {0x0: "_R", 0x1: "_W", 0x2: "_W"}.get(parameters[1] & ~0x10, "")
        kind = {0x0: "_(null)", 0x2: "_INVALID"}.get(parameters[3], "")
        return f"AV{access}{kind}"
    if code in _BY_EXCEPTION and first & 0xFFFF_FFFF != _ACCESS_VIOLATION:
        return f"0x{code:X}_{first & 0xFFFF_FFFF:08x}"
    if code in _BY_EXCEPTION or code in _BAD_ADDRESS:
        return "AV"
    detail = ""
    if code == 0x133:
        detail = "_ISR" if first == 1 else "_DPC"
    elif code == 0x139:
        detail = f"_{first:x}" + (f"_{_FAST_FAIL[first]}" if first in _FAST_FAIL else "")
    elif code in _WITH_SUBCODE:
        detail = f"_{first:x}"
    return f"0x{code:X}{detail}"


def _family_frames(
    stack: Sequence[StackFrame], first: int, owners: Owners, starts: Sequence[int | None]
) -> tuple[str, ...]:
    """The innermost functions of the culprit's module from its frame outwards.

    Other modules' frames end it: what lies behind them is another entry into the module; so do
    guesses. Functions that owner rules ignore do not count, nor does a function that calls itself.
    """
    module = stack[first].module or ""
    names: list[str] = []
    for index in range(first, len(stack)):
        frame = stack[index]
        if frame.module != module or len(names) == FAMILY_DEPTH or (frame.guess and names):
            break
        if owners.of(module, frame.function) == IGNORE:
            continue
        start = starts[index]
        place = frame.offset if start is None else start
        name = source_name(frame.function) if frame.function else f"+{place or 0:x}"
        if not names or names[-1] != name:
            names.append(name)
    return tuple(names)


def source_name(function: str) -> str:
    """A function's name as in the source, without what compilers add to parts and clones of it."""
    name = re.sub(r"\$(fin|filt|catch|dtor|handler)\$\d+$", "", function)
    return re.sub(r"(\.(cold|part|constprop|isra|llvm|localalias|lto_priv)(\.\d+)*)+$", "", name)
