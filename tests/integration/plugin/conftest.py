"""A lab and a suite for pytests that the tests start."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from lab.record import Record, load_record
from tests.support.labs import CONTENT, TestLab, lab_folder, machines_of, make_candidate, make_lab

CASES = Path(__file__).with_name("cases.py")
DEADLINE = 240.0
"""Seconds for one pytest; the longest takes 40 on two cores."""


@dataclass(frozen=True)
class Result:
    """One test as JUnit's XML tells it. state: "failure" is of its call, "error" of the rest."""

    state: str
    text: str
    properties: dict[str, str]
    run: Path

    @property
    def record(self) -> Record:
        """The record of its run."""
        return load_record(self.run)


@dataclass(frozen=True)
class Suite:
    """A folder in which pytest runs, with a lab of its own."""

    lab: TestLab
    candidate: Path
    folder: Path

    def command(
        self, *names: str, options: tuple[str, ...] = (), candidate: Path | None = None
    ) -> list[str]:
        """The command line for some cases, all if none is named, with content benign and killer."""
        tests = [f"{self.folder / CASES.name}::{name}" for name in names]
        return [
            sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--junitxml=report.xml",
            *(tests or [str(self.folder / CASES.name)]), f"--lab={self.lab.file}",
            f"--candidate={candidate or self.candidate}",
            f"--content={CONTENT / 'benign'}", f"--content={CONTENT / 'killer'}", *options,
        ]  # fmt: skip

    def start(self, command: list[str], **how: Any) -> subprocess.Popen[str]:
        """Starts pytest as a person would, whatever the pytest around it was told."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        # The pytest around it may run in the background of a shell, where SIGINT is ignored.
        heard = ["env", "--default-signal=INT", *command]
        return subprocess.Popen(heard, cwd=self.folder, env=environment, text=True, **how)

    def run(
        self, *names: str, options: tuple[str, ...] = (), candidate: Path | None = None
    ) -> tuple[int, str]:
        """Runs cases to their end; exit code and output."""
        command = self.command(*names, options=options, candidate=candidate)
        with self.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            output, _ = process.communicate(timeout=DEADLINE)
        return process.returncode, output

    def results(self) -> dict[str, Result]:
        """What the last pytest reported, by the tests' names."""
        found: dict[str, Result] = {}
        report = ElementTree.parse(self.folder / "report.xml")  # noqa: S314 - pytest's
        for case in report.iter("testcase"):
            ends = {one.tag: one for one in case if one.tag in {"failure", "error", "skipped"}}
            state = next(iter(ends), "passed")
            text = "".join(f"{one.get('message')}\n{one.text}" for one in ends.values())
            properties = {one.attrib["name"]: one.attrib["value"] for one in case.iter("property")}
            assert "lab_run" in properties, text
            run = self.lab.folder / "store/runs" / properties["lab_run"]
            # A test that fails and whose teardown fails is there twice, first for its call.
            found.setdefault(case.attrib["name"], Result(state, text, properties, run))
        return found


@pytest.fixture
def suite(tmp_path: Path) -> Iterator[Suite]:
    """A lab with two machines; nothing may run in it when the test ends."""
    (tmp_path / CASES.name).write_text(CASES.read_text())
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\naddopts = --strict-markers\nfilterwarnings = error\njunit_logging = no\n"
    )
    with lab_folder() as folder:
        candidate = make_candidate(folder, changes={"settle_seconds = 4": "settle_seconds = 2"})
        yield Suite(make_lab(folder, count=2), candidate, tmp_path)
        assert machines_of(folder) == []
