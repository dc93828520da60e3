"""`lab power`: look at and switch an outlet."""

from __future__ import annotations

import argparse
from contextlib import ExitStack, closing

from lab.config import Config, ConfigError, load_config
from lab.lab import Lab, Say
from lab.leases import Lease
from lab.power.devices import outlet_of
from lab.power.outlet import Outlet
from lab.power.wiring import open_power, owners, wire_of
from lab.progress import progress
from lab.record import new_run_id


def power(options: argparse.Namespace, say: Say) -> int:
    """`lab power`: one action; prints what was found, by whom, after how long. 0 if done."""
    config = load_config(options.lab)
    name, outlet_name = _target(config, options.target, options.outlet)
    with ExitStack() as stack:
        device = stack.enter_context(closing(open_power(config, name)))
        outlet = Outlet(device, outlet_name, lambda _: None)
        if options.action != "status":
            machines = owners(config, device, outlet_name)
            lab = stack.enter_context(Lab(config))
            purpose = f"lab power {options.action}"
            leases = [
                stack.enter_context(
                    lab.lease(
                        [machine],
                        purpose=purpose,
                        run_id=new_run_id(),
                        wait=options.wait,
                        say=say,
                    )
                )
                for machine in machines
            ]
            outlet = Outlet(device, outlet_name, lambda what: _confirm(leases, what))
        with progress(say, f"{options.action} of {outlet.name}"):
            result = getattr(outlet, options.action)()
    print(result)
    return 0


def _target(config: Config, target: str, outlet: str | None) -> tuple[str, str]:
    """(device, outlet) that the command line means."""
    if target in config.slots():
        wire = wire_of(config, target)
        if wire is None or outlet not in {None, wire[1]}:
            has = f"is on outlet {wire[1]} of {wire[0]}" if wire else "has no power in lab.toml"
            raise ConfigError(f"{config.file}: machine {target} {has}")
        return wire
    table = config.settings.power.get(target)
    if table is None:
        known = ", ".join([*config.slots(), *config.settings.power])
        raise ConfigError(
            f"{config.file}: {target!r} is neither a machine nor a [power.NAME]; known: {known}"
        )
    chosen = outlet or outlet_of(table)
    if chosen is None:
        raise ConfigError(f"{config.file}: which outlet of {target}? lab power ... {target} OUTLET")
    return target, chosen


def _confirm(leases: list[Lease], action: str) -> None:
    """Of each machine on the outlet; an outlet of no machine is free to all."""
    for lease in leases:
        lease.confirm(action)
