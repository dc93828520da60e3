"""Which outlet of which device is whose, by lab.toml."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from lab.config import Config, ConfigError
from lab.power.base import PowerDevice, Witness
from lab.power.devices import open_device, outlet_of
from lab.power.outlet import Outlet


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


def machine_outlet(
    config: Config,
    machine: str,
    confirm: Callable[[str], None],
    *,
    witness: Witness | None = None,
    others: Sequence[Witness] = (),
) -> Outlet:
    """The outlet of a machine, under its lease (confirm: lab.leases.Lease.confirm).

    The device is opened for it: close outlet.device in the end.
    """
    wire = wire_of(config, machine)
    if wire is None:
        raise ConfigError(
            f"{config.where('machines', config.slots()[machine].machine)}: it has no power; give it"
            ' power = "DEVICE:OUTLET" and a [power.DEVICE] table'
        )
    device, outlet = wire
    return Outlet(open_power(config, device), outlet, confirm, witness=witness, others=others)


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
