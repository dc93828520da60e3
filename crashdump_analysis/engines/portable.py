"""The portable engine: pure Python, on any system."""

from __future__ import annotations

from functools import cache

from crashdump_analysis.dump import open_dump
from crashdump_analysis.engines.base import Answer, EngineOptions, TriageEngine
from crashdump_analysis.errors import DumpError
from crashdump_analysis.owners import owners_with
from crashdump_analysis.report import Report
from crashdump_analysis.symbols import SymbolPath, Symbols
from crashdump_analysis.triage.analysis import Analysis


def portable_report(
    symbols: tuple[str, ...], owners: tuple[str, ...], offline: bool, path: str
) -> Report:
    """A report by itself, for processes that work on many dumps. Raises DumpError, OSError."""
    with open_dump(path) as dump:
        return Analysis(dump, Symbols(_path(symbols, offline)), owners_with(owners)).report()


@cache
def _path(symbols: tuple[str, ...], offline: bool) -> SymbolPath:
    """Once in a process, as it remembers which servers do not answer."""
    return SymbolPath(symbols, offline=offline)


class Engine(TriageEngine):
    """See the module."""

    def __init__(self, options: EngineOptions) -> None:
        super().__init__(options)
        self._owners = owners_with(options.owners)
        self._path = SymbolPath(options.symbols, offline=options.offline, progress=options.say)

    def answer(self, path: str) -> Answer:
        """See TriageEngine."""
        try:
            with open_dump(path, self.options.say) as dump:
                return Answer(Analysis(dump, Symbols(self._path), self._owners).report())
        except (DumpError, OSError) as error:
            return Answer(None, str(error))
