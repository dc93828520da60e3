"""A folder of dumps: which crashes are one bug, how often, since when, in which builds.

from crashdump_analysis.triage.folder import triage_folder
print(triage_folder("C:/Windows/Minidump").to_text())

Dumps are reported on one after another, in several processes where there are many; of each report
only what is counted is kept, so a folder of any size takes little memory.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from crashdump_analysis.dump.zip_members import ZipDumps
from crashdump_analysis.errors import DumpError
from crashdump_analysis.modules import printable_text
from crashdump_analysis.owners import owners_with
from crashdump_analysis.report import Report
from crashdump_analysis.symbols import SymbolPath
from crashdump_analysis.triage.analysis import Paths, several, triage

SCHEMA: Final = Path(__file__).parents[1] / "folder.schema.json"
SCHEMA_VERSION: Final = 1
ENDINGS: Final = (".dmp", ".mdmp", ".hdmp", ".kdmp", ".zip", ".gz", ".zst")
"""Names that dumps and archives of dumps have. Other files count if they begin as a dump does."""
_SIGNATURES: Final = (b"PAGEDU64", b"PAGEDUMP", b"MDMP")
_FEW: Final = 16  # dumps that one process has done before another has started
_AT_ONCE: Final = 4  # dumps that a process is given

ReportOn = Callable[[str], Report]
"""Gives the report on a dump, by a path as `open_dump` takes it; DumpError or OSError refuse."""


@dataclass(frozen=True)
class Seen:
    """What is kept of a report. build: timestamp and size of the culprit's image, if known."""

    path: str
    family: str
    basis: str
    module: str | None
    build: str | None
    bug_check: str
    bucket: str
    confidence: str
    time: datetime | None

    @classmethod
    def of(cls, report: Report) -> Seen:
        """What is to be kept of this one."""
        culprit, check = report.culprit, report.bug_check
        image = next((one for one in report.modules if one.name == culprit.module), None)
        build = None
        if image is not None and image.timestamp is not None:
            build = f"{image.timestamp:08X}{image.size:x}"  # as symbol stores name it
        return cls(
            report.dump.path,
            report.bucket.family,
            report.bucket.basis,
            culprit.module,
            build,
            f"0x{check.code:X} {check.name}",
            report.bucket.id,
            culprit.confidence,
            report.dump.time,
        )


@dataclass
class Group:
    """The crashes of one family. Times are by the machines' clocks, UTC; None where not known."""

    family: str
    basis: str
    module: str | None
    dumps: list[str] = field(default_factory=list)
    builds: Counter[str | None] = field(default_factory=Counter)
    bug_checks: Counter[str] = field(default_factory=Counter)
    buckets: Counter[str] = field(default_factory=Counter)
    confidences: Counter[str] = field(default_factory=Counter)
    first_seen: datetime | None = None
    last_seen: datetime | None = None

    def add(self, seen: Seen) -> None:
        """Counts a crash."""
        self.dumps.append(seen.path)
        self.builds[seen.build] += 1
        self.bug_checks[seen.bug_check] += 1
        self.buckets[seen.bucket] += 1
        self.confidences[seen.confidence] += 1
        if seen.time is not None:
            self.first_seen = min(self.first_seen or seen.time, seen.time)
            self.last_seen = max(self.last_seen or seen.time, seen.time)

    def to_dict(self) -> dict[str, Any]:
        """The group as folder.schema.json describes it."""
        return {
            "family": self.family,
            "basis": self.basis,
            "module": self.module,
            "count": len(self.dumps),
            "first_seen": self.first_seen.isoformat() if self.first_seen else None,
            "last_seen": self.last_seen.isoformat() if self.last_seen else None,
            "builds": [{"build": one, "count": count} for one, count in self.builds.most_common()],
            "bug_checks": dict(self.bug_checks.most_common()),
            "buckets": dict(self.buckets.most_common()),
            "confidences": dict(self.confidences.most_common()),
            "dumps": sorted(self.dumps),
        }


class Folder:
    """The families of many crashes, and the files that were refused with the reasons."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.groups: dict[str, Group] = {}
        self.refused: dict[str, str] = {}

    def add(self, seen: Seen) -> None:
        """Puts a crash to its family."""
        group = self.groups.setdefault(seen.family, Group(seen.family, seen.basis, seen.module))
        group.add(seen)

    def refuse(self, path: str, reason: str) -> None:
        """Notes a file that there is no report on."""
        self.refused[path] = reason

    @property
    def count(self) -> int:
        """How many dumps were reported on."""
        return sum(len(one.dumps) for one in self.groups.values())

    @property
    def most_frequent_first(self) -> list[Group]:
        """The families, those with most crashes first; of equal ones, by name."""
        return sorted(self.groups.values(), key=lambda one: (-len(one.dumps), one.family))

    def to_dict(self) -> dict[str, Any]:
        """The folder as folder.schema.json describes it."""
        return {
            "schema": SCHEMA_VERSION,
            "folder": self.path,
            "reported": self.count,
            "families": [one.to_dict() for one in self.most_frequent_first],
            "refused": [
                {"dump": path, "reason": self.refused[path]} for path in sorted(self.refused)
            ],
        }

    def to_json(self) -> str:
        """The folder as one JSON object, indented."""
        return json.dumps(self.to_dict(), indent=2)

    def to_text(self) -> str:
        """A family a paragraph, the most frequent first; then the refused files."""
        return "\n".join(map(printable_text, self._lines()))

    def _lines(self) -> Iterator[str]:
        families = _counted(len(self.groups), "family", "families")
        yield f"{self.path}: {_counted(self.count, 'dump', 'dumps')}, {families}"
        for group in self.most_frequent_first:
            yield ""
            yield f"{len(group.dumps):5} x {group.family}"
            yield f"        bug checks  {_listed(group.bug_checks)}"
            yield f"        seen        {_period(group)}"
            if group.module is not None:
                builds = {one or "unknown": count for one, count in group.builds.most_common()}
                yield f"        builds      {_listed(builds)}"
            yield f"        family by   {group.basis}; confidence {_listed(group.confidences)}"
            yield f"        for example {min(group.dumps)}"
        if self.refused:
            yield ""
            yield f"{len(self.refused):5} refused"
            for path in sorted(self.refused):
                reason = self.refused[path]
                yield f"        {reason}" if path in reason else f"        {path}: {reason}"


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{what} ({count})" for what, count in Counter(counts).most_common())


def _period(group: Group) -> str:
    if group.first_seen is None or group.last_seen is None:
        return "at unknown times"
    first, last = (one.isoformat(timespec="seconds") for one in (group.first_seen, group.last_seen))
    return first if first == last else f"{first} to {last}"


def dumps_in(folder: str | os.PathLike[str]) -> Iterator[str]:
    """The dumps below a folder, in order of their paths; those in zip archives as PATH!member.

    A file is one by its name's ending, or by its first bytes. Archives without dumps, and files
    that cannot be read, are among them, so that somebody hears of them.
    """
    for path in sorted(Path(folder).rglob("*")):
        try:
            # A pipe or a device would be waited for; a link to nothing is told of.
            if path.is_file() or not path.exists():
                yield from _dumps_of(path)
        except (DumpError, OSError):
            yield str(path)


def _dumps_of(path: Path) -> Iterable[str]:
    named = path.suffix.lower() in ENDINGS
    with path.open("rb") as file:
        if file.read(4) == b"PK\3\4":
            return ZipDumps(path, file).dumps() if named else ()
        file.seek(0)
        return (str(path),) if named or file.read(8).startswith(_SIGNATURES) else ()


def triage_folder(
    folder: str | os.PathLike[str],
    report_on: ReportOn | None = None,
    *,
    symbols: Paths = (),
    owners: Paths = (),
    processes: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Folder:
    """Reports on every dump below a folder and groups them.

    report_on: how; without it by the portable engine with these symbols and owners. processes: how
    many work at once, one for each processor without it; with more than one, report_on must be
    something that can be pickled. progress: is told how many dumps are done. Raises DumpError where
    there is no such folder, or an owner rule is wrong.
    """
    if not Path(folder).is_dir():
        raise DumpError(str(folder), expected="a folder of dumps", found="no folder")
    owners_with(owners := several(owners))  # once, for what is wrong with them
    # One path for all: a symbol server that hangs is not asked for every dump.
    report_on = report_on or partial(triage, symbols=SymbolPath(several(symbols)), owners=owners)
    found = Folder(str(folder))
    for number, (path, outcome) in enumerate(_outcomes(folder, report_on, processes), start=1):
        if isinstance(outcome, Seen):
            found.add(outcome)
        else:
            found.refuse(path, outcome)
        if progress:
            progress(number)
    return found


def _outcomes(
    folder: str | os.PathLike[str], report_on: ReportOn, processes: int | None
) -> Iterator[tuple[str, Seen | str]]:
    paths = list(dumps_in(folder))
    processes = min(processes or os.cpu_count() or 1, -(-len(paths) // _FEW))
    if processes <= 1:
        yield from map(partial(_outcome, report_on), paths)
        return
    done = 0
    while done < len(paths):
        try:
            with _pool(processes, report_on) as pool:
                for outcome in pool.map(_outcome_of_process, paths[done:], chunksize=_AT_ONCE):
                    done += 1
                    yield outcome
        except BrokenProcessPool:
            # Which dump it was over nobody tells; it is among the next ones.
            for path in paths[done : done + processes * _AT_ONCE]:
                done += 1
                yield _outcome_alone(report_on, path)


def _pool(processes: int, report_on: ReportOn) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(processes, initializer=_begin, initargs=(report_on,))


def _outcome_alone(report_on: ReportOn, path: str) -> tuple[str, Seen | str]:
    """Of a dump over which a process may have ended."""
    try:
        with _pool(1, report_on) as pool:
            return pool.submit(_outcome_of_process, path).result()
    except BrokenProcessPool:
        return path, (
            "the process that read it was ended: the file became shorter meanwhile, its disk "
            "cannot read it, or memory ran out"
        )


_of_process: list[ReportOn] = []
"""How a process that was started to report does so: what it has learned of symbols stays in it."""


def _begin(report_on: ReportOn) -> None:
    _of_process[:] = [report_on]


def _outcome_of_process(path: str) -> tuple[str, Seen | str]:
    return _outcome(_of_process[0], path)


def _outcome(report_on: ReportOn, path: str) -> tuple[str, Seen | str]:
    """What is kept of a report, or why there is none."""
    try:
        return path, Seen.of(report_on(path))
    except (DumpError, OSError) as error:
        return path, str(error)
