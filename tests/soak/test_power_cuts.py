"""The power is cut at random moments of crash cycles: no dump is lost, doubled or mistaken.

The machine restarts by itself, so that the power goes before a bug check, in the middle of the dump
it writes, in the middle of the copy to MEMORY.DMP that the next boot makes, or later. Then the lab
collects. What it pulled is compared with the disk as mtools read it, and each bug check without a
dump must have a reason that agrees with what was heard.

The moments are drawn from a seed, which is printed; SOAK_SEED=NUMBER draws the same again.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from random import Random

import pytest

from images.test_kernel.build import MEMORY_DUMP_PATH, PAGEFILE_PATH, REGISTRY_PATH
from images.test_kernel.registry import CrashDump, Settings, registry_text
from lab.config import load_config
from lab.disks.edit import Delete, Edit, Replace
from lab.dumps import DumpStatus
from lab.evidence import CollectedDump, Collector, Evidence
from lab.lab import Lab
from lab.machine import Machine
from lab.signals import Signal, SignalKind
from tests.oracle.readers import KernelDump
from tests.support.crashes import DPC_TIMEOUT
from tests.support.disk import DUMP_SIGNATURE, DiskFiles, dump_in_pagefile
from tests.support.kernel_memory import loaded_modules, read
from tests.support.labs import lab_folder, make_lab
from tests.support.sensor import (
    CONTENT_FOLDER,
    CRASHES,
    KINDS,
    SENSOR_PATH,
    CrashKind,
    built,
    content_files,
    sensor_driver,
)
from tests.support.symbols import public_symbol
from tests.support.waiting import wait_for

SHARES, CYCLES = 10, 10
"""The soak is 100 cycles, on ten machines one after the other."""
HEADER_BYTES = 0x2000
WHOLE = {DumpStatus.THIS_BOOT, DumpStatus.EARLIER, DumpStatus.OTHER}
LOOK_SECONDS = 0.002
"""Between looks for the moment: a dump of a few hundred pages is written in hundredths."""
STILL_SECONDS = 0.5
"""Nothing written for so long: nothing is being copied."""


class Moment(StrEnum):
    """When the power goes."""

    BEFORE = "in the first 0.6 s"
    DUMP = "while a dump is written"
    COPY = "while the dump is copied, or the next one comes"
    AFTER = "when nothing is written any more, or after some restarts"


@dataclass(frozen=True)
class Cycle:
    """One cycle's lot. part: how much of the moment passes, from 0 to 1."""

    kind: CrashKind
    variant: str
    dump: CrashDump
    moment: Moment
    part: float
    nonce: str

    def __str__(self) -> str:
        what = f"{self.kind.name}/{self.variant}, {self.dump.name} dump"
        return f"{self.nonce}: {what}; power cut {self.moment}, {self.part:.2f} of it"

    def edits(self) -> list[Edit]:
        """Puts the cycle's driver, nonce and content on the disk."""
        driver = sensor_driver(self.variant, parameters={"Nonce": self.nonce})
        settings = Settings(dpc_timeout_milliseconds=DPC_TIMEOUT, dump=self.dump)
        content = content_files(self.kind.content)
        return [
            Replace(REGISTRY_PATH, registry_text(settings, [driver.service]).encode()),
            Replace(SENSOR_PATH, (built(self.variant) / "sensor.sys").read_bytes()),
            Delete(rf"{CONTENT_FOLDER}\*.sys"),
            *(Replace(path, file.read_bytes()) for path, file in content.items()),
        ]


def lots(seed: int, share: int, count: int) -> list[Cycle]:
    """A share's cycles: every moment comes up, every kind in its turn, the rest by chance."""
    random = Random(f"{seed}/{share}")
    moments = [list(Moment)[number % len(Moment)] for number in range(count)]
    random.shuffle(moments)
    cycles = []
    for number, moment in enumerate(moments):
        kind = list(KINDS.values())[(share * count + number) % len(KINDS)]
        if moment is Moment.COPY:  # the others mostly crash before there is much of it
            kind = random.choice([kind, KINDS["nmi"], KINDS["keyboard"]])
        variant = random.choice(kind.variants)
        assert (kind.name, variant) in CRASHES
        dump = random.choice([CrashDump.KERNEL, CrashDump.COMPLETE])
        nonce = f"seed {seed} share {share} cycle {number}"
        cycles.append(Cycle(kind, variant, dump, moment, random.random(), nonce))
    return cycles


@contextmanager
def machine_and_collector(folder: Path) -> Iterator[tuple[Machine, Collector]]:
    """A leased machine with the sensor and benign content, off; and who collects from it."""
    made = make_lab(folder, drivers=[sensor_driver("a-o2")], files=content_files("benign"))
    with Lab(load_config(made.file)) as lab:
        began = datetime.now(UTC)
        with lab.lease(
            lab.slots(), purpose="power cuts", run_id="cuts", wait=60, say=print
        ) as lease:
            machine = lab.machine(lease, lab.images.image("guest", print), lab.runs / "cuts")
            try:
                yield machine, Collector(machine, lab.runs / "cuts/evidence", began, lambda _: None)
            finally:
                machine.dispose(keep_disk=False)


def run_until(machine: Machine, cycle: Cycle) -> None:
    """Starts the machine, makes it crash as the cycle says, and returns at the cycle's moment."""
    deadline = machine.contract.deadlines.boot_to_agent
    machine.start(hold_restart=False)
    first = machine.boot

    def heard(kind: SignalKind) -> list[Signal]:
        return [one for one in machine.signals.of(kind) if one.boot >= first]

    def wait(what: str, *ends: SignalKind, count: int = 1) -> None:
        machine.signals.wait(what, lambda: any(len(heard(end)) >= count for end in ends), deadline)

    if cycle.moment is Moment.BEFORE:
        end = time.monotonic() + 0.6 * cycle.part
        wait_for("the moment", lambda: time.monotonic() >= end, 60, LOOK_SECONDS)
        return
    if cycle.kind.trigger:
        machine.wait_for_agent()
        if cycle.kind.name == "nmi":
            machine.nmi()
        else:
            machine.press_keys(machine.contract.keyboard.crash_keys)
    wait("the bug check", SignalKind.BUG_CHECK)
    if cycle.moment is Moment.AFTER:
        wait_until_still(machine, lambda: len(heard(SignalKind.RESTART)) > 2 + 4 * cycle.part)
        return
    ends = SignalKind.RESTART
    if cycle.moment is Moment.COPY:
        wait("the restart", SignalKind.RESTART)
        ends = SignalKind.BUG_CHECK
    seen = len(heard(ends))
    memory = machine.contract.hardware.memory_mib << 20
    size = memory if cycle.dump is CrashDump.COMPLETE else 1 << 20
    goal = machine.disk_bytes_written() + int(cycle.part * size)
    wait_until_still(
        machine, lambda: machine.disk_bytes_written() >= goal or len(heard(ends)) > seen
    )


def wait_until_still(machine: Machine, reached: Callable[[], bool]) -> None:
    """Until `reached()`, or the disk is still once the boot's agent is there."""
    written, since = -1, time.monotonic()

    def is_so() -> bool:
        nonlocal written, since
        now = machine.disk_bytes_written()
        if now != written:
            written, since = now, time.monotonic()
        booted = machine.signals.of(SignalKind.AGENT_UP, boot=machine.boot)
        return reached() or bool(booted and time.monotonic() - since >= STILL_SECONDS)

    wait_for("the moment", is_so, machine.contract.deadlines.dump_copying, LOOK_SECONDS)


def dumps_on_disk(machine: Machine, scratch: Path) -> dict[str, bytes]:
    """The whole dumps on the disk of a machine that is off, by path, as mtools reads it.

    Of a dump that is being copied, only the source: the copy has its header from the first moment.
    """
    with DiskFiles(machine.overlay(), scratch) as disk:
        sources = [rf"C:\{name}" for name in disk.names("C:\\", "DUMP*.tmp")]
        found: dict[str, bytes] = {}
        for path in (PAGEFILE_PATH, *sources, MEMORY_DUMP_PATH):
            if not disk.exists(path):
                continue
            content = disk.read(path)
            if not content.startswith(DUMP_SIGNATURE):
                continue
            try:
                dump = dump_in_pagefile(content)
            except ValueError:
                continue  # cut short
            if not any(dump[:HEADER_BYTES] == other[:HEADER_BYTES] for other in found.values()):
                found[path] = dump
    return found


def nonce_in(dump: Path, variant: str) -> str:
    """What the sensor in a dump bears."""
    folder = built(variant)
    symbol = public_symbol(folder / "sensor.pdb", folder / "sensor.sys", "SensorNonce")
    opened = KernelDump(dump)
    found = read(opened, loaded_modules(opened)["sensor.sys"] + symbol, 72)
    assert found.startswith(b"SNONCE:\0")
    return found[8:].rstrip(b"\0").decode()


def check_pulled(
    cycle: Cycle, evidence: Evidence, on_disk: dict[str, bytes], safe: set[str]
) -> list[CollectedDump]:
    """Each new dump of the disk was pulled once, whole, and is of this cycle; gives those."""
    whole = [one for one in evidence.dumps if one.file and one.status in WHOLE]
    new = {hashlib.sha256(dump).hexdigest(): path for path, dump in on_disk.items()}
    wanted = sorted(digest for digest in new if digest not in safe)
    assert sorted(one.sha256 for one in whole) == wanted, f"{new} and {evidence.dumps}"
    for one in whole:
        assert one.file is not None
        file = evidence.folder / one.file
        assert hashlib.sha256(file.read_bytes()).hexdigest() == one.sha256
        assert one.stop_code == cycle.kind.stop_code
        assert nonce_in(file, cycle.variant) == cycle.nonce
    safe.update(wanted)
    whole_headers = {hashlib.sha256(dump[:HEADER_BYTES]).hexdigest() for dump in on_disk.values()}
    for one in evidence.dumps:
        if one.file and one.status not in WHOLE:
            assert one.fingerprint not in whole_headers, f"a part, though all of it is there: {one}"
    return whole


def check_reasons(
    machine: Machine, first_boot: int, evidence: Evidence, pulled: list[CollectedDump]
) -> None:
    """Each bug check that was signalled has its dump, or a reason that agrees with the signals."""
    signals = machine.signals
    crashed = {one.boot: one for one in signals.crashes() if one.boot >= first_boot}
    missing = {one.boot: one for one in evidence.missing}
    assert len(missing) == len(evidence.missing)
    assert missing.keys() <= crashed.keys()
    assert len(pulled) + len(missing) == len(crashed), evidence
    (power_cut,) = signals.of(SignalKind.POWER_OFF, boot=evidence.boot)
    for boot, one in missing.items():
        restarted = signals.of(SignalKind.RESTART, boot=boot)
        later = [number for number in crashed if number > boot]
        if later:
            assert restarted
            assert one.written_over_by == min(later)
            assert f"written over by the bug check of boot {min(later)}" in one.reason
        else:
            assert not restarted, "a dump that was written is gone"
            assert boot == evidence.boot
            after = (power_cut.at - crashed[boot].at).total_seconds()
            assert "power was cut before its dump was whole" in one.reason
            assert f"off {after:.3f} s after its bug check was signalled" in one.reason
        assert ("too near" in one.reason) <= bool(pulled)
    if evidence.boot not in crashed:
        (power_on,) = signals.of(SignalKind.POWER_ON, boot=evidence.boot)
        after = (power_cut.at - power_on.at).total_seconds()
        assert evidence.no_dump is not None
        assert "power was cut before a bug check" in evidence.no_dump
        assert f"it was off {after:.3f} s after it began" in evidence.no_dump
        assert evidence.dump is None, "a boot that was not seen to crash has no dump"
    assert evidence.crashes == len([one for one in signals.crashes() if one.boot >= first_boot])
    assert evidence.overwritten == sum(one.written_over_by is not None for one in missing.values())


def go_through(cycles: list[Cycle], folder: Path) -> None:
    """The cycles on one machine; each is told, and what became of it."""
    safe: set[str] = set()
    seen: set[str] = set()
    with machine_and_collector(folder) as (machine, collector):
        for cycle in cycles:
            print(f"{cycle}", flush=True)
            machine.edit(cycle.edits())
            first_boot = machine.boot + 1
            run_until(machine, cycle)
            machine.cut_power()
            evidence = collector.collect("power-cut")
            on_disk = dumps_on_disk(machine, folder)
            pulled = check_pulled(cycle, evidence, on_disk, safe)
            told = [f"boot {one.boot}: {one.reason}" for one in evidence.missing]
            print(
                f"  {evidence.crashes} bug checks; pulled {[one.path for one in pulled]};"
                f" {[f'{one.path} {one.status}' for one in evidence.dumps if one not in pulled]};"
                f" {'; '.join(told) or evidence.no_dump}",
                flush=True,
            )
            check_reasons(machine, first_boot, evidence, pulled)
            seen.add("a dump" if pulled else "none")
            shutil.rmtree(evidence.folder)
    assert seen == {"a dump", "none"}


@pytest.mark.soak
@pytest.mark.parametrize("share", range(SHARES))
def test_no_dump_is_lost_at_power_cuts(share: int) -> None:
    seed = int(os.environ.get("SOAK_SEED") or secrets.randbelow(10**6))
    with lab_folder() as folder:
        go_through(lots(seed, share, CYCLES), folder)


def test_no_dump_is_lost_at_five_power_cuts() -> None:
    lot = [
        ("killer", CrashDump.KERNEL, Moment.BEFORE, 0.2),
        ("nmi", CrashDump.COMPLETE, Moment.DUMP, 0.5),
        ("keyboard", CrashDump.COMPLETE, Moment.COPY, 0.5),
        ("killer", CrashDump.KERNEL, Moment.COPY, 0.5),
        ("nmi", CrashDump.KERNEL, Moment.AFTER, 0.5),
    ]
    cycles = [
        Cycle(KINDS[kind], "a-o2", dump, moment, part, f"cycle {number}")
        for number, (kind, dump, moment, part) in enumerate(lot)
    ]
    with lab_folder() as folder:
        go_through(cycles, folder)
