"""Emulated PDUs for the tests of power; each test has one in its first state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.integration.power.snmpd import SnmpPdu


@pytest.fixture(scope="session")
def pdu_of() -> Iterator[Callable[[str], SnmpPdu]]:
    """Gives the PDU of a family, good and with all outlets on; one process a family."""
    running: dict[str, SnmpPdu] = {}
    with ExitStack() as stack:

        def get(family: str) -> SnmpPdu:
            if family not in running:
                running[family] = stack.enter_context(SnmpPdu(family))
            running[family].reset()
            return running[family]

        yield get
