"""What `lab run` says of wrong input: before anything starts, or of the step that went wrong."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from images.test_kernel.registry import Settings
from lab.outcome import Outcome
from lab.verdict import Verdict
from tests.integration.machine.conftest import patched_entry
from tests.support.labs import (
    CONTENT,
    TestLab,
    lab_folder,
    machines_of,
    make_candidate,
    make_lab,
)
from tests.support.sensor import built

WRONG_INPUT = 3
START = r'^run = \[.*sc\.exe\x27, "start", "sensor"\]'
"""The step of the sc shape that loads the driver."""
SC = r"C:\\\\Windows\\\\System32\\\\sc.exe"
SHUTDOWN = r"C:\\\\Windows\\\\System32\\\\shutdown.exe"


@pytest.fixture(scope="module")
def wrong_lab() -> Iterator[TestLab]:
    """A lab that no machine is started in."""
    with lab_folder() as folder:
        yield make_lab(folder)
        assert not list((folder / "store/runs").glob("*/console.log"))
        assert machines_of(folder) == []


@dataclass(frozen=True)
class Wrong:
    """Something wrong, done to a candidate's folder or lab.toml, and what is said of it."""

    name: str
    do: Callable[[Path, TestLab], None]
    says: str
    exit_code: int = WRONG_INPUT
    content: str = "benign"


def driver(data: bytes) -> Callable[[Path, TestLab], None]:
    """Another file in the driver's place."""

    def do(candidate: Path, _: TestLab) -> None:
        (candidate / "built/a-o2/sensor.sys").write_bytes(data)

    return do


def replaced(old: str, new: str) -> Callable[[Path, TestLab], None]:
    """A text of candidate.toml replaced."""

    def do(candidate: Path, _: TestLab) -> None:
        file = candidate / "candidate.toml"
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new, 1))

    return do


def in_lab(old: str, new: str) -> Callable[[Path, TestLab], None]:
    """A text of lab.toml replaced."""

    def do(_: Path, lab: TestLab) -> None:
        assert old in lab.file.read_text()
        lab.file.write_text(lab.file.read_text().replace(old, new, 1))

    return do


SENSOR_FILE = (built("a-o2") / "sensor.sys").read_bytes()
PE = int.from_bytes(SENSOR_FILE[0x3C:0x40], "little")
ARM64 = SENSOR_FILE[: PE + 4] + b"\x64\xaa" + SENSOR_FILE[PE + 6 :]
WITHOUT_AN_IMPORT = SENSOR_FILE.replace(b"PsTerminateSystemThread\0", b"PsTerminateSystemTheatr\0")
WRONGS = [
    Wrong("no PE", driver(b"MZ of no use"), r"driver\.image: .*is no PE"),
    Wrong("another machine", driver(ARM64), "is for another machine: ARM64"),
    Wrong("cut off", driver(SENSOR_FILE[:6000]), r"sensor\.sys .*(cut|6000)"),
    Wrong(
        "no driver",
        replaced("built/a-o2/sensor.sys", "built/gone.sys"),
        r"gone\.sys cannot be read",
    ),
    Wrong("wrong key", replaced("[driver]", "[driverr]"), r"candidate\.toml:\d+: driverr"),
    Wrong("wrong type", replaced('activation = "live"', "activation = 1"), "content.activation"),
    Wrong("no content", replaced("x", "x"), "it is missing", content="gone"),
    Wrong(
        "no released content",
        replaced('files = "content/benign/*.sys"', 'files = "content/none/*.sys"'),
        "expected at least one content file",
    ),
    Wrong("lab key", in_lab("store", "stor"), r"lab\.toml:2: stor"),
    Wrong("lab type", in_lab("count = 1", 'count = "one"'), r"lab\.toml:\d+: machines\.vm\.count"),
    Wrong(
        "contract", in_lab("contract.toml", "gone.toml"), r"lab\.toml:\d+: images\.guest\.contract"
    ),
    Wrong("no machine", in_lab("[machines.vm]", "[machines.other]"), "machine 'vm'.* is wanted"),
    Wrong("host", in_lab("[hosts.here]", "[hosts.there]"), r"there is no \[hosts\.here\]"),
    Wrong("disk", in_lab("base.qcow2", "gone.qcow2"), r"images\.guest\.disk: there is no", 2),
    Wrong("no disk", in_lab("base.qcow2", "contract.toml"), "expected a qcow2 disk", 2),
]


@pytest.mark.parametrize("wrong", WRONGS, ids=lambda wrong: wrong.name)
def test_wrong_input_starts_nothing(wrong_lab: TestLab, tmp_path: Path, wrong: Wrong) -> None:
    candidate = make_candidate(tmp_path)
    settings = wrong_lab.file.read_text()
    try:
        wrong.do(candidate.parent, wrong_lab)
        done = wrong_lab.lab(
            "run", "--candidate", candidate, "--content", CONTENT / wrong.content,
            "--machine", "vm",
        )  # fmt: skip
    finally:
        wrong_lab.file.write_text(settings)
    assert re.search(wrong.says, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == wrong.exit_code
    assert "Run " not in done.stdout or wrong.exit_code == Verdict.INCONCLUSIVE.exit_code


def test_empty_content_starts_nothing(wrong_lab: TestLab, tmp_path: Path) -> None:
    empty = tmp_path / "C-00000291-00000040.sys"
    empty.touch()
    done = wrong_lab.run(make_candidate(tmp_path), empty, exit_code=WRONG_INPUT)
    assert "found 0 bytes: a copy that was cut off?" in done.stderr


# Steps


@pytest.fixture(scope="module")
def step_lab() -> Iterator[TestLab]:
    with lab_folder() as folder:
        yield make_lab(folder, settings=Settings(dpc_timeout_milliseconds=0))
        assert machines_of(folder) == []


@dataclass(frozen=True)
class Step:
    """A change of the sc shape, and what comes of it."""

    name: str
    changes: Mapping[str, str]
    outcome: Outcome
    says: str
    driver: bytes = SENSOR_FILE


STEPS = [
    Step("import", {}, Outcome.FAILED, "PsTerminateSystemTheatr", WITHOUT_AN_IMPORT),
    Step(
        "hangs",
        {START: rf'run = ["{SC}", "start", "sensor"]\nseconds = 1'},
        Outcome.HUNG,
        "install step 2 of 2 did not end within 1 s",
        patched_entry(b"\xeb\xfe"),  # a jump to itself
    ),
    Step(
        "fails",
        {START: rf'run = ["{SC}", "start", "nobody"]'},
        Outcome.FAILED,
        "install step 2 of 2: expected exit code 0 or 3010; .*ended with 1060",
    ),
    Step(
        "restarts by itself",
        {START: rf'run = ["{SHUTDOWN}", "/r", "/t", "0"]'},
        Outcome.FAILED,
        "boot 1 ended .*nobody announced it",
    ),
    Step(
        "goes off by itself",
        {START: rf'run = ["{SHUTDOWN}", "/s", "/t", "0"]'},
        Outcome.FAILED,
        "boot 1 ended .*nobody announced it",
    ),
]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_a_step_that_goes_wrong(step_lab: TestLab, tmp_path: Path, step: Step) -> None:
    candidate = make_candidate(tmp_path, shape="candidate-sc.toml", changes=step.changes)
    (candidate.parent / "built/a-o2/sensor.sys").write_bytes(step.driver)
    done = step_lab.run(candidate, exit_code=Verdict.HOLD.exit_code)
    assert re.search(step.says, done.stdout), done.stdout
    record = step_lab.record()
    assert record.outcome is step.outcome
    assert re.search(step.says, record.outcomes[0].reason), record.outcomes
    assert record.outcomes[0].what == "install"
    assert machines_of(step_lab.folder) == []
    assert not list(step_lab.runs[-1].glob("disk.qcow2*"))


def test_steps_that_restart_as_announced_are_no_loop(step_lab: TestLab, tmp_path: Path) -> None:
    """Three restarts, one after the other: asked for by candidate.toml, or by an exit code."""
    changes = {
        '"demand"': '"auto"',
        START: rf'run = ["{SC}", "start", "sensor"]\nrestart = "always"\n\n'
        rf'[[install]]\nrun = ["{SC}", "query", "sensor"]\nreboot = [0]\n\n'
        rf'[[install]]\nrun = ["{SC}", "query", "sensor"]\nreboot = [0]',
    }
    candidate = make_candidate(tmp_path, shape="candidate-sc.toml", changes=changes)
    step_lab.run(candidate, exit_code=Verdict.SHIP.exit_code)
    record = step_lab.record()
    assert record.outcome is Outcome.PASSED
    assert record.crashes == []
    assert "boot 5" in " ".join(record.steps)


def test_content_that_validator_and_driver_refuse(step_lab: TestLab, tmp_path: Path) -> None:
    candidate = make_candidate(tmp_path, changes={"settle_seconds = 4": "settle_seconds = 1"})
    done = step_lab.run(candidate, "benign", "truncated", exit_code=Verdict.HOLD.exit_code)
    assert re.search(r"Its validator refuses \(\d+\) C-00000291-00000036\.sys: .+", done.stdout)
    refused = step_lab.record().outcomes[1]
    assert (refused.what, refused.outcome) == ("content truncated", Outcome.FAILED)
    assert "validator refuses" in refused.reason


# Images


def test_repro_says_what_changed(folder: Path) -> None:
    lab = make_lab(folder)
    candidate = make_candidate(folder, shape="candidate-sc.toml", changes={'"demand"': '"auto"'})
    lab.run(candidate, exit_code=Verdict.SHIP.exit_code)
    base = folder / "base.qcow2"
    whole = base.read_bytes()
    base.chmod(0o644)
    base.write_bytes(whole + bytes(512))
    changed = lab.lab("repro", "last", exit_code=2)
    assert re.search(r"base\.qcow2: image guest changed since the record: the disk", changed.stderr)
    base.write_bytes(whole)
    shutil.copy(built("b-o2") / "sensor.sys", candidate.parent / "built/a-o2/sensor.sys")
    changed = lab.lab("repro", "last", exit_code=WRONG_INPUT)
    assert "the candidate is not what it was in that run: built/a-o2/sensor.sys" in changed.stderr
    base.unlink()
    gone = lab.lab("repro", "last", exit_code=WRONG_INPUT)
    assert "candidate" in gone.stderr
    assert len(lab.runs) == 1
