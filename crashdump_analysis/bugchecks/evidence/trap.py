"""0x7F: whether a double fault comes from a stack that is used up by recursion."""

from __future__ import annotations

from collections import Counter

from crashdump_analysis.bugchecks import Description
from crashdump_analysis.bugchecks.evidence import Evidence
from crashdump_analysis.bugchecks.faults import Crash

_DOUBLE_FAULT = 8
_MANY = 8  # returns to one place: no driver nests that deep on a kernel stack by design


def evidence(crash: Crash, description: Description) -> Evidence | None:
    """Recursion that can be seen: many frames that return to the same place."""
    if crash.parameters[0] != _DOUBLE_FAULT:
        return None
    places = Counter(one.registers.rip for one in crash.stack if not one.guess)
    if not places:
        return None
    place, times = places.most_common(1)[0]
    if times < _MANY:
        return None
    module = crash.modules.at(place)
    where = f"{module.name}+0x{place - module.base:x}" if module else f"{place:x}"
    # Only of these: the fault was taken on a stack of its own, somewhere else.
    stack = [one.registers.rsp for one in crash.stack if one.registers.rip == place]
    used = max(stack) - min(stack)
    return Evidence(
        (f"{times} frames return to {where}: recursion; they span {used} bytes of stack",),
        detail="STACK_OVERFLOW",
    )
