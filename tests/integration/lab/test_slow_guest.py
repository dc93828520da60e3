"""Deadlines come from the contract: a guest fifty times slower tells the same story."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lab.outcome import Outcome
from tests.support.labs import CONTRACT, make_candidate, make_lab
from tests.support.slow import slowed_machines

TIMES = 50
DEADLINE = r"^(boot_to_agent|agent_reply|command|dump_writing|dump_copying|shutdown) = (\d+)"


def slow_contract() -> list[tuple[str, str]]:
    """All deadlines as many times as long, and the slowdown said."""
    text = CONTRACT.read_text()
    changes = [
        (found[0], f"{found[1]} = {int(found[2]) * TIMES}")
        for found in re.finditer(DEADLINE, text, flags=re.M)
    ]
    assert len(changes) == 6
    return [*changes, ("[deadlines]\n", f"[deadlines]\nslowdown = {TIMES}\n")]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_story_of_a_guest_fifty_times_slower(folder: Path) -> None:
    lab = make_lab(folder, contract=slow_contract())
    candidate = make_candidate(folder, changes={"settle_seconds = 4": "settle_seconds = 2"})
    with slowed_machines(folder, TIMES):
        done = lab.lab(
            "run", "--candidate", candidate,
            f"--content={candidate.parent / 'content/benign'}",
            f"--content={candidate.parent / 'content/killer'}",
            exit_code=1, timeout=1700,
        )  # fmt: skip
    record = lab.record()
    assert [one.outcome for one in record.outcomes] == [
        Outcome.PASSED,
        Outcome.CRASHED,
        Outcome.BOOT_LOOPING,
    ], done.stdout
    assert record.recovered is True
    assert [crash.bug_check for crash in record.crashes] == ["0x50", "0x50"]
    assert {crash.bucket for crash in record.crashes} == {"AV_R_INVALID_sensor!MatchField"}
    assert all(evidence["no_dump"] is None for evidence in lab.evidence())
