"""The test kernel's sources stay small, formatted, and what `built` was made from."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

KERNEL = Path(__file__).parents[2] / "images/test_kernel"
CEILING = 6800
"""Lines of C and assembly, as committed, comments and blank lines included."""


def sources() -> list[Path]:
    return sorted(path for path in (KERNEL / "src").rglob("*") if path.suffix in {".c", ".h", ".S"})


def test_sources_stay_under_their_ceiling() -> None:
    counts = {path.name: len(path.read_text().splitlines()) for path in sources()}
    assert counts, "no sources found"
    assert sum(counts.values()) <= CEILING, counts


def test_sources_are_formatted_as_committed() -> None:
    c_files = [str(path) for path in sources() if path.suffix != ".S"]
    done = subprocess.run(
        ["clang-format-14", "--style=file", "--dry-run", "-Werror", *c_files],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for path in sources():
        wide = [line for line in path.read_text().splitlines() if len(line) > 100]
        assert not wide, f"{path.name}: {wide}"


def test_built_files_belong_together() -> None:
    manifest = json.loads((KERNEL / "built/manifest.json").read_text())
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((KERNEL / "built" / name).read_bytes()).hexdigest() == digest, name
