"""Speed and memory of triage: against Microsoft's engine, kdmp-parser, volatility3 and Python.

What is compared runs in pairs in the same round. Microsoft's engine is left out unless its terms
are accepted (docs/pykd.md), and its line says so. The result goes to docs/benchmarks.md.

    python -m benchmarks.triage --help
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import kdmp_parser

from benchmarks.report import PAGE, machine, write_section
from benchmarks.triage_dumps import distinct_triage_dumps, dump_of_test_kernel, sparse_dumps
from crashdump_analysis import triage
from crashdump_analysis.debugger_data import read_debugger_data
from crashdump_analysis.dump import open_dump
from crashdump_analysis.engines.wine import WineEngine, setup
from crashdump_analysis.engines.wine_setup import TERMS_VARIABLE
from crashdump_analysis.modules import loaded_modules
from images.test_kernel.build import BUILT
from tests.oracle.readers import Volatility

ROUNDS = 21
LOOP = 100_000
SIZES = (1, 4, 16)  # GiB
TITLE = "Triage: speed and memory"
TEXT = """{machine}

Medians of {rounds} rounds. The reference loop, which says how fast this host was, is
`for number in range({loop}): total ^= number * number`.

{tables}
"""
Rows = list[Sequence[object]]


def seconds(action: Callable[[], object]) -> float:
    """How long an action takes, by the host's clock."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def reference_loop() -> int:
    """A fixed amount of work for the interpreter."""
    total = 0
    for number in range(LOOP):
        total ^= number * number
    return total


def milliseconds(values: Sequence[float]) -> str:
    """Median, and lowest and highest, as text."""
    low, high = min(values) * 1e3, max(values) * 1e3
    return f"{statistics.median(values) * 1e3:.1f} ({low:.1f} to {high:.1f})"


def ratio(values: Sequence[float], base: Sequence[float]) -> str:
    """The median of each round's own ratio."""
    return f"{statistics.median(a / b for a, b in zip(values, base, strict=True)):.1f}"


def table(head: Sequence[str], rows: Rows) -> str:
    """Markdown of a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def against_engine(folder: Path) -> str:
    """Triage dump to report, warm, against a warm dbgeng that opens, reports and closes."""
    paths = distinct_triage_dumps(folder, ROUNDS)
    engine = None
    if os.environ.get(TERMS_VARIABLE) == "1":
        setup()
        engine = WineEngine()
        engine.open(paths[0])
        engine.report()
        engine.close()
    loops, ours, theirs = [], [], []

    def with_engine(path: Path) -> None:
        assert engine is not None
        engine.open(path)
        engine.report()
        engine.close()

    triage(paths[0])
    for path in paths:
        loops.append(seconds(reference_loop))
        ours.append(seconds(partial(triage, path)))
        if engine:
            theirs.append(seconds(partial(with_engine, path)))
    if engine:
        engine.shut_down()
    rows: Rows = [
        ("the reference loop", milliseconds(loops), ratio(loops, ours)),
        ("`triage()` of a triage dump, without symbols", milliseconds(ours), "1"),
        (
            "dbgeng in a warm worker: open, modules, stack, close",
            milliseconds(theirs) if theirs else "its terms are not accepted",
            ratio(theirs, ours) if theirs else "",
        ),
    ]
    size = paths[0].stat().st_size >> 10
    return (
        f"**A triage dump** of {size} KiB, in a warm process; another one in each round. Goals: "
        "10 times faster than the engine, 8 ms.\n\n"
        + table(("", "ms (lowest to highest)", "times `triage()`"), rows)
    )


def _triage_all(paths: Sequence[Path]) -> int:
    """Reports on dumps; gives this process's peak memory in bytes."""
    for path in paths:
        triage(path).to_json()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def throughput(folder: Path, count: int) -> str:
    """Many different dumps on two cores."""
    paths = distinct_triage_dumps(folder, count)
    # A new interpreter each: memory that this process has used is not theirs.
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        list(pool.map(_triage_all, [paths[:1], paths[:1]]))
        began = time.perf_counter()
        peaks = list(pool.map(_triage_all, [paths[0::2], paths[1::2]]))
        took = time.perf_counter() - began
    rows: Rows = [(count, f"{took:.1f}", f"{count / took:.0f}", f"{max(peaks) / 2**20:.0f}")]
    return (
        "**Many triage dumps**, all different, two processes. Goals: 200 a second, 100 MiB.\n\n"
        + table(("dumps", "s", "a second", "peak memory of a process, MiB"), rows)
    )


def open_and_list(path: Path) -> int:
    """Opens a dump and walks the list of modules; how many there are."""
    with open_dump(path) as dump:
        data, _ = read_debugger_data(dump.memory, dump.header)
        kernel = data.kernel_base if data else None
        modules, _ = loaded_modules(dump.memory, dump.header.ps_loaded_module_list, kernel)
        return len(modules)


def by_size(folder: Path) -> str:
    """Full and bitmap dumps of growing size: flat, and against kdmp-parser's opening."""
    rows: Rows = []
    for kind, size, path in sparse_dumps(folder, SIZES):
        assert len(triage(path).modules) == open_and_list(path)
        rounds = ROUNDS if size < SIZES[-1] else 7
        reports = [seconds(partial(triage, path)) for _ in range(rounds)]
        opened, parser = [], []
        for _ in range(rounds):
            opened.append(seconds(partial(open_and_list, path)))
            parser.append(seconds(partial(kdmp_parser.KernelDumpParser, path)))
            gc.collect()  # gives its memory back, in nobody's time
        rows.append(
            (
                f"{kind}, {size} GiB",
                *map(milliseconds, (reports, opened, parser)),
                f"{statistics.median(a / b for a, b in zip(opened, parser, strict=True)):.3f}",
            )
        )
    return (
        "**Size of the dump** (sparse files). Goals: flat in size; opening and the list of modules "
        "at most 2 times kdmp-parser's opening alone.\n\n"
        + table(
            (
                *("", "report, ms", "open and modules, ms"),
                *("kdmp-parser's open, ms", "open and modules, times kdmp-parser's open"),
            ),
            rows,
        )
    )


def against_volatility(folder: Path) -> str:
    """The list of modules, whole processes, on a dump of the test kernel."""
    path = dump_of_test_kernel(folder / "MEMORY.DMP")
    with open_dump(path) as dump:
        data, _ = read_debugger_data(dump.memory, dump.header)
        assert data is not None
        assert data.kernel_base is not None
        offset = dump.header.ps_loaded_module_list - data.kernel_base
    volatility = Volatility(folder / "symbols", folder / "cache")
    expected = len(
        volatility.modules(path, BUILT / "ntoskrnl.exe", offset)
    )  # its caches are filled
    assert open_and_list(path) == expected
    warm, process, theirs = [], [], []
    for _ in range(ROUNDS):
        warm.append(seconds(lambda: open_and_list(path)))
        process.append(seconds(lambda: subprocess.run([*_lab(), "triage", path], check=True,
                                                      capture_output=True)))  # fmt: skip
        theirs.append(seconds(lambda: volatility.run(path, "windows.modules")))
    rows: Rows = [
        ("open and modules, in a warm process", milliseconds(warm), ratio(theirs, warm)),
        ("`lab triage`, a whole process", milliseconds(process), ratio(theirs, process)),
        ("`vol windows.modules`, a whole process with warm caches", milliseconds(theirs), "1"),
    ]
    size = path.stat().st_size >> 10
    return (
        f"**Modules against volatility3**, a kernel dump of {size} KiB. Goal: 50 times faster.\n\n"
        + table(("", "ms (lowest to highest)", "volatility3's time in times of this"), rows)
    )


def _lab() -> list[str]:
    return [str(Path(sys.executable).with_name("lab"))]


def whole_process(folder: Path) -> str:
    """`lab triage` of one triage dump against an interpreter that does nothing."""
    (path,) = distinct_triage_dumps(folder, 1)
    commands = {
        "`python -c pass`": [sys.executable, "-c", "pass"],
        "`lab triage` of a triage dump": [*_lab(), "triage", str(path)],
    }
    # Compiled once, as an installed program is.
    variables = {**os.environ, "PYTHONPYCACHEPREFIX": str(folder / "compiled")}
    variables.pop("PYTHONDONTWRITEBYTECODE", None)

    def run(command: Sequence[str]) -> None:
        subprocess.run(command, check=True, capture_output=True, env=variables)

    times: dict[str, list[float]] = {name: [] for name in commands}
    for command in commands.values():
        run(command)
    for _ in range(ROUNDS):
        for name, command in commands.items():
            times[name].append(seconds(partial(run, command)))
    (nothing, _) = times.values()
    rows: Rows = [
        (name, milliseconds(values), ratio(values, nothing)) for name, values in times.items()
    ]
    return "**A whole process.** Goal: 6 times.\n\n" + table(
        ("", "ms (lowest to highest)", "times `python -c pass`"), rows
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see --help."""
    parts: dict[str, Callable[[Path], str]] = {
        "engine": against_engine,
        "throughput": lambda folder: throughput(folder, 2000),
        "size": by_size,
        "volatility": against_volatility,
        "process": whole_process,
    }
    parser = argparse.ArgumentParser(prog="make bench", description="Times triage.")
    parser.add_argument("--only", choices=parts, action="append", help="a part; prints, no page")
    parser.add_argument(
        "--output", type=Path, default=PAGE, help="the page to write (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    tables = []
    for name in options.only or parts:
        print(f"triage: {name}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            tables.append(parts[name](Path(folder)))
    if options.only:
        print("\n\n".join(tables))
        return 0
    text = TEXT.format(machine=machine(), rounds=ROUNDS, loop=LOOP, tables="\n\n".join(tables))
    print(write_section(options.output, TITLE, text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
