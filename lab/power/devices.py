"""Power devices by the name of their backend: a file of lab/power, or an entry point."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lab.outcome import LabError
from lab.power.base import PowerDevice, Secrets
from lab.power.bmc import Bmc

ENTRY_POINTS = "bugcheck_lab.power"
"""The group in which a third party's package names its device class: NAME = "package:Class"."""
NO_BACKENDS = {
    *("__init__", "base", "bmc", "command", "devices", "outlet", "snmp", "snmp_families", "wiring")
}


class NoBackendError(LabError):
    """lab.toml names a power backend that does not exist or cannot be loaded."""


def backends() -> list[str]:
    """The names that can be used."""
    files = {module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])}
    return sorted((files - NO_BACKENDS) | {one.name for one in entry_points(group=ENTRY_POINTS)})


def device_class(backend: str) -> type[PowerDevice]:
    """The device class of a backend. Raises NoBackendError."""
    if backend not in backends():
        raise NoBackendError(
            f"expected a power backend: {', '.join(backends())}; found {backend!r}"
        )
    for entry in entry_points(group=ENTRY_POINTS, name=backend):
        try:
            found = entry.load()
        except (ImportError, AttributeError) as error:
            raise NoBackendError(f"{entry.value} cannot be loaded: {error}") from error
        if not (isinstance(found, type) and issubclass(found, PowerDevice)):
            raise NoBackendError(f"{entry.value} is no subclass of lab.power.base.PowerDevice")
        return found
    try:
        module = importlib.import_module(f"lab.power.{backend}")
    except ModuleNotFoundError as error:
        raise NoBackendError(
            f"power backend {backend} needs {error.name}, which is not installed:"
            " pip install 'bugcheck-lab[lab]'"
        ) from error
    device: type[PowerDevice] = module.Device
    return device


def is_bmc(table: Mapping[str, Any] | None) -> bool:
    """Whether a [power.NAME] table is a BMC's; one that is wrong is told by problems()."""
    if table is None or any(problems(table)):
        return True
    return issubclass(device_class(str(table.get("backend"))), Bmc)


def problems(table: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """What is wrong with a [power.NAME] table: (key, text)."""
    try:
        device = device_class(str(table.get("backend")))
        device.Settings.model_validate(dict(table))
    except NoBackendError as error:
        yield ("backend",), str(error)
    except ValidationError as error:
        for one in error.errors():
            said = one["msg"].removeprefix("Value error, ")
            if one["type"] == "extra_forbidden":
                known = ", ".join(sorted(device.Settings.model_fields))
                said = f"no such key; expected one of {known}"
            yield tuple(str(part) for part in one["loc"]), said


def open_device(name: str, table: Mapping[str, Any], secrets: Secrets) -> PowerDevice:
    """The device of a [power.NAME] table. Raises NoBackendError, or pydantic's ValidationError."""
    device = device_class(str(table.get("backend")))
    return device(name, device.Settings.model_validate(dict(table)), secrets)


def outlet_of(table: Mapping[str, Any]) -> str | None:
    """The outlet of a [power.NAME] table where none is named beside it: the table's own.

    A backend that has one only gives its name as the setting's default.
    """
    given = table.get("outlet")
    if given is None:
        given = device_class(str(table.get("backend"))).Settings.model_fields["outlet"].default
    return None if given is None else str(given)
