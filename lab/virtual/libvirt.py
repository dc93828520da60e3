"""QEMU machines by libvirt.

The machine's files lie in the folder that provision() gets; libvirt's domains are transient, named
lab-SLOT-RUN, and lose their power when the connection that started them ends.
"""

from __future__ import annotations

import re
import shutil
import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

from lab.backend import (
    OVERLAY,
    Backend,
    BackendError,
    BackendFactory,
    Confirm,
    Feature,
    Image,
    unleased,
)
from lab.config import Config, Slot
from lab.console.log import Log
from lab.disks.blocks import BlockSource
from lab.disks.overlay import open_overlay
from lab.signals import SignalKind, SignalLog
from lab.virtual import domain_xml
from lab.virtual.account import take_back
from lab.virtual.console_keyboard import ConsoleKeyboard
from lab.virtual.console_log import ConsoleLog
from lab.virtual.debugger_port import DebuggerPort
from lab.virtual.domain_events import DomainEvents
from lab.virtual.domain_xml import DomainIdentity
from lab.virtual.libvirt_connection import Connection, asking
from lab.virtual.libvirt_daemon import Daemon, open_daemon
from lab.virtual.libvirt_domain import Domain
from lab.virtual.libvirt_leftovers import Leftover, leftovers
from lab.virtual.machine_files import MachineFiles
from lab.virtual.saved_memory import copy_with_description

WATCH_SECONDS = 0.05
"""How often the console and the signs of life are looked at."""
EVENT_SECONDS = 10.0
"""For libvirt's word that a machine is off, after it was switched off. A libvirtd that has just
begun anew may forget to say it."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
AGENT_CHANNEL = "org.qemu.guest_agent.0"
FEATURES: frozenset[Feature] = frozenset(
    {
        "agent",
        "console-log",
        "console-type",
        "debugger-port",
        "disk",
        "disk-activity",
        "hold-restart",
        "keys",
        "memory-dump",
        "memory-read",
        "nmi",
        "power-button",
        "reset",
        "save-restore",
        "screenshot",
    }
)


class LibvirtBackend(Backend):
    """One slot on one libvirt."""

    features = FEATURES

    def __init__(
        self, connection: Connection, daemon: Daemon, slot: str, signals: SignalLog
    ) -> None:
        self._connection = connection
        self._daemon = daemon
        self._slot = slot
        self._events = DomainEvents(signals, self._still_runs)
        self._provisioned: tuple[MachineFiles, Domain] | None = None
        self._power = threading.RLock()  # one power operation at a time
        self._memory_waits = False
        self._reset_passes = False
        self._watcher: threading.Thread | None = None
        self._debugger: DebuggerPort | None = None
        self._keyboard: ConsoleKeyboard | None = None

    @property
    def _files(self) -> MachineFiles:
        return self._both()[0]

    @property
    def _domain(self) -> Domain:
        return self._both()[1]

    def _both(self) -> tuple[MachineFiles, Domain]:
        if self._provisioned is None:
            raise BackendError(f"{self.address()}: provision it first")
        return self._provisioned

    def address(self) -> str:
        """See Backend."""
        if self._provisioned is None:
            return f"{self._slot} on {self._daemon.uri}"
        return self._domain.address

    # Known state

    def provision(self, image: Image, folder: Path, run_id: str) -> None:
        """See Backend. COM1's log and its times stay in the folder, whatever happens."""
        identity = DomainIdentity(str(uuid.uuid4()), self._slot, run_id)
        if not NAME.fullmatch(identity.name):
            raise BackendError(
                f"{identity.name!r} cannot be a machine's name: slot and run id together may have"
                " 120 letters, digits, dots, dashes and underscores"
            )
        if image.contract.agent.channel != AGENT_CHANNEL:
            raise BackendError(
                f"image {image.name}: libvirt talks to agents on {AGENT_CHANNEL} only, and this"
                f" one's is {image.contract.agent.channel}"
            )
        with self._power:
            if self._provisioned is not None:
                raise BackendError(f"{self.address()} is provisioned already: dispose of it first")
            if (folder / OVERLAY).exists():
                raise BackendError(
                    f"{folder / OVERLAY}: there is a machine's disk already; it may be evidence."
                    " Choose another folder"
                )
            try:
                folder.mkdir(parents=True, exist_ok=True)
                console = ConsoleLog(folder.resolve())
            except OSError as error:
                raise BackendError(f"{folder}: make {identity.name}: {error}") from error
            self._make(MachineFiles(image, folder.resolve(), identity, console, self._daemon))
            self._connection.listen(identity.uuid, self._events)

    def revert(self, image: Image) -> None:
        """See Backend."""
        with self._power:
            files = self._files
            self.power_off()
            files.remove_disk()
            files.remove_state()
            self._make(replace(files, image=image))

    def _make(self, files: MachineFiles) -> None:
        files.make()
        self._provisioned = files, Domain(self._connection, files.identity)
        self._memory_waits = files.image.memory is not None

    def dispose(self, *, keep_disk: bool) -> None:
        """See Backend. The console's log stays."""
        with self._power:
            if self._provisioned is None:
                return
            self.power_off()
            files = self._files
            if self._debugger is not None:
                self._debugger.close()
                self._debugger = None
            if self._keyboard is not None:
                self._keyboard.close()
                self._keyboard = None
            files.console.close()
            self._connection.forget(files.identity.uuid)
            files.remove_state()
            if not keep_disk:
                files.remove_disk()
            self._provisioned = None

    # Power

    def start(self, *, hold_restart: bool) -> None:
        """See Backend."""
        with self._power:
            domain, files = self._domain, self._files
            if domain.is_on():
                raise BackendError(f"start {domain.address}: it is on already")
            self._wait_until_off()
            self._events.begin(holds=hold_restart)
            self._reset_passes = False
            restored = self._memory_waits
            try:
                if restored:
                    self._restore()
                else:
                    kvm = domain_xml.kvm_is_usable(own_user="session" in self._daemon.uri)
                    domain.create(
                        domain_xml.domain_xml(
                            files.identity,
                            files.image,
                            files.domain,
                            kvm=kvm,
                            hold_restart=hold_restart,
                        )
                    )
            except BaseException:
                self._events.failed()
                raise
            self._memory_waits = False
            self._events.begun(SignalKind.RESTORED if restored else SignalKind.POWER_ON)
            self._watcher = threading.Thread(
                target=self._watch, name=f"watch {self._slot}", daemon=True
            )
            self._watcher.start()
            domain.resume()

    def _restore(self) -> None:
        files = self._files
        assert files.image.memory is not None
        copy = files.folder / "restore.sav"
        try:
            copy_with_description(
                files.image.memory,
                copy,
                lambda xml: domain_xml.moved(
                    xml, files.identity, files.domain, hold_restart=self._events.holds
                ),
            )
            if self._daemon.account:
                self._daemon.account.own(copy)
            self._domain.restore(copy)
        finally:
            copy.unlink(missing_ok=True)

    def power_off(self) -> None:
        """See Backend."""
        with self._power:
            if self._provisioned is None:
                return
            self._events.ask("lab")
            self._domain.destroy()
            self._wait_until_off()

    def _wait_until_off(self) -> None:
        """Returns when libvirt has said that it is off, and its signal is there."""
        if not self._events.off.wait(EVENT_SECONDS):
            if self.is_on():
                raise BackendError(f"{self.address()} does not go off; look what libvirtd logged")
            self._events.gone()
        if self._watcher is not None:
            self._watcher.join()
            self._watcher = None

    def is_on(self) -> bool:
        """See Backend."""
        return self._provisioned is not None and self._domain.is_on()

    def _still_runs(self) -> bool:
        return self._domain.still_runs(self._disk_name)

    def hold_restart(self, hold: bool) -> None:
        """See Backend. Where firmware may still reset, holding begins with the sign of life."""
        with self._power:
            self._events.holds = hold
            self._reset_passes = hold and not self._events.alive.is_set()
            if not self._reset_passes:
                self._domain.hold_restart(hold)

    def reset(self) -> None:
        """See Backend.

        QEMU would hold a reset from outside and the firmware's own ones, too: where restarts are
        held, that begins again with the first sign of life.
        """
        with self._power:
            if self._events.holds:
                self._domain.hold_restart(False)
            self._events.ask_reset()
            self._reset_passes = self._events.holds
            self._domain.reset()

    def _hold_again(self) -> None:
        """Holds restarts again after a reset, if there was a sign of life.

        The watcher does so soon; it must be so before the lab does anything that may cause one.
        """
        if self._reset_passes:
            with self._power:
                if self._reset_passes and self._events.alive.is_set():
                    self._domain.hold_restart(self._events.holds)
                    self._reset_passes = False

    def press_power_button(self) -> None:
        """See Backend."""
        self._hold_again()
        self._domain.press_power_button()

    def nmi(self) -> None:
        """See Backend."""
        self._hold_again()
        self._domain.nmi()

    def press_keys(self, keys: Sequence[str]) -> None:
        """See Backend. QEMU lets them go in the opposite order."""
        self._hold_again()
        self._domain.press_keys(keys)

    def _watch(self) -> None:
        """Follows the console, looks for signs of life, and holds restarts again after a reset."""
        domain, files, events = self._domain, self._files, self._events
        while not events.off.wait(WATCH_SECONDS):
            with suppress(OSError):  # no room: console_log() says so to whoever asks
                files.console.follow()
            with suppress(BackendError):  # it went off meanwhile; that is signalled
                if not events.holds or self._reset_passes:
                    events.look_for_life(
                        lambda: domain.disk_statistics(self._disk_name)["rd_bytes"]
                    )
                # Whoever switches it off holds the lock, and waits for this thread.
                if self._reset_passes and self._power.acquire(blocking=False):
                    try:
                        self._hold_again()
                    finally:
                        self._power.release()
        with suppress(OSError):
            files.console.follow()

    # What can be seen

    def screenshot(self) -> bytes:
        """See Backend."""
        return self._domain.screenshot()

    def console_log(self) -> Path:
        """See Backend. Beside it, console.times.jsonl says when the bytes came (ConsoleLog)."""
        console = self._files.console
        try:
            console.follow()
        except OSError as error:
            raise BackendError(f"{console.path}: keep the console's bytes: {error}") from error
        return console.path

    def console(self) -> Log:
        """See Backend."""
        return self._files.console

    def type_on_console(self, data: bytes) -> None:
        """See Backend. QEMU looks once a second whether somebody types for the first time."""
        self._hold_again()
        with self._power:
            domain = self._domain
            if self._keyboard is None:
                self._keyboard = ConsoleKeyboard(lambda: domain.terminal(0), self._files.console)
            keyboard = self._keyboard
        keyboard.type(data)

    @property
    def _disk_name(self) -> str:
        return domain_xml.disk_target(self._files.image.contract)

    def disk_bytes_written(self) -> int:
        """See Backend."""
        return self._domain.disk_statistics(self._disk_name)["wr_bytes"]

    def agent(self, command: str, arguments: dict[str, Any], deadline: float) -> Any:
        """See Backend."""
        self._hold_again()
        return self._domain.agent(command, arguments, deadline)

    def debugger_port(self) -> str:
        """See Backend. The port is there until dispose(), for as long as this process runs."""
        with self._power:
            domain = self._domain
            if self._debugger is None:
                self._debugger = DebuggerPort(lambda: domain.terminal(1))
            return self._debugger.address

    # Memory and disk

    def dump_memory(self, destination: Path, file_format: Literal["elf", "win-dmp"]) -> None:
        """See Backend."""
        domain = self._domain
        self._write_by_libvirt(destination, lambda file: domain.dump_memory(file, file_format))

    def save_memory(self, destination: Path) -> None:
        """See Backend."""
        with self._power:
            self._events.ask("saved")
            try:
                self._write_by_libvirt(destination, self._domain.save_memory)
            except BaseException:
                self._events.ask("")
                raise
            self._wait_until_off()

    def _write_by_libvirt(self, destination: Path, write: Callable[[str], None]) -> None:
        """libvirt writes into the machine's folder, where it may, and the file moves from there."""
        if destination.exists():
            raise BackendError(f"{destination} exists already; choose another name")
        part = self._files.folder / f"{destination.name}.part"
        try:
            write(str(part))
            take_back(part)
            shutil.move(part, destination)
        except OSError as error:
            destination.unlink(missing_ok=True)  # the part for which there was room
            raise BackendError(f"{self.address()}: write {destination}: {error}") from error
        finally:
            part.unlink(missing_ok=True)

    def read_memory(self, address: int, length: int) -> bytes:
        """See Backend."""
        return self._domain.read_memory(address, length)

    def disk_overlay(self) -> Path:
        """See Backend."""
        return self._files.domain.disk

    def disk(self) -> BlockSource:
        """See Backend."""
        return open_overlay(self.disk_overlay(), in_use=self.is_on())


class Factory(BackendFactory):
    """The slots of a host of lab.toml. It connects, and starts daemons, when first asked for one.

    scratch: a folder for what daemons print.
    """

    def __init__(self, host_name: str, uri: str, scratch: Path) -> None:
        self._host_name = host_name
        self._uri = uri
        self._scratch = scratch
        self._lock = threading.Lock()
        self._open: tuple[Connection, Daemon] | None = None

    @classmethod
    def of(cls, config: Config, slot: Slot) -> Self:
        """See BackendFactory."""
        assert slot.host is not None  # lab.config has looked
        return cls(slot.host_name, slot.host.uri, config.store / "hosts")

    @classmethod
    def features_of(cls, config: Config, slot: Slot) -> frozenset[Feature]:
        """See BackendFactory."""
        return FEATURES

    def slot(self, name: str, signals: SignalLog, confirm: Confirm = unleased) -> Backend:
        """See BackendFactory."""
        return LibvirtBackend(*self._connected(), name, signals)

    def _connected(self) -> tuple[Connection, Daemon]:
        with self._lock:
            if self._open is not None and self._open[0].lost:
                self._disconnect()
            if self._open is None:
                daemon = open_daemon(self._host_name, self._uri, self._scratch)
                try:
                    connection = Connection(daemon.uri, daemon.still_there, daemon.patience)
                except BaseException:
                    daemon.stop()
                    raise
                self._open = connection, daemon
            return self._open

    def leftovers(self) -> list[tuple[str, str]]:
        """See BackendFactory. A private libvirt has none: it ends with its owner."""
        return [(one.run_id, one.what) for one in self._leftovers()]

    def remove(self, run_id: str) -> list[str]:
        """See BackendFactory."""
        removed = []
        for one in self._leftovers():
            if one.run_id == run_id:
                with asking(f"remove {one.what}"):
                    one.remove()
                removed.append(one.what)
        return removed

    def _leftovers(self) -> list[Leftover]:
        if self._uri == "private" and self._open is None:
            return []
        return list(leftovers(*self._connected()))

    def close(self) -> None:
        """See BackendFactory."""
        with self._lock:
            self._disconnect()

    def _disconnect(self) -> None:
        if self._open is not None:
            connection, daemon = self._open
            self._open = None
            try:
                connection.close()
            finally:
                daemon.stop()
