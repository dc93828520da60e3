"""Builds a bootable disk image of the test kernel from files, without root.

The disk: a master boot record with one active FAT32 partition at sector 2048; the kernel's boot
loader in the gap before it, from sector 1. mkfs.fat and mtools make the file system, qemu-img the
qcow2. The same input gives the same bytes.

    python -m images.test_kernel.build --help
"""

from __future__ import annotations

import argparse
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PureWindowsPath

from images.test_kernel.registry import (
    CrashDump,
    RegistryValue,
    Service,
    ServiceStart,
    Settings,
    registry_text,
)

MIB = 1024 * 1024
SECTOR = 512
CLUSTER = 4096
PARTITION_LBA = 2048
LOADER_SECTORS = PARTITION_LBA - 1
"""The loader starts at sector 1 and must end before the partition."""
BUILT = Path(os.environ.get("LAB_TEST_KERNEL_BUILT") or Path(__file__).parent / "built")
"""The checked-in kernel: mbr.bin, loader.bin, ntoskrnl.exe, ntkrnlmp.pdb. The environment variable
LAB_TEST_KERNEL_BUILT names another build, as `make kernel-check` does to test one."""

KERNEL_PATH = r"C:\Windows\System32\ntoskrnl.exe"
REGISTRY_PATH = r"C:\Windows\System32\config\SYSTEM.reg"
DRIVERS_FOLDER = r"C:\Windows\System32\drivers"
PAGEFILE_PATH = r"C:\pagefile.sys"
MEMORY_DUMP_PATH = r"C:\Windows\MEMORY.DMP"
BOOT_STATUS_PATH = r"C:\Windows\bootstat.dat"
TEMPORARY_FOLDER = r"C:\Windows\Temp"

Content = bytes | Path
"""The bytes of a file, or a file on this machine to take them from."""


class ImageError(Exception):
    """An image could not be built; the message says why and what to do."""


@dataclass(frozen=True)
class Driver:
    r"""A driver service: its file goes to C:\Windows\System32\drivers\<name>.sys."""

    name: str
    image: Content
    start: ServiceStart = ServiceStart.BOOT
    parameters: Mapping[str, RegistryValue] = field(default_factory=dict)

    @property
    def service(self) -> Service:
        """Its registry key."""
        return Service(self.name, rf"System32\drivers\{self.name}.sys", self.start, self.parameters)


def build_image(
    path: Path,
    *,
    drivers: Sequence[Driver] = (),
    files: Mapping[str, Content] | None = None,
    settings: Settings | None = None,
    pagefile_bytes: int = 80 * MIB,
    pagefile_extents: int = 1,
    failed_boot_limit: int = 0,
    memory_dump: Content | None = None,
    disk_bytes: int = 512 * MIB,
    volume_label: str = "SYSTEM",
    volume_id: int = 0x4C414231,
    built: Path = BUILT,
) -> Path:
    r"""Builds the qcow2 image `path` and returns it; an existing file is replaced.

    drivers: services in load order, with their files.
    files: more files by guest path (C:\folder\name); they win over the builder's own.
    pagefile_bytes: size of the preallocated, zeroed pagefile; 0 leaves it out.
    pagefile_extents: in how many pieces it lies on the disk.
    failed_boot_limit: failed boots in a row before the repair screen; 0 means never.
    memory_dump: an old C:\Windows\MEMORY.DMP.
    built: folder with mbr.bin, loader.bin and ntoskrnl.exe.

    Raises ImageError when a part is missing or does not fit.
    """
    boot_record = _read_part(built / "mbr.bin", 440)
    loader = _read_part(built / "loader.bin", LOADER_SECTORS * SECTOR)
    content: dict[str, Content] = {
        KERNEL_PATH: _existing(built / "ntoskrnl.exe"),
        REGISTRY_PATH: registry_text(
            settings or Settings(), [driver.service for driver in drivers]
        ).encode(),
        BOOT_STATUS_PATH: boot_status(failed_boot_limit),
    }
    for driver in drivers:
        content[rf"{DRIVERS_FOLDER}\{driver.name}.sys"] = driver.image
    if memory_dump is not None:
        content[MEMORY_DUMP_PATH] = memory_dump
    content = _one_spelling({**content, **(files or {})})

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="image-") as scratch:
        raw = Path(scratch) / "disk.raw"
        with raw.open("wb") as disk:
            disk.write(_master_boot_record(boot_record, disk_bytes, volume_id))
            disk.write(loader)
            disk.truncate(disk_bytes)
        volume = _Fat32Volume(raw, Path(scratch))
        volume.format(disk_bytes, volume_label, volume_id)
        if pagefile_bytes:
            volume.preallocate(PAGEFILE_PATH, pagefile_bytes, pagefile_extents)
        volume.write(content)
        for folder in (DRIVERS_FOLDER, TEMPORARY_FOLDER):
            volume.folder(PureWindowsPath(folder))
        _run("qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", str(raw), str(path))
    return path


def boot_status(failed_boot_limit: int, failed_boots: int = 0) -> bytes:
    """bootstat.dat, one sector: "BSTA", then little-endian 32-bit version, failed boots, limit."""
    return struct.pack("<4sIII", b"BSTA", 1, failed_boots, failed_boot_limit).ljust(SECTOR, b"\0")


def _read_part(path: Path, limit: int) -> bytes:
    data = _existing(path).read_bytes()
    if not data or len(data) > limit:
        raise ImageError(
            f"{path} has {len(data)} bytes, expected 1 to {limit}; rebuild it with `make kernel`"
        )
    return data


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ImageError(f"{path} is missing; build the kernel with `make kernel`")
    return path


def _master_boot_record(code: bytes, disk_bytes: int, signature: int) -> bytes:
    """Boot code, disk signature, one active partition of type 0x0C (FAT32, LBA), 0x55AA."""
    if disk_bytes % SECTOR or disk_bytes < 64 * MIB:
        raise ImageError(f"disk size {disk_bytes}: expected whole sectors and at least 64 MiB")
    beyond_chs = b"\xfe\xff\xff"  # cylinder/head/sector that no BIOS uses for LBA partitions
    size = disk_bytes // SECTOR - PARTITION_LBA
    entry = struct.pack("<B3sB3sII", 0x80, beyond_chs, 0x0C, beyond_chs, PARTITION_LBA, size)
    table = entry.ljust(64, b"\0")
    return code.ljust(440, b"\0") + struct.pack("<IH", signature, 0) + table + b"\x55\xaa"


def _one_spelling(content: Mapping[str, Content]) -> dict[str, Content]:
    """Later entries win over earlier ones that differ in case or slashes only."""
    found: dict[PureWindowsPath, tuple[str, Content]] = {}
    for name, data in content.items():
        path = PureWindowsPath(name)
        if path.drive.upper() != "C:" or not path.root or len(path.parts) < 2:
            raise ImageError(rf"guest path {name!r}: expected an absolute path such as C:\a\b.sys")
        found[path] = (name, data)  # PureWindowsPath compares without case
    return dict(found.values())


class _Fat32Volume:
    """The partition of a raw disk, written by mkfs.fat and mtools."""

    def __init__(self, raw: Path, scratch: Path) -> None:
        self._raw = raw
        self._scratch = scratch
        self._device = f"{raw}@@{PARTITION_LBA * SECTOR}"
        self._folders: dict[PureWindowsPath, str] = {PureWindowsPath("C:\\"): "::/"}

    def format(self, disk_bytes: int, label: str, volume_id: int) -> None:
        """An empty FAT32 with 4 KiB clusters; `label` has at most 11 characters."""
        _run(
            "mkfs.fat", "--invariant", "--mbr=n", "-F", "32", "-S", str(SECTOR),
            "-s", str(CLUSTER // SECTOR), "-h", str(PARTITION_LBA), "-n", label,
            "-i", f"{volume_id:08x}", f"--offset={PARTITION_LBA}",
            str(self._raw), str((disk_bytes // SECTOR - PARTITION_LBA) // 2),
        )  # fmt: skip

    def write(self, content: Mapping[str, Content]) -> None:
        """Writes the files, making folders as needed; one mcopy for each folder."""
        by_folder: dict[PureWindowsPath, list[tuple[str, Content]]] = {}
        for name, data in content.items():
            path = PureWindowsPath(name)
            by_folder.setdefault(path.parent, []).append((path.name, data))
        for number, (folder, entries) in enumerate(by_folder.items()):
            target = self.folder(folder)
            staging = self._scratch / f"folder{number}"
            staging.mkdir()
            for name, data in entries:
                if isinstance(data, bytes):
                    (staging / name).write_bytes(data)
                elif data.is_file():
                    (staging / name).symlink_to(data.resolve())
                else:
                    raise ImageError(rf"{data}, wanted as {folder / name}, is no file")
            self._copy([staging / name for name, _ in entries], target)

    def preallocate(self, name: str, size: int, extents: int) -> None:
        """A zeroed file of `size` bytes that lies on the disk in `extents` pieces.

        To break it up, files are laid out with one-cluster spacers between them and removed
        again: the new file then fills the holes in order.
        """
        clusters = -(-size // CLUSTER)
        if not 1 <= extents <= clusters:
            raise ImageError(f"{extents} extents for {clusters} clusters of {name}")
        spacers: list[str] = []
        if extents > 1:
            sizes = [len(range(i, clusters, extents)) * CLUSTER for i in range(extents)]
            holes = [self._sparse(f"hole{i}", length) for i, length in enumerate(sizes)]
            between = [self._sparse(f"spacer{i}", CLUSTER) for i in range(extents - 1)]
            # mtools allocates upwards in the order of its arguments.
            layout = [file for pair in zip(holes, between, strict=False) for file in pair]
            self._copy([*layout, holes[-1]], "::/")
            self._mtools("mdel", *(f"::/{hole.name}" for hole in holes))
            spacers = [f"::/{spacer.name}" for spacer in between]
            self._forget_next_free()
        path = PureWindowsPath(name)
        target = self.folder(path.parent)
        self._copy([self._sparse(path.name, size)], target)
        if spacers:
            self._mtools("mdel", *spacers)

    def _sparse(self, name: str, size: int) -> Path:
        path = self._scratch / name
        with path.open("wb") as file:
            file.truncate(size)
        return path

    def _forget_next_free(self) -> None:
        """Clears FSInfo's next-free hint, so that allocation starts at the first cluster."""
        with self._raw.open("r+b") as disk:
            disk.seek((PARTITION_LBA + 1) * SECTOR + 0x1EC)
            disk.write(b"\xff\xff\xff\xff")

    def folder(self, folder: PureWindowsPath) -> str:
        """The folder's name for mtools; it is made if need be."""
        if folder not in self._folders:
            target = f"{self.folder(folder.parent).rstrip('/')}/{folder.name}"
            self._mtools("mmd", target)
            self._folders[folder] = target
        return self._folders[folder]

    def _copy(self, sources: Iterable[Path], target: str) -> None:
        self._mtools("mcopy", *map(str, sources), target)

    def _mtools(self, program: str, *arguments: str) -> None:
        _run(program, "-i", self._device, *arguments)


def _run(*command: str) -> None:
    # SOURCE_DATE_EPOCH and TZ fix the file times; 2024-07-19 04:09 UTC is as good as any.
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1721362140", "TZ": "UTC"}
    environment["PATH"] = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    except FileNotFoundError:
        raise ImageError(
            f"{command[0]} is not installed; it comes with Debian's dosfstools, mtools or"
            " qemu-utils: `make test` installs them"
        ) from None
    if done.returncode:
        raise ImageError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")


def _named_path(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not name or not equals or not path:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=FILE")
    return name, Path(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see --help."""
    parser = argparse.ArgumentParser(
        prog="python -m images.test_kernel.build",
        description="Builds a bootable qcow2 image of the test kernel; needs no root.",
        epilog=r"""example:
  python -m images.test_kernel.build out.qcow2 \
      --driver sensor=examples/sensor/built/a-o2/sensor.sys \
      --file 'C:\Windows\System32\drivers\Sensor\C-00000291-1.sys=killer.sys'
  qemu-system-x86_64 -accel tcg -m 64 -drive file=out.qcow2,if=ide -debugcon stdio""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults = Settings()
    parser.add_argument("output", type=Path, help="the qcow2 file to write (replaced)")
    parser.add_argument(
        "--driver", type=_named_path, action="append", default=[], metavar="NAME=FILE",
        help="a boot-start driver; repeat in load order",
    )  # fmt: skip
    parser.add_argument(
        "--file", type=_named_path, action="append", default=[], metavar=r"C:\PATH=FILE",
        help="a file for the system disk; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--dump", choices=[kind.name.lower() for kind in CrashDump], default="kernel",
        help="which dump a bug check writes (default: kernel)",
    )  # fmt: skip
    parser.add_argument(
        "--auto-reboot", action=argparse.BooleanOptionalAction, default=True,
        help="restart after a bug check (default), or stop at the blue screen",
    )  # fmt: skip
    parser.add_argument(
        "--failed-boot-limit", type=int, default=0, metavar="N",
        help="failed boots in a row before the repair screen (default: 0, never)",
    )  # fmt: skip
    parser.add_argument(
        "--dpc-timeout", type=int, default=defaults.dpc_timeout_milliseconds, metavar="MS",
        help="milliseconds at DISPATCH_LEVEL before bug check 0x133; 0 is never (default: 20000)",
    )  # fmt: skip
    parser.add_argument(
        "--pagefile", type=int, default=80, metavar="MIB",
        help="size of pagefile.sys in MiB; the dump is written there (default: 80)",
    )  # fmt: skip
    parser.add_argument(
        "--pagefile-extents", type=int, default=1, metavar="N",
        help="in how many pieces pagefile.sys lies on the disk (default: 1)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        build_image(
            options.output,
            drivers=[Driver(name, file) for name, file in options.driver],
            files=dict(options.file),
            settings=replace(
                defaults,
                auto_reboot=options.auto_reboot,
                dump=CrashDump[options.dump.upper()],
                dpc_timeout_milliseconds=options.dpc_timeout,
            ),
            pagefile_bytes=options.pagefile * MIB,
            pagefile_extents=options.pagefile_extents,
            failed_boot_limit=options.failed_boot_limit,
        )
    except (ImageError, ValueError) as error:
        print(f"build: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
