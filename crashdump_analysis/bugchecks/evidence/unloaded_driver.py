"""Code that ran, or was to run, in a driver that is no longer loaded (0xCE and wild jumps)."""

from __future__ import annotations

from crashdump_analysis.bugchecks import Description
from crashdump_analysis.bugchecks.evidence import Evidence
from crashdump_analysis.bugchecks.faults import Crash, find_fault
from crashdump_analysis.modules import module_name


def evidence(crash: Crash, description: Description) -> Evidence | None:
    """The unloaded driver that the instruction or the address referenced was in."""
    fault = find_fault(description.family, crash)
    addresses = {
        "the instruction": fault.registers.rip if fault else None,
        "the instruction that referenced memory": description.named("instruction"),
        "the address referenced": description.named("address"),
    }
    for what, address in addresses.items():
        if not address or crash.modules.at(address):  # another has been loaded there since
            continue
        for driver in crash.unloaded:
            if driver.start <= address < driver.end:
                name = module_name(driver.name)
                return Evidence(
                    (f"{what}, {address:x}, lies where {driver.name} was before it unloaded",),
                    name,
                    driver.name,
                    f"{name} was unloaded while code of it was still to be run",
                    "high",
                )
    return None
