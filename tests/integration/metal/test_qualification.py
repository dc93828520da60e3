"""The suite a vendor runs, on a physical machine in a box, where it has what the test needs.

Re-imaging comes in an issue of its own: between the tests the box puts the disk back by hand.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.metal.box import IMAGE, Box, metal_box
from tests.support.labs import CONTENT
from tests.support.sensor import SENSOR

pytestmark = pytest.mark.metal
ROOT = Path(__file__).parents[3]
TESTS = [
    "test_content.py::test_content_update_while_it_runs",
    "test_content.py::test_content_update_for_the_next_boot",
    "test_content.py::test_restart_with_every_content",
    "test_install.py::test_image_boots_without_the_candidate",
    "test_install.py::test_installs_and_runs",
    "test_install.py::test_restarts_with_it",
    "test_install.py::test_survives_a_power_cut",
    "test_tamper.py::test_changed_content_is_found",
]
NEED_A_DISK = {
    # Its uninstall deletes files of the powered-off disk.
    "test_install.py::test_uninstalls": "m1 has no disk",
    "test_install.py::test_installs_again_after_uninstalling": "m1 has no disk",
    "test_content.py::test_content_update_from_saved_memory": "needs save-restore, which m1",
}


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    with metal_box() as made:
        yield made


def run(box: Box, test: str) -> subprocess.CompletedProcess[str]:
    """pytest as a vendor would call it."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("-p", "no:xdist", f"tests/qualification/{test}", f"--lab={box.lab.file}"),
            *(f"--image={IMAGE}", f"--candidate={SENSOR / 'candidate.toml'}"),
            f"--content={CONTENT / 'benign'}",
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.mark.parametrize("test", TESTS)
def test_it_passes(box: Box, test: str) -> None:
    done = run(box, test)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
    record = box.lab.record()
    assert record.machine["start_state"] == "not known: it starts as it was found"
    # Nobody sees its memory from outside; the record says that this is weaker.
    assert all(one["loaded_is_weak"] for one in record.identities)


@pytest.mark.parametrize("test", NEED_A_DISK)
def test_what_it_lacks_is_told_and_says_nothing_of_the_candidate(box: Box, test: str) -> None:
    done = run(box, test)
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert NEED_A_DISK[test] in said
    assert "this says nothing about the candidate" in said or "save-restore" in said


def test_no_test_of_the_suite_is_forgotten() -> None:
    listed = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "--collect-only", "tests/qualification"),
            *(f"--lab={ROOT / 'examples/lab.toml'}", "-p", "no:cacheprovider"),
            f"--candidate={SENSOR / 'candidate.toml'}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout
    found = {line.rpartition("/")[2] for line in listed.splitlines() if "::" in line}
    assert found == {*TESTS, *NEED_A_DISK}
