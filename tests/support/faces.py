"""One crash shown by other bug checks: the same bad pointer at another IRQL, or in another thread.

From a dump of a crash with a trap frame at the fault, dumps of what the same fault looks like as
0x50, 0x7E and 0xD1: stop code and parameters in header and home space, and the records that each of
them leaves. Stack, images and everything else stay those of the real crash.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from crashdump_analysis import Report
from crashdump_analysis.addresses import VirtualAddress
from crashdump_analysis.dump import open_dump
from crashdump_analysis.memory import PagedMemory
from tests.support.synthetic_dump import context_record, trap_frame

FACES = (0x50, 0x7E, 0xD1)
ACCESS_VIOLATION = 0xFFFFFFFF_C0000005
_ADDRESS = 0xFFFFAB00_DEAD0000  # what the bad pointer pointed to, as the parameters say


@dataclass(frozen=True)
class _File:
    """A bitmap dump whose memory can be changed."""

    data: bytearray
    memory: PagedMemory

    def put(self, address: int, data: bytes) -> None:
        """Changes virtual memory within one page."""
        physical = self.memory.translate(VirtualAddress(address))
        assert physical is not None, f"{address:x} is not in the dump"
        (first,) = struct.unpack_from("<Q", self.data, 0x2020)
        number = physical >> 12
        bitmap = int.from_bytes(self.data[0x2038 : 0x2038 + number // 8 + 1], "little")
        index = (bitmap & (1 << number) - 1).bit_count()
        place = first + index * 0x1000 + (physical & 0xFFF)
        self.data[place : place + len(data)] = data


def shown_as(dump: Path, report: Report, face: int, target: Path) -> Path:
    """Writes the crash as that bug check and gives the path.

    report: of the dump. The records lie below the stack pointer, where the stack was in use before.
    """
    registers = report.context.registers
    rsp = report.stack[0].stack_pointer
    with open_dump(dump) as opened:
        assert isinstance(opened.memory, PagedMemory)
        file = _File(bytearray(dump.read_bytes()), opened.memory)
        page = (rsp - 0x1000) & ~0xFFF
        trap, context = page, page + 0x400
        file.put(trap, trap_frame(registers))
        file.put(context, context_record(registers))
        instruction = registers["rip"]
        shown, raw = {
            0x50: ((_ADDRESS, 0, instruction, 2), (_ADDRESS, 0, trap, 2)),
            0x7E: ((ACCESS_VIOLATION, instruction, 0, context),) * 2,
            0xD1: ((_ADDRESS, 2, 0, instruction),) * 2,
        }[face]
        for number, value in enumerate((face, *raw)):
            file.put(rsp + 8 + 8 * number, struct.pack("<Q", value))
        struct.pack_into("<I", file.data, 0x38, face)
        struct.pack_into("<4Q", file.data, 0x40, *shown)
    target.write_bytes(file.data)
    return target
