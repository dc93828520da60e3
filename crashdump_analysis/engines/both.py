"""Both engines on each dump: the portable engine's report, and where Microsoft's differs."""

from __future__ import annotations

from dataclasses import replace

from crashdump_analysis.comparison import Comparison, Difference, DifferenceKind, compare
from crashdump_analysis.dump import open_dump
from crashdump_analysis.engines.base import Answer, EngineOptions, TriageEngine
from crashdump_analysis.engines.pykd import Microsoft, Refusal
from crashdump_analysis.errors import DumpError
from crashdump_analysis.owners import owners_with
from crashdump_analysis.report import Report
from crashdump_analysis.symbols import SymbolPath, Symbols
from crashdump_analysis.triage.analysis import Analysis


class Engine(TriageEngine):
    """See the module."""

    compares = True

    def __init__(self, options: EngineOptions) -> None:
        super().__init__(options)
        self._owners = owners_with(options.owners)
        self._path = SymbolPath(options.symbols, offline=options.offline, progress=options.say)
        self._microsoft = Microsoft(options, self._owners)

    def close(self) -> None:
        """See TriageEngine."""
        self._microsoft.close()

    def answer(self, path: str) -> Answer:
        """See TriageEngine."""
        try:
            with open_dump(path, self.options.say) as dump:
                analysis = Analysis(dump, Symbols(self._path), self._owners)
                return self._compared(path, analysis, analysis.report())
        except OSError as error:
            return Answer(None, str(error))
        except DumpError as error:
            return self._without_portable(path, str(error))

    def _compared(self, path: str, analysis: Analysis, ours: Report) -> Answer:
        theirs = self._microsoft.report(path)
        if isinstance(theirs, Refusal):
            comparison = _refused("a report", theirs.words) if theirs.of_dump else None
            comparison = comparison or Comparison((), failure=theirs.words)
            return Answer(replace(ours, comparison=comparison), theirs.words)
        comparison = compare(ours, theirs, analysis.inlined_at)
        return Answer(replace(ours, comparison=comparison, analyze=theirs.analyze))

    def _without_portable(self, path: str, refused: str) -> Answer:
        theirs = self._microsoft.report(path)
        if isinstance(theirs, Refusal):
            return Answer(None, f"{refused}. Microsoft's engine: {theirs.words}")
        return Answer(replace(theirs, comparison=_refused(refused, "a report")), refused)


def _refused(portable: str, pykd: str) -> Comparison:
    difference = Difference(DifferenceKind.REFUSED, "dump", portable, pykd)
    return Comparison((difference,), failure="one of the engines does not take the dump")
