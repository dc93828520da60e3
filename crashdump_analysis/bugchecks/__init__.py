"""Bug checks: what a stop code and its parameters mean, out of table.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("table.toml")

# Exceptions that drivers die of (ntstatus.h).
EXCEPTIONS = {
    0x80000002: "STATUS_DATATYPE_MISALIGNMENT",
    0x80000003: "STATUS_BREAKPOINT",
    0xC0000005: "STATUS_ACCESS_VIOLATION",
    0xC0000006: "STATUS_IN_PAGE_ERROR",
    0xC000001D: "STATUS_ILLEGAL_INSTRUCTION",
    0xC0000094: "STATUS_INTEGER_DIVIDE_BY_ZERO",
    0xC0000096: "STATUS_PRIVILEGED_INSTRUCTION",
    0xC00000FD: "STATUS_STACK_OVERFLOW",
    0xC0000409: "STATUS_STACK_BUFFER_OVERRUN",
}


@dataclass(frozen=True)
class Parameter:
    """A parameter's value, what it is called, and what it and its value mean."""

    value: int
    name: str
    meaning: str


@dataclass(frozen=True)
class Description:
    """A bug check in words.

    family: which rule finds its fault context (faults.py); empty for none. no_culprit: why it never
    has a culprit; empty where it may have one.
    """

    name: str
    meaning: str
    parameters: tuple[Parameter, ...]
    family: str
    no_culprit: str


@cache
def _table() -> Mapping[int, Mapping[str, Any]]:
    return {int(code, 16): entry for code, entry in tomllib.loads(TABLE.read_text()).items()}


def known_codes() -> list[int]:
    """The stop codes that the table describes."""
    return sorted(_table())


def describe(code: int, values: Sequence[int]) -> Description:
    """What a stop code (without bit 28) and its four parameters mean; an unknown one says so."""
    entry = _table().get(code, {})
    names: list[Sequence[str]] = list(entry.get("parameters", []))
    first = {int(value, 16): words for value, words in entry.get("p1", {}).items()}
    for value, case in entry.get("cases", {}).items():
        first[int(value, 16)] = case["meaning"]
        if int(value, 16) == values[0]:
            names[1:] = case["parameters"]
    parameters = []
    for number, value in enumerate(values, start=1):
        unnamed = (f"parameter_{number}", "depends on the bug check")
        name, meaning = names[number - 1] if number <= len(names) else unnamed
        if name == "exception":  # an NTSTATUS, perhaps with its sign carried up
            words = EXCEPTIONS.get(value & 0xFFFF_FFFF)
        else:
            words = (first if number == 1 else _values(entry, number)).get(value)
        parameters.append(Parameter(value, name, f"{meaning}: {words}" if words else meaning))
    return Description(
        entry.get("name", f"BUG_CHECK_{code:X}"),
        entry.get("meaning", "A bug check that is not in this program's table."),
        tuple(parameters),
        entry.get("family", ""),
        entry.get("no_culprit", ""),
    )


def _values(entry: Mapping[str, Any], number: int) -> dict[int, str]:
    return {int(value, 16): words for value, words in entry.get(f"p{number}", {}).items()}
