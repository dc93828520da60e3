"""0x133: a single DPC is caught in the act; all of them together are not."""

from __future__ import annotations

from crashdump_analysis.bugchecks import Description
from crashdump_analysis.bugchecks.evidence import Evidence
from crashdump_analysis.bugchecks.faults import Crash


def evidence(crash: Crash, description: Description) -> Evidence | None:
    """Parameter 1 is 0 for one DPC or ISR, 1 for the time that all took."""
    if crash.parameters[0] != 1:
        return None
    return Evidence(
        at_most="medium",
        doubt="all DPCs together took too long, and the one that runs now may not be the one",
    )
