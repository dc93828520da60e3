"""Machines that do not come back by the gentle rungs, or not at all; machines with fewer parts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from images.test_kernel.registry import ServiceStart, Settings
from lab.leases import LeaseUnavailable
from lab.outcome import HungError, Outcome
from lab.signals import MachineCrashed, MachineDown, SignalKind
from tests.integration.metal.box import Box, metal_box
from tests.integration.metal.conftest import SHORT
from tests.support.labs import COMMAND_DEADLINE, run_in
from tests.support.sensor import content_files, sensor_driver
from tests.support.waiting import wait_for

pytestmark = pytest.mark.metal
SC = r"C:\Windows\System32\sc.exe"
REG = r"C:\Windows\System32\reg.exe"
SERVICE = r"HKLM\SYSTEM\CurrentControlSet\Services\sensor"
PLAIN = 'power = "rack:machine-{n}"\n{ssh}\n'
"""An outlet and a network."""
WITH_CONSOLE = 'power = "rack:machine-{n}"\n{console}\n{ssh}\n'


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    """whole has all parts but an NMI, plain an outlet and SSH only, console those and a console."""
    with metal_box(
        names=("whole", "plain", "console"),
        tables={"plain": PLAIN, "console": WITH_CONSOLE},
        lacks={"whole": ["nmi"]},
        contract=SHORT,
        settings=Settings(dpc_timeout_milliseconds=0),
        drivers=[sensor_driver("a-o2", start=ServiceStart.DEMAND)],
        files=content_files("benign"),
    ) as made:
        yield made


def rungs(evidence: dict[str, Any]) -> dict[str, str]:
    return {rung["name"]: rung["result"] for rung in evidence["rungs"]}


def test_of_a_machine_without_console_and_bmc_ssh_alone_tells_the_next_boot(box: Box) -> None:
    with run_in(box.lab, "plain") as run:
        run.boot()
        machine = run.machine
        assert machine.features == {"ssh"}
        booted = time.monotonic()  # boots nearer to each other than that are one, by their times
        wait_for("some seconds", lambda: time.monotonic() - booted > 3, 10)
        box.machines["plain"].domain.inject_nmi()
        with pytest.raises(MachineDown) as down:
            machine.signals.wait("its end", lambda: False, COMMAND_DEADLINE, boot=1)
        assert (down.value.signal.kind, down.value.signal.source) == (SignalKind.RESTART, "ssh")
        # Nobody saw a bug check; its dump tells of one.
        assert run.failed("crash", down.value) is Outcome.CRASHED
        assert run.record.crashes[0].bug_check == "0x80"
        assert [one.boot for one in machine.signals.crashes()] == [1]
        assert machine.unsealed_boot is None
    (evidence,) = box.lab.evidence("restart")
    assert [one["status"] for one in evidence["dumps"] if one["file"]] == ["this boot's"]


def test_without_sac_and_nmi_a_reset_or_a_power_cycle_is_what_is_left(box: Box) -> None:
    for name, rung in (("whole", "reset"), ("console", "power cycle")):
        with run_in(box.lab, name) as run:
            run.boot()
            start_hang(run)
            machine = run.machine
            assert run.failed("silence", HungError("its agent is silent")) is Outcome.HUNG
            assert machine.boot > 1
            assert machine.guest.answers()
            assert run.can_recover()
            assert run.recover()
        (evidence,) = box.lab.evidence("hang")
        tried = rungs(evidence)
        assert tried["SAC crashdump"].startswith("failed: no SAC>")
        assert tried["come up by itself"].startswith("skipped: it hangs")
        assert tried[rung].startswith("its agent answers in boot")
        assert tried["NMI"] == "skipped: the machine has nothing to send one with"
        if name == "console":
            assert tried["reset"] == "skipped: the machine has no reset button"
        assert evidence["no_dump"]


def start_hang(run: Any) -> None:
    guest = run.machine.guest
    assert guest.run(SC, ["start", "sensor"]).exit_code == 0
    for path, file in content_files("hang").items():
        try:
            guest.write_file(path, file.read_bytes())
        except MachineDown:
            raise
        except Exception:  # the machine hung before the file was closed
            break
    wait_for("silence", lambda: not guest.answers(), COMMAND_DEADLINE)


def test_what_comes_up_no_more_is_taken_out_of_the_pool(box: Box) -> None:
    with run_in(box.lab, "console") as run:
        run.boot()
        box.machines["console"].door.unplugged = "for good"
        machine = run.machine
        wait_for("silence", lambda: not machine.guest.answers(), COMMAND_DEADLINE)
        assert run.failed("silence", HungError("its agent is silent")) is Outcome.HUNG
        assert not run.can_recover()
        with pytest.raises(Exception, match="evidence of boot"):
            machine.start()
    (evidence,) = box.lab.evidence("hang")
    tried = rungs(evidence)
    assert tried["SAC crashdump"] == "it answered with a bug check"
    assert tried["come up by itself"].startswith("failed: ")
    assert tried["power cycle"].startswith("failed: ")
    assert tried["quarantine"] in evidence["quarantine"]
    record = box.lab.record()
    assert [one.outcome for one in record.outcomes] == [Outcome.HUNG, Outcome.INFRASTRUCTURE]
    assert "what it wrote stays on its disk" in record.outcomes[1].reason

    shown = box.lab.lab("machines", exit_code=0).stdout
    assert "QUARANTINED since" in shown
    assert "did not come up again after boot-1-hang" in shown
    with pytest.raises(LeaseUnavailable, match="did not come up again"), run_in(box.lab, "console"):
        pass
    box.machines["console"].door.unplugged = ""
    done = box.lab.lab("health", "console", exit_code=0).stdout
    assert "It is out of the pool still: lab machines --release console" in done
    assert "QUARANTINED" not in box.lab.lab("machines", "--release", "console", exit_code=0).stdout
    with run_in(box.lab, "console"):
        pass


def test_a_boot_loop_keeps_its_dumps_and_nobody_gets_the_machine(box: Box) -> None:
    """Content that stops each boot before the agent answers: nothing outside can take it off."""
    with run_in(box.lab, "whole") as run:
        guest = run.boot()
        configured = guest.run(
            REG, ["add", SERVICE, "/v", "Start", "/t", "REG_DWORD", "/d", "1", "/f"]
        )
        assert configured.exit_code == 0, configured
        assert guest.run(SC, ["start", "sensor"]).exit_code == 0
        with suppress(MachineDown):
            for path, file in content_files("killer").items():
                guest.write_file(path, file.read_bytes())
        with pytest.raises(MachineCrashed) as crash:
            run.machine.signals.wait("it", lambda: False, COMMAND_DEADLINE, boot=1)
        assert run.failed("killer", crash.value) is Outcome.CRASHED
    record = box.lab.record()
    assert [one.outcome for one in record.outcomes] == [
        Outcome.CRASHED,
        Outcome.INFRASTRUCTURE,
        Outcome.BOOT_LOOPING,
    ]
    (evidence,) = box.lab.evidence("crash")
    assert "crashed in 2 boots in a row before its agent answered" in json.dumps(rungs(evidence))
    assert "boots in a row" in evidence["quarantine"]
    assert record.machine["quarantined"] == evidence["quarantine"]


def test_a_machine_that_fails_its_health_check_says_why(box: Box) -> None:
    assert box.lab.lab("health", "whole", exit_code=0).stdout.splitlines()[-1] == "whole is well"
    box.pdu.behave("lies")
    try:
        done = box.lab.lab("health", "plain", exit_code=1).stdout
    finally:
        box.pdu.behave("good")
    assert "plain is not well: health check, boot: outlet machine-2" in done
    assert "health check, boot" in box.lab.lab("machines", exit_code=0).stdout


def test_a_host_key_that_nobody_knows(box: Box) -> None:
    known = box.folder / "plain/known_hosts"
    right = known.read_text()
    other = (box.folder / "whole/known_hosts").read_text()
    port = right.split("]:")[1].split()[0]
    known.write_text(f"[127.0.0.1]:{port} {other.split(None, 1)[1]}")
    try:
        with run_in(box.lab, "plain") as run, pytest.raises(HungError) as hung:
            run.boot()
        assert "its key is not in" in str(hung.value)
        assert "ssh-keyscan" in str(hung.value)
    finally:
        known.write_text(right)
