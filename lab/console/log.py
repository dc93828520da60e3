"""The log of one serial console: its bytes as they came, and when each part of them did.

Two files. `console.log` has every byte that was received and nothing else. `console.times.jsonl`
has one JSON object a line, in the order of their offsets:

    {"offset": 512, "at": "2026-11-25T22:15:30.123456+00:00"}
        the bytes from 512 on were first seen then, by the host's clock (UTC)
    {"offset": 700, "at": ..., "event": "lost", "why": "..."}
        before byte 700 the connection broke
    {"offset": 700, "at": ..., "event": "connected", "to": "...", "gap_seconds": 3.2}
        it is there again; nobody heard the machine for so long. gap_seconds is null the first time
    {"offset": 700, "at": ..., "event": "looks-replayed", "length": 96}
        so many bytes from 700 on are the last ones before the gap once more (a guess)
    {"offset": 9, "at": ..., "event": "not-the-machine", "length": 40, "why": "..."}
        these bytes in the log were said by a program in between
    {"offset": 12, "at": ..., "event": "typed", "length": 3}
        the lab typed so many bytes (never which: they may be a password)
    {"offset": 0, "at": ..., "event": "took-over", "why": "..."}
        another session was ended for this one

So wherever bytes may be missing, a "connected" with the gap's length stands at that offset.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

TAIL = 4096
"""Bytes in which an index's last line ends."""


class Log:
    """Written by one thread at a time, read by any number, in this process and others.

    path, times: the two files, made if absent and gone on with otherwise. Adding raises OSError
    where there is no room; the same bytes may then be added again, nothing is there twice.
    """

    def __init__(self, folder: Path, name: str = "console") -> None:
        self.path = folder / f"{name}.log"
        self.times = folder / f"{name}.times.jsonl"
        self._lock = threading.RLock()
        self._listeners: list[Callable[[], None]] = []
        self.path.touch()
        self._size = self.path.stat().st_size
        self._last = time.monotonic()

    def look(self) -> None:
        """Takes over bytes that somebody else has received, where this log is of that kind."""

    @property
    def size(self) -> int:
        """How many bytes there are; the offset of the next one."""
        with self._lock:
            return self._size

    @property
    def silent_for(self) -> float:
        """Seconds since the last byte came, or since this process began to look."""
        with self._lock:
            return time.monotonic() - self._last

    def add(self, data: bytes) -> None:
        """Bytes that came just now."""
        with self._lock:
            with self.path.open("r+b") as log:
                log.seek(self._size)  # over what a write left that failed half way
                log.write(data)
            self._tell({})
            self._size += len(data)
            self._last = time.monotonic()
        self._wake()

    def mark(self, event: str, *, offset: int | None = None, **details: Any) -> None:
        """Notes an event at an offset, or behind the last byte."""
        with self._lock:
            self._tell({"event": event, **details}, offset)
        self._wake()

    def _tell(self, entry: dict[str, Any], offset: int | None = None) -> None:
        at = datetime.now(UTC).isoformat()
        line = {"offset": self._size if offset is None else offset, "at": at, **entry}
        with self.times.open("a", encoding="utf-8") as times:
            times.write(json.dumps(line) + "\n")

    def read(self, start: int, stop: int | None = None) -> bytes:
        """The bytes from one offset up to another, or to the end."""
        with self._lock:
            end = self._size if stop is None else min(stop, self._size)
        if end <= start:
            return b""
        with self.path.open("rb") as log:
            return os.pread(log.fileno(), end - start, start)

    def last_entry(self) -> datetime | None:
        """When something was last noted, by any process; None in a log without a line."""
        if not self.times.exists():
            return None
        with self.times.open("rb") as times:
            times.seek(max(0, times.seek(0, os.SEEK_END) - TAIL))
            lines = times.read().split(b"\n")
        whole = [line for line in lines[:-1] if line.startswith(b'{"offset"')]
        return datetime.fromisoformat(json.loads(whole[-1])["at"]) if whole else None

    def listen(self, listener: Callable[[], None]) -> None:
        """Has `listener` called, in the writer's thread, after each thing that is added."""
        with self._lock:
            self._listeners.append(listener)

    def forget(self, listener: Callable[[], None]) -> None:
        """Takes listen() back."""
        with self._lock, suppress(ValueError):
            self._listeners.remove(listener)

    def _wake(self) -> None:
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            listener()


class FollowedLog(Log):
    """A log that another process writes; read-only here, and it need not be there yet."""

    def __init__(self, folder: Path, name: str = "console") -> None:
        self.path = folder / f"{name}.log"
        self.times = folder / f"{name}.times.jsonl"
        self._lock = threading.RLock()
        self._listeners = []
        self._size = 0
        self._last = time.monotonic()

    def look(self) -> None:
        """See Log."""
        size = self.path.stat().st_size if self.path.exists() else 0
        with self._lock:
            if size <= self._size:
                return
            self._size, self._last = size, time.monotonic()
        self._wake()

    def add(self, data: bytes) -> None:
        """Not for its readers."""
        raise TypeError(f"{self.path} is another process's")

    def _tell(self, entry: dict[str, Any], offset: int | None = None) -> None:
        raise TypeError(f"{self.times} is another process's")


def entries(times: Path) -> list[dict[str, Any]]:
    """The lines of an index; a last one that is still being written is left out."""
    lines = times.read_text(encoding="utf-8").split("\n")[:-1] if times.exists() else []
    return [json.loads(line) for line in lines]
