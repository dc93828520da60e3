"""The demonstration: one bad content file, one machine that stops, and what its dump says.

python -m images.test_kernel.demo --help
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import kdmp_parser

from crashdump_analysis.engines.wine import WineEngine, format_report
from examples.sensor.content import ContentError
from examples.sensor.validator import validate
from images.contract import Contract, load_contract
from images.test_kernel.build import BUILT, PAGEFILE_PATH, ImageError, build_image
from images.test_kernel.registry import Settings
from tests.support.disk import dump_in_pagefile
from tests.support.libvirt import Domain, Libvirt
from tests.support.sensor import built, content_files, load_content, sensor_driver
from tests.support.waiting import DeadlineError, wait_for

HERE = Path(__file__).parent
VARIANT = "a-o2"


@dataclass(frozen=True)
class Steps:
    """Prints what is being done and how far into the demonstration, in seconds."""

    began: float

    def say(self, text: str) -> None:
        """One line."""
        print(f"[{time.monotonic() - self.began:5.1f} s] {text}", flush=True)


def crash(output: Path, contract: Contract, steps: Steps) -> Path:
    """Runs good content, then the killer; leaves screen and dump in `output`, returns the dump."""
    with Libvirt() as libvirt:
        steps.say("Building a disk: the test kernel, the sensor driver, benign content")
        image = build_image(
            libvirt.new_image_path(),
            drivers=[sensor_driver(VARIANT)],
            files=content_files("benign"),
            # Without automatic restart it stays at its blue screen, so that it can be seen.
            settings=Settings(auto_reboot=False),
        )
        machine = Domain(libvirt, image)
        machine.start()
        machine.wait_for_agent(contract.deadlines.boot_to_agent)
        steps.say("It boots, the sensor runs, the guest agent answers")
        for file in content_files("killer").values():
            validate(file.read_bytes())  # raises ContentError for what must not be released
            steps.say(f"A new content file, {file.name}: the validator lets it pass")
        load_content(machine, "killer")
        steps.say("It goes to the running machine, where the sensor loads it")
        try:
            machine.wait_for_crash(contract.deadlines.boot_to_agent)
        except DeadlineError:
            machine.screenshot(output / "screen.png")
            print(machine.debug_text()[-2000:], file=sys.stderr)
            raise
        steps.say("It has stopped with a bug check and writes its dump into the pagefile")
        wait_for(
            "the end of the dump",
            lambda: "Physical memory dump complete" in machine.screen_text(),
            contract.deadlines.dump_writing,
        )
        screen = machine.screenshot(output / "blue-screen.png")
        steps.say(f"Its screen: {screen}")
        text = machine.screen_text()
        machine.destroy()
        with machine.disk() as disk:
            pagefile = disk.read(PAGEFILE_PATH)
        dump = output / "MEMORY.DMP"
        dump.write_bytes(dump_in_pagefile(pagefile))
        steps.say(f"The dump, out of the powered-off disk: {dump}")
        machine.start()
        machine.wait_for_crash(contract.deadlines.boot_to_agent, 2)
        steps.say("Switched on again it crashes before its agent answers: the file is on the disk")
        machine.close()
        print("\n" + "\n".join(f"    {line}" for line in text.splitlines() if line))
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
        folders = [BUILT, built(VARIANT)]
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
    steps = Steps(time.monotonic())
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        dump = crash(options.output, load_contract(HERE / "contract.toml"), steps)
    except (ContentError, ImageError, DeadlineError, ValueError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    show_kdmp_parser(dump)
    show_debugger_engine(dump)
    return 0


if __name__ == "__main__":
    sys.exit(main())
