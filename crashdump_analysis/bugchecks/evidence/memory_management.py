"""0x1A: a page table entry with one wrong bit is bad memory, and nobody on the stack did it."""

from __future__ import annotations

from crashdump_analysis.bugchecks import Description
from crashdump_analysis.bugchecks.evidence import Evidence
from crashdump_analysis.bugchecks.faults import Crash

_CORRUPT_ENTRY = 0x41792  # parameters 3 and 4: the entry's low and high part
_OUT_OF_STEP = 0x403  # parameters 3 and 4: what should be equal


def evidence(crash: Crash, description: Description) -> Evidence | None:
    """One bit, where the parameters let it be counted; else who noticed is no suspect, either."""
    kind, _, third, fourth = crash.parameters
    if kind == _CORRUPT_ENTRY:
        wrong = third | fourth << 32 if third < 1 << 32 else third
    elif kind == _OUT_OF_STEP:
        wrong = third ^ fourth
    else:
        wrong = 0
    if wrong.bit_count() == 1:
        return Evidence(
            (f"exactly one bit is wrong, bit {wrong.bit_length() - 1}",),
            no_culprit="a single wrong bit in a page table entry is most often bad memory (RAM)",
            bucket="MEMORY_CORRUPTION_ONE_BIT",
        )
    return Evidence(
        at_most="low",
        doubt="the memory manager found the damage afterwards, so who did it need not be here",
    )
