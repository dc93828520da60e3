"""One step up an x64 stack: from the registers in a function to those in its caller.

Source: Microsoft's "x64 exception handling" (cpp-docs): unwind codes of version 1, and of version
2, which adds codes that say where epilogues are; here those are found by decoding instead.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from crashdump_analysis.epilogue import finish_epilogue
from crashdump_analysis.image import Image
from crashdump_analysis.memory import Memory
from crashdump_analysis.registers import (
    TRAP_FRAME_RIP,
    VOLATILE,
    Registers,
    read_trap_frame,
)

_PUSH_NONVOL, _ALLOC_LARGE, _ALLOC_SMALL, _SET_FPREG, _SAVE_NONVOL, _SAVE_NONVOL_FAR = range(6)
_EPILOG, _SPARE, _SAVE_XMM128, _SAVE_XMM128_FAR, _PUSH_MACHFRAME = range(6, 11)
_CHAIN_FLAG: Final = 4
_MAX_CHAIN = 32  # what Windows' own unwinder takes

ImageAt = Callable[[int], tuple[Image, int] | None]
"""The image at an address and where it is loaded; None where there is none or it has no headers."""


class UnwindError(Exception):
    """Why no step up could be made, in words."""


@dataclass(frozen=True)
class Step:
    """The caller's registers.

    trapped: an interrupt or exception left them, so `rip` is the instruction that was interrupted
    and no return address. trap_frame: the address of the kernel's KTRAP_FRAME for it, if found.
    """

    registers: Registers
    trapped: bool = False
    trap_frame: int | None = None


@dataclass(frozen=True)
class _UnwindInfo:
    version: int
    flags: int
    prologue_size: int
    frame_register: int
    frame_offset: int  # bytes
    slots: bytes
    chained: tuple[int, int, int] | None


def unwind(memory: Memory, image_at: ImageAt, registers: Registers, *, trapped: bool) -> Step:
    """Goes from a function to its caller.

    trapped: whether `registers.rip` is the instruction at which the function was interrupted; it
    is a return address otherwise. Raises UnwindError where the data for it is missing.
    """
    # A return address may lie behind the end of its function, after a call that never returns.
    place = registers.rip - (not trapped)
    found = image_at(place)
    if found is None:
        raise UnwindError(f"{registers.rip:x} lies in no module")
    image, base = found
    try:
        function = image.runtime_function(place - base)
    except LookupError as error:
        raise UnwindError(str(error)) from error
    if function is None:
        if not trapped:
            raise UnwindError(f"{registers.rip:x} has no unwind data")
        return _leaf(memory, registers)
    return _unwind_function(memory, image, base, function, registers, trapped=trapped)


def function_start(image: Image, rva: int) -> int | None:
    """Where the function around an offset from the base starts, chained parts followed."""
    try:
        function = image.runtime_function(rva)
        for _ in range(_MAX_CHAIN):
            if function is None:
                return None
            chained = _read_info(image, function[2]).chained
            if chained is None:
                return function[0]
            function = chained
    except (LookupError, UnwindError):
        pass
    return None


def _leaf(memory: Memory, registers: Registers) -> Step:
    """A function that neither calls nor moves the stack pointer: its return address is on top."""
    caller = registers.copy()
    caller.rip = _pop(memory, caller)
    caller.cs = caller.flags = None
    return Step(caller)


def _unwind_function(
    memory: Memory,
    image: Image,
    base: int,
    function: tuple[int, int, int],
    registers: Registers,
    *,
    trapped: bool,
) -> Step:
    caller = registers.copy()
    for number in VOLATILE:
        caller.integer[number] = None
    caller.cs = caller.flags = None
    offset = registers.rip - base - function[0]
    info = _read_info(image, function[2])
    if trapped and offset >= info.prologue_size:
        after = finish_epilogue(
            memory, caller, lambda target: _leaves(image, function, target - base)
        )
        if after:
            after.rip = _pop(memory, after)
            return Step(after)
    # Only what the prologue has done so far is undone; a chained part's parent has done it all.
    done = offset if trapped else 0xFFFF
    frame = _frame_base(info, caller, done)
    for _ in range(_MAX_CHAIN):
        machine_frame = _undo(memory, info, caller, frame, done)
        if machine_frame:
            return machine_frame
        if info.chained is None:
            caller.rip = _pop(memory, caller)
            return Step(caller)
        info = _read_info(image, info.chained[2])
        done = 0xFFFF
    raise UnwindError(f"the unwind data of {registers.rip:x} is chained without end")


def _leaves(image: Image, function: tuple[int, int, int], target: int) -> bool:
    """Whether a jump goes to another function: not within this one, nor to another part of it."""
    begin, end, _ = function
    if begin <= target < end:
        return target == begin  # a function that calls itself last
    return function_start(image, target) != function_start(image, begin)


def _frame_base(info: _UnwindInfo, registers: Registers, done: int) -> int:
    """What saved registers are addressed from: the stack pointer after the prologue."""
    if info.frame_register == 0:
        return registers.rsp
    if done < info.prologue_size and not info.chained:
        # The frame register is set by one of the prologue's instructions, perhaps not yet.
        at, slots = 0, info.slots
        while at < len(slots):
            if slots[at + 1] & 15 == _SET_FPREG and slots[at] <= done:
                break
            at += 2 * _slots_of(slots, at)
        else:
            return registers.rsp
    return _known(registers, info.frame_register) - info.frame_offset


def _undo(
    memory: Memory, info: _UnwindInfo, caller: Registers, frame: int, done: int
) -> Step | None:
    """Undoes the codes of one part; gives a step only for a machine frame, which ends it."""
    at, slots, bottom = 0, info.slots, caller.rsp
    while at < len(slots):
        code_offset, operation, argument = slots[at], slots[at + 1] & 15, slots[at + 1] >> 4
        count = _slots_of(slots, at)
        operand = slots[at + 2 : at + 2 * count]
        at += 2 * count
        if operation == _EPILOG or code_offset > done:
            continue
        if operation == _PUSH_NONVOL:
            caller.integer[argument] = _pop(memory, caller)
        elif operation == _ALLOC_SMALL:
            caller.rsp += argument * 8 + 8
        elif operation == _ALLOC_LARGE:
            scale = 8 if argument == 0 else 1
            caller.rsp += int.from_bytes(operand, "little") * scale
        elif operation == _SET_FPREG:
            caller.rsp = _known(caller, info.frame_register) - info.frame_offset
        elif operation in (_SAVE_NONVOL, _SAVE_NONVOL_FAR):
            scale = 8 if operation == _SAVE_NONVOL else 1
            place = frame + int.from_bytes(operand, "little") * scale
            caller.integer[argument] = _read(memory, place)
        elif operation == _PUSH_MACHFRAME:
            return _machine_frame(memory, caller, bottom, with_error_code=argument == 1)
        elif operation not in (_SAVE_XMM128, _SAVE_XMM128_FAR):
            raise UnwindError(f"unknown unwind code {operation}")
    return None


def _machine_frame(
    memory: Memory, caller: Registers, bottom: int, *, with_error_code: bool
) -> Step:
    """What the processor pushed: rip, cs, rflags, rsp, ss, below an error code for some traps.

    bottom: where the handler's own part of the stack begins.
    """
    place = caller.rsp + (8 if with_error_code else 0)
    data = memory.read(place, 40)
    if data is None:
        raise UnwindError(f"the stack at {place:x} is not in the dump")
    caller.rip, cs, flags, caller.rsp = struct.unpack_from("<QH6xI4xQ", data)
    caller.cs, caller.flags = cs, flags
    # The kernel's handlers have a KTRAP_FRAME around it, which keeps the volatile registers.
    trap_frame = place - TRAP_FRAME_RIP
    kept = read_trap_frame(memory, trap_frame) if trap_frame >= bottom else None
    if kept is None:
        return Step(caller, trapped=True)
    for number in VOLATILE:
        caller.integer[number] = kept.integer[number]
    return Step(caller, trapped=True, trap_frame=trap_frame)


def _read_info(image: Image, rva: int) -> _UnwindInfo:
    """UNWIND_INFO at an offset from the base; an odd one points to another entry of .pdata."""
    for _ in range(_MAX_CHAIN):
        if not rva & 1:
            break
        entry = image.read(rva & ~1, 12)
        if entry is None:
            raise UnwindError("the unwind data is not in memory")
        (rva,) = struct.unpack_from("<I", entry, 8)
    head = image.read(rva, 4)
    slots = image.read(rva + 4, head[2] * 2) if head and head[2] else b""
    if head is None or slots is None:
        raise UnwindError("the unwind data is not in memory")
    version, flags = head[0] & 7, head[0] >> 3
    if version not in (1, 2):
        raise UnwindError(f"unwind data of version {version}")
    chained = None
    if flags & _CHAIN_FLAG:
        entry = image.read(rva + 4 + (head[2] + 1 & ~1) * 2, 12)
        if entry is None:
            raise UnwindError("the unwind data is not in memory")
        chained = struct.unpack("<III", entry)
    return _UnwindInfo(version, flags, head[1], head[3] & 15, (head[3] >> 4) * 16, slots, chained)


def _slots_of(slots: bytes, at: int) -> int:
    """How many 16-bit slots a code takes. Raises UnwindError where they are not there."""
    operation, argument = slots[at + 1] & 15, slots[at + 1] >> 4
    count = {
        _ALLOC_LARGE: 2 if argument == 0 else 3,
        _SAVE_NONVOL: 2,
        _SAVE_NONVOL_FAR: 3,
        _SAVE_XMM128: 2,
        _SAVE_XMM128_FAR: 3,
    }.get(operation, 1)
    if at + 2 * count > len(slots):
        raise UnwindError("unwind codes that break off")
    return count


def _known(registers: Registers, number: int) -> int:
    value = registers.integer[number]
    if value is None:
        raise UnwindError("a register that the unwind data needs is not known")
    return value


def _pop(memory: Memory, registers: Registers) -> int:
    value = _read(memory, registers.rsp)
    registers.rsp += 8
    return value


def _read(memory: Memory, address: int) -> int:
    value = memory.u64(address)
    if value is None:
        raise UnwindError(f"the stack at {address:x} is not in the dump")
    return value
