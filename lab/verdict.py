"""May it ship? One word from the outcomes of a run, and the process's exit code."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from lab.outcome import Outcome


class Verdict(StrEnum):
    """The answer for a release."""

    SHIP = "ship"
    HOLD = "hold"
    INCONCLUSIVE = "inconclusive"

    @property
    def exit_code(self) -> int:
        """0 ship, 1 hold, 2 inconclusive."""
        return list(Verdict).index(self)


def verdict_of(outcomes: Sequence[Outcome]) -> Verdict:
    """Hold where the product failed anywhere; ship only where everything was asked and passed."""
    if any(one.is_bad_product for one in outcomes):
        return Verdict.HOLD
    if outcomes and all(one is Outcome.PASSED for one in outcomes):
        return Verdict.SHIP
    return Verdict.INCONCLUSIVE
