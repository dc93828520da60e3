"""A power backend of somebody else's package: found, configured, and held to the suite."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.power.devices import ENTRY_POINTS, NoBackendError, device_class

REPOSITORY = Path(__file__).parents[3]
SUITE = ["--pyargs", "fixtures.power_conformance", "-p", "no:cacheprovider", "--color=no", "-rA"]


def run_pytest(folder: Path, *arguments: str) -> str:
    """As a third party does it: in a folder of its own, with this project merely installed."""
    command = [sys.executable, "-m", "pytest", *SUITE, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.stdout + done.stderr


def test_the_suite_runs_on_a_bench_of_others(tmp_path: Path) -> None:
    said = run_pytest(tmp_path, "-p", "tests.integration.power.file_relay")
    assert "PASSED" in said
    assert "FAILED" not in said
    assert "ERROR" not in said
    for name in ("off_is_off", "lies_has_no_effect", "dead_device_is_unreachable[off]"):
        assert any(name in line and "PASSED" in line for line in said.splitlines()), said
    assert "the bench has no device that is flapping" in said


@pytest.mark.metal
def test_the_suite_fails_a_backend_that_believes_its_device(tmp_path: Path) -> None:
    (tmp_path / "gullible.py").write_text(
        "from tests.integration.power.file_relay import *\n"
        "from tests.integration.power import file_relay\n"
        "from lab.power.base import PowerState\n"
        "class Gullible(file_relay.LyingRelay):\n"
        "    told = PowerState.ON\n"
        "    def read(self, place):\n"
        "        return self.told\n"
        "    def order(self, place, wanted):\n"
        "        self.told = wanted\n"
        "class Bench(file_relay.FileBench):\n"
        "    def behave(self, mode, seconds=0.0):\n"
        "        self.device = self._open(Gullible)\n"
        "@pytest.fixture\n"
        "def power_bench(tmp_path):\n"
        "    yield Bench(tmp_path)\n"
    )
    said = run_pytest(tmp_path, "-p", "gullible", "-k", "lies or dead")
    assert "test_a_device_that_lies_has_no_effect" in said
    assert "3 failed" in said, said


def install(folder: Path, place: str) -> None:
    """A package that names its device class, as pip leaves it."""
    metadata = folder / "vendor-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: vendor\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\nfile_relay = {place}\n")


@pytest.mark.parametrize("place", ["nowhere:FileRelay", "json:FileRelay", "json:JSONDecoder"])
def test_a_device_that_cannot_be_loaded_is_told(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, place)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NoBackendError, match=place):
        device_class("file_relay")


def test_its_device_is_found_by_its_entry_point(tmp_path: Path) -> None:
    install(tmp_path, "tests.integration.power.file_relay:FileRelay")
    relays = tmp_path / "relays"
    relays.mkdir()
    (relays / "relay-1").write_text("on")
    (tmp_path / "lab.toml").write_text(
        f'schema = 1\nstore = "store"\n[power.box]\nbackend = "file_relay"\nfolder = "{relays}"\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "lab", "power", "off", "box", "1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{tmp_path}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "off: off, says outlet 1 of [power.box]" in done.stdout
    assert (relays / "relay-1").read_text() == "off"
