"""`lab repro`: a recorded run done again, and how it crashed compared."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from lab.candidate import load_candidate, load_content
from lab.commands import leased, run_once
from lab.config import load_config
from lab.lab import Lab, Say
from lab.outcome import LabError, Outcome
from lab.record import RECORD, Record, RecordError, load_record
from lab.run import Run

SUITE_EXIT_CODES = {0: "passed", 1: "failed"}


def repro(options: argparse.Namespace, say: Say) -> int:
    """Does the run again N times.

    Returns 0 if each went as the record says, 1 if not, 2 if the lab failed.
    """
    path = Path(options.run)
    if options.lab is None and (path / RECORD).is_file():
        options.lab = Path(load_record(path).config)
    config = load_config(options.lab)
    with Lab(config) as lab:
        folder = lab.run_folder(options.run)
        record = load_record(folder)
        if record.scenario.kind == "pytest":
            return _tests_again(record, options, say)
        return _contents_again(lab, record, options, say)


def _contents_again(lab: Lab, record: Record, options: argparse.Namespace, say: Say) -> int:
    if record.candidate is None:
        raise RecordError(f"run {record.run_id} has no candidate: there is nothing to do again")
    candidate = load_candidate(Path(record.candidate))
    _unchanged("candidate", record.candidate_identity, candidate.identity())
    contents = [load_content(Path(one)) for one in record.scenario.contents]
    for before, now in zip(record.contents, contents, strict=True):
        _unchanged(f"content {now.name}", before, now.hashes())
    image = lab.images.image(record.image, say)
    lab.images.verify(image, record.image_identity)
    wanted = _how_it_went(record)
    say(f"Run {record.run_id} went: {wanted}")
    same, lab_failed = 0, False
    purpose = f"repro of {record.run_id}"
    for number in range(1, options.n + 1):
        last = number == options.n
        with leased(lab, options.machine, purpose=purpose, wait=options.wait, say=say) as lease:
            run = run_once(
                lab, lease, record.scenario,
                image=record.image, candidate=candidate, contents=contents,
                purpose=purpose, say=say, repeats=record.run_id,
                keep=_keep(say) if options.keep and last else None,
            )  # fmt: skip
        went = _how_it_went(run.record)
        lab_failed |= run.record.outcome in {Outcome.INFRASTRUCTURE, Outcome.HARNESS}
        same += went == wanted
        say(f"{number} of {options.n}: {'the same' if went == wanted else f'different: {went}'}")
    print(f"\n{same} of {options.n} went as run {record.run_id} did: {wanted}")
    return 2 if lab_failed else 0 if same == options.n else 1


def _how_it_went(record: Record) -> str:
    """What two runs are compared by: the first bug check, its culprit and bucket; else outcomes."""
    if record.crashes:
        first = record.crashes[0]
        return (
            f"{first.bug_check or 'no bug check'}, {first.culprit or 'no culprit'}, {first.bucket}"
        )
    return ", ".join(f"{one.what} {one.outcome}" for one in record.outcomes)


def _unchanged(what: str, before: Mapping[str, object], now: Mapping[str, object]) -> None:
    different = [key for key in {*before, *now} if before.get(key) != now.get(key)]
    if different:
        raise LabError(
            f"the {what} is not what it was in that run: {', '.join(sorted(different))} changed."
            " Put the old files back, or make a new run"
        )


def _keep(say: Say) -> Callable[[Run], None]:
    def keep(run: Run) -> None:
        machine = run.machine
        say(f"Kept, and running by itself: {machine.address()}")
        say(f"console (COM1): {machine.console_log()}")
        say(f"kernel debugger (COM2): {machine.debugger_port()}")
        say(f"the lease of {machine.name} is held until you press Enter or Ctrl-C")
        sys.stdin.readline()

    return keep


def _tests_again(record: Record, options: argparse.Namespace, say: Say) -> int:
    """The tests of a pytest run, in a pytest of their own."""
    command = [
        sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *record.scenario.tests,
        f"--lab={record.config}", f"--image={record.image}",
    ]  # fmt: skip
    if record.candidate:
        command.append(f"--candidate={record.candidate}")
    command += [f"--content={one}" for one in record.scenario.contents]
    if options.machine:
        command.append(f"--machine={options.machine}")
    if options.keep:
        command.append("--keep")
    wanted = 0 if record.outcome is Outcome.PASSED else 1
    same = 0
    for number in range(1, options.n + 1):
        say(f"{number} of {options.n}: {' '.join(record.scenario.tests)}")
        done = subprocess.run(command, cwd=record.scenario.suite)
        if done.returncode not in SUITE_EXIT_CODES:
            raise LabError(f"pytest ended with {done.returncode}: {' '.join(command)}")
        same += done.returncode == wanted
    print(f"\n{same} of {options.n} {SUITE_EXIT_CODES[wanted]}, as in run {record.run_id}")
    return 0 if same == options.n else 1
