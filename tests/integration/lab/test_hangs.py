"""Machines that fall silent, or go down without a bug check: evidence, an outcome, and an end."""

from __future__ import annotations

import json
import re
from pathlib import Path

import libvirt
import libvirt_qemu
import pytest

from images.test_kernel.build import BOOT_STATUS_PATH, boot_status
from images.test_kernel.registry import Settings
from lab.outcome import HungError, Outcome
from lab.verdict import Verdict
from tests.support.labs import (
    COMMAND_DEADLINE,
    LiveCommand,
    TestLab,
    machines_of,
    make_lab,
    run_in,
)
from tests.support.sensor import content_files, sensor_driver
from tests.support.waiting import wait_for

SHORT = [
    ("boot_to_agent = 60", "boot_to_agent = 8"),
    ("agent_reply = 20", "agent_reply = 3"),
    ("dump_writing = 120", "dump_writing = 20"),
    ("console_reply = 20", "console_reply = 3"),
]
"""A test waits for these deadlines; a machine that is well needs less."""
NO_WATCHDOG = Settings(dpc_timeout_milliseconds=0)
"""Else the kernel itself finds the loop, with bug check 0x133."""
NO_NMI = ('    "crash-by-nmi",\n', "")
SPINNING = "ScanBurstInstances"


def repair_contract(limit: int) -> tuple[str, str]:
    return "repair_after_failed_boots = 0", f"repair_after_failed_boots = {limit}"


def rungs(evidence: dict[str, object]) -> dict[str, str]:
    listed = evidence["rungs"]
    assert isinstance(listed, list)
    return {rung["name"]: rung["result"] for rung in listed}


def test_a_hung_machine_is_made_to_dump_by_nmi(folder: Path, sensor_file: Path) -> None:
    lab = make_lab(folder, settings=NO_WATCHDOG, contract=SHORT)
    lab.run(sensor_file, "benign", "hang", exit_code=Verdict.HOLD.exit_code)
    record = lab.record()
    assert [one.outcome for one in record.outcomes] == [Outcome.PASSED, Outcome.HUNG]
    assert "silent" in record.outcomes[1].reason
    first = lab.evidence("hang")[0]
    assert rungs(first)["SAC crashdump"].startswith("failed")
    assert rungs(first)["NMI"] == "it answered with a bug check"
    assert "its agent is connected and silent; its console has been silent" in first["signs"]
    assert record.crashes[0].bug_check == "0x80"
    report = json.loads((lab.runs[-1] / record.crashes[0].evidence / "report.json").read_text())
    # Nothing was at fault at that instruction: a culprit, if any, is a guess and says so.
    assert report["culprit"]["confidence"] != "high"
    assert SPINNING in json.dumps(report)
    assert record.recovered is True  # without the content, by the recovery edits
    assert record.edits


def test_a_hung_machine_without_nmi_is_dumped_from_outside(folder: Path) -> None:
    lab = make_lab(
        folder,
        settings=NO_WATCHDOG,
        contract=[*SHORT, NO_NMI],
        drivers=[sensor_driver("a-o2")],
        files=content_files("benign"),
    )
    with run_in(lab) as run:
        guest = run.boot()
        for path, file in content_files("hang").items():
            guest.write_file(path, file.read_bytes())
        wait_for("silence", lambda: not guest.answers(), COMMAND_DEADLINE)
        assert run.failed("hang", HungError("the agent is silent")) is Outcome.HUNG
    (evidence,) = lab.evidence("hang")
    assert rungs(evidence)["NMI"].startswith("skipped: the image does not promise")
    assert rungs(evidence)["SAC crashdump"].startswith("failed: no SAC>")  # a loop at high level
    (dump,) = [one for one in evidence["dumps"] if one["file"]]
    assert (dump["path"], dump["status"]) == ("hypervisor", "this boot's")
    report = json.loads(
        (lab.runs[-1] / "evidence" / evidence["folder"] / "report.json").read_text()
    )
    assert "sensor" in [frame["module"] for frame in report["stack"]]


def test_an_agent_that_never_answers(folder: Path, sensor_file: Path) -> None:
    """The image waits at its repair screen from the first boot on; no candidate is to blame."""
    limit = 3
    lab = make_lab(
        folder,
        contract=[*SHORT, repair_contract(limit)],
        files={BOOT_STATUS_PATH: boot_status(limit, failed_boots=limit)},
    )
    done = lab.run(sensor_file, "benign", exit_code=Verdict.INCONCLUSIVE.exit_code)
    assert re.search("no answer from the agent within 8 s of boot 1", done.stdout)
    record = lab.record()
    (outcome,) = record.outcomes
    assert (outcome.what, outcome.outcome) == ("boot", Outcome.INFRASTRUCTURE)
    assert outcome.reason.startswith("hung before the candidate was on it: ")
    (evidence,) = lab.evidence("hang")
    assert rungs(evidence)["SAC crashdump"] == "it answered with a bug check"  # its kernel runs
    assert (lab.runs[-1] / record.crashes[0].evidence / "screen.png").exists()
    assert record.recovered is None


def test_a_repair_screen_ends_the_recovery(folder: Path, sensor_file: Path) -> None:
    """After its crashes the machine waits at its repair screen; nobody waits with it for ever."""
    limit = 1
    lab = make_lab(folder, contract=[*SHORT, repair_contract(limit)], failed_boot_limit=limit)
    lab.run(sensor_file, "benign", "killer", exit_code=Verdict.HOLD.exit_code)
    record = lab.record()
    assert Outcome.CRASHED in [one.outcome for one in record.outcomes]
    assert record.recovered is False
    assert lab.evidence("hang")
    assert not list(lab.runs[-1].glob("disk.qcow2*"))


@pytest.mark.parametrize("how", ["/r", "/s"])
def test_a_restart_behind_the_labs_back(folder: Path, sensor_file: Path, how: str) -> None:
    lab = make_lab(folder)
    with LiveCommand(lab.run_command(sensor_file, "benign", "benign")) as run:
        run.wait_for("watching benign")
        ask_agent(lab, "guest-exec", path=r"C:\Windows\System32\shutdown.exe", arg=[how, "/t", "0"])
        assert run.end() == Verdict.HOLD.exit_code
    record = lab.record()
    assert [one.outcome for one in record.outcomes] == [Outcome.PASSED, Outcome.FAILED]
    assert "nobody announced it" in record.outcomes[1].reason
    assert record.crashes[0].bug_check is None
    assert lab.evidence("restart")
    assert record.recovered is True
    assert machines_of(folder) == []


def ask_agent(lab: TestLab, command: str, **arguments: object) -> None:
    """An agent command that the lab knows nothing of."""
    name, _, uri = str(lab.record().machine["address"]).partition(" on ")
    connection = libvirt.open(uri)
    request = json.dumps({"execute": command, "arguments": arguments})
    libvirt_qemu.qemuAgentCommand(connection.lookupByName(name), request, 20, 0)
    connection.close()
