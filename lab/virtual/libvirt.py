"""QEMU machines by libvirt.

The machine's files lie in the folder that provision() gets; libvirt's domains are transient, named
lab-SLOT-RUN, and lose their power when the connection that started them ends.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import libvirt
import libvirt_qemu

from lab.backend import (
    OVERLAY,
    AgentSilent,
    AgentUnreachable,
    Backend,
    BackendError,
    BackendFactory,
    Feature,
    Image,
)
from lab.disks.blocks import BlockSource
from lab.disks.edit import layers_below
from lab.disks.overlay import open_overlay
from lab.signals import SignalKind, SignalLog
from lab.virtual import domain_xml
from lab.virtual.account import take_back
from lab.virtual.agent_errors import agent_error
from lab.virtual.console_log import ConsoleLog
from lab.virtual.debugger_port import DebuggerPort
from lab.virtual.domain_events import DomainEvents
from lab.virtual.domain_xml import DomainFiles, DomainIdentity
from lab.virtual.keys import key_codes
from lab.virtual.libvirt_connection import Connection, asking
from lab.virtual.libvirt_daemon import Daemon, open_daemon
from lab.virtual.saved_memory import copy_with_description
from lab.virtual.screen import as_png

WATCH_SECONDS = 0.05
"""How often the console and the signs of life are looked at."""
EVENT_SECONDS = 10.0
"""For libvirt's word that a machine is off, after it was switched off. A libvirtd that has just
begun anew may forget to say it."""
KEY_MILLISECONDS = 100
PEEK_BYTES = 65536
"""The most that libvirt reads of a guest's memory at once."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
AGENT_CHANNEL = "org.qemu.guest_agent.0"
TPM_FOLDER = "tpm-of-"
FEATURES: frozenset[Feature] = frozenset(
    {
        "agent",
        "console-log",
        "debugger-port",
        "disk",
        "hold-restart",
        "keys",
        "memory-dump",
        "memory-read",
        "nmi",
        "save-restore",
        "screenshot",
    }
)


@dataclass(frozen=True)
class Provisioned:
    """What provision() made for one run."""

    image: Image
    folder: Path
    identity: DomainIdentity
    console: ConsoleLog

    @property
    def files(self) -> DomainFiles:
        """The machine's files."""
        return DomainFiles(
            self.image.disk.resolve(),
            tuple(layers_below(self.folder / OVERLAY)),
            self.folder / OVERLAY,
            self.console.written_by_libvirt,
            self.folder / "nvram.fd",
        )

    @property
    def tpm(self) -> Path:
        """The TPM's state. Its name says whose it is, for libvirt has a link to it."""
        return self.folder / f"{TPM_FOLDER}{self.identity.run_id}"


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
        self._machine: Provisioned | None = None
        self._power = threading.RLock()  # one power operation at a time
        self._agent = threading.Lock()  # one agent command at a time
        self._memory_waits = False
        self._reset_passes = False
        self._watcher: threading.Thread | None = None
        self._debugger: DebuggerPort | None = None

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
            if self._machine is not None:
                raise BackendError(f"{self.address()} is provisioned already: dispose of it first")
            folder.mkdir(parents=True, exist_ok=True)
            machine = Provisioned(image, folder.resolve(), identity, ConsoleLog(folder.resolve()))
            if machine.files.disk.exists():
                raise BackendError(
                    f"{machine.files.disk}: there is a machine's disk already; it may be evidence."
                    " Choose another folder"
                )
            if account := self._daemon.account:
                account.own(machine.folder)
                account.require_access(machine.folder)
                account.require_access(image.disk)
            self._machine = machine
            try:
                self._make_known_state(machine)
            except BaseException:
                self._machine = None
                raise
            self._connection.listen(identity.uuid, self._events)

    def revert(self, image: Image) -> None:
        """See Backend."""
        with self._power:
            machine = self._provisioned("revert")
            self.power_off()
            self._remove_disk(machine)
            self._remove_state(machine)
            self._machine = Provisioned(image, machine.folder, machine.identity, machine.console)
            self._make_known_state(self._machine)

    def _make_known_state(self, machine: Provisioned) -> None:
        image, files = machine.image, machine.files
        made = [files.disk]
        try:
            _run(
                "qemu-img", "create", "-q", "-f", "qcow2", "-F", files.base_format,
                "-b", str(files.base), str(files.disk),
            )  # fmt: skip
            if image.nvram:
                shutil.copyfile(image.nvram, files.nvram)
                made.append(files.nvram)
            if domain_xml.has_tpm(image.contract):
                self._link_tpm(machine)
                made.append(machine.tpm)
            if account := self._daemon.account:
                for path in made:
                    account.own(path)
        except OSError as error:
            raise BackendError(f"{machine.folder}: make {image.name}'s state: {error}") from error
        self._memory_waits = image.memory is not None

    def _link_tpm(self, machine: Provisioned) -> None:
        """libvirt 9 has one place for TPMs; a link there leads to the machine's folder."""
        states = self._daemon.tpm_states
        if states is None:
            raise BackendError(
                f"{self.address()} needs a TPM, and where {self._daemon.uri} keeps those is not"
                ' known; use "private", qemu:///session or qemu:///system'
            )
        if machine.image.tpm:
            shutil.copytree(machine.image.tpm, machine.tpm / "tpm2")
        else:
            machine.tpm.mkdir()
        if not states.exists():
            states.mkdir(parents=True, mode=0o711)
            if account := self._daemon.account:
                account.own(states)
        link = states / machine.identity.uuid
        if not link.is_symlink():
            link.symlink_to(machine.tpm)

    def _remove_disk(self, machine: Provisioned) -> None:
        """The overlay, and the layers under it that edits left."""
        for file in machine.folder.glob(f"{OVERLAY}*"):
            file.unlink()

    def _remove_state(self, machine: Provisioned) -> None:
        """Everything but disk and logs."""
        machine.files.nvram.unlink(missing_ok=True)
        if machine.tpm.exists():
            shutil.rmtree(machine.tpm)
        if self._daemon.tpm_states:
            (self._daemon.tpm_states / machine.identity.uuid).unlink(missing_ok=True)

    def dispose(self, *, keep_disk: bool) -> None:
        """See Backend. The console's log stays."""
        with self._power:
            if self._machine is None:
                return
            self.power_off()
            machine = self._machine
            if self._debugger is not None:
                self._debugger.close()
                self._debugger = None
            machine.console.close()
            self._connection.forget(machine.identity.uuid)
            self._remove_state(machine)
            if not keep_disk:
                self._remove_disk(machine)
            self._machine = None

    # Power

    def start(self, *, hold_restart: bool) -> None:
        """See Backend."""
        with self._power:
            machine = self._provisioned("start")
            if self.is_on():
                raise BackendError(f"start {self.address()}: it is on already")
            self._wait_until_off()
            self._events.begin(holds=hold_restart)
            self._reset_passes = False
            restored = self._memory_waits
            try:
                domain = self._restore(machine) if restored else self._create(machine)
            except BaseException:
                self._events.failed()
                raise
            self._memory_waits = False
            self._events.begun(SignalKind.RESTORED if restored else SignalKind.POWER_ON)
            self._watcher = threading.Thread(
                target=self._watch, args=(machine,), name=f"watch {self._slot}", daemon=True
            )
            self._watcher.start()
            with asking(f"let {self.address()} run"):
                domain.resume()

    def _create(self, machine: Provisioned) -> Any:
        xml = domain_xml.domain_xml(
            machine.identity,
            machine.image.contract,
            machine.files,
            kvm=domain_xml.kvm_is_usable(own_user="session" in self._daemon.uri),
            hold_restart=self._events.holds,
        )
        flags = libvirt.VIR_DOMAIN_START_PAUSED | libvirt.VIR_DOMAIN_START_AUTODESTROY
        with asking(f"start {self.address()}"):
            return self._connection.open.createXML(xml, flags)

    def _restore(self, machine: Provisioned) -> Any:
        assert machine.image.memory is not None
        copy = machine.folder / "restore.sav"
        try:
            copy_with_description(
                machine.image.memory,
                copy,
                lambda xml: domain_xml.moved(
                    xml, machine.identity, machine.files, hold_restart=self._events.holds
                ),
            )
            if self._daemon.account:
                self._daemon.account.own(copy)
            with asking(f"restore {self.address()} from {machine.image.memory}"):
                connection = self._connection.open
                connection.restoreFlags(str(copy), None, libvirt.VIR_DOMAIN_SAVE_PAUSED)
                return connection.lookupByUUIDString(machine.identity.uuid)
        finally:
            copy.unlink(missing_ok=True)

    def power_off(self) -> None:
        """See Backend."""
        with self._power:
            if self._machine is None:
                return
            self._events.ask("lab")
            with asking(f"power off {self.address()}"):
                if domain := self._find():
                    with suppress_gone():
                        domain.destroy()
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
        with asking(f"look whether {self.address()} is on"):
            return self._machine is not None and self._find() is not None

    def _still_runs(self) -> bool:
        """After libvirtd began anew, which asks QEMU first."""
        with asking(f"look what {self.address()} does"):
            try:
                self._disk_statistics()  # waits for that
                state, _ = self._domain().state()
            except libvirt.libvirtError as error:
                if _is_gone(error):
                    return False
                raise
            return bool(state == libvirt.VIR_DOMAIN_RUNNING)

    def hold_restart(self, hold: bool) -> None:
        """See Backend. Where firmware may still reset, holding begins with the sign of life."""
        with self._power:
            self._events.holds = hold
            self._reset_passes = hold and not self._events.alive.is_set()
            if not self._reset_passes:
                self._set_hold(hold)

    def _set_hold(self, hold: bool) -> None:
        action = (
            libvirt.VIR_DOMAIN_LIFECYCLE_ACTION_DESTROY
            if hold
            else libvirt.VIR_DOMAIN_LIFECYCLE_ACTION_RESTART
        )
        with asking(f"{'hold' if hold else 'let go'} restarts of {self.address()}"):
            self._domain().setLifecycleAction(
                libvirt.VIR_DOMAIN_LIFECYCLE_REBOOT, action, libvirt.VIR_DOMAIN_AFFECT_LIVE
            )

    def _hold_again(self) -> None:
        self._reset_passes = False
        with suppress(BackendError):  # it went off meanwhile; that is signalled
            self._set_hold(self._events.holds)

    def press_power_button(self) -> None:
        """See Backend."""
        with asking(f"press the power button of {self.address()}"):
            self._domain().shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)

    def reset(self) -> None:
        """See Backend.

        QEMU would hold a reset from outside and the firmware's own ones, too: where restarts are
        held, that begins again with the first sign of life.
        """
        with self._power:
            self._domain()
            if self._events.holds:
                self._set_hold(False)
                self._reset_passes = True
            self._events.ask_reset()
            with asking(f"reset {self.address()}"):
                self._domain().reset(0)

    def nmi(self) -> None:
        """See Backend."""
        with asking(f"send an NMI to {self.address()}"):
            self._domain().injectNMI(0)

    def press_keys(self, keys: Sequence[str]) -> None:
        """See Backend. QEMU lets them go in the opposite order."""
        codes = key_codes(keys)
        with asking(f"press {' '.join(keys)} on {self.address()}"):
            self._domain().sendKey(
                libvirt.VIR_KEYCODE_SET_LINUX, KEY_MILLISECONDS, codes, len(codes), 0
            )

    # What can be seen

    def screenshot(self) -> bytes:
        """See Backend."""
        picture = bytearray()
        with asking(f"take a screenshot of {self.address()}"):
            stream = self._connection.open.newStream()
            self._domain().screenshot(stream, 0)
            stream.recvAll(lambda _, data, into: into.extend(data), picture)
            stream.finish()
        return as_png(bytes(picture))

    def console_log(self) -> Path:
        """See Backend. Beside it, console.times.jsonl says when the bytes came (ConsoleLog)."""
        machine = self._provisioned("read the console")
        try:
            machine.console.follow()
        except OSError as error:
            raise BackendError(
                f"{machine.console.path}: keep the console's bytes: {error}"
            ) from error
        return machine.console.path

    def disk_bytes_written(self) -> int:
        """See Backend."""
        with asking(f"ask for the disk statistics of {self.address()}"):
            return int(self._disk_statistics()["wr_bytes"])

    def _disk_statistics(self) -> dict[str, int]:
        machine = self._provisioned("ask for disk statistics")
        target = domain_xml.disk_target(machine.image.contract)
        statistics: dict[str, int] = self._domain().blockStatsFlags(target)
        return statistics

    def _watch(self, machine: Provisioned) -> None:
        """Follows the console, looks for signs of life, and holds restarts again after a reset."""
        events = self._events
        before: tuple[int, int] | None = None  # resets, and bytes read from the disk
        while not events.off.wait(WATCH_SECONDS):
            with suppress(OSError):  # no room: console_log() says so to whoever asks
                machine.console.follow()
            if (not events.holds or self._reset_passes) and not events.alive.is_set():
                resets = events.resets
                with suppress(libvirt.libvirtError, BackendError):  # it went off meanwhile
                    now = resets, self._disk_statistics()["rd_bytes"]
                    if before and now[0] == before[0] == events.resets and now[1] > before[1]:
                        events.alive.set()
                    before = now
            # Whoever switches it off holds the lock, and waits for this thread.
            if self._reset_passes and events.alive.is_set() and self._power.acquire(blocking=False):
                try:
                    self._hold_again()
                finally:
                    self._power.release()
        with suppress(OSError):
            machine.console.follow()

    # Agent

    def agent(self, command: str, arguments: dict[str, Any], deadline: float) -> Any:
        """See Backend.

        libvirt asks the agent to synchronise first, so that an answer that comes too late is not
        taken for the next one's.
        """
        what = f"agent command {command} for {self.address()}"
        end = time.monotonic() + deadline
        if not self._agent.acquire(timeout=deadline):
            raise AgentUnreachable(f"{what}: not sent: another command waits for its answer")
        try:
            request = json.dumps(
                {"execute": command, **({"arguments": arguments} if arguments else {})}
            )
            seconds = max(1, math.ceil(end - time.monotonic()))
            try:
                domain = self._domain()
            except (libvirt.libvirtError, BackendError) as error:
                raise AgentUnreachable(f"{what}: not sent: {error}") from error
            answer = libvirt_qemu.qemuAgentCommand(domain, request, seconds, 0)
            return json.loads(answer)["return"]
        except libvirt.libvirtError as error:
            raise agent_error(error, what) from error
        except (ValueError, KeyError, TypeError) as error:
            raise AgentSilent(f"{what}: the answer is not the protocol's: {error!r}") from error
        finally:
            self._agent.release()

    # Memory and disk

    def dump_memory(self, destination: Path, file_format: Literal["elf", "win-dmp"]) -> None:
        """See Backend."""
        formats = {
            "elf": libvirt.VIR_DOMAIN_CORE_DUMP_FORMAT_RAW,
            "win-dmp": libvirt.VIR_DOMAIN_CORE_DUMP_FORMAT_WIN_DMP,
        }
        # Never through QEMU's monitor: libvirtd 9.0 dies of a dump it did not begin itself.
        self._write_by_libvirt(
            f"dump the memory of {self.address()} as {file_format}",
            destination,
            lambda path: self._domain().coreDumpWithFormat(
                path, formats[file_format], libvirt.VIR_DUMP_MEMORY_ONLY
            ),
        )

    def save_memory(self, destination: Path) -> None:
        """See Backend."""
        with self._power:
            self._events.ask("saved")

            def save(path: str) -> None:
                self._domain().save(path)

            try:
                self._write_by_libvirt(f"save {self.address()}", destination, save)
            except BaseException:
                self._events.ask("")
                raise
            self._wait_until_off()

    def _write_by_libvirt(self, what: str, destination: Path, write: Any) -> None:
        """libvirt writes into the machine's folder, where it may, and the file moves from there."""
        if destination.exists():
            raise BackendError(f"{what}: {destination} exists already; choose another name")
        part = self._provisioned(what).folder / f"{destination.name}.part"
        try:
            with asking(what):
                write(str(part))
            take_back(part)
            shutil.move(part, destination)
        except OSError as error:
            raise BackendError(f"{what} to {destination}: {error}") from error
        finally:
            part.unlink(missing_ok=True)

    def read_memory(self, address: int, length: int) -> bytes:
        """See Backend."""
        found = b""
        with asking(f"read {length} bytes at {address:#x} of {self.address()}"):
            domain = self._domain()
            while len(found) < length:
                size = min(PEEK_BYTES, length - len(found))
                found += domain.memoryPeek(address + len(found), size, libvirt.VIR_MEMORY_PHYSICAL)
        return found

    def disk_overlay(self) -> Path:
        """See Backend."""
        return self._provisioned("find the disk").files.disk

    def disk(self) -> BlockSource:
        """See Backend."""
        return open_overlay(self.disk_overlay(), in_use=self.is_on())

    # Debugger and names

    def debugger_port(self) -> str:
        """See Backend. The port is there until dispose(), for as long as this process runs."""
        with self._power:
            self._provisioned("offer a debugger port")
            if self._debugger is None:
                self._debugger = DebuggerPort(self._debugger_terminal)
            return self._debugger.address

    def _debugger_terminal(self) -> Path | None:
        with asking(f"find COM2 of {self.address()}"):
            domain = self._find()
            if domain is None:
                return None
            with suppress_gone():
                description = ElementTree.fromstring(domain.XMLDesc())  # noqa: S314 - libvirt's
                for serial in description.iterfind("devices/serial"):
                    target, source = serial.find("target"), serial.find("source")
                    if target is not None and target.get("port") == "1" and source is not None:
                        return Path(source.get("path", ""))
        return None

    def address(self) -> str:
        """See Backend."""
        if self._machine is None:
            return f"{self._slot} on {self._daemon.uri}"
        return f"{self._machine.identity.name} on {self._daemon.uri}"

    # libvirt's handle, looked up each time: it does not survive a reconnection

    def _provisioned(self, what: str) -> Provisioned:
        if self._machine is None:
            raise BackendError(f"{what} of {self.address()}: provision it first")
        return self._machine

    def _domain(self) -> Any:
        machine = self._provisioned("power")
        return self._connection.open.lookupByUUIDString(machine.identity.uuid)

    def _find(self) -> Any | None:
        with suppress_gone():
            return self._domain()
        return None


@contextmanager
def suppress_gone() -> Iterator[None]:
    """The domain may have ended meanwhile, and that is fine."""
    try:
        yield
    except libvirt.libvirtError as error:
        if not _is_gone(error):
            raise


def _is_gone(error: libvirt.libvirtError) -> bool:
    return error.get_error_code() in {
        libvirt.VIR_ERR_NO_DOMAIN,
        libvirt.VIR_ERR_OPERATION_INVALID,
    }


def _run(*command: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise BackendError(f"{' '.join(command)}: {done.stderr.strip()}")


class Factory(BackendFactory):
    """The slots of a host of lab.toml. It connects, and starts daemons, when first asked for one.

    scratch: a folder for what daemons print.
    """

    features = FEATURES

    def __init__(self, host_name: str, uri: str, scratch: Path) -> None:
        self._host_name = host_name
        self._uri = uri
        self._scratch = scratch
        self._lock = threading.Lock()
        self._open: tuple[Connection, Daemon] | None = None

    def slot(self, name: str, signals: SignalLog) -> Backend:
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
        return [(run_id, what) for run_id, what, _ in self._found()]

    def remove(self, run_id: str) -> list[str]:
        """See BackendFactory."""
        removed = []
        for of_run, what, remove in self._found():
            if of_run == run_id:
                with asking(f"remove {what}"):
                    remove()
                removed.append(what)
        return removed

    def _found(self) -> list[tuple[str, str, Callable[[], object]]]:
        if self._uri == "private" and self._open is None:
            return []
        connection, daemon = self._connected()
        found: list[tuple[str, str, Callable[[], object]]] = []
        with asking(f"list the machines of {daemon.uri}"):
            for domain in connection.open.listAllDomains():
                if run_id := _run_of(domain):
                    what = f"machine {domain.name()} on {daemon.uri}"
                    found.append((run_id, what, domain.destroy))
        if daemon.tpm_states and daemon.tpm_states.is_dir():
            for link in daemon.tpm_states.iterdir():
                if link.is_symlink() and link.readlink().name.startswith(TPM_FOLDER):
                    run_id = link.readlink().name.removeprefix(TPM_FOLDER)
                    found.append((run_id, f"TPM link {link}", link.unlink))
        return found

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


def _run_of(domain: Any) -> str:
    """The run a domain belongs to; empty if it is not the lab's."""
    try:
        metadata = domain.metadata(
            libvirt.VIR_DOMAIN_METADATA_ELEMENT, domain_xml.METADATA_NAMESPACE
        )
    except libvirt.libvirtError as error:
        if error.get_error_code() in {
            libvirt.VIR_ERR_NO_DOMAIN_METADATA,
            libvirt.VIR_ERR_NO_DOMAIN,
        }:
            return ""
        raise
    return ElementTree.fromstring(metadata).get("run", "")  # noqa: S314 - libvirt's
