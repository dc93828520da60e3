"""A physical machine, put together in lab.toml from its parts.

[machines.m1]
backend = "machine"
power = "rack-a:7"              # what switches it; a BMC's table, where that is all there is
bmc = "m1-bmc"                  # NMI, reset button; where there is one, it also switches
console = { url = "..." }       # stop text, SAC, restarts
ssh = { host = "m1.lab" }       # programs, files, dumps

Its disk cannot be reached from outside yet: it starts as it is, and a dump is copied by the Windows
that comes up after the crash. Nothing holds its restarts (lab/physical/boots.py counts them).
"""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from lab.backend import (
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
from lab.console.port import Port
from lab.console.settings import open_port
from lab.guest.ssh_link import SshLink
from lab.physical.boots import Boots
from lab.power.base import PowerDevice, PowerState, UnreachableError, Witness
from lab.power.bmc import Bmc
from lab.power.bmc import witness as readable
from lab.power.outlet import Outlet
from lab.power.wiring import open_power, wire_of
from lab.signals import DeadlineError, SignalKind, SignalLog

SOURCE = "lab"
BMC_SECONDS = 300.0
"""For a BMC that had no power itself, until it answers."""
TALKED_SECONDS = 5.0
"""A console that said something so recently is one of a machine with power."""


@dataclass(frozen=True)
class Parts:
    """What a machine is put together from; outlet and bmc are one where the BMC alone switches."""

    outlet: Outlet
    bmc: Outlet | None
    port: Port | None
    link: SshLink | None


class PhysicalMachine(Backend):
    """One machine and its parts. Power is the BMC's where there is one that answers.

    An outlet is cut where there is no BMC, where it does not answer, and in a power cycle: that
    alone restarts what the BMC cannot.
    """

    def __init__(
        self,
        name: str,
        features: frozenset[Feature],
        signals: SignalLog,
        parts: Parts,
        boots: Boots,
    ) -> None:
        self.features = features
        self._name = name
        self._signals = signals
        self._outlet, self._bmc = parts.outlet, parts.bmc
        self._port, self._link = parts.port, parts.link
        self._power = threading.RLock()  # one power operation at a time
        self._should_be_on: bool | None = None
        self._ears = boots.listen_to(parts.port.log) if parts.port else None

    def address(self) -> str:
        """See Backend."""
        parts = [self._outlet.name, *([self._bmc.name] if self._bmc else [])]
        return f"{self._name} ({', '.join(dict.fromkeys(parts))})"

    # Known state

    def provision(self, image: Image, folder: Path, run_id: str) -> None:
        """See Backend. Its power is cut; its disk stays as it is."""
        if image.disk is not None:
            raise BackendError(
                f"image {image.name} has a disk, and {self._name}'s cannot be written: it takes an"
                " image with installed = true"
            )
        folder.mkdir(parents=True, exist_ok=True)
        self.power_off()

    def revert(self, image: Image) -> None:
        """See Backend."""
        raise self._lacks("disk")

    def dispose(self, *, keep_disk: bool) -> None:
        """See Backend. The port stays open: it is the lab's, not the run's."""
        try:
            self.power_off()
        finally:
            if self._ears is not None:
                self._ears.close()
                self._ears = None

    # Power

    def start(self, *, hold_restart: bool) -> None:
        """See Backend. A restart cannot be held."""
        with self._power:
            if self.is_on():
                raise BackendError(f"start {self.address()}: it is on already")
            self._signals.add(SignalKind.POWER_ON, SOURCE)
            self._should_be_on = True
            if self._port is not None:
                self._port.retry()
            if self._link is not None:  # it may be the witness
                self._link.start()
            try:
                self._outlet.on()
                if self._bmc is not None and self._bmc is not self._outlet:
                    self._wait_for_bmc(self._bmc)
                    self._bmc.on()
            except BaseException:
                self._signals.add(SignalKind.POWER_OFF, SOURCE, "it could not be switched on")
                raise

    def _wait_for_bmc(self, bmc: Outlet) -> None:
        ask = readable(bmc.device, bmc.outlet).ask
        try:
            self._signals.wait(
                f"{bmc.name} to answer", lambda: ask() is not PowerState.UNKNOWN, BMC_SECONDS
            )
        except DeadlineError as error:
            raise UnreachableError(
                f"{error}; it has power since {self._outlet.name} is on"
            ) from None

    def power_off(self) -> None:
        """See Backend."""
        self._cut(self._bmc or self._outlet)

    def _cut(self, by: Outlet) -> None:
        with self._power:
            self._should_be_on = False
            if self._link is not None:
                self._link.stop("the lab cuts the power")
            try:
                result = by.off()
            except UnreachableError:
                if by is self._outlet:
                    raise
                result = self._outlet.off()
            if self._signals.boot and result.before is not PowerState.OFF:
                self._signals.add(SignalKind.POWER_OFF, SOURCE, str(result))

    def power_cycle(self) -> None:
        """See Backend. By the outlet: the BMC loses its power, too."""
        with self._power:
            self._cut(self._outlet)
            self.start(hold_restart=False)

    def is_on(self) -> bool:
        """See Backend. An outlet that is on says little of a machine that switched itself off.

        Where nobody can read the power, it is what the lab did last: one that hangs is silent, too.
        """
        if self._bmc is not None:
            with suppress(UnreachableError):
                return self._bmc.status().found is PowerState.ON
        if not self._outlet.device.reads_back and self._should_be_on is not None:
            return self._should_be_on
        return self._outlet.status().found is PowerState.ON

    def reset(self) -> None:
        """See Backend."""
        device, place = self._at_bmc("reset")
        with self._power:
            self._signals.add_restart(SOURCE, "reset button")
            device.reset(place)

    def nmi(self) -> None:
        """See Backend."""
        device, place = self._at_bmc("nmi")
        device.nmi(place)

    def _at_bmc(self, feature: Feature) -> tuple[Bmc, str]:
        if self._bmc is None or feature not in self.features:
            raise self._lacks(feature)
        assert isinstance(self._bmc.device, Bmc)  # else it had not the feature
        return self._bmc.device, self._bmc.place()

    # What can be seen

    def console_log(self) -> Path:
        """See Backend. The port's log, run after run."""
        return self.console().path

    def console(self) -> Log:
        """See Backend."""
        if self._port is None:
            raise self._lacks("console-log")
        return self._port.log

    def type_on_console(self, data: bytes) -> None:
        """See Backend."""
        if self._port is None:
            raise self._lacks("console-type")
        self._port.write(data)

    def ssh(self) -> SshLink:
        """See Backend."""
        if self._link is None:
            raise self._lacks("ssh")
        return self._link


def signs_of_life(name: str, port: Port | None, link: SshLink | None) -> Witness:
    """Console and SSH server as a witness of power; a machine without either tells nothing."""

    def ask() -> PowerState:
        if port is None and link is None:
            return PowerState.UNKNOWN
        talks = port is not None and port.connected and port.log.silent_for < TALKED_SECONDS
        answers = link is not None and link.connected
        return PowerState.ON if talks or answers else PowerState.OFF

    heard = [part for part, there in (("console", port), ("SSH server", link)) if there]
    return Witness(f"{' and '.join(heard) or 'nobody'} of {name}", ask)


class Factory(BackendFactory):
    """All physical machines of a lab.toml: their ports and power devices are open while it is."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._devices: dict[str, PowerDevice] = {}
        self._ports: dict[str, Port] = {}
        self._links: list[SshLink] = []

    @classmethod
    def of(cls, config: Config, slot: Slot) -> Self:
        """See BackendFactory."""
        return cls(config)

    @classmethod
    def features_of(cls, config: Config, slot: Slot) -> frozenset[Feature]:
        """See BackendFactory."""
        factory = cls(config)
        try:
            return factory._features(slot)
        finally:
            factory.close()

    def _features(self, slot: Slot) -> frozenset[Feature]:
        found: set[Feature] = set()
        if slot.console is not None:
            found |= {"console-log", "console-type"}
        if self._config.settings.machines[slot.machine].ssh is not None:
            found.add("ssh")
        wire = self._bmc_wire(slot)
        device = None if wire is None else self._device(wire[0])
        if isinstance(device, Bmc):
            buttons: tuple[Literal["nmi", "reset"], ...] = ("nmi", "reset")
            found.update(button for button in buttons if button in device.features)
        return frozenset(found)

    def _bmc_wire(self, slot: Slot) -> tuple[str, str] | None:
        """The BMC's device and the machine's place there, also where it is what switches it."""
        for part in ("bmc", "power"):
            wire = wire_of(self._config, slot.name, part)
            if wire is not None and isinstance(self._device(wire[0]), Bmc):
                return wire
        return None

    def _device(self, name: str) -> PowerDevice:
        with self._lock:
            if name not in self._devices:
                self._devices[name] = open_power(self._config, name)
            return self._devices[name]

    def slot(self, name: str, signals: SignalLog, confirm: Confirm = unleased) -> Backend:
        """See BackendFactory."""
        config, slot = self._config, self._config.slots()[name]
        settings = config.settings.machines[slot.machine]
        boots = Boots(signals)
        link = None
        if settings.ssh is not None:
            address = settings.ssh.address(config.at, config.secret)
            link = SshLink(address, up=boots.ssh_up, down=boots.ssh_down)
            self._links.append(link)
        port = self._port(slot)
        wire, bmc_wire = wire_of(config, name, "power"), self._bmc_wire(slot)
        assert wire is not None  # lab.config has looked
        outlet = self._outlet(wire, confirm, signs_of_life(name, port, link))
        bmc = outlet if bmc_wire == wire else None
        if bmc is None and bmc_wire is not None:
            bmc = self._outlet(bmc_wire, confirm, None)
            if not outlet.device.reads_back:
                outlet = self._outlet(wire, confirm, readable(bmc.device, bmc.outlet))
        parts = Parts(outlet, bmc, port, link)
        return PhysicalMachine(name, self._features(slot), signals, parts, boots)

    def _outlet(self, wire: tuple[str, str], confirm: Confirm, witness: Witness | None) -> Outlet:
        device = self._device(wire[0])
        return Outlet(device, wire[1], confirm, witness=None if device.reads_back else witness)

    def _port(self, slot: Slot) -> Port | None:
        if slot.console is None:
            return None
        with self._lock:
            if slot.name not in self._ports:
                self._ports[slot.name] = open_port(
                    slot.console,
                    self._config.secret,
                    machine=slot.name,
                    store=self._config.store,
                    holder="a run of the lab",
                )
            return self._ports[slot.name]

    def leftovers(self) -> list[tuple[str, str]]:
        """See BackendFactory. Nothing at a physical machine carries a run's id."""
        return []

    def remove(self, run_id: str) -> list[str]:
        """See BackendFactory."""
        return []

    def close(self) -> None:
        """See BackendFactory."""
        for link in self._links:
            link.stop("the lab is closed")
        for port in self._ports.values():
            port.close()
        for device in self._devices.values():
            device.close()
        self._links, self._ports, self._devices = [], {}, {}
