"""The candidate goes on, survives restarts, and comes off again."""

from __future__ import annotations

import pytest

from lab.candidate import Candidate
from lab.identity import check_gone
from lab.machine import Machine
from lab.run import Run


def test_image_boots_without_the_candidate(machine: Machine, candidate: Candidate) -> None:
    check_gone(machine, candidate)


def test_installs_and_runs(sensor: Run) -> None:
    """The fixture installed it; the loaded image is the candidate's and its probes hold."""
    assert sensor.record.identities


def test_restarts_with_it(sensor: Run) -> None:
    boot = sensor.machine.boot
    sensor.restart()
    sensor.check("after a restart")
    assert sensor.machine.boot == boot + 1


def test_survives_a_power_cut(sensor: Run) -> None:
    sensor.machine.power_off()
    sensor.boot()
    sensor.check("after a power cut")


@pytest.fixture
def _uninstallable(candidate: Candidate) -> None:
    if not candidate.uninstall:
        pytest.skip("candidate.toml has no [[uninstall]] steps")


@pytest.mark.usefixtures("_uninstallable")
def test_uninstalls(sensor: Run, candidate: Candidate) -> None:
    sensor.uninstall()
    check_gone(sensor.machine, candidate)


@pytest.mark.usefixtures("_uninstallable")
def test_installs_again_after_uninstalling(sensor: Run) -> None:
    sensor.uninstall()
    sensor.install()
    sensor.check("installed again")
