"""The one thread in which asyncio libraries live, behind a lab that is synchronous."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def run(coroutine: Coroutine[Any, Any, T], deadline: float) -> T:
    """Runs a coroutine in the loop's thread, from any other thread, and gives its result.

    deadline: seconds, a limit against a library that never returns; raises TimeoutError then, and
    the coroutine is cancelled. What the coroutine raises is raised here.
    """
    future = asyncio.run_coroutine_threadsafe(coroutine, loop())
    try:
        return future.result(deadline)
    except FutureTimeoutError:
        future.cancel()
        raise


def loop() -> asyncio.AbstractEventLoop:
    """The loop, which runs from its first use to the end of the process."""
    global _loop  # noqa: PLW0603 - there is one for the process
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="asyncio", daemon=True).start()
        return _loop
