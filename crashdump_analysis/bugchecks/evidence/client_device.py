"""0x144: the driver of the client's device object that the parameters name."""

from __future__ import annotations

from crashdump_analysis.bugchecks import Description
from crashdump_analysis.bugchecks.evidence import Evidence
from crashdump_analysis.bugchecks.evidence.objects import driver_of_device
from crashdump_analysis.bugchecks.faults import Crash


def evidence(crash: Crash, description: Description) -> Evidence | None:
    """The client driver, where this kind of the bug check says which device is its."""
    device = description.named("client_driver_device")
    module = driver_of_device(crash.memory, crash.modules, device) if device else None
    if module is None:
        return None
    return Evidence(
        (f"the client's device object {device:x} is one of {module.image}",),
        module.name,
        module.image,
        f"{module.name} is the client driver that the bug check names",
        "high",
    )
