"""0x4A: a system call comes back with its IRQL still raised; whoever raised it has returned."""

from __future__ import annotations

from crashdump_analysis.bugchecks import Description
from crashdump_analysis.bugchecks.evidence import Evidence
from crashdump_analysis.bugchecks.faults import Crash


def evidence(crash: Crash, description: Description) -> Evidence | None:
    """The IRQL; the driver that left it so is no longer on the stack."""
    return Evidence(
        (f"the system call returned at IRQL {crash.parameters[1]}",),
        at_most="low",
        doubt="whoever raised the IRQL has already returned",
    )
