"""What `lab run`, `lab check` and `lab machines` do."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.candidate import Candidate, ContentSet, load_candidate, load_contents
from lab.check import check, print_findings
from lab.config import Config, ConfigError, load_config
from lab.lab import Lab, Say
from lab.leases import Lease
from lab.progress import progress
from lab.record import Record, Scenario, new_run_id
from lab.run import Run
from lab.saved_state import with_memory
from lab.scenario import run_content


def image_name(config: Config, asked: str | None) -> str:
    """The image that was asked for, or the only one there is. Raises ConfigError."""
    if asked is not None:
        config.image(asked)
        return asked
    names = list(config.images)
    if len(names) != 1:
        raise ConfigError(f"{config.file}: images: which one? --image {'|'.join(names) or 'NAME'}")
    return names[0]


@contextmanager
def leased(
    lab: Lab, machine: str | None, *, image: str, purpose: str, wait: float, say: Say
) -> Iterator[Lease]:
    """A machine that an image fits, for one new run; given back at the end."""
    run_id = new_run_id()
    slots = lab.slots(machine, image=image)
    with lab.lease(slots, purpose=purpose, run_id=run_id, wait=wait, say=say) as lease:
        say(f"Run {run_id} on machine {lease.slot}")
        yield lease


def run_once(
    lab: Lab,
    lease: Lease,
    scenario: Scenario,
    *,
    image: str,
    candidate: Candidate,
    contents: list[ContentSet],
    purpose: str,
    say: Say,
    repeats: Record | None = None,
    keep: Callable[[Run], None] | None = None,
) -> Run:
    """One content run from beginning to end.

    repeats: the run that is done again, on the same image. Raises ImageError if that changed.
    keep: called with the machine running by itself, instead of bringing it back after a crash.
    """
    known_state = lab.images.image(image, say)
    if scenario.with_memory:
        known_state = with_memory(lab, lease, known_state, say)
    if repeats is not None:
        lab.images.verify(known_state, repeats.image_identity)
    with Run(
        lab, lease, known_state, scenario,
        purpose=purpose, say=say, candidate=candidate, contents=contents,
        repeats=repeats.run_id if repeats else None,
    ) as run:  # fmt: skip
        run_content(run, recover=keep is None)
        if keep is not None:
            if not run.machine.is_on():
                run.machine.start(hold_restart=False)
            keep(run)
    return run


def run_candidate(options: argparse.Namespace, say: Say) -> int:
    """`lab run`. Returns the verdict's exit code."""
    candidate = load_candidate(options.candidate)
    contents = load_contents(candidate, options.content)
    config = load_config(options.lab)
    image = image_name(config, options.image)
    scenario = Scenario(
        kind="content",
        contents=[str(path.resolve()) for path in options.content],
        activation=options.activation,
        with_memory=options.with_memory,
    )
    with Lab(config) as lab:
        purpose = f"run {candidate.name} {candidate.version} on {image}"
        with leased(
            lab, options.machine, image=image, purpose=purpose, wait=options.wait, say=say
        ) as lease:
            run = run_once(
                lab,
                lease,
                scenario,
                image=image,
                candidate=candidate,
                contents=contents,
                purpose=purpose,
                say=say,
            )
    print_result(run)
    return run.verdict.exit_code


def print_result(run: Run) -> None:
    """The report of each bug, every outcome, and the verdict."""
    shown: set[str] = set()
    for report in run.reports:
        if report.bucket.id not in shown:
            print(f"\n{report.to_text()}")
        shown.add(report.bucket.id)
    print()
    for one in run.record.outcomes:
        print(f"  {one.outcome:14} {one.what}{f': {one.reason}' if one.reason else ''}")
    if run.record.recovered is not None:
        state = "came back healthy" if run.record.recovered else "did not come back"
        print(f"  {'the machine':14} {state}")
    print(f"\n{str(run.verdict).upper()}   (record and evidence: {_shown(run.folder)})")
    if any(not one.is_product for one in (entry.outcome for entry in run.record.outcomes)):
        print("Part of this is the lab's own failure: see the reasons above.")


def _shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def check_machine(options: argparse.Namespace, say: Say) -> int:
    """`lab check`: looks at this machine, and at the lab where there is one. 0 if it can work."""
    try:
        config = load_config(options.lab)
    except ConfigError as error:
        if options.lab is not None:
            raise
        say(f"Without a lab: {error}")
        config = None
    with progress(say, "the look at this machine and at what lab.toml names"):
        findings = check(config)
    return 0 if print_findings(findings) else 1


def machines(options: argparse.Namespace, say: Say) -> int:
    """`lab machines`: a line each; --release puts one back into the pool."""
    config = load_config(options.lab)
    with Lab(config) as lab:
        if options.release is not None:
            was_out = lab.leases.put_back(options.release)
            say(f"{options.release} is in the pool{' again' if was_out else ', as it was'}")
        held = {one.slot: one for one in lab.leases.holdings()}
        out = lab.leases.quarantined()
        slots = config.slots()
    if not slots:
        print(f"{config.file} has no [machines.NAME] table")
    width = max((len(name) for name in slots), default=0)
    for name, slot in slots.items():
        tags = f" [{', '.join(sorted(slot.tags))}]" if slot.tags else ""
        on_host = f" on {slot.host_name}" if slot.host_name else ""
        what = f"{name:{width}}  {slot.backend}{on_host}{tags}"
        if name in out:
            what += f"  QUARANTINED since {out[name].since:%Y-%m-%d %H:%M} UTC: {out[name].reason}"
        if (one := held.get(name)) is None:
            print(f"{what}  free")
        else:
            since = f"{one.acquired_at:%H:%M:%S} UTC"
            print(
                f"{what}  {one.state}: {one.holder} since {since}: {one.purpose} (run {one.run_id})"
            )
    return 0
