"""Power that nobody reads: the machine's console and SSH server are its witness."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.outcome import HungError, Outcome
from lab.signals import SignalKind
from tests.integration.metal.box import Box, metal_box
from tests.integration.metal.conftest import SHORT
from tests.support.labs import COMMAND_DEADLINE, run_in
from tests.support.waiting import wait_for

BLIND = 'power = "blind:{n}"\n{console}\n{ssh}\n'


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    """m1 is on a power device that cannot be read back, and has no BMC."""
    with metal_box(tables={"m1": BLIND}, contract=SHORT) as made:
        yield made


@pytest.mark.metal
def test_power_that_nobody_can_read_is_witnessed_by_console_and_ssh(box: Box) -> None:
    domain = box.machines["m1"].domain
    with run_in(box.lab) as run:
        run.boot()
        machine = run.machine
        machine.power_off()
        assert not domain.is_on()
        (off,) = machine.signals.of(SignalKind.POWER_OFF)
        assert "says console and SSH server of m1" in off.detail
        run.boot()
        # One that hangs is as silent as one that is off.
        box.machines["m1"].door.unplugged = "until it restarts"
        domain.virsh("suspend")
        wait_for("silence", lambda: not machine.guest.answers(), COMMAND_DEADLINE)
        assert machine.is_on()
        assert run.failed("silence", HungError("its agent is silent")) is Outcome.HUNG
        assert machine.guest.answers()
