"""`lab repro`: a recorded run done again, and how it crashed compared."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

from lab.candidate import Candidate, ContentSet, load_candidate, load_contents
from lab.commands import leased, run_once
from lab.config import load_config
from lab.lab import Lab, Say
from lab.outcome import LabError, Outcome
from lab.record import RECORD, Record, RecordError, load_record
from lab.run import Run

SUITE_EXIT_CODES = {0, 1}
"""pytest's, for tests that ran."""


def repro(options: argparse.Namespace, say: Say) -> int:
    """Does the run again N times.

    Returns 0 if each went as the record says, 1 if not, 2 if the lab failed.
    """
    path = Path(options.run)
    if options.lab is None and (path / RECORD).is_file():
        options.lab = Path(load_record(path).config)
    config = load_config(options.lab)
    with Lab(config) as lab:
        record = load_record(lab.run_folder(options.run))
        again = _test_again if record.scenario.kind == "pytest" else _contents_again
        wanted = _how_it_went(record)
        say(f"Run {record.run_id} went: {wanted}")
        same, lab_failed = 0, False
        for number in range(1, options.n + 1):
            keep = options.keep and number == options.n
            now = again(lab, record, options, say, keep=keep)
            went = _how_it_went(now)
            lab_failed |= now.outcome in {Outcome.INFRASTRUCTURE, Outcome.HARNESS}
            same += went == wanted
            say(
                f"{number} of {options.n}:"
                f" {'the same' if went == wanted else f'different: {went}'} (run {now.run_id})"
            )
    print(f"\n{same} of {options.n} went as run {record.run_id} did: {wanted}")
    return 2 if lab_failed else 0 if same == options.n else 1


def _contents_again(
    lab: Lab, record: Record, options: argparse.Namespace, say: Say, *, keep: bool
) -> Record:
    candidate, contents = _inputs(record)
    if candidate is None:
        raise RecordError(f"run {record.run_id} has no candidate: there is nothing to do again")
    purpose = f"repro of {record.run_id}"
    with leased(
        lab, options.machine, image=record.image, purpose=purpose, wait=options.wait, say=say
    ) as lease:
        return run_once(
            lab, lease, record.scenario,
            image=record.image, candidate=candidate, contents=contents,
            purpose=purpose, say=say, repeats=record,
            keep=_keep(say) if keep else None,
        ).record  # fmt: skip


def _how_it_went(record: Record) -> str:
    """What two runs are compared by: the first bug check, its culprit and bucket; else outcomes."""
    if record.crashes:
        first = record.crashes[0]
        return (
            f"{first.bug_check or 'no bug check'}, {first.culprit or 'no culprit'}, {first.bucket}"
        )
    return ", ".join(f"{one.what} {one.outcome}" for one in record.outcomes) or "no outcome"


def _inputs(record: Record) -> tuple[Candidate | None, list[ContentSet]]:
    """Candidate and content sets of a run. Raises LabError where they changed since."""
    candidate = load_candidate(Path(record.candidate)) if record.candidate else None
    if candidate is not None:
        _unchanged("candidate", record.candidate_identity, candidate.identity())
    paths = [Path(one) for one in record.scenario.contents]
    contents = load_contents(candidate, paths) if candidate else []
    for before, now in zip(record.contents, contents, strict=True):
        _unchanged(f"content {now.name}", before, now.hashes())
    return candidate, contents


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
        if "console-log" in machine.features:
            say(f"console (COM1): {machine.console_log()}")
        if "debugger-port" in machine.features:
            say(f"kernel debugger (COM2): {machine.debugger_port()}")
        say(f"the lease of {machine.name} is held until you press Enter or Ctrl-C")
        with suppress(KeyboardInterrupt):
            sys.stdin.readline()

    return keep


def _test_again(
    lab: Lab, record: Record, options: argparse.Namespace, say: Say, *, keep: bool
) -> Record:
    """The test of a pytest run, in a pytest of its own, whose report names the run it made."""
    _inputs(record)
    scenario = record.scenario
    say(f"pytest {' '.join(scenario.tests)}")
    with tempfile.TemporaryDirectory(prefix="lab-repro-") as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *scenario.tests,
            f"--rootdir={scenario.suite}", f"--junitxml={report}",
            f"--lab={record.config}", f"--image={record.image}",
            f"--lease-wait={options.wait}", f"--repeats={record.run_id}",
        ]  # fmt: skip
        if scenario.settings:
            command.append(f"--config-file={scenario.settings}")
        if record.candidate:
            command.append(f"--candidate={record.candidate}")
        command += [f"--content={one}" for one in scenario.contents]
        if options.machine:
            command.append(f"--machine={options.machine}")
        if keep:
            command.append("--keep")
        code = _exit_code(command, scenario.suite)
        if code not in SUITE_EXIT_CODES:
            raise LabError(f"pytest ended with {code}: {' '.join(command)}")
        root = ElementTree.parse(report)  # noqa: S314 - pytest wrote it
        properties = root.iterfind(".//property[@name='lab_run']")
        runs = [one.attrib["value"] for one in properties]
    if len(runs) != 1:
        raise LabError(f"expected one run of {' '.join(scenario.tests)}; pytest made {len(runs)}")
    return load_record(lab.run_folder(runs[0]))


def _exit_code(command: list[str], folder: str | None) -> int:
    """Runs pytest and waits for its end; a Ctrl-C is handed on, at which it saves evidence."""
    with subprocess.Popen(command, cwd=folder, start_new_session=True) as process:
        interrupted = False
        while True:
            try:
                code = process.wait()
            except KeyboardInterrupt:
                interrupted = True
                process.send_signal(signal.SIGINT)
            else:
                if interrupted:
                    raise KeyboardInterrupt
                return code
