"""Microsoft's engine: the same report, out of what dbgeng.dll says of a dump.

Memory, modules, registers, stacks and names are the engine's. What follows from them (the words of
the bug check, where its fault is, culprit, bucket and family) is found by the same code as in the
portable engine's report. The dump's file is opened here too, for its header.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from mmap import mmap
from pathlib import Path
from typing import Final

from crashdump_analysis.dump import Dump, open_dump
from crashdump_analysis.dump.format import DumpFormat
from crashdump_analysis.dump.header import HEADER_SIZE, DumpHeader, read_header
from crashdump_analysis.dump.source import mapped
from crashdump_analysis.engines import EngineError
from crashdump_analysis.engines.analysis_host import AnalysisHost
from crashdump_analysis.engines.analyze import COMMAND, Analyze, is_missing, parse
from crashdump_analysis.engines.base import Answer, EngineOptions, TriageEngine
from crashdump_analysis.engines.portable import Engine as PortableEngine
from crashdump_analysis.engines.pykd_analysis import PykdAnalysis
from crashdump_analysis.engines.windows import PYTHON_VARIABLE, WindowsEngine
from crashdump_analysis.engines.worker import Progress, WorkerEngine, silent
from crashdump_analysis.errors import DumpError
from crashdump_analysis.memory import Memory
from crashdump_analysis.owners import Owners, owners_with
from crashdump_analysis.report import Report

ANALYZE_SECONDS: Final = 600.0  # it may wait for a symbol server

# What is wrong with the dump, not with the way to the engine.
_OF_DUMP = frozenset({"dump-missing", "dump-refused", "not-a-kernel-dump", "engine-failed"})
# Not to be tried again for the next dump.
_UNAVAILABLE = frozenset(
    {
        "engine-missing",
        "setup",
        "terms",
        "host-unreachable",
        "host-key",
        "host-refused",
        "host-setup",
    }
)
_COPIED = 1 << 24  # bytes at once


def pykd_host(host: AnalysisHost | None = None, *, say: Progress = silent) -> WorkerEngine:
    """The engine where it is to run: on the analysis host, on this Windows, or under Wine."""
    if host is not None:
        try:
            from crashdump_analysis.engines.ssh import SshEngine  # noqa: PLC0415
        except ImportError as error:
            raise EngineError(
                "host-setup",
                f"an analysis host needs a package that is not here ({error.name}): "
                "pip install 'bugcheck-lab[lab]'",
            ) from None
        return SshEngine(host, say=say)
    if sys.platform == "win32" or PYTHON_VARIABLE in os.environ:
        return WindowsEngine(say=say)
    from crashdump_analysis.engines.wine import WineEngine  # noqa: PLC0415

    return WineEngine(say=say)


@dataclass(frozen=True)
class Refusal:
    """Why there is no report, in words. of_dump: because of the dump, not of the way there."""

    words: str
    of_dump: bool


class Microsoft:
    """Reports of Microsoft's engine, one dump after another in one worker."""

    def __init__(self, options: EngineOptions, owners: Owners) -> None:
        self._options = options
        self._owners = owners
        self._symbols = [
            _without_servers(one) if options.offline else one for one in options.symbols
        ]
        self._engine: WorkerEngine | None = None
        self._unavailable: Refusal | None = None

    def close(self) -> None:
        """Ends the worker."""
        if self._engine:
            self._engine.shut_down()
            self._engine = None

    def report(self, path: str) -> Report | Refusal:
        """The engine's report on a dump, or why there is none. Raises OSError."""
        if self._unavailable is not None:
            return self._unavailable
        try:
            if self._engine is None:
                self._engine = pykd_host(self._options.analysis_host(), say=self._options.say)
            with _opened(path, self._options.say) as (file, dump):
                return self._report(self._engine, file, dump)
        except EngineError as error:
            refusal = Refusal(f"{error.kind}: {error}", error.kind in _OF_DUMP)
            if error.kind in _UNAVAILABLE:
                self._unavailable = refusal  # the next dump would wait for nothing
            return refusal
        except DumpError as error:
            return Refusal(str(error), of_dump=True)

    def _report(self, engine: WorkerEngine, file: str, dump: Dump) -> Report:
        self._options.say(f"Microsoft's engine opens it, {engine.place}")
        kind = engine.open(file, self._symbols)
        answer = engine.report()
        self._options.say(f"Microsoft's engine {engine.place}: {kind} dump")
        report = PykdAnalysis(engine, kind, answer, dump, self._owners).report()
        analyze, warning = _analyze(engine)
        with contextlib.suppress(EngineError):
            engine.close()  # which deletes what was sent
        return replace(report, analyze=analyze, warnings=(*report.warnings, *warning))


class Engine(TriageEngine):
    """Microsoft's engine; where it gives no report, the portable engine's, which says so."""

    def __init__(self, options: EngineOptions) -> None:
        super().__init__(options)
        self._portable = PortableEngine(options)
        self._microsoft = Microsoft(options, owners_with(options.owners))

    def close(self) -> None:
        """See TriageEngine."""
        self._microsoft.close()

    def answer(self, path: str) -> Answer:
        """See TriageEngine."""
        try:
            theirs = self._microsoft.report(path)
        except OSError as error:
            return Answer(None, str(error))
        if not isinstance(theirs, Refusal):
            return Answer(theirs)
        ours = self._portable.answer(path).report
        if ours is not None:
            warning = f"this is the portable engine's report: Microsoft's gave none: {theirs.words}"
            ours = replace(ours, warnings=(warning, *ours.warnings))
        return Answer(ours, theirs.words)


@contextlib.contextmanager
def _opened(path: str, say: Progress) -> Iterator[tuple[str, Dump]]:
    """A dump as a plain file, and what is known of it here. Raises DumpError, OSError."""
    with contextlib.ExitStack() as stack:
        try:
            dump = stack.enter_context(open_dump(path, say))
        except DumpError:
            # Microsoft's engine may think otherwise, as long as there is a header of such a dump.
            data = stack.enter_context(mapped(Path(path), say))
            header = read_header(data[:HEADER_SIZE], path)
            dump = Dump(Path(path), len(data), header, b"", _Unread(data, header, path))
        yield stack.enter_context(_plain_file(path, dump.contents)), dump


class _Unread(DumpFormat):
    """What is known of a dump that the portable engine does not take: nothing."""

    def __init__(self, data: mmap, header: DumpHeader, where: str) -> None:
        super().__init__(data, header, where)
        self.required_size = header.required_size or len(data)
        self.memory = _NoMemory()


class _NoMemory(Memory):
    def read_some(self, address: int, size: int) -> bytes:
        """See Memory."""
        return b""


@contextlib.contextmanager
def _plain_file(path: str, contents: DumpFormat) -> Iterator[str]:
    """The path of a file that is the dump itself: a temporary one where it was unpacked."""
    data = contents.data
    file = Path(path)
    if file.is_file() and file.stat().st_size == len(data):
        with file.open("rb") as plain:
            if plain.read(8) == data[:8]:
                yield path
                return
    with tempfile.TemporaryDirectory(prefix="dump-") as folder:
        file = Path(folder, "MEMORY.DMP")
        with file.open("wb") as out:
            for start in range(0, len(data), _COPIED):
                out.write(data[start : start + _COPIED])
        yield str(file)


def _without_servers(symbol_path: str) -> str:
    """A symbol path of the debuggers without what would go over the network by HTTP."""
    elements = (
        "*".join(p for p in one.split("*") if "://" not in p) for one in symbol_path.split(";")
    )
    return ";".join(
        one for one in elements if one.lower() not in ("srv", "symsrv", "symsrv*symsrv.dll")
    )


def _analyze(engine: WorkerEngine) -> tuple[Analyze | None, tuple[str, ...]]:
    """What `!analyze -v` says, or a warning that there is none."""
    try:
        text = engine.command(COMMAND, deadline=ANALYZE_SECONDS)
    except EngineError as error:
        return None, (f"!analyze: {error.kind}: {error}",)
    if is_missing(text):
        return None, (f"there is no !analyze {engine.place}: the engine's ext.dll is not there",)
    return parse(text), ()
