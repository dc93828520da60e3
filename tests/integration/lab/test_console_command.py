"""`lab console`: watched by anybody, typed on by who holds the lease, in a terminal and a pipe."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.console.conftest import Bench, bench  # noqa: F401 - a fixture
from tests.support.labs import LiveCommand, TestLab, lab_folder, make_lab, run_in
from tests.support.waiting import wait_for

DEADLINE = 60.0


@pytest.fixture(scope="module")
def lab() -> Iterator[TestLab]:
    """One virtual machine."""
    with lab_folder() as folder:
        yield make_lab(folder)


def test_a_pipe_gets_sac_s_answer_and_nothing_else(lab: TestLab) -> None:
    done = subprocess.run(
        lab.command("console", "vm", "--type"),
        input="id\n", capture_output=True, text=True, timeout=DEADLINE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"SAC>id\nName: BUGCHECK-LAB\n", done.stdout)
    assert "Putting vm into the state" in done.stderr
    assert "Putting" not in done.stdout


def test_a_terminal_hands_on_every_key_until_ctrl_bracket(lab: TestLab) -> None:
    child, terminal = pty.fork()
    if child == 0:
        command = lab.command("console", "vm", "--type")
        os.execvp(command[0], command)  # noqa: S606
    said = b""

    def came(pattern: bytes) -> bool:
        nonlocal said
        if select.select([terminal], [], [], 0)[0]:
            said += os.read(terminal, 65536)
        return re.search(pattern, said) is not None

    wait_for("SAC", lambda: came(rb"CMD command is now available"), DEADLINE)
    os.write(terminal, b"cx\x7fh\x03\r")  # Ctrl-C goes to the machine, too
    wait_for("channels", lambda: came(rb"0 \(AV\) +SAC"), DEADLINE)
    os.write(terminal, b"\x1d")
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    os.close(terminal)


def test_who_only_watches_sees_the_holder_s_console_to_its_end(lab: TestLab) -> None:
    with run_in(lab) as run:
        run.machine.start()
        run.machine.wait_for_agent()
        watching = LiveCommand(lab.command("console", "vm"))
        watching.wait_for("SAC started and initialized", DEADLINE)
        run.machine.sac().identity()
        watching.wait_for("Name: BUGCHECK-LAB", DEADLINE)
        refused = lab.lab("console", "vm", "--type", exit_code=2)
        assert "no machine came free" in refused.stderr
    with watching:  # the lease is given back: it ends by itself
        assert watching.end(DEADLINE) == 0


def test_a_machine_that_is_off_says_what_to_do(lab: TestLab) -> None:
    off = lab.lab("console", "vm", exit_code=3)
    assert "`lab console vm --type` boots it" in off.stderr
    nobody = lab.lab("console", "nosuch", exit_code=3)
    assert "there is none; known: vm" in nobody.stderr


def test_a_console_port_of_lab_toml(
    bench: Bench,  # noqa: F811 - the fixture
    tmp_path: Path,
) -> None:
    machine = bench.machine()
    server, number = bench.ser2net(machine.device)
    (tmp_path / "lab.toml").write_text(
        'schema = 1\nstore = "store"\n[hosts.here]\nuri = "private"\n'
        '[machines.m1]\nbackend = "libvirt"\nhost = "here"\n'
        f'[machines.m1.console]\nurl = "socket://127.0.0.1:{number}"\n'
    )
    lab = TestLab(tmp_path)
    with LiveCommand(lab.command("console", "m1")) as watching:
        watching.wait_for(r"connected to socket://", DEADLINE)
        machine.say(b"hello\r\n")
        watching.wait_for("hello", DEADLINE)
        second = lab.lab("console", "m1", exit_code=2)
        assert f"held by lab console (process {watching.process.pid})" in second.stderr
        server.kill()
        watching.wait_for("running\\?", DEADLINE)
        watching.signal(signal.SIGINT)
        assert watching.end(DEADLINE) == 0
    server.start()
    with LiveCommand(lab.command("console", "m1", "--type")) as typing:
        typing.wait_for(r"connected to socket://", DEADLINE)
        with LiveCommand(lab.command("console", "m1")) as watching:
            watching.wait_for("m1 is held by .* watching its console", DEADLINE)
            assert typing.process.stdin is not None
            typing.process.stdin.write("restart\n")
            typing.process.stdin.close()
            assert machine.hear(8) == b"restart\r"
            machine.say(b"going down\r\n")
            watching.wait_for("going down", DEADLINE)
            assert typing.end(DEADLINE) == 0
            assert watching.end(DEADLINE) == 0  # with the lease
            assert "hello" not in watching.output
    with LiveCommand(lab.command("console", "m1")) as watching:
        watching.wait_for(r"connected to socket://", DEADLINE)
        # Who takes the machine gets the port, too; the watcher goes on with the log.
        with LiveCommand(lab.command("console", "m1", "--type")) as typing:
            watching.wait_for("m1 is held by .* watching its console", DEADLINE)
            typing.wait_for(r"connected to socket://", DEADLINE)

            def heard() -> bool:
                # The console server may still have the watcher's connection, and end the new one.
                machine.say(b"up again\r\n")
                return "up again" in watching.output

            wait_for("what it says", heard, DEADLINE, interval=0.5)
            assert typing.process.stdin is not None
            typing.process.stdin.close()
            assert typing.end(DEADLINE) == 0
        assert watching.end(DEADLINE) == 0
    log = tmp_path / "store/consoles/m1/console.log"
    said = log.read_bytes()
    assert said.startswith(b"hello\r\ngoing down\r\n")
    assert b"up again\r\n" in said
