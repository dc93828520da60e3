"""Emulators that others made, each in a Python environment of its own under .work/emulators."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
EMULATORS = ROOT / ".work/emulators"


def emulator_environment(name: str) -> Path:
    """The environment's folder, made of requirements/emulators-NAME.txt where it is not up to date.

    libvirt-python is built there against the libvirt that is installed, which takes half a minute.
    """
    wanted = ROOT / f"requirements/emulators-{name}.txt"
    folder = EMULATORS / name
    made_of = folder / "requirements-installed.txt"
    EMULATORS.mkdir(parents=True, exist_ok=True)
    with (EMULATORS / f"{name}.lock").open("w") as lock:  # several test processes want it at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made_of.exists() or made_of.read_bytes() != wanted.read_bytes():
            uv = Path(sys.executable).with_name("uv")
            subprocess.run(
                [uv, "venv", "-q", "--clear", "--python", sys.executable, folder], check=True
            )
            subprocess.run(
                [
                    *(uv, "pip", "sync", "-q", "--require-hashes"),
                    *("--python", folder / "bin/python", wanted),
                ],
                check=True,
            )
            shutil.copyfile(wanted, made_of)
    return folder
