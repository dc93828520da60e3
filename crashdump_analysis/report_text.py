"""A report as text, in the order a kernel engineer reads: what, who, where, how it came there."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from crashdump_analysis.modules import printable_text

if TYPE_CHECKING:
    from crashdump_analysis.report import Report, StackFrame

_REGISTERS = (
    ("rax", "rbx", "rcx"),
    ("rdx", "rsi", "rdi"),
    ("rip", "rsp", "rbp"),
    ("r8", "r9", "r10"),
    ("r11", "r12", "r13"),
    ("r14", "r15", "efl"),
    # ARM64
    *((f"x{number}", f"x{number + 1}", f"x{number + 2}") for number in range(0, 27, 3)),
    ("x27", "x28", "fp"),
    ("lr", "sp", "pc"),
    ("cpsr",),
)
_IRQL = {
    0: "PASSIVE_LEVEL",
    1: "APC_LEVEL",
    2: "DISPATCH_LEVEL",
    13: "CLOCK_LEVEL",
    15: "HIGH_LEVEL",
}


def as_text(report: Report) -> str:
    """The whole report, lines of text; what a dump or a PDB says cannot steer the terminal."""
    return "\n".join(map(printable_text, _lines(report)))


def _lines(report: Report) -> Iterator[str]:
    yield from (
        *_bug_check(report),
        *_culprit(report),
        *_processor(report),
        *_context(report),
        *_stack(report),
        *_modules(report),
        *_unloaded_drivers(report),
        *_secondary_data(report),
        *_comparison(report),
        *_about(report),
    )


def _bug_check(report: Report) -> Iterator[str]:
    bug_check = report.bug_check
    yield f"{bug_check.name} (0x{bug_check.code:X})"
    yield f"  {bug_check.meaning}"
    width = max((len(one.name) for one in bug_check.parameters), default=0)
    for number, one in enumerate(bug_check.parameters, start=1):
        yield f"  {number} {one.name:{width}}  {one.value:016x}  {one.meaning}"
    yield ""


def _culprit(report: Report) -> Iterator[str]:
    culprit, bucket = report.culprit, report.bucket
    if culprit.module is None:
        yield f"CULPRIT  none: {culprit.reason}"
    else:
        name = f"{culprit.module}!{culprit.function}" if culprit.function else culprit.module
        where = f" [{culprit.file} @ {culprit.line}]" if culprit.file else ""
        yield f"CULPRIT  {name}{where}"
        yield f"         {culprit.reason} (confidence: {culprit.confidence})"
        image = next((one for one in report.modules if one.name == culprit.module), None)
        if image is not None:
            build = "unknown" if image.timestamp is None else f"{image.timestamp:08X}{image.size:x}"
            yield f"         image: {image.image}, build {build}"
    if culprit.owner and culprit.owner != "MachineOwner":
        yield f"         owner: {culprit.owner}"
    for words in culprit.evidence:
        yield f"         seen: {words}"
    yield f"BUCKET   {bucket.id}"
    yield f"         {bucket.hash}"
    basis = f" (by {bucket.basis})" if bucket.basis != "functions" else ""
    yield f"FAMILY   {bucket.family}{basis}"
    yield ""


def _processor(report: Report) -> Iterator[str]:
    one = report.processor
    if one.number is None and one.thread is None:
        return
    irql = "" if one.irql is None else f", IRQL {one.irql}"
    if one.irql in _IRQL:
        irql += f" ({_IRQL[one.irql]})"
    number = "unknown" if one.number is None else one.number
    yield f"PROCESSOR  {number}{irql}"
    for kind, address, identifier, name in (
        ("process", one.process, one.process_id, one.process_name),
        ("thread", one.thread, one.thread_id, None),
    ):
        if address is not None:
            known = " ".join(
                text
                for text in (name, None if identifier is None else f"({identifier})")
                if text is not None
            )
            yield f"  {kind:7} {address:016x}  {known}".rstrip()
    yield from (f"  ({source})" for source in one.sources)
    yield ""


def _context(report: Report) -> Iterator[str]:
    context = report.context
    yield f"REGISTERS  {context.source}"
    for row in _REGISTERS:
        known = [
            f"{name:>3}={context.registers[name]:016x}" for name in row if name in context.registers
        ]
        if known:
            yield "  " + " ".join(known)
    if context.instruction is not None:
        where = f"{context.module}+0x{context.offset:x}" if context.module else "no module"
        yield f"  instruction {context.instruction:016x}  {where}"
    yield ""


def _stack(report: Report) -> Iterator[str]:
    yield "STACK"
    fault = report.context.frame if report.context.instruction is not None else None
    for number, one in enumerate(report.stack):
        mark = ">" if number == fault else " "
        yield f"{mark}{number:3} {one.stack_pointer:016x} {one.instruction:016x} {_place(one)}"
    yield ""


def _place(frame: StackFrame) -> str:
    offset = f"+0x{frame.offset:x}" if frame.offset is not None else ""
    if frame.module is None:
        text = "(no module)"
    elif frame.function is None:
        text = f"{frame.module}{offset}"
    else:
        text = f"{frame.module}!{frame.function}{offset}"
    if frame.file:
        text += f" [{frame.file} @ {frame.line}]"
    notes = [
        word
        for word, true in (
            ("inline", frame.inline),
            ("trap", frame.trapped and not frame.inline),
            ("guess", frame.guess),
        )
        if true
    ]
    return f"{text} ({', '.join(notes)})" if notes else text


def _modules(report: Report) -> Iterator[str]:
    yield "MODULES"
    for one in report.modules:
        timestamp = f"{one.timestamp:08x}" if one.timestamp is not None else "(no header)"
        symbols = f"  {one.symbols}" if one.symbols else ""
        symbols += " (unverified)" if one.verified is False else ""
        yield (
            f"  {one.base:016x} {one.base + one.size:016x} {one.name:16} {one.image} "
            f"{timestamp}{symbols}"
        )
    yield ""


def _unloaded_drivers(report: Report) -> Iterator[str]:
    if not report.unloaded_drivers:
        return
    yield "UNLOADED DRIVERS"
    for one in report.unloaded_drivers:
        time = f"  {one.time.isoformat(timespec='seconds')}" if one.time else ""
        yield f"  {one.start:016x} {one.end:016x} {one.name}{time}"
    yield ""


def _secondary_data(report: Report) -> Iterator[str]:
    if not report.secondary_data:
        return
    yield "SECONDARY DATA"
    for one in report.secondary_data:
        yield f"  {one.tag} {one.size:>9} bytes  {one.name or 'unknown'}"
    yield ""


def _comparison(report: Report) -> Iterator[str]:
    """What Microsoft's engine says besides."""
    if report.analyze is not None:
        found = report.analyze
        yield f"!ANALYZE {found.bucket_id or 'no bucket'}"
        for name, value in (
            ("image", found.image_name),
            ("symbol", found.symbol_name),
            ("followup", found.followup_name),
        ):
            if value:
                yield f"         {name} {value}"
    if report.comparison is None:
        return
    differences, known = report.comparison.differences, report.comparison.known
    count = len(differences)
    summary = f"{count or 'no'} difference{'s' if count > 1 else ''}"
    if known:
        summary += f", {len(known)} as the engine is known for"
    if report.comparison.failure:
        summary = f"not compared: {report.comparison.failure}"
    yield from _labelled("PYKD", f"{summary} ({report.comparison.frames} frames compared)")
    if report.comparison.limit:
        yield f"         {report.comparison.limit}"
    for one in (*differences, *known):
        yield f"         {one.kind} {one.place}: portable {one.portable}, pykd {one.pykd}"
        if one.known:
            yield f"           known: {one.known}"
    yield ""


def _about(report: Report) -> Iterator[str]:
    dump, machine = report.dump, report.machine
    yield f"DUMP     {dump.path}"
    yield f"         type {dump.type} ({dump.type_name}), {dump.size} bytes"
    time = dump.time.isoformat(timespec="seconds") if dump.time else "unknown"
    uptime = timedelta(seconds=round(dump.uptime)) if dump.uptime is not None else "unknown"
    yield f"         crashed {time}, up {uptime}"
    lab = f" {machine.build_lab}" if machine.build_lab else ""
    processors = f"{machine.processors} processor{'s' if machine.processors != 1 else ''}"
    yield f"MACHINE  {machine.architecture}, {processors}, build {machine.build}{lab}"
    for warning in report.warnings:
        yield from _labelled("WARNING", warning)


def _labelled(label: str, text: str) -> Iterator[str]:
    for line in text.splitlines():
        yield f"{label:8} {line}"
        label = ""
