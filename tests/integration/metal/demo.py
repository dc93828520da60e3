"""`make metal-demo`: a physical machine in a box crashes and hangs, and comes back each time.

The lab knows two machines by their outlets, a BMC, serial ports and SSH servers; what stands behind
those is box.py's. Exit code 0 when each story ended as it should.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from images.test_kernel.registry import Settings
from lab.candidate import Candidate, load_candidate
from lab.cli import Teller
from lab.commands import leased
from lab.config import load_config
from lab.lab import Lab
from lab.outcome import LabError, Outcome
from lab.record import Scenario
from lab.run import Run
from tests.integration.metal.box import IMAGE, Box, metal_box
from tests.integration.metal.conftest import SHORT
from tests.support.labs import make_candidate
from tests.support.sensor import content_files

BARE = 'power = "rack:machine-{n}"\n{console}\n{ssh}\n'
FOR_EVER = 3600.0
say = Teller()


def put_on(run: Run, content: str) -> None:
    """Content goes onto the running machine; then it is watched until something is wrong with it.

    Raises what the lab makes of that.
    """
    run.say(f"Putting {content} content on")
    for path, file in content_files(content).items():
        run.machine.guest.write_file(path, file.read_bytes())
    watch(run)


def watch(run: Run) -> None:
    """Asks the guest its time until it no longer answers."""
    guest = run.machine.guest
    run.machine.signals.wait(
        "trouble", lambda: guest.time() is None, FOR_EVER, boot=run.machine.boot
    )


def story(
    box: Box, machine: str, title: str, trouble: Callable[[Run], None], candidate: Candidate
) -> tuple[Outcome, bool]:
    """One machine, one trouble: the outcome, and whether it is healthy again."""
    print(f"\n{title}")
    with (
        Lab(load_config(box.lab.file)) as lab,
        leased(lab, machine, image=IMAGE, purpose=title, wait=0, say=say) as lease,
        Run(
            lab, lease, lab.images.image(IMAGE, say), Scenario(kind="content"),
            purpose=title, say=say, candidate=candidate,
        ) as run,
    ):  # fmt: skip
        run.boot()
        run.install()
        try:
            trouble(run)
        except LabError as error:
            outcome = run.failed(title, error)
        healthy = run.can_recover() and run.recover()
    for one in run.record.outcomes:
        print(f"  {one.outcome}: {one.reason}")
    for evidence in box.lab.evidence():
        for rung in evidence["rungs"]:
            print(f"  {rung['name']:27} {rung['seconds']:6.1f} s  {rung['result'][:110]}")
    return outcome, healthy


def main() -> int:
    """All four."""
    with (
        tempfile.TemporaryDirectory(prefix="metal-demo-") as folder,
        metal_box(
            names=("m1", "m2"),
            tables={"m2": BARE},
            contract=SHORT,
            settings=Settings(dpc_timeout_milliseconds=0),  # the kernel finds no hang by itself
            files=content_files("benign"),
        ) as box,
    ):
        candidate = load_candidate(make_candidate(Path(folder), shape="candidate-sc.toml"))
        print((box.folder / "lab.toml").read_text())

        def unplug(run: Run) -> None:
            run.say("Its network cable is pulled out")
            box.machines["m1"].door.unplugged = "until it restarts"
            watch(run)

        stories = [
            ("A crash: its dump is copied by the Windows that comes up again", "m1",
             lambda run: put_on(run, "killer"), Outcome.CRASHED),
            ("A hang: nobody reaches it, but SAC answers on its serial port", "m1",
             unplug, Outcome.HUNG),
            ("A hang: its kernel spins, and the BMC sends an NMI", "m1",
             lambda run: put_on(run, "hang"), Outcome.HUNG),
            ("A hang: its kernel spins, it has no BMC, and only the outlet is left", "m2",
             lambda run: put_on(run, "hang"), Outcome.HUNG),
        ]  # fmt: skip
        right = 0
        for title, machine, trouble, wanted in stories:
            outcome, healthy = story(box, machine, title, trouble, candidate)
            print(f"  {machine} is {'healthy again' if healthy else 'NOT HEALTHY'}")
            right += outcome is wanted and healthy
            box.tidy_up()
    print(f"\n{right} of {len(stories)} went as they should")
    return 0 if right == len(stories) else 1


if __name__ == "__main__":
    sys.exit(main())
