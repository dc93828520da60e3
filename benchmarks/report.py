"""What every benchmark shares: the machine it ran on, its tables, its section of the page."""

from __future__ import annotations

import datetime
import os
import re
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs/benchmarks.md"
INTRODUCTION = """# Benchmarks

`make bench` writes this page, a section for each benchmark. Times are of the host's clock. What is
compared was run in pairs, one after the other in the same round, and a ratio is the median of the
rounds' own ratios: so a host that is slow for a while is slow for both.
"""
Times = Mapping[str, Sequence[float]]
"""Seconds of each round, by what was timed."""


def machine() -> str:
    """The day and the machine that times were taken with."""
    processor = _first(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text())
    system = _first(r'^PRETTY_NAME="?([^"\n]*)', Path("/etc/os-release").read_text())
    memory = int(_first(r"^MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())) // 1024**2
    return (
        f"{datetime.datetime.now(datetime.UTC).date()}: {os.cpu_count()} x {processor}, {memory}"
        f" GiB, {system}."
    )


def host() -> str:
    """The day, the machine and the programs that times were taken with."""
    versions = [
        subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for command in (["qemu-system-x86_64", "--version"], ["virsh", "--version"])
    ]
    qemu, libvirt = _first(r"version (\S+)", versions[0]), versions[1].strip()
    return f"{machine().rstrip('.')}; QEMU {qemu} (TCG), libvirt {libvirt}."


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    return found[1].strip() if found else "unknown"


def table(times: Times, ratio: str, to: Mapping[str, str]) -> str:
    """Medians and spread in seconds, and ratios to other lines of the table.

    ratio: the last column's heading. to: by line, the one whose time in the same round is the
    divisor; a line that is not in it has no ratio.
    """
    lines = [f"| | median, s | lowest | highest | {ratio} |", "|---|---|---|---|---|"]
    for name, values in times.items():
        said = ""
        if name in to:
            pairs = zip(values, times[to[name]], strict=True)
            said = f"{statistics.median(value / base for value, base in pairs):.1f}"
        lines.append(
            f"| {name} | {statistics.median(values):.2f} | {min(values):.2f} | {max(values):.2f} "
            f"| {said} |"
        )
    return "\n".join(lines)


def write_section(page: Path, title: str, text: str) -> str:
    """Puts a section in the place of the one with that title, or at the end; gives the section."""
    section = f"## {title}\n\n{text.strip()}\n"
    old = page.read_text() if page.exists() else INTRODUCTION
    head, *sections = re.split(r"^(?=## )", old, flags=re.MULTILINE)
    titles = [one.partition("\n")[0] for one in sections]
    if f"## {title}" in titles:
        sections[titles.index(f"## {title}")] = section
    else:
        sections.append(section)
    page.write_text("\n".join(part.strip() + "\n" for part in (head, *sections)))
    return section
