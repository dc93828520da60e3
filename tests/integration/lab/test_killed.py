"""The lab's process ends at each step of a run: by Ctrl-C, by SIGTERM, by kill -9."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from subprocess import TimeoutExpired

import pytest

from lab.backend import MACHINE_FILES
from lab.outcome import Outcome
from lab.record import load_record
from tests.support.labs import (
    LiveCommand,
    TestLab,
    lab_folder,
    machines_of,
    make_candidate,
    make_lab,
)
from tests.support.waiting import wait_for

STEPS = {
    "lease": r"Run \S+ on machine",
    "provision": r"Putting vm into",
    "boot": r"It has booted",
    "install": r"install step 1 of 1",
    "content": r"New content: killer",
    "crash": r"It has stopped with a bug check",
    "dump": r"Looking for dumps",
    "recovery": r"A boot loop",
    "edited": r"On its powered-off disk",
}
"""What a run prints when it gets there."""
AFTER_THE_CRASH = ("crash", "dump")
INTERRUPTED = {130, -signal.SIGINT}
"""A shell shows 130 for both. Python ends itself by the signal where that came in an exec()."""
SECONDS_TO_END = 10.0
"""For everything to end with a killed controller."""
A_WHOLE_RUN = 9.0
"""Seconds; moments are drawn from a little less."""


@dataclass(frozen=True)
class KillerRun:
    """A lab whose candidate's next content crashes its machine."""

    lab_made: TestLab
    candidate: Path

    def start(self) -> LiveCommand:
        return LiveCommand(self.lab_made.run_command(self.candidate, "benign", "killer"))


@pytest.fixture(scope="module")
def killer_run() -> Iterator[KillerRun]:
    with lab_folder() as folder:
        made = make_lab(folder)
        base = hashlib.sha256((folder / "base.qcow2").read_bytes()).digest()
        changes = {"settle_seconds = 4": "settle_seconds = 2"}
        yield KillerRun(made, make_candidate(folder, changes=changes))
        assert machines_of(folder) == []
        assert hashlib.sha256((folder / "base.qcow2").read_bytes()).digest() == base


def left_in(folder: Path) -> list[Path]:
    """What a machine has in its run's folder."""
    return [file for pattern in MACHINE_FILES for file in folder.glob(pattern)]


@pytest.mark.parametrize(
    ("step", "number"),
    [
        *((step, signal.SIGINT) for step in STEPS),
        ("boot", signal.SIGTERM),
        ("dump", signal.SIGTERM),
    ],
)
def test_an_interrupted_run_ends_in_order(
    killer_run: KillerRun, step: str, number: signal.Signals
) -> None:
    made = killer_run.lab_made
    with killer_run.start() as run:
        run.wait_for(STEPS[step])
        run.signal(number)
        assert run.end() in INTERRUPTED, run.output
        assert "interrupted" in run.output
        assert "Traceback" not in run.output
    assert machines_of(made.folder) == []
    folder = made.run_of(run)
    if step == "lease" and folder is None:
        return  # nothing had begun
    assert folder is not None
    record = load_record(folder)
    assert record.ended is not None
    assert record.outcomes[-1].reason == "interrupted"
    crashed = step in (*AFTER_THE_CRASH, "recovery", "edited")
    assert record.verdict == ("hold" if crashed else "inconclusive")
    if step in AFTER_THE_CRASH:  # the evidence was finished first
        assert list(folder.glob("evidence/*/*.dmp")), run.output
    assert left_in(folder) == []
    assert "Nothing to clean" in made.lab("clean", exit_code=0).stdout


def test_a_second_interrupt_keeps_the_disk(killer_run: KillerRun) -> None:
    made = killer_run.lab_made
    with killer_run.start() as run:
        run.wait_for(STEPS["crash"])
        run.signal(signal.SIGINT)
        run.wait_for("again, and the disk is kept")
        run.signal(signal.SIGINT)
        assert run.end() in INTERRUPTED, run.output
        assert "Traceback" not in run.output
    assert machines_of(made.folder) == []
    folder = made.run_of(run)
    assert folder is not None
    assert load_record(folder).verdict == "hold"
    (file,) = folder.glob("evidence/*/evidence.json")
    evidence = json.loads(file.read_text())
    assert evidence["kept_disk"] or any(one["file"] for one in evidence["dumps"]), run.output
    assert bool(left_in(folder)) == bool(evidence["kept_disk"])
    assert "Nothing to clean" in made.lab("clean", exit_code=0).stdout


def check_after_a_kill(killer_run: KillerRun, run: LiveCommand) -> None:
    """Nothing runs, the machine can be leased at once, and `lab clean` leaves a whole record."""
    made = killer_run.lab_made
    run.end()
    wait_for("its machine to end", lambda: machines_of(made.folder) == [], SECONDS_TO_END)
    folder = made.run_of(run)
    cleaned = made.lab("clean", exit_code=0)
    if folder is None or not folder.exists():
        return  # its record had not begun
    assert left_in(folder) == []
    record = load_record(folder)
    assert record.ended is not None, run.output
    if record.outcomes[-1].reason == "its controller died before its end":
        assert record.outcomes[-1].outcome is Outcome.INFRASTRUCTURE
    dumps = [*folder.glob("evidence/*/*.dmp")]
    if "Looking for dumps" in run.output:  # else the power may have gone while it was written
        assert dumps, cleaned.stdout


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_run_leaves_nothing_running(killer_run: KillerRun, step: str) -> None:
    with killer_run.start() as run:
        run.wait_for(STEPS[step])
        run.signal(signal.SIGKILL)
        check_after_a_kill(killer_run, run)


@pytest.mark.parametrize("share", range(2))
def test_a_run_killed_at_random_moments(killer_run: KillerRun, share: int) -> None:
    random = Random(share)
    for _ in range(5):
        moment = random.uniform(0.5, A_WHOLE_RUN)
        with killer_run.start() as run:
            with suppress(TimeoutExpired):
                run.process.wait(moment)
            assert "Waiting for a machine" not in run.output  # the dead one's lease is free at once
            run.signal(signal.SIGKILL)
            check_after_a_kill(killer_run, run)
