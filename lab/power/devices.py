"""Power devices by the name of their backend: a file of lab/power, or an entry point."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from lab.outcome import LabError
from lab.power.base import PowerDevice, Secrets

ENTRY_POINTS = "bugcheck_lab.power"
"""The group in which a third party's package names its device class: NAME = "package:Class"."""
NO_BACKENDS = {"base", "bmc", "devices", "outlet", "snmp", "snmp_families", "__init__"}


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
        found = entry.load()
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


def open_device(name: str, table: Mapping[str, Any], secrets: Secrets) -> PowerDevice:
    """The device of a [power.NAME] table. Raises NoBackendError, or pydantic's ValidationError."""
    device = device_class(str(table.get("backend")))
    return device(name, device.Settings.model_validate(dict(table)), secrets)
