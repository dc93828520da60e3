"""Who is at fault: the first frame from the top whose owner is not to be ignored.

The way WinDbg's !analyze goes (Microsoft's "Using the !analyze extension" and "Specifying module
and function owners"): rules name an owner for modules and functions; "ignore" skips a frame,
"maybe_" and "last_" give way to better matches further down the stack.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from crashdump_analysis.errors import DumpError
from crashdump_analysis.report import Confidence, Culprit, StackFrame

OWNERS: Final = Path(__file__).with_name("owners.ini")
IGNORE: Final = "ignore"
_RANKS = ("last_", "maybe_")  # the weaker first


@dataclass(frozen=True)
class OwnerRule:
    """`Module[!Function]=Owner`; a name may end in `*`. Names are compared in lower case."""

    module: str
    function: str | None
    owner: str

    def matches(self, module: str, function: str | None) -> bool:
        """Whether the rule is about a frame."""
        if not _matches(self.module, module):
            return False
        return self.function is None or (
            function is not None and _matches(self.function, function.lower())
        )

    @property
    def weight(self) -> tuple[bool, bool, int, bool, int]:
        """How complete a match is: the greatest wins."""
        return (
            self.function is not None,
            not self.module.endswith("*"),
            len(self.module),
            not (self.function or "*").endswith("*"),
            len(self.function or ""),
        )


def _matches(pattern: str, name: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


class Owners:
    """Owner rules, and the owner of what no rule names."""

    def __init__(self, rules: Iterable[OwnerRule], default: str) -> None:
        self._rules = tuple(rules)
        self._default = default

    def of(self, module: str, function: str | None) -> str:
        """The owner of a function of a module."""
        module = module.lower()
        found = [rule for rule in self._rules if rule.matches(module, function)]
        return max(found, key=lambda rule: rule.weight).owner if found else self._default


@cache
def read_owners(path: Path = OWNERS) -> Owners:
    """Reads a file in triage.ini's shape. Raises DumpError naming the line that is wrong."""
    rules, default = [], "MachineOwner"
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.partition(";")[0].strip()
        if not text:
            continue
        name, equals, owner = (part.strip() for part in text.partition("="))
        module, bang, function = name.lower().partition("!")
        if not (equals and owner and module) or "*" in module[:-1] or "*" in function[:-1]:
            raise DumpError(
                f"{path} line {number}",
                expected="Module[!Function]=Owner, with * only at the end of a name",
                found=text,
            )
        if module == "default" and not bang:
            default = owner
        else:
            rules.append(OwnerRule(module, function if bang else None, owner))
    return Owners(rules, default)


def blame(
    stack: Sequence[StackFrame],
    start: int,
    owners: Owners,
    *,
    no_culprit: str = "",
    fault: str = "",
) -> tuple[Culprit, int | None]:
    """The culprit, and the index of its frame in the stack.

    start: index of the frame to begin at: the fault's, or the first. no_culprit: why this bug
    check never has one. fault: what the instruction in the frame at `start` did, "faulted" or "was
    interrupted"; empty where the bug check has no fault.
    """
    if no_culprit:
        return _nobody(no_culprit), None
    best: tuple[int, int] | None = None  # rank, index
    for index in range(start, len(stack)):
        frame = stack[index]
        if frame.module is None:
            continue
        owner = owners.of(frame.module, frame.function)
        if owner == IGNORE:
            continue
        rank = next((at for at, word in enumerate(_RANKS) if owner.startswith(word)), len(_RANKS))
        if best is None or rank > best[0]:
            best = (rank, index)
        if rank == len(_RANKS):
            break
    if best is None:
        return _nobody("no frame of the stack belongs to a module that could be at fault"), None
    rank, index = best
    frame = stack[index]
    reason, confidence = _reason(stack, start, index, rank, fault=fault)
    culprit = Culprit(frame.module, frame.function, frame.file, frame.line, reason, confidence)
    return culprit, index


def _nobody(reason: str) -> Culprit:
    return Culprit(None, None, None, None, reason, "none")


def _reason(
    stack: Sequence[StackFrame], start: int, index: int, rank: int, *, fault: str
) -> tuple[str, Confidence]:
    frame = stack[index]
    if rank < len(_RANKS):
        return (
            f"nothing on the stack but {frame.module} and what is never blamed; "
            "the cause may have left the stack",
            "low",
        )
    if any(one.guess for one in stack[start : index + 1]):
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
