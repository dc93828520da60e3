"""Who owns which code: rules in the shape of WinDbg's triage.ini.

Source: Microsoft's "Specifying Module and Function Owners". A lab's own files are read before the
rules that come along (owners.ini); among rules that match, the more complete one wins, and of
equally complete ones the one that was read first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Final

from crashdump_analysis.errors import DumpError

OWNERS: Final = Path(__file__).with_name("owners.ini")
IGNORE: Final = "ignore"
DEFAULT_OWNER: Final = "MachineOwner"
RANKS: Final = ("last_", "maybe_")
"""Beginnings of the names of owners that give way to others; the weaker first."""


@dataclass(frozen=True)
class OwnerRule:
    """`Module[!Function]=Owner`; a name may end in `*`. Names are compared in lower case."""

    module: str
    function: str | None
    owner: str

    def matches(self, module: str, function: str | None) -> bool:
        """Whether the rule is about a frame; both names in lower case."""
        if not _matches(self.module, module):
            return False
        return self.function is None or (function is not None and _matches(self.function, function))

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

    def __init__(self, rules: Iterable[OwnerRule], default: str | None = None) -> None:
        self.rules = tuple(rules)
        self.default = default
        self._heaviest_first = sorted(self.rules, key=lambda rule: rule.weight, reverse=True)
        self._known: dict[tuple[str, str | None], str] = {}

    def of(self, module: str, function: str | None) -> str:
        """The owner of a function of a module."""
        place = (module, function)
        owner = self._known.get(place)
        if owner is None:
            lower = module.lower(), function.lower() if function else None
            found = (rule.owner for rule in self._heaviest_first if rule.matches(*lower))
            owner = next(found, self.default or DEFAULT_OWNER)
            if len(self._known) < _MOST_KNOWN:
                self._known[place] = owner
        return owner

    def rank(self, module: str, function: str | None) -> int | None:
        """How readily the owner is blamed: 0 last, len(RANKS) first; None for never."""
        owner = self.of(module, function)
        if owner == IGNORE:
            return None
        return next((at for at, word in enumerate(RANKS) if owner.startswith(word)), len(RANKS))


_MOST_KNOWN = 10_000  # names that one process keeps; dumps may hold any


@cache
def read_owners(*paths: Path) -> Owners:
    """The rules of these files, in order, and then those that come along.

    Raises DumpError naming the line that is wrong, OSError where a file cannot be read.
    """
    files = [read_owner_file(path) for path in (*paths, OWNERS)]
    default = next((one.default for one in files if one.default), None)
    return Owners((rule for one in files for rule in one.rules), default)


def owners_with(paths: Iterable[str | PathLike[str]]) -> Owners:
    """`read_owners`, of any kind of paths; each set of files is read once."""
    return read_owners(*map(Path, paths))


def read_owner_file(path: Path) -> Owners:
    """Reads one file in triage.ini's shape. Raises DumpError naming the line that is wrong."""
    rules, default = [], None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DumpError(str(path), expected="owner rules in UTF-8", found=str(error)) from error
    for number, line in enumerate(lines, start=1):
        text = line.partition(";")[0].strip()
        if not text:
            continue
        name, equals, owner = (part.strip() for part in text.partition("="))
        module, bang, function = name.lower().partition("!")
        whole = equals and owner and module and (function or not bang)
        if not whole or "*" in module[:-1] or "*" in function[:-1]:
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
