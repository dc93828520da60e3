"""The vendor's own content validator: asked before content goes on, believed by nobody."""

from __future__ import annotations

import subprocess

from lab.candidate import Candidate, ContentSet


def ask_validator(candidate: Candidate, content: ContentSet) -> list[str]:
    """What the candidate's validator says of each file, in words; nothing where it has none."""
    rules = candidate.content
    if rules is None or not rules.validator:
        return []
    said = []
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
            said.append(f"Its validator cannot be started: {' '.join(command)}: {error.strerror}")
            continue
        lines = (done.stdout + done.stderr).strip().splitlines()
        because = f": {lines[-1]}" if lines else ""
        accepts = "accepts" if done.returncode == 0 else f"refuses ({done.returncode})"
        said.append(f"Its validator {accepts} {file.name}{because}")
    return said
