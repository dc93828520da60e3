"""Both engines on real dumps, where they are at hand and the engine's terms are accepted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from crashdump_analysis.engines import both
from crashdump_analysis.engines.base import EngineOptions
from tests.oracle.dbgeng import judge

KERNEL = Path(__file__).parents[3] / "shared/dumps/kernel"
DUMPS = sorted(KERNEL.glob("*.dmp"))


@pytest.fixture(scope="module")
def engine() -> Iterator[both.Engine]:
    judge()
    with both.Engine(EngineOptions()) as started:
        yield started


@pytest.mark.skipif(not DUMPS, reason="no ../shared/dumps here")
@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.stem)
def test_nothing_differs_in_what_can_be_compared(engine: both.Engine, dump: Path) -> None:
    """Bug check, parameters, modules and registers; of the stack two frames at most."""
    answer = engine.answer(str(dump))
    assert answer.refused == ""
    assert answer.report is not None
    comparison = answer.report.comparison
    assert comparison is not None
    assert comparison.differences == ()
    assert 1 <= comparison.frames <= 2
    assert "for want of unwind data" in comparison.limit
    assert len(answer.report.modules) > 100
