"""`lab clean` and `lab salvage`: what dead runs left, and the dumps on the disks they left."""

from __future__ import annotations

import argparse
import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

from images.contract import Contract, ContractError, load_contract
from lab.backend import MACHINE_FILES, OVERLAY
from lab.config import ConfigError, load_config
from lab.disks.blocks import DiskError
from lab.disks.files import open_files
from lab.disks.overlay import open_overlay
from lab.dumps import DumpStatus, SeenBoot, copy_dump, find_dumps
from lab.lab import Lab, Say
from lab.outcome import LabError, Outcome
from lab.record import PARTIAL_RECORD, OutcomeRecord, Record, load_record
from lab.verdict import verdict_of
from lab.watch import worst

SALVAGED = "salvaged"
WORTH_SAVING = frozenset({DumpStatus.THIS_BOOT, DumpStatus.OTHER, DumpStatus.TRUNCATED})


def clean(options: argparse.Namespace, say: Say) -> int:
    """`lab clean`. Returns 0, or 1 where something had to be left."""
    with Lab(load_config(options.lab)) as lab:
        # In this order: what is known and has no lease by then is dead, not about to begin.
        known = {folder.name for folder in lab.runs.iterdir() if folder.is_dir()}
        dead = known - _living(lab)
        removed = left = 0
        factories = {(slot.backend, slot.host_name): slot for slot in lab.config.slots().values()}
        for slot in factories.values():
            try:
                factory = lab.factory(slot)
                # What carries the id of a run that this store does not know is somebody else's.
                for run_id in {run for run, _ in factory.leftovers()} & dead:
                    for what in factory.remove(run_id):
                        say(f"run {run_id}: removed {what}")
                        removed += 1
            except LabError as error:
                say(f"host {slot.host_name}: left as it is: {error}")
                left += 1
        for folder in sorted(lab.runs / run_id for run_id in dead):
            try:
                removed += _bury(lab, folder, say)
            except (LabError, OSError) as error:
                say(f"run {folder.name}: left as it is: {error}")
                left += 1
        say(f"{removed} removed" if removed else "Nothing to clean")
        return 1 if left else 0


def _living(lab: Lab) -> set[str]:
    return {one.run_id for one in lab.leases.holdings() if one.alive}


def _bury(lab: Lab, folder: Path, say: Say) -> bool:
    """Saves the dumps of a run whose controller died, then removes its machine's files.

    False if that run has its end. Raises LabError or OSError where something must be left.
    """
    if all(file.name == PARTIAL_RECORD for file in folder.iterdir()):
        shutil.rmtree(folder)  # it died before its record began
        return True
    record = load_record(folder)
    if record.ended is not None:
        return False
    saved = salvage(lab, folder, record, say) if (folder / OVERLAY).exists() else []
    for left in [file for pattern in MACHINE_FILES for file in folder.glob(pattern)]:
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()
    say(f"run {record.run_id}: {len(saved)} dumps saved, its machine's files removed")
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


def salvage(lab: Lab, folder: Path, record: Record, say: Say) -> list[Path]:
    """Copies the dumps that a run's machine wrote, and nobody collected, off its disk.

    Returns the copies. Raises LabError where disk or contract cannot be read, and OSError where the
    store cannot take a dump.
    """
    began, now = datetime.fromisoformat(record.began), datetime.now(UTC)
    offset = timedelta(seconds=record.clock_offset_seconds or 0.0)
    boot = SeenBoot("this run", began, now, offset, None)
    target = folder / "evidence" / SALVAGED
    safe = _collected(folder)
    saved: list[Path] = []
    with open_files(open_overlay(folder / OVERLAY)) as files:
        contract = _contract(lab, record)
        found = find_dumps(files, contract, boot, run_began=began, collected=safe)
        worth = WORTH_SAVING
        if record.clock_offset_seconds is None:
            worth |= {DumpStatus.STALE}  # nobody knows the guest's clock, so that is a guess
        for one in found:
            say(one.detail)
            if one.status is DumpStatus.UNREADABLE:
                raise DiskError(one.detail)
            if one.status in worth and one.fingerprint not in safe:
                target.mkdir(parents=True, exist_ok=True)
                saved.append(copy_dump(files, one, target))
                safe.add(one.fingerprint)
    return saved


def _collected(folder: Path) -> set[str]:
    """Fingerprints of the dumps that are in a run's evidence, by its evidence.json files."""
    dumps = [
        dump
        for file in folder.glob("evidence/*/evidence.json")
        for dump in json.loads(file.read_text(encoding="utf-8"))["dumps"]
    ]
    return {one["fingerprint"] for one in dumps if one["file"] and one["status"] != "truncated"}


def _contract(lab: Lab, record: Record) -> Contract:
    try:
        return load_contract(lab.config.image(record.image).contract)
    except ContractError as error:
        raise ConfigError(str(error)) from None


def salvage_run(options: argparse.Namespace, say: Say) -> int:
    """`lab salvage RUN`. Returns 0 if a dump was saved, 1 if there was none."""
    with Lab(load_config(options.lab)) as lab:
        folder = lab.run_folder(options.run)
        if folder.name in _living(lab):
            raise LabError(f"run {folder.name} is still alive: it collects its evidence itself")
        record = load_record(folder)
        if not (folder / OVERLAY).exists():
            raise LabError(f"run {record.run_id} kept no disk: {folder} has no {OVERLAY}")
        saved = salvage(lab, folder, record, say)
    for file in saved:
        say(f"saved {file}; what it says: lab triage {file}")
    return 0 if saved else 1
