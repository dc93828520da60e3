"""The demonstration: one bad content file, one machine that stops, and what its dump says.

python -m images.test_kernel.demo --help
"""

from __future__ import annotations

import argparse
import os
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import kdmp_parser

from crashdump_analysis.engines.wine import WineEngine, format_report
from images.contract import Contract, load_contract
from images.test_kernel.build import BUILT, PAGEFILE_PATH, Driver, ImageError, build_image
from images.test_kernel.registry import Settings
from tests.support.libvirt import Domain, Libvirt
from tests.support.waiting import DeadlineError, wait_for

HERE = Path(__file__).parent
SENSOR = HERE.parents[1] / "examples/sensor"
CONTENT_FOLDER = r"C:\Windows\System32\drivers\Sensor"
REQUIRED_DUMP_SPACE = 0xFA0
"""Offset in DUMP_HEADER64 of the dump's whole size in bytes (u64)."""


@dataclass(frozen=True)
class Steps:
    """Prints what is being done and how far into the demonstration, in seconds."""

    began: float

    def say(self, text: str) -> None:
        """One line."""
        print(f"[{time.monotonic() - self.began:5.1f} s] {text}", flush=True)


def dump_in_pagefile(pagefile: bytes) -> bytes:
    """The dump a crash left at the start of pagefile.sys. Raises ValueError if there is none."""
    if pagefile[:8] != b"PAGEDU64":
        raise ValueError(f"pagefile.sys holds no dump: it starts with {pagefile[:8]!r}")
    (size,) = struct.unpack_from("<Q", pagefile, REQUIRED_DUMP_SPACE)
    if not 0x2000 < size <= len(pagefile):
        raise ValueError(f"the dump says it has {size} bytes, the pagefile {len(pagefile)}")
    return pagefile[:size]


def content_files(name: str) -> dict[str, Path]:
    """The sensor's example content of that name, by guest path."""
    found = sorted((SENSOR / "content" / name).glob("*.sys"))
    return {rf"{CONTENT_FOLDER}\{file.name}": file for file in found}


def crash(output: Path, contract: Contract, steps: Steps) -> Path:
    """Runs good content, then the killer; leaves screen and dump in `output`, returns the dump."""
    sensor = Driver("sensor", SENSOR / "built/a-o2/sensor.sys")
    # Without automatic restart the machine stays at its blue screen, so that it can be seen.
    settings = Settings(auto_reboot=False)
    with Libvirt() as libvirt:
        good = build_image(
            libvirt.new_image_path(),
            drivers=[sensor],
            files=content_files("benign"),
            settings=settings,
        )
        steps.say("Starting a machine with the sensor driver and good content")
        machine = Domain(libvirt, good)
        machine.start()
        machine.wait_for_agent(contract.deadlines.boot_to_agent)
        steps.say("It runs: the guest agent answers. Same machine, next content file")
        machine.close()

        bad = build_image(
            libvirt.new_image_path(),
            drivers=[sensor],
            files=content_files("killer"),
            settings=settings,
        )
        machine = Domain(libvirt, bad)
        machine.start()
        try:
            wait_for("a bug check", machine.crash_count, contract.deadlines.boot_to_agent)
        except DeadlineError:
            machine.screenshot(output / "screen.png")
            print(machine.debug_text()[-2000:], file=sys.stderr)
            raise
        steps.say("It has stopped with a bug check and writes its dump")
        machine.wait_for_quiet_disk(contract.deadlines.dump_writing)
        screen = machine.screenshot(output / "blue-screen.png")
        steps.say(f"Its screen: {screen}")
        machine.destroy()
        with machine.disk() as disk:
            pagefile = disk.read(PAGEFILE_PATH)
        dump = output / "MEMORY.DMP"
        dump.write_bytes(dump_in_pagefile(pagefile))
        steps.say(f"The dump, out of the powered-off disk's pagefile: {dump}")
        return dump


def show_kdmp_parser(dump: Path) -> None:
    """What kdmp-parser, an independent reader, says of the dump."""
    parsed = kdmp_parser.KernelDumpParser(dump)
    header = parsed.header
    parameters = ", ".join(f"{value:#x}" for value in header.BugCheckCodeParameter)
    print(f"\nkdmp-parser {kdmp_parser.version.release}: {parsed.type.name}")
    print(f"  bug check {header.BugCheckCode:#x} ({parameters})")
    print(f"  stopped at rip {parsed.context.Rip:#x}, rsp {parsed.context.Rsp:#x}")


def show_debugger_engine(dump: Path) -> None:
    """What Microsoft's engine says; runs only where its terms were accepted."""
    if os.environ.get("LAB_ACCEPT_DEBUGGER_TERMS") != "1":
        print(
            "\nMicrosoft's debugger engine was not asked. docs/pykd.md says what that takes; then:"
        )
        print("  LAB_ACCEPT_DEBUGGER_TERMS=1 make demo")
        return
    with WineEngine() as engine:
        folders = [BUILT, SENSOR / "built/a-o2"]
        engine.open(dump, symbols=folders, images=folders)
        print(f"\n{format_report(engine.report())}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see --help."""
    parser = argparse.ArgumentParser(
        prog="make demo",
        description="Boots a machine with the example sensor, first with good content, then with"
        " the killer; shows the blue screen and what two independent readers say of the dump.",
    )
    parser.add_argument(
        "--output", type=Path, default=Path(".work/demo"), metavar="FOLDER",
        help="where the screen and the dump go (default: .work/demo)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    steps = Steps(time.monotonic())
    try:
        dump = crash(options.output, load_contract(HERE / "contract.toml"), steps)
    except (ImageError, DeadlineError, ValueError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    show_kdmp_parser(dump)
    show_debugger_engine(dump)
    return 0


if __name__ == "__main__":
    sys.exit(main())
