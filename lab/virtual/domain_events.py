"""What libvirt and QEMU say of one machine, as signals.

What counts as a boot where restarts are not held: a reset from outside, and a guest's own reset
after a sign of life since the last one: its agent, a bug check, or something read from the disk.
Firmware answers a reset with one or two of its own before it reads the disk; those count for
nothing. (A byte on the console would be no such sign: it comes late, by way of virtlogd.)
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import libvirt

from lab.backend import BackendError
from lab.signals import SignalKind, SignalLog

SOURCE = "libvirt"
QEMU = "qemu"


class DomainEvents:
    """The Listener of one slot. Its methods are called in libvirt's event thread.

    still_runs: whether the domain runs; may block, and is asked after the connection was away only.
    """

    def __init__(self, signals: SignalLog, still_runs: Callable[[], bool]) -> None:
        self._signals = signals
        self._still_runs = still_runs
        self.off = threading.Event()
        self.off.set()
        self.alive = threading.Event()
        """There was a sign of life since the last reset."""
        self._resets = 0
        self._read_before = (0, 0)  # resets, and bytes read from the disk since power-on
        self.holds = False
        """A restart from inside leaves it off."""
        self._ended_by = ""
        self._asked = ""
        self._reset_by_lab = False
        self._agent_is_up = False

    # What the backend does

    def begin(self, *, holds: bool) -> None:
        """The backend is about to switch it on; it is off."""
        self._ended_by = self._asked = ""
        self._reset_by_lab = self._agent_is_up = False
        self.holds = holds
        self._resets += 1
        self.alive.clear()
        self.off.clear()

    def begun(self, kind: SignalKind) -> None:
        """It has power and is about to run its first instruction."""
        self._signals.add(kind, "lab")

    def failed(self) -> None:
        """It could not be switched on."""
        self.off.set()

    def ask(self, why: str) -> None:
        """The backend is about to cut the power."""
        self._asked = why

    def ask_reset(self) -> None:
        """The backend is about to press the reset button."""
        self._reset_by_lab = True
        self._resets += 1
        self.alive.clear()

    def look_for_life(self, bytes_read: Callable[[], int]) -> None:
        """Whether the disk was read since the last time, and no reset came between."""
        if self.alive.is_set():
            return
        resets = self._resets
        now = resets, bytes_read()
        if now[0] == self._read_before[0] == self._resets and now[1] > self._read_before[1]:
            self.alive.set()
        self._read_before = now

    def gone(self) -> None:
        """It is off, and libvirt did not say so."""
        if not self.off.is_set():
            self._signals.add(SignalKind.POWER_OFF, SOURCE, self._asked or "libvirt has lost it")
            self.off.set()

    # What libvirt says

    def lifecycle(self, event: int, detail: int) -> None:
        """Only the end counts: QEMU's own events tell the rest."""
        if event != libvirt.VIR_DOMAIN_EVENT_STOPPED or self.off.is_set():
            return
        if self._ended_by == "guest-reset":
            kind, said = SignalKind.RESTART, self._ended_by
        elif self._ended_by.startswith("guest-") or self._asked:
            kind, said = SignalKind.POWER_OFF, self._ended_by or self._asked
        elif detail in {
            libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED,
            libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED,
        }:
            kind, said = SignalKind.LOST, "QEMU ended by itself; see libvirt's log of the domain"
        else:
            kind, said = SignalKind.LOST, "somebody else switched it off"
        self._signals.add(kind, SOURCE, said)
        self.off.set()

    def agent_connected(self, connected: bool) -> None:
        """libvirt says at each start, too, that no agent is there.

        QEMU says it at most once a second: after a quick restart the word that the agent of the
        boot before went away may be missing, or come late.
        """
        if connected:
            self.alive.set()
        elif not self._agent_is_up:
            return
        self._agent_is_up = connected
        self._signals.add(SignalKind.AGENT_UP if connected else SignalKind.AGENT_DOWN, SOURCE)

    def monitor(self, event: str, details: dict[str, Any]) -> None:
        """QEMU's events (qapi/run-state.json)."""
        if event == "GUEST_CRASHLOADED":
            self.alive.set()
            self._signals.add(SignalKind.BUG_CHECK, QEMU, _crash(event, details))
        elif event == "GUEST_PANICKED":
            self.alive.set()
            self._signals.add(SignalKind.PANICKED, QEMU, _crash(event, details))
        elif event == "SHUTDOWN":
            reason = str(details.get("reason", ""))
            if reason.startswith("guest-") and not self._ended_by:
                self._ended_by = reason
        elif event == "BLOCK_IO_ERROR":
            reason = details.get("reason") or "an error of the host's disk"
            self._signals.add(SignalKind.LOST, QEMU, f"QEMU stopped it: {reason}")
        elif event == "RESET":
            self._reset(from_inside=bool(details.get("guest")))

    def _reset(self, *, from_inside: bool) -> None:
        self._resets += 1
        if from_inside and not self.alive.is_set():
            return
        self.alive.clear()
        self._agent_is_up = False
        detail = "guest-reset" if from_inside else "lab" if self._reset_by_lab else "host-reset"
        self._reset_by_lab = False
        self._signals.add(SignalKind.RESTART, QEMU, detail)
        self._signals.add(SignalKind.POWER_ON, QEMU, f"it boots again after {detail}")

    # What the connection says

    def connection_back(self) -> None:
        """Nothing was heard for a while: was anything missed?"""
        if self.off.is_set():
            return
        try:
            runs = self._still_runs()
        except BackendError as error:
            self.connection_lost(str(error))
            return
        if runs and self.holds:
            self._signals.add(
                SignalKind.RECONNECTED, SOURCE, "libvirt was away; the machine still runs"
            )
        elif runs:
            self.connection_lost("libvirt was away, and the machine may have restarted meanwhile")
        else:
            self.connection_lost("libvirt was away, and the machine ended meanwhile")

    def connection_lost(self, reason: str) -> None:
        """See Listener."""
        if not self.off.is_set():
            self._signals.add(SignalKind.LOST, SOURCE, reason)


def _crash(event: str, details: dict[str, Any]) -> str:
    """QEMU's word and, from a Hyper-V panic device, the bug check's five values."""
    info = details.get("info")
    if not isinstance(info, dict):
        return event
    arguments = [info[name] for name in sorted(info) if name.startswith("arg")]
    values = " ".join(f"{one:#x}" if isinstance(one, int) else str(one) for one in arguments)
    return f"{event} {info.get('type', '')} {values}".strip()
