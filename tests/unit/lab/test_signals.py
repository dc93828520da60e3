"""Signals, the one wait primitive, and what they come to."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from images.contract import CATALOG, load_contract
from lab.interrupts import first_interrupt_waits
from lab.outcome import HungError, Outcome
from lab.signals import (
    DeadlineError,
    MachineCrashed,
    MachineLost,
    MachineRestarted,
    SignalKind,
    SignalLog,
    StaleHandleError,
)
from lab.verdict import Verdict, verdict_of
from lab.watch import crashes_in_a_row, is_boot_loop, outcome_of, worst

CONTRACT = load_contract(CATALOG.parent / "test_kernel/contract.toml")


def log_of(*kinds: SignalKind) -> SignalLog:
    log = SignalLog()
    for kind in kinds:
        log.add(kind, "test")
    return log


ON, OFF, RESTART = SignalKind.POWER_ON, SignalKind.POWER_OFF, SignalKind.RESTART
CRASH, AGENT = SignalKind.BUG_CHECK, SignalKind.AGENT_UP


def test_a_crash_is_raised_in_the_waiting_thread_at_once() -> None:
    log = log_of(ON)
    threading.Timer(0.1, lambda: log.add(CRASH, "test", "bang")).start()
    began = time.monotonic()
    with pytest.raises(MachineCrashed, match="boot 1 crashed: bang"):
        log.wait("nothing", lambda: False, 30, boot=1)
    assert time.monotonic() - began < 5


def test_a_deadline_names_what_was_waited_for() -> None:
    with pytest.raises(DeadlineError, match=r"waited 0\.05 s for the moon; last seen: 0") as error:
        log_of(ON).wait("the moon", lambda: 0, 0.05)
    assert isinstance(error.value, HungError)


def test_waiting_without_a_boot_hears_no_crash() -> None:
    assert log_of(ON, CRASH).wait("it", lambda: "here", 1) == "here"


@pytest.mark.parametrize(
    ("kinds", "raised"),
    [
        ((ON, RESTART), MachineRestarted),
        ((ON, OFF), MachineRestarted),
        ((ON, SignalKind.LOST), MachineLost),
        ((ON, RESTART, CRASH), MachineCrashed),  # whichever came first: the crash says more
        ((ON, SignalKind.PANICKED), MachineCrashed),
    ],
)
def test_an_end_is_raised_for_what_it_is(
    kinds: tuple[SignalKind, ...], raised: type[Exception]
) -> None:
    with pytest.raises(raised):
        log_of(*kinds).raise_if_down(1)


def test_an_announced_restart_raises_nothing_and_its_handles_are_stale_after_it() -> None:
    log = log_of(ON)
    log.announce_restart()
    log.add(RESTART, "test")
    log.raise_if_down(1)
    log.add(ON, "test")
    with pytest.raises(StaleHandleError, match="boot 1, and the machine is in boot 2"):
        log.raise_if_down(1)
    log.add(RESTART, "test")  # the announcement was for boot 1
    with pytest.raises(MachineRestarted):
        log.raise_if_down(2)


def test_an_announcement_can_be_taken_back() -> None:
    log = log_of(ON)
    log.announce_restart()
    log.announce_restart(expected=False)
    log.add(RESTART, "test")
    with pytest.raises(MachineRestarted):
        log.raise_if_down(1)


def test_an_announced_restart_does_not_hide_a_crash() -> None:
    log = log_of(ON)
    log.announce_restart()
    log.add(CRASH, "test")
    with pytest.raises(MachineCrashed):
        log.raise_if_down(1)


@pytest.mark.parametrize(
    ("kinds", "row", "loop"),
    [
        ((ON, AGENT, CRASH), 1, False),
        ((ON, AGENT, CRASH, ON, CRASH), 2, True),
        ((ON, AGENT, CRASH, ON, AGENT, CRASH), 2, False),  # it answered: no loop of boots
        ((ON, CRASH), 1, False),
        ((ON, CRASH, ON, CRASH), 2, True),
        ((ON, CRASH, ON, RESTART, ON, CRASH), 1, False),  # a boot between that did not crash
        ((ON, AGENT), 0, False),
    ],
)
def test_a_boot_loop_is_a_row_of_crashes_before_the_agent(
    kinds: tuple[SignalKind, ...], row: int, loop: bool
) -> None:
    log = log_of(*kinds)
    assert crashes_in_a_row(log) == row
    assert is_boot_loop(log, CONTRACT) == loop


def test_a_crash_that_the_lab_made_is_in_no_row() -> None:
    log = log_of(ON, CRASH, ON, CRASH)
    assert crashes_in_a_row(log, besides={1}) == 1
    assert not is_boot_loop(log, CONTRACT, besides={1})


def test_only_product_outcomes_hold_and_only_passes_ship() -> None:
    passed, infrastructure = Outcome.PASSED, Outcome.INFRASTRUCTURE
    assert verdict_of([passed, passed]) is Verdict.SHIP
    assert verdict_of([passed, infrastructure]) is Verdict.INCONCLUSIVE
    assert verdict_of([passed, Outcome.HARNESS]) is Verdict.INCONCLUSIVE
    assert verdict_of([]) is Verdict.INCONCLUSIVE
    for outcome in Outcome:
        if outcome.is_bad_product:
            assert verdict_of([passed, infrastructure, outcome]) is Verdict.HOLD
    assert worst([passed, Outcome.CRASHED, infrastructure]) is Outcome.CRASHED
    assert worst([passed, infrastructure]) is infrastructure
    assert outcome_of(AssertionError()) is Outcome.FAILED
    assert outcome_of(OSError()) is infrastructure
    assert outcome_of(ZeroDivisionError()) is Outcome.HARNESS


def interrupted(times: int, done: list[str]) -> None:
    """As if Ctrl-C were pressed while something must be finished first."""
    with first_interrupt_waits():
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
        done.append("finished")


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """As in a terminal: started in the background of a shell, pytest ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("hears_ctrl_c")
@pytest.mark.parametrize(("times", "finishes"), [(1, ["finished"]), (2, [])])
def test_the_first_interrupt_waits_for_the_end_and_the_second_does_not(
    times: int, finishes: list[str]
) -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted(times, done)
    assert done == finishes
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
