"""Benches of this project's own backends, over parts that others made."""

from __future__ import annotations

from typing import Any

from pydantic import SecretStr

from fixtures.power_bench import Mode, PowerBench
from lab.power.base import PowerState, Witness
from lab.power.devices import open_device
from tests.integration.power.snmpd import (
    AUTH_KEY,
    COMMUNITY,
    PRIV_KEY,
    READ_COMMUNITY,
    USER,
    SnmpPdu,
)

OUTLET = 3
TIMING = {
    "answer_seconds": 0.3,
    "attempts": 2,
    "deadline_seconds": 0.6,
    "poll_seconds": 0.05,
    "pause_seconds": 0.2,
}
SECRETS = {
    "community": COMMUNITY,
    "readonly": READ_COMMUNITY,
    "auth": AUTH_KEY,
    "priv": PRIV_KEY,
    "wrong": "not-the-right-one",
}
CREDENTIALS: dict[str, dict[str, Any]] = {
    "1": {"version": "1", "community_secret": "community"},
    "2c": {"version": "2c", "community_secret": "community"},
    "3": {"version": "3", "user": USER, "auth_secret": "auth", "priv_secret": "priv"},
}


def secret(name: str) -> SecretStr:
    """As lab.config.Config.secret."""
    return SecretStr(SECRETS[name])


class EmulatedPdu(PowerBench):
    """Any backend in front of an emulated PDU; table: its [power.NAME] table."""

    modes = frozenset(
        {"good", "lies", "slow", "flapping", "dead", "locked", "wrong outlet", "restarts", "late"}
    )

    def __init__(self, pdu: SnmpPdu, table: dict[str, Any], outlet: str) -> None:
        self.pdu = pdu
        self.place = pdu.places[OUTLET - 1]
        self.outlet = outlet
        self.device = open_device("bench", {"timing": TIMING, **table}, secret)

    def behave(self, mode: Mode, seconds: float = 0.0) -> None:
        self.pdu.hang(mode == "dead")
        if mode != "dead":
            self.pdu.behave(mode, seconds)

    def truth(self) -> PowerState:
        return PowerState.ON if self.pdu.is_on(self.place) else PowerState.OFF


FENCE_TIMING = {
    "answer_seconds": 6,
    "attempts": 1,
    "deadline_seconds": 3,
    "poll_seconds": 0.1,
    "steady_readings": 2,
    "pause_seconds": 0.2,
}


def fence_table(port: int, community: str = "community", **more: Any) -> dict[str, Any]:
    """[power.bench] of the exec backend over fence-agents, as docs/power.md has it."""
    return {
        "backend": "exec",
        "status": "fence_apc_snmp",
        "on": "fence_apc_snmp",
        "off": "fence_apc_snmp",
        "status_exit_codes": [0, 2],
        "on_pattern": "Status: ON",
        "off_pattern": "Status: OFF",
        "refused_pattern": "(?i)notWritable|noAccess|authorizationError",
        "input": f"ip=127.0.0.1\nipport={port}\nsnmp_version=2c\npower_timeout=2\n"
        f"community=${{secret:{community}}}\nplug={{outlet}}\naction={{action}}\n",
        "timing": FENCE_TIMING,
        **more,
    }


class FencedPdu(EmulatedPdu):
    """The exec backend over fence-agents."""

    def __init__(self, pdu: SnmpPdu) -> None:
        super().__init__(pdu, fence_table(pdu.port), "machine-3")
        next_place = pdu.places[OUTLET]
        self.others = [
            Witness("machine 4", lambda: PowerState("on" if pdu.is_on(next_place) else "off"))
        ]


def snmp_table(pdu: SnmpPdu, version: str = "2c", **more: Any) -> dict[str, Any]:
    """[power.bench] of the SNMP backend."""
    return {
        "backend": "snmp_pdu",
        "address": "127.0.0.1",
        "port": pdu.port,
        **CREDENTIALS[version],
        **more,
    }
