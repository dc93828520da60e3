"""Times from power-on to the agent's answer and from a crash to the next boot.

Each round also times QEMU alone with an empty disk (SeaBIOS finds nothing to boot), so that the
host's own speed is seen beside the machine's: paired runs, medians and the spread. The result goes
to docs/benchmarks.md.

    python -m benchmarks.boot --help
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
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
EMPTY = "QEMU alone, empty disk, until SeaBIOS gives up"
CREATE = "`virsh create` of the machine"
BOOT = "from `virsh create` to the agent's first answer"
CRASH = "from an NMI to the next boot's agent"
RESULTS = CATALOG.parents[1] / "docs/benchmarks.md"
PAGE = """# Benchmarks

Written by `make bench` on {day}: {host}.

{rounds} paired rounds. Each starts QEMU alone with an empty disk, as a measure of the host, then
the test kernel's machine under libvirt (64 MiB, one processor), waits for its guest agent, sends an
NMI and waits for the agent again. In between lie the bug check, the kernel dump into the pagefile,
the reset, SeaBIOS, and the boot; the copy to MEMORY.DMP goes on after it. The last column is the
median of each round's ratio to that round's empty start. All times are of the host's clock, and
every question asked through `virsh` is in them.

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


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    return found[1].strip() if found else "unknown"


def host() -> str:
    """The machine and the programs the times were taken on."""
    processor = _first(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text())
    system = _first(r'^PRETTY_NAME="?([^"\n]*)', Path("/etc/os-release").read_text())
    memory = int(_first(r"^MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())) // 1024**2
    versions = [
        subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for command in (["qemu-system-x86_64", "--version"], ["virsh", "--version"])
    ]
    qemu, libvirt = _first(r"version (\S+)", versions[0]), versions[1].strip()
    return (
        f"{os.cpu_count()} x {processor}, {memory} GiB, {system}; QEMU {qemu} (TCG), "
        f"libvirt {libvirt}"
    )


def table(times: dict[str, list[float]]) -> str:
    """Medians and spread in seconds, and the median of each round's ratio to the empty start."""
    lines = [
        "| | median, s | lowest | highest | times an empty start |",
        "|---|---|---|---|---|",
    ]
    for name, values in times.items():
        ratio = statistics.median(
            value / empty for value, empty in zip(values, times[EMPTY], strict=True)
        )
        lines.append(
            f"| {name} | {statistics.median(values):.2f} | {min(values):.2f} | {max(values):.2f} "
            f"| {ratio:.1f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see --help."""
    parser = argparse.ArgumentParser(
        prog="make bench", description="Times boots and crashes of the test kernel's image."
    )
    parser.add_argument("--rounds", type=int, default=20, help="paired runs (default: 20)")
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help="the page to write (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    with Libvirt() as libvirt:
        times = measure(libvirt, options.rounds)
    day = datetime.datetime.now(datetime.UTC).date()
    page = PAGE.format(day=day, host=host(), rounds=options.rounds, table=table(times))
    options.output.write_text(page)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
