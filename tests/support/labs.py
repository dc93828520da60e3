"""Labs and candidates for tests: a lab.toml, an image of chosen settings, a sensor variant."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from images.contract import CATALOG
from images.test_kernel.build import build_image
from lab.record import Record, load_record
from tests.support.sensor import SENSOR

CONTRACT = CATALOG.parent / "test_kernel/contract.toml"
CONTENT = SENSOR / "content"
COMMAND_DEADLINE = 300.0
"""Seconds for one `lab` command; a run takes under ten on two cores."""


@contextmanager
def lab_folder() -> Iterator[Path]:
    """A folder that machines may read whoever runs them; pytest's own belongs to its user alone."""
    folder = Path(tempfile.mkdtemp(prefix="lab-test-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@dataclass(frozen=True)
class TestLab:
    """A lab.toml in a folder of its own."""

    __test__ = False  # no test class, whatever pytest thinks

    folder: Path

    @property
    def file(self) -> Path:
        """Its lab.toml."""
        return self.folder / "lab.toml"

    @property
    def runs(self) -> list[Path]:
        """Its runs' folders, oldest first."""
        return sorted((self.folder / "store/runs").iterdir())

    def record(self) -> Record:
        """The newest run's record."""
        return load_record(self.runs[-1])

    def evidence(self, cause: str = "*") -> list[dict[str, Any]]:
        """evidence.json of the newest run's crashes, in order of boots."""
        files = sorted((self.runs[-1] / "evidence").glob(f"boot-*-{cause}/evidence.json"))
        return [json.loads(file.read_text()) for file in files]

    def command(self, name: str, *arguments: str | Path) -> list[str]:
        """The command line of a `lab` command in this lab."""
        return [sys.executable, "-m", "lab", name, "--lab", str(self.file), *map(str, arguments)]

    def lab(
        self, name: str, *arguments: str | Path, exit_code: int | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Runs a `lab` command; asserts the exit code if one is given."""
        done = subprocess.run(
            self.command(name, *arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_DEADLINE,
            **options,
        )
        if exit_code is not None:
            assert done.returncode == exit_code, f"{done.stdout}\n{done.stderr}"
        return done

    def run(
        self, candidate: Path, *contents: str | Path, exit_code: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`lab run` of a candidate with content sets: the sensor's by name, others by path."""
        chosen = [f"--content={CONTENT / one if isinstance(one, str) else one}" for one in contents]
        return self.lab("run", "--candidate", candidate, *chosen, exit_code=exit_code)


def make_lab(
    folder: Path,
    *,
    count: int = 1,
    contract: Sequence[tuple[str, str]] = (),
    name: str = "guest",
    uri: str = "private",
    **image: Any,
) -> TestLab:
    """Writes a lab.toml with one image and some machines into a folder.

    contract: texts to replace in the image's contract, each of which must be there. image: what
    build_image() takes.
    """
    text = CONTRACT.read_text()
    for before, after in (('name = "test-kernel"', f'name = "{name}"'), *contract):
        assert before in text, before
        text = text.replace(before, after, 1)
    (folder / "contract.toml").write_text(text)
    build_image(folder / "base.qcow2", **image)
    (folder / "base.qcow2").chmod(0o444)
    symbols = CATALOG.parent / "test_kernel/built"
    (folder / "lab.toml").write_text(
        f"""schema = 1
store = "store"
[images.{name}]
contract = "contract.toml"
disk = "base.qcow2"
symbols = ["{symbols}"]
[hosts.here]
uri = "{uri}"
[machines.vm]
backend = "libvirt"
host = "here"
count = {count}
"""
    )
    return TestLab(folder)


def make_candidate(
    folder: Path,
    variant: str = "a-o2",
    *,
    shape: str = "candidate.toml",
    changes: Mapping[str, str] | None = None,
) -> Path:
    """A copy of the example sensor as a candidate of a variant; returns its candidate.toml.

    changes: regular expressions to replace in it, each of which must match.
    """
    made = folder / f"sensor-{variant}"
    shutil.copytree(SENSOR, made, ignore=shutil.ignore_patterns("__pycache__"))
    file = made / shape
    text = file.read_text().replace("a-o2", variant)
    text = text.replace('"PYTHONPATH=../.."', f'"PYTHONPATH={SENSOR.parents[1]}"')
    for pattern, replacement in (changes or {}).items():
        text, found = re.subn(pattern, replacement, text, flags=re.M)
        assert found, pattern
    file.write_text(text)
    return file


def machines_of(folder: Path) -> list[int]:
    """Process ids of the QEMU machines whose disk lies below a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue  # it ended meanwhile
            if b"qemu-system" in command and os.fsencode(folder) in command:
                found.append(int(entry.name))
    return found
