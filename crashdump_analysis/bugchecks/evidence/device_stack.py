"""0x9F: the driver of the device stack that holds a power request, not who found out.

The stack of such a dump is the watchdog's. Microsoft's page and published analyses agree that the
driver of the device object is meant.
"""

from __future__ import annotations

from collections.abc import Sequence

from crashdump_analysis.bugchecks import Description
from crashdump_analysis.bugchecks.evidence import Confidence, Evidence
from crashdump_analysis.bugchecks.evidence.objects import (
    device_of_irp,
    device_stack,
    driver_of_device,
)
from crashdump_analysis.bugchecks.faults import Crash, find_fault
from crashdump_analysis.modules import Module

_ONLY_FOUND_OUT = "the stack is that of the watchdog which found out"


def evidence(crash: Crash, description: Description) -> Evidence | None:
    """Who has the request, by the IRP; else who is attached to the device."""
    if description.family:  # the thread that holds a lock: its stack decides, if there is one
        return _of_lock(crash, description)
    device = description.named("physical_device") or description.named("device_object")
    device = device or description.named("physical_device_object")
    drivers = [
        driver_of_device(crash.memory, crash.modules, one)
        for one in (device_stack(crash.memory, device) if device else ())
    ]
    known = [one for one in drivers if one]
    irp = description.named("irp")
    held = device_of_irp(crash.memory, irp) if irp else None
    holder = driver_of_device(crash.memory, crash.modules, held[0]) if held else None
    if held and holder:
        seen = f"the IRP {irp:x} is with the device {held[0]:x}, a device of {holder.image}"
        return _found(holder, known, seen, f"{holder.name} holds the request", "high")
    if not known:
        return Evidence(
            no_culprit="the driver whose device is stuck is not in the dump: neither the request "
            "nor the device's objects are; " + _ONLY_FOUND_OUT,
        )
    # The lowest device is the bus driver's, with which ACPI may be; then comes the device's own.
    own = next((one for one in known[1:] if one.name.lower() != "acpi"), known[0])
    seen = "the device stack from the bus up is " + " < ".join(
        dict.fromkeys(one.name for one in known)
    )
    reason = f"{own.name} drives the device whose power request is stuck"
    return _found(own, known, seen, reason, "medium")


def _of_lock(crash: Crash, description: Description) -> Evidence:
    if find_fault(description.family, crash) is None:
        return Evidence(
            no_culprit="the stack of the thread that holds the lock is not in the dump; "
            + _ONLY_FOUND_OUT
        )
    return Evidence(("the stack is that of the thread that holds the lock",), at_most="medium")


def _found(
    module: Module, stack: Sequence[Module], seen: str, reason: str, confidence: Confidence
) -> Evidence:
    """The driver at fault; WinDbg's buckets have it and, behind IMAGE, the bus driver."""
    bus = stack[0] if stack and stack[0] is not module else None
    return Evidence(
        (seen, _ONLY_FOUND_OUT),
        module.name,
        bus.image if bus else module.image,
        reason,
        confidence,
        elsewhere=True,
        detail=module.name if bus else "",
    )
