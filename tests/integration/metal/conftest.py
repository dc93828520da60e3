"""Boxes for the tests of physical machines; a box is made once for a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from images.test_kernel.registry import ServiceStart, Settings
from tests.integration.metal.box import Box, metal_box
from tests.support.sensor import content_files, sensor_driver

SHORT = [
    ("boot_to_agent = 60", "boot_to_agent = 15"),
    ("agent_reply = 20", "agent_reply = 4"),
    ("dump_writing = 120", "dump_writing = 20"),
    ("dump_copying = 120", "dump_copying = 20"),
    ("console_reply = 20", "console_reply = 4"),
]
"""A test waits for these deadlines; a machine that is well needs less."""


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    """A machine with all parts. Its sensor is started by hand: the next boot is a good one.

    It has no watchdog: what hangs, hangs until somebody does something.
    """
    with metal_box(
        contract=SHORT,
        settings=Settings(dpc_timeout_milliseconds=0),
        drivers=[sensor_driver("a-o2", start=ServiceStart.DEMAND)],
        files=content_files("benign"),
    ) as made:
        yield made


@pytest.fixture(autouse=True)
def _as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    """Cables are in, benign content is on the disks, and no machine is out of the pool."""
    yield
    if "box" in request.fixturenames:
        request.getfixturevalue("box").tidy_up()
