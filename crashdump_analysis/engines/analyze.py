"""What `!analyze -v` printed, taken apart.

The output is text for people, `NAME:  value` at the start of lines, as Microsoft's "Using the
!analyze extension" shows it. Which names it has depends on the debugger's version and the crash.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

COMMAND: Final = "!analyze -v"

# The wheel of pykd has the engine without its extension DLLs.
_MISSING = re.compile(
    r"LoadLibrary\(\w+\) failed|No export analyze found|is not (?:a recognized )?extension"
    r"|Unable to (?:find|load) (?:the )?(?:module|extension)",
    re.IGNORECASE,
)
_FIELDS: Final = {
    "FAILURE_BUCKET_ID": "bucket_id",
    "FAILURE_ID_HASH": "bucket_hash",
    "IMAGE_NAME": "image_name",
    "MODULE_NAME": "module_name",
    "SYMBOL_NAME": "symbol_name",
    "FOLLOWUP_NAME": "followup_name",
}
# Older debuggers write two of them otherwise.
_OLD_NAMES: Final = {"BUCKET_ID": "FAILURE_BUCKET_ID", "Followup": "FOLLOWUP_NAME"}
_LINE = re.compile(r"^(?P<name>[A-Za-z_]+):[ \t]*(?P<value>[^\r\n]*?)[ \t\r]*$", re.MULTILINE)
_HASH = re.compile(r"\{?([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\}?", re.IGNORECASE)


@dataclass(frozen=True)
class Analyze:
    """The whole text, and the fields that name the failure; None for what was not printed."""

    text: str
    bucket_id: str | None = None
    bucket_hash: str | None = None
    image_name: str | None = None
    module_name: str | None = None
    symbol_name: str | None = None
    followup_name: str | None = None


def is_missing(text: str) -> bool:
    """Whether the engine says that it has no such extension command."""
    return bool(_MISSING.search(text)) and "Bugcheck Analysis" not in text


def parse(text: str) -> Analyze:
    """Finds the fields in the text."""
    found: dict[str, str] = {}
    for line in _LINE.finditer(text):
        found.setdefault(line["name"], line["value"])
    for old, name in _OLD_NAMES.items():
        found.setdefault(name, found.get(old, ""))
    values = {field: found.get(name) or None for name, field in _FIELDS.items()}
    if values["bucket_hash"]:
        match = _HASH.search(values["bucket_hash"])
        values["bucket_hash"] = match[1].lower() if match else None
    return Analyze(text=text, **values)
