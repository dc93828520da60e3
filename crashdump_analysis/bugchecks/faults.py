"""Where the registers at the fault are, for each family of bug checks.

The header's own exception record is never used: it always shows a breakpoint in KeBugCheckEx. Rules
as measured on real dumps and documented by Microsoft; each is a function found by the name of its
family in the bug check's entry.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from crashdump_analysis.debugger_data import DebuggerData
from crashdump_analysis.memory import Memory
from crashdump_analysis.modules import Modules
from crashdump_analysis.registers import (
    CONTEXT_RIP,
    RBP,
    TRAP_FRAME_RIP,
    Registers,
    read_context,
    read_trap_frame,
)
from crashdump_analysis.report import UnloadedDriver
from crashdump_analysis.stack import Frame

_SCAN: Final = 0x6000  # bytes: a kernel stack
_TRAP_FRAME_CS: Final = 0x170
_KERNEL_CODE: Final = b"\x10\0"  # the selector
_KERNEL_STACK: Final = 0x29C  # KDDEBUGGER_DATA64.OffsetKThreadKernelStack
_SWITCH_FRAME_RBP: Final = 0x30  # KSWITCH_FRAME.Rbp; Return follows, and then the caller's stack
_MAX_PROCESSORS: Final = 2048  # what Windows supports


@dataclass(frozen=True)
class Crash:
    """What a rule may look at.

    parameters: as the dump's header has them. registers: those of the header, taken at the entry
    of KeBugCheckEx. stack: from there outwards. unloaded: drivers that were loaded before.
    """

    code: int
    parameters: Sequence[int]
    memory: Memory
    registers: Registers
    stack: Sequence[Frame]
    debugger_data: DebuggerData | None
    modules: Modules = field(default_factory=Modules)
    unloaded: Sequence[UnloadedDriver] = ()

    @property
    def went_on(self) -> bool:
        """Whether no bug check was entered: the stack is there, and what lies on it is another's.

        False where that cannot be seen, as on ARM64, which has no home space.
        """
        on_x64 = self.registers.integer[RBP] is not None
        stack = self.memory.read(self.registers.rsp + 8, 0x28)
        return on_x64 and stack is not None and self.raw_parameter(0) is None

    def raw_parameter(self, number: int) -> int | None:
        """A parameter as KeBugCheckEx was called with it, from its home space on the stack.

        None where the home space does not hold this bug check, as in dumps of other origin.
        """
        stored = self.memory.read(self.registers.rsp + 8, 0x28)
        if stored is None:
            return None
        values = struct.unpack("<5Q", stored)
        return values[number] if values[0] & 0xFFFF_FFFF == self.code else None


@dataclass(frozen=True)
class Fault:
    """The registers at the fault, and in words how they were found and what the instruction did.

    without_bug_check: the machine did not stop by itself, so no stack leads there from
    KeBugCheckEx. record: what a debugger's .trap or .cxr is to be given, None where the registers
    came from no such record.
    """

    registers: Registers
    source: str
    event: str = "faulted"
    without_bug_check: bool = False
    record: tuple[Literal["trap", "cxr"], int] | None = None


Rule = Callable[[Crash], Fault | None]


def trap_frame_third(crash: Crash) -> Fault | None:
    """0x50, 0x8E, 0xBE, 0xFC: the raw third parameter is the address of the KTRAP_FRAME.

    Where the home space is not in the dump, parameter 3 of the header; for 0x50 the header has the
    instruction instead, which a trap frame on the stack has as its rip.
    """
    third = crash.parameters[2]
    return (
        _trap_frame(crash, crash.raw_parameter(3), "raw parameter 3")
        or _trap_frame(crash, third, "parameter 3")
        or _trap_frame_on_the_stack(crash, third)
    )


def trap_frame_second(crash: Crash) -> Fault | None:
    """0x139: parameter 2 is the address of the KTRAP_FRAME."""
    return _trap_frame(crash, crash.parameters[1], "parameter 2")


def context_third(crash: Crash) -> Fault | None:
    """0x3B: parameter 3 is the address of a CONTEXT record."""
    return _context(crash, crash.parameters[2], "parameter 3") or _in_the_header(crash)


def context_fourth(crash: Crash) -> Fault | None:
    """0x7E: parameter 4 is the address of a CONTEXT record."""
    return _context(crash, crash.parameters[3], "parameter 4") or _in_the_header(crash)


def context_on_the_stack(crash: Crash) -> Fault | None:
    """0x1E: somewhere on the stack is a CONTEXT record whose rip is parameter 2."""
    for place in _words(crash, crash.parameters[1]):
        address = place - CONTEXT_RIP
        registers = read_context(crash.memory, address)
        if registers:
            source = f"CONTEXT record found on the stack at {address:x}"
            return Fault(registers, source, record=("cxr", address))
    return _trap_frame_on_the_stack(crash, crash.parameters[1])


def interrupt_level(crash: Crash) -> Fault | None:
    """0x0A, 0xC5, 0xD1: the trap frame on the stack whose rip is parameter 4."""
    return _trap_frame_on_the_stack(crash, crash.parameters[3])


def instruction_third(crash: Crash) -> Fault | None:
    """0xCC, 0xCD, 0xD5, 0xD6: the trap frame on the stack whose rip is parameter 3."""
    return _trap_frame_on_the_stack(crash, crash.parameters[2])


def trap_frame_on_the_stack(crash: Crash) -> Fault | None:
    """0x1A with 0x41287: a page fault led here, and left a trap frame on the stack."""
    return _first_trap_frame(crash)


def lock_holder(crash: Crash) -> Fault | None:
    """0x9F with 4: where the thread that holds the lock, parameter 3, was when it last ran.

    A thread that does not run has a KSWITCH_FRAME on its stack (public symbols): rbp and the return
    address into the function that switched.
    """
    thread = crash.parameters[2]
    offset = crash.debugger_data.offset(_KERNEL_STACK) if crash.debugger_data else None
    stack = crash.memory.u64(thread + offset) if offset else None
    frame = crash.memory.read(stack + _SWITCH_FRAME_RBP, 16) if stack else None
    if stack is None or frame is None:
        return None
    registers = Registers()
    registers.integer[RBP], registers.rip = struct.unpack("<QQ", frame)
    registers.rsp = stack + _SWITCH_FRAME_RBP + 16
    if crash.modules.at(registers.rip) is None:
        return None
    source = f"the stack of the thread {thread:x}, which holds the lock"
    return Fault(registers, source, "waits", without_bug_check=True)


def first_interrupt(crash: Crash) -> Fault | None:
    """0x7F, 0x133: what the first interrupt or trap on the stack interrupted.

    Where unwind data does not lead there, the first trap frame that lies on the stack.
    """
    for frame in crash.stack[1:]:
        if frame.trapped:
            return Fault(frame.registers, "the first interrupt on the stack", "was interrupted")
    found = _first_trap_frame(crash) if any(one.guess for one in crash.stack) else None
    return replace(found, event="was interrupted") if found else None


def hung_processor(crash: Crash) -> Fault | None:
    """0x101: the registers of the processor that parameter 4 numbers, if it answered at all."""
    address = None
    if crash.debugger_data and crash.parameters[3] < _MAX_PROCESSORS:
        address = crash.debugger_data.processor_context(crash.parameters[3])
    found = _context(crash, address, f"the KPRCB of processor {crash.parameters[3]}, which hangs")
    if found is None or crash.modules.at(found.registers.rip) is None:
        return None
    return replace(found, event="hung", without_bug_check=True)


def processor(crash: Crash) -> Fault | None:
    """0x161: the registers that whoever made the dump left in the first processor's KPRCB."""
    address = crash.debugger_data.processor_context(0) if crash.debugger_data else None
    found = _context(crash, address, "the KPRCB of processor 0")
    return replace(found, event="was stopped", without_bug_check=True) if found else None


RULES: Final[dict[str, Rule]] = {
    rule.__name__.replace("_", "-"): rule
    for rule in (
        trap_frame_third,
        trap_frame_second,
        context_third,
        context_fourth,
        context_on_the_stack,
        interrupt_level,
        instruction_third,
        trap_frame_on_the_stack,
        lock_holder,
        first_interrupt,
        hung_processor,
        processor,
    )
}


def find_fault(family: str, crash: Crash) -> Fault | None:
    """The fault's registers by a family's rule; None where the family has none or it fails."""
    rule = RULES.get(family)
    return rule(crash) if rule else None


def _trap_frame(crash: Crash, address: int | None, source: str) -> Fault | None:
    registers = read_trap_frame(crash.memory, address) if address else None
    if address is None or registers is None:
        return None
    return Fault(registers, f"trap frame at {address:x} ({source})", record=("trap", address))


def _context(crash: Crash, address: int | None, source: str) -> Fault | None:
    registers = read_context(crash.memory, address) if address else None
    if address is None or registers is None:
        return None
    return Fault(registers, f"CONTEXT record at {address:x} ({source})", record=("cxr", address))


def _in_the_header(crash: Crash) -> Fault | None:
    """The header's registers, if they are at the instruction that parameter 2 names.

    The conversion of a kernel dump to a triage dump puts the context of an exception there.
    """
    if crash.registers.rip != crash.parameters[1]:
        return None
    return Fault(crash.registers, "the dump's header, whose registers are those of the exception")


def _trap_frame_on_the_stack(crash: Crash, instruction: int) -> Fault | None:
    for place in _words(crash, instruction):
        found = _trap_frame(crash, place - TRAP_FRAME_RIP, "found on the stack by its rip")
        if found:
            return found
    return None


def _first_trap_frame(crash: Crash) -> Fault | None:
    """The first thing on the stack that has a trap frame's selectors and was in loaded code."""
    start = crash.registers.rsp & ~7
    stack = crash.memory.read_some(start, _SCAN)
    for at in range(_TRAP_FRAME_CS, len(stack) - 1, 8):
        if stack[at : at + 2] != _KERNEL_CODE:
            continue
        address = start + at - _TRAP_FRAME_CS
        registers = read_trap_frame(crash.memory, address)
        if registers and crash.modules.at(registers.rip):
            return Fault(registers, f"trap frame at {address:x} (found by its selectors)")
    return None


def _words(crash: Crash, value: int) -> list[int]:
    """Where on the stack a value lies at an aligned address."""
    start = crash.registers.rsp & ~7
    stack = crash.memory.read_some(start, _SCAN)
    wanted, places, at = struct.pack("<Q", value), [], stack.find(struct.pack("<Q", value))
    while at >= 0 and value:
        if at % 8 == 0:
            places.append(start + at)
        at = stack.find(wanted, at + 1)
    return places
