"""200 power cycles of a physical machine with crashes at random moments, and power cut at others.

The power goes before a bug check, in the middle of the dump, after the restart, in the middle of
the copy to MEMORY.DMP. Then the lab brings the machine up and takes what its Windows gives. Each
whole dump that lay on the disk when the power went is pulled; each bug check without one has a
reason. In the end the console's log has every byte that the console server read from the line.

The moments are drawn from a seed, which is printed; SOAK_SEED=NUMBER draws the same again.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random

import pytest

from lab.config import load_config
from lab.console.log import entries
from lab.dumps import DumpStatus
from lab.evidence import Collector, Evidence
from lab.lab import Lab
from lab.machine import Machine
from tests.integration.metal.box import IMAGE, Box, MetalMachine, metal_box
from tests.support.disk import DUMP_SIGNATURE, REQUIRED_DUMP_SPACE
from tests.support.waiting import wait_for

SHARES, CYCLES = 8, 25
CONTRACT = [
    ("boot_to_agent = 60", "boot_to_agent = 40"),
    ("dump_copying = 120", "dump_copying = 15"),
]
"""A bug check whose dump never was whole is waited for so long."""
LOOK_SECONDS = 0.005


@dataclass(frozen=True)
class Cycle:
    """One cycle: seconds from power-on to the crash (None: none) and on to the cut of the power."""

    crash: float | None
    cut: float


def lots(seed: int, share: int, count: int) -> list[Cycle]:
    """A share's cycles."""
    random = Random(f"{seed}/{share}")
    return [
        Cycle(
            random.choice([random.uniform(0.5, 4), random.uniform(2, 5), None]),
            random.choice([random.uniform(0, 0.6), random.uniform(0.3, 1.5), random.uniform(1, 5)]),
        )
        for _ in range(count)
    ]


def pass_time(seconds: float) -> None:
    """Until a moment that the lot gave."""
    end = time.monotonic() + seconds
    wait_for("the moment", lambda: time.monotonic() >= end, seconds + 60, LOOK_SECONDS)


def whole_dumps(machine: MetalMachine) -> dict[str, str]:
    """The whole dumps on a disk that is off, as mtools read it: places by SHA-256."""
    found = {}
    with machine.domain.disk() as disk:
        places = [r"C:\pagefile.sys", r"C:\Windows\MEMORY.DMP"]
        places += [rf"C:\{name}" for name in disk.names("C:\\", "DUMP*.TMP")]
        for place in places:
            if not disk.exists(place):
                continue
            content = disk.read(place)
            size = int.from_bytes(content[REQUIRED_DUMP_SPACE:][:8], "little")
            # What a cut left half written has no signature yet: the header comes last.
            if content.startswith(DUMP_SIGNATURE + b"") and 0x2000 < size <= len(content):
                whole = content[:size]
                if place == r"C:\Windows\MEMORY.DMP" and not whole[0x2000:].strip(b"\0"):
                    continue
                found[hashlib.sha256(whole).hexdigest()] = place
    return found


def go_through(box: Box, cycles: list[Cycle]) -> None:
    """The cycles on one machine; each is told, and what became of it."""
    (metal,) = box.machines.values()
    safe: set[str] = set()
    pulled_in_all = 0
    with Lab(load_config(box.lab.file)) as lab:
        began = datetime.now(UTC)
        with lab.lease(["m1"], purpose="soak", run_id="soak", wait=0, say=print) as lease:
            folder = lab.runs / "soak"
            machine = lab.machine(lease, lab.images.image(IMAGE, print), folder)
            collector = Collector(machine, folder / "evidence", began, lambda _: None)
            for number, cycle in enumerate(cycles):
                first = machine.boot + 1
                run_until(machine, metal, cycle)
                machine.cut_power()
                there = whole_dumps(metal)
                evidence = collector.collect("power-cut")
                new = {digest: place for digest, place in there.items() if digest not in safe}
                got = check_pulled(evidence, new, safe)
                check_reasons(machine, first, evidence, got)
                pulled_in_all += got
                print(f"{number}: {cycle}; new {list(new.values())}; pulled {got}", flush=True)
                print(
                    f"   {[one.reason for one in evidence.missing]}; {evidence.no_dump}", flush=True
                )
                machine.power_off()
                shutil.rmtree(evidence.folder)
            check_console(machine, metal)
            machine.dispose(keep_disk=False)
    assert pulled_in_all, "no cycle left a dump: the lots are wrong"


def run_until(machine: Machine, metal: MetalMachine, cycle: Cycle) -> None:
    """Starts it, crashes it as the cycle says, and returns at the moment of the cut."""
    machine.start()
    if cycle.crash is None:
        pass_time(cycle.cut)
        return
    pass_time(cycle.crash)
    machine.nmi()
    pass_time(cycle.cut)


def check_pulled(evidence: Evidence, new: dict[str, str], safe: set[str]) -> int:
    """Each new dump was pulled; gives how many were."""
    whole = [
        one
        for one in evidence.dumps
        if one.file and one.status not in {DumpStatus.TRUNCATED, DumpStatus.NO_DUMP}
    ]
    pulled = {one.sha256 for one in whole}
    assert new.keys() <= pulled | safe, f"{new} and {evidence}"
    for one in whole:
        assert one.file is not None
        content = (evidence.folder / one.file).read_bytes()
        assert hashlib.sha256(content).hexdigest() == one.sha256
        assert one.stop_code == 0x80
    count = len(pulled - safe)
    safe.update(pulled)
    return count


def check_reasons(machine: Machine, first: int, evidence: Evidence, pulled: int) -> None:
    """Each bug check that was signalled has its dump, or a reason."""
    crashed = {one.boot for one in machine.signals.crashes() if first <= one.boot < machine.boot}
    missing = {one.boot for one in evidence.missing}
    assert missing <= crashed
    assert len(crashed) <= pulled + len(missing), evidence
    for one in evidence.missing:
        assert one.reason
    if evidence.dump is None:
        assert evidence.no_dump


def check_console(machine: Machine, metal: MetalMachine) -> None:
    """The log has each byte that the console server read from the line, and no gap."""
    events = [one for one in entries(machine._backend.console().times) if "event" in one]
    assert not [one for one in events if one["event"] == "lost"]

    def same() -> bool:
        return machine.console_log().read_bytes() == metal.trace.read_bytes()

    wait_for("the last bytes", same, 20)
    assert machine.console_log().stat().st_size > 1000


@pytest.mark.soak
@pytest.mark.parametrize("share", range(SHARES))
def test_no_dump_of_a_physical_machine_is_lost(share: int) -> None:
    seed = int(os.environ.get("SOAK_SEED") or secrets.randbelow(10**6))
    print(f"seed {seed}, share {share}")
    with metal_box(contract=CONTRACT) as box:
        go_through(box, lots(seed, share, CYCLES))


@pytest.mark.metal
def test_no_dump_is_lost_in_three_cycles() -> None:
    with metal_box(contract=CONTRACT) as box:
        go_through(box, [Cycle(None, 1.0), Cycle(3.0, 0.2), Cycle(3.0, 3.0)])
