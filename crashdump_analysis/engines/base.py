"""What every triage engine is: a file NAME.py in this folder with a class `Engine`."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, Final, Self

from crashdump_analysis.engines.analysis_host import AnalysisHost
from crashdump_analysis.report import Report

NAMES: Final = ("portable", "pykd", "both")


def _silent(text: str) -> None:
    pass


@dataclass(frozen=True)
class EngineOptions:
    """What an engine is started with.

    symbols: folders, and symbol paths as the debuggers read them. owners: files of owner rules.
    offline: no symbol server is asked from here. analysis_host: gives the machine where Microsoft's
    engine is, None for this one. say: is told in a few words what is being done.
    """

    symbols: tuple[str, ...] = ()
    owners: tuple[str, ...] = ()
    offline: bool = False
    analysis_host: Callable[[], AnalysisHost | None] = lambda: None
    say: Callable[[str], None] = _silent


@dataclass(frozen=True)
class Answer:
    """The report on a dump, if any engine gave one; `refused` says why one that was asked did not.

    At least one of the two is there.
    """

    report: Report | None
    refused: str = ""


class TriageEngine(ABC):
    """Reports on one dump after another; a context that ends what it started.

    compares: its reports say where engines differ.
    """

    compares: ClassVar[bool] = False

    def __init__(self, options: EngineOptions) -> None:
        self.options = options

    @abstractmethod
    def answer(self, path: str) -> Answer:
        """The report on a dump, whatever is wrong with the dump. `path` as open_dump takes it."""

    def close(self) -> None:  # noqa: B027 - most engines start none
        """Ends processes that were started."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def engine(name: str, options: EngineOptions) -> TriageEngine:
    """The engine of that name."""
    module = importlib.import_module(f"crashdump_analysis.engines.{name}")
    found: TriageEngine = module.Engine(options)
    return found
