"""Builds the sensor's variants; the same sources give the same bytes in any directory.

``python -m examples.sensor.build`` writes ``built/<variant>/sensor.sys`` and ``sensor.pdb``, and
``built/manifest.json`` with their hashes and the versions of the tools. With ``--check`` it builds
in a temporary directory and compares.

Needs the Debian packages clang-14, lld-14, llvm-14 and mingw-w64-common.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
SOURCE: Final = HERE / "src"
BUILT: Final = HERE / "built"
HEADERS: Final = Path("/usr/share/mingw-w64/include")
PACKAGES: Final = "clang-14 lld-14 llvm-14 mingw-w64-common"

UNITS: Final = ("sensor", "content", "process", "rate", "owner", "burst")

#: 2024-07-19 04:00 UTC. Each variant adds an hour: debuggers and symbol servers tell images apart
#: by timestamp and size.
TIMESTAMP: Final = 1721361600

COMPILE: Final = (
    "--target=x86_64-w64-mingw32",
    "-std=c17",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-g",
    "-gcodeview",
    # Without unwind tables no debugger walks the stack past the driver.
    "-fasynchronous-unwind-tables",
    # What a null pointer and an endless loop mean to MSVC: what the code says.
    "-fno-delete-null-pointer-checks",
    "-fno-finite-loops",
    "-fno-stack-protector",
    "-mno-implicit-float",
    "-ffile-prefix-map=/usr/share/mingw-w64/include=include",
    "-ffile-compilation-dir=/sensor",
)
LINK: Final = (
    "/driver",
    "/subsystem:native",
    "/entry:DriverEntry",
    "/nodefaultlib",
    "/dynamicbase",
    # PsSetCreateProcessNotifyRoutineEx refuses a driver without it.
    "/integritycheck",
    "/debug",
    "/opt:ref",
    "/pdb:sensor.pdb",
    "/pdbaltpath:sensor.pdb",
    "/pdbsourcepath:/sensor",
    "/out:sensor.sys",
)


class BuildError(RuntimeError):
    """A tool is missing or failed; the message holds its output."""


@dataclass(frozen=True)
class Variant:
    """How one variant differs: compiler options, and the order in which objects are linked."""

    options: tuple[str, ...]
    units: tuple[str, ...] = UNITS


VARIANTS: Final[dict[str, Variant]] = {
    "a-o2": Variant(("-O2",)),
    "a-o0": Variant(("-O0",)),
    "a-inlined": Variant(("-O2", "-DSENSOR_INLINE_CHAIN=1")),
    "a-shifted": Variant(("-O2",), UNITS[::-1]),
    "b-o2": Variant(("-O2", "-DSENSOR_BOUNDS_CHECK=1")),
}


def _run(command: list[str], directory: Path) -> str:
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise BuildError(f"{command[0]} not found; install {PACKAGES}") from None
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}".rstrip())
    return done.stdout


def tool_versions() -> dict[str, str]:
    """The versions that decide the bytes: compiler, linker and DDK headers."""
    clang = _run(["clang-14", "--version"], HERE).splitlines()[0]
    linker = _run(["lld-link-14", "--version"], HERE).strip()
    try:
        macros = (HEADERS / "_mingw_mac.h").read_text()
    except FileNotFoundError:
        raise BuildError(f"{HEADERS} not found; install {PACKAGES}") from None
    numbers = re.findall(r"#define __MINGW64_VERSION_(?:MAJOR|MINOR|BUGFIX)\s+(\d+)", macros)
    return {"compiler": clang, "linker": linker, "headers": "mingw-w64 " + ".".join(numbers)}


def pe_checksum(image: bytes, checksum_offset: int) -> int:
    """The CheckSum of a PE image, as IMAGEHLP's CheckSumMappedFile computes it."""
    blank = image[:checksum_offset] + bytes(4) + image[checksum_offset + 4 :]
    padded = blank + bytes(len(blank) % 2)
    total: int = sum(struct.unpack(f"<{len(padded) // 2}H", padded))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total + len(image)


def _fill_checksum(path: Path) -> None:
    image = bytearray(path.read_bytes())
    (pe_offset,) = struct.unpack_from("<I", image, 0x3C)
    checksum_offset = pe_offset + 24 + 64  # signature and file header, then OptionalHeader.CheckSum
    struct.pack_into("<I", image, checksum_offset, pe_checksum(bytes(image), checksum_offset))
    path.write_bytes(image)


def build_variant(name: str, directory: Path) -> None:
    """Builds sensor.sys and sensor.pdb of one variant into ``directory``."""
    variant = VARIANTS[name]
    with tempfile.TemporaryDirectory() as scratch_name:
        # Copied and compiled by relative names: no path of this machine gets into the PDB.
        scratch = Path(scratch_name)
        for path in SOURCE.iterdir():
            shutil.copy(path, scratch)
        _run(
            ["llvm-dlltool-14", "-m", "i386:x86-64", "-d", "ntoskrnl.def", "-l", "ntoskrnl.lib"],
            scratch,
        )
        headers = ["-isystem", str(HEADERS), "-isystem", str(HEADERS / "ddk")]
        for unit in variant.units:
            _run(
                [
                    "clang-14",
                    *COMPILE,
                    *variant.options,
                    *headers,
                    "-c",
                    f"{unit}.c",
                    "-o",
                    f"{unit}.obj",
                ],
                scratch,
            )
        timestamp = TIMESTAMP + 3600 * list(VARIANTS).index(name)
        objects = [f"{unit}.obj" for unit in variant.units]
        _run(["lld-link-14", *LINK, f"/timestamp:{timestamp}", *objects, "ntoskrnl.lib"], scratch)
        _fill_checksum(scratch / "sensor.sys")
        directory.mkdir(parents=True, exist_ok=True)
        for file in ("sensor.sys", "sensor.pdb"):
            shutil.copyfile(scratch / file, directory / file)


def hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of each built file under ``directory``, by its relative path."""
    return {
        f"{variant}/{file}": hashlib.sha256((directory / variant / file).read_bytes()).hexdigest()
        for variant in VARIANTS
        for file in ("sensor.sys", "sensor.pdb")
    }


def build_all(directory: Path) -> dict[str, Any]:
    """Builds every variant under ``directory``; returns the manifest."""
    for name in VARIANTS:
        print(f"building {name}", flush=True)
        build_variant(name, directory / name)
    return {**tool_versions(), "sha256": hashes(directory)}


def check() -> int:
    """Rebuilds and compares with the manifest; 0 same, 1 different, 2 not the recorded tools."""
    recorded = json.loads((BUILT / "manifest.json").read_text())
    versions = tool_versions()
    other = {key: value for key, value in versions.items() if recorded[key] != value}
    if other:
        print(f"built with other tools, nothing to compare: recorded {recorded}, here {versions}")
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        rebuilt = build_all(Path(scratch))["sha256"]
    wrong = [name for name, digest in recorded["sha256"].items() if rebuilt.get(name) != digest]
    for name in wrong:
        print(f"DIFFERS  {name}: recorded {recorded['sha256'][name]}, rebuilt {rebuilt.get(name)}")
    print(f"{len(recorded['sha256']) - len(wrong)} of {len(recorded['sha256'])} files are the same")
    return 1 if wrong else 0


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.sensor.build",
        description="Build the sensor's variants into built/.",
        epilog="Exit codes: 0 built, or the same; 1 different or failed;"
        " 2 --check with tools of other versions than the recorded ones.",
    )
    parser.add_argument("--check", action="store_true", help="rebuild elsewhere and compare")
    try:
        if parser.parse_args().check:
            return check()
        manifest = build_all(BUILT)
    except BuildError as error:
        print(f"error: {error}")
        return 1
    (BUILT / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
