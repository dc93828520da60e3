"""Microsoft's debugger engine on Linux, under Wine.

    LAB_ACCEPT_DEBUGGER_TERMS=1 lab pykd setup
    lab triage MEMORY.DMP --engine pykd --symbols build/symbols

wine_setup.py puts it there. The worker sees the whole file system as drive Z:.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from crashdump_analysis.engines import EngineError, wine_setup
from crashdump_analysis.engines.worker import WORKER, ProcessChannel, Progress, WorkerEngine


def windows_path(path: str | os.PathLike[str]) -> str:
    """A path of this machine as Wine shows it: drive Z: is the root folder."""
    return "Z:" + os.path.abspath(path).replace("/", "\\")


def windows_symbol_path(elements: Iterable[str | os.PathLike[str]]) -> str:
    """A symbol path for the engine out of folders and WinDbg elements (``srv*/cache*https://…``).

    Elements may themselves be whole symbol paths with semicolons.
    """
    out = []
    for element in elements:
        for entry in os.fspath(element).split(";"):
            parts = entry.split("*")
            out.append(
                "*".join(
                    part
                    if not part or part.lower() in _SERVER_WORDS or "://" in part
                    else windows_path(part)
                    for part in parts
                )
            )
    return ";".join(out)


_SERVER_WORDS = {"srv", "symsrv", "symsrv.dll", "cache"}


class WineEngine(WorkerEngine):
    """The engine in a Windows CPython under this machine's Wine."""

    @property
    def place(self) -> str:
        """See WorkerEngine."""
        return "under Wine"

    @property
    def process_id(self) -> int | None:
        """Process id of the running worker, or None."""
        channel = self._channel
        return channel.process_id if isinstance(channel, ProcessChannel) else None

    def _path_there(self, dump: str | os.PathLike[str]) -> str:
        return windows_path(dump)

    def _symbol_path_there(self, elements: Iterable[str | os.PathLike[str]]) -> str:
        return windows_symbol_path(elements)

    def _advice(self) -> str:
        folder = wine_setup.cache_folder()
        return f". If files are missing: remove {folder}; {wine_setup.SETUP_COMMAND}"

    def _connect(self) -> ProcessChannel:
        folder = wine_setup.cache_folder()
        if not wine_setup.is_set_up():
            raise EngineError(
                "engine-missing",
                f"Microsoft's debugger engine is not set up in {folder}. docs/pykd.md says what "
                f"its terms are; then: {wine_setup.SETUP_COMMAND}",
            )
        return ProcessChannel(
            [
                str(wine_setup.find_wine()),
                str(folder / "python" / "python.exe"),
                "-u",
                windows_path(WORKER),
                "--engine",
                windows_path(folder / "engine" / "pykd"),
            ],
            wine_setup.environment(folder),
            folder,
        )


def setup(say: Progress = wine_setup.tell) -> Path:
    """Sets up what is missing (see wine_setup.setup) and tries it."""

    def version() -> str:
        with WineEngine() as engine:
            return engine.version

    return wine_setup.setup(version, say)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m crashdump_analysis.engines.wine setup`, which `lab pykd setup` is too.

    0 done, 2 bad usage, 3 it could not be done.
    """
    parser = argparse.ArgumentParser(
        prog="python -m crashdump_analysis.engines.wine",
        description="Microsoft's debugger engine under Wine (docs/pykd.md).",
        epilog=f"Files go to ${wine_setup.CACHE_VARIABLE}, by default {wine_setup.cache_folder()}.",
    )
    parser.add_subparsers(required=True).add_parser(
        "setup", help="fetch pykd, the engine and Windows CPython and make a Wine prefix"
    )
    parser.parse_args(arguments)
    try:
        print(f"pykd is set up in {setup()}")
    except EngineError as error:
        print(f"{error.kind}: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
