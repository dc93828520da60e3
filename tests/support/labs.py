"""Labs and candidates for tests: a lab.toml, an image of chosen settings, a sensor variant."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from images.contract import CATALOG
from images.test_kernel.build import build_image
from lab.commands import leased
from lab.config import load_config
from lab.lab import Lab
from lab.record import Record, Scenario, load_record
from lab.run import Run
from lab.signals import MachineCrashed
from tests.support.sensor import SENSOR
from tests.support.waiting import wait_for

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

    def run_of(self, command: LiveCommand) -> Path | None:
        """The folder of the run that a command began; None if it got no machine, or no further."""
        found = re.search(r"Run (\S+) on machine", command.output)
        folder = self.folder / "store/runs" / found[1] if found else None
        return folder if folder and folder.exists() else None

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
            **{"timeout": COMMAND_DEADLINE, **options},
        )
        if exit_code is not None:
            assert done.returncode == exit_code, f"{done.stdout}\n{done.stderr}"
        return done

    def run_command(self, candidate: Path, *contents: str | Path) -> list[str]:
        """The command line of `lab run`, with content sets as run() takes them."""
        chosen = [f"--content={CONTENT / one if isinstance(one, str) else one}" for one in contents]
        return self.command("run", "--candidate", candidate, *chosen)

    def run(
        self, candidate: Path, *contents: str | Path, exit_code: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`lab run` of a candidate with content sets: the sensor's by name, others by path."""
        chosen = [f"--content={CONTENT / one if isinstance(one, str) else one}" for one in contents]
        return self.lab("run", "--candidate", candidate, *chosen, exit_code=exit_code)


class LiveCommand:
    """A command that runs, with its output so far; a context manager that kills what is left."""

    def __init__(self, command: Sequence[str | Path]) -> None:
        self.process = subprocess.Popen(
            # pytest may run in the background of a shell, where SIGINT is ignored.
            ["env", "--default-signal=INT", *map(str, command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.output = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line

    def wait_for(self, pattern: str, deadline: float = COMMAND_DEADLINE) -> None:
        """Waits until a line of its output matches; fails if it ends before."""

        def seen() -> bool:
            found = re.search(pattern, self.output)
            if not found and self.process.poll() is not None:
                self._reader.join()
                found = re.search(pattern, self.output)
                assert found, f"it ended without {pattern!r}:\n{self.output}"
            return bool(found)

        wait_for(f"{pattern!r} in the output", seen, deadline, interval=0.01)

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        self.process.send_signal(number)

    def end(self, deadline: float = COMMAND_DEADLINE) -> int:
        """Waits for its end and gives its exit code."""
        code = self.process.wait(deadline)
        self._reader.join()
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


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


@contextmanager
def run_in(lab: TestLab, machine: str | None = None) -> Iterator[Run]:
    """A run of this process without a candidate, for what no `lab` command does to a machine."""
    said: list[str] = []
    purpose = "a test of faults"
    with (
        Lab(load_config(lab.file)) as opened,
        leased(
            opened,
            machine,
            image=next(iter(opened.config.images)),
            purpose=purpose,
            wait=0,
            say=said.append,
        ) as lease,
    ):
        image = opened.images.image(next(iter(opened.config.images)), said.append)
        scenario = Scenario(kind="content")
        with Run(opened, lease, image, scenario, purpose=purpose, say=said.append) as run:
            yield run


def crash_by_nmi(run: Run, *, hold_restart: bool = True) -> MachineCrashed:
    """Boots the run's machine and crashes it; gives what a waiting thread would get."""
    machine = run.machine
    machine.start(hold_restart=hold_restart)
    machine.wait_for_agent()
    boot = machine.boot
    machine.nmi()
    try:
        machine.signals.wait("a crash", lambda: False, COMMAND_DEADLINE, boot=boot)
    except MachineCrashed as crash:
        return crash
    raise AssertionError("the wait ended without a crash")


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
