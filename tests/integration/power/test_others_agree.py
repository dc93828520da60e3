"""Our status and that of clients others made, on the same device: fence-agents and net-snmp."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from pydantic import SecretStr

from lab.power.base import PowerState
from lab.power.devices import open_device
from lab.power.outlet import Outlet
from tests.integration.power.benches import TIMING, fence_table, secret, snmp_table
from tests.integration.power.recorded_pdu import RECORDINGS, RecordedPdus
from tests.integration.power.snmpd import COMMUNITY, SnmpPdu

ON, OFF = PowerState.ON, PowerState.OFF
FENCE_DEADLINE = 60.0
LX_CARD = "1.3.6.1.4.1.850.1.1.1"
"""What Tripp Lite's WEBCARDLX says it is; fence-agents know that one."""


@pytest.fixture(scope="module")
def recorded() -> Iterator[RecordedPdus]:
    with RecordedPdus() as pdus:
        yield pdus


def fence(port: int, community: str, outlet: str, action: str) -> str:
    """What fence_apc_snmp says in the end."""
    asked = {"ip": "127.0.0.1", "ipport": port, "snmp_version": "2c", "community": community}
    given = "\n".join(f"{key}={value}" for key, value in (asked | {"plug": outlet}).items())
    done = subprocess.run(
        ["fence_apc_snmp"],
        input=f"{given}\naction={action}\n",
        capture_output=True,
        text=True,
        timeout=FENCE_DEADLINE,
    )
    return done.stdout.strip() or done.stderr.strip()


def agree(outlet: Outlet, port: int, community: str, number: str) -> None:
    """Both say the same, whoever switched."""
    assert outlet.status().found is ON
    assert fence(port, community, number, "status") == "Status: ON"
    outlet.off()
    assert fence(port, community, number, "status") == "Status: OFF"
    assert fence(port, community, number, "on").startswith("Success")
    assert outlet.status().found is ON


@pytest.mark.metal
@pytest.mark.parametrize("model", RECORDINGS)
def test_fence_agents_agree_on_a_recorded_unit(model: str, recorded: RecordedPdus) -> None:
    table: dict[str, Any] = {
        "backend": "snmp_pdu",
        "address": "127.0.0.1",
        "port": recorded.port,
        "community_secret": "model",
        "timing": TIMING | {"answer_seconds": 1, "deadline_seconds": 5},
    }
    with closing(open_device("apc", table, lambda _: SecretStr(model))) as device:
        outlet = Outlet(device, "7", lambda _: None)
        agree(outlet, recorded.port, model, "7")
        assert device.address().startswith("apc-rpdu2")
        assert len(device.read_all()) == (16 if model == "AP7902B" else 24)


@pytest.mark.parametrize(
    "family",
    [
        "apc-rpdu",
        pytest.param("apc-masterswitch", marks=pytest.mark.metal),
        pytest.param("tripplite", marks=pytest.mark.metal),
    ],
)
def test_fence_agents_agree_on_an_emulated_unit(
    family: str, pdu_of: Callable[[str], SnmpPdu]
) -> None:
    pdu = pdu_of(family)
    if family == "tripplite":
        with pdu.product(LX_CARD):
            _agree_on(pdu)
    else:
        _agree_on(pdu)


def _agree_on(pdu: SnmpPdu) -> None:
    with closing(open_device("pdu", snmp_table(pdu, timing=TIMING), secret)) as device:
        agree(Outlet(device, "3", lambda _: None), pdu.port, COMMUNITY, "3")


def test_our_exec_over_fence_agents_agrees_with_our_snmp(
    pdu_of: Callable[[str], SnmpPdu],
) -> None:
    pdu = pdu_of("apc-rpdu")
    with (
        closing(open_device("pdu", snmp_table(pdu, timing=TIMING), secret)) as device,
        closing(open_device("fence", fence_table(pdu.port), secret)) as fenced,
    ):
        ours, theirs = (Outlet(one, "3", lambda _: None) for one in (device, fenced))
        assert (ours.status().found, theirs.status().found) == (ON, ON)
        assert theirs.off().said_by == "outlet 3 of fence_apc_snmp fence"
        assert (ours.status().found, theirs.status().found) == (OFF, OFF)
        ours.on()
        assert (ours.status().found, theirs.status().found) == (ON, ON)
