"""BMCs by Redfish: the conformance suite, and what only they have."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from fixtures.power_bench import Mode, PowerBench
from fixtures.power_conformance import *  # noqa: F403 - the suite's tests
from lab.power.base import NoEffectError, OutletError, PowerState, RefusedError, UnreachableError
from lab.power.bmc import witness
from lab.power.devices import open_device
from lab.power.redfish import Device
from tests.integration.power.redfish_bmc import (
    PASSWORD,
    SYSTEMS,
    USER,
    FrontDoor,
    SushyEmulator,
    free_port,
    sushy_emulator,
)
from tests.support.certificates import Certificate, make_certificate

TIMING = {
    "answer_seconds": 0.6,
    "attempts": 2,
    "deadline_seconds": 0.8,
    "poll_seconds": 0.05,
    "pause_seconds": 0.2,
}
SECRETS = {"bmc": PASSWORD, "wrong": "not-the-right-one"}
NOT_ALLOWED = "does not allow .*certificate verify failed|does not allow .*Fingerprints"


def secret(name: str) -> SecretStr:
    return SecretStr(SECRETS[name])


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificates") / "bmc.pem")


@pytest.fixture(scope="session")
def emulator() -> Iterator[SushyEmulator]:
    """Two systems of libvirt's test driver."""
    with sushy_emulator() as running:
        yield running


@pytest.fixture
def door(emulator: SushyEmulator, certificate: Certificate) -> Iterator[FrontDoor]:
    """The BMC, good, and its systems on."""
    with FrontDoor(emulator, certificate) as opened:
        for name in SYSTEMS:
            emulator.switch(emulator.path_of(name), "On")
        yield opened


DeviceMaker = Callable[..., Device]


@pytest.fixture
def device_of(door: FrontDoor, certificate: Certificate) -> Iterator[DeviceMaker]:
    """Opens the backend as lab.toml would, with changes to its table."""
    opened: list[Device] = []

    def make(**changes: Any) -> Device:
        table = {
            "backend": "redfish",
            "address": f"127.0.0.1:{door.port}",
            "user": USER,
            "password_secret": "bmc",
            "fingerprint": certificate.fingerprint,
            "outlet": "machine",
            "timing": TIMING,
        }
        device = open_device("m1-bmc", {**table, **changes}, secret)
        assert isinstance(device, Device)
        opened.append(device)
        return device

    yield make
    door.behave("good")
    for device in opened:
        device.close()


class RedfishBench(PowerBench):
    """The backend in front of the emulated BMC; the truth is the emulator's."""

    modes = frozenset(
        {"good", "lies", "slow", "flapping", "dead", "locked", "wrong outlet", "restarts", "late"}
    )

    def __init__(self, door: FrontDoor, device: Device) -> None:
        self._door = door
        self._system = door.emulator.path_of("machine")
        self.device = device
        self.outlet = "machine"
        self.others = [witness(device, "neighbor")]
        door.other = door.emulator.path_of("neighbor")

    def behave(self, mode: Mode, seconds: float = 0.0) -> None:
        self._door.behave(mode, seconds)

    def truth(self) -> PowerState:
        return PowerState.ON if self._door.emulator.is_on(self._system) else PowerState.OFF


@pytest.fixture
def power_bench(door: FrontDoor, device_of: DeviceMaker) -> RedfishBench:
    return RedfishBench(door, device_of())


def place_of(device: Device) -> str:
    assert device.settings.outlet is not None
    return device.locate(device.settings.outlet)


def test_a_wrong_password_is_refused(device_of: DeviceMaker, door: FrontDoor) -> None:
    device = device_of(password_secret="wrong")  # noqa: S106 - its name
    with pytest.raises(RefusedError, match="refuses user lab") as found:
        device.locate("system")
    assert SECRETS["wrong"] not in str(found.value)
    assert door.resets == []


def test_a_session_that_expired_is_renewed(device_of: DeviceMaker, door: FrontDoor) -> None:
    device = device_of()
    place = place_of(device)
    assert (door.logins, door.sessions) == (1, 1)
    door.expire_sessions()
    assert device.read(place) is PowerState.ON
    door.expire_sessions()
    device.order(place, PowerState.OFF)
    assert (door.logins, door.resets) == (3, ["ForceOff"])


def test_a_session_is_given_back(device_of: DeviceMaker, door: FrontDoor) -> None:
    device = device_of()
    place_of(device)
    device.close()
    assert door.sessions == 0
    assert device.locate(device.settings.outlet or "")  # opens another


def test_a_password_changed_while_a_session_was_open(
    device_of: DeviceMaker, door: FrontDoor
) -> None:
    device = device_of()
    place = place_of(device)
    door.password = "another"  # noqa: S105 - of the emulator
    door.expire_sessions()
    with pytest.raises(RefusedError, match="compare user and password"):
        device.read(place)


def test_a_bmc_without_sessions(device_of: DeviceMaker, door: FrontDoor) -> None:
    door.has_sessions = False
    device = device_of()
    assert device.read(place_of(device)) is PowerState.ON
    assert door.sessions == 0


def test_only_the_pinned_certificate_is_spoken_to(
    device_of: DeviceMaker, door: FrontDoor, tmp_path: Path
) -> None:
    other = make_certificate(tmp_path / "other.pem")
    device = device_of(fingerprint=other.fingerprint)
    with pytest.raises(RefusedError, match=NOT_ALLOWED):
        place_of(device)
    assert (door.logins, door.sessions) == (0, 0)  # the password was not sent


def test_without_a_pin_the_signer_is_verified(
    device_of: DeviceMaker, door: FrontDoor, certificate: Certificate
) -> None:
    device = device_of(fingerprint=None)
    with pytest.raises(RefusedError, match=NOT_ALLOWED):
        place_of(device)
    assert door.logins == 0
    assert place_of(device_of(fingerprint=None, ca_file=str(certificate.file)))


def test_without_a_pin_the_name_is_verified(
    emulator: SushyEmulator, device_of: DeviceMaker, tmp_path: Path
) -> None:
    other = make_certificate(tmp_path / "other.pem", address="127.0.0.2")
    with FrontDoor(emulator, other) as door:
        address = f"127.0.0.1:{door.port}"
        device = device_of(address=address, fingerprint=None, ca_file=str(other.file))
        with pytest.raises(RefusedError, match=NOT_ALLOWED):
            place_of(device)
        assert door.logins == 0


def test_the_environment_does_not_weaken_it(
    device_of: DeviceMaker, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate.file))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    with pytest.raises(RefusedError, match="certificate"):
        place_of(device_of(fingerprint=None))
    assert place_of(device_of())


def test_off_already_is_success(device_of: DeviceMaker, door: FrontDoor) -> None:
    device = device_of()
    place = place_of(device)
    door.behave("already off")
    for _ in range(2):
        device.order(place, PowerState.OFF)
    assert door.resets == ["ForceOff", "ForceOff"]


def test_a_conflict_that_is_none_of_these_is_refused(
    device_of: DeviceMaker, door: FrontDoor
) -> None:
    device = device_of()
    place = place_of(device)
    door.behave("conflict")
    with pytest.raises(RefusedError, match="HTTP 409"):
        device.order(place, PowerState.OFF)
    device.order(place, PowerState.ON)  # it is


def test_a_bmc_that_is_starting_is_unreachable(device_of: DeviceMaker, door: FrontDoor) -> None:
    device = device_of()
    place = place_of(device)
    door.behave("fails")
    with pytest.raises(UnreachableError, match="HTTP 503"):
        device.read(place)
    door.behave("good")
    assert device.read(place) is PowerState.ON


@pytest.mark.parametrize(
    "nonsense",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"on"',
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"Members": 1, "Id": []}',
        b'{"Id": "1", "PowerState": {}, "Actions": 3}',
        b"<html>router</html>",
    ],
)
def test_nonsense_is_unreachable(device_of: DeviceMaker, door: FrontDoor, nonsense: bytes) -> None:
    device = device_of()
    place = place_of(device)
    door.nonsense = nonsense
    door.behave("nonsense")
    with pytest.raises((UnreachableError, OutletError), match="m1-bmc"):
        device.locate("system")
    try:
        assert device.read(place) is PowerState.UNKNOWN
    except UnreachableError as error:
        assert "no Redfish" in str(error)  # noqa: PT017 - either is right


def test_nobody_listens(device_of: DeviceMaker) -> None:
    device = device_of(address=f"127.0.0.1:{free_port()}")
    with pytest.raises(UnreachableError, match="does not answer"):
        place_of(device)
    assert witness(device, "system").ask() is PowerState.UNKNOWN


def test_one_of_several_systems_has_to_be_named(device_of: DeviceMaker) -> None:
    device = device_of()
    with pytest.raises(OutletError, match=r"3 systems .*neighbor"):
        device.locate("system")
    assert device.locate("neighbor") != device.locate("machine")


def test_boot_once(device_of: DeviceMaker) -> None:
    device = device_of()
    place = place_of(device)
    device.boot_once(place, "disk")
    assert device.next_boot(place) == "disk"


def test_a_bmc_that_lies_of_the_next_boot(device_of: DeviceMaker, door: FrontDoor) -> None:
    device = device_of()
    place = place_of(device)
    device.boot_once(place, "disk")
    door.behave("lies")
    with pytest.raises(NoEffectError, match="from disk"):
        device.boot_once(place, "cd")


def test_light_and_reset(device_of: DeviceMaker, door: FrontDoor) -> None:
    device = device_of()
    place = place_of(device)
    device.identify(place, on=True)
    assert b'"IndicatorLED": "Lit"' in door.emulator.ask("GET", place)[1]
    device.identify(place, on=False)
    assert b'"IndicatorLED": "Off"' in door.emulator.ask("GET", place)[1]
    device.reset(place)
    assert door.resets == ["ForceRestart"]
    assert device.about(place)["manufacturer"] == "Sushy Emulator"


def test_light_of_a_newer_schema(device_of: DeviceMaker, door: FrontDoor) -> None:
    device = device_of()
    place = place_of(device)
    door.behave("new schema")
    for on in (True, False):
        device.identify(place, on=on)
        assert door.light is on
    assert b'"IndicatorLED": "Lit"' not in door.emulator.ask("GET", place)[1]


def test_what_it_lacks_is_known_before_it_is_asked(device_of: DeviceMaker, door: FrontDoor) -> None:
    device = device_of(lacks=["nmi"])
    assert device.features == {"boot-once", "identify", "reset"}
    with pytest.raises(RefusedError, match="has no nmi"):
        device.nmi("anywhere")
    assert door.logins == 0


def test_fence_redfish_agrees(device_of: DeviceMaker, door: FrontDoor) -> None:
    device = device_of()
    place = place_of(device)
    for wanted in (PowerState.OFF, PowerState.ON):
        device.order(place, wanted)
        done = subprocess.run(
            [
                *("fence_redfish", "-a", "127.0.0.1", "-u", str(door.port), "-l", USER),
                *("-p", PASSWORD, "--ssl-insecure", f"--systems-uri={place}", "-o", "status"),
            ],
            capture_output=True,
            text=True,
        )
        theirs = {0: PowerState.ON, 2: PowerState.OFF}[done.returncode]
        assert theirs is device.read(place) is wanted, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprint": "AB:CD"}, "64 hex digits"),
        ({"ca_file": "/some.pem"}, "found both"),
        ({"ca_file": "some.pem", "fingerprint": None}, "ca_file"),
        ({"address": "https://bmc"}, "address"),
        ({"address": "root@bmc"}, "address"),
        ({"lacks": ["power"]}, "lacks"),
    ],
)
def test_wrong_settings(device_of: DeviceMaker, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        device_of(**changes)
