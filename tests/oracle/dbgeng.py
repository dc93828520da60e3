"""Microsoft's engine as the judge of a kernel dump, and the comparison that tests call."""

from __future__ import annotations

import atexit
import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

import pytest

from crashdump_analysis.engines import Report, StackFrame
from crashdump_analysis.engines.wine import WineEngine, setup
from crashdump_analysis.engines.wine_setup import SETUP_COMMAND, TERMS_VARIABLE
from tests.oracle.readers import KernelDump, Volatility

READS = 1000


def judge() -> WineEngine:
    """The one warm engine of this test process; skips the test unless the terms are accepted.

    This is the one skip the project allows itself. With the terms accepted a missing Wine or a
    failed set-up is a failure, not a skip.
    """
    if os.environ.get(TERMS_VARIABLE) != "1":
        pytest.skip(
            f"needs Microsoft's debugger engine, whose terms are not accepted: {SETUP_COMMAND} "
            "(docs/pykd.md)"
        )
    return _engine()


@functools.cache
def _engine() -> WineEngine:
    setup()
    engine = WineEngine()
    atexit.register(engine.shut_down)
    return engine


@dataclass(frozen=True)
class ExpectedFrame:
    """A frame's function, and its file name and line where the test knows them."""

    module: str
    function: str
    file: str | None = None
    line: int | None = None

    def matches(self, frame: StackFrame) -> bool:
        """Whether an engine's frame is this one."""
        file = PureWindowsPath((frame["file"] or "").replace("/", "\\")).name
        return (
            (frame["module"], frame["function"]) == (self.module, self.function)
            and (self.file is None or file == self.file)
            and (self.line is None or frame["line"] == self.line)
        )

    def __str__(self) -> str:
        where = f" [{self.file} @ {self.line}]" if self.file else ""
        return f"{self.module}!{self.function}{where}"


@dataclass(frozen=True)
class Expectations:
    """What is known of a crash before any reader has seen its dump.

    `parameters`: None where any value will do. `modules`: base addresses by module name, as the
    debugger prints names (None where the base is not known). `stack`: frames that must appear in
    this order, innermost first, other frames between them allowed. `outermost`: the function every
    complete stack of the kernel ends in, as "nt!Name". `assembly`: functions without line numbers.
    `ranges`: (address, size in bytes) of memory that the sampled reads must reach into.
    """

    bug_check: int
    parameters: Sequence[int | None] = (None, None, None, None)
    modules: Mapping[str, int | None] = field(default_factory=dict)
    stack: Sequence[ExpectedFrame] = ()
    outermost: Sequence[str] = ()
    assembly: frozenset[str] = frozenset()
    ranges: Sequence[tuple[int, int]] = ()


def compare(
    engine: WineEngine, report: Report, dump: KernelDump, expected: Expectations, seed: int = 1
) -> list[str]:
    """Every disagreement between the engine, kdmp-parser and what is known; empty if none.

    The dump must be open in `engine`, and `report` be its report.
    """
    return [
        *_bug_check_differences(report, dump, expected),
        *_module_differences(report, expected),
        *_stack_differences(report["stack"], expected),
        *_header_differences(report, dump),
        *_memory_differences(engine, report, dump, expected, seed),
        *(f"dbgeng warns: {warning}" for warning in report["warnings"]),
    ]


def _bug_check_differences(report: Report, dump: KernelDump, expected: Expectations) -> list[str]:
    out = []
    readers = {
        "dbgeng": (report["bug_check"]["code"], report["bug_check"]["parameters"]),
        "kdmp-parser": (dump.bug_check_code, dump.bug_check_parameters),
    }
    for reader, (code, parameters) in readers.items():
        if code != expected.bug_check:
            out.append(f"{reader}: bug check 0x{code:X}, expected 0x{expected.bug_check:X}")
        for number, (found, wanted) in enumerate(
            zip(parameters, expected.parameters, strict=True), start=1
        ):
            if wanted is not None and found != wanted:
                out.append(f"{reader}: parameter {number} is {found:x}, expected {wanted:x}")
    return out


def _module_differences(report: Report, expected: Expectations) -> list[str]:
    out = []
    found = {one["name"]: one for one in report["modules"] if not one["unloaded"]}
    for name, base in expected.modules.items():
        if name not in found:
            out.append(f"dbgeng: no module {name} among {sorted(found)}")
        elif base is not None and found[name]["base"] != base:
            out.append(f"dbgeng: {name} at {found[name]['base']:x}, expected {base:x}")
    return out


def _stack_differences(stack: Sequence[StackFrame], expected: Expectations) -> list[str]:
    out = []
    rest = iter(stack)
    for wanted in expected.stack:
        if not any(wanted.matches(frame) for frame in rest):
            out.append(f"dbgeng: no frame {wanted} (in this order) in {describe(stack)}")
            break
    for number, frame in enumerate(stack):
        name = f"{frame['module']}!{frame['function']}"
        if frame["function"] is None:
            out.append(f"dbgeng: frame {number} at {frame['instruction']:x} has no function")
        elif frame["line"] is None and name not in expected.assembly:
            out.append(f"dbgeng: frame {number}, {name}, has no line")
    last = f"{stack[-1]['module']}!{stack[-1]['function']}" if stack else "nothing"
    if expected.outermost and last not in expected.outermost:
        out.append(f"dbgeng: the stack ends in {last}, not in {' or '.join(expected.outermost)}")
    return out


def _header_differences(report: Report, dump: KernelDump) -> list[str]:
    system, registers = report["system"], report["registers"]
    pairs = {
        "build": (system["build"], dump.build),
        "machine": (system["machine"], dump.machine),
        "processors": (system["processors"], dump.processors),
        "cr3": (registers.get("cr3", 0) & ~0xFFF, dump.directory_table_base),
    } | {name: (registers.get(name), value) for name, value in dump.registers.items()}
    return [
        f"{name}: dbgeng says {ours!r}, kdmp-parser {theirs!r}"
        for name, (ours, theirs) in pairs.items()
        if ours != theirs
    ]


def _memory_differences(
    engine: WineEngine, report: Report, dump: KernelDump, expected: Expectations, seed: int
) -> list[str]:
    ranges = [(one["base"], one["size"]) for one in report["modules"] if not one["unloaded"]]
    ranges.append((report["registers"].get("rsp", 0), 0x1000))
    ranges += expected.ranges
    reads = dump.sample(seed, READS, ranges)
    out = []
    for (address, size), theirs in zip(reads, engine.read(reads), strict=True):
        ours = dump.read(address, size)
        if ours is None or ours != theirs:
            words = ["nothing" if data is None else data.hex() for data in (theirs, ours)]
            out.append(f"{address:x}: dbgeng reads {words[0]}, kdmp-parser {words[1]}")
    if len(out) > 5:
        out[5:] = [f"and {len(out) - 5} more of {READS} sampled reads (seed {seed})"]
    return out


def volatility_differences(
    volatility: Volatility, report: Report, dump: KernelDump, kernel: Path
) -> list[str]:
    """Every disagreement between the engine's report and volatility3; empty if none.

    `kernel` is the kernel image that the dump was made with.
    """
    info = volatility.crash_info(dump.path)
    nt = next(one for one in report["modules"] if one["name"] == "nt")
    pairs = {
        "build": (report["system"]["build"], info["MinorVersion"]),
        "machine": (report["system"]["machine"], info["MachineImageType"]),
        "page tables": (dump.directory_table_base, info["DirectoryTableBase"]),
        "modules": (
            sorted((one["base"], one["size"]) for one in report["modules"] if not one["unloaded"]),
            sorted(
                volatility.modules(
                    dump.path, kernel, dump.ps_loaded_module_list - nt["base"]
                ).values()
            ),
        ),
    }
    return [
        f"{name}: dbgeng says {ours!r}, volatility3 {theirs!r}"
        for name, (ours, theirs) in pairs.items()
        if ours != theirs
    ]


def describe(stack: Sequence[StackFrame]) -> str:
    """A stack in one line, for messages."""
    return " <- ".join(
        f"{frame['module']}!{frame['function']}"
        + (f"@{frame['line']}" if frame["line"] is not None else "")
        for frame in stack
    )
