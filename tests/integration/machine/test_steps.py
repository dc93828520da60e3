"""A candidate's steps on a machine: what goes well, and each way in which it does not."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from images.contract import Contract
from images.test_kernel.build import build_image
from images.test_kernel.registry import Settings
from lab.backend import AgentSilent
from lab.candidate import Candidate, load_content
from lab.identity import check_gone, check_identity
from lab.outcome import CandidateError, LabError, Outcome
from lab.signals import MachineCrashed, SignalKind
from lab.steps import StepFailed, StepHung, Steps, StepUnknown
from tests.integration.machine.conftest import (
    CandidateMaker,
    Rig,
    RigFactory,
    behind,
    patched_entry,
)
from tests.support.sensor import (
    CONTENT_FOLDER,
    SENSOR,
    SENSOR_PATH,
    built,
    content_files,
    sensor_driver,
)
from tests.support.waiting import wait_for

SC = r"C:\Windows\System32\sc.exe"
REG = r"C:\Windows\System32\reg.exe"
START = f'run = [\'{SC}\', "start", "sensor"]'
"""The step of the sc shape that loads the driver."""


def endless(candidates: CandidateMaker, *changes: tuple[str, str]) -> Candidate:
    """The sc shape with a driver whose entry never returns."""
    return candidates.make("candidate-sc.toml", *changes, driver=patched_entry(b"\xeb\xfe"))


def with_deadlines(rig: Rig, **seconds: float) -> None:
    """Other deadlines for the machine than its image's contract has."""
    contract = rig.machine.image.contract
    deadlines = contract.deadlines.model_copy(update=seconds)
    object.__setattr__(
        rig.machine.image, "contract", contract.model_copy(update={"deadlines": deadlines})
    )


# Shapes


def test_inf_is_installed_updated_rolled_back_and_gone(
    rig: Rig, inf_candidate: Candidate, candidates: CandidateMaker
) -> None:
    steps = rig.steps(inf_candidate)
    (installed,) = steps.install()
    assert "Driver package added successfully" in installed.output
    assert rig.machine.boot == 2  # restart = "always"
    (running,) = steps.verify()
    assert "RUNNING" in running.output
    benign = inf_candidate.default_content()
    check_identity(rig.machine, inf_candidate, benign)

    newer = candidates.make("candidate.toml", driver=(built("b-o2") / "sensor.sys").read_bytes())
    (updated,) = rig.steps(newer).update()
    assert updated.exit_code == 3010  # the old one runs
    assert rig.machine.boot == 3
    check_identity(rig.machine, newer, benign)

    (rolled_back,) = steps.roll_back()
    assert rolled_back.exit_code == 3010
    check_identity(rig.machine, inf_candidate, benign)

    assert [result.exit_code for result in steps.uninstall()] == [0, 0]
    assert rf"{SENSOR_PATH}: deleted" in rig.notes
    check_gone(rig.machine, inf_candidate)
    assert rig.machine.guest.run(SC, ["query", "sensor"]).exit_code == 1060
    steps.install()  # again, as the first time
    check_identity(rig.machine, inf_candidate, benign)
    restarts = [signal.boot for signal in rig.machine.signals.of(SignalKind.RESTART)]
    assert restarts == [1, 2, 3, 5]  # 4 was shut down for the offline step


def test_sc_is_installed_and_gone(rig: Rig, sc_candidate: Candidate) -> None:
    steps = rig.steps(sc_candidate)
    assert [result.exit_code for result in steps.install()] == [0, 0]
    assert rig.machine.boot == 1  # no restart was asked for
    steps.verify()
    check_identity(rig.machine, sc_candidate, None)
    steps.uninstall()
    check_gone(rig.machine, sc_candidate)
    with pytest.raises(CandidateError, match=r"has no \[\[update\]\] steps"):
        steps.update()
    with pytest.raises(CandidateError, match=r"has no \[content\]"):
        steps.put_content(load_content(SENSOR / "content/benign"))


def test_notes_tell_what_was_done(rig: Rig, sc_candidate: Candidate) -> None:
    steps = rig.installed(sc_candidate)
    steps.restart("for a look")
    size = sc_candidate.image.stat().st_size
    notes = rig.notes
    assert notes[0] == f"copying sensor.sys to {SENSOR_PATH} ({size} bytes)"
    assert notes[1].startswith(f"install step 1 of 2: `{SC} create sensor type= kernel")
    assert "ended with 0: [SC] CreateService SUCCESS" in notes[2]
    assert notes[-2:] == ["restarting one for a look", "one is up again: boot 2"]


# Steps that go wrong


def test_step_that_fails(rig: Rig, candidates: CandidateMaker) -> None:
    candidate = candidates.make("candidate-sc.toml", (START, START.replace("sensor", "nobody")))
    with pytest.raises(StepFailed) as error:
        rig.steps(candidate).install()
    assert error.value.outcome is Outcome.FAILED
    said = str(error.value)
    assert said.startswith("install step 2 of 2: expected exit code 0 or 3010; ")
    assert "start nobody` ended with 1060" in said
    assert "The specified service does not exist" in said


def test_other_exit_codes_are_success_where_a_step_says_so(
    rig: Rig, candidates: CandidateMaker
) -> None:
    candidate = candidates.make(
        "candidate-sc.toml", (START, START.replace("sensor", "nobody") + "\nsuccess = [0, 1060]")
    )
    results = rig.steps(candidate).install()
    assert [result.exit_code for result in results] == [0, 1060]


@pytest.mark.parametrize(("restart", "boots"), [("always", 2), ("if-asked", 2), ("never", 1)])
def test_code_that_asks_for_a_restart(
    rig: Rig, candidates: CandidateMaker, restart: str, boots: int
) -> None:
    asks = START.replace("sensor", "nobody") + f'\nreboot = [1060]\nrestart = "{restart}"'
    results = rig.steps(candidates.make("candidate-sc.toml", (START, asks))).install()
    assert [result.exit_code for result in results] == [0, 1060]
    assert rig.machine.boot == boots


def test_program_that_is_not_there(rig: Rig, candidates: CandidateMaker) -> None:
    missing = START.replace("sc.exe", "setup.exe")
    with pytest.raises(
        StepFailed, match=r"setup\.exe start sensor` could not be started: .*cannot"
    ):
        rig.steps(candidates.make("candidate-sc.toml", (START, missing))).install()


def test_folder_that_is_not_there(rig: Rig, candidates: CandidateMaker) -> None:
    candidate = candidates.make(
        "candidate-sc.toml", (r"target = 'C:\Windows\System32\drivers", r"target = 'C:\No\Such")
    )
    with pytest.raises(StepFailed, match=r"copying sensor\.sys to C:\\No\\Such\\sensor\.sys: "):
        rig.steps(candidate).install()


def test_driver_with_a_missing_import(rig: Rig, candidates: CandidateMaker) -> None:
    wanted, missing = b"PsTerminateSystemThread\0", b"PsTerminateSystemTheatr\0"
    data = (built("a-o2") / "sensor.sys").read_bytes()
    assert data.count(wanted) == 1
    candidate = candidates.make("candidate-sc.toml", driver=data.replace(wanted, missing))
    with pytest.raises(StepFailed, match="PsTerminateSystemTheatr") as error:
        rig.steps(candidate).install()
    assert "ended with 127" in str(error.value)
    assert "The specified procedure could not be found" in str(error.value)


def test_step_that_hangs(rig: Rig, candidates: CandidateMaker) -> None:
    candidate = endless(candidates, (START, START + "\nseconds = 1"))
    began = time.monotonic()
    with pytest.raises(StepHung) as error:
        rig.steps(candidate).install()
    assert error.value.outcome is Outcome.HUNG
    assert "install step 2 of 2 did not end within 1 s" in str(error.value)
    assert 1 <= time.monotonic() - began < 30


def test_time_of_a_step_is_for_a_usual_machine(rig: Rig, candidates: CandidateMaker) -> None:
    with_deadlines(rig, slowdown=3.0)
    with pytest.raises(StepHung, match="did not end within 3 s"):
        rig.steps(endless(candidates, (START, START + "\nseconds = 1"))).install()


def test_step_under_which_the_machine_crashes(rig: Rig, candidates: CandidateMaker) -> None:
    """The driver's entry executes an undefined instruction."""
    candidate = candidates.make("candidate-sc.toml", driver=patched_entry(b"\x0f\x0b"))
    with pytest.raises(MachineCrashed):
        rig.steps(candidate).install()
    assert rig.machine.crash_signalled(boot=1)


def in_second_step(rig: Rig) -> bool:
    """Whether the notes say that the endless step was started, and it has begun."""
    return any(note.startswith("install step 2") for note in rig.notes) and (
        rig.machine.guest.run(REG, ["query", r"HKLM\SOFTWARE"], deadline=0.5).state == "running"
    )


def test_step_that_restarts_the_machine_itself(
    rig: Rig, candidates: CandidateMaker, contract: Contract
) -> None:
    """A step that lists 1641 may: the restart is announced, whether or not its code is heard."""
    candidate = endless(candidates, (START, START + "\nreboot = [1641]"))
    with behind(rig.steps(candidate).install) as install:
        wait_for("the step to run", lambda: in_second_step(rig), contract.deadlines.command)
        rig.backend.press_power_button()  # what no program of the guest does by itself
        results = install.result()
    assert [result.state for result in results] == ["ended", "unknown"]
    assert rig.machine.boot == 2
    assert rig.machine.guest.answers()


def test_announced_restart_that_does_not_come_is_taken_back(
    rig: Rig, candidates: CandidateMaker, contract: Contract
) -> None:
    candidate = candidates.make("candidate-sc.toml", (START, START + "\nreboot = [1641]"))
    rig.installed(candidate)
    assert rig.machine.boot == 1
    guest = rig.machine.guest
    rig.backend.press_power_button()
    with pytest.raises(LabError, match="nobody announced it"):
        rig.machine.signals.wait(
            "the end", lambda: False, contract.deadlines.shutdown, boot=guest.boot
        )


class LossyAgent:
    """The machine's own agent, of which some answers get lost: carried out, and nobody hears it."""

    def __init__(self, rig: Rig, lost: set[str]) -> None:
        self.lost = lost
        self.sent: list[str] = []
        self._agent = rig.backend.agent
        rig.backend.agent = self.agent  # type: ignore[method-assign]

    def agent(self, command: str, arguments: dict[str, Any], deadline: float) -> Any:
        self.sent.append(command)
        answer = self._agent(command, arguments, deadline)
        if command in self.lost:
            raise AgentSilent(f"{command}: the answer was lost")
        return answer


def test_command_whose_answer_is_lost_is_unknown_and_not_repeated(
    rig: Rig, sc_candidate: Candidate
) -> None:
    agent = LossyAgent(rig, {"guest-exec"})
    with pytest.raises(StepUnknown) as error:
        rig.steps(sc_candidate).install()
    assert error.value.outcome is Outcome.INFRASTRUCTURE
    assert "install step 1 of 2: the agent's channel died" in str(error.value)
    assert "it is not repeated" in str(error.value)
    assert agent.sent.count("guest-exec") == 1
    agent.lost.clear()
    # It was carried out: this is why it must not be repeated.
    wait_for(
        "the service", lambda: rig.machine.guest.run(SC, ["query", "sensor"]).exit_code == 0, 10
    )


def test_machine_that_no_longer_answers_hangs(rig: Rig, sc_candidate: Candidate) -> None:
    LossyAgent(rig, {"guest-exec", "guest-ping"})
    with_deadlines(rig, agent_reply=1.0)
    with pytest.raises(
        StepHung, match="one no longer answers: silent under install step 1"
    ) as error:
        rig.steps(sc_candidate).install()
    assert error.value.outcome is Outcome.HUNG


def test_copy_whose_answer_is_lost(rig: Rig, sc_candidate: Candidate) -> None:
    LossyAgent(rig, {"guest-file-write"})
    with pytest.raises(AgentSilent):
        rig.steps(sc_candidate).install()


# Secrets


def test_secrets_are_used_and_shown_nowhere(rig: Rig, candidates: CandidateMaker) -> None:
    value = "correct horse"
    key = r"HKLM\SOFTWARE\Bugcheck Lab"
    writes = f"""run = ['{REG}', "add", '{key}', "/v", "Token", "/d", "x${{secret:TOKEN}}", "/f"]

[[install]]
run = ['{REG}', "query", '{key}', "/v", "Token"]

[[install]]
run = ['{REG}', "query", '{key}', "/v", "${{secret:TOKEN}}"]"""
    candidate = candidates.make(
        "candidate-sc.toml", (START, writes), ("schema = 1", 'schema = 1\nsecrets = ["TOKEN"]')
    )
    notes: list[str] = []
    with pytest.raises(LabError, match="uses secret 'TOKEN', and nobody"):
        Steps(rig.machine, candidate, note=notes.append)
    asked: list[str] = []

    def secret(name: str) -> SecretStr:
        asked.append(name)
        return SecretStr(value)

    with pytest.raises(StepFailed) as error:  # no value has the secret's name
        Steps(rig.machine, candidate, note=notes.append, secret=secret).install()
    assert asked == ["TOKEN"]
    shown = rig.machine.guest.run(REG, ["query", key, "/v", "Token"]).output
    assert f"x{value}" in shown
    # A step that says what another was given is masked, too.
    assert any("Token    REG_SZ    x${secret:TOKEN}" in note for note in notes)
    for said in (*notes, str(error.value), str(error.value.__context__)):
        assert value not in said


# Content


def test_content_is_taken_in_live(rig: Rig, inf_candidate: Candidate) -> None:
    steps = rig.installed(inf_candidate)
    began = time.monotonic()
    newer = load_content(SENSOR / "content/wrong_magic")  # it is refused, which is no crash
    steps.put_content(newer)
    assert inf_candidate.content is not None
    assert time.monotonic() - began >= inf_candidate.content.settle_seconds
    assert rig.machine.boot == 2
    assert rig.notes[-1] == "wrong_magic is taken in"
    name = newer.files[0].name
    assert (
        rig.machine.guest.read_file(rf"{CONTENT_FOLDER}\{name}") == newer.files[0].path.read_bytes()
    )
    steps.remove_content()
    assert rig.machine.boot == 3
    with pytest.raises(FileNotFoundError):
        rig.machine.guest.read_file(rf"{CONTENT_FOLDER}\{name}")
    steps.verify()


@pytest.mark.parametrize("name", ["killer", "freed", "exception"])
def test_crash_while_content_settles_is_raised_at_once(
    rig: Rig, inf_candidate: Candidate, name: str
) -> None:
    steps = rig.installed(inf_candidate)
    with pytest.raises(MachineCrashed):
        steps.put_content(load_content(SENSOR / "content" / name))
    (crash,) = rig.machine.signals.crashes()
    assert time.monotonic() - crash.monotonic < 2
    assert crash.boot == 2
    assert f"{name} is taken in" not in rig.notes


def test_content_for_the_next_boot(rig: Rig, candidates: CandidateMaker) -> None:
    candidate = candidates.make("candidate.toml", ('"live"', '"next-boot"'))
    steps = rig.installed(candidate)
    steps.put_content(load_content(SENSOR / "content/benign"))
    assert rig.machine.boot == 3
    assert "restarting one to take in benign" in rig.notes


def test_killer_at_the_next_boot(rig: Rig, candidates: CandidateMaker) -> None:
    """The sensor takes it in while it runs, too: it crashes before or after the restart."""
    candidate = candidates.make("candidate.toml", ('"live"', '"next-boot"'))
    steps = rig.installed(candidate)
    with pytest.raises(MachineCrashed):
        steps.put_content(load_content(SENSOR / "content/killer"))


def test_probe_that_never_holds(rig: Rig, candidates: CandidateMaker) -> None:
    candidate = candidates.make("candidate.toml", ("4\\s+RUNNING", "9\\s+DANCING"))
    steps = rig.installed(candidate)
    with pytest.raises(StepFailed, match="probe 'the sensor runs': expected output with 'STATE"):
        steps.verify()
    with pytest.raises(StepFailed, match="probe 'the sensor runs'"):
        steps.put_content(load_content(SENSOR / "content/benign"))
    assert sum("not yet: probe" in note for note in rig.notes) == 1


def test_content_that_hangs_the_machine(
    rig_of: RigFactory, lab_folder: Path, inf_candidate: Candidate
) -> None:
    """No watchdog ends it: nobody answers any more, and there is no bug check."""
    disk = build_image(
        lab_folder / "no-watchdog.qcow2",
        drivers=[sensor_driver("a-o2")],
        files=content_files("benign"),
        settings=Settings(dpc_timeout_milliseconds=0),
    )
    rig = rig_of(disk)
    with_deadlines(rig, agent_reply=2.0)
    with pytest.raises(StepHung, match="one no longer answers: silent under probe"):
        rig.steps(inf_candidate).put_content(load_content(SENSOR / "content/hang"))
    assert not rig.machine.crash_signalled()
