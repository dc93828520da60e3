"""Watching a console: read on from an offset, expect a pattern, take silence for a sign.

Any number of watchers follow one log; none takes bytes from another, and none sleeps for a fixed
time: they wait in the one wait primitive, so that a crash ends every wait.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lab.console.log import Log
from lab.signals import DeadlineError, SignalLog

WINDOW = 1 << 20
"""Bytes in which a match is looked for at first, and that an error keeps."""
OVERLAP = 1 << 16
"""Bytes that are looked at again with new ones: the longest match that may come in pieces."""
SHOWN = 300
"""Bytes of the console that an error shows."""


class NotExpectedError(DeadlineError):
    """The pattern did not come in time; `said` is what came instead."""

    def __init__(self, message: str, said: bytes) -> None:
        super().__init__(message)
        self.said = said


@dataclass(frozen=True)
class Found:
    """A match on the console. start, end: its offsets in the log. before: what came up to it."""

    match: re.Match[bytes]
    start: int
    end: int
    before: bytes


class Watcher:
    """One place in a console's log that moves on with what is expected and read.

    offset: where it begins; the end of the log if not given. boot: a boot whose crash or end is
    raised in every wait (MachineCrashed, MachineRestarted, MachineLost).
    """

    def __init__(
        self, log: Log, signals: SignalLog, *, boot: int | None = None, offset: int | None = None
    ) -> None:
        self.log = log
        self._signals = signals
        self._boot = boot
        log.look()
        self.offset = log.size if offset is None else offset

    def read(self) -> bytes:
        """What has come since; does not wait."""
        self.log.look()
        data = self.log.read(self.offset)
        self.offset += len(data)
        return data

    def regardless_of_boot(self) -> Watcher:
        """Another one at the same place, whose waits no crash or restart ends."""
        return Watcher(self.log, self._signals, offset=self.offset)

    def text_before(self) -> bytes:
        """The last bytes up to where it is."""
        return self.log.read(max(0, self.offset - WINDOW), self.offset)

    def expect(self, pattern: bytes | re.Pattern[bytes], deadline: float) -> Found:
        """Waits for a regular expression, and moves behind the first match.

        deadline: seconds. Raises NotExpectedError; then the watcher has not moved.
        """
        wanted = re.compile(pattern) if isinstance(pattern, bytes) else pattern
        start, seen = self.offset, -1
        again = WINDOW
        match: re.Match[bytes] | None = None

        def came() -> bool:
            nonlocal start, seen, again, match
            self.log.look()
            size = self.log.size
            if size == seen:
                return False
            start = max(self.offset, (size if seen < 0 else seen) - again)
            seen, again = size, OVERLAP
            match = wanted.search(self.log.read(start, seen))
            return match is not None

        what = f"{wanted.pattern!r} on the console"
        self.log.listen(self._signals.wake)
        try:
            self._signals.wait(what, came, deadline, boot=self._boot)
        except DeadlineError:
            said = self.log.read(max(self.offset, self.log.size - WINDOW))
            raise NotExpectedError(
                f"waited {deadline:g} s for {what}; it said {_shown(said)}", said
            ) from None
        finally:
            self.log.forget(self._signals.wake)
        assert match is not None
        before = self.log.read(self.offset, start + match.start())
        found = Found(match, start + match.start(), start + match.end(), before)
        self.offset = found.end
        return found

    def silence(self, seconds: float, deadline: float) -> None:
        """Waits until no byte has come for so many seconds. DeadlineError: it went on talking."""

        def silent() -> bool:
            self.log.look()
            return self.log.silent_for >= seconds

        what = f"{seconds:g} s of silence on the console"
        self._signals.wait(what, silent, deadline, boot=self._boot)


def _shown(said: bytes) -> str:
    if not said:
        return "nothing"
    text = ascii(said[-SHOWN:].decode("latin-1"))[1:-1]
    return f"{len(said)} bytes, at last: {text}"
