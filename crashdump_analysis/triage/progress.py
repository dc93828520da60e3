"""What a command is doing, told on stderr where it takes long."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Final, Self

FIRST_SECONDS: Final = 2.0
NEXT_SECONDS: Final = 5.0


class Progress:
    """Says every few seconds what is being done and for how long; nothing of what is done soon.

    A context: its thread ends with it.
    """

    def __init__(self, *, first: float = FIRST_SECONDS, following: float = NEXT_SECONDS) -> None:
        """Seconds until a file's first line, and from one line to the next."""
        self._first = first
        self._following = following
        self._name = ""
        self._text = ""
        self._began = time.monotonic()
        self._due = float("inf")
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._tell, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join()

    def begin(self, name: str) -> None:
        """Another file is looked at."""
        with self._changed:
            self._name, self._text = name, "reading it"
            self._began = time.monotonic()
            self._due = self._began + self._first
            self._changed.notify()

    def say(self, text: str) -> None:
        """What is being done with it now."""
        self._text = text

    def _tell(self) -> None:
        with self._changed:
            while not self._ended:
                now = time.monotonic()
                if now >= self._due:
                    print(
                        f"{self._name}: {self._text} ({now - self._began:.0f} s)",
                        file=sys.stderr,
                        flush=True,
                    )
                    self._due = now + self._following
                wait = min(self._due - time.monotonic(), threading.TIMEOUT_MAX)
                self._changed.wait(wait)
