"""The command line: dumps in, reports out."""

from __future__ import annotations

import argparse
import glob
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from crashdump_analysis.dump.source import dump_paths
from crashdump_analysis.engines.base import NAMES, EngineOptions, TriageEngine, engine
from crashdump_analysis.engines.portable import Engine as Portable
from crashdump_analysis.engines.portable import portable_report
from crashdump_analysis.errors import DumpError
from crashdump_analysis.report import Report
from crashdump_analysis.symbols import environment_symbol_path
from crashdump_analysis.triage.progress import Progress

if TYPE_CHECKING:
    from crashdump_analysis.engines.analysis_host import AnalysisHost
    from crashdump_analysis.triage.folder import Folder

USAGE = 2
"""Exit code where the command line or a file it names for its own use is wrong."""
REFUSED = 3
"""Exit code where a file could not be reported on."""

DESCRIPTION = """\
Reports on Windows kernel dumps: bug check, registers at the fault, stack, culprit, and which
crashes belong together. PATH is a dump (.dmp, .dmp.gz, .dmp.zst), a .zip with dumps, or a folder
with any of these below it, whose crashes are then grouped by the bug."""

EPILOG = """\
engines:
  portable  pure Python, on any system; the default
  pykd      Microsoft's dbgeng.dll: on the [analysis_host] of lab.toml, else on this Windows, else
            under Wine (lab pykd setup). Slower; needs the images (.sys) of a triage dump for more
            than two frames. Where it gives no report, the portable engine's is shown, and says so.
  both      the portable engine's report, and every difference of Microsoft's from it, of each
            dump in a folder

symbols:
  --symbols takes a folder with PDBs and images, or a symbol path as WinDbg reads it, such as
  'srv*cache*https://msdl.microsoft.com/download/symbols'; _NT_SYMBOL_PATH is asked after it.
  With an analysis host Microsoft's engine uses the symbol path that lab.toml has for it.

exit code: 0 all were reported, 2 wrong usage, 3 a file was refused by an engine that was asked

examples:
  lab triage MEMORY.DMP --symbols build/symbols
  lab triage /mnt/c/Windows/Minidump --owners ours.ini
  lab triage *.dmp --json | jq -r '[.dump.path, .culprit.module, .bucket.family] | @tsv'
  lab triage crash.zip --engine both --symbols 'cache*;srv*https://msdl.microsoft.com/download/symbols'"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lab triage",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="dump, archive or folder of them")
    parser.add_argument("--json", action="store_true", help="reports as JSON, one a line")
    parser.add_argument(
        "--engine", choices=NAMES, default="portable", help="who looks at the dumps: see below"
    )
    parser.add_argument(
        "--symbols",
        action="append",
        default=[],
        metavar="PATH",
        help="where PDBs and images are: see below; may be given again",
    )
    parser.add_argument(
        "--owners",
        action="append",
        default=[],
        metavar="FILE",
        help="owner rules in the shape of WinDbg's triage.ini, such as which drivers are ours "
        "(docs/triage.md); may be given again",
    )
    parser.add_argument("--offline", action="store_true", help="ask no symbol server")
    return parser


def main(
    arguments: Sequence[str] | None = None,
    analysis_host: Callable[[], AnalysisHost | None] = lambda: None,
) -> int:
    """`lab triage` and `python -m crashdump_analysis.triage`; gives the exit code.

    analysis_host: gives the machine where Microsoft's engine is, None for this one.
    """
    given = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of any script, on any console
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with Progress() as progress:
            options = EngineOptions(
                symbols=(*given.symbols, *environment_symbol_path()),
                owners=tuple(given.owners),
                offline=given.offline,
                analysis_host=analysis_host,
                say=progress.say,
            )
            try:
                started = engine(given.engine, options)
            except (DumpError, OSError) as error:
                print(f"lab triage: {error}", file=sys.stderr)
                return USAGE
            with started:
                command = _Command(started, options, progress, as_json=given.json)
                return command.run(given.paths)
    except BrokenPipeError:  # whoever reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return REFUSED
    except KeyboardInterrupt:
        print("lab triage: interrupted", file=sys.stderr)
        return 130


class _Command:
    """The dumps of some paths, one after another."""

    def __init__(
        self, started: TriageEngine, options: EngineOptions, progress: Progress, *, as_json: bool
    ) -> None:
        self._engine = started
        self._options = options
        self._progress = progress
        self._as_json = as_json
        self._status = 0

    def run(self, paths: Iterable[str]) -> int:
        """Prints the report on each dump. Exit code 0, or 3 where one was refused."""
        for path in paths:
            if not os.path.isdir(path):
                self._each(self._dumps(path))
            else:
                self._folder(path)
        return self._status

    def _dumps(self, path: str) -> Iterator[str]:
        """The dumps that a path names; what is wrong with it is told."""
        files = [path]
        if sys.platform == "win32" and not os.path.exists(path):
            files = glob.glob(path) or files  # the shell does not do it there
        for file in files:
            try:
                yield from dump_paths(file)
            except (DumpError, OSError) as error:
                self._refuse(str(error))

    def _each(self, dumps: Iterable[str]) -> bool:
        """Prints the report on each; whether there was any."""
        found = False
        for dump in dumps:
            found = True
            self._progress.begin(dump)
            answer = self._engine.answer(dump)
            if answer.refused:
                named = dump in answer.refused
                self._refuse(answer.refused if named else f"{dump}: {answer.refused}")
            if answer.report is not None:
                self._print(answer.report)
        return found

    def _folder(self, path: str) -> None:
        """Groups the crashes in a folder; where engines are compared, tells of each instead."""
        # With what it needs, a single dump would take half as long again.
        from crashdump_analysis.triage.folder import dumps_in  # noqa: PLC0415

        nothing = f"{path}: there is no dump below this folder"
        if self._engine.compares:
            if not self._each(dumps_in(path)):
                self._refuse(nothing)
            return
        self._progress.begin(path)
        found = self._grouped(path)
        if not found.count and not found.refused:
            self._refuse(nothing)
            return
        if found.refused:
            self._status = REFUSED  # the reasons are in the text
        self._print(found)

    def _grouped(self, path: str) -> Folder:
        from crashdump_analysis.triage.folder import (  # noqa: PLC0415
            Folder,
            Seen,
            dumps_in,
            triage_folder,
        )

        options = self._options
        if isinstance(self._engine, Portable):
            return triage_folder(
                path,
                partial(portable_report, options.symbols, options.owners, options.offline),
                progress=lambda number: options.say(f"{number} dumps done"),
            )
        found = Folder(path)
        for dump in dumps_in(path):
            answer = self._engine.answer(dump)
            if answer.report is not None:
                found.add(Seen.of(answer.report))
            if answer.refused:
                found.refuse(dump, answer.refused)
        return found

    def _print(self, found: Report | Folder) -> None:
        text = json.dumps(found.to_dict()) if self._as_json else f"{found.to_text()}\n"
        print(text, flush=True)

    def _refuse(self, why: str) -> None:
        print(f"refused: {why}", file=sys.stderr, flush=True)
        self._status = REFUSED
