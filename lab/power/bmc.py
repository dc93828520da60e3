"""What a BMC does for the lab beside power: one interface for Redfish and IPMI.

Each is a power device (lab/power/base.py) whose outlets are the systems it manages. The orders here
are taken by the BMC and change nothing that it could read back, but for the next boot's device:
what became of an NMI or a reset, the machine's console and disk tell. Whoever calls holds the
machine's lease (lab.machine.Machine confirms it).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lab.power.base import (
    DeviceSettings,
    NoEffectError,
    PowerDevice,
    PowerState,
    RefusedError,
    SecretName,
    UnreachableError,
    Witness,
)

BmcFeature = Literal["boot-once", "identify", "nmi", "reset"]
BootDevice = Literal["cd", "disk", "pxe", "setup"]
THE_SYSTEM = "system"
"""The name of the one system of a BMC that has one only."""


class BmcSettings(DeviceSettings):
    """What [power.NAME] has for every BMC."""

    address: Annotated[str, Field(pattern=r"^[^\s/@]+$")]
    """Host name or IP address."""
    user: Annotated[str, Field(min_length=1)]
    """An operator there; boot devices take an administrator with some BMCs."""
    password_secret: SecretName
    """The NAME of the secret that is the password."""
    outlet: str | None = THE_SYSTEM
    """The system that it manages, where it manages several."""
    lacks: Annotated[list[BmcFeature], Field(default_factory=list)]
    """What this BMC or its machine cannot do: many know no NMI, some no identify light."""


class Bmc(PowerDevice):
    """A BMC. `place` is what locate() gave, as for power.

    Everything raises UnreachableError or RefusedError.
    """

    Settings: ClassVar[type[BmcSettings]] = BmcSettings
    settings: BmcSettings
    can: frozenset[BmcFeature] = frozenset({"boot-once", "identify", "nmi", "reset"})
    """What the protocol has."""

    @property
    def features(self) -> frozenset[BmcFeature]:
        """What may be asked of it: what the protocol has and lab.toml does not say it lacks."""
        return self.can - set(self.settings.lacks)

    def nmi(self, place: str) -> None:
        """A non-maskable interrupt, sent once: a second one could spoil the dump of the first."""
        self._require("nmi")
        self.pulse(place, "nmi")

    def reset(self, place: str) -> None:
        """Presses the reset button."""
        self._require("reset")
        self.pulse(place, "reset")

    def boot_once(self, place: str, device: BootDevice) -> None:
        """The next boot is from `device`, those after it as ever. Read back: NoEffectError."""
        self._require("boot-once")
        self.set_next_boot(place, device)
        if (found := self.next_boot(place)) != device:
            raise NoEffectError(
                f"{self.address()} took the order to boot from {device} once, and says that the"
                f" next boot is from {found or 'where it always is'}; set the boot order in the"
                f' firmware, and lacks = ["boot-once"] in [power.{self.name}]'
            )

    def identify(self, place: str, *, on: bool) -> None:
        """Turns the light that shows a person which machine this is on or off."""
        self._require("identify")
        self.set_light(place, on=on)

    @abstractmethod
    def pulse(self, place: str, what: Literal["nmi", "reset"]) -> None:
        """Gives such an order once, whatever became of the answer."""

    @abstractmethod
    def set_next_boot(self, place: str, device: BootDevice) -> None:
        """Orders the device of the next boot."""

    @abstractmethod
    def next_boot(self, place: str) -> BootDevice | None:
        """The device of the next boot; None: as ever, or one that BootDevice does not have."""

    @abstractmethod
    def set_light(self, place: str, *, on: bool) -> None:
        """Orders the light."""

    @abstractmethod
    def about(self, place: str) -> dict[str, str]:
        """What it says of itself and the machine: maker, model, firmware; for the record."""

    def _require(self, feature: BmcFeature) -> None:
        if feature not in self.features:
            raise RefusedError(
                f"{self.address()} has no {feature}: lab.toml says so (lacks in"
                f" [power.{self.name}]); it has {', '.join(sorted(self.features)) or 'only power'}"
            )


def witness(device: PowerDevice, outlet: str) -> Witness:
    """A BMC, or any device that can be read back, as the witness of another one's outlet."""

    def ask() -> PowerState:
        try:
            return device.read(device.locate(outlet))
        except UnreachableError:
            return PowerState.UNKNOWN

    return Witness(f"{outlet} of {device.address()}", ask)
