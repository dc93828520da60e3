"""A bug check that no reference lists is a driver's own: who called KeBugCheckEx is at fault."""

from __future__ import annotations

from crashdump_analysis.bugchecks import Description
from crashdump_analysis.bugchecks.evidence import Evidence
from crashdump_analysis.bugchecks.faults import Crash


def evidence(crash: Crash, description: Description) -> Evidence | None:
    """The module that the return address on top of the stack at KeBugCheckEx lies in."""
    if crash.raw_parameter(0) is None:
        return None  # these are not the registers at KeBugCheckEx
    caller = crash.memory.u64(crash.registers.rsp)
    module = crash.modules.at(caller - 1) if caller else None
    if module is None or module.name == "nt":
        return None
    return Evidence(
        (f"KeBugCheckEx was called from {module.name}+0x{(caller or 0) - module.base:x}",),
        module.name,
        module.image,
        f"{module.name} called KeBugCheckEx itself, with a code that is not Windows' own",
        "high",
    )
