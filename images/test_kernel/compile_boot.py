"""Compiles the test kernel's boot chain: the master boot record and the loader blob.

Both are flat binaries that hold no path, date or build number, so the same compiler makes the same
bytes anywhere.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent / "src"
MBR_CODE_BYTES = 440
"""Boot code of a master boot record; disk signature and partition table follow."""
MBR_ADDRESS = 0x7C00

CLANG = "clang-14"
LLD = "ld.lld-14"
TARGET = "--target=x86_64-unknown-none-elf"
COMPILE = [
    *(CLANG, TARGET, "-std=gnu17", "-Oz", "-Wall", "-Wextra", "-Werror", "-Iinclude"),
    *("-ffreestanding", "-fno-pic", "-fno-stack-protector", "-fno-asynchronous-unwind-tables"),
    *("-ffunction-sections", "-fdata-sections", "-mno-red-zone", "-mgeneral-regs-only"),
    # Exports mean something to the kernel's PE only.
    *("-Wno-multichar", "-fdeclspec", "-Wno-ignored-attributes"),
]
LINK = [LLD, "--oformat=binary", "--gc-sections", "--build-id=none", "-z", "nognustack"]
LOADER_SOURCES = (
    "boot/loader.c",
    *("hal/pci.c", "io/fat32.c", "io/ide.c", "mm/image.c", "rtl/text.c"),
)
"""The kernel's own disk and file system code reads the kernel; what is not used is left out."""


def build_boot(out: Path) -> None:
    """Write mbr.bin and loader.bin to the directory `out`."""
    out = out.resolve()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        objects = []
        for source in ("boot/mbr.S", "boot/stage2.S"):
            objects.append(work / f"{Path(source).stem}.o")
            run([CLANG, TARGET, "-c", source, "-o", str(objects[-1])])
        mbr, *loader = objects
        for source in LOADER_SOURCES:
            loader.append(work / f"{Path(source).stem}.o")
            run([*COMPILE, "-c", source, "-o", str(loader[-1])])
        target = ["-o", str(out / "mbr.bin"), str(mbr)]
        run([*LINK, f"-Ttext={MBR_ADDRESS:#x}", "--entry=_start", *target])
        target = ["-o", str(out / "loader.bin"), *map(str, loader)]
        run([*LINK, "-T", "boot/loader.ld", *target])
    size = (out / "mbr.bin").stat().st_size
    if size > MBR_CODE_BYTES:
        raise ValueError(f"boot/mbr.S: {size} bytes of code, {MBR_CODE_BYTES} fit; shorten it")


def run(command: list[str]) -> None:
    """Run a build command among the sources: its output then holds no path of this machine."""
    subprocess.run(command, cwd=SOURCES, check=True)
