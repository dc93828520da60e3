"""The power contract: a device says what it reads and takes orders, an Outlet believes neither.

A device class is what differs between vendors: read an outlet's state, give it an order. Outlet
does the rest once for all of them: it looks first, orders, reads back until the state stands or the
device's deadline is over, asks witnesses where the device cannot be read back, and tells apart what
went wrong. A backend is one file in lab/power with a class called `Device`, or a third party's
entry point in the group `bugcheck_lab.power`.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import Field, SecretStr

from lab.outcome import InfrastructureError, LabError
from lab.toml import Section

Secrets = Callable[[str], SecretStr]
"""Gives a secret by its name in lab.toml's secrets (lab.config.Config.secret)."""
SecretName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
"""A setting that names a secret; the value itself never stands in lab.toml."""
Seconds = Annotated[float, Field(gt=0, le=3600)]
Action = Literal["status", "on", "off", "cycle"]


class PowerState(StrEnum):
    """What an outlet, or a machine, is found to be."""

    ON = "on"
    OFF = "off"
    UNKNOWN = "unknown"
    """It answers and says neither: it is switching, restarting, or has an error."""


class PowerError(InfrastructureError):
    """Power could not be switched or read: what was asked, of whom, what was found, what to do."""


class UnreachableError(PowerError):
    """The device does not answer; nothing is known of the outlet."""


class RefusedError(PowerError):
    """The device answers and will not: wrong credentials, a locked outlet, no such order."""


class NoEffectError(PowerError):
    """The order was taken, and the outlet is not, or does not stay, in the state asked for."""


class WrongOutletError(PowerError):
    """Another machine or outlet changed instead: the wiring or lab.toml is wrong."""


class OutletError(LabError):
    """lab.toml is wrong: no outlet of that name or several, nobody who can say what it does."""


class Timing(Section):
    """How long a device takes and how often it is asked. [power.NAME.timing] changes single values.

    The defaults are those of a device that switches at once; each backend states its own.
    """

    answer_seconds: Seconds = 2
    """For one answer."""
    attempts: Annotated[int, Field(ge=1, le=20)] = 3
    """Questions without an answer until the device counts as unreachable."""
    deadline_seconds: Seconds = 10
    """From an order to the wanted state."""
    poll_seconds: Seconds = 0.5
    """Between two readings."""
    steady_readings: Annotated[int, Field(ge=1, le=20)] = 3
    """Equal readings in a row until a state counts; what flaps never gets there."""
    orders: Annotated[int, Field(ge=1, le=10)] = 2
    """How often an order without effect is given, each time with the deadline."""
    pause_seconds: Annotated[float, Field(ge=0, le=3600)] = 5
    """Without power in the middle of a cycle: for capacitors, and for relays that need rest."""


class DeviceSettings(Section):
    """[power.NAME]: what every backend's table has."""

    backend: str
    """The file in lab/power, or the entry point, that drives it."""
    outlet: str | None = None
    """Its outlet, where it has one only, or where none is named."""
    timing: Timing = Timing()


@dataclass(frozen=True)
class Witness:
    """Somebody else who can say whether a machine has power.

    name: as it stands in results ("BMC of m1", "console of m1"). ask: gives the state; UNKNOWN if
    it cannot tell. It must not raise for an unreachable witness: that is UNKNOWN.
    """

    name: str
    ask: Callable[[], PowerState]


@dataclass(frozen=True)
class PowerResult:
    """What was asked, what was found, who said so, after how long."""

    asked: Action
    found: PowerState
    said_by: str
    """The device and outlet that was read, or the witness that was asked."""
    before: PowerState
    """The state before anything was ordered, by the same."""
    seconds: float
    tries: int
    """Orders given; 0 if it was so already."""
    confirmed_by: tuple[str, ...] = ()
    """Witnesses that agree with a device that was read back."""
    parts: tuple[PowerResult, ...] = ()
    """Of a cycle: off and on."""

    def __str__(self) -> str:
        orders = (
            "already so"
            if not self.tries
            else f"{self.tries} orders"[: -1 if self.tries == 1 else None]
        )
        how = "" if self.asked == "status" else f", {orders}"
        also = f", and so says {', '.join(self.confirmed_by)}" if self.confirmed_by else ""
        return f"{self.asked}: {self.found}, says {self.said_by}{also} ({self.seconds:.1f} s{how})"


class PowerDevice(ABC):
    """One device with one or many outlets: what a vendor's driver is.

    Methods may be called from any thread, block for at most about `timing.answer_seconds` *
    `timing.attempts`, and raise UnreachableError, RefusedError or OutletError. Nothing is verified
    here, and nothing waited for: that is Outlet's.
    """

    Settings: ClassVar[type[DeviceSettings]] = DeviceSettings
    default_timing: Timing = Timing()
    can_order: frozenset[PowerState] = frozenset({PowerState.ON, PowerState.OFF})
    """What it can be asked for."""
    reads_back: bool = True
    """Whether read() tells what the outlet does; if not, a witness has to."""

    def __init__(self, name: str, settings: DeviceSettings, secrets: Secrets) -> None:
        self.name = name
        self.settings = settings
        self._secrets = secrets
        self._locks: dict[str, threading.RLock] = {}
        self._lock = threading.Lock()

    @property
    def timing(self) -> Timing:
        """The backend's own values, changed by what lab.toml gives."""
        given = self.settings.timing.model_dump(exclude_unset=True)
        return self.default_timing.model_copy(update=given)

    def locate(self, outlet: str) -> str:
        """An outlet's place in the device's own terms, for read() and order().

        Raises OutletError naming the outlets there are.
        """
        return outlet

    def read(self, place: str) -> PowerState:
        """What the outlet is now. Only where `reads_back`."""
        raise NotImplementedError(f"{type(self).__name__} says reads_back and has no read()")

    @abstractmethod
    def order(self, place: str, wanted: PowerState) -> None:
        """Orders ON or OFF, never both; may be given again if it has no effect."""

    def read_all(self) -> dict[str, PowerState]:
        """Every outlet by its place, to see whether the wrong one changed; {} if it cannot."""
        return {}

    def address(self) -> str:
        """What it is and where, as a person would look for it."""
        return f"[power.{self.name}]"

    def close(self) -> None:  # noqa: B027 - many have nothing to let go of
        """Lets go of sockets and ports; later calls open them again."""

    def one_at_a_time(self, place: str) -> threading.RLock:
        """The lock of an outlet."""
        with self._lock:
            return self._locks.setdefault(place, threading.RLock())
