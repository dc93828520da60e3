"""The conformance suite on PDUs by SNMP: each family in a version of SNMP."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from fixtures.power_conformance import *  # noqa: F403 - the suite's tests
from tests.integration.power.benches import EmulatedPdu, snmp_table
from tests.integration.power.snmpd import FACTS, SnmpPdu

ALWAYS = "apc-rpdu2"
VERSIONS = {"tripplite": "1", "apc-rpdu": "1", "servertech-sentry3": "3", "vertiv": "3"}


@pytest.fixture(
    params=[
        pytest.param(
            (family, VERSIONS.get(family, "2c")),
            marks=() if family == ALWAYS else pytest.mark.metal,
            id=f"{family} v{VERSIONS.get(family, '2c')}",
        )
        for family in FACTS
    ]
)
def power_bench(
    request: pytest.FixtureRequest, pdu_of: Callable[[str], SnmpPdu]
) -> Iterator[EmulatedPdu]:
    family, version = request.param
    pdu = pdu_of(family)
    bench = EmulatedPdu(pdu, snmp_table(pdu, version), "machine-3")
    yield bench
    bench.behave("good")
    bench.device.close()
