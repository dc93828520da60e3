"""Ctrl-C where something must be finished first."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SAID = b"\nInterrupted: finishing the evidence first; again, and the disk is kept as it is\n"
STANDARD_ERROR = 2


@contextmanager
def first_interrupt_waits() -> Iterator[None]:
    """Puts the first Ctrl-C (or SIGTERM, or SIGHUP) off until the block ends.

    A second one is raised at once, as KeyboardInterrupt. Signals are the main thread's: elsewhere
    this changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal waiting
        if waiting:
            raise KeyboardInterrupt
        waiting = True
        os.write(STANDARD_ERROR, SAID)  # print() may be what was interrupted

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {
        number: signal.signal(number, note)
        for number in numbers
        if signal.getsignal(number) is signal.default_int_handler
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if waiting:
            raise KeyboardInterrupt
