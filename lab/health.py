"""`lab health`: does a machine boot, answer, and boot again after its power was cut?"""

from __future__ import annotations

import argparse
import time

from lab.commands import image_name
from lab.config import load_config
from lab.lab import Lab, Say
from lab.outcome import LabError
from lab.record import Scenario, new_run_id
from lab.run import Run


def health(options: argparse.Namespace, say: Say) -> int:
    """Returns 0 if it is well; else 1, and nobody gets the machine before a person looked at it."""
    config = load_config(options.lab)
    image, run_id = image_name(config, options.image), new_run_id()
    with Lab(config) as lab:
        slots = lab.slots(options.machine, image=image)
        if len(slots) != 1:
            raise LabError(f"which machine? {', '.join(slots)}")
        purpose = "lab health"
        with lab.lease(
            slots, purpose=purpose, run_id=run_id, wait=options.wait, say=say, quarantined=True
        ) as lease:
            state = lab.images.image(image, say)
            with Run(lab, lease, state, Scenario(kind="content"), purpose=purpose, say=say) as run:
                wrong = examine(run)
                if wrong is not None:
                    run.quarantine(wrong)
        print(f"{slots[0]} is {'well' if wrong is None else f'not well: {wrong}'}")
        if wrong is None and slots[0] in lab.leases.quarantined():
            print(f"It is out of the pool still: lab machines --release {slots[0]}")
    return 0 if wrong is None else 1


def examine(run: Run) -> str | None:
    """What is wrong with a run's machine, which is off; None if it is well. Notes an outcome."""
    part = "boot"
    machine = run.machine
    try:
        run.boot()
        part = "SAC"
        if machine.contract.console.sac and "console-type" in machine.features:
            run.say(f"SAC answers: {', '.join(machine.sac().identity().labels.values())}")
        part = "power cycle"
        began = time.monotonic()
        machine.power_off()
        run.say(f"Its power is off ({time.monotonic() - began:.1f} s); switching it on")
        run.boot()
    except LabError as error:
        run.failed(part, error, before_the_candidate=True)
        return f"health check, {part}: {error}"
    return None
