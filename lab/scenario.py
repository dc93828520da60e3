"""The content scenario: a candidate is installed, and its content sets are put on, one by one."""

from __future__ import annotations

from lab.outcome import LabError, Outcome
from lab.run import Run


def run_content(run: Run, *, recover: bool = True) -> None:
    """Does what the record's scenario says, and notes an outcome for each part.

    After a bug check or a hang nothing more is put on the machine; with `recover` it is brought
    back where that is possible. A LabError ends as an outcome, too.
    """
    part = "boot"
    activation = run.record.scenario.activation
    try:
        run.boot()
        part = "install"
        refused = run.install(run.contents[0] if run.contents else None)
        run.check("after installation")
        run.note_outcome(part, *_judged(refused))
        for content in run.contents[1:]:
            part = f"content {content.name}"
            refused = run.update_content(content, activation)
            run.check(f"with {content.name}")
            run.note_outcome(part, *_judged(refused))
        part = "restart"
        run.restart()
        run.check("after a restart")
        run.note_outcome(part, Outcome.PASSED)
    except LabError as error:
        run.failed(part, error, before_the_candidate=part == "boot")
        if not (recover and run.can_recover()):
            return
        try:
            run.recover()
        except LabError as trouble:
            run.failed("recovery", trouble)


def _judged(refused: list[str]) -> tuple[Outcome, str]:
    """A machine that lives through content which the vendor's own validator refuses is no pass."""
    return (Outcome.FAILED, "; ".join(refused)) if refused else (Outcome.PASSED, "")
