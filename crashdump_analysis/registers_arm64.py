"""Registers of an ARM64 processor, as its CONTEXT record holds them (winnt.h, ARM64_NT_CONTEXT).

Stacks of ARM64 are not unwound.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

from crashdump_analysis.modules import Modules
from crashdump_analysis.registers import Registers
from crashdump_analysis.stack import Frame

ARM64_NAMES: Final = (*(f"x{number}" for number in range(29)), "fp", "lr", "sp", "pc")
_ARM64_CONTEXT = 0x0040_0000  # ContextFlags: an ARM64 record
_INTEGER = 0x08  # x0 to x28, then fp, lr, sp, pc: 64 bits each


@dataclass
class Arm64Registers(Registers):
    """ARM64 registers: `rip` is pc, `rsp` is sp, flags are cpsr; x64's own are unknown."""

    named: dict[str, int] = field(default_factory=dict)

    def by_name(self) -> dict[str, int]:
        """The values by register name."""
        return dict(self.named)


def from_arm64_context(record: bytes) -> Arm64Registers:
    """Registers of a CONTEXT record (at least its first 0x110 bytes); none where it is another."""
    flags, cpsr = struct.unpack_from("<II", record)
    if not flags & _ARM64_CONTEXT:
        return Arm64Registers()
    values = struct.unpack_from(f"<{len(ARM64_NAMES)}Q", record, _INTEGER)
    named = dict(zip(ARM64_NAMES, values, strict=True)) | {"cpsr": cpsr}
    registers = Arm64Registers(rip=named["pc"], flags=cpsr, named=named)
    registers.rsp = named["sp"]
    return registers


def arm64_frames(registers: Registers, modules: Modules) -> list[Frame]:
    """The frame of some registers, and as a guess the one that lr leads to, if it is in a module.

    lr is the return address only as long as the function has not called another.
    """
    frames = [Frame(registers, trapped=True)]
    caller = registers.by_name().get("lr", 0)
    if modules.at(caller) is not None:
        following = Registers(rip=caller)
        following.rsp = registers.rsp
        frames.append(Frame(following, guess=True))
    return frames
