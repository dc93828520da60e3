"""The conformance suite on the exec backend, over Debian's fence_apc_snmp."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from fixtures.power_conformance import *  # noqa: F403 - the suite's tests
from tests.integration.power.benches import FencedPdu
from tests.integration.power.snmpd import SnmpPdu

pytestmark = pytest.mark.metal


@pytest.fixture
def power_bench(pdu_of: Callable[[str], SnmpPdu]) -> Iterator[FencedPdu]:
    bench = FencedPdu(pdu_of("apc-rpdu"))
    yield bench
    bench.behave("good")
