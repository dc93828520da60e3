"""The guest agent as the lab uses it: programs, files, clock, and a channel that dies."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import pytest

from images.contract import Contract
from images.test_kernel.build import MIB, build_image
from lab.backend import AgentError
from lab.signals import MachineCrashed, MachineRestarted, SignalKind, StaleHandleError
from tests.integration.machine.conftest import Rig, RigFactory, behind
from tests.support.sensor import SENSOR_PATH
from tests.support.waiting import wait_for

SYSTEM32 = r"C:\Windows\System32"
SC, REG, DRIVERQUERY = (rf"{SYSTEM32}\{name}.exe" for name in ("sc", "reg", "driverquery"))
TEMPORARY = r"C:\Windows\Temp"


def start_endless_driver(rig: Rig, driver: bytes) -> None:
    """Makes a service of a driver that never returns from its entry; it is not started yet."""
    guest = rig.machine.guest
    guest.write_file(SENSOR_PATH, driver)
    created = guest.run(SC, ["create", "endless", "type=", "kernel", "binPath=", SENSOR_PATH])
    assert created.exit_code == 0, created


def test_programs_files_and_clock(rig: Rig) -> None:
    guest = rig.machine.guest
    assert guest.answers()
    key = r"HKLM\SOFTWARE\Bugcheck Lab"
    added = guest.run(REG, ["add", key, "/v", "Text", "/d", 'two "words"', "/f"])
    assert (added.state, added.exit_code) == ("ended", 0)
    assert "completed successfully" in added.output
    missing = guest.run(REG, ["query", key, "/v", "Colour"])
    assert missing.exit_code == 1
    assert "unable to find" in missing.errors
    assert str(missing).startswith(f"`{REG} query {key} /v Colour` ended with 1: ERROR")

    content = bytes(number * 7 % 251 for number in range(150_000))
    guest.write_file(rf"{TEMPORARY}\many chunks.data", content)
    assert guest.read_file(rf"{TEMPORARY}\many chunks.data") == content
    guest.write_file(rf"{TEMPORARY}\many chunks.data", b"")
    assert guest.read_file(rf"{TEMPORARY}\many chunks.data") == b""

    wanted = guest.time() + timedelta(days=30)
    guest.set_time(wanted)
    assert timedelta(0) <= guest.time() - wanted < timedelta(seconds=60)


def test_what_is_not_there(rig: Rig) -> None:
    guest = rig.machine.guest
    with pytest.raises(FileNotFoundError, match=r"missing\.txt"):
        guest.read_file(rf"{TEMPORARY}\missing.txt")
    with pytest.raises(FileNotFoundError, match="cannot find the path"):
        guest.read_file(r"C:\No\Such\Folder\file.txt")
    with pytest.raises(AgentError, match="Access is denied"):
        guest.read_file(r"C:\Windows")
    with pytest.raises(AgentError, match="cannot find the path"):
        guest.write_file(r"C:\No\Such\Folder\file.txt", b"x")
    with pytest.raises(AgentError, match="cannot find the file"):
        guest.run(rf"{SYSTEM32}\notepad.exe")
    assert guest.answers()


@pytest.mark.parametrize(
    "words",
    [
        "failed to open file 'X' (mode: 'rb'): No such file or directory",
        "failed to open file 'X': The system cannot find the file specified.",
    ],
)
def test_words_of_other_agents_for_a_missing_file(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    """QEMU's own agents say it with strerror's words or with Windows'; a real one says ours."""

    def refuse(command: str, arguments: object, deadline: float) -> object:
        raise AgentError(words)

    monkeypatch.setattr(rig.backend, "agent", refuse)
    with pytest.raises(FileNotFoundError, match=r"missing\.txt: failed to open file"):
        rig.machine.guest.read_file(rf"{TEMPORARY}\missing.txt")
    with pytest.raises(AgentError):
        rig.machine.guest.write_file(rf"{TEMPORARY}\missing.txt", b"")


def test_a_handle_is_closed_after_an_error(rig_of: RigFactory, lab_folder: Path) -> None:
    full = build_image(lab_folder / "full.qcow2", pagefile_bytes=509 * MIB)
    machine = rig_of(full).machine

    def next_handle() -> object:
        path: dict[str, object] = {"path": r"C:\Windows\bootstat.dat"}
        handle = machine.agent("guest-file-open", path, boot=machine.boot)
        machine.agent("guest-file-close", {"handle": handle}, boot=machine.boot)
        return handle

    before = next_handle()
    with pytest.raises(AgentError, match="not enough space"):
        machine.guest.write_file(rf"{TEMPORARY}\large.bin", bytes(2 * MIB))
    assert next_handle() == before, "the agent gives out its first free handle"


def test_program_that_does_not_end(rig: Rig, endless_driver: bytes) -> None:
    start_endless_driver(rig, endless_driver)
    guest = rig.machine.guest
    began = time.monotonic()
    result = guest.run(SC, ["start", "endless"], deadline=1.0)
    assert (result.state, result.exit_code) == ("running", None)
    assert 1.0 <= result.seconds <= time.monotonic() - began
    assert f"`{SC} start endless`: running after" in str(result)
    assert guest.answers()


def test_crash_under_a_command_is_raised_at_once(
    rig: Rig, endless_driver: bytes, contract: Contract
) -> None:
    start_endless_driver(rig, endless_driver)
    guest = rig.machine.guest
    with behind(lambda: guest.run(SC, ["start", "endless"])) as command:
        wait_for("the command to run", lambda: endless_runs(rig), contract.deadlines.command)
        rig.machine.nmi()
        with pytest.raises(MachineCrashed):
            command.result()
    (crash,) = rig.machine.signals.of(SignalKind.BUG_CHECK)
    assert time.monotonic() - crash.monotonic < contract.deadlines.agent_reply / 2
    with pytest.raises(MachineCrashed):
        guest.read_file(SENSOR_PATH)


def endless_runs(rig: Rig) -> bool:
    """Whether the agent keeps a second program waiting: the first has begun."""
    return rig.machine.guest.run(DRIVERQUERY, deadline=0.5).state == "running"


def test_channel_that_dies_with_an_announced_end(
    rig: Rig, endless_driver: bytes, contract: Contract
) -> None:
    start_endless_driver(rig, endless_driver)
    guest = rig.machine.guest
    with behind(lambda: guest.run(SC, ["start", "endless"])) as command:
        wait_for("the command to run", lambda: endless_runs(rig), contract.deadlines.command)
        rig.machine.power_off()
        result = command.result()
    assert (result.state, result.exit_code) == ("unknown", None)
    assert f"`{SC} start endless`: unknown after" in str(result)


def test_channel_that_dies_with_a_restart_nobody_announced(
    rig: Rig, endless_driver: bytes, contract: Contract
) -> None:
    start_endless_driver(rig, endless_driver)
    guest = rig.machine.guest
    with behind(lambda: guest.run(SC, ["start", "endless"])) as command:
        wait_for("the command to run", lambda: endless_runs(rig), contract.deadlines.command)
        rig.backend.press_power_button()
        with pytest.raises(MachineRestarted, match="nobody announced it"):
            command.result()


def test_a_handle_belongs_to_its_boot(rig: Rig) -> None:
    old = rig.machine.guest
    rig.machine.shut_down()
    rig.machine.start()
    rig.machine.wait_for_agent()
    assert rig.machine.guest.answers()
    with pytest.raises(StaleHandleError, match="boot 1, and the machine is in boot 2"):
        old.answers()
