"""The vendor's own content validator: asked before content goes on, believed by nobody."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from lab.candidate import Candidate, ContentSet


@dataclass(frozen=True)
class Opinion:
    """What a validator says of one file, in words."""

    refuses: bool
    words: str


def ask_validator(candidate: Candidate, content: ContentSet) -> list[Opinion]:
    """What the candidate's validator says of each file; nothing where it has none."""
    rules = candidate.content
    if rules is None or not rules.validator:
        return []
    said: list[Opinion] = []
    for file in content.files:
        command = [*rules.validator, str(file.path.resolve())]
        try:
            done = subprocess.run(
                command,
                cwd=candidate.file.parent,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
            )
        except OSError as error:
            words = f"Its validator cannot be started: {' '.join(command)}: {error.strerror}"
            said.append(Opinion(refuses=False, words=words))
            continue
        lines = (done.stdout + done.stderr).strip().splitlines()
        because = f": {lines[-1]}" if lines else ""
        refuses = done.returncode != 0
        verb = f"refuses ({done.returncode})" if refuses else "accepts"
        said.append(Opinion(refuses, f"Its validator {verb} {file.name}{because}"))
    return said
