"""0xF4: which process or thread was terminated, and the kernel's words for it."""

from __future__ import annotations

from crashdump_analysis.bugchecks import Description
from crashdump_analysis.bugchecks.evidence import Evidence
from crashdump_analysis.bugchecks.evidence.objects import ascii_text
from crashdump_analysis.bugchecks.faults import Crash


def evidence(crash: Crash, description: Description) -> Evidence | None:
    """The name and the message that parameters 3 and 4 point to."""
    name = ascii_text(crash.memory, crash.parameters[2])
    message = ascii_text(crash.memory, crash.parameters[3])
    words = [f"the process is {name}"] if name else []
    if message:
        words.append(f"the kernel says: {message}")
    return Evidence(
        tuple(words),
        at_most="low",
        doubt="a critical process or thread ended; what made it end need not be on this stack",
        detail=name,
    )
