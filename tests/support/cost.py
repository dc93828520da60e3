"""What a triage costs: each in a process of its own, whose time and memory are its alone."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from crashdump_analysis import DumpError, check_dump, triage

SECONDS = 1.0
PEAK = 200 << 20
"""The most that a plain dump of up to 64 MiB may take, in CPU seconds and bytes of memory."""
_CPU_LIMIT = 30  # seconds, after which the kernel ends the process
_MEMORY_LIMIT = 4 << 30  # bytes of address space, in which files are mapped


@dataclass(frozen=True)
class Cost:
    """outcome: "report", "refused: ..." or what went wrong. CPU seconds; peak memory in bytes."""

    outcome: str
    seconds: float
    peak: int

    @property
    def expected(self) -> bool:
        """Whether the outcome is a report or a DumpError."""
        return self.outcome == "report" or self.outcome.startswith("refused: ")


class Costs:
    """A process that has everything imported, and forks for each dump."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.cost"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate(timeout=60)

    def of(self, path: Path) -> Cost:
        """Of checking a dump and reporting on it, as text and JSON."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{path}\n")
        outcome, seconds, peak = json.loads(self._process.stdout.readline())
        return Cost(outcome, seconds, peak)


def assert_cheap(cost: Cost, seconds: float = SECONDS) -> None:
    """A report or a DumpError, within the limits."""
    assert cost.expected, cost.outcome
    assert cost.seconds < seconds, cost
    assert cost.peak < PEAK, cost


def _triage(path: str) -> str:
    try:
        check_dump(path)
        report = triage(path)
        report.to_text()
        report.to_json()
    except DumpError as error:
        return f"refused: {error}"
    except BaseException:
        return traceback.format_exc()
    return "report"


def _in_a_child(path: str) -> tuple[str, float, int]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (_CPU_LIMIT, _CPU_LIMIT))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT, _MEMORY_LIMIT))
        began = time.process_time()
        outcome = _triage(path)
        answer = json.dumps([outcome, time.process_time() - began])
        os.write(writer, answer.encode()[:0x10000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer_bytes = pipe.read()
    _, status, usage = os.wait4(child, 0)
    if status or not answer_bytes:
        return f"ended by {status:#x}", usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10
    outcome, seconds = json.loads(answer_bytes)
    return outcome, seconds, usage.ru_maxrss << 10


def _serve() -> None:
    """Answers a line for each line that names a dump."""
    for line in sys.stdin:
        print(json.dumps(_in_a_child(line.rstrip("\n"))), flush=True)


if __name__ == "__main__":
    _serve()
