"""One step up an x64 stack: from the registers in a function to those in its caller.

Source: Microsoft's "x64 exception handling" (cpp-docs), and for epilogues of version 2 the unwinder
of .NET (dotnet/runtime, MIT, src/coreclr/unwinder/amd64), which follows Windows'. Unwind data of
version 1 does not say where epilogues are: those are found by decoding.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from crashdump_analysis.epilogue import LONGEST, finish_epilogue
from crashdump_analysis.image import RuntimeFunction
from crashdump_analysis.memory import Memory
from crashdump_analysis.registers import (
    TRAP_FRAME_RIP,
    VOLATILE,
    Registers,
    read_trap_frame,
)
from crashdump_analysis.unwind_info import (
    ALLOC_LARGE,
    ALLOC_SMALL,
    MAX_CHAIN,
    NOT_OF_INTEGERS,
    PUSH_MACHFRAME,
    PUSH_NONVOL,
    SAVE_NONVOL,
    SAVE_NONVOL_FAR,
    SET_FPREG,
    UnwindData,
    UnwindError,
    UnwindInfo,
    direct_entry,
    read_unwind_info,
)

_ALL_DONE = 0xFFFF_FFFF  # an offset behind every prologue

ImageAt = Callable[[int], tuple[UnwindData, int] | None]
"""The unwind data for an address, and where its image is loaded; None where there is no image."""


@dataclass(frozen=True)
class Step:
    """The caller's registers.

    trapped: an interrupt or exception left them, so `rip` is the instruction that was interrupted
    and no return address. trap_frame: the address of the kernel's KTRAP_FRAME for it, if found.
    """

    registers: Registers
    trapped: bool = False
    trap_frame: int | None = None


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
    function = direct_entry(image, function)
    part = _Part(image, base, function, read_unwind_info(image, function[2]))
    return _unwind_part(memory, part, registers, trapped=trapped)


@dataclass(frozen=True)
class _Part:
    """A function, or a part of one, that has an entry of its own; `base` is the image's address."""

    image: UnwindData
    base: int
    function: RuntimeFunction
    info: UnwindInfo


def function_start(image: UnwindData, rva: int) -> int | None:
    """Where the function around an offset from the base starts, chained parts followed."""
    try:
        function = image.runtime_function(rva)
        for _ in range(MAX_CHAIN):
            if function is None:
                return None
            function = direct_entry(image, function)
            chained = read_unwind_info(image, function[2]).chained
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


def _unwind_part(memory: Memory, part: _Part, registers: Registers, *, trapped: bool) -> Step:
    caller = registers.copy()
    for number in VOLATILE:
        caller.integer[number] = None
    caller.cs = caller.flags = None
    # In a part of a function that an indirect entry describes, this may be a huge number.
    offset = registers.rip - part.base - part.function[0] & 0xFFFF_FFFF
    if trapped:
        after = _finish_epilogue(memory, part, caller, offset)
        if after:
            return after
    # Only what the prologue has done so far is undone; a chained part's parent has done it all.
    info, done = part.info, offset if trapped else _ALL_DONE
    frame = _frame_base(info, caller, done)
    for _ in range(MAX_CHAIN):
        machine_frame = _undo(memory, info, caller, frame, done)
        if machine_frame:
            return machine_frame
        if info.chained is None:
            caller.rip = _pop(memory, caller)
            return Step(caller)
        info, done = read_unwind_info(part.image, info.chained[2]), _ALL_DONE
    raise UnwindError(f"the unwind data of {registers.rip:x} is chained without end")


def _finish_epilogue(memory: Memory, part: _Part, caller: Registers, offset: int) -> Step | None:
    """The step out of an epilogue; None where the function was interrupted elsewhere."""
    info, (begin, end, _) = part.info, part.function
    if info.version > 1:
        for start in info.epilogues:
            into = offset - (end - begin - start)
            if 0 <= into < info.epilogue_size:
                return _rest_of_epilogue(memory, part.image, info, caller, into)
        return None
    if offset < info.prologue_size:
        return None
    code = part.image.read(caller.rip - part.base, LONGEST)
    after = finish_epilogue(
        memory,
        caller,
        code or memory.read_some(caller.rip, LONGEST),
        frame_register=info.frame_register,
        leaves=lambda target: _leaves(part, target - part.base),
    )
    if after is None:
        return None
    after.rip = _pop(memory, after)
    return Step(after)


def _rest_of_epilogue(
    memory: Memory, image: UnwindData, info: UnwindInfo, caller: Registers, into: int
) -> Step:
    """What an epilogue of version 2 does from some of its bytes on.

    It undoes the pushes of the prologue in their order, an instruction each, and returns; the stack
    was given back before it began.
    """
    for _ in range(MAX_CHAIN):
        codes = list(info.codes)
        while codes and codes[0].operation not in (PUSH_NONVOL, PUSH_MACHFRAME):
            del codes[0]
        if codes or info.chained is None:
            break
        info = read_unwind_info(image, info.chained[2])
    at = 0
    for one in codes:
        if one.operation == PUSH_NONVOL:
            if at >= into:
                caller.integer[one.argument] = _pop(memory, caller)
            at += 1 if one.argument < 8 else 2  # a REX prefix
        elif one.operation == ALLOC_SMALL and one.argument == 0:  # flags, popped to be forgotten
            if at >= into:
                caller.rsp += 8
            at += 1
        elif one.operation == PUSH_MACHFRAME:
            return _machine_frame(memory, caller, caller.rsp, with_error_code=False)
        else:
            raise UnwindError("an epilogue that does not mirror its prologue")
    caller.rip = _pop(memory, caller)
    return Step(caller)


def _leaves(part: _Part, target: int) -> bool:
    """Whether a jump goes to another function, or to the start of this one to call it again."""
    begin, end, _ = part.function
    if begin <= target < end:
        return target == begin and part.info.chained is None
    start = function_start(part.image, begin)
    return target == start or function_start(part.image, target) != start


def _frame_base(info: UnwindInfo, registers: Registers, done: int) -> int:
    """What saved registers are addressed from: the stack pointer after the prologue."""
    if info.frame_register == 0:
        return registers.rsp
    # The frame register is set by one of the prologue's instructions, perhaps not yet.
    in_prologue = done < info.prologue_size and not info.chained
    if in_prologue and not any(
        one.operation == SET_FPREG and one.offset <= done for one in info.codes
    ):
        return registers.rsp
    return _known(registers, info.frame_register) - info.frame_offset


def _undo(
    memory: Memory, info: UnwindInfo, caller: Registers, frame: int, done: int
) -> Step | None:
    """Undoes the codes of one part; gives a step only for a machine frame, which ends it."""
    bottom = caller.rsp
    for one in info.codes:
        if one.offset > done:
            continue
        operation, argument = one.operation, one.argument
        if operation == PUSH_NONVOL:
            caller.integer[argument] = _pop(memory, caller)
        elif operation == ALLOC_SMALL:
            caller.rsp += argument * 8 + 8
        elif operation == ALLOC_LARGE:
            caller.rsp += one.operand * (8 if argument == 0 else 1)
        elif operation == SET_FPREG:
            caller.rsp = _known(caller, info.frame_register) - info.frame_offset
        elif operation in (SAVE_NONVOL, SAVE_NONVOL_FAR):
            place = frame + one.operand * (8 if operation == SAVE_NONVOL else 1)
            caller.integer[argument] = _read(memory, place)
        elif operation == PUSH_MACHFRAME:
            return _machine_frame(memory, caller, bottom, with_error_code=argument == 1)
        elif operation not in NOT_OF_INTEGERS:
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
