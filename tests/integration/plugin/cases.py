"""Tests that end in each way there is; test_outcomes.py and others run them in their own pytest."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PureWindowsPath

import pytest

from lab.candidate import ContentSet
from lab.machine import Machine
from lab.run import Run
from lab.signals import MachineCrashed

SECONDS = 60.0
"""For a crash to be signalled."""


def crash(machine: Machine) -> None:
    """Crashes it, and waits until that is known."""
    machine.nmi()
    machine.signals.wait("a crash", machine.crash_signalled, SECONDS)


def write_unannounced(run: Run, name: str, data: bytes) -> None:
    """Writes a content file that the lab hears nothing of."""
    rules = run.needs_candidate().content
    assert rules is not None
    run.machine.guest.write_file(str(PureWindowsPath(rules.folder) / name), data)


# Passing


def test_leaves_it_off(sensor: Run) -> None:
    sensor.machine.power_off()


# Product outcomes


def test_plain_assertion(machine: Machine) -> None:
    assert machine.boot == 2


def test_pytest_fail(machine: Machine) -> None:
    pytest.fail(f"boot {machine.boot} is not good enough")


def test_tampers(sensor: Run) -> None:
    assert sensor.content is not None
    file = sensor.content.files[0]
    write_unannounced(sensor, file.name, file.path.read_bytes()[:-1])


def test_bad_content(sensor: Run, contents: Sequence[ContentSet]) -> None:
    sensor.update_content(contents[1])


@pytest.fixture
def loaded(sensor: Run, contents: Sequence[ContentSet]) -> Run:
    sensor.update_content(contents[1])
    return sensor


def test_crash_in_a_fixture(loaded: Run) -> None:
    pytest.fail("its lines must not run")


def test_crash_after_its_last_line(machine: Machine) -> None:
    machine.nmi()


def test_assertion_beside_a_crash(sensor: Run, contents: Sequence[ContentSet]) -> None:
    file = contents[1].files[0]
    with suppress(MachineCrashed):  # the sensor may be that quick
        write_unannounced(sensor, file.name, file.path.read_bytes())
    sensor.machine.signals.wait("a crash", sensor.machine.crash_signalled, SECONDS)
    assert sensor.machine.boot == 0


def test_skip_beside_a_crash(machine: Machine) -> None:
    crash(machine)
    pytest.skip("not today")


@pytest.fixture
def ending(machine: Machine) -> Iterator[None]:
    yield
    crash(machine)


@pytest.mark.usefixtures("ending")
def test_crash_while_fixtures_end() -> None:
    pass


@pytest.fixture
def asking(machine: Machine) -> Iterator[None]:
    yield
    assert machine.boot == 0


@pytest.mark.usefixtures("asking")
def test_fixture_that_fails_at_its_end() -> None:
    pass


# Neither


def test_skips(machine: Machine) -> None:
    pytest.skip(f"not with boot {machine.boot}")


def test_own_mistake(machine: Machine) -> None:
    mistake: dict[str, int] = {}
    assert mistake[machine.name]


# Run alone: each ends its session


def test_loses_its_hypervisor(machine: Machine) -> None:
    """Everything this process started ends: libvirt, what looks after it, the machine."""
    for process in _descendants(os.getpid()):
        os.kill(process, signal.SIGKILL)
    machine.signals.wait("an answer", machine.guest.answers, SECONDS, boot=machine.boot)
    machine.signals.wait("the end", lambda: False, SECONDS, boot=machine.boot)


def test_waits_for_ever(machine: Machine) -> None:
    Path("waiting").touch()
    machine.signals.wait("Ctrl-C", lambda: False, 600.0)


def test_is_installed(sensor: Run) -> None:
    """Of a candidate that comes with bad content."""


def _descendants(process: int) -> list[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status = (entry / "stat").read_text()
            except OSError:
                continue  # it ended meanwhile
            parents[int(entry.name)] = int(status.rpartition(")")[2].split()[1])
    found = [process]
    for one in found:  # grows while it is gone through
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]
