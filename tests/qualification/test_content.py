"""Each content set, put on while the sensor runs and for its next boot."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lab.candidate import Candidate, ContentSet
from lab.run import Run


@pytest.fixture
def new_contents(candidate: Candidate, contents: Sequence[ContentSet]) -> Sequence[ContentSet]:
    """What is put on: the sets after the first, which was installed; a single one once more."""
    default = candidate.default_content()
    if default is None:
        pytest.skip("candidate.toml has no [content]")
    return contents[1:] or contents or [default]


def test_content_update_while_it_runs(
    candidate: Candidate, new_contents: Sequence[ContentSet], sensor: Run
) -> None:
    assert candidate.content is not None
    if candidate.content.activation != "live":
        pytest.skip("candidate.toml says that content is activated at the next boot only")
    for content in new_contents:
        sensor.update_content(content, "live")
        sensor.check(f"with {content.name}")


def test_content_update_for_the_next_boot(new_contents: Sequence[ContentSet], sensor: Run) -> None:
    for content in new_contents:
        sensor.update_content(content, "next-boot")
        sensor.check(f"after a boot with {content.name}")


def test_restart_with_every_content(new_contents: Sequence[ContentSet], sensor: Run) -> None:
    for content in new_contents:
        sensor.update_content(content)
        sensor.restart()
        sensor.check(f"after a restart with {content.name}")


@pytest.mark.needs("save-restore")
@pytest.mark.known_state("memory")
def test_content_update_from_saved_memory(new_contents: Sequence[ContentSet], sensor: Run) -> None:
    """A machine that was restored from memory instead of booted takes content in as well."""
    for content in new_contents:
        sensor.update_content(content)
        sensor.check(f"with {content.name}")
