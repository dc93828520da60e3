"""What a hypervisor or a physical machine's parts give the lab: the backend's side of a machine.

Only lab.machine.Machine holds a backend, and only a lease gives out a Machine. A backend is one
file in lab/virtual or lab/physical, found by its name in lab.toml.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from images.contract import Contract
from lab.console.log import Log
from lab.disks.blocks import BlockSource
from lab.outcome import InfrastructureError
from lab.signals import SignalLog

if TYPE_CHECKING:
    from lab.config import Config, Slot
    from lab.guest.ssh_link import SshLink

OVERLAY = "disk.qcow2"
"""The file in a run's folder that a machine writes its disk to."""
MACHINE_FILES = (
    f"{OVERLAY}*",
    "edit-*",
    "*.part",
    "identity.dmp",
    "nvram.fd",
    "restore.sav",
    "tpm-of-*",
)
"""What else a machine has in a run's folder; none of it is evidence once the dumps are safe."""

Feature = Literal[
    "agent",  # agent() speaks QEMU's agent protocol
    "console-log",
    "console-type",  # one can type on the console
    "debugger-port",
    "disk",  # the powered-off disk can be read, edited and put back to an image
    "disk-activity",  # one sees from outside whether it writes to its disk
    "hold-restart",  # a restart from inside leaves the machine off
    "keys",
    "memory-dump",  # the hypervisor can dump the guest's memory
    "memory-read",  # physical memory of a running guest can be read
    "nmi",
    "power-button",
    "reset",  # has a reset button
    "save-restore",
    "screenshot",
    "ssh",  # ssh() reaches its SSH server
]
Confirm = Callable[[str], None]
"""Says what is about to be done to a leased machine, and raises where that may not be any more."""


class BackendError(InfrastructureError):
    """The hypervisor or a part of the machine failed or refused; says what was asked of whom."""


class AgentError(BackendError):
    """The agent answered with an error: the command was not carried out.

    `message` is the agent's own text.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class AgentUnreachable(AgentError):  # noqa: N818 - a state, not a mistake
    """No agent is connected; the command was not sent."""


class AgentSilent(AgentError):  # noqa: N818 - a state, not a mistake
    """The command was sent and its answer never came: nobody knows whether it was carried out."""


@dataclass(frozen=True)
class Image:
    """A known state to start from.

    disk: the base, never written to; None for what is installed on a machine already, in a state
    that nobody knows. nvram: UEFI variables, or None for BIOS. tpm: a folder with the TPM's state,
    or None. memory: saved memory that belongs to exactly this disk, or None.
    """

    name: str
    contract: Contract
    disk: Path | None
    nvram: Path | None = None
    tpm: Path | None = None
    memory: Path | None = None
    symbols: tuple[Path, ...] = ()
    """Folders with the PDBs of the image's own kernel and drivers."""

    @property
    def base(self) -> Path:
        """Its disk. Raises BackendError where it has none."""
        if self.disk is None:
            raise BackendError(
                f"image {self.name} has no disk: it is for machines that have it installed already,"
                " and a virtual machine has nothing installed"
            )
        return self.disk


def unleased(action: str) -> None:
    """For a machine that nobody leases."""


class Backend(ABC):
    """One machine slot. All calls may block, and may be made from any thread.

    What a machine may lack is a feature; asking for it all the same raises BackendError.

    What happens to the machine is added to `signals`, which the backend gets when it is made.
    Raises BackendError for whatever the hypervisor refuses.
    """

    features: frozenset[Feature]

    @abstractmethod
    def provision(self, image: Image, folder: Path, run_id: str) -> None:
        """Puts the slot into the image's known state; off afterwards.

        A linked clone of the disk and copies of NVRAM and TPM state are made in `folder`, and
        everything the hypervisor sees carries `run_id`. An earlier clone in the folder is an error.
        """

    @abstractmethod
    def revert(self, image: Image) -> None:
        """Puts the slot back to the known state; the evidence must have been sealed before."""

    @abstractmethod
    def start(self, *, hold_restart: bool) -> None:
        """Powers on. hold_restart: a restart from inside leaves the machine off, not booting.

        Adds POWER_ON, or RESTORED where the known state has saved memory and this is its first
        start.
        """

    @abstractmethod
    def power_off(self) -> None:
        """Cuts the power; returns when it is off. A machine that is off already is fine."""

    @abstractmethod
    def is_on(self) -> bool:
        """Whether it has power, whatever it does with it."""

    def hold_restart(self, hold: bool) -> None:
        """Changes for the running machine what start() was told."""
        raise self._lacks("hold-restart")

    def press_power_button(self) -> None:
        """ACPI power button."""
        raise self._lacks("power-button")

    def reset(self) -> None:
        """Presses the reset button: the same power-on continues with a new boot."""
        raise self._lacks("reset")

    def power_cycle(self) -> None:
        """Off, and on again: a new boot, as if nobody had held the last one."""
        self.power_off()
        self.start(hold_restart=False)

    def nmi(self) -> None:
        """Sends a non-maskable interrupt."""
        raise self._lacks("nmi")

    def press_keys(self, keys: Sequence[str]) -> None:
        """Presses keys at once, in this order, and lets them go; named as in the contract."""
        raise self._lacks("keys")

    def screenshot(self) -> bytes:
        """The screen as PNG."""
        raise self._lacks("screenshot")

    def console_log(self) -> Path:
        """COM1 since the first power-on: a file that grows, bytes as they came."""
        raise self._lacks("console-log")

    def console(self) -> Log:
        """The same as a log to watch, with when its bytes came."""
        raise self._lacks("console-log")

    def type_on_console(self, data: bytes) -> None:
        """Types on COM1. Only lab.machine calls it: it has the lease."""
        raise self._lacks("console-type")

    def agent(self, command: str, arguments: dict[str, Any], deadline: float) -> Any:
        """One guest agent command; gives its "return" value. deadline: seconds for the answer.

        Raises AgentUnreachable, AgentSilent or AgentError. Never sends a command twice.
        """
        raise self._lacks("agent")

    def disk_bytes_written(self) -> int:
        """Bytes written to the disk since power-on; grows while a dump is written."""
        raise self._lacks("disk-activity")

    def dump_memory(self, destination: Path, file_format: Literal["elf", "win-dmp"]) -> None:
        """The guest's memory as a file, taken by the hypervisor. `destination` must not exist."""
        raise self._lacks("memory-dump")

    def read_memory(self, address: int, length: int) -> bytes:
        """Physical memory of the running machine."""
        raise self._lacks("memory-read")

    def save_memory(self, destination: Path) -> None:
        """Saves memory and devices to a file; off afterwards."""
        raise self._lacks("save-restore")

    def disk_overlay(self) -> Path:
        """The clone that the machine writes to. Only lab.machine and lab.evidence ask."""
        raise self._lacks("disk")

    def disk(self) -> BlockSource:
        """The disk, read-only. Of a machine that is on: as a power cut now would leave it."""
        raise self._lacks("disk")

    def debugger_port(self) -> str:
        """Where COM2 can be reached, as a debugger's user would type it ("127.0.0.1:50123")."""
        raise self._lacks("debugger-port")

    @abstractmethod
    def address(self) -> str:
        """How a person finds this machine with the hypervisor's own tools; for messages."""

    @abstractmethod
    def dispose(self, *, keep_disk: bool) -> None:
        """Cuts the power and removes what provision() made; keep_disk leaves the clone."""

    def ssh(self) -> SshLink:
        """The connection to the machine's SSH server, for lab.guest."""
        raise self._lacks("ssh")

    def _lacks(self, feature: Feature) -> BackendError:
        return BackendError(f"{self.address()} has no {feature}")


class BackendFactory(ABC):
    """Opens the slots of one [machines.*] table; lab/virtual/NAME.py has one called `Factory`."""

    @classmethod
    @abstractmethod
    def of(cls, config: Config, slot: Slot) -> Self:
        """The factory for a slot of lab.toml, and for the others on its host."""

    @classmethod
    @abstractmethod
    def features_of(cls, config: Config, slot: Slot) -> frozenset[Feature]:
        """What a slot's machine has, before it is leased. Raises ConfigError."""

    @abstractmethod
    def slot(self, name: str, signals: SignalLog, confirm: Confirm = unleased) -> Backend:
        """The slot's backend; connects if need be.

        confirm: the lease's; a backend asks it where orders may come later than the call they
        belong to, which lab.machine has asked for already.
        """

    @abstractmethod
    def leftovers(self) -> list[tuple[str, str]]:
        """(run id, what) of everything on this host that carries a run's id."""

    @abstractmethod
    def remove(self, run_id: str) -> list[str]:
        """Removes what carries the run's id on the hypervisor (never files); says what."""

    @abstractmethod
    def close(self) -> None:
        """Disconnects, and ends daemons that were started here."""
