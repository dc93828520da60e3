"""The [power.NAME] tables of docs/power.md and of the backends' own docstrings are right ones."""

from __future__ import annotations

import importlib
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.config import load_config
from lab.power.devices import open_device, problems
from lab.power.wiring import wire_of

PAGE = Path(__file__).parents[3] / "docs/power.md"
BACKENDS = ("redfish", "ipmi", "serial_relay", "wake_on_lan", "snmp_pdu", "exec")
FINGERPRINT = ("5A:0C:...", ":".join(["5A"] * 32))


def tables(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each [power.NAME] of the indented blocks that are TOML."""
    blocks = [textwrap.dedent(block) for block in text.split("\n\n")]
    for block in blocks:
        if block.startswith("[power."):
            yield from tomllib.loads(block.replace(*FINGERPRINT))["power"].items()


def examples() -> list[Any]:
    found = {f"docs/power.md {name}": table for name, table in tables(PAGE.read_text())}
    for backend in BACKENDS:
        said = importlib.import_module(f"lab.power.{backend}").__doc__ or ""
        for name, table in tables(textwrap.dedent(said)):
            found[f"{backend} {name}"] = table
    return [pytest.param(table, id=name) for name, table in found.items()]


@pytest.mark.parametrize("table", examples())
def test_an_example_is_right(table: dict[str, Any]) -> None:
    assert list(problems(table)) == []


def test_every_backend_has_an_example() -> None:
    shown = {one.values[0]["backend"] for one in examples()}
    assert set(BACKENDS) <= shown


def test_a_backend_with_one_outlet_needs_none_in_lab_toml(tmp_path: Path) -> None:
    (tmp_path / "lab.toml").write_text(
        """
schema = 1
secrets = "secrets.toml"
[hosts.here]
uri = "private"
[power.bmc]
backend = "ipmi"
address = "bmc.invalid"
user = "lab"
password_secret = "bmc"
[power.wake]
backend = "wake_on_lan"
mac = "52:54:00:12:34:56"
[machines.m1]
backend = "libvirt"
host = "here"
power = "bmc"
[machines.m2]
backend = "libvirt"
host = "here"
power = "wake"
"""
    )
    (tmp_path / "secrets.toml").write_text('bmc = "of-the-bmc"\n')
    config = load_config(tmp_path / "lab.toml")
    assert wire_of(config, "m1") == ("bmc", "system")
    assert wire_of(config, "m2") == ("wake", "machine")
    for name, table in config.settings.power.items():
        device = open_device(name, table, config.secret)
        assert device.locate(str(device.settings.outlet)) == device.settings.outlet
