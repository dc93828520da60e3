"""Signals in, one outcome out."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from images.contract import Contract
from lab.machine import Machine
from lab.outcome import SEVERITY, InfrastructureError, LabError, Outcome
from lab.signals import SignalKind, SignalLog


def crashes_in_a_row(signals: SignalLog, *, besides: Collection[int] = ()) -> int:
    """How many boots crashed one after the other, up to the current one.

    besides: boots whose crash the lab made, of a machine that hung.
    """
    crashed = {signal.boot for signal in signals.crashes()}.difference(besides)
    boot = signals.boot
    while boot in crashed:
        boot -= 1
    return signals.boot - boot


def is_boot_loop(signals: SignalLog, contract: Contract, *, besides: Collection[int] = ()) -> bool:
    """Whether the last boots crashed in a row, the current one before its agent answered.

    How many make a loop is the contract's (boot.loop_after_crashes). A boot that did not crash,
    such as one that ended in an announced restart, ends a row.
    """
    crashes = signals.crashes(signals.boot)
    agent = signals.of(SignalKind.AGENT_UP, boot=signals.boot)
    if not crashes or (agent and agent[0].monotonic < crashes[0].monotonic):
        return False
    return crashes_in_a_row(signals, besides=besides) >= contract.boot.loop_after_crashes


def signs_of_life(machine: Machine, boot: int) -> str:
    """What is seen of a machine that is said to hang; each of it alone would be a weak sign."""
    signals = machine.signals
    agent = signals.of(SignalKind.AGENT_UP, SignalKind.AGENT_DOWN, boot=boot)
    signs = [f"its agent {_AGENT[agent[-1].kind] if agent else 'never answered in this boot'}"]
    if "console-log" in machine.features:
        silent = machine.watch_console().log.silent_for
        signs.append(f"its console has been silent for {silent:.1f} s")
    try:
        signs.append(f"its power is {'on' if machine.is_on() else 'off'}")
    except InfrastructureError as error:
        signs.append(f"its power cannot be read ({error})")
    return "; ".join(signs)


_AGENT = {
    SignalKind.AGENT_UP: "is connected and silent",
    SignalKind.AGENT_DOWN: "was there and is gone",
}


def outcome_of(error: BaseException) -> Outcome:
    """Whose fault an exception is: the lab's own say it; a failed assertion is the product's."""
    if isinstance(error, LabError):
        return error.outcome
    if isinstance(error, AssertionError):
        return Outcome.FAILED
    if isinstance(error, OSError | KeyboardInterrupt):
        return Outcome.INFRASTRUCTURE
    return Outcome.HARNESS


def worst(outcomes: Sequence[Outcome]) -> Outcome:
    """The one that stands for the run; a run in which nothing happened is the harness's fault."""
    return max(outcomes, key=SEVERITY.index, default=Outcome.HARNESS)
