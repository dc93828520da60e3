"""BMCs by IPMI: the conformance suite on ipmi_sim, and what only they have."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from fixtures.power_bench import Mode, PowerBench
from fixtures.power_conformance import *  # noqa: F403 - the suite's tests
from lab.power.base import (
    NoEffectError,
    PowerError,
    PowerState,
    RefusedError,
    UnreachableError,
    Witness,
)
from lab.power.bmc import witness
from lab.power.devices import open_device
from lab.power.ipmi import Device
from tests.integration.power.ipmi_bmc import (
    PASSWORD,
    USER,
    WATCHER,
    WATCHERS_PASSWORD,
    IpmiSim,
    free_udp_port,
)
from tests.support.waiting import wait_for

TIMING = {
    "answer_seconds": 1.0,
    "attempts": 1,
    "deadline_seconds": 1.0,
    "poll_seconds": 0.05,
    "pause_seconds": 0.2,
}
SECRETS = {
    "bmc": PASSWORD,
    "watcher": WATCHERS_PASSWORD,
    "wrong": "not-the-right-one",
    "long": "x" * 21,
}


@pytest.fixture(scope="session")
def running_bmc() -> Iterator[IpmiSim]:
    with IpmiSim() as started:
        yield started


@pytest.fixture
def bmc(running_bmc: IpmiSim) -> Iterator[IpmiSim]:
    running_bmc.reset()
    yield running_bmc
    running_bmc.reset()


DeviceMaker = Callable[..., Device]


@pytest.fixture
def device_of(bmc: IpmiSim) -> DeviceMaker:
    """Opens the backend as lab.toml would, with changes to its table."""

    def make(**changes: Any) -> Device:
        table = {
            "backend": "ipmi",
            "address": "127.0.0.1",
            "port": bmc.port,
            "user": USER,
            "password_secret": "bmc",
            "timing": TIMING,
        }
        device = open_device("m1-bmc", {**table, **changes}, lambda name: SecretStr(SECRETS[name]))
        assert isinstance(device, Device)
        return device

    return make


class IpmiBench(PowerBench):
    """The backend in front of ipmi_sim; the truth is its chassis script's."""

    modes = frozenset(
        {"good", "lies", "slow", "flapping", "dead", "locked", "wrong outlet", "restarts", "late"}
    )
    outlet = "system"

    def __init__(self, bmc: IpmiSim, device: Device) -> None:
        self._bmc, self.device = bmc, device
        states = {True: PowerState.ON, False: PowerState.OFF}
        self.others = [Witness("BMC of m2", lambda: states[bmc.neighbor_is_on()])]

    def behave(self, mode: Mode, seconds: float = 0.0) -> None:
        self._bmc.behave(mode, seconds)

    def truth(self) -> PowerState:
        return PowerState.ON if self._bmc.is_on() else PowerState.OFF


@pytest.fixture(params=[pytest.param("ipmi_sim", marks=pytest.mark.metal)])
def power_bench(bmc: IpmiSim, device_of: DeviceMaker) -> IpmiBench:
    return IpmiBench(bmc, device_of())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"password_secret": "wrong"}, "the password is wrong"),
        ({"user": "nobody"}, "there is no such user"),
        ({"cipher_suite": 17}, "no such cipher_suite"),
        ({"password_secret": "long"}, "no passwords longer than 20 bytes"),
        ({"user": "a-name-longer-than-sixteen"}, "no user names longer than 16 bytes"),
    ],
)
def test_wrong_credentials_are_refused(
    device_of: DeviceMaker, changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(RefusedError, match=why) as found:
        device_of(**changes).read("system")
    assert not any(value in str(found.value) for value in SECRETS.values())


def test_a_user_without_the_privilege(device_of: DeviceMaker, bmc: IpmiSim) -> None:
    device = device_of(user=WATCHER, password_secret="watcher", privilege="USER")  # noqa: S106
    assert device.read("system") is PowerState.ON
    with pytest.raises(RefusedError, match="privilege is too low"):
        device.order("system", PowerState.OFF)
    assert bmc.is_on()


def test_nobody_listens(device_of: DeviceMaker) -> None:
    device = device_of(port=free_udp_port())
    with pytest.raises(UnreachableError, match="whether IPMI over LAN is enabled"):
        device.read("system")
    assert witness(device, "system").ask() is PowerState.UNKNOWN


def test_a_host_that_has_no_address(device_of: DeviceMaker) -> None:
    with pytest.raises(UnreachableError, match=r"bmc\.invalid"):
        device_of(address="bmc.invalid").read("system")


def test_without_ipmitool(device_of: DeviceMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(PowerError, match="apt-get install ipmitool"):
        device_of().read("system")


@pytest.fixture
def command_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that stands before ipmitool writes its command lines here."""
    spy, seen = tmp_path / "ipmitool", tmp_path / "seen"
    spy.write_text(f'#!/bin/sh\necho "$@" >> {seen}\nexec {shutil.which("ipmitool")} "$@"\n')
    spy.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return seen


def test_the_password_is_on_no_command_line(
    device_of: DeviceMaker, command_lines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPMITOOL_PASSWORD", "of the shell, for another BMC")
    assert device_of().read("system") is PowerState.ON
    assert "chassis power status" in (seen := command_lines.read_text())
    assert PASSWORD not in seen


def test_an_nmi_is_sent_once(device_of: DeviceMaker, command_lines: Path) -> None:
    device = device_of(timing={**TIMING, "attempts": 3})
    with pytest.raises(RefusedError):
        device.nmi("system")
    device.read("system")
    nmi, status = command_lines.read_text().splitlines()
    assert " -R 1 " in nmi
    assert " -R 3 " in status


@pytest.mark.parametrize(
    "nonsense",
    [
        "import sys; sys.exit(1)",
        "print('Chassis Power is burning')",
        "import sys; sys.stdout.buffer.write(bytes(range(256)) * 999)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    ],
)
def test_nonsense_is_no_state(
    device_of: DeviceMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nonsense: str
) -> None:
    program = tmp_path / "ipmitool"
    program.write_text(f"#!{sys.executable}\n{nonsense}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    device = device_of()
    try:
        assert device.read("system") is PowerState.UNKNOWN
    except UnreachableError as error:
        assert "does not answer" in str(error)  # noqa: PT017 - either is right


def test_boot_once(device_of: DeviceMaker, bmc: IpmiSim) -> None:
    device = device_of()
    assert device.next_boot("system") is None
    for wanted in ("pxe", "disk", "cd", "setup"):
        device.boot_once("system", wanted)
        assert device.next_boot("system") == wanted


def test_a_bmc_that_lies_of_the_next_boot(device_of: DeviceMaker, bmc: IpmiSim) -> None:
    bmc.behave("lies")
    with pytest.raises(NoEffectError, match="boot from pxe once"):
        device_of().boot_once("system", "pxe")


def test_light_and_reset(device_of: DeviceMaker, bmc: IpmiSim) -> None:
    device = device_of()
    device.identify("system", on=True)
    wait_for("the light", lambda: bmc.light, 5)  # ipmi_sim answers before its script ends
    device.identify("system", on=False)
    wait_for("the light to go out", lambda: not bmc.light, 5)
    device.reset("system")
    wait_for("the reset", lambda: bmc.orders == ["reset"], 5)
    assert device.about("system")["IPMI Version"] == "2.0"


def test_an_order_that_it_does_not_have(device_of: DeviceMaker) -> None:
    """ipmi_sim has no `power diag`."""
    with pytest.raises(RefusedError, match=r"Invalid data field in request.*lacks in"):
        device_of().nmi("system")
    assert "nmi" in device_of().features
    assert "nmi" not in device_of(lacks=["nmi"]).features


def test_fence_ipmilan_agrees(device_of: DeviceMaker, bmc: IpmiSim) -> None:
    device = device_of()
    for wanted in (PowerState.OFF, PowerState.ON):
        device.order("system", wanted)
        done = subprocess.run(
            [
                *("fence_ipmilan", "-a", "127.0.0.1", "-u", str(bmc.port), "-l", USER),
                *("-p", PASSWORD, "-P", "-C", "3", "-o", "status"),
            ],
            capture_output=True,
            text=True,
        )
        theirs = {0: PowerState.ON, 2: PowerState.OFF}[done.returncode]
        assert theirs is device.read("system") is wanted, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"port": 0}, "port"),
        ({"cipher_suite": 99}, "cipher_suite"),
        ({"privilege": "ROOT"}, "privilege"),
        ({"password": "secret"}, "password"),
    ],
)
def test_wrong_settings(device_of: DeviceMaker, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        device_of(**changes)
