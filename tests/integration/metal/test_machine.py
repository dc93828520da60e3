"""A physical machine in a box: crashes and hangs end with the dump on this host, or a reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab.backend import BackendError
from lab.guest.base import GuestFileNotFoundError
from lab.outcome import HungError, Outcome
from lab.run import Run
from lab.signals import MachineCrashed, SignalKind
from tests.integration.machine.conftest import behind
from tests.integration.metal.box import Box
from tests.support.labs import COMMAND_DEADLINE, crash_by_nmi, run_in
from tests.support.sensor import content_files
from tests.support.waiting import wait_for

SC = r"C:\Windows\System32\sc.exe"
REG = r"C:\Windows\System32\reg.exe"


def rungs(evidence: dict[str, Any]) -> dict[str, str]:
    return {rung["name"]: rung["result"] for rung in evidence["rungs"]}


def report_of(box: Box, evidence: dict[str, Any]) -> dict[str, Any]:
    folder = box.lab.runs[-1] / "evidence" / evidence["folder"]
    assert (folder / "report.json").exists(), json.dumps(evidence, indent=1)
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


@contextmanager
def booted(box: Box) -> Iterator[Run]:
    with run_in(box.lab) as run:
        run.boot()
        yield run


def load_content(run: Run, name: str) -> None:
    """Starts the sensor and puts content on; the machine may go down before the file is closed."""
    guest = run.machine.guest
    assert guest.run(SC, ["start", "sensor"]).exit_code == 0
    try:
        for path, file in content_files(name).items():
            guest.write_file(path, file.read_bytes())
    except (BackendError, MachineCrashed):
        assert not guest.answers()


def test_the_dump_of_a_crash_is_copied_by_the_windows_that_comes_up(box: Box) -> None:
    with run_in(box.lab) as run:
        crash = crash_by_nmi(run)
        assert crash.signal.source == "console"
        assert run.failed("crash", crash) is Outcome.CRASHED
        machine = run.machine
        assert machine.boot == 2  # nobody held its restart
        assert machine.guest.answers()
        assert machine.unsealed_boot is None
        assert run.record.image_identity.keys() == {"contract"}  # of its disk nobody knows more
    (evidence,) = box.lab.evidence("crash")
    (dump,) = [one for one in evidence["dumps"] if one["file"]]
    assert (dump["path"], dump["status"]) == (r"C:\Windows\MEMORY.DMP", "this boot's")
    assert evidence["crashes"] == 1
    assert evidence["missing"] == []
    assert rungs(evidence)["come up by itself"] == "its agent answers in boot 2"
    assert report_of(box, evidence)["bug_check"]["code"] == 0x80
    assert not box.machines["m1"].domain.is_on()


def test_a_machine_that_nobody_reaches_is_crashed_by_sac(box: Box) -> None:
    """Its network is gone and its kernel is not: the gentlest rung is enough."""
    with booted(box) as run:
        box.machines["m1"].door.unplugged = "until it restarts"
        machine = run.machine
        wait_for("silence", lambda: not machine.guest.answers(), COMMAND_DEADLINE)
        assert run.failed("silence", HungError("its agent is silent")) is Outcome.HUNG
    (evidence,) = box.lab.evidence("hang")
    assert rungs(evidence)["SAC crashdump"] == "it answered with a bug check"
    assert "NMI" not in rungs(evidence)
    assert report_of(box, evidence)["bug_check"]["code"] == 0xE2
    for sign in ("agent was there and is gone", "its power is on", "SAC answered, so its kernel"):
        assert sign in evidence["signs"]
        assert sign in box.lab.record().outcomes[0].reason


@pytest.mark.metal
def test_a_kernel_that_spins_is_crashed_by_nmi(box: Box) -> None:
    with booted(box) as run:
        load_content(run, "hang")
        machine = run.machine
        wait_for("silence", lambda: not machine.guest.answers(), COMMAND_DEADLINE)
        assert run.failed("silence", HungError("its agent is silent")) is Outcome.HUNG
    (evidence,) = box.lab.evidence("hang")
    assert rungs(evidence)["SAC crashdump"].startswith("failed: no SAC>")
    assert rungs(evidence)["NMI"] == "it answered with a bug check"
    assert "SAC did not answer" in evidence["signs"]
    report = report_of(box, evidence)
    assert report["bug_check"]["code"] == 0x80
    assert "sensor" in [frame["module"] for frame in report["stack"]]


@pytest.mark.metal
def test_a_crash_of_the_sensor_names_it(box: Box) -> None:
    with booted(box) as run:
        load_content(run, "killer")
        with pytest.raises(MachineCrashed) as crash:
            run.machine.signals.wait("it", lambda: False, COMMAND_DEADLINE, boot=1)
        assert run.failed("killer", crash.value) is Outcome.CRASHED
        assert run.can_recover()
        assert run.recover()
    (evidence,) = box.lab.evidence("crash")
    assert report_of(box, evidence)["culprit"]["module"] == "sensor"


@pytest.mark.metal
def test_an_announced_restart_is_a_new_boot_and_no_crash(box: Box) -> None:
    with booted(box) as run:
        machine = run.machine
        before = machine.guest
        machine.restart(
            lambda guest: guest.run(r"C:\Windows\System32\shutdown.exe", ["/r", "/t", "0"])
        )
        assert machine.boot == 2
        assert machine.guest.answers()
        assert not machine.signals.crashes()
        with pytest.raises(Exception, match="take machine"):
            before.answers()
        machine.power_off()
        assert not box.machines["m1"].domain.is_on()
        run.boot()
        assert machine.boot == 3


@pytest.mark.metal
def test_it_goes_off_by_itself(box: Box) -> None:
    """The BMC alone can tell that; it is no hang."""
    with booted(box) as run:
        machine = run.machine
        machine.guest.run(r"C:\Windows\System32\shutdown.exe", ["/s", "/t", "0"])
        domain = box.machines["m1"].domain
        wait_for("power-off", lambda: not domain.is_on(), COMMAND_DEADLINE)
        with pytest.raises(BackendError) as silence:
            machine.guest.time()
        assert run.failed("off", silence.value) is Outcome.FAILED
        assert "nobody announced it" in run.record.outcomes[0].reason
        off, *_ = machine.signals.of(SignalKind.POWER_OFF)
        assert "found off" in off.detail
    (evidence,) = box.lab.evidence("restart")
    assert rungs(evidence)["reset"] == "skipped: it is off"
    assert rungs(evidence)["power cycle"] == "its agent answers in boot 2"


@pytest.mark.metal
def test_what_it_lacks_is_said(box: Box, tmp_path: Path) -> None:
    with run_in(box.lab) as run:
        for ask, lacks in (
            (run.machine.screenshot, "screenshot"),
            (run.machine.files, "disk"),
            (run.machine.shut_down, "power-button"),
            (lambda: run.machine.edit([]), "disk"),
        ):
            with pytest.raises(BackendError, match=f"m1 has no {lacks}"):
                ask()
    text = (box.folder / "lab.toml").read_text()
    assert "installed = true" in text
    disk = tmp_path / "base.qcow2"
    disk.write_bytes(b"QFI\xfb")
    wrong = box.folder / "wrong.toml"
    wrong.write_text(text.replace("installed = true", f'disk = "{disk}"'))
    done = box.lab.lab("health", "m1", "--lab", wrong)
    assert done.returncode == 3
    assert "nothing can be written to theirs" in done.stderr


def test_a_command_whose_channel_died_is_unknown_and_never_repeated(box: Box) -> None:
    door = box.machines["m1"].door
    with run_in(box.lab) as run:
        guest = run.boot()
        add = ["add", r"HKLM\SOFTWARE\Marks", "/v", "a & b|c", "/d", 'say "hi" 100%', "/f"]
        assert guest.run(REG, add).exit_code == 0
        shown = guest.run(REG, ["query", r"HKLM\SOFTWARE\Marks"])
        assert 'a & b|c    REG_SZ    say "hi" 100%' in shown.output
        assert guest.run(REG, ["query", r"HKLM\SOFTWARE\None"]).exit_code == 1
        content = bytes(range(256)) * 300
        guest.write_file(r"C:\Windows\Temp\a.bin", content)
        assert guest.read_file(r"C:\Windows\Temp\a.bin") == content
        with pytest.raises(GuestFileNotFoundError):
            guest.read_file(r"C:\Windows\Temp\b.bin")
        assert guest.run(r"C:\Windows\System32\absent.exe").exit_code == 9009  # cmd.exe's own

        door.slowness, door.commands = 60.0, []
        with behind(lambda: guest.run(REG, ["query", r"HKLM\SOFTWARE"])) as running:
            wait_for("the command", lambda: len(door.commands) == 1, COMMAND_DEADLINE)
            door.slowness = 0.0
            door.cut()
            result = running.result()
        assert (result.state, result.exit_code) == ("unknown", None)
        wait_for("SSH again", guest.answers, COMMAND_DEADLINE)
        assert len([one for one in door.commands if "reg.exe" in one]) == 1
        assert run.machine.boot == 1  # the same boot, by its time
        assert len(run.machine.signals.of(SignalKind.AGENT_UP)) == 2
