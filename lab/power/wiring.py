"""Which outlet of which device is whose, by lab.toml."""

from __future__ import annotations

from typing import Literal

from lab.config import Config, ConfigError
from lab.power.base import PowerDevice
from lab.power.devices import open_device, outlet_of


def open_power(config: Config, device: str) -> PowerDevice:
    """The device of a [power.NAME] table. Raises ConfigError for a name lab.toml does not have."""
    tables = config.settings.power
    if device not in tables:
        known = ", ".join(sorted(tables)) or "there are none at all"
        raise ConfigError(f"{config.file}: there is no [power.{device}]; known: {known}")
    return open_device(device, tables[device], config.secret)


def wire_of(
    config: Config, machine: str, part: Literal["power", "bmc"] = "power"
) -> tuple[str, str] | None:
    """(device, outlet) of a machine by its slot's name; None where lab.toml names none.

    part: what switches it, or its BMC.
    """
    wire: str | None = getattr(config.settings.machines[config.slots()[machine].machine], part)
    if wire is None:
        return None
    device, _, outlet = wire.partition(":")
    return device, outlet or str(outlet_of(config.settings.power[device]))


def owners(config: Config, device: PowerDevice, outlet: str) -> list[str]:
    """The machines on an outlet, whatever name of it lab.toml gives. Asks the device."""
    wires = {machine: wire_of(config, machine) for machine in config.slots()}
    on_it = {machine: wire[1] for machine, wire in wires.items() if wire and wire[0] == device.name}
    place = device.locate(outlet) if on_it else ""
    return [
        machine
        for machine, other in on_it.items()
        if other == outlet or device.locate(other) == place
    ]
