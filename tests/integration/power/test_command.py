"""[power.NAME] in lab.toml and `lab power`, as a person uses them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.cli import main
from lab.config import ConfigError, load_config
from lab.leases import open_leases
from tests.integration.power.snmpd import COMMUNITY, SnmpPdu

REPOSITORY = Path(__file__).parents[3]
PDU = """
[power.rack-a]
backend = "snmp_pdu"
address = "127.0.0.1"
port = {port}
community_secret = "pdu"
timing = {{ poll_seconds = 0.05, deadline_seconds = {deadline}, pause_seconds = 0.1 }}
[hosts.here]
uri = "private"
[machines.m1]
backend = "libvirt"
host = "here"
power = "rack-a:machine-3"
"""


@pytest.fixture
def pdu(pdu_of: Callable[[str], SnmpPdu]) -> SnmpPdu:
    return pdu_of("apc-rpdu")


@pytest.fixture
def lab_toml(tmp_path: Path, pdu: SnmpPdu, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lab of one machine on outlet 3."""
    monkeypatch.setenv("LAB_SECRET_PDU", COMMUNITY)
    return write(tmp_path, PDU.format(port=pdu.port, deadline=1))


def write(folder: Path, text: str) -> Path:
    path = folder / "lab.toml"
    path.write_text(f'schema = 1\nstore = "store"\n{text}')
    return path


def power(lab_toml: Path, *arguments: str) -> int:
    return main(["power", *arguments, "--lab", str(lab_toml)])


def test_a_machine_is_looked_at_and_switched(
    lab_toml: Path, pdu: SnmpPdu, capsys: pytest.CaptureFixture[str]
) -> None:
    assert power(lab_toml, "status", "m1") == 0
    assert "status: on, says outlet machine-3 of apc-rpdu rack-a" in capsys.readouterr().out
    assert power(lab_toml, "off", "m1") == 0
    assert not pdu.is_on("3")
    assert power(lab_toml, "off", "m1") == 0
    assert "already so" in capsys.readouterr().out
    assert power(lab_toml, "cycle", "m1") == 0
    assert pdu.is_on("3")


def test_a_device_and_an_outlet_of_nobody_need_no_lease(
    lab_toml: Path, pdu: SnmpPdu, capsys: pytest.CaptureFixture[str]
) -> None:
    assert power(lab_toml, "off", "rack-a", "5") == 0
    assert not pdu.is_on("5")
    assert "5" in capsys.readouterr().out


@pytest.mark.parametrize("target", [["m1"], ["rack-a", "3"], ["rack-a", "machine-3"]])
def test_a_machine_that_somebody_holds_is_left_alone(
    target: list[str], lab_toml: Path, pdu: SnmpPdu, capsys: pytest.CaptureFixture[str]
) -> None:
    leases = open_leases(load_config(lab_toml))
    with leases.acquire(["m1"], holder="somebody", purpose="a test", run_id="run-1", wait=0):
        assert power(lab_toml, "off", *target) == 2
        said = capsys.readouterr().err
        assert "m1 is held by somebody" in said
        assert pdu.is_on("3")
        assert power(lab_toml, "status", *target) == 0  # looking harms nobody


def test_a_device_that_fails_is_told_and_exits_with_2(
    lab_toml: Path, pdu: SnmpPdu, capsys: pytest.CaptureFixture[str]
) -> None:
    pdu.behave("lies")
    assert power(lab_toml, "off", "m1") == 2
    assert "does not follow" in capsys.readouterr().err


def test_progress_is_told_after_two_seconds(
    tmp_path: Path, pdu: SnmpPdu, lab_toml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pdu.behave("slow", 2.5)
    write(tmp_path, PDU.format(port=pdu.port, deadline=20))
    assert power(lab_toml, "off", "m1") == 0
    assert "Still at off of outlet machine-3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["off", "nobody"], "known: m1, rack-a"),
        (["off", "m1", "4"], "machine m1 is on outlet machine-3 of rack-a"),
        (["off", "rack-a"], "which outlet of rack-a"),
        (["off", "rack-a", "77"], "there is no outlet '77'"),
    ],
)
def test_wrong_targets_exit_with_3(
    arguments: list[str], says: str, lab_toml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert power(lab_toml, *arguments) == 3
    assert says in capsys.readouterr().err


def test_a_secret_that_is_missing_is_named(
    lab_toml: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LAB_SECRET_PDU")
    assert power(lab_toml, "status", "m1") == 3
    assert "LAB_SECRET_PDU" in capsys.readouterr().err


SNMP = '[power.a]\nbackend = "snmp_pdu"\naddress = "pdu"\n'
EXEC = '[power.a]\nbackend = "exec"\non = "true"\noff = "true"\n'
WRONG_TABLES = {
    '[power.a]\nbackend = "smnp_pdu"\n': "power.a.backend: expected a power backend: ",
    "[power.a]\n": "power.a.backend: expected a power backend",
    SNMP: "expected community_secret, and no user, with version 2c",
    SNMP + 'version = "3"\n': "expected user",
    SNMP + 'version = "3"\nuser = "u"\npriv_secret = "p"\n': "auth_secret beside priv_secret",
    SNMP + 'version = "4"\n': "power.a.version: Input should be '1', '2c' or '3'",
    SNMP + 'community_secret = "c"\nmodel = "apc"\n': "one of apc-masterswitch, apc-rpdu",
    SNMP + 'community_secret = "c"\ncommunity = "private"\n': "power.a.community: no such key",
    SNMP + 'community_secret = "c"\ntiming = { poll_seconds = 0 }\n': "power.a.timing.poll_seconds",
    EXEC + 'status = "fence \'x"\n': "power.a.status: No closing quotation",
    EXEC + 'status = "fence -p ${secret:x}"\n': "use input instead",
    EXEC + 'on_pattern = "("\n': "power.a.on_pattern: expected a regular expression",
    '[machines.m]\nbackend = "libvirt"\nhost = "h"\npower = "b:1"\n[hosts.h]\nuri = "private"\n'
    + EXEC: "machines.m.power: there is no [power.b]",
    '[machines.m]\nbackend = "libvirt"\nhost = "h"\npower = "a"\n[hosts.h]\nuri = "private"\n'
    + EXEC: 'machines.m.power: expected "a:OUTLET"',
    '[machines.m]\nbackend = "libvirt"\nhost = "h"\npower = "a:1"\ncount = 2\n'
    '[hosts.h]\nuri = "private"\n' + EXEC: "machines.m.power: expected a count of 1",
}


@pytest.mark.parametrize("table", WRONG_TABLES)
def test_a_wrong_table_is_explained_before_anything_starts(table: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as found:
        load_config(write(tmp_path, table))
    assert WRONG_TABLES[table] in str(found.value)
    assert "lab.toml:" in str(found.value)


def test_help_needs_neither_lab_nor_snmp() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "lab", "power", "--help"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=REPOSITORY, env={**os.environ, "LAB_TOML": ""}
    )
    assert "TARGET" in done.stdout
    assert "pysnmp" not in done.stderr
