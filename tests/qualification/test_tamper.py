"""A change that nobody announced is found."""

from __future__ import annotations

from pathlib import PureWindowsPath

import pytest

from lab.backend import AgentError
from lab.candidate import Candidate
from lab.outcome import TamperedError
from lab.run import Run


@pytest.fixture(autouse=True)
def _has_content(candidate: Candidate) -> None:
    if candidate.content is None:
        pytest.skip("candidate.toml has no [content]")


def test_changed_content_is_found(sensor: Run, candidate: Candidate) -> None:
    """The lab changes a content file behind its own back, sees it, and puts it right again."""
    assert candidate.content is not None
    assert sensor.content is not None
    file = sensor.content.files[0]
    path = str(PureWindowsPath(candidate.content.folder) / file.name)
    original = file.path.read_bytes()
    guest = sensor.machine.guest
    try:
        guest.write_file(path, original[:-1])
    except AgentError as error:
        pytest.skip(f"the candidate guards its content: {error}")
    try:
        with pytest.raises(TamperedError) as found:
            sensor.check("changed behind its back")
    finally:
        guest.write_file(path, original)
    assert file.name in str(found.value)
