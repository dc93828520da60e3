"""`lab demo`: 19 July 2024 on one virtual machine, with the example sensor."""

from __future__ import annotations

import argparse
from pathlib import Path

from lab.candidate import load_candidate, load_contents
from lab.commands import image_name, leased, print_result, run_once
from lab.config import load_config
from lab.lab import Lab, Say
from lab.outcome import Outcome
from lab.record import Scenario
from lab.verdict import Verdict

PURPOSE = "the demonstration"


def demo(options: argparse.Namespace, say: Say) -> int:
    """Benign content, then the killer, in the example lab. Returns 0 if the lab did its work.

    Its work: the machine stopped with a bug check whose culprit was named, the boot loop was seen,
    the machine came back healthy, and the verdict is hold.
    """
    examples: Path = options.folder
    config = load_config(examples / "lab.toml")
    candidate = load_candidate(examples / "sensor/candidate.toml")
    folders = [examples / "sensor/content" / name for name in ("benign", "killer")]
    contents = load_contents(candidate, folders)
    scenario = Scenario(kind="content", contents=[str(folder.resolve()) for folder in folders])
    image = image_name(config, None)
    with (
        Lab(config) as lab,
        leased(lab, None, image=image, purpose=PURPOSE, wait=600, say=say) as lease,
    ):
        run = run_once(
            lab, lease, scenario,
            image=image, candidate=candidate, contents=contents,
            purpose=PURPOSE, say=say,
        )  # fmt: skip
    print_result(run)
    record = run.record
    outcomes = [one.outcome for one in record.outcomes]
    as_it_should = (
        run.verdict is Verdict.HOLD
        and Outcome.BOOT_LOOPING in outcomes
        and all(one.is_product for one in outcomes)
        and bool(record.crashes)
        and all(crash.culprit for crash in record.crashes)
        and record.recovered is True
    )
    if as_it_should:
        print(f"Do it again: lab repro --lab {config.file} {record.run_id} -n 3")
        return 0
    print("The story did not go as it should; the reasons are above.")
    return 1
