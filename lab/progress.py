"""Says that something is still going on, where nothing else would for a while."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FIRST_SECONDS = 2.0
"""Until the first word of what is going on; then twice as long each time."""


@contextmanager
def progress(say: Callable[[str], None], what: str) -> Iterator[None]:
    """Says now and then that it is still at `what`."""
    done = threading.Event()

    def tell() -> None:
        pause = FIRST_SECONDS
        while not done.wait(pause):
            say(f"Still at {what}")
            pause *= 2

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
