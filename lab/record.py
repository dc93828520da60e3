"""record.json: all that happened in one run, and all that is needed to do it again."""

from __future__ import annotations

import json
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lab.evidence import PARTIAL, write_json
from lab.outcome import LabError, Outcome
from lab.watch import worst

RECORD = "record.json"
PARTIAL_RECORD = f"{RECORD}{PARTIAL}"


class RecordError(LabError):
    """A record is missing or is none; the message says where and what was expected."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class Scenario(_Part):
    """What was done.

    kind "content": the candidate is installed with contents[0], then each of the other content
    sets is put on in order. kind "pytest": `tests`, as FILE::NAME, in the root folder `suite` with
    pytest's configuration file `settings`.
    contents: paths. activation: None is the candidate's own.
    """

    kind: Literal["content", "pytest"]
    contents: list[str] = []
    activation: Literal["live", "next-boot"] | None = None
    with_memory: bool = False
    tests: list[str] = []
    suite: str | None = None
    settings: str | None = None


class CrashRecord(_Part):
    """One bug check or hang, and what its dump said."""

    boot: int
    evidence: str
    cause: str = "crash"
    """How it went down (lab.evidence.Cause). A hang's bug check is the one that we made."""
    bug_check: str | None = None
    parameters: list[str] = []
    culprit: str | None = None
    confidence: str | None = None
    """How sure the culprit is: "low" is a guess."""
    bucket: str | None = None
    family: str | None = None
    summary: str = ""


class OutcomeRecord(_Part):
    """One outcome, of what, and why. Retries stand beside the first and never replace it."""

    what: str
    outcome: Outcome
    reason: str = ""


class Record(_Part):
    """One run. Times are UTC in ISO format; paths of the run's own files are relative to it."""

    schema_version: Literal[1] = Field(1, alias="schema")
    run_id: str
    lab_version: str
    purpose: str
    began: str
    ended: str | None = None
    config: str
    image: str
    image_identity: dict[str, Any] = {}
    candidate: str | None = None
    candidate_identity: dict[str, Any] = {}
    contents: list[dict[str, Any]] = []
    scenario: Scenario
    repeats: str | None = None
    """The run that this one does again."""
    machine: dict[str, Any] = {}
    clock_settings: list[dict[str, str]] = []
    clock_offset_seconds: float | None = None
    """The guest's clock less the host's, when it was last asked."""
    steps: list[str] = []
    identities: list[dict[str, Any]] = []
    crashes: list[CrashRecord] = []
    edits: list[dict[str, Any]] = []
    recovered: bool | None = None
    outcomes: list[OutcomeRecord] = []
    outcome: Outcome | None = None
    verdict: str | None = None

    def outcome_so_far(self) -> Outcome:
        """The outcome that stands for the run, from what is noted."""
        return worst([one.outcome for one in self.outcomes])

    def save(self, folder: Path) -> None:
        """Writes record.json in one step."""
        write_json(folder / RECORD, self.model_dump(mode="json", by_alias=True))


def load_record(path: Path) -> Record:
    """Reads a record; `path` is the file or the run's folder. Raises RecordError."""
    file = path / RECORD if path.is_dir() else path
    try:
        return Record.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise RecordError(f"{file}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()
        )
        raise RecordError(f"{file}: not a record of this lab: {wrong}") from None
    except ValueError as error:
        raise RecordError(f"{file}: not JSON: {error}") from None


def new_run_id() -> str:
    """A run's id: when it began (UTC), and six random digits."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
