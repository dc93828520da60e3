"""Times from power-on to the agent's answer and from a crash to the next boot, in seconds.

Each round also times QEMU alone with an empty disk (SeaBIOS finds nothing to boot), so that the
host's own speed is seen beside the machine's: paired runs, medians and the spread.

    python -m benchmarks.boot --help
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from images.contract import CATALOG, load_contract
from images.test_kernel.build import build_image
from tests.support.libvirt import Domain, Libvirt
from tests.support.waiting import wait_for

POLL = 0.005
"""Seconds between looks; below the cost of one virsh call."""


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


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see --help."""
    parser = argparse.ArgumentParser(
        prog="make bench", description="Times boots and crashes of the test kernel's image."
    )
    parser.add_argument("--rounds", type=int, default=10, help="paired runs (default: 10)")
    rounds = parser.parse_args(arguments).rounds
    contract = load_contract(CATALOG.parent / "test_kernel/contract.toml")
    times: dict[str, list[float]] = {
        "QEMU alone, empty disk": [],
        "virsh create": [],
        "power-on to agent": [],
        "NMI to next boot's agent": [],
    }
    with Libvirt() as libvirt:
        with (libvirt.folder / "empty.raw").open("wb") as disk:
            disk.truncate(1024 * 1024)
        image = build_image(libvirt.new_image_path())
        for number in range(1, rounds + 1):
            print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
            times["QEMU alone, empty disk"].append(empty_qemu(libvirt.folder))
            machine = Domain(libvirt, image)
            began = time.monotonic()
            times["virsh create"].append(_seconds(machine.start))
            machine.wait_for_agent(contract.deadlines.boot_to_agent)
            times["power-on to agent"].append(time.monotonic() - began)
            began = time.monotonic()
            machine.inject_nmi()
            wait_for("the restart", machine.reset_count, contract.deadlines.dump_writing, POLL)
            machine.wait_for_agent(contract.deadlines.boot_to_agent)
            times["NMI to next boot's agent"].append(time.monotonic() - began)
            machine.close()
    print(f"| seconds, {rounds} rounds | median | lowest | highest |")
    print("|---|---|---|---|")
    for name, values in times.items():
        middle = statistics.median(values)
        print(f"| {name} | {middle:.2f} | {min(values):.2f} | {max(values):.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
