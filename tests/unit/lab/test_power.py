"""Outlet's own judgement: witnesses, wrong outlets, orders nobody can give; the loop thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import SecretStr

from lab import loop_thread
from lab.leases import LeaseLost
from lab.power.base import (
    DeviceSettings,
    NoEffectError,
    OutletError,
    PowerDevice,
    PowerState,
    RefusedError,
    Timing,
    UnreachableError,
    Witness,
    WrongOutletError,
)
from lab.power.outlet import Outlet

ON, OFF, UNKNOWN = PowerState.ON, PowerState.OFF, PowerState.UNKNOWN
TIMING = Timing(deadline_seconds=0.3, poll_seconds=0.02, pause_seconds=0.05)


class Relays(PowerDevice):
    """Relays in memory, wired to machines by `wires`: what an order switches, and what it reads."""

    default_timing = TIMING

    def __init__(self, wires: dict[str, str], *, reads: bool = True) -> None:
        super().__init__("relays", DeviceSettings(backend="relays"), SecretStr)
        self.states = dict.fromkeys(wires, ON)
        self.machines = dict.fromkeys(wires.values(), ON)
        self.reads_back = reads
        self.orders = 0
        self._wires = wires

    def read(self, place: str) -> PowerState:
        return self.states[place]

    def order(self, place: str, wanted: PowerState) -> None:
        self.orders += 1
        self.states[place] = wanted
        self.machines[self._wires[place]] = wanted

    def witness(self, machine: str) -> Witness:
        return Witness(f"BMC of {machine}", lambda: self.machines[machine])


def free(_: str) -> None:
    """A lease that is never lost."""


def test_a_witness_that_agrees_is_named() -> None:
    relays = Relays({"1": "m1"})
    result = Outlet(relays, "1", free, witness=relays.witness("m1")).off()
    assert result.confirmed_by == ("BMC of m1",)
    assert "BMC of m1" in str(result)


def test_a_device_that_cannot_be_read_is_believed_by_the_witness_alone() -> None:
    relays = Relays({"1": "m1"}, reads=False)
    outlet = Outlet(relays, "1", free, witness=relays.witness("m1"))
    result = outlet.off()
    assert (result.said_by, result.found, result.before) == ("BMC of m1", OFF, ON)
    assert outlet.cycle().found is ON


def test_a_witness_alone_never_makes_an_order_needless() -> None:
    """A machine that hangs is silent, and still has power."""
    relays = Relays({"1": "m1"}, reads=False)
    outlet = Outlet(relays, "1", free, witness=Witness("console of m1", lambda: OFF))
    result = outlet.off()
    assert (result.before, result.tries) == (OFF, 1)
    assert relays.states["1"] is OFF


def test_without_reading_and_witness_nothing_is_ordered() -> None:
    relays = Relays({"1": "m1"}, reads=False)
    outlet = Outlet(relays, "1", free)
    for action in (outlet.status, outlet.off, outlet.cycle):
        with pytest.raises(OutletError, match="has no witness"):
            action()
    assert relays.orders == 0


def test_a_witness_that_cannot_tell_is_no_success() -> None:
    relays = Relays({"1": "m1"}, reads=False)
    outlet = Outlet(relays, "1", free, witness=Witness("agent of m1", lambda: UNKNOWN))
    with pytest.raises(NoEffectError, match="agent of m1 said unknown"):
        outlet.off()


def test_a_machine_that_stays_on_makes_off_a_failure() -> None:
    relays = Relays({"1": "m1", "2": "m2"})
    outlet = Outlet(relays, "1", free, witness=relays.witness("m2"))  # has a second supply
    with pytest.raises(NoEffectError, match="second power supply"):
        outlet.off()
    assert outlet.on().confirmed_by == ("BMC of m2",)


def test_an_outlet_that_was_off_already_and_a_machine_that_is_on_do_not_belong_together() -> None:
    relays = Relays({"1": "m1", "2": "m2"})
    relays.states["1"] = OFF
    with pytest.raises(NoEffectError, match="whether this outlet is the machine's"):
        Outlet(relays, "1", free, witness=relays.witness("m2")).off()
    assert relays.orders == 0


def test_another_machine_that_goes_off_is_the_wrong_outlet() -> None:
    relays = Relays({"1": "m2", "2": "m1"})  # cables swapped
    outlet = Outlet(relays, "1", free, witness=relays.witness("m1"), others=[relays.witness("m2")])
    with pytest.raises(WrongOutletError, match="BMC of m2") as found:
        outlet.off()
    assert "wiring" in str(found.value)
    assert relays.orders == 1  # not once more


def test_another_machine_is_enough_where_ours_has_no_witness() -> None:
    relays = Relays({"1": "m2", "2": "m1"})
    with pytest.raises(WrongOutletError, match="BMC of m2"):
        Outlet(relays, "1", free, others=[relays.witness("m2")]).off()


def test_another_machine_that_somebody_switches_is_no_proof_against_our_own_witness() -> None:
    relays = Relays({"1": "m1", "2": "m2"})

    def meanwhile() -> PowerState:
        return OFF if relays.orders else ON

    outlet = Outlet(
        relays, "1", free, witness=relays.witness("m1"), others=[Witness("m2", meanwhile)]
    )
    assert outlet.off().found is OFF


def test_an_order_whose_answer_is_lost_may_have_been_followed() -> None:
    class Deaf(Relays):
        def order(self, place: str, wanted: PowerState) -> None:
            super().order(place, wanted)
            raise UnreachableError("no answer")

    relays = Deaf({"1": "m1"})
    assert Outlet(relays, "1", free).off().tries == 1


def test_an_order_that_failed_is_told_beside_what_was_read() -> None:
    class Broken(Relays):
        def order(self, place: str, wanted: PowerState) -> None:
            raise UnreachableError("exit code 1: timed out")

    with pytest.raises(NoEffectError, match=r"read on .* times; .*exit code 1: timed out"):
        Outlet(Broken({"1": "m1"}), "1", free).off()


def test_a_device_that_dies_after_the_order_leaves_the_state_unknown() -> None:
    class Dying(Relays):
        def read(self, place: str) -> PowerState:
            if self.orders:
                raise UnreachableError("no answer")
            return super().read(place)

    with pytest.raises(UnreachableError, match="whether it did so is not known"):
        Outlet(Dying({"1": "m1"}), "1", free).off()


def test_an_order_a_device_does_not_have_is_refused_before_anything() -> None:
    relays = Relays({"1": "m1"})
    relays.can_order = frozenset({ON})
    with pytest.raises(RefusedError, match="another power device"):
        Outlet(relays, "1", free).off()
    assert relays.orders == 0


def test_a_lease_lost_between_off_and_on_leaves_it_off() -> None:
    relays = Relays({"1": "m1"})
    actions: list[str] = []

    def confirm(action: str) -> None:
        actions.append(action)
        if "on of" in action:
            raise LeaseLost(action)

    with pytest.raises(LeaseLost):
        Outlet(relays, "1", confirm).cycle()
    assert relays.states["1"] is OFF
    assert len(actions) == 2


def test_a_table_changes_single_timings_of_the_class() -> None:
    class Slow(Relays):
        default_timing = Timing(deadline_seconds=60, poll_seconds=5)

    device = Slow({"1": "m1"})
    device.settings = DeviceSettings.model_validate(
        {"backend": "relays", "timing": {"poll_seconds": 1}}
    )
    assert (device.timing.deadline_seconds, device.timing.poll_seconds) == (60, 1)
    assert device.timing.orders == Timing().orders


def test_an_outlet_does_not_wait_for_another() -> None:
    second_is_off = threading.Event()

    class Waiting(Relays):
        def order(self, place: str, wanted: PowerState) -> None:
            if place == "1":
                assert second_is_off.wait(5)
            super().order(place, wanted)

    relays = Waiting({"1": "m1", "2": "m2"})
    first = threading.Thread(target=Outlet(relays, "1", free).off)
    first.start()
    Outlet(relays, "2", free).off()
    second_is_off.set()
    first.join()
    assert relays.states == {"1": OFF, "2": OFF}


async def _answer(value: Any, seconds: float = 0.0) -> Any:
    await asyncio.sleep(seconds)
    if isinstance(value, Exception):
        raise value
    return value


def test_the_loop_thread_gives_results_and_raises_errors() -> None:
    assert loop_thread.run(_answer(7), 5) == 7
    with pytest.raises(KeyError):
        loop_thread.run(_answer(KeyError("x")), 5)


def test_the_loop_thread_cuts_off_what_never_returns() -> None:
    ended = threading.Event()

    async def endless() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    with pytest.raises(TimeoutError):
        loop_thread.run(endless(), 0.05)
    assert ended.wait(5)


def test_the_loop_thread_is_one_for_all_threads() -> None:
    loops: list[Any] = []
    ask: Callable[[], None] = lambda: loops.append(loop_thread.loop())  # noqa: E731
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, loops))) == 1
