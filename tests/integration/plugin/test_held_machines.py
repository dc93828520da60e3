"""Sessions that are broken off, and machines that are kept."""

from __future__ import annotations

import re
import signal
import socket
import subprocess

from tests.integration.plugin.conftest import DEADLINE, Suite
from tests.support.labs import machines_of
from tests.support.waiting import wait_for


def test_hypervisor_lost_says_nothing_about_the_candidate(suite: Suite) -> None:
    _, output = suite.run("test_loses_its_hypervisor")
    (one,) = suite.results().values()
    assert one.state == "failure", output
    assert "infrastructure: this says nothing about the candidate" in one.text
    assert (one.record.outcome, one.record.verdict) == ("infrastructure", "inconclusive")


def test_interrupted_session_gives_its_machine_back(suite: Suite) -> None:
    command = suite.command("test_waits_for_ever")
    with suite.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        wait_for("the test to begin", (suite.folder / "waiting").exists, DEADLINE)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 2, output
    record = suite.lab.record()
    assert (record.outcome, record.verdict) == ("infrastructure", "inconclusive")
    assert [one.reason for one in record.outcomes] == ["interrupted"]
    assert record.ended is not None
    assert machines_of(suite.lab.folder) == []
    assert suite.lab.lab("machines", exit_code=0).stdout.count("free") == 2


def test_kept_machine_runs_until_enter(suite: Suite) -> None:
    command = suite.command("test_crash_after_its_last_line", options=("--keep",))
    pipe = subprocess.PIPE
    with suite.start(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        output = ""
        while "Enter gives it back" not in output:
            line = process.stdout.readline()
            assert line, output
            output += line
        assert re.search(r"^kept: \S+", output, re.M), output
        port = re.search(r"^kernel debugger \(COM2\): (\S+):(\d+)$", output, re.M)
        assert port, output
        socket.create_connection((port[1], int(port[2])), 10).close()
        assert len(machines_of(suite.lab.folder)) == 1
        process.stdin.write("\n")
        process.stdin.flush()
        rest = process.stdout.read()
    assert process.returncode == 1, rest
    assert machines_of(suite.lab.folder) == []
