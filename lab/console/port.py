"""One console port: open for as long as the lab is, connected again whenever it can be.

One thread reads it and nobody else. Every byte goes to the log before anything else looks at it, so
that none falls between one user of the console and the next.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from lab.console.log import Log
from lab.console.transport import Connection, ConsoleError, ConsoleGone, Line, open_transport
from lab.signals import DeadlineError, SignalLog

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 10.0
"""Seconds between attempts to connect; each pause is twice the one before."""
ROOM_PAUSE = 1.0
"""Seconds between attempts to write to a disk that is full; nothing is read meanwhile."""
REPLAY_LEAST = 32
"""Bytes that must come again before they are called a replay; a prompt alone is shorter."""
REPLAY_WINDOW = 65536
"""So far after a reconnect replays are looked for."""


class PortHeld(ConsoleError):  # noqa: N818 - a state, not a mistake
    """Another holder has the port open; the message names it."""


class PortHold:
    """The right to open a port, for one holder on this host; ends with the process at the latest.

    folder: where the lab keeps its locks. wait: seconds that another holder gets to let it go.
    """

    def __init__(self, folder: Path, port: str, holder: str, wait: float = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(
            folder / f"{quote(port, safe='')}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            SignalLog().wait(f"console {port}", self._take, wait)
        except DeadlineError:
            said = os.pread(self._file, 1000, 0).decode(errors="replace")
            os.close(self._file)
            raise PortHeld(
                f"console {port} is held by {said or 'a holder that is just taking it'}; watch its"
                " log, or end that process"
            ) from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{holder} (process {os.getpid()})".encode(), 0)

    def _take(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Gives it back."""
        os.close(self._file)


class Port:
    """A console as `line` says, read into `log`; a context manager that closes it.

    locks: the folder of the lab's locks. holder: who has it, for others to read. wait: seconds
    that another holder gets to let the port go. Raises PortHeld.
    A console that cannot be reached yet is no error: `trouble` says what is wrong meanwhile.
    """

    def __init__(self, line: Line, log: Log, *, locks: Path, holder: str, wait: float = 0) -> None:
        self.line = line
        self.log = log
        self._transport = open_transport(line)
        self._hold = PortHold(locks, line.port, holder, wait)
        self._stop = threading.Event()
        self._again = threading.Event()
        """Set to try again at once."""
        self._writing = threading.Lock()
        self._connection: Connection | None = None
        self._trouble = "it is being opened"
        self._down_since: float | None = None
        """time.monotonic() since when nobody hears the machine; None before the first time."""
        if (last := log.last_entry()) is not None:  # a log that is gone on with
            passed = (datetime.now(UTC) - last).total_seconds()
            self._down_since = time.monotonic() - max(0.0, passed)
        self._connected_at = log.size
        self._replayed = 0
        self._thread = threading.Thread(target=self._run, name=f"console {line.port}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the reader and lets the port go; once more does nothing."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._again.set()
        self._thread.join()
        if self._connection is not None:
            self._down("the lab closed it")
        self._hold.release()

    @property
    def trouble(self) -> str:
        """Why it is not connected, or cannot be logged; empty when all is well."""
        return self._trouble

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._connection is not None

    def retry(self) -> None:
        """Tries to connect at once: power came back, a server was started."""
        self._again.set()

    def write(self, data: bytes) -> None:
        """Types. Only lab.machine calls it for a leased machine. Raises ConsoleGone."""
        with self._writing:
            connection = self._connection
            if connection is None:
                raise ConsoleGone(f"console {self.line.port} is not connected: {self._trouble}")
            connection.write(data)
        self.log.mark("typed", length=len(data))

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while not self._stop.is_set():
            try:
                with self._transport.open(self.log.mark) as connection:
                    self._up(connection)
                    pause = FIRST_PAUSE
                    self._read(connection)
            except ConsoleError as error:
                self._down(str(error))
            except Exception as error:
                self._down(f"its reader ended by a mistake in the lab: {error!r}")
                raise
            if self._again.wait(pause):
                pause = FIRST_PAUSE
            self._again.clear()
            pause = min(2 * pause, LONGEST_PAUSE)

    def _up(self, connection: Connection) -> None:
        gap = None if self._down_since is None else round(time.monotonic() - self._down_since, 6)
        self._keep(lambda: self.log.mark("connected", to=self.line.port, gap_seconds=gap))
        self._connected_at = self.log.size
        self._replayed = 0 if gap is not None else REPLAY_WINDOW  # the first has nothing before it
        self._down_since = None
        self._trouble = ""
        self._connection = connection

    def _down(self, why: str) -> None:
        was_up = self._connection is not None
        with self._writing:  # whoever is typing has ended, with an error or not
            self._connection = None
        self._trouble = why
        if was_up:
            self._down_since = time.monotonic()
            self._keep(lambda: self.log.mark("lost", why=why))
        elif self._down_since is None:
            self._down_since = time.monotonic()

    def _read(self, connection: Connection) -> None:
        """Reads until the connection ends (ConsoleGone) or the port is closed."""
        while not self._stop.is_set():
            if data := connection.read():
                self._keep(lambda data=data: self.log.add(data))  # type: ignore[misc]
                self._look_for_replay()

    def _keep(self, write: Callable[[], None]) -> None:
        """Writes to the log, as often as it takes: while the disk is full nothing more is read."""
        while True:
            try:
                write()
            except OSError as error:
                self._trouble = f"its log cannot be written: {error}"
                if self._stop.wait(ROOM_PAUSE):
                    return
            else:
                if self._connection is not None:
                    self._trouble = ""
                return

    def _look_for_replay(self) -> None:
        """Marks bytes since the connection that are the last ones before it once more."""
        new = self.log.size - self._connected_at
        if self._replayed >= new or new > REPLAY_WINDOW or new < REPLAY_LEAST:
            return
        since = self.log.read(self._connected_at)
        before = self.log.read(max(0, self._connected_at - len(since)), self._connected_at)
        length = _overlap(before, since)
        if length >= max(REPLAY_LEAST, self._replayed + 1):
            self._replayed = length
            start = self._connected_at
            self._keep(lambda: self.log.mark("looks-replayed", offset=start, length=length))


def _overlap(before: bytes, since: bytes) -> int:
    """The longest end of `before` that `since` begins with, in bytes."""
    start = before.find(since[:REPLAY_LEAST])
    while start >= 0:
        if since.startswith(before[start:]):
            return len(before) - start
        start = before.find(since[:REPLAY_LEAST], start + 1)
    return 0
