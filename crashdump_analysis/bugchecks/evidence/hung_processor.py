"""0x101: what the processor that hangs was doing, where the dump has its registers."""

from __future__ import annotations

from crashdump_analysis.bugchecks import Description
from crashdump_analysis.bugchecks.evidence import Evidence
from crashdump_analysis.bugchecks.faults import Crash, hung_processor


def evidence(crash: Crash, description: Description) -> Evidence | None:
    """The stack of the processor that hangs decides; without its registers nobody can be named."""
    number = crash.parameters[3]
    if hung_processor(crash) is None:
        return Evidence(
            no_culprit=f"processor {number} hangs, and what it was doing is not in the dump; the "
            "stack is that of the processor which noticed"
        )
    return Evidence(
        (f"the stack is that of processor {number}, which hangs",),
        at_most="medium",
        doubt="its registers are those of its last stop, which need not be where it hangs",
    )
