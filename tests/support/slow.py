"""Machines slowed down from outside, as on a host that has no time for them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.labs import machines_of

TICK = 0.02
"""Seconds that a machine runs at a time; new machines are found as often."""


@contextmanager
def slowed_machines(folder: Path, times: int) -> Iterator[None]:
    """While the block runs, QEMU processes whose disk lies below `folder` get 1/times of the time.

    They are stopped and continued by signals; their clocks go on, as those of a starved guest do.
    """
    ended = threading.Event()

    def tick() -> None:
        number = 0
        while not ended.wait(TICK):
            send(machines_of(folder), signal.SIGCONT if number % times == 0 else signal.SIGSTOP)
            number += 1
        send(machines_of(folder), signal.SIGCONT)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def send(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError):  # it ended meanwhile
            os.kill(process, number)
