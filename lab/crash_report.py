"""What the dump in the evidence says, for the record: report.json and report.txt beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from crashdump_analysis import DumpError, Report, triage
from crashdump_analysis.report import Culprit
from lab.evidence import Evidence
from lab.record import CrashRecord


def fill_in(crash: CrashRecord, evidence: Evidence, symbols: Sequence[Path]) -> Report | None:
    """Triages the evidence's dump and notes what it says; None where it cannot be read.

    symbols: folders with PDBs.
    """
    assert evidence.dump is not None
    try:
        report = triage(evidence.dump, symbols=symbols)
    except DumpError as error:
        crash.summary = f"its dump cannot be read: {error}"
        return None
    (evidence.folder / "report.json").write_text(report.to_json(), encoding="utf-8")
    (evidence.folder / "report.txt").write_text(report.to_text(), encoding="utf-8")
    crash.bug_check = f"0x{report.bug_check.code:X}"
    crash.parameters = [f"0x{one.value:X}" for one in report.bug_check.parameters]
    crash.culprit, crash.confidence = _in_words(report.culprit), report.culprit.confidence
    crash.bucket, crash.family = report.bucket.id, report.bucket.family
    after = "made to dump from outside: " if evidence.cause == "hang" else ""
    guess = f" (a guess: {report.culprit.reason})" if crash.confidence == "low" else ""
    crash.summary = (
        f"{after}bug check {crash.bug_check} {report.bug_check.name}: "
        f"{crash.culprit or f'no culprit ({report.culprit.reason})'}{guess};"
        f" bucket {crash.bucket}"
    )
    return report


def _in_words(culprit: Culprit) -> str | None:
    if culprit.module is None:
        return None
    place = f"{culprit.module}!{culprit.function}" if culprit.function else culprit.module
    line = f" [{culprit.file} @ {culprit.line}]" if culprit.file else ""
    return place + line
