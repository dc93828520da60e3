"""Machine: the one interface that tests, steps and evidence see; a lease gives it out."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from images.contract import Contract
from lab.backend import Backend, BackendError, Feature, Image
from lab.console.sac import Sac
from lab.console.stop_text import stop_codes
from lab.console.watcher import Watcher
from lab.disks.blocks import BlockSource
from lab.disks.edit import Edit, EditDone, edit
from lab.disks.files import DiskFiles, open_files
from lab.guest.base import Guest
from lab.outcome import CandidateError, HungError, LabError
from lab.signals import CRASH_KINDS, DeadlineError, SignalKind, SignalLog

if TYPE_CHECKING:
    from lab.guest.ssh_link import SshLink
    from lab.leases import Lease

T = TypeVar("T")
HYPERVISOR_SECONDS = 300.0
"""For one call to the hypervisor: a limit against a daemon that hangs, not a guest's deadline."""


class EvidenceNotSealedError(LabError):
    """Something would have changed the disk of a machine whose evidence is not collected yet."""


class Machine:
    """One machine, held under a lease. Synchronous, and usable from several threads.

    Every call confirms the lease first. What blocks raises MachineCrashed in the waiting thread the
    moment a crash is signalled (lab.signals.SignalLog.wait). Each boot is given by the lab: a
    restart from inside leaves the machine off until evidence is taken and start() is called.
    Without the feature hold-restart it boots again by itself, and the boot number grows with that.
    """

    def __init__(
        self, backend: Backend, lease: Lease, image: Image, signals: SignalLog, folder: Path
    ) -> None:
        self._backend = backend
        self._lease = lease
        self.image = image
        self.signals = signals
        self.folder = folder
        self._evidence_boot = 0
        self._sealed_boot = 0
        self.clock_settings: list[dict[str, str]] = []
        """Each time the guest's clock was set: boot, what it said before, what it was set to."""
        self.clock_offset: timedelta | None = None
        """The guest's clock less the host's, when the agent last came up; None if never."""
        has_console = "console-log" in backend.features
        self._console_at_boot = {0: backend.console().size if has_console else 0}

    @property
    def name(self) -> str:
        """The slot's name in lab.toml."""
        return self._lease.slot

    @property
    def contract(self) -> Contract:
        """What the image promises."""
        return self.image.contract

    @property
    def features(self) -> frozenset[Feature]:
        """What the backend has; asking for what it lacks raises BackendError."""
        return self._backend.features

    @property
    def boot(self) -> int:
        """The number of the current boot; 0 before the first."""
        return self.signals.boot

    def require(self, *features: Feature) -> None:
        """Raises BackendError naming the features that this machine lacks."""
        if missing := sorted(set(features) - self.features):
            raise BackendError(
                f"machine {self.name} has no {', '.join(missing)}; name another machine in lab.toml"
            )

    def _call(
        self,
        what: str,
        function: Callable[[], T],
        *,
        boot: int | None = None,
        deadline: float = HYPERVISOR_SECONDS,
    ) -> T:
        """Calls `function` in a thread of its own and waits for it through the wait primitive."""
        self._lease.confirm(f"{what} of {self.name}")
        future: Future[T] = Future()
        future.add_done_callback(lambda _: self.signals.wake())

        def work() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=work, name=f"{self.name}: {what}", daemon=True).start()
        try:
            self.signals.wait(f"{what} of {self.name}", future.done, deadline, boot=boot)
        except DeadlineError as error:  # the hypervisor's, not the guest's
            raise BackendError(f"{self.address()} does not answer: {error}") from error
        return future.result()

    # Power

    def start(self, *, hold_restart: bool = True) -> None:
        """Powers on: a new boot. hold_restart: a restart from inside leaves it off (see class).

        Refused while evidence of a boot before is not sealed: a boot writes to the disk.
        """
        self._refuse_unsealed("start")
        console = len(self.console_bytes()) if "console-log" in self.features else 0
        self._call("power-on", lambda: self._backend.start(hold_restart=hold_restart))
        self._console_at_boot[self.boot] = console

    def power_off(self) -> None:
        """Cuts the power; returns when it is off. Raises MachineCrashed if it crashed before."""
        self._raise_if_crashed()
        self.cut_power()

    def _raise_if_crashed(self) -> None:
        if self.unsealed_boot == self.boot:
            self.signals.raise_if_down(self.boot)

    def cut_power(self) -> None:
        """Cuts the power, whatever it does: for evidence, which waited for the dump first."""
        self.signals.announce_restart()
        self._call("power-off", self._backend.power_off)

    def is_on(self) -> bool:
        """Whether it has power."""
        return self._call("power state", self._backend.is_on)

    def shut_down(self) -> None:
        """Presses the power button and waits until it is off; HungError beyond the deadline."""
        boot = self.boot
        self.require("power-button")
        self.signals.announce_restart()
        self._call("power button", self._backend.press_power_button, boot=boot)
        self._wait_until_off("shut down after the power button", boot)

    def restart(self, how: Callable[[Guest], object]) -> None:
        """An announced restart: `how` makes the guest restart; returns when its agent answers."""
        boot = self.boot
        guest = self.guest
        self.signals.announce_restart()
        how(guest)
        self._wait_until_off("restart", boot)
        if self.boot == boot:  # else it does that by itself
            self.start()
        self.wait_for_agent()

    def _wait_until_off(self, what: str, boot: int) -> None:
        def is_off() -> bool:
            if self.signals.of(*CRASH_KINDS, SignalKind.LOST, boot=boot):
                self.signals.raise_if_down(boot)
            return bool(self.signals.of(SignalKind.RESTART, SignalKind.POWER_OFF, boot=boot))

        deadline = self.contract.deadlines.shutdown
        if "hold-restart" not in self.features:  # only its next boot tells
            deadline += self.contract.deadlines.boot_to_agent
        try:
            # Not of this boot alone: where nobody holds it, the next one has begun by then.
            self.signals.wait(f"{self.name} to {what}", is_off, deadline)
        except DeadlineError as error:
            raise HungError(f"{self.name} did not {what} within {deadline:g} s") from error
        if self.told_on_console(boot) is not None and not self.crash_signalled(boot):
            self.signals.add(SignalKind.BUG_CHECK, "console", "stop text on the console", boot=boot)
        if self.crash_signalled(boot):
            self.signals.raise_if_down(boot)

    def told_on_console(self, boot: int) -> int | None:
        """The last stop code that a boot told on the console, if it told one."""
        if "console-log" not in self.features:
            return None
        return next(reversed(stop_codes(self.console_bytes(boot))), None)

    def reset(self) -> None:
        """Presses the reset button. Raises MachineCrashed if it crashed before."""
        self.require("reset")
        self._raise_if_crashed()
        self.signals.announce_restart()
        self._call("reset", self._backend.reset)

    def bring_back(self, how: Literal["reset", "power-cycle"]) -> None:
        """Makes a machine boot again whose evidence only a running Windows can give.

        Only lab.evidence calls it: what it overwrites, it overwrites.
        """
        self.signals.announce_restart()
        if how == "reset":
            self._call("reset", self._backend.reset)
        else:
            self._call("power cycle", self._backend.power_cycle, deadline=HYPERVISOR_SECONDS)

    def nmi(self) -> None:
        """Sends a non-maskable interrupt; Windows answers with bug check 0x80."""
        self.require("nmi")
        self._call("NMI", self._backend.nmi)

    def press_keys(self, keys: Sequence[str]) -> None:
        """Presses keys at once, named as in the contract's crash_keys."""
        self.require("keys")
        self._call("keys", lambda: self._backend.press_keys(keys))

    # What can be seen

    def screenshot(self) -> bytes:
        """The screen as PNG."""
        self.require("screenshot")
        return self._call("screenshot", self._backend.screenshot)

    def console_log(self) -> Path:
        """A file that grows with the console's bytes; a port's is older than the run."""
        self.require("console-log")
        return self._backend.console_log()

    def console_bytes(self, boot: int = 0) -> bytes:
        """What the console has said since the lab gave this boot; 0: since the run began."""
        log = self.console_log()
        start = max((at for number, at in self._console_at_boot.items() if number <= boot))
        return log.read_bytes()[start:] if log.exists() else b""

    def watch_console(self, *, offset: int | None = None) -> Watcher:
        """Watches the current boot's console, from now on or from an offset. Needs no lease."""
        self.require("console-log")
        return Watcher(self._backend.console(), self.signals, boot=self.boot, offset=offset)

    def type_on_console(self, data: bytes) -> None:
        """Types on the console. Raises MachineDown where it went down before it could be typed."""
        self.require("console-type")
        boot = self.boot
        try:
            self._call("typing on the console", lambda: self._backend.type_on_console(data))
        except BackendError:
            self.signals.raise_if_down(boot)
            raise

    def sac(self) -> Sac:
        """Windows' SAC on the current boot's console. Raises BackendError where there is none."""
        if not self.contract.console.sac:
            raise BackendError(
                f"{self.name}: image {self.image.name} has no SAC; its contract says so"
                " (console.sac)"
            )
        deadline = self.contract.deadlines.console_reply
        return Sac(self.watch_console(), self.type_on_console, deadline=deadline)

    def crash_signalled(self, boot: int | None = None) -> bool:
        """Whether a bug check was signalled, in one boot or in any."""
        return bool(self.signals.crashes(boot))

    def disk_bytes_written(self) -> int:
        """Bytes the machine wrote since power-on."""
        self.require("disk-activity")
        return self._call("disk statistics", self._backend.disk_bytes_written)

    def dump_memory(self, destination: Path, file_format: Literal["elf", "win-dmp"]) -> None:
        """A dump of memory taken by the hypervisor; no file of that name may be there."""
        self.require("memory-dump")
        self._call("memory dump", lambda: self._backend.dump_memory(destination, file_format))

    def save_memory(self, destination: Path) -> None:
        """Saves memory and devices to a file; off afterwards, and that is announced."""
        self.require("save-restore")
        self.signals.announce_restart()
        self._call("save", lambda: self._backend.save_memory(destination))

    def read_memory(self, address: int, length: int) -> bytes:
        """Physical memory of the running guest."""
        self.require("memory-read")
        return self._call("memory read", lambda: self._backend.read_memory(address, length))

    def debugger_port(self) -> str:
        """Where COM2, which belongs to the kernel debugger, can be reached."""
        self.require("debugger-port")
        return self._backend.debugger_port()

    def address(self) -> str:
        """How to find it with the hypervisor's own tools."""
        return self._backend.address()

    # The guest

    @property
    def guest(self) -> Guest:
        """A handle on the current boot's Windows; stale as soon as that boot ends."""
        kind = self.contract.agent.kind.replace("-", "_")
        self.require("ssh" if kind == "ssh" else "agent")
        channel: Guest = importlib.import_module(f"lab.guest.{kind}").open_guest(self)
        return channel

    def agent(self, command: str, arguments: dict[str, object], *, boot: int) -> object:
        """One request to the agent, for lab.guest. Never sent twice. Raises AgentError."""
        deadline = self.contract.deadlines.agent_reply
        return self._call(
            f"agent command {command}",
            lambda: self._backend.agent(command, arguments, deadline),
            boot=boot,
            deadline=deadline + HYPERVISOR_SECONDS,
        )

    def ssh(self, what: str, ask: Callable[[SshLink], T], *, boot: int, deadline: float) -> T:
        """Something asked over SSH, for lab.guest; `ask` keeps the deadline by itself."""
        self.require("ssh")
        link = self._backend.ssh()
        return self._call(
            what, lambda: ask(link), boot=boot, deadline=deadline + HYPERVISOR_SECONDS
        )

    def wait_for_agent(self) -> Guest:
        """Waits until this boot's agent answers; HungError beyond the contract's deadline.

        After a restore from saved memory the guest's clock is set, and that is recorded.
        """
        boot, guest = self.boot, self.guest
        deadline = self.contract.deadlines.boot_to_agent
        try:
            self.signals.wait(f"the agent of {self.name}", guest.answers, deadline, boot=boot)
        except DeadlineError as error:
            trouble = self._backend.ssh().trouble if "ssh" in self.features else ""
            raise HungError(
                f"{self.name}: no answer from the agent within {deadline:g} s of boot {boot}"
                + (f": {trouble}" if trouble else "")
            ) from error
        before, now = self.measure_clock(guest), datetime.now(UTC)
        restored = self.signals.of(SignalKind.RESTORED, boot=boot)
        if restored and not any(one["boot"] == str(boot) for one in self.clock_settings):
            guest.set_time(now)
            self.measure_clock(guest)
            self.clock_settings.append(
                {"boot": str(boot), "before": before.isoformat(), "set_to": now.isoformat()}
            )
        return guest

    def measure_clock(self, guest: Guest) -> datetime:
        """Asks the guest's clock, and notes how far it is from the host's."""
        time = guest.time()
        self.clock_offset = time - datetime.now(UTC)
        return time

    # The disk

    def disk(self) -> BlockSource:
        """The disk, read-only; of a machine that is on, as a power cut now would leave it."""
        self.require("disk")
        return self._call("disk", self._backend.disk)

    def files(self) -> DiskFiles:
        """The files on the disk, read from outside; close it (a context manager)."""
        return open_files(self.disk())

    def edit(self, edits: Sequence[Edit]) -> list[EditDone]:
        """Changes files of the powered-off machine's overlay; its evidence must be sealed."""
        self._refuse_unsealed("edit the disk")
        self.require("disk")
        if self.is_on():
            raise LabError(f"{self.name} is on: power it off before its disk is edited")
        try:
            return self._call("edit", lambda: edit(self._backend.disk_overlay(), edits))
        except FileNotFoundError as error:
            raise CandidateError(f"{self.name}: a file cannot be put there: {error}") from error

    @property
    def unsealed_boot(self) -> int | None:
        """The last boot that crashed, or left other evidence, and whose evidence is not sealed."""
        boots = [self._evidence_boot, *(signal.boot for signal in self.signals.crashes())]
        return max((boot for boot in boots if boot > self._sealed_boot), default=None)

    def unseal(self, boot: int) -> None:
        """The disk is evidence of `boot` until it is sealed. Only lab.evidence says so."""
        self._evidence_boot = max(self._evidence_boot, boot)

    def seal(self, boot: int) -> None:
        """Evidence of all boots up to `boot` is safe. Only lab.evidence says so."""
        self._sealed_boot = max(self._sealed_boot, boot)

    def _refuse_unsealed(self, action: str) -> None:
        if (boot := self.unsealed_boot) is not None:
            raise EvidenceNotSealedError(
                f"{self.name}: cannot {action}: the evidence of boot {boot} is not sealed; collect"
                " it first (lab.evidence)"
            )

    def revert(self) -> None:
        """Puts it back to the image's known state; off afterwards. Evidence must be sealed."""
        self._refuse_unsealed("revert the disk")
        self.signals.announce_restart()
        self._call("revert", lambda: self._backend.revert(self.image))

    def overlay(self) -> Path:
        """The file of the machine's own disk layer; for evidence that could not be collected."""
        self.require("disk")
        return self._backend.disk_overlay()

    def dispose(self, *, keep_disk: bool) -> None:
        """Cuts the power and removes what the hypervisor and the run's folder hold of it.

        keep_disk: the overlay stays; so it does, whatever is asked, while evidence is not sealed.
        """
        self.signals.announce_restart()
        self._backend.dispose(keep_disk=keep_disk or self.unsealed_boot is not None)
