"""The command line: dumps in, reports out."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from crashdump_analysis.errors import DumpError
from crashdump_analysis.triage.analysis import triage

REFUSED = 3
"""Exit code where a file could not be reported on."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments; `lab triage` has the same."""
    parser.add_argument("paths", nargs="+", metavar="PATH", help="kernel dump")
    parser.add_argument("--json", action="store_true", help="reports as JSON, one a line")
    parser.add_argument(
        "--symbols",
        action="append",
        default=[],
        metavar="FOLDER",
        help="folder with PDBs, flat or laid out as a symbol store; may be given again",
    )


def run(paths: Sequence[str], symbols: Sequence[str], *, as_json: bool) -> int:
    """Prints a report for each dump. Exit code 0, or 3 where one was refused."""
    status = 0
    for path in paths:
        try:
            report = triage(path, symbols)
        except (DumpError, OSError) as error:
            print(f"refused: {error}", file=sys.stderr)
            status = REFUSED
            continue
        print(json.dumps(report.to_dict()) if as_json else report.to_text(), flush=True)
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """`lab triage PATH... [--json] [--symbols FOLDER]`; 0 all reported, 3 one was refused."""
    parser = argparse.ArgumentParser(
        prog="lab triage", description="Reports on Windows kernel dumps: stop code, stack, culprit."
    )
    add_arguments(parser)
    options = parser.parse_args(arguments)
    return run(options.paths, options.symbols, as_json=options.json)
