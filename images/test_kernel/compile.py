"""Builds the test kernel: ``python -m images.test_kernel.compile [--check]``.

The kernel is one PE linked by lld-link from ``src``; its exports are the functions and data marked
``NTSYSAPI`` there. Boot record and loader are flat binaries. Only a change of the kernel needs
this: ``built`` holds the result, and in ``manifest.json`` the tools' versions and each file's hash.

``--check`` builds in a temporary folder. With the recorded tools the bytes must be the same; with
others the rebuilt kernel must pass the integration tests.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "src"
BUILT = HERE / "built"
MANIFEST = "manifest.json"
FILES = ("loader.bin", "mbr.bin", "ntkrnlmp.pdb", "ntoskrnl.exe")
PARTS = ("ke", "mm", "ps", "io", "ob", "cm", "rtl", "hal", "agent")
REPRODUCIBLE = ("-ffile-prefix-map=.=", "-ffile-compilation-dir=.")
KERNEL_FLAGS = (
    "--target=x86_64-pc-windows-msvc",
    "-ffreestanding",
    "-fasynchronous-unwind-tables",  # -ffreestanding alone leaves .pdata out
    "-mno-sse",
    "-mno-mmx",
    "-fno-stack-protector",
    "-mno-stack-arg-probe",
    "-O2",
    "-g",
    "-gcodeview",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Iinclude",
    *REPRODUCIBLE,
)
LOADER_FLAGS = (
    "--target=x86_64-unknown-none-elf",
    "-std=gnu17",
    "-Oz",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-multichar",
    "-Iinclude",
    "-ffreestanding",
    "-fno-pic",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-ffunction-sections",
    "-fdata-sections",
    "-mno-red-zone",
    "-mgeneral-regs-only",
)
LOADER_SOURCES = (
    "boot/loader.c",
    "hal/pci.c",
    "io/fat32.c",
    "io/ide.c",
    "mm/image.c",
    "rtl/text.c",
)
"""The kernel's own disk and file system code reads the kernel; what is not used is left out."""
MBR_CODE_BYTES = 440
"""Boot code of a master boot record; disk signature and partition table follow."""
EXPORT = re.compile(r"^(?:NORETURN )?NTSYSAPI [^;{(]*?\b(\w+)(?:\(|\[|;| =)", re.MULTILINE)
ASSEMBLY_EXPORTS = ("KeBugCheckEx", "RtlCaptureContext")
TIMESTAMP = "0x669A0000"
"""Of the kernel's PE header: 2024-07-19. Dumps and symbol servers name an image by it."""


class CompileError(RuntimeError):
    """A tool is missing or refused its input; the message holds what it said."""


def _run(*command: str, folder: Path = SOURCE) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise CompileError(f"{command[0]} is not here: .ci/debian-packages kernel") from None
    if done.returncode:
        raise CompileError(f"{' '.join(command)}\n{done.stdout}{done.stderr}".rstrip())
    return done.stdout


def tool_versions() -> dict[str, str]:
    """The versions that decide the bytes."""
    return {
        "compiler": _run("clang-14", "--version").splitlines()[0],
        "linker": _run("lld-link-14", "--version").strip(),
    }


def _compile(sources: Iterable[str], flags: Sequence[str], work: Path) -> list[str]:
    objects = []
    for name in sources:
        objects.append(str(work / (name.replace("/", "_") + ".o")))
        _run("clang-14", *flags, "-c", name, "-o", objects[-1])
    return objects


def build_boot(out: Path) -> None:
    """Makes mbr.bin and loader.bin in ``out``, without path or date. Raises CompileError."""
    link = ("ld.lld-14", "--oformat=binary", "--gc-sections", "--build-id=none", "-z", "nognustack")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        mbr, stage2 = _compile(("boot/mbr.S", "boot/stage2.S"), [LOADER_FLAGS[0]], work)
        loader = _compile(LOADER_SOURCES, LOADER_FLAGS, work)
        _run(*link, "-Ttext=0x7C00", "--entry=_start", "-o", str(out / "mbr.bin"), mbr)
        _run(*link, "-T", "boot/loader.ld", "-o", str(out / "loader.bin"), stage2, *loader)
    size = (out / "mbr.bin").stat().st_size
    if size > MBR_CODE_BYTES:
        raise CompileError(f"boot/mbr.S: {size} bytes of code, {MBR_CODE_BYTES} fit: shorten it")


def build_kernel(out: Path) -> None:
    """Makes ntoskrnl.exe and ntkrnlmp.pdb in ``out``. Raises CompileError."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        sources = sorted(path for part in PARTS for path in (SOURCE / part).glob("*.[cS]"))
        names = [path.relative_to(SOURCE).as_posix() for path in sources]
        objects = _compile(names, KERNEL_FLAGS, work)
        found = (name for path in sources for name in EXPORT.findall(path.read_text()))
        exports = "".join(f"    {name}\n" for name in sorted({*ASSEMBLY_EXPORTS, *found}))
        (work / "ntoskrnl.def").write_text(f"LIBRARY ntoskrnl.exe\nEXPORTS\n{exports}")
        _run(
            "lld-link-14",
            *(f"/{flag}" for flag in ("driver", "subsystem:native", "entry:KiSystemStartup")),
            *(f"/{flag}" for flag in ("nodefaultlib", "dynamicbase", "debug")),
            f"/timestamp:{TIMESTAMP}",
            "/base:0x140000000",
            "/def:ntoskrnl.def",
            "/implib:ntoskrnl.lib",
            "/pdb:ntkrnlmp.pdb",
            "/pdbaltpath:ntkrnlmp.pdb",
            "/pdbsourcepath:C:\\nt",
            "/out:ntoskrnl.exe",
            *(Path(name).name for name in objects),
            folder=work,
        )
        for name in ("ntoskrnl.exe", "ntkrnlmp.pdb"):
            (out / name).write_bytes((work / name).read_bytes())


def build_all(out: Path) -> None:
    """Makes all of FILES and the manifest in ``out``. Raises CompileError."""
    out.mkdir(parents=True, exist_ok=True)
    build_boot(out)
    build_kernel(out)
    manifest = {**tool_versions(), "files": _hashes(out)}
    (out / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def _hashes(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}


def check() -> int:
    """Rebuilds elsewhere and compares, or tests; the process's exit code. Raises CompileError."""
    recorded = json.loads((BUILT / MANIFEST).read_text())
    if _hashes(BUILT) != recorded["files"]:
        print("built/ is not what its manifest says: run `make kernel`")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        rebuilt = Path(folder)
        build_all(rebuilt)
        rebuilt.chmod(0o755)
        if tool_versions() == {key: recorded[key] for key in ("compiler", "linker")}:
            hashes = _hashes(rebuilt)
            wrong = [name for name in FILES if hashes[name] != recorded["files"][name]]
            print(f"differ: {', '.join(wrong)}" if wrong else "the same bytes, as recorded")
            return int(bool(wrong))
        print(f"built with other tools than {recorded['compiler']}: testing the rebuilt kernel")
        environment = {**os.environ, "LAB_TEST_KERNEL_BUILT": folder}
        tests = [sys.executable, "-m", "pytest", "-n", "2", "-m", "not soak", "tests/integration"]
        return subprocess.run(tests, cwd=HERE.parents[1], env=environment, check=False).returncode


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare a rebuild with built/")
    parser.add_argument("--out", type=Path, default=BUILT, help="where to build (default: built/)")
    arguments = parser.parse_args()
    try:
        if arguments.check:
            return check()
        build_all(arguments.out)
    except CompileError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
