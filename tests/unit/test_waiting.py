"""The polling helper the other tests rely on."""

from __future__ import annotations

import pytest

from tests.support.waiting import DeadlineError, wait_for


def test_returns_the_first_truthy_value() -> None:
    values = iter([0, "", "there"])
    assert wait_for("a value", lambda: next(values), 5, interval=0) == "there"


def test_says_what_did_not_happen_and_what_was_seen_last() -> None:
    with pytest.raises(DeadlineError, match=r"waited 0\.01 s for the agent; last seen: \[\]"):
        wait_for("the agent", list[str], 0.01, interval=0)
