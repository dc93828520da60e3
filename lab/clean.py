"""`lab clean` and `lab salvage`: what dead runs left, and the dumps on the disks they left."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime, timedelta
from pathlib import Path

from images.contract import load_contract
from lab.backend import OVERLAY
from lab.config import load_config
from lab.disks.blocks import DiskError
from lab.disks.files import open_files
from lab.disks.overlay import open_overlay
from lab.dumps import DumpStatus, SeenBoot, copy_dump, find_dumps
from lab.lab import Lab, Say
from lab.outcome import LabError, Outcome
from lab.record import OutcomeRecord, Record, RecordError, load_record
from lab.verdict import verdict_of
from lab.watch import worst

SALVAGED = "salvaged"


def clean(options: argparse.Namespace, say: Say) -> int:
    """`lab clean`. Returns 0, or 1 where something had to be left."""
    with Lab(load_config(options.lab)) as lab:
        living = {one.run_id for one in lab.leases.holdings() if one.alive}
        known = {folder.name for folder in lab.runs.iterdir() if folder.is_dir()}
        removed = 0
        factories = {(slot.backend, slot.host_name): slot for slot in lab.config.slots().values()}
        for slot in factories.values():
            factory = lab.factory(slot)
            # What carries the id of a run that this store does not know is somebody else's.
            for run_id in {run for run, _ in factory.leftovers()} & known - living:
                for what in factory.remove(run_id):
                    say(f"run {run_id}: removed {what}")
                    removed += 1
        left = 0
        for folder in sorted(lab.runs / run_id for run_id in known - living):
            try:
                record = load_record(folder)
            except RecordError as error:
                say(f"{error}; left as it is")
                left += 1
                continue
            if record.ended is None:
                removed += 1
                left += not _bury(lab, folder, record, say)
        say(f"{removed} removed" if removed else "Nothing to clean")
        return 1 if left else 0


def _bury(lab: Lab, folder: Path, record: Record, say: Say) -> bool:
    """Saves the dumps of a run whose controller died, then removes its disk. False if left."""
    overlay = folder / OVERLAY
    if overlay.exists():
        try:
            saved = salvage(lab, folder, record, overlay, say)
        except (DiskError, OSError, LabError) as error:
            say(f"run {record.run_id}: its disk cannot be read ({error}); {overlay} is left")
            return False
        say(f"run {record.run_id}: {len(saved)} dumps saved, its disk removed")
        overlay.unlink()
    record.outcomes.append(
        OutcomeRecord(
            what="run", outcome=Outcome.INFRASTRUCTURE, reason="its controller died before its end"
        )
    )
    outcomes = [one.outcome for one in record.outcomes]
    record.outcome, record.verdict = worst(outcomes), verdict_of(outcomes)
    record.ended = datetime.now(UTC).isoformat()
    record.save(folder)
    return True


def salvage(lab: Lab, folder: Path, record: Record, disk: Path, say: Say) -> list[Path]:
    """Copies the dumps that a run's machine wrote off a disk it left; gives the copies."""
    contract = load_contract(lab.config.image(record.image).contract)
    began, now = datetime.fromisoformat(record.began), datetime.now(UTC)
    boot = SeenBoot(0, began, now, timedelta(), None)
    target = folder / "evidence" / SALVAGED
    target.mkdir(parents=True, exist_ok=True)
    saved: list[Path] = []
    seen: set[str] = set()
    with open_files(open_overlay(disk)) as files:
        for one in find_dumps(files, contract, boot, run_began=began, collected=()):
            say(f"{one.detail}")
            worth = one.status in {DumpStatus.THIS_BOOT, DumpStatus.OTHER} or (
                one.status is DumpStatus.TRUNCATED
            )
            if worth and one.fingerprint not in seen:
                seen.add(one.fingerprint)
                saved.append(copy_dump(files, one, target))
    return saved


def salvage_run(options: argparse.Namespace, say: Say) -> int:
    """`lab salvage RUN`. Returns 0 if a dump was saved, 1 if there was none."""
    with Lab(load_config(options.lab)) as lab:
        folder = lab.run_folder(options.run)
        record = load_record(folder)
        disks = [folder / OVERLAY, *sorted(folder.glob(f"evidence/*/{OVERLAY}"))]
        disks = [disk for disk in disks if disk.exists()]
        if not disks:
            raise LabError(f"run {record.run_id} kept no disk: {folder} has no {OVERLAY}")
        saved = [one for disk in disks for one in salvage(lab, folder, record, disk, say)]
    for file in saved:
        say(f"saved {file}")
    return 0 if saved else 1
