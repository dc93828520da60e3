"""Times from power-on to the agent's answer and from a crash to the next boot.

Each round also times QEMU alone with an empty disk (SeaBIOS finds nothing to boot), so that the
host's own speed is seen beside the machine's: paired runs, medians and the spread. The result goes
to docs/benchmarks.md.

    python -m benchmarks.boot --help
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.report import PAGE, host, table, write_section
from images.contract import CATALOG, load_contract
from images.test_kernel.build import build_image
from tests.support.libvirt import Domain, Libvirt
from tests.support.waiting import wait_for

POLL = 0.005
"""Seconds between looks; below the cost of one virsh call."""
EMPTY = "QEMU alone, empty disk, until SeaBIOS gives up"
CREATE = "`virsh create` of the machine"
BOOT = "from `virsh create` to the agent's first answer"
CRASH = "from an NMI to the next boot's agent"
TITLE = "Boots and crashes of the test kernel"
TEXT = """{host}

{rounds} rounds. Each starts QEMU alone with an empty disk, as a measure of the host, then
the test kernel's machine under libvirt (64 MiB, one processor), waits for its guest agent, sends an
NMI and waits for the agent again. In between lie the bug check, the kernel dump into the pagefile,
the reset, SeaBIOS, and the boot; the copy to MEMORY.DMP goes on after it. Every question asked
through `virsh` is in the times.

{table}
"""


def _seconds(action: Callable[[], object]) -> float:
    began = time.monotonic()
    action()
    return time.monotonic() - began


def empty_qemu(folder: Path) -> float:
    """From starting QEMU to SeaBIOS giving up on an empty disk, as its debug port tells."""
    log = folder / "seabios.log"
    log.unlink(missing_ok=True)
    qemu = subprocess.Popen(
        [
            *("qemu-system-x86_64", "-accel", "tcg", "-machine", "pc", "-m", "64"),
            *("-display", "none", "-nodefaults", "-no-user-config"),
            *("-drive", f"file={folder / 'empty.raw'},format=raw,if=ide"),
            *("-chardev", f"file,id=log,path={log}"),
            *("-device", "isa-debugcon,iobase=0x402,chardev=log"),
        ],
        stdin=subprocess.DEVNULL,
    )
    try:
        return _seconds(
            lambda: wait_for(
                "SeaBIOS to give up",
                lambda: log.exists() and b"No bootable device" in log.read_bytes(),
                60,
                POLL,
            )
        )
    finally:
        qemu.kill()
        qemu.wait()


def measure(libvirt: Libvirt, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round, by what was timed."""
    deadlines = load_contract(CATALOG.parent / "test_kernel/contract.toml").deadlines
    times: dict[str, list[float]] = {name: [] for name in (EMPTY, CREATE, BOOT, CRASH)}
    with (libvirt.folder / "empty.raw").open("wb") as disk:
        disk.truncate(1024 * 1024)
    image = build_image(libvirt.new_image_path())
    for number in range(1, rounds + 1):
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
        times[EMPTY].append(empty_qemu(libvirt.folder))
        machine = Domain(libvirt, image)
        began = time.monotonic()
        times[CREATE].append(_seconds(machine.start))
        machine.wait_for_agent(deadlines.boot_to_agent)
        times[BOOT].append(time.monotonic() - began)
        began = time.monotonic()
        machine.inject_nmi()
        wait_for("the restart", machine.reset_events, deadlines.dump_writing, POLL)
        machine.wait_for_agent(deadlines.boot_to_agent)
        times[CRASH].append(time.monotonic() - began)
        assert machine.crash_count() == 1
        machine.close()
    return times


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see --help."""
    parser = argparse.ArgumentParser(
        prog="make bench", description="Times boots and crashes of the test kernel's image."
    )
    parser.add_argument("--rounds", type=int, default=20, help="paired runs (default: 20)")
    parser.add_argument(
        "--output", type=Path, default=PAGE, help="the page to write (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    with Libvirt() as libvirt:
        times = measure(libvirt, options.rounds)
    ratios = table(times, "times an empty start", dict.fromkeys(times, EMPTY))
    text = TEXT.format(host=host(), rounds=options.rounds, table=ratios)
    print(write_section(options.output, TITLE, text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
