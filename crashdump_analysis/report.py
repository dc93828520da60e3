"""The report of a triage, as data: the same from every engine (report.schema.json)."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from crashdump_analysis.report_text import as_text

if TYPE_CHECKING:  # a single engine's report needs neither, and every start would wait for them
    from crashdump_analysis.comparison import Comparison
    from crashdump_analysis.engines.analyze import Analyze

SCHEMA: Final = Path(__file__).with_name("report.schema.json")
SCHEMA_VERSION: Final = 2

Confidence = Literal["high", "medium", "low", "none"]


@dataclass(frozen=True)
class DumpInfo:
    """The file: its type, its size and the size it should have in bytes.

    time: of the crash by the machine's clock, UTC. uptime: seconds since the machine's start.
    """

    path: str
    type: int
    type_name: str
    size: int
    required_size: int
    time: datetime | None
    uptime: float | None


@dataclass(frozen=True)
class Machine:
    """The crashed machine. `build` is the Windows build's number, `build_lab` its text.

    debugger_data: how KDDEBUGGER_DATA64 lay in the dump; None where it could not be read.
    """

    architecture: str
    processors: int
    build: int
    build_lab: str
    debugger_data: Literal["plain", "encoded"] | None = None


@dataclass(frozen=True)
class BugCheckParameter:
    """A parameter of the bug check, and what it and its value mean."""

    value: int
    name: str
    meaning: str


@dataclass(frozen=True)
class BugCheck:
    """The stop code (without bit 28; `raw_code` is as in the dump), in words, and parameters."""

    code: int
    raw_code: int
    name: str
    meaning: str
    parameters: tuple[BugCheckParameter, ...]


@dataclass(frozen=True)
class LoadedModule:
    """A loaded image: address and size in bytes; PE timestamp and checksum.

    The timestamp is None where the dump does not say. pdb: GUID and age of the PDB that belongs to
    it, as in a symbol store; symbols: the file used; verified: whether it is known to be that PDB,
    and not only of the right name and size. unwind: where unwind data came from; None where none
    was needed or found.
    """

    name: str
    image: str
    path: str
    base: int
    size: int
    timestamp: int | None
    checksum: int
    pdb: str | None
    symbols: str | None
    verified: bool | None = None
    unwind: Literal["dump", "image", "pdb"] | None = None


@dataclass(frozen=True)
class Processor:
    """The processor that crashed, its thread and process; what is not known is None.

    irql: when it saved its state on the way into the bug check. thread and process: addresses of
    ETHREAD and EPROCESS. process_name: at most 14 characters, as the kernel keeps it. sources: how
    these were found, in words.
    """

    number: int | None = None
    irql: int | None = None
    thread: int | None = None
    thread_id: int | None = None
    process: int | None = None
    process_id: int | None = None
    process_name: str | None = None
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class UnloadedDriver:
    """An image that is no longer loaded: where it was, and when it went (UTC), if that is known.

    name: its file's; a triage dump keeps only the first 12 characters.
    """

    name: str
    start: int
    end: int
    time: datetime | None


@dataclass(frozen=True)
class SecondaryData:
    """What a driver's bug check callback added: GUID, what it is called if known, size in bytes."""

    tag: str
    name: str | None
    size: int


@dataclass(frozen=True)
class StackFrame:
    """A frame, innermost first.

    offset: in bytes from the function's start, or from the module's base where no function is
    known; an inline frame has none. instruction: a return address, or where `trapped` the
    instruction that was interrupted or faulted. stack_pointer: in this frame.
    inline: the function was put into the next frame's, and shares its addresses. guess: found by
    looking for return addresses, because no unwind data led here.
    """

    module: str | None
    function: str | None
    file: str | None
    line: int | None
    offset: int | None
    instruction: int
    stack_pointer: int
    inline: bool
    trapped: bool
    guess: bool


@dataclass(frozen=True)
class Context:
    """Registers by name, and where they were found.

    At the fault where the bug check has one, else at KeBugCheckEx. instruction: address of the
    instruction that faulted or was interrupted, None without a fault; module and offset say where
    that is; frame: the index in the stack of the frame it belongs to.
    """

    source: str
    registers: dict[str, int]
    instruction: int | None
    module: str | None
    offset: int | None
    frame: int


@dataclass(frozen=True)
class Culprit:
    """Who is to blame, why, and how sure that is.

    Without a culprit `module` is None and the confidence "none"; `reason` says why. owner: by the
    owner rules. evidence: in words, what was found besides the stack.
    """

    module: str | None
    function: str | None
    file: str | None
    line: int | None
    reason: str
    confidence: Confidence
    owner: str | None = None
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bucket:
    """Which crashes this one belongs with.

    id and hash: FAILURE_BUCKET_ID and FAILURE_ID_HASH as WinDbg has them. family: the same for one
    bug across builds, inlining, offsets and bug checks, as far as `basis` lets it: made of
    "functions" (names), "shapes" (of functions without names), "places" (holds for one build), the
    driver's "own bug check", the bug check's "evidence", or the "bug check" alone. frames: the
    functions in it.
    """

    id: str
    hash: str
    family: str
    frames: tuple[str, ...]
    basis: str = "functions"


@dataclass(frozen=True)
class Report:
    """What a triage found. Addresses are virtual; numbers are integers.

    comparison: with another engine's report, where one was asked for. analyze: what `!analyze -v`
    of Microsoft's debugger said, where it is at hand.
    """

    engine: str
    dump: DumpInfo
    machine: Machine
    bug_check: BugCheck
    culprit: Culprit
    bucket: Bucket
    context: Context
    stack: tuple[StackFrame, ...]
    modules: tuple[LoadedModule, ...]
    warnings: tuple[str, ...]
    processor: Processor = Processor()
    unloaded_drivers: tuple[UnloadedDriver, ...] = ()
    secondary_data: tuple[SecondaryData, ...] = ()
    comparison: Comparison | None = None
    analyze: Analyze | None = None
    schema: int = SCHEMA_VERSION

    def to_dict(self) -> dict[str, Any]:
        """The report as report.schema.json describes it."""
        data: dict[str, Any] = _plain(self)
        return data

    def to_json(self) -> str:
        """The report as one JSON object, indented."""
        return json.dumps(self.to_dict(), indent=2)

    def to_text(self) -> str:
        """The report in the order a kernel engineer reads."""
        return as_text(self)


def _plain(value: Any) -> Any:
    """Dataclasses, tuples and times as JSON has them."""
    if is_dataclass(value):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return value.isoformat() if isinstance(value, datetime) else value
