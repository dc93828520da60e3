"""SAC on a machine's console: commands, channels, any state to begin from, the end of a boot."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from images.contract import Contract
from images.test_kernel.build import build_image
from images.test_kernel.registry import Settings
from lab.backend import BackendError
from lab.console.sac import Sac, SacAfterBugCheck, SacUnreachable
from lab.console.sac_answers import SacError
from lab.leases import LeaseLost
from lab.signals import MachineCrashed, SignalKind
from tests.integration.machine.conftest import Rig, RigFactory, behind

USER, PASSWORD = Settings().user, SecretStr(Settings().password)


@pytest.fixture
def sac(rig: Rig) -> Sac:
    """SAC of a running machine."""
    return rig.machine.sac()


def test_it_tells_of_the_machine(sac: Sac, contract: Contract) -> None:
    assert {"ch", "cmd", "i", "id", "t", "crashdump", "restart", "shutdown"} <= set(sac.help())
    identity = sac.identity()
    assert Settings().computer_name in identity.labels.values()
    assert identity.build_guess == contract.os.build
    assert identity.up_for_guess is not None
    assert timedelta() <= identity.up_for_guess < timedelta(minutes=10)
    assert sac.addresses() == []  # it has no network
    processes = sac.processes()
    assert processes.having("System") == processes.having(4)
    number, threads, name = processes.having("System")[0]
    assert (number, name) == (4, "System")
    assert isinstance(threads, int)
    assert threads > 2
    for program in ("smss.exe", "csrss.exe", "services.exe"):
        assert len(processes.having(program)) == 1, program


def test_a_command_prompt_runs_programs_without_agent_or_network(sac: Sac) -> None:
    with sac.command_prompt() as prompt:
        assert prompt.channel.name == "Cmd0001"
        prompt.log_in(USER, PASSWORD)
        missing = prompt.run("sc query nosuch")
        assert missing.exit_code == 1060
        assert "does not exist as an installed service" in missing.output
        drivers = prompt.run("driverquery /v /fo csv")
        assert drivers.exit_code == 0
        assert '"ntoskrnl"' in drivers.output
    assert [channel.name for channel in sac.channels()] == ["SAC"]


def test_wrong_password(sac: Sac) -> None:
    prompt = sac.command_prompt()
    with pytest.raises(SacError, match=r"user 'Administrator' could not log in"):
        prompt.log_in(USER, SecretStr("wrong"))
    prompt.log_in(USER, PASSWORD)
    assert prompt.run("sc query nosuch").exit_code == 1060


def test_channels_of_others_stay_open_and_there_is_an_end_of_them(sac: Sac) -> None:
    opened = [sac.command_prompt().channel for _ in range(9)]
    assert [channel.number for channel in opened] == list(range(1, 10))
    with pytest.raises(SacError, match="SAC opened no command prompt"):
        sac.command_prompt()
    sac.close_channel(opened[4])
    assert sac.command_prompt().channel == opened[4]


HALF_TYPED = {
    "prompt": b"",
    "half a command": b"restar",
    "a command without Enter": b"restart",
    "escape": b"\x1b",
    "channel offered": b"ch -si 1\r",
    "login": b"ch -si 1\r\r",
    "half a name": b"ch -si 1\r\rAdminis",
    "half a command in a prompt": b"ch -si 1\r\rAdministrator\r\rbugcheck-lab\rshutdown /r /t 0",
    "amid output": b"t\rt\rt\rt\r",
    "switching": b"\x1b\t\x1b\t\x1b\t",
}


def test_any_state_to_begin_from(rig: Rig) -> None:
    machine = rig.machine
    machine.sac().command_prompt()  # somebody left a channel open
    for state, typed in HALF_TYPED.items():
        machine.type_on_console(typed)
        labels = machine.sac().identity().labels
        assert Settings().computer_name in labels.values(), state
        assert not machine.signals.of(SignalKind.RESTART), state


def test_an_event_in_the_middle_of_an_answer_ends_none(rig: Rig) -> None:
    sac = rig.machine.sac()
    sac.sync()
    # `cmd` prints an event with a prompt of its own before SAC is done with it.
    assert "successfully launched" in sac.command("cmd")
    assert [channel.name for channel in sac.channels()] == ["SAC", "Cmd0001"]


def test_crashdump_stops_a_machine_whose_dump_is_written(rig: Rig) -> None:
    machine = rig.machine
    machine.sac().crashdump()
    crash = machine.signals.wait(
        "the bug check", machine.signals.crashes, machine.contract.deadlines.dump_writing
    )
    assert crash[0].kind is SignalKind.BUG_CHECK
    machine.signals.wait(
        "the end of the dump",
        lambda: machine.signals.of(SignalKind.RESTART),
        machine.contract.deadlines.dump_writing,
    )
    assert machine.told_on_console(machine.boot) == 0xE2
    said = machine.console_bytes(machine.boot)
    assert said.index(b"<BP>") < said.index(b"!SAC>") < said.index(b"MANUALLY_INITIATED_CRASH")


def test_a_restart_that_is_announced(rig: Rig) -> None:
    machine = rig.machine
    sac = machine.sac()
    machine.restart(lambda _: sac.restart())
    assert machine.boot == 2
    up_for = machine.sac().identity().up_for_guess
    assert up_for is not None
    assert up_for < timedelta(minutes=5)


def test_shutdown(rig: Rig) -> None:
    machine = rig.machine
    machine.signals.announce_restart()
    machine.sac().shutdown()
    machine.signals.wait(
        "power off",
        lambda: machine.signals.of(SignalKind.POWER_OFF),
        machine.contract.deadlines.shutdown,
    )
    with pytest.raises(BackendError, match="off"):
        machine.type_on_console(b"\r")


def test_the_machine_dies_in_the_middle_of_a_command(rig: Rig) -> None:
    machine = rig.machine
    sac = machine.sac()
    sac.sync()
    watcher = machine.watch_console()

    def ask_for_ever() -> None:
        while True:
            sac.processes()

    def crash_it() -> None:
        watcher.expect(rb"Number  Threads", 20)
        machine.nmi()

    # The hypervisor and the console race to tell.
    with behind(crash_it), pytest.raises((MachineCrashed, SacAfterBugCheck), match="crash"):
        ask_for_ever()


def test_after_a_bug_check_it_says_so_and_restarts_on_demand(
    rig_of: RigFactory, lab_folder: Path
) -> None:
    disk = build_image(lab_folder / "stays.qcow2", settings=Settings(auto_reboot=False))
    machine = rig_of(disk).machine
    watcher = machine.watch_console().regardless_of_boot()
    machine.nmi()
    watcher.expect(rb"memory dump complete[^!]*!SAC>", machine.contract.deadlines.dump_writing)
    sac = Sac(watcher, machine.type_on_console, deadline=machine.contract.deadlines.console_reply)
    with pytest.raises(SacAfterBugCheck, match="stop code 0x80") as found:
        sac.identity()
    assert found.value.stop_code == 0x80
    machine.type_on_console(b"?\r")
    watcher.expect(rb"restart +Restart the system immediately", 20)
    machine.type_on_console(b"restart\r")
    machine.signals.wait("a restart", lambda: machine.signals.of(SignalKind.RESTART), 20)


def test_typing_needs_the_lease_and_watching_does_not(rig: Rig) -> None:
    machine = rig.machine
    machine._lease.release()
    watcher = machine.watch_console(offset=0)
    assert watcher.expect(rb"SAC started and initialized", 20).start > 0
    with pytest.raises(LeaseLost):
        machine.type_on_console(b"?\r")


def test_no_answer_is_told_with_what_came(rig: Rig) -> None:
    machine = rig.machine
    sac = Sac(machine.watch_console(), lambda _: None, deadline=0.3)
    with pytest.raises(SacUnreachable, match=r"no SAC> within 0\.3 s; the console said nothing"):
        sac.sync()


def test_what_is_typed_is_in_the_index_but_not_in_words(rig: Rig) -> None:
    machine = rig.machine
    prompt = machine.sac().command_prompt()
    prompt.log_in(USER, PASSWORD)
    log = machine.console_log()
    times = log.with_name("console.times.jsonl").read_text()
    assert re.search(r'"event": "typed", "length": 13\b', times)
    secret = PASSWORD.get_secret_value()
    assert secret not in times
    assert secret.encode() not in log.read_bytes()
