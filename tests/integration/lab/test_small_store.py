"""An evidence store without room: before a run nothing starts; at a crash nothing is lost."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from crashdump_analysis import triage
from lab.outcome import Outcome
from lab.record import load_record
from lab.verdict import Verdict
from tests.support.labs import LiveCommand, TestLab, machines_of, make_lab
from tests.support.small_store import MountNamespace, mount_namespace

ENOUGH, TOO_LITTLE, NOTHING_MORE = 700, 300, 66
"""MiB: for a run of the lab below; not for one; for its record and logs, but no dump."""
SMALL_PAGEFILE = [("staged_bytes = 83_886_080", "staged_bytes = 8_388_608")]


@pytest.fixture
def namespace() -> Iterator[MountNamespace]:
    with mount_namespace() as made:
        yield made


@pytest.fixture
def small_lab(folder: Path) -> TestLab:
    return make_lab(folder, pagefile_bytes=8 << 20, contract=SMALL_PAGEFILE)


def done_in(namespace: MountNamespace, command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        namespace.command(command), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )


def test_a_store_that_is_too_small_starts_nothing(
    namespace: MountNamespace, small_lab: TestLab, sensor_file: Path
) -> None:
    store = small_lab.folder / "store"
    namespace.small_folder(store, TOO_LITTLE)
    done = done_in(namespace, small_lab.run_command(sensor_file, "benign"))
    assert done.returncode == Verdict.INCONCLUSIVE.exit_code
    assert "MiB are free" in done.stderr
    assert "Make room" in done.stderr
    (folder,) = namespace.seen(store / "runs").iterdir()
    record = load_record(folder)
    assert (record.outcome, record.verdict) == (Outcome.INFRASTRUCTURE, "inconclusive")
    assert record.ended is not None
    assert not list(folder.glob("disk.qcow2*"))
    assert "booted" not in done.stdout


def test_a_store_without_any_room(
    namespace: MountNamespace, small_lab: TestLab, sensor_file: Path
) -> None:
    store = small_lab.folder / "store"
    namespace.small_folder(store, 1)
    namespace.root("dd", "if=/dev/zero", f"of={store}/full", "bs=4096", "count=256", "status=none")
    done = done_in(namespace, small_lab.run_command(sensor_file, "benign"))
    assert done.returncode == Verdict.INCONCLUSIVE.exit_code
    assert "Traceback" not in done.stderr
    assert str(store) in done.stderr


def test_a_dump_that_finds_no_room_stays_on_the_kept_disk(
    namespace: MountNamespace, small_lab: TestLab, sensor_file: Path
) -> None:
    store = small_lab.folder / "store"
    namespace.small_folder(store, ENOUGH)
    command = namespace.command(small_lab.run_command(sensor_file, "benign", "killer"))
    with LiveCommand(command) as run:
        run.wait_for("New content: killer")
        namespace.resize(store, NOTHING_MORE)
        assert run.end() == Verdict.HOLD.exit_code  # it crashed, whatever the lab could keep
        assert "could not be copied" in run.output
        assert "lab salvage" in run.output
    assert machines_of(small_lab.folder) == []
    (folder,) = namespace.seen(store / "runs").iterdir()
    record = load_record(folder)
    assert [one.outcome for one in record.outcomes] == [
        Outcome.PASSED,
        Outcome.CRASHED,
        Outcome.INFRASTRUCTURE,
    ]
    assert record.recovered is None
    evidence = json.loads((folder / record.crashes[0].evidence / "evidence.json").read_text())
    assert (folder / evidence["kept_disk"]).exists()
    assert [one["file"] for one in evidence["dumps"] if one["file"]] == []

    # It stays there whoever cleans, and can be read once there is room.
    cleaned = done_in(namespace, small_lab.command("clean"))
    assert "Nothing to clean" in cleaned.stdout
    assert done_in(namespace, small_lab.command("salvage", "last")).returncode == 2
    namespace.resize(store, ENOUGH)
    saved = done_in(namespace, small_lab.command("salvage", "last"))
    assert saved.returncode == 0, saved.stderr
    assert "this run" in saved.stdout
    (dump,) = (folder / "evidence/salvaged").iterdir()
    assert triage(dump).bug_check.code == 0x50
