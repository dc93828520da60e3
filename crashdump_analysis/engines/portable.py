"""The portable engine: pure Python, on any system."""

from __future__ import annotations

from crashdump_analysis.dump import open_dump
from crashdump_analysis.engines.base import Answer, EngineOptions, TriageEngine
from crashdump_analysis.errors import DumpError
from crashdump_analysis.owners import owners_with
from crashdump_analysis.symbols import SymbolPath, Symbols
from crashdump_analysis.triage.analysis import Analysis


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
