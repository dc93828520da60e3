"""The vendor's own content validator: asked before content goes on, believed by nobody."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from lab.candidate import Candidate, ContentSet

SECONDS = 300.0
"""For one file, on this host."""
SHELLS_OWN = {126, 127}
"""Exit codes that env and shells use for a program they cannot start."""


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
                errors="replace",
                timeout=SECONDS,
            )
        except OSError as error:
            said.append(_unasked(command, str(error.strerror)))
            continue
        except subprocess.TimeoutExpired:
            said.append(_unasked(command, f"no answer within {SECONDS:g} s"))
            continue
        lines = (done.stdout + done.stderr).strip().splitlines()
        because = f": {lines[-1]}" if lines else ""
        if done.returncode < 0 or done.returncode in SHELLS_OWN:
            said.append(_unasked(command, f"it ended with {done.returncode}{because}"))
            continue
        refuses = done.returncode != 0
        verb = f"refuses ({done.returncode})" if refuses else "accepts"
        said.append(Opinion(refuses, f"Its validator {verb} {file.name}{because}"))
    return said


def _unasked(command: list[str], why: str) -> Opinion:
    return Opinion(refuses=False, words=f"Its validator tells nothing: {' '.join(command)}: {why}")
