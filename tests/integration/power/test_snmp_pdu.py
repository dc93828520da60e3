"""PDUs by SNMP on net-snmp's snmpd: every family, every version, every wrong credential."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from lab.power.base import OutletError, PowerState, RefusedError, UnreachableError
from lab.power.devices import open_device
from lab.power.outlet import Outlet
from tests.integration.power.benches import CREDENTIALS, TIMING, secret, snmp_table
from tests.integration.power.snmpd import FACTS, OUTLETS, USER, SnmpPdu

PduOf = Callable[[str], SnmpPdu]
ON, OFF = PowerState.ON, PowerState.OFF


@contextmanager
def outlet_of(pdu: SnmpPdu, outlet: str, **table: Any) -> Iterator[Outlet]:
    """An outlet by a [power.NAME] table; timing: changes of the benches'."""
    timing = {**TIMING, **table.pop("timing", {})}
    device = open_device("pdu", {**snmp_table(pdu), "timing": timing, **table}, secret)
    with closing(device):
        yield Outlet(device, outlet, lambda _: None)


QUICK_FAMILIES = {"eaton-epdu", "raritan-px2", "servertech-sentry4"}
"""Those that differ most; `make metal` has all."""


@pytest.mark.parametrize(
    "family",
    [pytest.param(one, marks=() if one in QUICK_FAMILIES else pytest.mark.metal) for one in FACTS],
)
def test_each_family_is_known_read_and_switched(family: str, pdu_of: PduOf) -> None:
    pdu = pdu_of(family)
    with outlet_of(pdu, "machine-3") as outlet:
        assert family in outlet.device.address() or outlet.status()
        assert family in outlet.device.address()
        assert outlet.status().found is ON
        assert outlet.off().tries == 1
        states = [pdu.is_on(place) for place in pdu.places]
        assert states == [number != 3 for number in range(1, OUTLETS + 1)]
        pdu.switch(pdu.places[6], on=False)
        off = {place for place, state in outlet.device.read_all().items() if state is OFF}
        assert off == {pdu.places[2], pdu.places[6]}
        assert outlet.on().found is ON
        assert pdu.is_on(pdu.places[2])


@pytest.mark.parametrize("version", CREDENTIALS)
def test_each_version_of_snmp(version: str, pdu_of: PduOf) -> None:
    pdu = pdu_of("servertech-sentry3")
    credentials = {"community_secret": None, **CREDENTIALS[version]}
    with outlet_of(pdu, "AA5", **credentials) as outlet:  # the name that is printed beside it
        assert outlet.cycle().found is ON
        assert outlet.off().found is OFF
    assert not pdu.is_on(pdu.places[4])


@pytest.mark.parametrize("outlet", ["1.1.2", "2", "AA2", "machine-2"])
def test_an_outlet_by_index_number_and_names(outlet: str, pdu_of: PduOf) -> None:
    pdu = pdu_of("servertech-sentry3")
    with outlet_of(pdu, outlet) as one:
        assert one.place() == "1.1.2"


@pytest.mark.parametrize(
    "outlet", ["0", "9", "99999999999999999999", "-1", "machine-", "", "MACHINE-2"]
)
def test_an_outlet_out_of_range_lists_those_there_are(outlet: str, pdu_of: PduOf) -> None:
    pdu = pdu_of("apc-rpdu")
    with outlet_of(pdu, outlet) as one, pytest.raises(OutletError) as found:
        one.off()
    assert "1 (machine-1), 2 (machine-2)" in str(found.value)
    assert pdu.orders == 0


def test_a_name_of_two_outlets_is_refused(pdu_of: PduOf) -> None:
    pdu = pdu_of("apc-rpdu")
    with pdu.named({"2": "twin", "5": "twin", "7": "3"}):
        for name, rows in (("twin", "2 (twin), 5 (twin)"), ("3", "3 (machine-3), 7 (3)")):
            with outlet_of(pdu, name) as one, pytest.raises(OutletError) as found:
                one.off()
            assert f"2 outlets fit {name!r}" in str(found.value)
            assert rows in str(found.value)
    assert pdu.orders == 0


V3: dict[str, Any] = {"version": "3", "community_secret": None}
READ_ONLY = {"community_secret": "readonly"}
WRONG_CREDENTIALS: dict[str, tuple[dict[str, Any], str]] = {
    "version 1, wrong community": ({"version": "1", "community_secret": "wrong"}, "community"),
    "version 2c, wrong community": ({"community_secret": "wrong"}, "community"),
    "wrong user": (
        {**V3, "user": "nobody", "auth_secret": "auth", "priv_secret": "priv"},
        "no such user",
    ),
    "wrong authentication key": (
        {**V3, "user": USER, "auth_secret": "wrong", "priv_secret": "priv"},
        "authentication key",
    ),
    "wrong authentication protocol": (
        {
            **V3,
            "user": USER,
            "auth_secret": "auth",
            "auth_protocol": "SHA-256",
            "priv_secret": "priv",
        },
        "authentication key or protocol",
    ),
    "wrong privacy key": (
        {**V3, "user": USER, "auth_secret": "auth", "priv_secret": "wrong"},
        "privacy key",
    ),
    "no privacy where it is asked for": (
        {**V3, "user": USER, "auth_secret": "auth"},
        "authorizationError",
    ),
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if "2c" in case or "key" in case else pytest.mark.metal)
        for case in WRONG_CREDENTIALS
    ],
)
def test_wrong_credentials_are_refused(case: str, pdu_of: PduOf) -> None:
    table, reason = WRONG_CREDENTIALS[case]
    pdu = pdu_of("apc-rpdu")
    with outlet_of(pdu, "3", **table) as outlet, pytest.raises(RefusedError) as found:
        outlet.off()
    assert reason in str(found.value)
    assert "lab.toml" in str(found.value)  # where to correct it
    assert "not-the-right-one" not in str(found.value)  # the secret itself
    assert pdu.orders == 0


def test_a_community_that_may_only_read_is_refused(pdu_of: PduOf) -> None:
    pdu = pdu_of("apc-rpdu")
    with outlet_of(pdu, "3", **READ_ONLY) as outlet:
        assert outlet.status().found is ON
        with pytest.raises(RefusedError, match="may write"):
            outlet.off()
    assert pdu.is_on("3")


def test_a_pdu_without_power_is_unreachable(pdu_of: PduOf) -> None:
    pdu = pdu_of("apc-rpdu")
    pdu.kill()
    try:
        with outlet_of(pdu, "3") as outlet, pytest.raises(UnreachableError, match="has power"):
            outlet.off()
    finally:
        pdu.start()


@pytest.mark.metal
def test_a_pdu_that_restarted_is_asked_on_with_its_old_keys(pdu_of: PduOf) -> None:
    """Version 3 counts a device's restarts; a client that does not follow is never let in again."""
    pdu = pdu_of("vertiv")
    with outlet_of(pdu, "3", **{**V3, **CREDENTIALS["3"]}) as outlet:
        assert outlet.off().found is OFF
        for _ in range(2):
            pdu.kill()
            pdu.start()
        assert outlet.on().found is ON
    assert pdu.is_on("3")


def test_a_name_that_no_dns_knows_is_unreachable(pdu_of: PduOf) -> None:
    pdu = pdu_of("apc-rpdu")
    with outlet_of(pdu, "3", address="pdu.invalid") as outlet, pytest.raises(UnreachableError):
        outlet.status()


def test_a_model_that_the_device_is_not(pdu_of: PduOf) -> None:
    pdu = pdu_of("apc-rpdu")
    with (
        outlet_of(pdu, "3", model="vertiv") as outlet,
        pytest.raises(OutletError, match="the model is wrong"),
    ):
        outlet.off()


@pytest.mark.metal
def test_a_product_of_no_family_names_the_models(pdu_of: PduOf) -> None:
    pdu = pdu_of("apc-rpdu")
    with pdu.product("1.3.6.1.4.1.8072.3.2.10"):
        with outlet_of(pdu, "3") as outlet, pytest.raises(OutletError) as found:
            outlet.off()
        assert "1.3.6.1.4.1.8072.3.2.10" in str(found.value)
        assert "apc-rpdu2" in str(found.value)
        with outlet_of(pdu, "3", model="apc-rpdu") as outlet:
            assert outlet.off().found is OFF


def test_a_state_of_no_meaning_is_unknown(pdu_of: PduOf) -> None:
    """What a device says while it switches is neither on nor off."""
    pdu = pdu_of("servertech-sentry3")
    with pdu.states({"on": 3, "off": 2}), outlet_of(pdu, "3") as outlet:  # onWait, offWait
        assert outlet.status().found is PowerState.UNKNOWN
