"""Who is at fault: by what the bug check says itself, else by the stack.

On the stack the first frame from the top whose owner is not to be ignored, the way WinDbg's
!analyze goes (Microsoft's "Using the !analyze extension"): "maybe_" and "last_" owners give way to
better matches further down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from crashdump_analysis.bugchecks.evidence import Evidence
from crashdump_analysis.owners import RANKS, Owners, read_owners
from crashdump_analysis.report import Confidence, Culprit, StackFrame

__all__ = ["blame", "read_owners"]

_BETTER: dict[Confidence, int] = {"none": 0, "low": 1, "medium": 2, "high": 3}


def blame(
    stack: Sequence[StackFrame],
    start: int,
    owners: Owners,
    *,
    no_culprit: str = "",
    fault: str = "",
    evidence: Evidence | None = None,
) -> tuple[Culprit, int | None]:
    """The culprit, and the index of its frame in the stack if it has one there.

    start: index of the frame to begin at: the fault's, or the first. no_culprit: why this bug
    check never has one. fault: what the instruction in the frame at `start` did, "faulted" or "was
    interrupted"; empty where the bug check has no fault. evidence: what the bug check itself tells.
    """
    evidence = evidence or Evidence()
    if no_culprit or evidence.no_culprit:
        return _nobody(evidence.no_culprit or no_culprit, evidence), None
    if evidence.module and owners.rank(evidence.module, None) is not None:
        return _by_evidence(stack, start, owners, evidence)
    culprit, frame = _by_stack(stack, start, owners, fault)
    return _weighed(culprit, evidence), frame


def _by_evidence(
    stack: Sequence[StackFrame], start: int, owners: Owners, evidence: Evidence
) -> tuple[Culprit, int | None]:
    """Who the bug check names; the first frame of that module that is no guess is its."""
    module = evidence.module or ""
    for index in range(start, len(stack)):
        frame = stack[index]
        ignored = owners.rank(module, frame.function) is None
        known = frame.module == module and not frame.guess
        if known and not ignored and not evidence.elsewhere:
            break
    else:
        index = -1
    function, file, line = (
        (stack[index].function, stack[index].file, stack[index].line)
        if index >= 0
        else (None, None, None)
    )
    culprit = Culprit(
        module,
        function,
        file,
        line,
        evidence.reason,
        evidence.confidence,
        owners.of(module, function),
        evidence.words,
    )
    return culprit, index if index >= 0 else None


def _by_stack(
    stack: Sequence[StackFrame], start: int, owners: Owners, fault: str
) -> tuple[Culprit, int | None]:
    best: tuple[int, int] | None = None  # rank, index
    for index in range(start, len(stack)):
        frame = stack[index]
        rank = owners.rank(frame.module, frame.function) if frame.module else None
        if rank is None:
            continue
        if best is None or rank > best[0]:
            best = (rank, index)
        if rank == len(RANKS):
            break
    if best is None:
        reason = "no frame of the stack belongs to a module that could be at fault"
        return _nobody(reason, Evidence()), None
    rank, index = best
    frame = stack[index]
    module = frame.module or ""
    reason, confidence = _reason(stack, start, index, rank, fault=fault)
    owner = owners.of(module, frame.function)
    return (
        Culprit(module, frame.function, frame.file, frame.line, reason, confidence, owner),
        index,
    )


def _weighed(culprit: Culprit, evidence: Evidence) -> Culprit:
    """The culprit with what else is known, and no surer than that allows."""
    confidence: Confidence = min(culprit.confidence, evidence.at_most, key=lambda one: _BETTER[one])
    reason = f"{culprit.reason}; {evidence.doubt}" if evidence.doubt else culprit.reason
    return replace(culprit, reason=reason, confidence=confidence, evidence=evidence.words)


def _nobody(reason: str, evidence: Evidence) -> Culprit:
    return Culprit(None, None, None, None, reason, "none", None, evidence.words)


def _reason(
    stack: Sequence[StackFrame], start: int, index: int, rank: int, *, fault: str
) -> tuple[str, Confidence]:
    frame = stack[index]
    guessed = any(one.guess for one in stack[start : index + 1])
    if rank < len(RANKS):
        return (
            "only parts of Windows are on the stack, where "
            f"{frame.module} is the first to blame"
            + (", by a guess" if guessed else "")
            + "; the cause may have left it",
            "low",
        )
    if guessed:
        return (
            f"{frame.module} is the first to blame on a stack that had to be guessed from here",
            "low",
        )
    same = all(
        one.instruction == frame.instruction and one.stack_pointer == frame.stack_pointer
        for one in stack[start:index]
    )
    if fault and same:
        return f"the instruction that {fault} is {frame.module}'s own", "high"
    if fault and stack[start].module is None:
        return f"{frame.module} went to an address where no module is", "high"
    skipped = dict.fromkeys(one.module or "no module" for one in stack[start:index])
    if skipped:
        return f"{frame.module} is the first on the stack behind {', '.join(skipped)}", "medium"
    return f"{frame.module} is on top of the stack", "medium"
