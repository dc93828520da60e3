"""Registers of an x64 processor, as CONTEXT and KTRAP_FRAME records hold them.

Offsets in bytes: CONTEXT of winnt.h; KTRAP_FRAME as public symbols have it on every 64-bit Windows.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

from crashdump_analysis.memory import Memory

# In the order in which instructions and unwind codes number them.
NAMES: Final = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *(f"r{number}" for number in range(8, 16)),
)
RSP: Final = 4
RBP: Final = 5
VOLATILE: Final = (0, 1, 2, 8, 9, 10, 11)
"""The integer registers a called function may change: rax, rcx, rdx, r8 to r11."""

CONTEXT_SIZE: Final = 0x4D0
CONTEXT_FLAGS: Final = 0x30
CONTEXT_RSP: Final = 0x98
CONTEXT_RIP: Final = 0xF8
_AMD64_CONTROL = 0x100001  # ContextFlags: x64, and rip, rsp, eflags are valid
_PROCESSOR_BITS = 0x07FF_0001  # bits 27 and up tell of exceptions

TRAP_FRAME_SIZE: Final = 0x190
TRAP_FRAME_RIP: Final = 0x168
_TRAP_FRAME = {0: 0x30, 1: 0x38, 2: 0x40, 8: 0x48, 9: 0x50, 10: 0x58, 11: 0x60, RBP: 0x158}


@dataclass
class Registers:
    """Integer registers by number, the instruction pointer, flags and the code selector.

    Registers that the record they came from does not hold are None.
    """

    integer: list[int | None] = field(default_factory=lambda: [None] * 16)
    rip: int = 0
    flags: int | None = None
    cs: int | None = None

    @property
    def rsp(self) -> int:
        """The stack pointer."""
        return self.integer[RSP] or 0

    @rsp.setter
    def rsp(self, value: int) -> None:
        self.integer[RSP] = value

    @property
    def user_mode(self) -> bool:
        """Whether these are of user mode, by selector or by address."""
        return bool(self.cs is not None and self.cs & 3) or 0 < self.rip < 1 << 47

    def copy(self) -> Registers:
        """Registers of their own with the same values."""
        return Registers(list(self.integer), self.rip, self.flags, self.cs)

    def completed_by(self, others: Registers) -> Registers:
        """These, and what they lack from others of the same moment."""
        completed = self.copy()
        for number, value in enumerate(others.integer):
            if completed.integer[number] is None:
                completed.integer[number] = value
        return completed

    def by_name(self) -> dict[str, int]:
        """The known values by register name."""
        named: dict[str, int | None] = dict(zip(NAMES, self.integer, strict=True))
        named |= {"rip": self.rip, "efl": self.flags, "cs": self.cs}
        return {name: value for name, value in named.items() if value is not None}


def from_context(record: bytes) -> Registers:
    """Registers of a CONTEXT record (at least its first 0x100 bytes)."""
    integer: list[int | None] = list(struct.unpack_from("<16Q", record, 0x78))
    (rip,) = struct.unpack_from("<Q", record, CONTEXT_RIP)
    (cs,) = struct.unpack_from("<H", record, 0x38)
    (flags,) = struct.unpack_from("<I", record, 0x44)
    return Registers(integer, rip, flags, cs)


def read_context(memory: Memory, address: int) -> Registers | None:
    """Registers of the CONTEXT record at an address; None where there is no valid one."""
    record = memory.read(address, 0x100)
    if record is None:
        return None
    (flags,) = struct.unpack_from("<I", record, CONTEXT_FLAGS)
    if flags & _PROCESSOR_BITS != _AMD64_CONTROL:
        return None
    return from_context(record)


def read_trap_frame(memory: Memory, address: int) -> Registers | None:
    """Registers of the KTRAP_FRAME at an address: the volatile ones, rbp, rsp, rip, cs, flags.

    None where memory or selectors say that there is no trap frame.
    """
    record = memory.read(address, TRAP_FRAME_SIZE)
    if record is None:
        return None
    registers = Registers()
    for number, offset in _TRAP_FRAME.items():
        (registers.integer[number],) = struct.unpack_from("<Q", record, offset)
    registers.rip, cs, flags, rsp, ss = struct.unpack_from("<QH6xI4xQH", record, TRAP_FRAME_RIP)
    if (cs, ss) not in _SELECTORS:
        return None
    registers.cs, registers.flags, registers.rsp = cs, flags, rsp
    return registers


# Code and stack selectors of kernel and user mode on x64 Windows (ksamd64.inc); the kernel's stack
# selector is 0 after a switch to an interrupt stack.
_SELECTORS = frozenset({(0x10, 0x18), (0x10, 0), (0x33, 0x2B), (0x23, 0x2B)})
