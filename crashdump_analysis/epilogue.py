"""Finishing the epilogue of an x64 function that was interrupted in it.

An epilogue gives the stack back (add rsp, or lea rsp from the frame register), pops registers, and
returns or jumps to another function; nothing else may be in it (Microsoft's "x64 prolog and
epilog").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from crashdump_analysis.memory import Memory
from crashdump_analysis.registers import RSP, Registers

LONGEST: Final = 64
"""Bytes of the longest epilogue: an addition, 15 pops and a jump fit."""
_REX_W: Final = 8


def finish_epilogue(
    memory: Memory,
    registers: Registers,
    code: bytes,
    *,
    frame_register: int,
    leaves: Callable[[int], bool],
) -> Registers | None:
    """The registers before the final return, which finds its address at rsp.

    None where rip stands in no epilogue, or what it pops is not in memory. code: at least the
    epilogue's bytes, from rip on. frame_register: the function's, 0 for none. leaves: whether a
    jump to an address leaves the function.
    """
    code = code[:LONGEST].ljust(LONGEST + 16, b"\xcc")
    after = registers.copy()
    at = _give_back(code, after, frame_register)
    while True:
        rex, body = _prefix(code, at)
        if not 0x58 <= code[body] <= 0x5F:  # pop
            break
        number = code[body] & 7 | (rex & 1) << 3
        value = memory.u64(after.rsp)
        if number == RSP or value is None or body + 1 >= LONGEST:
            return None
        after.integer[number] = value
        after.rsp += 8
        at = body + 1
    return after if _returns(code, at, registers.rip, leaves) else None


def _prefix(code: bytes, at: int) -> tuple[int, int]:
    """A REX prefix's bits, or 0, and where the instruction's own bytes begin."""
    return (code[at] & 0xF, at + 1) if code[at] & 0xF0 == 0x40 else (0, at)


def _signed(code: bytes, at: int, size: int) -> int:
    return int.from_bytes(code[at : at + size], "little", signed=True)


def _give_back(code: bytes, registers: Registers, frame_register: int) -> int:
    """Does the instruction that gives the stack back, if one is there; its size in bytes, or 0."""
    rex, body = _prefix(code, 0)
    operation, mode = code[body], code[body + 1]
    if not rex & _REX_W:
        return 0
    if operation in (0x83, 0x81) and mode == 0xC4:  # add rsp, imm8 or imm32
        size = 1 if operation == 0x83 else 4
        registers.rsp += _signed(code, body + 2, size)
        return body + 2 + size
    base = mode & 7 | (rex & 1) << 3
    value = registers.integer[base]
    if operation == 0x8D and mode & 0x38 == 0x20 and mode >> 6 in (1, 2) and mode & 7 != 4:
        # lea rsp, [frame register + displacement]
        size = 1 if mode >> 6 == 1 else 4
        if value is not None and base == frame_register:
            registers.rsp = value + _signed(code, body + 2, size)
            return body + 2 + size
    return 0


def _returns(code: bytes, at: int, rip: int, leaves: Callable[[int], bool]) -> bool:
    """Whether a return, or a jump out of the function, stands there."""
    if code[at] == 0xF2:  # REPNE, which changes nothing here
        at += 1
    rex, body = _prefix(code, at)
    operation, mode = code[body], code[body + 1]
    if operation in (0xC3, 0xC2) or (operation == 0xF3 and mode == 0xC3):
        return True
    if operation in (0xEB, 0xE9):
        size = 1 if operation == 0xEB else 4
        return leaves(rip + body + 1 + size + _signed(code, body + 1, size))
    # jmp through memory that holds an import; any other with a REX.W, which marks a tail call
    return operation == 0xFF and (mode == 0x25 or (bool(rex & _REX_W) and mode & 0x38 == 0x20))
