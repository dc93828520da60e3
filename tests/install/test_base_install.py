"""A base install, of a wheel and without a compiler, triages dumps on Linux and on Windows.

Windows is CPython for Windows under Wine. Both fetch from the Python package index.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
import zstandard

from crashdump_analysis import triage
from crashdump_analysis.engines import EngineError
from crashdump_analysis.engines.wine_setup import cache_folder, find_wine
from crashdump_analysis.symbols.pdb_file import PdbFile
from crashdump_analysis.symbols.pdb_names import PdbNames
from tests.oracle.dbgeng import judge
from tests.support.sensor import built
from tests.support.synthetic_dump import crashed_machine
from tests.support.synthetic_formats import KERNEL_RANGES, SUMMARY, dump_of
from tests.support.synthetic_triage import TriageDump
from tests.support.windows_python import WindowsPython, pip, windows_paths

ROOT = Path(__file__).parents[2]
KEPT = ROOT / ".work/base-install"
BASE = {"annotated-types", "pydantic", "pydantic-core", "typing-extensions", "typing-inspection"}
BASE |= {"zstandard"}

pytestmark = pytest.mark.install


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The distribution as a wheel, made from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        target = folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    pip(
        *("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)),
        str(folder / "source"),
    )
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="session")
def constraints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The versions that the project is tested with."""
    pins = re.findall(r"^[\w.-]+==[^\s\\;]+", (ROOT / "requirements/dev.txt").read_text(), re.M)
    path = tmp_path_factory.mktemp("pins") / "constraints.txt"
    path.write_text("\n".join(pins))
    return path


@pytest.fixture(scope="session")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One dump of several types and compressions, and an archive of two."""
    folder = tmp_path_factory.mktemp("dumps")
    machine = crashed_machine()
    small = TriageDump(machine).write()
    files = {
        "triage.dmp": small,
        "bitmap.dmp": machine.dump(),
        "summary.dmp": dump_of(machine, SUMMARY),
        "ranges.dmp": dump_of(machine, KERNEL_RANGES),
        "small.gz": gzip.compress(small),
        "small.zst": zstandard.ZstdCompressor().compress(small),
        "with ümlaut.dmp": small,
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    with zipfile.ZipFile(folder / "one.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("memory.dmp", small)
    return [*(folder / name for name in files), folder / "one.zip"]


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A package index that answers."""
    folder = str(tmp_path_factory.mktemp("index"))
    try:
        pip("download", "--no-deps", "--dest", folder, "typing-extensions")
    except RuntimeError as error:
        pytest.skip(f"no package index; with one: make base-install\n{error}")


@pytest.fixture(scope="session")
def linux(
    index: None, wheel: Path, constraints: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Python of a new environment that has the wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("linux") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin/python"
    # No source distributions: nothing is compiled.
    pip("install", "--only-binary", ":all:", "-c", str(constraints), str(wheel), python=python)
    return python


@pytest.fixture(scope="session")
def windows(index: None, wheel: Path, constraints: Path) -> WindowsPython:
    """Windows CPython that has the wheel and what it depends on."""
    try:
        find_wine()
    except EngineError as error:
        pytest.skip(str(error))
    python = WindowsPython(KEPT / "windows")
    python.install(wheel, constraints)
    return python


@pytest.fixture(scope="session")
def expected(dumps: list[Path]) -> list[dict[str, Any]]:
    """The reports here."""
    return [without_paths(triage(path).to_dict()) for path in dumps]


def without_paths(report: dict[str, Any]) -> dict[str, Any]:
    """A report without the one thing that differs from machine to machine."""
    report["dump"]["path"] = ""
    return report


def reports(lines: str) -> Iterator[dict[str, Any]]:
    return (without_paths(json.loads(line)) for line in lines.splitlines())


def test_the_wheel_asks_for_little(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as files:
        names = files.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        wanted = Parser().parsestr(files.read(metadata).decode()).get_all("Requires-Dist") or []
    base = {re.split(r"[^\w-]", one)[0] for one in wanted if "extra ==" not in one}
    assert base == {"pydantic", "zstandard"}
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not any(name.startswith(("tests/", "fuzz/", "benchmarks/")) for name in names)


def test_linux(linux: Path, dumps: list[Path], expected: list[dict[str, Any]]) -> None:
    listed = subprocess.run(
        [linux, "-m", "pip", "list", "--format", "json"], capture_output=True, check=True
    )
    installed = {one["name"].replace("_", "-") for one in json.loads(listed.stdout)}
    assert installed - {"pip", "setuptools"} == BASE | {"bugcheck-lab"}
    done = subprocess.run(
        [linux.with_name("lab"), "triage", "--json", *dumps], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert list(reports(done.stdout)) == expected
    refused = subprocess.run(
        [linux.with_name("lab"), "triage", linux], capture_output=True, text=True
    )
    assert refused.returncode == 3
    assert "ELF" in refused.stderr


def test_windows(windows: WindowsPython, dumps: list[Path], expected: list[dict[str, Any]]) -> None:
    done = windows.run("-m", "lab", "triage", "--json", *windows_paths(dumps))
    assert done.returncode == 0, done.stderr
    assert list(reports(done.stdout)) == expected
    text = windows.run("-m", "lab", "triage", *windows_paths(dumps[:1]))
    assert text.returncode == 0, text.stderr
    assert triage(dumps[0]).bug_check.name in text.stdout
    refused = windows.run("-m", "lab", "triage", *windows_paths([Path(__file__)]))
    assert refused.returncode == 3
    assert "expected a kernel dump" in refused.stderr


def test_windows_reads_names_from_a_pdb(windows: WindowsPython) -> None:
    """With the reader of our own: `symbolic` has no wheel for Windows."""
    pdb = built("a-o2") / "sensor.pdb"
    (path,) = windows_paths([pdb])
    script = (
        "import pathlib, sys; from crashdump_analysis.symbols.pdb_file import PdbFile;"
        "from crashdump_analysis.symbols.pdb_names import PdbNames;"
        "names = PdbNames(PdbFile(pathlib.Path(sys.argv[1])));"
        "print([names.function(at) for at in range(0x1000, 0x1800, 64)])"
    )
    done = windows.run("-c", script, path)
    assert done.returncode == 0, done.stderr
    names = PdbNames(PdbFile(pdb))
    found = [names.function(at) for at in range(0x1000, 0x1800, 64)]
    assert any(found)
    assert done.stdout.strip() == str(found)


def test_windows_has_microsofts_engine(windows: WindowsPython, dumps: list[Path]) -> None:
    """The way of a local Windows: the worker in the Python that runs `lab`."""
    judge()
    (folder, dump) = windows_paths([cache_folder() / "engine" / "pykd", dumps[1]])
    done = windows.run(
        *("-m", "lab", "triage", "--json", "--engine", "both", dump),
        variables={
            "LAB_PYKD_ENGINE": folder,
            # Microsoft's DLLs and not Wine's own, which Windows does not have.
            "WINEDLLOVERRIDES": "mshtml=;winemenubuilder.exe=;dbgeng,dbghelp,dbgmodel,symsrv=n",
        },
    )
    assert done.returncode == 0, done.stderr
    comparison = json.loads(done.stdout)["comparison"]
    assert comparison["failure"] == ""
    # A synthetic dump has no registers for this engine; the rest of it must be the same.
    kinds = {one["kind"] for one in comparison["differences"]}
    assert kinds <= {"context.fault", "context.register", "stack.frame", "culprit.module"}
