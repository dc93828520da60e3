"""`lab image check`: boots an image and holds it to its contract."""

from __future__ import annotations

import argparse
import re

from images.contract import Requirement
from lab.commands import image_name, leased
from lab.config import load_config
from lab.guest.base import Guest
from lab.lab import Lab, Say
from lab.machine import Machine
from lab.outcome import LabError
from lab.record import Scenario
from lab.run import Run


def check_image(options: argparse.Namespace, say: Say) -> int:
    """Returns 0 if the image is as its contract says, else 1."""
    config = load_config(options.lab)
    name = image_name(config, options.image)
    purpose = f"check of image {name}"
    with (
        Lab(config) as lab,
        leased(
            lab, options.machine, image=name, purpose=purpose, wait=options.wait, say=say
        ) as lease,
    ):
        image = lab.images.image(name, say)
        scenario = Scenario(kind="content")
        with Run(lab, lease, image, scenario, purpose=purpose, say=say) as run:
            try:
                guest = run.boot()
                findings = [
                    *_promises(run.machine, guest),
                    *(_require(guest, one) for one in image.contract.requires),
                ]
            except LabError as error:
                run.failed("boot", error)
                findings = [f"it does not boot as promised: {error}"]
    for wrong in findings:
        if wrong:
            print(f"  {wrong}")
    wrong_count = sum(bool(one) for one in findings)
    print(f"{name}: {wrong_count} wrong" if wrong_count else f"{name} is as its contract says")
    return 1 if wrong_count else 0


def _promises(machine: Machine, guest: Guest) -> list[str]:
    """What of the contract's own words does not hold; empty texts are fine."""
    contract = machine.contract
    found = []
    if "disk" in machine.features:
        with machine.files() as files:
            staged, size = contract.dump.staged_in, contract.dump.staged_bytes
            if not files.exists(staged):
                found.append(f"{staged} (dump.staged_in) is not on its disk")
            elif (there := files.stat(staged).size) < size:
                found.append(f"{staged} has {there} bytes, dump.staged_bytes says {size}")
    if "agent" not in machine.features:
        return found
    osinfo = machine.agent("guest-get-osinfo", {}, boot=guest.boot)
    assert isinstance(osinfo, dict)
    for key, said, wanted in (
        ("os.id", osinfo.get("id"), contract.os.id),
        ("os.build", osinfo.get("kernel-release"), str(contract.os.build)),
    ):
        if said != wanted:
            found.append(f"the agent says {said!r}, {key} says {wanted!r}")
    return found


def _require(guest: Guest, requirement: Requirement) -> str:
    """What is wrong and how to mend it; empty if nothing is."""
    result = guest.run(requirement.program, requirement.arguments)
    text = f"{result.output}\n{result.errors}"
    expected = requirement.expect
    matches = expected is None or re.search(expected, text, re.IGNORECASE | re.MULTILINE)
    if result.state == "ended" and result.exit_code in requirement.exit_codes and matches:
        return ""
    wanted = f", expected output like {expected!r}" if expected and not matches else ""
    return f"{requirement.name}: {result}{wanted}. {requirement.fix}"
