"""Each way to a console carries every byte both ways, and says what is wrong with it."""

from __future__ import annotations

import os
import pty
from collections.abc import Callable

import pytest
from pydantic import SecretStr

from lab.console.transport import Line
from tests.integration.console.conftest import (
    BMC_PASSWORD,
    BMC_USER,
    DEADLINE,
    Bench,
    Machine,
    marks,
)
from tests.support.waiting import wait_for

ALL_BYTES = bytes(range(256)) * 40
BMC = {"user": BMC_USER, "password": SecretStr(BMC_PASSWORD), "cipher_suite": 3}


def device(bench: Bench, machine: Machine) -> Line:
    return Line(str(machine.device))


def raw_tcp(bench: Bench, machine: Machine) -> Line:
    return Line(f"socket://127.0.0.1:{bench.ser2net(machine.device)[1]}")


def rfc2217(bench: Bench, machine: Machine) -> Line:
    # A pseudo-terminal has no modem lines to ask for.
    port = bench.ser2net(machine.device, rfc2217=True)[1]
    return Line(f"rfc2217://127.0.0.1:{port}?ign_set_control")


def unix(bench: Bench, machine: Machine) -> Line:
    path = bench.folder / "com1"
    bench.process(["socat", f"UNIX-LISTEN:{path}", f"{machine.device},raw,echo=0"], path.exists)
    return Line(f"unix://{path}")


def serial_over_lan(bench: Bench, machine: Machine) -> Line:
    return Line(f"sol://127.0.0.1:{bench.bmc(machine.device)[1]}", **BMC)  # type: ignore[arg-type]


@pytest.mark.parametrize("line", [device, raw_tcp, rfc2217, unix, serial_over_lan])
def test_every_byte_both_ways(bench: Bench, line: Callable[[Bench, Machine], Line]) -> None:
    machine = bench.machine()
    port = bench.port(line(bench, machine))
    machine.say(ALL_BYTES)
    wait_for("the bytes", lambda: port.log.size >= len(ALL_BYTES), DEADLINE)
    assert port.log.path.read_bytes() == ALL_BYTES
    typed = ALL_BYTES[:512].replace(b"\x1f", b"")  # ipmitool's escape character
    port.write(typed)
    assert machine.hear(len(typed)) == typed
    assert [one["event"] for one in marks(port.log)] == ["connected", "typed"]


def test_a_session_that_a_bmc_has_already_is_taken_over_with_a_mark(bench: Bench) -> None:
    machine = bench.machine()
    line = serial_over_lan(bench, machine)
    number = line.url.rpartition(":")[2]
    # Somebody's forgotten terminal.
    child, terminal = pty.fork()
    if child == 0:
        command = ["ipmitool", "-I", "lanplus", "-C", "3", "-H", "127.0.0.1", "-p", number]
        account = ["-U", BMC_USER, "-P", BMC_PASSWORD]
        os.execvp("ipmitool", [*command, *account, "sol", "activate"])  # noqa: S606
    try:
        said = b""
        while b"operational" not in said:
            said += os.read(terminal, 1000)
        port = bench.port(line)
        assert [one["event"] for one in marks(port.log)] == ["took-over", "connected"]
        machine.say(b"to the new one")
        wait_for("it", lambda: port.log.read(0) == b"to the new one", DEADLINE)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(terminal)


def test_a_bmc_that_refuses_is_told_by_its_words(bench: Bench) -> None:
    _, number = bench.bmc(bench.machine().device)
    wrong = Line(f"sol://127.0.0.1:{number}", 115200, BMC_USER, SecretStr("x"), 3)
    port = bench.unconnected(wrong)
    wait_for("the reason", lambda: "check address, user" in port.trouble, 3 * DEADLINE)
    assert "RAKP" in port.trouble or "session" in port.trouble
