"""The one place in the tests that sleeps: waiting for a condition, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class DeadlineError(AssertionError):
    """What was waited for did not happen in time."""


def wait_for(
    what: str, condition: Callable[[], T | None], deadline: float, interval: float = 0.05
) -> T:
    """Calls `condition` until it is truthy and returns its value.

    deadline: seconds from now; interval: seconds between calls. Raises DeadlineError naming
    `what` and the last value seen.
    """
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= end:
            raise DeadlineError(f"waited {deadline:g} s for {what}; last seen: {value!r}")
        time.sleep(interval)
