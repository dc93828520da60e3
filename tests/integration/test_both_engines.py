"""lab triage --engine both: Microsoft's engine says the same of every crash, its known ways aside.

Each known way is held against the PDB by the comparison itself. Where the engine's terms were not
accepted these tests are skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from crashdump_analysis.comparison import DifferenceKind
from crashdump_analysis.engines import both, pykd
from crashdump_analysis.engines.base import EngineOptions, TriageEngine
from crashdump_analysis.engines.wine import windows_path
from crashdump_analysis.engines.wine_setup import cache_folder, environment, find_wine
from crashdump_analysis.report import Report
from images.test_kernel.build import BUILT
from tests.integration.conftest import CrashFactory
from tests.oracle.dbgeng import judge
from tests.support.dumps import as_triage_dump
from tests.support.sensor import CRASHES, KINDS, built
from tests.support.sshd import sshd


@pytest.fixture(scope="module", autouse=True)
def _engines() -> Iterator[None]:
    judge()
    yield
    for engine in _started.values():
        engine.close()
    _started.clear()


_started: dict[str, both.Engine] = {}
"""One for each variant's symbols: starting one takes as long as ten dumps."""


def options_of(variant: str) -> EngineOptions:
    return EngineOptions(symbols=(str(BUILT), str(built(variant))))


def compared(dump: Path, variant: str) -> Report:
    """The report of both engines, with the symbols of a variant of the sensor."""
    if variant not in _started:
        _started[variant] = both.Engine(options_of(variant))
    return answered(_started[variant], dump)


def answered(engine: TriageEngine, dump: Path) -> Report:
    answer = engine.answer(str(dump))
    assert answer.refused == ""
    assert answer.report is not None
    return answer.report


def check(report: Report, variant: str) -> None:
    """Nothing differs but what the engine is known for, and that only where it can be."""
    comparison = report.comparison
    assert comparison is not None
    assert (comparison.failure, comparison.limit) == ("", "")
    assert comparison.frames == len([one for one in report.stack if not one.inline])
    assert comparison.differences == ()
    kinds = [one.kind for one in comparison.known]
    assert kinds.count(DifferenceKind.KERNEL_NAME) == 1
    # An NMI or a key interrupts the kernel anywhere, and it has inlined functions of its own.
    kernel_interrupted = any(one.trapped and one.module == "nt" for one in report.stack)
    if variant != "a-inlined" and not kernel_interrupted:
        assert DifferenceKind.INLINE_EARLY not in kinds


@pytest.mark.parametrize(("kind", "variant"), CRASHES)
def test_microsofts_engine_says_the_same(crash_of: CrashFactory, kind: str, variant: str) -> None:
    check(compared(crash_of(kind, variant).dump, variant), variant)


def test_the_engines_known_way_with_inlined_functions_shows(crash_of: CrashFactory) -> None:
    """So it is compared at all: here the byte before the fault is in another function."""
    comparison = compared(crash_of("exception", "a-inlined").dump, "a-inlined").comparison
    assert comparison is not None
    (found,) = [one for one in comparison.known if one.kind is DifferenceKind.INLINE_EARLY]
    first, *_ = KINDS["exception"].frames
    assert found.portable.startswith(f"{first} [")
    assert not found.pykd.startswith(f"{first} [")


@pytest.mark.parametrize(
    ("kind", "variant"), [("killer", "a-o2"), ("hang", "a-o2"), ("nmi", "a-o2")]
)
def test_pykds_own_report(crash_of: CrashFactory, kind: str, variant: str) -> None:
    """Culprit, bucket and family from Microsoft's stack are those of the portable engine."""
    dump = crash_of(kind, variant).dump
    with pykd.Engine(options_of(variant)) as engine:
        theirs = answered(engine, dump)
    ours = compared(dump, variant)
    check(ours, variant)
    assert theirs.engine == "pykd"
    assert theirs.culprit == ours.culprit
    assert theirs.bucket == ours.bucket
    assert theirs.processor == ours.processor
    assert theirs.context.frame == ours.context.frame
    # Inlined frames are compared by `check`: the engine's known way with them may show here.
    assert places_of(theirs) == places_of(ours)


def places_of(report: Report) -> list[tuple[str | None, str | None, int | None]]:
    return [(one.module, one.function, one.line) for one in report.stack if not one.inline]


def test_without_symbols(crash_of: CrashFactory) -> None:
    """No names, and none made up of exports: modules and offsets are the same."""
    with both.Engine(EngineOptions()) as engine:
        report = answered(engine, crash_of("killer", "a-o2").dump)
    assert report.comparison is not None
    assert report.comparison.differences == ()
    assert report.comparison.frames == len(report.stack)


def test_a_complete_dump(complete_dump_of: Callable[[str], Path]) -> None:
    path = complete_dump_of("a-o2")
    report = compared(path, "a-o2")
    assert report.dump.type == 1
    check(report, "a-o2")


def test_a_triage_dump_of_microsofts_making(crash_of: CrashFactory, tmp_path: Path) -> None:
    """With images at hand both know the sensor's part of the stack; without them one frame.

    Of the kernel's image this engine cannot unwind: it calls it partial.
    """
    path, variant = tmp_path / "mini.dmp", "a-o2"
    engine = judge()
    engine.open(crash_of("killer", variant).dump, symbols=[BUILT, built(variant)])
    assert "Dump successfully written" in engine.command(f".dump /m {windows_path(path)}")
    report = compared(path, variant)
    comparison = report.comparison
    assert report.dump.type == 4
    assert comparison is not None
    assert comparison.differences == ()
    assert "from the fault on" in comparison.limit
    assert comparison.frames > len(KINDS["killer"].frames)
    sensor = [one.function for one in report.stack if one.module == "sensor"]
    assert sensor == list(KINDS["killer"].frames)
    with both.Engine(EngineOptions()) as bare:
        comparison = answered(bare, path).comparison
    assert comparison is not None
    assert comparison.differences == ()
    assert "frame 0 are compared" in comparison.limit


def test_a_triage_dump_that_only_the_portable_engine_takes(
    crash_of: CrashFactory, tmp_path: Path
) -> None:
    """Microsoft's wants more in it: the processor's control block."""
    path = as_triage_dump(crash_of("killer", "a-o2").dump, tmp_path / "mini.dmp")
    with both.Engine(options_of("a-o2")) as engine:
        answer = engine.answer(str(path))
    assert "dump-refused" in answer.refused
    assert answer.report is not None
    assert answer.report.comparison is not None
    (difference,) = answer.report.comparison.differences
    assert difference.kind is DifferenceKind.REFUSED


@pytest.fixture
def windows_python(tmp_path: Path) -> Path:
    """A program that is a Windows Python to whoever starts it."""
    folder = cache_folder()
    program = tmp_path / "python"
    names = ("WINEPREFIX", "WINEARCH", "WINEDEBUG", "WINEDLLOVERRIDES", "LC_ALL")
    exports = "".join(f"export {name}='{environment(folder)[name]}'\n" for name in names)
    program.write_text(
        f"#!/bin/sh\n{exports}exec '{find_wine()}' '{folder}/python/python.exe' \"$@\"\n"
    )
    program.chmod(0o755)
    return program


def test_a_windows_python(
    crash_of: CrashFactory, windows_python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way it goes on Windows itself, as far as Wine can show it."""
    monkeypatch.setenv("LAB_PYKD_PYTHON", str(windows_python))
    monkeypatch.setenv("LAB_PYKD_ENGINE", windows_path(cache_folder() / "engine" / "pykd"))
    dump = crash_of("killer", "a-o2").dump
    monkeypatch.chdir(dump.parent)  # Wine takes /a/b for a path of the drive one is on
    with both.Engine(options_of("a-o2")) as engine:
        check(answered(engine, dump), "a-o2")


def test_an_analysis_host(crash_of: CrashFactory, windows_python: Path, tmp_path: Path) -> None:
    """A real SSH server whose Python is Windows' under Wine; symbols are only there."""
    dump = crash_of("killer", "a-o2").dump
    there = tmp_path / "there"
    with sshd(tmp_path / "sshd") as server:
        host = replace(
            server.host(windows_python, folder=there),
            engine=windows_path(cache_folder() / "engine" / "pykd"),
            symbols=f"{windows_path(BUILT)};{windows_path(built('a-o2'))}",
        )
        said: list[str] = []
        options = EngineOptions(analysis_host=lambda: host, say=said.append)
        with pykd.Engine(options) as engine:
            report = answered(engine, dump)
            assert list(there.glob("received-*")) == []
    assert report.engine == "pykd"
    assert (report.culprit.module, report.culprit.function) == ("sensor", KINDS["killer"].frames[0])
    assert f"sending it to {host}: 100%" in said
    assert report.dump.path == str(dump)
