"""How many boots a machine had that restarts by itself: from its console and its SSH server.

Nobody holds a physical machine's restarts. A new boot is what the console tells (SAC prints a line
once it has started), a second stop text, or a boot time that changed; whichever comes first counts,
and those that come later for the same boot do not.
"""

from __future__ import annotations

import re
import threading
from datetime import datetime, timedelta

from lab.console.log import Log
from lab.console.stop_text import STOP_CODE, ConsoleListener
from lab.signals import SignalKind, SignalLog

CONSOLE, SSH = "console", "ssh"
SIGNS = re.compile(
    STOP_CODE.pattern + rb"|(?P<booting>Computer is booting, SAC started)|(?P<crashed>!SAC>)"
)
SAME_BOOT = timedelta(seconds=2)
"""Windows works a boot's time out from clocks that are set now and then."""


class Boots:
    """Adds to `signals` what console and SSH server tell. Thread-safe."""

    def __init__(self, signals: SignalLog) -> None:
        self._signals = signals
        self._lock = threading.Lock()
        self._told_booting: set[int] = set()
        """Boots of which the console has said that they began."""
        self._told_stop: set[int] = set()
        """Boots whose stop text has come; the ladder may have signalled their crash before."""
        self._times: dict[int, datetime] = {}
        """When a boot began, by its own clock, where SSH has said it."""

    def listen_to(self, log: Log) -> ConsoleListener:
        """Takes the console's word from now on."""
        return ConsoleListener(log, SIGNS, self._console)

    def _console(self, found: re.Match[bytes]) -> None:
        with self._lock:
            boot = self._signals.boot
            crashed = bool(self._signals.crashes(boot))
            if found["booting"]:
                if crashed or boot in self._told_booting:
                    self._signals.add_restart(CONSOLE, "SAC has started again")
                self._told_booting.add(self._signals.boot)
            elif found["crashed"]:
                if not crashed:
                    self._signals.add(SignalKind.BUG_CHECK, CONSOLE, "it is at !SAC>")
            else:
                if boot in self._told_stop:
                    self._signals.add_restart(CONSOLE, "another stop text")
                boot = self._signals.boot
                self._told_stop.add(boot)
                if not self._signals.crashes(boot):
                    code = int(found[1], 16)
                    self._signals.add(SignalKind.BUG_CHECK, CONSOLE, f"stop code 0x{code:X}")

    def ssh_up(self, booted: datetime) -> None:
        """Its SSH server answers; booted: when Windows says it began."""
        with self._lock:
            known = self._times.get(self._signals.boot)
            if known is not None and abs(known - booted) > SAME_BOOT:
                self._signals.add_restart(SSH, f"Windows says that it booted at {booted:%H:%M:%S}")
            self._times[self._signals.boot] = booted
            self._signals.add(SignalKind.AGENT_UP, SSH, f"booted at {booted.isoformat()}")

    def ssh_down(self, why: str) -> None:
        """The connection to its SSH server ended."""
        self._signals.add(SignalKind.AGENT_DOWN, SSH, why)
