"""0xEA: parameter 3 names the driver that does not come back."""

from __future__ import annotations

from crashdump_analysis.bugchecks import Description
from crashdump_analysis.bugchecks.evidence import Evidence
from crashdump_analysis.bugchecks.evidence.objects import module_of_file, unicode_string
from crashdump_analysis.bugchecks.faults import Crash


def evidence(crash: Crash, description: Description) -> Evidence | None:
    """The module of that name; without one the stack decides."""
    address = description.named("driver_name")
    name = unicode_string(crash.memory, address) if address else ""
    module = module_of_file(crash.modules, name)
    if module is None:
        return None
    return Evidence(
        (f"the bug check names {name}",),
        module.name,
        module.image,
        f"{module.name} is the driver whose thread does not come back",
        "high",
    )
