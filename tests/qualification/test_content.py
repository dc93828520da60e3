"""Each content set, put on while the sensor runs and for its next boot."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lab.candidate import ContentSet
from lab.run import Run


def test_content_update_while_it_runs(sensor: Run, contents: Sequence[ContentSet]) -> None:
    rules = sensor.needs_candidate().content
    if rules is None or rules.activation != "live":
        pytest.skip("candidate.toml says that content is activated at the next boot only")
    for content in contents[1:] or contents:
        sensor.update_content(content, "live")
        sensor.check(f"with {content.name}")


def test_content_update_for_the_next_boot(sensor: Run, contents: Sequence[ContentSet]) -> None:
    for content in contents[1:] or contents:
        sensor.update_content(content, "next-boot")
        sensor.check(f"after a boot with {content.name}")


def test_restart_with_every_content(sensor: Run, contents: Sequence[ContentSet]) -> None:
    for content in contents[1:] or contents:
        sensor.update_content(content)
        sensor.restart()
        sensor.check(f"after a restart with {content.name}")


@pytest.mark.needs("save-restore")
@pytest.mark.known_state("memory")
def test_content_update_from_saved_memory(sensor: Run, contents: Sequence[ContentSet]) -> None:
    """A machine that was restored from memory instead of booted takes content in as well."""
    for content in contents[1:] or contents:
        sensor.update_content(content)
        sensor.check(f"with {content.name}")
