"""0x19, 0x13A: damage is found when memory is next used, by whoever uses it."""

from __future__ import annotations

from crashdump_analysis.bugchecks import Description
from crashdump_analysis.bugchecks.evidence import Evidence
from crashdump_analysis.bugchecks.faults import Crash


def evidence(crash: Crash, description: Description) -> Evidence | None:
    """The stack decides: most often who frees a block wrote past its end; but not always."""
    return Evidence(
        at_most="medium",
        doubt="the pool was found damaged when it was used, and who damaged it may be another",
    )
