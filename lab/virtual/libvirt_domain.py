"""One domain: what is asked of libvirt about it, with errors that say what was asked of whom.

libvirt's own handle is looked up for each call: it does not survive a reconnection.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import libvirt
import libvirt_qemu

from lab.backend import AgentSilent, AgentUnreachable, BackendError
from lab.signals import DeadlineError, SignalLog
from lab.virtual.agent_errors import agent_error
from lab.virtual.domain_xml import DomainIdentity
from lab.virtual.keys import key_codes
from lab.virtual.libvirt_connection import Connection, asking
from lab.virtual.screen import as_png

KEY_MILLISECONDS = 100
BEING_REMOVED = "is already being removed"
"""libvirt's words (src/conf/virdomainobjlist.c) in an error that has no code of its own."""
REMOVAL_SECONDS = 30.0
PEEK_BYTES = 65536
"""The most that libvirt reads of a guest's memory at once."""
DUMP_FORMATS = {
    "elf": libvirt.VIR_DOMAIN_CORE_DUMP_FORMAT_RAW,
    "win-dmp": libvirt.VIR_DOMAIN_CORE_DUMP_FORMAT_WIN_DMP,
}
_GONE = {libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID}


@contextmanager
def suppress_gone() -> Iterator[None]:
    """The domain may have ended meanwhile, and that is fine."""
    try:
        yield
    except libvirt.libvirtError as error:
        if error.get_error_code() not in _GONE:
            raise


class Domain:
    """A domain by its UUID, whether it exists at the moment or not.

    All methods raise BackendError, but where something else is said.
    """

    def __init__(self, connection: Connection, identity: DomainIdentity) -> None:
        self._connection = connection
        self._uuid = identity.uuid
        self.address = f"{identity.name} on {connection.uri}"
        self._agent = threading.Lock()  # one command at a time

    def _handle(self) -> Any:
        return self._connection.open.lookupByUUIDString(self._uuid)

    def _find(self) -> Any | None:
        with suppress_gone():
            return self._handle()
        return None

    # Power

    def create(self, xml: str) -> None:
        """Switches it on; it stands before its first instruction."""
        flags = libvirt.VIR_DOMAIN_START_PAUSED | libvirt.VIR_DOMAIN_START_AUTODESTROY
        with asking(f"start {self.address}"):
            self._add(lambda: self._connection.open.createXML(xml, flags))

    def restore(self, saved: Path) -> None:
        """Loads saved memory; it stands where it was saved."""
        paused = libvirt.VIR_DOMAIN_SAVE_PAUSED
        with asking(f"restore {self.address}"):
            self._add(lambda: self._connection.open.restoreFlags(str(saved), None, paused))

    def _add(self, add: Callable[[], object]) -> None:
        """Waits where libvirt, which said that the boot before has ended, has not forgotten it."""

        def added() -> bool:
            try:
                add()
            except libvirt.libvirtError as error:
                if BEING_REMOVED in error.get_error_message():
                    return False
                raise
            return True

        try:
            SignalLog().wait("libvirt to forget the boot before", added, REMOVAL_SECONDS)
        except DeadlineError as error:
            raise BackendError(f"{self.address}: {error}") from error

    def resume(self) -> None:
        """Lets it run."""
        with asking(f"let {self.address} run"):
            self._handle().resume()

    def destroy(self) -> None:
        """Cuts the power, if it has any."""
        with asking(f"power off {self.address}"), suppress_gone():
            self._handle().destroy()

    def is_on(self) -> bool:
        """Whether it has power."""
        with asking(f"look whether {self.address} is on"):
            return self._find() is not None

    def still_runs(self, disk: str) -> bool:
        """After libvirtd began anew, which asks QEMU about each domain first."""
        with asking(f"look what {self.address} does"), suppress_gone():
            domain = self._handle()
            domain.blockStatsFlags(disk)  # waits for that
            return bool(domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING)
        return False

    def hold_restart(self, hold: bool) -> None:
        """What QEMU does from now on when somebody resets the machine: end, or boot again."""
        action = (
            libvirt.VIR_DOMAIN_LIFECYCLE_ACTION_DESTROY
            if hold
            else libvirt.VIR_DOMAIN_LIFECYCLE_ACTION_RESTART
        )
        with asking(f"{'hold' if hold else 'let go'} restarts of {self.address}"):
            self._handle().setLifecycleAction(
                libvirt.VIR_DOMAIN_LIFECYCLE_REBOOT, action, libvirt.VIR_DOMAIN_AFFECT_LIVE
            )

    def press_power_button(self) -> None:
        """The ACPI one."""
        with asking(f"press the power button of {self.address}"):
            self._handle().shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)

    def reset(self) -> None:
        """Presses the reset button."""
        with asking(f"reset {self.address}"):
            self._handle().reset(0)

    def nmi(self) -> None:
        """Sends a non-maskable interrupt."""
        with asking(f"send an NMI to {self.address}"):
            self._handle().injectNMI(0)

    def press_keys(self, keys: Sequence[str]) -> None:
        """In this order; QEMU lets them go in the opposite one."""
        codes = key_codes(keys)
        with asking(f"press {' '.join(keys)} on {self.address}"):
            self._handle().sendKey(
                libvirt.VIR_KEYCODE_SET_LINUX, KEY_MILLISECONDS, codes, len(codes), 0
            )

    # What can be seen

    def screenshot(self) -> bytes:
        """As PNG."""
        picture = bytearray()
        with asking(f"take a screenshot of {self.address}"):
            stream = self._connection.open.newStream()
            self._handle().screenshot(stream, 0)
            stream.recvAll(lambda _, data, into: into.extend(data), picture)
            stream.finish()
        return as_png(bytes(picture))

    def disk_statistics(self, disk: str) -> dict[str, int]:
        """rd_bytes, wr_bytes and more since power-on; `disk` is its name in libvirt."""
        with asking(f"ask for the disk statistics of {self.address}"):
            found: dict[str, int] = self._handle().blockStatsFlags(disk)
            return found

    def terminal(self, port: int) -> Path | None:
        """The pseudo-terminal of a serial port, COM1 being 0; None while it is off."""
        with asking(f"find serial port {port} of {self.address}"), suppress_gone():
            description = ElementTree.fromstring(self._handle().XMLDesc())  # noqa: S314 - libvirt's
            for serial in description.iterfind("devices/serial"):
                target, source = serial.find("target"), serial.find("source")
                if target is not None and target.get("port") == str(port) and source is not None:
                    return Path(source.get("path", ""))
        return None

    # Memory

    def dump_memory(self, file: str, file_format: Literal["elf", "win-dmp"]) -> None:
        """Never through QEMU's monitor: libvirtd 9.0 dies of a dump it did not begin itself."""
        with asking(f"dump the memory of {self.address} as {file_format}"):
            self._handle().coreDumpWithFormat(
                file, DUMP_FORMATS[file_format], libvirt.VIR_DUMP_MEMORY_ONLY
            )

    def save_memory(self, file: str) -> None:
        """It is off then."""
        with asking(f"save {self.address}"):
            self._handle().save(file)

    def read_memory(self, address: int, length: int) -> bytes:
        """Physical memory."""
        found = b""
        with asking(f"read {length} bytes at {address:#x} of {self.address}"):
            domain = self._handle()
            while len(found) < length:
                size = min(PEEK_BYTES, length - len(found))
                found += domain.memoryPeek(address + len(found), size, libvirt.VIR_MEMORY_PHYSICAL)
        return found

    # Agent

    def agent(self, command: str, arguments: dict[str, Any], deadline: float) -> Any:
        """Raises AgentUnreachable, AgentSilent or AgentError (Backend.agent).

        libvirt asks the agent to synchronise first, so that an answer that comes too late is not
        taken for the next one's.
        """
        what = f"agent command {command} for {self.address}"
        end = time.monotonic() + deadline
        if not self._agent.acquire(timeout=deadline):
            raise AgentUnreachable(f"{what}: not sent: another command waits for its answer")
        try:
            request = {"execute": command, **({"arguments": arguments} if arguments else {})}
            seconds = max(1, math.ceil(end - time.monotonic()))
            try:
                domain = self._handle()
            except (libvirt.libvirtError, BackendError) as error:
                raise AgentUnreachable(f"{what}: not sent: {error}") from error
            answer = libvirt_qemu.qemuAgentCommand(domain, json.dumps(request), seconds, 0)
            return json.loads(answer)["return"]
        except libvirt.libvirtError as error:
            raise agent_error(error, what) from error
        except (ValueError, KeyError, TypeError) as error:
            raise AgentSilent(f"{what}: the answer is not the protocol's: {error!r}") from error
        finally:
            self._agent.release()
