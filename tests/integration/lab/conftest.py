"""Labs of their own for tests of whole runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.labs import TestLab, lab_folder, machines_of, make_candidate, make_lab


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for a lab; nothing may run in it any more when the test ends."""
    with lab_folder() as made:
        yield made
        assert machines_of(made) == []


@pytest.fixture
def own_lab(folder: Path) -> TestLab:
    """A lab with one machine and the image as it is."""
    return make_lab(folder)


@pytest.fixture
def sensor_file(folder: Path) -> Path:
    """The example sensor's candidate.toml; its content settles in two seconds."""
    return make_candidate(folder, changes={"settle_seconds = 4": "settle_seconds = 2"})
