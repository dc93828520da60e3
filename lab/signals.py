"""What is heard of a machine, in order, and the one way to wait for something.

A backend's threads add signals; every blocking call of the lab waits here, so that a crash is
raised in the waiting thread the moment its signal comes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TypeVar

from lab.outcome import HungError, LabError, Outcome

T = TypeVar("T")
POLL_SECONDS = 0.02
"""How often a condition is asked that no signal announces."""


class SignalKind(StrEnum):
    """What can be heard."""

    POWER_ON = "power-on"
    """The lab switched the machine on; a new boot begins."""
    RESTORED = "restored"
    """The lab continued it from saved memory; counts as a new boot, too."""
    BUG_CHECK = "bug-check"
    """It says it crashed and deals with it itself (pvpanic CRASHLOADED, text on the console)."""
    PANICKED = "panicked"
    """It crashed, and the hypervisor stopped it."""
    RESTART = "restart"
    """It asked for a reset; where the next boot is held, it is off now."""
    POWER_OFF = "power-off"
    """It is off: its own doing or the lab's (see detail)."""
    AGENT_UP = "agent-up"
    AGENT_DOWN = "agent-down"
    LOST = "lost"
    """The backend can no longer hear it: the hypervisor's daemon died, the connection broke."""
    RECONNECTED = "reconnected"
    """The backend did not hear it for a while; it ran on, and no restart can have been missed."""


CRASH_KINDS = frozenset({SignalKind.BUG_CHECK, SignalKind.PANICKED})
DOWN_KINDS = CRASH_KINDS | {SignalKind.RESTART, SignalKind.POWER_OFF, SignalKind.LOST}


@dataclass(frozen=True)
class Signal:
    """One thing that was heard.

    boot: the number of the boot it belongs to; 0 before the first. at: the host's clock, UTC.
    monotonic: seconds of time.monotonic(). source: who said it. detail: in the source's words.
    """

    kind: SignalKind
    boot: int
    at: datetime
    monotonic: float
    source: str
    detail: str = ""


class DeadlineError(HungError):
    """What was waited for did not happen in time."""


class StaleHandleError(LabError):
    """A handle on a boot that ended as announced was used in the next one."""


class MachineDown(LabError):  # noqa: N818 - a state of the machine, not an error of the lab
    """The machine went down while something waited for it; `signal` says how."""

    outcome = Outcome.FAILED

    def __init__(self, message: str, signal: Signal) -> None:
        super().__init__(message)
        self.signal = signal


class MachineCrashed(MachineDown):
    """A bug check was signalled."""

    outcome = Outcome.CRASHED


class MachineRestarted(MachineDown):
    """It restarted or went off, and nobody announced that."""


class MachineLost(MachineDown):
    """The hypervisor's daemon died or the connection to it broke."""

    outcome = Outcome.INFRASTRUCTURE


class SignalLog:
    """Every signal of one machine, oldest first. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._signals: list[Signal] = []
        self._boot = 0
        self._announced: set[int] = set()
        """Boots whose end is expected."""

    @property
    def boot(self) -> int:
        """The number of the current boot; it grows with each power-on and restore."""
        with self._changed:
            return self._boot

    def add(
        self, kind: SignalKind, source: str, detail: str = "", *, boot: int | None = None
    ) -> Signal:
        """Notes a signal of the current boot, or of an earlier one, and wakes every waiting thread.

        boot: which, for what was found out when another boot may have begun.
        """
        with self._changed:
            return self._add(kind, source, detail, boot)

    def add_restart(self, source: str, detail: str) -> None:
        """It restarted and boots again by itself: nobody sees one without the other."""
        with self._changed:
            self._add(SignalKind.RESTART, source, detail)
            self._add(SignalKind.POWER_ON, source, f"it boots again after: {detail}")

    def _add(self, kind: SignalKind, source: str, detail: str, boot: int | None = None) -> Signal:
        if kind in {SignalKind.POWER_ON, SignalKind.RESTORED}:
            self._boot += 1
        at = self._boot if boot is None else boot
        signal = Signal(kind, at, datetime.now(UTC), time.monotonic(), source, detail)
        self._signals.append(signal)
        self._changed.notify_all()
        return signal

    def wake(self) -> None:
        """Has every waiting thread ask its condition again now: something else has happened."""
        with self._changed:
            self._changed.notify_all()

    def all(self) -> list[Signal]:
        """A copy of all signals so far."""
        with self._changed:
            return list(self._signals)

    def of(self, *kinds: SignalKind, boot: int | None = None) -> list[Signal]:
        """The signals of some kinds, of one boot or of all."""
        return [s for s in self.all() if s.kind in kinds and boot in (None, s.boot)]

    def crashes(self, boot: int | None = None) -> list[Signal]:
        """Every bug check that was signalled, in one boot or in all."""
        return self.of(*CRASH_KINDS, boot=boot)

    def announce_restart(self, *, expected: bool = True) -> None:
        """The next restart or power-off of this boot is expected and raises nothing.

        expected=False takes that back, where something might have restarted and did not.
        """
        with self._changed:
            self._announced.discard(self._boot)
            if expected:
                self._announced.add(self._boot)

    def raise_if_down(self, boot: int) -> None:
        """Raises MachineCrashed, MachineRestarted or MachineLost if `boot` has ended or crashed.

        StaleHandleError where it ended as announced and another boot has begun.
        """
        with self._changed:
            down = [s for s in self._signals if s.boot == boot and s.kind in DOWN_KINDS]
            announced, current = boot in self._announced, self._boot
        for signal in sorted(down, key=lambda s: s.kind not in CRASH_KINDS):
            if signal.kind in CRASH_KINDS:
                raise MachineCrashed(f"boot {boot} crashed: {signal.detail}", signal)
            if signal.kind is SignalKind.LOST:
                raise MachineLost(f"the machine was lost: {signal.detail}", signal)
            if not announced:
                raise MachineRestarted(
                    f"boot {boot} ended ({signal.kind}: {signal.detail}), and nobody announced it",
                    signal,
                )
        if announced and boot < current:
            raise StaleHandleError(
                f"this belongs to boot {boot}, and the machine is in boot {current}; take"
                " machine.guest anew after a restart"
            )

    def wait(
        self,
        what: str,
        condition: Callable[[], T],
        deadline: float,
        *,
        boot: int | None = None,
    ) -> T:
        """Waits until `condition()` is truthy and returns its value: the one wait primitive.

        The condition is asked at each signal, at wake() and every 20 ms. With `boot`, a signal that
        this boot crashed or ended raises MachineCrashed, MachineRestarted or MachineLost at once.
        deadline: seconds from now; DeadlineError names `what` and the last value seen.
        """
        end = time.monotonic() + deadline
        while True:
            if boot is not None:
                self.raise_if_down(boot)
            value = condition()
            if value:
                return value
            left = end - time.monotonic()
            if left <= 0:
                raise DeadlineError(f"waited {deadline:g} s for {what}; last seen: {value!r}")
            with self._changed:
                self._changed.wait(min(POLL_SECONDS, left))
