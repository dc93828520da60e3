"""0x116, 0x117, 0x141: parameter 2 points into the display driver that does not answer."""

from __future__ import annotations

from crashdump_analysis.bugchecks import Description
from crashdump_analysis.bugchecks.evidence import Evidence
from crashdump_analysis.bugchecks.faults import Crash


def evidence(crash: Crash, description: Description) -> Evidence | None:
    """The module of the pointer."""
    pointer = description.named("driver_pointer")
    module = crash.modules.at(pointer) if pointer else None
    if module is None:
        return Evidence(
            no_culprit="the pointer that should name the display driver lies in no module; the "
            "stack is that of the watchdog"
        )
    return Evidence(
        (f"parameter 2 points to {module.image}+0x{(pointer or 0) - module.base:x}",),
        module.name,
        module.image,
        f"{module.name} is the display driver that did not answer in time",
        "high",
        elsewhere=True,
    )
