"""Bug checks: what a stop code and its parameters mean; one file a code in `codes/`.

A file is TOML, named as the code is written: 0xD1.toml. Numbers in it are hexadecimal in capitals.

    name, meaning      as Microsoft's reference has them, reworded
    parameters         up to four pairs: a name, and what it means
    family             which rule finds the fault's registers: a function of faults.py
    evidence           which rule says who is at fault: a file of evidence/
    no_culprit         why this bug check never has a culprit
    live               whether Windows also makes live dumps with this code
    [p<n>]             what values of parameter n mean
    [cases.<v>]        what parameters 2 to 4 are where parameter 1 is v: meaning, parameters, and
                       a family of its own
    [cases.<v>.p<n>]   what values of parameter n mean then

Only what a dump needs is read: one file, and of its cases one.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

CODES: Final = Path(__file__).with_name("codes")

# Exceptions that drivers die of (ntstatus.h).
EXCEPTIONS: Final = {
    0x80000001: "STATUS_GUARD_PAGE_VIOLATION",
    0x80000002: "STATUS_DATATYPE_MISALIGNMENT",
    0x80000003: "STATUS_BREAKPOINT",
    0x80000004: "STATUS_SINGLE_STEP",
    0xC0000005: "STATUS_ACCESS_VIOLATION",
    0xC0000006: "STATUS_IN_PAGE_ERROR",
    0xC0000008: "STATUS_INVALID_HANDLE",
    0xC000001D: "STATUS_ILLEGAL_INSTRUCTION",
    0xC0000025: "STATUS_NONCONTINUABLE_EXCEPTION",
    0xC000008C: "STATUS_ARRAY_BOUNDS_EXCEEDED",
    0xC000008E: "STATUS_FLOAT_DIVIDE_BY_ZERO",
    0xC0000094: "STATUS_INTEGER_DIVIDE_BY_ZERO",
    0xC0000095: "STATUS_INTEGER_OVERFLOW",
    0xC0000096: "STATUS_PRIVILEGED_INSTRUCTION",
    0xC00000FD: "STATUS_STACK_OVERFLOW",
    0xC0000409: "STATUS_STACK_BUFFER_OVERRUN",
    0xC0000420: "STATUS_ASSERTION_FAILURE",
}

UNKNOWN: Final = "Not in Microsoft's reference: perhaps a driver's own bug check."
_UNNAMED: Final = "no public page says what this holds"
_CASES = re.compile(r"^(?=\[cases\.0x[0-9A-F]+\]$)", re.MULTILINE)


@dataclass(frozen=True)
class Parameter:
    """A parameter's value, what it is called, and what it and its value mean."""

    value: int
    name: str
    meaning: str


@dataclass(frozen=True)
class Description:
    """A bug check in words.

    family: which rule finds its fault context (faults.py); empty for none. evidence: which rule
    says who is at fault, where that is not the stack alone (evidence/); empty for none. no_culprit:
    why it never has a culprit; empty where it may have one. live: whether Windows makes live dumps
    with this code. known: whether there is an entry for the code.
    """

    name: str
    meaning: str
    parameters: tuple[Parameter, ...]
    family: str
    no_culprit: str
    evidence: str = ""
    live: bool = False
    known: bool = True

    def named(self, name: str) -> int | None:
        """The value of the parameter of that name."""
        return next((one.value for one in self.parameters if one.name == name), None)


def known_codes() -> list[int]:
    """The stop codes that are described."""
    return sorted(int(path.stem, 16) for path in CODES.glob("0x*.toml"))


@lru_cache(maxsize=256)
def _entry(code: int, first: int) -> Mapping[str, Any]:
    """A code's entry with the case, if any, of the first parameter's value."""
    try:
        text = (CODES / f"0x{code:X}.toml").read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    head, *cases = _CASES.split(text)
    heading = f"[cases.0x{first:X}]\n"
    case = next((one for one in cases if one.startswith(heading)), "")
    return tomllib.loads(head + (case or "[cases]\n" * bool(cases)))


def describe(code: int, values: Sequence[int]) -> Description:
    """What a stop code (without bit 28) and its four parameters mean; an unknown one says so."""
    entry = _entry(code, values[0])
    case: Mapping[str, Any] = next(iter(entry.get("cases", {}).values()), {})
    pairs: list[Sequence[str]] = list(entry.get("parameters", []))
    if not pairs and ("p1" in entry or "cases" in entry):
        pairs = [("kind", "what happened")]
    if case:
        pairs[1:] = case.get("parameters", [])
    parameters = []
    for number, value in enumerate(values, start=1):
        unnamed = (f"parameter_{number}", _UNNAMED)
        name, meaning = pairs[number - 1] if number <= len(pairs) else unnamed
        if name == "exception":  # an NTSTATUS, perhaps with its sign carried up
            words = EXCEPTIONS.get(value & 0xFFFF_FFFF)
        elif case and number == 1:
            words = case["meaning"]
        else:
            words = (case.get(f"p{number}") or entry.get(f"p{number}", {})).get(f"0x{value:X}")
        parameters.append(Parameter(value, name, f"{meaning}: {words}" if words else meaning))
    return Description(
        entry.get("name", f"BUG_CHECK_{code:X}"),
        entry.get("meaning", UNKNOWN),
        tuple(parameters),
        case.get("family") or entry.get("family", ""),
        entry.get("no_culprit", ""),
        entry.get("evidence", ""),
        entry.get("live", False),
        bool(entry),
    )
