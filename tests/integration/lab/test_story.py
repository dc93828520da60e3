"""The demonstration, and what a newcomer does after it."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from lab.outcome import Outcome
from tests.support.labs import (
    CONTENT,
    LiveCommand,
    TestLab,
    lab_folder,
    machines_of,
    make_candidate,
    make_lab,
)
from tests.support.sensor import source_line

STORY = [
    r"booted",
    r"Installing sensor",
    r"Driver and content are the candidate's \(after installation\)",
    r"validator accepts C-00000291-00000032\.sys",
    r"New content: killer",
    r"stopped with a bug check",
    r"pagefile\.sys: .* this boot's",
    r"bug check 0x50 PAGE_FAULT_IN_NONPAGED_AREA: sensor!MatchField \[\S*process\.c @ \d+\]",
    r"Letting it boot again \(boot 3\)",
    r"stopped with a bug check",
    r"A boot loop: 2 boots in a row",
    r"deleted .*C-00000291-00000032\.sys",
    r"Letting it boot again \(boot 4\)",
    r"come back healthy",
    r"HOLD",
]


@pytest.fixture(scope="module")
def story() -> Iterator[tuple[TestLab, str]]:
    """The killer's run in a lab of its own, and what it printed."""
    with lab_folder() as folder:
        lab = make_lab(folder)
        candidate = make_candidate(folder, changes={"settle_seconds = 4": "settle_seconds = 2"})
        printed = lab.run(candidate, "benign", "killer", exit_code=1).stdout
        yield lab, printed
        assert machines_of(folder) == []


def test_the_story_is_told_in_order(story: tuple[TestLab, str]) -> None:
    printed = story[1]
    at = 0
    for line in STORY:
        found = re.compile(line).search(printed, at)
        assert found, f"after {printed[max(at - 200, 0) : at]!r} comes no {line!r}:\n{printed}"
        at = found.end()
    assert f"@ {source_line('process.c', 'if (Input->Kind == FIELD_NUMBER)')}]" in printed


def test_the_record_says_it_all(story: tuple[TestLab, str]) -> None:
    lab, _ = story
    record = lab.record()
    assert record.verdict == "hold"
    assert record.outcome is Outcome.BOOT_LOOPING
    assert [one.outcome for one in record.outcomes] == [
        Outcome.PASSED,
        Outcome.CRASHED,
        Outcome.BOOT_LOOPING,
    ]
    assert record.recovered is True
    assert [crash.boot for crash in record.crashes] == [2, 3]
    assert len({crash.bucket for crash in record.crashes}) == 1
    assert [Path(edit["path"].replace("\\", "/")).name for edit in record.edits] == [
        "C-00000291-00000031.sys",
        "C-00000291-00000032.sys",
    ]


def test_the_evidence_is_whole(story: tuple[TestLab, str]) -> None:
    lab, _ = story
    for evidence, crash in zip(lab.evidence(), lab.record().crashes, strict=True):
        folder = lab.runs[-1] / crash.evidence
        assert evidence["boot"] == crash.boot
        assert evidence["stop_code_on_console"] == 0x50
        assert evidence["no_dump"] is None
        for name in ("signals.json", "report.json", "report.txt", "console.log"):
            assert (folder / name).stat().st_size > 0
        if (screen := folder / "screen.png").exists():  # the reset may be quicker
            with Image.open(screen) as picture:
                assert picture.width >= 640
    assert not list(lab.runs[-1].glob("*.qcow2"))


def test_it_crashes_the_same_way_three_times(story: tuple[TestLab, str]) -> None:
    lab, _ = story
    again = lab.lab("repro", lab.record().run_id, "-n", "3", exit_code=0)
    assert "3 of 3 went as run" in again.stdout


def test_repro_keeps_the_machine_and_offers_com2(story: tuple[TestLab, str]) -> None:
    lab, _ = story
    with LiveCommand(lab.command("repro", lab.runs[0].name, "--keep")) as again:
        again.wait_for(r"held until you press Enter")
        port = re.search(r"kernel debugger \(COM2\): (\S+):(\d+)", again.output)
        assert port, again.output
        socket.create_connection((port[1], int(port[2])), 10).close()
        assert len(machines_of(lab.folder)) == 1
        assert "held: " in lab.lab("machines", exit_code=0).stdout
        assert again.process.stdin is not None
        again.process.stdin.write("\n")
        again.process.stdin.flush()
        assert again.end() == 0, again.output
    assert "1 of 1 went as run" in again.output
    assert machines_of(lab.folder) == []


def test_nothing_is_left(story: tuple[TestLab, str]) -> None:
    lab, _ = story
    assert "free" in lab.lab("machines", exit_code=0).stdout
    assert "Nothing to clean" in lab.lab("clean", exit_code=0).stdout


def test_benign_content_may_ship(own_lab: TestLab, sensor_file: Path) -> None:
    printed = own_lab.run(sensor_file, "benign", exit_code=0).stdout
    assert "SHIP" in printed
    assert {one.outcome for one in own_lab.record().outcomes} == {Outcome.PASSED}


def test_the_fixed_sensor_survives_the_killer(own_lab: TestLab, folder: Path) -> None:
    fixed = make_candidate(folder, "b-o2", changes={"settle_seconds = 4": "settle_seconds = 2"})
    own_lab.run(fixed, "benign", "killer", exit_code=0)


def test_next_boot_activation(own_lab: TestLab, sensor_file: Path) -> None:
    done = own_lab.lab(
        "run", "--candidate", sensor_file, "--content", CONTENT / "benign",
        "--content", CONTENT / "killer", "--activation", "next-boot", exit_code=1,
    )  # fmt: skip
    assert "HOLD" in done.stdout
    assert own_lab.record().crashes[0].bug_check == "0x50"


def test_saved_memory_is_a_known_state(own_lab: TestLab, sensor_file: Path) -> None:
    for _ in range(2):  # the second time it is there already
        own_lab.lab(
            "run", "--candidate", sensor_file, "--content", CONTENT / "benign", "--with-memory",
            exit_code=0,
        )  # fmt: skip
        (clock,) = [one for one in own_lab.record().clock_settings if one["boot"] == "1"]
        assert clock["before"] < clock["set_to"]
