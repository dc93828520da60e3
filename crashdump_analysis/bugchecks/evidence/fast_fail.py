"""0x139: the exception record says the same a second time; where it does not, doubt it."""

from __future__ import annotations

import struct

from crashdump_analysis.bugchecks import Description
from crashdump_analysis.bugchecks.evidence import Evidence
from crashdump_analysis.bugchecks.faults import Crash

_STATUS_STACK_BUFFER_OVERRUN = 0xC0000409


def evidence(crash: Crash, description: Description) -> Evidence | None:
    """The EXCEPTION_RECORD that parameter 3 points to: its code, address and first parameter."""
    address = crash.parameters[2]
    record = crash.memory.read(address, 0x28) if address else None
    if record is None:
        return None
    # ExceptionCode, ExceptionFlags, ExceptionRecord, ExceptionAddress, NumberParameters, [0]
    code, place, count, first = struct.unpack("<I12xQI4xQ", record)
    if code != _STATUS_STACK_BUFFER_OVERRUN or not count or first != crash.parameters[0]:
        return Evidence(
            (f"the exception record at {address:x} does not tell of this failure",),
            at_most="medium",
            doubt="the exception record tells another story",
        )
    module = crash.modules.at(place)
    where = f"{module.name}+0x{place - module.base:x}" if module else f"{place:x}"
    return Evidence((f"the check that failed is at {where}, by the exception record",))
