"""What kind of a bad address it was, as far as that can be shown: 0x0A, 0x50, 0xD1, 0x1E, 0x7E ...

The address is a parameter, or in the EXCEPTION_RECORD64 of an access violation.
"""

from __future__ import annotations

from typing import Final

from crashdump_analysis.bugchecks import Description
from crashdump_analysis.bugchecks.evidence import Evidence
from crashdump_analysis.bugchecks.faults import Crash

_ACCESS_VIOLATION: Final = 0xC0000005
_SECOND_INFORMATION: Final = 0x28  # EXCEPTION_RECORD64.ExceptionInformation[1]
_NO_ADDRESS: Final = (1 << 64) - 1  # of a general protection fault the processor tells none
_NULL_PAGES: Final = 0x10000  # Windows never maps the first 64 KiB
_USER_SPACE: Final = 1 << 47
_UPPER_BITS: Final = 0x1FFFF  # bits 47 to 63: all the same in a canonical address


def evidence(crash: Crash, description: Description) -> Evidence | None:
    """Words only: the stack says whose pointer it was."""
    address = _address(crash, description)
    if address == _NO_ADDRESS and description.named("exception") is not None:
        return Evidence(("no address was reported, as for a pointer that is not canonical",))
    words = _kind(crash, address) if address is not None else ""
    return Evidence((words,)) if words else None


def _address(crash: Crash, description: Description) -> int | None:
    exception = description.named("exception")
    if exception is None:
        return description.named("address")
    record = description.named("exception_record")
    if exception & 0xFFFF_FFFF != _ACCESS_VIOLATION:
        return None
    if record is None:
        return description.named("information_1")
    return crash.memory.u64(record + _SECOND_INFORMATION)


def _kind(crash: Crash, address: int) -> str:
    if address < _NULL_PAGES:
        return f"the address is {address:x}: a null pointer, or a field of what one points to"
    if address < _USER_SPACE:
        return "the address is one of user mode"
    upper = address >> 47
    if upper == _UPPER_BITS:
        module = crash.modules.at(address)
        where = f"{module.name}+0x{address - module.base:x}" if module else ""
        return f"the address lies in {where}" if where else ""
    for wrong in (upper, upper ^ _UPPER_BITS):  # against an address of user mode, of the kernel
        if wrong.bit_count() == 1:
            bit = 47 + wrong.bit_length() - 1
            return f"the address is no canonical one, by bit {bit} alone: perhaps bad memory"
    return "the address is no canonical one: data that was taken for a pointer"
