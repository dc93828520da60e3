"""Fuzzes the triage engine for some minutes and says what came of it.

    python -m fuzz --minutes 30 --output docs/benchmarks.md

The corpus stays in .work/fuzz and is taken up again. A finding is an input in .work/fuzz/findings,
with the traceback above; `python -m fuzz FINDING` tries it again. Make a unit test of it.
Exit code 0 without findings, 1 with one.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import machine, write_section
from fuzz.seeds import write_seeds
from fuzz.target import check

FOLDER = Path(__file__).parents[1] / ".work/fuzz"
_TOLD = re.compile(r"pulse|DONE|ERROR|Error|Exception|File |^ {4}|artifact|Test unit written")
"""Lines of libFuzzer's that are passed on: how far it is, and tracebacks."""
TITLE = "Fuzzing of the triage engine"
TEXT = """{machine}

`make fuzz`, {minutes:g} minutes on one core: atheris (libFuzzer) changes dumps of every type, plain
and compressed, PDBs and PE images, guided by the branches of the engine they reach. Each must give
a report or a `DumpError` within 5 s of instrumented CPU time and 1 GiB of the process's memory.

| inputs tried | a second | branches and edges seen | inputs kept | findings |
|---|---|---|---|---|
| {executions} | {speed} | {coverage} | {kept} | {findings} |
"""


def fuzz(minutes: float) -> tuple[str, bool]:
    """Fuzzes; gives the section of the page, and whether there was a finding."""
    corpus, findings = FOLDER / "corpus", FOLDER / "findings"
    findings.mkdir(parents=True, exist_ok=True)
    before = set(findings.iterdir())
    write_seeds(FOLDER / "seeds")
    corpus.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "fuzz.worker", str(corpus), str(FOLDER / "seeds")]
    command += [f"-artifact_prefix={findings}/", f"-max_total_time={int(minutes * 60)}"]
    command += ["-timeout=20", "-rss_limit_mb=1024", "-print_final_stats=1", "-max_len=300000"]
    command += ["-report_slow_units=5", "-verbosity=1"]
    last: deque[str] = deque(maxlen=400)
    with subprocess.Popen(command, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True) as (
        process
    ):
        assert process.stdout is not None
        for line in process.stdout:
            last.append(line)
            if _TOLD.search(line):
                print(line, end="", flush=True)
    text = "".join(last)
    new = sorted(set(findings.iterdir()) - before)
    for one in new:
        print(f"finding: {one}\n  again: {sys.executable} -m fuzz {one}", flush=True)

    def last_of(pattern: str) -> str:
        found = re.findall(pattern, text)
        return found[-1] if found else "unknown"

    section = TEXT.format(
        machine=machine(),
        minutes=minutes,
        executions=last_of(r"stat::number_of_executed_units:\s*(\d+)"),
        speed=last_of(r"stat::average_exec_per_sec:\s*(\d+)"),
        coverage=last_of(r"cov: (\d+)"),
        kept=last_of(r"corp: (\d+/\S+)"),
        findings=len(new),
    )
    return section, bool(new) or process.returncode != 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see --help."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("findings", nargs="*", type=Path, help="inputs to try again")
    parser.add_argument("--minutes", type=float, default=30, help="(default: 30)")
    parser.add_argument("--output", type=Path, help="a page to write the figures to")
    options = parser.parse_args(arguments)
    if options.findings:
        with tempfile.TemporaryDirectory() as folder:
            for one in options.findings:
                check(one.read_bytes(), Path(folder))
        return 0
    text, found = fuzz(options.minutes)
    print(text)
    if options.output and not found:
        write_section(options.output, TITLE, text)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
