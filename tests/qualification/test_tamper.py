"""A change that nobody announced is found."""

from __future__ import annotations

from pathlib import PureWindowsPath

import pytest

from lab.outcome import TamperedError
from lab.run import Run


def test_nothing_changes_by_itself(sensor: Run) -> None:
    sensor.check("once")
    sensor.check("twice")


def test_changed_content_is_found(sensor: Run) -> None:
    """The lab changes a content file behind its own back, sees it, and puts it right again."""
    assert sensor.content is not None
    file = sensor.content.files[0]
    rules = sensor.needs_candidate().content
    assert rules is not None
    path = str(PureWindowsPath(rules.folder) / file.name)
    original = file.path.read_bytes()
    sensor.machine.guest.write_file(path, original[:-1])
    try:
        with pytest.raises(TamperedError, match=file.name.replace(".", r"\.")):
            sensor.check("changed behind its back")
    finally:
        sensor.machine.guest.write_file(path, original)
