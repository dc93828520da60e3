"""What the lab costs, against the same job done by hand with virsh, qemu-img and mtools.

Each round does both jobs both ways, one after the other: a machine from nothing to its agent's
answer, and a machine that stops with a bug check, from the signal to a triage report on disk. By
hand is without lease, evidence, hashes and record; the ratio is what those and Python cost.

    python -m benchmarks.lab --help
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.report import PAGE, host, table, write_section
from images.test_kernel.build import PAGEFILE_PATH, build_image
from lab.candidate import load_candidate
from lab.config import load_config
from lab.lab import Lab, Say
from lab.record import RECORD, Scenario, new_run_id
from lab.run import Run
from lab.signals import MachineCrashed
from tests.support.disk import PARTITION_OFFSET
from tests.support.labs import CONTRACT, lab_folder, make_lab
from tests.support.libvirt import Domain, Libvirt
from tests.support.sensor import SENSOR, built, content_files, sensor_driver
from tests.support.waiting import wait_for

POLL = 0.005
"""Seconds between looks by hand; below the cost of one virsh call."""
IDLE, KILLER = "idle", "killer"
AGENT_BY_HAND = "an agent that answers, by hand"
AGENT_LAB = "lease to an agent that answers, by the lab"
REPORT_BY_HAND = "bug check to report, by hand"
REPORT_LAB = "bug check to report, by the lab"
RATIOS = {AGENT_LAB: AGENT_BY_HAND, REPORT_LAB: REPORT_BY_HAND}
TITLE = "The lab against bare virsh"
TEXT = """{host}

{rounds} rounds. By hand, the agent is: `qemu-img create` of a clone, `virsh create`, and
`virsh qemu-agent-command` until it answers. The lab leases the machine, looks whether the store can
hold its dumps, checks the image's hash (cached), clones, starts, waits, sets down the guest's clock
and writes a record. By hand, the report is: `virsh domstate` from the event of the bug check on
until the machine is off, `qemu-img convert`, `mcopy` of pagefile.sys, and `python -m
crashdump_analysis.triage`. The lab waits for the end of the dump, keeps console and screen, looks
at every place that can hold a dump, copies, hashes and flushes what it finds, checks it, seals the
evidence, and reports as text and JSON. Both run on a private libvirtd that is up already; by hand
each command is a new process, and the lab's process has done the job once before the first round.

{ratios}

Where the time goes; a step ends where the next begins, and what the lab says on the way marks them.

{steps}
"""
Steps = dict[tuple[str, str], list[float]]
"""Seconds of each round, by job and step."""


class Stopwatch:
    """Seconds between marks, added to the named steps."""

    def __init__(self, steps: Steps, job: str) -> None:
        self._steps, self._job = steps, job
        self.began = self._last = time.monotonic()

    def mark(self, step: str) -> None:
        """The step has just ended."""
        now = time.monotonic()
        self._steps.setdefault((self._job, step), []).append(now - self._last)
        self._last = now

    def total(self) -> float:
        """Seconds from the beginning to the last mark."""
        return self._last - self.began


class Bench:
    """Both ways of both jobs on images that are the same for both."""

    def __init__(self, lab: Lab, libvirt: Libvirt) -> None:
        self._lab, self._libvirt = lab, libvirt
        self._candidate = load_candidate(SENSOR / "candidate.toml")
        self._images = {name: lab.images.image(name, _quiet) for name in (IDLE, KILLER)}
        self.steps: Steps = {}

    @contextmanager
    def _run(self, image: str, watch: Stopwatch, say: Say) -> Iterator[Run]:
        """A leased run that tells `say`; `watch` has its beginning."""
        lab, run_id = self._lab, new_run_id()
        with lab.lease(lab.slots(), purpose="benchmark", run_id=run_id, wait=60, say=_quiet) as one:
            watch.mark("lease")
            scenario = Scenario(kind="content")
            run = Run(
                lab, one, self._images[image], scenario,
                purpose="benchmark", say=say, candidate=self._candidate,
            )  # fmt: skip
            with run:
                watch.mark("checks, clone, record")
                yield run

    def agent_by_lab(self) -> float:
        """Lease to an agent that answers."""
        watch = Stopwatch(self.steps, AGENT_LAB)
        with self._run(IDLE, watch, _quiet) as run:
            run.machine.start()
            watch.mark("start")
            run.machine.wait_for_agent()
            watch.mark("boot, until the agent answers")
        return watch.total()

    def agent_by_hand(self) -> float:
        """Nothing to an agent that answers."""
        watch = Stopwatch(self.steps, AGENT_BY_HAND)
        domain = Domain(self._libvirt, self._images[IDLE].base)
        watch.mark("`qemu-img create`")
        domain.start()
        watch.mark("`virsh create`")
        deadline = self._images[IDLE].contract.deadlines.boot_to_agent
        wait_for("the agent", domain.agent_answers, deadline, POLL)
        watch.mark("boot, until the agent answers")
        domain.close()
        return watch.total()

    def report_by_lab(self) -> float:
        """A bug check's signal to evidence that is sealed and a report on disk."""
        marks = {
            "Waiting until": "begin, screen",
            "Looking for dumps": "end of the dump, power off, console",
            rf"{PAGEFILE_PATH}: ": "open the disk, find, copy and check the dump",
            "bug check 0x": "seal, triage, report",
        }
        watch = Stopwatch({}, "")  # of the way to the bug check

        def said(text: str) -> None:
            for beginning, step in marks.items():
                if text.startswith(beginning):
                    watch.mark(step)

        with self._run(KILLER, watch, said) as run:
            machine = run.machine
            machine.start()
            deadline = machine.contract.deadlines.boot_to_agent
            machine.signals.wait("the bug check", machine.crash_signalled, deadline)
            watch = Stopwatch(self.steps, REPORT_LAB)
            (signal, *_) = machine.signals.crashes()
            crash = run.take_evidence(MachineCrashed("boot 1 crashed", signal))
            watch.mark("write the record")
            assert crash is not None
            assert (run.folder / crash.evidence / "report.json").exists(), crash.summary
            assert (run.folder / RECORD).exists()
            return watch.total()

    def report_by_hand(self) -> float:
        """A bug check's event to a report on disk."""
        deadlines = self._images[KILLER].contract.deadlines
        domain = Domain(self._libvirt, self._images[KILLER].base, hold_restarts=True)
        domain.start()
        wait_for("the bug check", domain.crash_count, deadlines.boot_to_agent, POLL)
        watch = Stopwatch(self.steps, REPORT_BY_HAND)
        wait_for("power off", lambda: domain.state() == "off", deadlines.dump_writing, POLL)
        watch.mark("`virsh domstate` until it is off")
        raw, dump = domain.folder / "disk.raw", domain.folder / "memory.dmp"
        report = domain.folder / "report.txt"
        _do("qemu-img", "convert", "-O", "raw", str(domain.overlay), str(raw))
        watch.mark("`qemu-img convert`")
        _do("mcopy", "-n", "-i", f"{raw}@@{PARTITION_OFFSET}", "::/pagefile.sys", str(dump))
        watch.mark("`mcopy`")
        symbols = [*self._candidate.symbol_folders, *self._images[KILLER].symbols]
        options = [f"--symbols={folder}" for folder in symbols]
        report.write_bytes(
            _do(sys.executable, "-m", "crashdump_analysis.triage", str(dump), *options)
        )
        watch.mark("`python -m crashdump_analysis.triage`")
        assert b"sensor!MatchField" in report.read_bytes()
        domain.close()
        return watch.total()


def _quiet(text: str) -> None:
    """Tells nobody."""


def _do(*command: str) -> bytes:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True
    ).stdout


def measure(folder: Path, rounds: int) -> tuple[dict[str, list[float]], Steps]:
    """Seconds of each round, by job and way, and by step."""
    file = make_lab(folder).file
    killer = folder / "killer.qcow2"
    build_image(killer, drivers=[sensor_driver("a-o2")], files=content_files("killer"))
    killer.chmod(0o444)
    text = file.read_text().replace("[images.guest]", f"[images.{IDLE}]")
    symbols = CONTRACT.parent / "built"
    file.write_text(
        f'{text}\n[images.{KILLER}]\ncontract = "contract.toml"\ndisk = "killer.qcow2"\n'
        f'symbols = ["{symbols}", "{built("a-o2")}"]\n'
    )
    times: dict[str, list[float]] = {}
    with Lab(load_config(file)) as lab, Libvirt() as libvirt:
        bench = Bench(lab, libvirt)
        jobs = {
            AGENT_BY_HAND: bench.agent_by_hand,
            AGENT_LAB: bench.agent_by_lab,
            REPORT_BY_HAND: bench.report_by_hand,
            REPORT_LAB: bench.report_by_lab,
        }
        for job in jobs.values():  # daemons, caches of hashes and capabilities
            job()
        bench.steps.clear()
        for number in range(1, rounds + 1):
            print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
            for name, job in jobs.items():
                times.setdefault(name, []).append(job())
    return times, bench.steps


def steps_table(steps: Steps) -> str:
    """Medians in seconds; a job's name stands in its first line."""
    lines = ["| | step | median, s |", "|---|---|---|"]
    shown = ""
    for (job, step), values in steps.items():
        lines.append(
            f"| {'' if job == shown else job} | {step} | {statistics.median(values):.3f} |"
        )
        shown = job
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see --help."""
    parser = argparse.ArgumentParser(
        prog="make bench", description="Times the lab against the bare commands."
    )
    parser.add_argument("--rounds", type=int, default=20, help="paired runs (default: 20)")
    parser.add_argument(
        "--output", type=Path, default=PAGE, help="the page to write (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    with lab_folder() as folder:
        times, steps = measure(folder, options.rounds)
    text = TEXT.format(
        host=host(),
        rounds=options.rounds,
        ratios=table(times, "times by hand", RATIOS),
        steps=steps_table(steps),
    )
    print(write_section(options.output, TITLE, text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
