"""0x124: what the hardware reported, out of the WHEA_ERROR_RECORD that parameter 2 points to.

Layout and section types: UEFI specification, appendix N, "Common Platform Error Record"; machine
check codes: Intel's Software Developer's Manual, volume 3, "Interpreting machine-check error codes"
"""

from __future__ import annotations

import struct
import uuid
from typing import Final

from crashdump_analysis.bugchecks import Description
from crashdump_analysis.bugchecks.evidence import Evidence
from crashdump_analysis.bugchecks.evidence.objects import ascii_text
from crashdump_analysis.bugchecks.faults import Crash
from crashdump_analysis.memory import Memory

_HEADER_SIZE: Final = 0x80
_SECTION_SIZE: Final = 0x48
_MAX_SECTIONS = 16
_SEVERITIES: Final = ("recoverable", "fatal", "corrected", "informational")
_SECTIONS: Final = {
    "9876ccad-47b4-4bdb-b65e-16f193c4f3db": "processor",
    "dc3ea0b0-a144-4797-b95b-53fa242b6e1d": "x86 processor",
    "8a1e1d01-42f9-4557-9c33-565e5cc3f7e8": "machine check",
    "a5bc1114-6f64-4ede-b863-3e83ed7c83b1": "memory",
    "d995e954-bbc1-430f-ad91-b44dcb3c6f35": "PCI Express",
    "c5753963-3b84-4095-bf78-eddad3f9c9dd": "PCI bus",
    "eb5e4685-ca66-4769-b6a2-26068b001326": "PCI device",
    "81212a96-09ed-4996-9471-8d729c8e69ed": "firmware",
}
_WHY: Final = "the hardware reported this error itself; the stack only shows who was told of it"


def evidence(crash: Crash, description: Description) -> Evidence | None:
    """Sections of the record, and the machine check's code where there is one."""
    words = [*_record(crash.memory, crash.parameters[1])]
    detail = ""
    if crash.parameters[0] == 0:
        detail, told = _machine_check(crash.parameters[2] << 32 | crash.parameters[3])
        words += told
    return Evidence(tuple(words), no_culprit=_WHY, detail=detail)


def _record(memory: Memory, address: int) -> list[str]:
    header = memory.read(address, _HEADER_SIZE) if address else None
    if header is None:
        return ["the error record is not in the dump"]
    if header[:4] != b"CPER" or header[6:10] != b"\xff\xff\xff\xff":
        return [f"there is no error record at {address:x}"]
    count, severity = struct.unpack_from("<HI", header, 0x0A)
    known = _SEVERITIES[severity] if severity < len(_SEVERITIES) else f"of severity {severity}"
    words = [f"the error record is {known} and has {count} section{'s' if count != 1 else ''}"]
    for number in range(min(count, _MAX_SECTIONS)):
        place = address + _HEADER_SIZE + _SECTION_SIZE * number
        section = memory.read(place, _SECTION_SIZE)
        if section is None:
            words.append(f"section {number + 1} is not in the dump")
            break
        kind = str(uuid.UUID(bytes_le=section[0x10:0x20]))
        unit = ascii_text(memory, place + 0x34)[:20]
        named = f", of the unit {unit}" if unit else ""
        words.append(f"section {number + 1}: {_SECTIONS.get(kind, f'of a type {kind}')}{named}")
    return words


def _machine_check(status: int) -> tuple[str, list[str]]:
    """What MCi_STATUS says: WinDbg's word for the bucket (inferred), and in words."""
    if not status >> 63:
        return "", []
    code = status & 0xFFFF
    flags = [
        text
        for bit, text in (
            (62, "errors were lost before it"),
            (61, "uncorrected"),
            (57, "the processor's state may be corrupt"),
        )
        if status >> bit & 1
    ]
    detail, what = next(
        (words for mask, value, words in _MACHINE_CHECKS if code & mask == value),
        ("PROCESSOR", "of the processor's own kind"),
    )
    return detail, [f"machine check 0x{code:x}: {what} ({', '.join(flags) or 'no flags'})"]


# Mask and value of the code's 16 bits, the more special first; bit 12 says "corrected, filtered".
_MACHINE_CHECKS: Final = (
    (0xEFFF, 0x0005, ("PROCESSOR_INTERNAL", "internal parity error")),
    (0xEFFF, 0x0400, ("PROCESSOR_INTERNAL_TIMER", "internal timer error")),
    (0xE800, 0x0800, ("PROCESSOR_BUS", "bus or interconnect error")),
    (0xEF00, 0x0100, ("PROCESSOR_CACHE", "cache error")),
    (0xEF80, 0x0080, ("PROCESSOR_MEMORY", "memory controller error")),
    (0xEFF0, 0x0010, ("PROCESSOR_TLB", "translation buffer (TLB) error")),
)
