"""A libvirtd that is absent or dies under a run, and runs that want the same machine."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from images.test_kernel.registry import Settings
from lab.outcome import Outcome
from lab.record import load_record
from lab.verdict import Verdict
from tests.support.labs import LiveCommand, TestLab, machines_of, make_candidate, make_lab
from tests.support.small_store import MountNamespace, mount_namespace
from tests.support.waiting import wait_for


@pytest.fixture
def namespace() -> Iterator[MountNamespace]:
    with mount_namespace() as made:
        yield made


def daemon_path() -> str:
    found = shutil.which("libvirtd", path=f"{os.environ['PATH']}:/usr/sbin")
    assert found
    return found


def parents() -> dict[int, tuple[str, int]]:
    """Name and parent of each process, by id (proc(5))."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it ended meanwhile
                before, _, after = (entry / "stat").read_text().rpartition(")")
                found[int(entry.name)] = before.partition("(")[2], int(after.split()[1])
    return found


def libvirtds_of(process: int) -> list[int]:
    """The libvirtds below a process."""
    found = parents()

    def is_below(one: int) -> bool:
        while one in found:
            one = found[one][1]
            if one == process:
                return True
        return False

    return [one for one, (name, _) in found.items() if name == "libvirtd" and is_below(one)]


def test_no_libvirtd_is_installed(
    namespace: MountNamespace, own_lab: TestLab, sensor_file: Path
) -> None:
    namespace.hide(daemon_path())
    with LiveCommand(namespace.command(own_lab.run_command(sensor_file, "benign"))) as run:
        assert run.end() == Verdict.INCONCLUSIVE.exit_code
        assert "this machine has no libvirtd. Install it: apt-get install" in run.output
    record = own_lab.record()
    assert (record.outcome, record.verdict) == (Outcome.INFRASTRUCTURE, "inconclusive")
    assert "no libvirtd" in record.outcomes[0].reason


def test_no_libvirtd_answers(folder: Path, sensor_file: Path) -> None:
    lab = make_lab(folder, uri=f"qemu+unix:///session?socket={folder}/none")
    done = lab.run(sensor_file, "benign", exit_code=Verdict.INCONCLUSIVE.exit_code)
    assert "no libvirt answers" in done.stderr
    assert 'uri = "private"' in done.stderr
    assert lab.record().outcome is Outcome.INFRASTRUCTURE


def test_libvirtd_that_is_killed_once_comes_back(own_lab: TestLab, sensor_file: Path) -> None:
    with LiveCommand(own_lab.run_command(sensor_file, "benign", "benign")) as run:
        run.wait_for("watching benign")
        (daemon,) = libvirtds_of(run.process.pid)
        os.kill(daemon, signal.SIGKILL)
        code = run.end()
        record = own_lab.record()
        # Either nothing was missed, or the lab says that it cannot know; never a product's fault.
        product = [one for one in record.outcomes if one.outcome.is_bad_product]
        assert product == [], run.output
        assert code in {Verdict.SHIP.exit_code, Verdict.INCONCLUSIVE.exit_code}, run.output
    assert machines_of(own_lab.folder) == []


def test_a_hang_after_libvirtd_was_away_is_no_proof(folder: Path, sensor_file: Path) -> None:
    """Its silence may be that of the channel, which broke; the dump is taken all the same."""
    lab = make_lab(
        folder,
        settings=Settings(dpc_timeout_milliseconds=0),  # else the kernel itself finds the loop
        contract=[("agent_reply = 20", "agent_reply = 3")],
    )
    with LiveCommand(lab.run_command(sensor_file, "benign", "hang")) as run:
        run.wait_for("copying C-00000291-00000035.sys")
        (daemon,) = libvirtds_of(run.process.pid)
        os.kill(daemon, signal.SIGKILL)
        assert run.end() == Verdict.INCONCLUSIVE.exit_code, run.output
    record = lab.record()
    assert record.outcome is Outcome.INFRASTRUCTURE


@pytest.mark.parametrize(
    ("content", "moment", "verdict"),
    [
        ("benign", "watching benign", Verdict.INCONCLUSIVE),
        ("killer", "It has stopped", Verdict.HOLD),
    ],
)
def test_libvirtd_that_dies_for_good(
    namespace: MountNamespace,
    own_lab: TestLab,
    sensor_file: Path,
    *,
    content: str,
    moment: str,
    verdict: Verdict,
) -> None:
    command = own_lab.run_command(sensor_file, "benign", content)
    with LiveCommand(namespace.command(command)) as run:
        run.wait_for(moment)
        namespace.hide(daemon_path())
        (daemon,) = libvirtds_of(run.process.pid)
        os.kill(daemon, signal.SIGKILL)
        assert run.end() == verdict.exit_code, run.output
        assert "Traceback" not in run.output
        output = run.output
    wait_for("the machine to end", lambda: machines_of(own_lab.folder) == [], 10)
    folder = own_lab.run_of(run)
    assert folder is not None
    record = load_record(folder)
    assert record.verdict == verdict
    assert Outcome.INFRASTRUCTURE in [one.outcome for one in record.outcomes]
    assert record.ended is not None
    assert (folder / "disk.qcow2").exists(), output  # nobody knows what is on it
    if verdict is Verdict.HOLD:
        assert Outcome.CRASHED in [one.outcome for one in record.outcomes]
        assert "lab salvage" in output
        saved = own_lab.lab("salvage", "last")
        assert saved.returncode in {0, 1}, saved.stderr


def test_two_runs_on_two_machines(folder: Path, sensor_file: Path) -> None:
    lab = make_lab(folder, count=2)
    command = lab.run_command(sensor_file, "benign")
    with LiveCommand(command) as first, LiveCommand(command) as second:
        assert (first.end(), second.end()) == (0, 0)
        said = first.output + second.output
    assert "Waiting" not in said
    assert sorted(re.findall(r"on machine (\S+)", said)) == ["vm-1", "vm-2"]
    assert len(lab.runs) == 2
    assert {load_record(run).verdict for run in lab.runs} == {"ship"}


def test_the_second_run_waits_for_the_first(own_lab: TestLab, sensor_file: Path) -> None:
    command = own_lab.run_command(sensor_file, "benign")
    with LiveCommand(command) as first:
        first.wait_for("booted")
        with LiveCommand(command) as second:
            second.wait_for(
                r"Waiting for a machine; held: vm: \S+ \(run sensor 1\.0\.0\.0 on guest\)"
            )
            # Between the two it is free for an instant.
            wait_for(
                "a holder to show",
                lambda: "held" in own_lab.lab("machines", exit_code=0).stdout,
                10,
            )
            assert (first.end(), second.end()) == (0, 0)
    began = sorted(load_record(run).began for run in own_lab.runs)
    ended = sorted(str(load_record(run).ended) for run in own_lab.runs)
    assert ended[0] < began[1]


def test_clean_leaves_the_living_and_the_foreign_alone(folder: Path) -> None:
    lab = make_lab(folder, count=2)
    candidate = make_candidate(folder, changes={"settle_seconds = 4": "settle_seconds = 3"})
    command = lab.run_command(candidate, "benign", "benign")
    with LiveCommand(command) as living, LiveCommand(command) as dying:
        dying.wait_for("booted")
        living.wait_for("booted")
        dying.signal(signal.SIGKILL)
        dying.end()
        dead, alive = lab.run_of(dying), lab.run_of(living)
        assert dead is not None
        assert alive is not None
        wait_for("its machine to end", lambda: len(machines_of(folder)) == 1, 10)
        for note in (dead / "note.txt", dead.parent / "note.txt"):
            note.write_text("mine")
        foreign = dead.parent / "foreign"
        foreign.mkdir()
        (foreign / "disk.qcow2").write_text("mine")
        broken = dead.parent / "20240719-040900-000000"
        broken.mkdir()
        (broken / "record.json").write_text("{")

        cleaned = lab.lab("clean", exit_code=1)  # two had to be left
        assert re.search(r"foreign: left as it is: .*record\.json: cannot be read", cleaned.stdout)
        assert re.search(rf"{broken.name}: left as it is: .*not JSON", cleaned.stdout)
        assert "1 removed" in cleaned.stdout
        assert (alive / "disk.qcow2").exists()
        assert not (dead / "disk.qcow2").exists()
        assert {(dead / "note.txt").read_text(), (foreign / "disk.qcow2").read_text()} == {"mine"}
        assert load_record(dead).outcome is Outcome.INFRASTRUCTURE
        assert load_record(alive).ended is None
        assert living.end() == Verdict.SHIP.exit_code
