"""The ladder for a machine that hangs, loops or cannot be reached: from the gentlest rung on.

SAC's crashdump, an NMI, a dump by the hypervisor; then, where only a running Windows can give its
dump, up again: by itself, by the reset button, by a power cycle. Each rung has a time limit from
the image's contract and is recorded, with what came of it or why it was skipped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lab.backend import BackendError
from lab.console.sac import SacAfterBugCheck
from lab.disks.blocks import DiskError
from lab.machine import Machine
from lab.outcome import HungError, InfrastructureError
from lab.signals import (
    DOWN_KINDS,
    MachineCrashed,
    MachineDown,
    SignalKind,
    StaleHandleError,
)

Say = Callable[[str], None]
OFF_KINDS = (SignalKind.RESTART, SignalKind.POWER_OFF, SignalKind.PANICKED)
FAILURES = (InfrastructureError, HungError, DiskError, OSError)
"""What a rung may come to."""


@dataclass
class Rung:
    """One step of the ladder: what was tried, for how many seconds, and what came of it."""

    name: str
    seconds: float = 0.0
    result: str = ""


class Ladder:
    """The rungs for one boot of a machine that went down or fell silent.

    rungs: the evidence's; each is added as it is tried. look: takes a screenshot, if it can.
    """

    def __init__(
        self, machine: Machine, boot: int, rungs: list[Rung], say: Say, look: Callable[[], None]
    ) -> None:
        self._machine = machine
        self._boot = boot
        self._rungs = rungs
        self._say = say
        self._look = look
        self.said_by_sac = "nobody asked SAC"
        """Whether it answered: a sign that the kernel still schedules."""
        self.loop = ""
        """Whether it crashed boot after boot on the way up: in words, or nothing."""

    @contextmanager
    def rung(self, name: str) -> Iterator[Rung]:
        """Times and records one rung; a failure of the machine or its parts is its result."""
        rung = Rung(name)
        self._rungs.append(rung)
        began = time.monotonic()
        try:
            yield rung
        except FAILURES as error:
            rung.result = f"failed: {error}"
            self._say(f"{name}: {error}")
        finally:
            rung.seconds = round(time.monotonic() - began, 3)

    def skip(self, name: str, why: str) -> None:
        """Records why a rung was not tried."""
        self._rungs.append(Rung(name, 0.0, f"skipped: {why}"))

    @property
    def _crashed(self) -> bool:
        return self._machine.crash_signalled(self._boot)

    # Make it dump

    def make_it_dump(self, folder: Path) -> Path | None:
        """Has Windows write a dump, else the hypervisor; gives the file of the latter."""
        for crash in (self._by_sac, self._by_nmi):
            crash()
            if self._crashed:
                return None
        return self._by_hypervisor(folder)

    def _by_sac(self) -> None:
        """Needs no agent and no network, only a kernel that still schedules."""
        name, machine = "SAC crashdump", self._machine
        if not machine.contract.console.sac:
            return self.skip(name, "the image has no SAC (console.sac)")
        if "console-type" not in machine.features:
            return self.skip(name, "the machine has no console to type on")
        with self.rung(name) as rung:
            self._say("Asking SAC for a crash dump")
            self.said_by_sac = "SAC did not answer"
            try:
                machine.sac().crashdump()
            except (SacAfterBugCheck, MachineCrashed) as found:
                rung.result = f"it had crashed already: {found}"
                self.said_by_sac = "SAC told of a bug check"
            else:
                rung.result = "it answered with a bug check"
                self.said_by_sac = "SAC answered, so its kernel ran"
            if not self._crashed:
                machine.signals.add(
                    SignalKind.BUG_CHECK, "console", "SAC was told to crash it", boot=self._boot
                )
        return None

    def _by_nmi(self) -> None:
        name, machine = "NMI", self._machine
        if "crash-by-nmi" not in machine.contract.capabilities:
            return self.skip(name, "the image does not promise to crash at one (crash-by-nmi)")
        if "nmi" not in machine.features:
            return self.skip(name, "the machine has nothing to send one with")
        with self.rung(name) as rung:
            self._say("Sending an NMI")
            machine.nmi()
            machine.signals.wait(
                "a bug check after the NMI",
                lambda: self._crashed,
                machine.contract.deadlines.dump_writing,
            )
            rung.result = "it answered with a bug check"
        return None

    def _by_hypervisor(self, folder: Path) -> Path | None:
        name, machine = "hypervisor dump", self._machine
        if "memory-dump" not in machine.features:
            self.skip(name, "the machine has no hypervisor that takes one")
            return None
        with self.rung(name) as rung:
            windows = "hypervisor-windows-dump" in machine.contract.capabilities
            file = folder / ("hypervisor.dmp" if windows else "hypervisor.elf")
            machine.dump_memory(file, "win-dmp" if windows else "elf")
            rung.result = f"{file.name}, {file.stat().st_size} bytes"
            return file
        return None

    # Wait for the dump

    def wait_for_dump(self) -> None:
        """Until it is off or restarts by itself, or has written nothing for a while."""
        with self.rung("wait for the dump") as rung:
            self._say("Waiting until the machine has written its dump")
            rung.result = self._machine.signals.wait(
                "the end of the dump",
                self._dump_ended(),
                self._machine.contract.deadlines.dump_writing,
            )

    def _dump_ended(self) -> Callable[[], str]:
        """A condition: how the dump ended, in words; empty as long as it is written."""
        machine = self._machine
        contract = machine.contract
        quiet = contract.dump.quiet_seconds * contract.deadlines.slowdown
        written, since = -1, time.monotonic()

        def stopped() -> str:
            if off := machine.signals.of(*OFF_KINDS, boot=self._boot):
                return f"it stopped: {off[-1].detail or off[-1].kind}"
            # Where restarts are not held, the next boot tells; power says nothing of a dump.
            held = "hold-restart" in machine.features
            return "it is off" if held and not machine.is_on() else ""

        def ended() -> str:
            nonlocal written, since
            if (found := stopped()) or "disk-activity" not in machine.features:
                return found
            try:
                now = machine.disk_bytes_written()
            except BackendError:
                if machine.signals.of(SignalKind.LOST, boot=self._boot):
                    raise
                return stopped()  # it is going off just now
            if now != written:
                written, since = now, time.monotonic()
                self._look()
            if time.monotonic() - since < quiet:
                return ""
            self._look()
            return f"nothing was written to its disk for {quiet:g} s"

        return ended

    # Bring it up again

    def bring_up(self) -> bool:
        """Until its agent answers in a boot after this one. False where no rung brought that."""
        machine = self._machine
        is_off = bool(machine.signals.of(SignalKind.POWER_OFF, boot=self._boot))
        if is_off:
            self.skip("come up by itself", "it is off")
        elif machine.boot == self._boot and not self._crashed:
            self.skip("come up by itself", "it hangs, and nothing made it crash")
        elif not machine.contract.boot.auto_reboot:
            self.skip("come up by itself", "the image stays at its stop screen (boot.auto_reboot)")
        elif self._comes_up("come up by itself", None):
            return True
        if "reset" not in machine.features:
            self.skip("reset", "the machine has no reset button")
        elif is_off:
            self.skip("reset", "it is off")
        elif self._comes_up("reset", "reset"):
            return True
        return self._comes_up("power cycle", "power-cycle")

    def _comes_up(self, name: str, how: Literal["reset", "power-cycle"] | None) -> bool:
        with self.rung(name) as rung:
            if how is None:
                self._say("Waiting until it has come up again")
            else:
                self._say(f"Trying a {name}")
                self._machine.bring_back(how)
            self._wait_until_up()
            rung.result = f"its agent answers in boot {self._machine.boot}"
            return True
        return False

    def _wait_until_up(self) -> None:
        """Raises BackendError where it crashes in as many boots as make a loop, DeadlineError."""
        machine, signals = self._machine, self._machine.signals
        deadlines, limit = machine.contract.deadlines, machine.contract.boot.loop_after_crashes
        for _ in range(limit):
            boot = machine.boot
            if boot == self._boot:  # it has not restarted yet
                signals.wait(
                    f"{machine.name} to restart", lambda: machine.boot > self._boot,
                    deadlines.dump_writing + deadlines.boot_to_agent,
                )  # fmt: skip
                boot = machine.boot
            if signals.wait(
                f"the agent of {machine.name}", lambda boot=boot: self._news(boot),  # type: ignore[misc]
                deadlines.boot_to_agent,
            ) == "up":  # fmt: skip
                return
            signals.wait(
                f"{machine.name} to restart after another crash",
                lambda boot=boot: machine.boot > boot,  # type: ignore[misc]
                deadlines.dump_writing + deadlines.boot_to_agent,
            )
        self.loop = f"{machine.name} crashed in {limit} boots in a row before its agent answered"
        raise BackendError(self.loop)

    def _news(self, boot: int) -> str:
        """What became of a boot: "up" when its agent answers, "down" when it ended; else empty."""
        if self._machine.signals.of(*DOWN_KINDS, boot=boot):
            return "down"
        try:
            return "up" if self._machine.guest.answers() else ""
        except (MachineDown, StaleHandleError):
            return "down"
