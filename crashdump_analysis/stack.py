"""A whole stack: step after step, through interrupts, and by guessing where no data leads on."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from crashdump_analysis.loaded_image import Images
from crashdump_analysis.memory import Memory
from crashdump_analysis.registers import Registers
from crashdump_analysis.unwind import unwind
from crashdump_analysis.unwind_info import UnwindError

MAX_FRAMES: Final = 512
_MAX_SCAN = 0x3000  # bytes of stack looked through for one return address
_MAX_SCANNED = 0x10000  # for all of a stack
_STACK_SIZE = 0x6000  # bytes, of a kernel stack


@dataclass(frozen=True)
class Frame:
    """One function on a stack: its registers.

    trapped: it was interrupted at `registers.rip`, which is a return address otherwise (or, in the
    first frame, where the processor was). trap_frame: address of the KTRAP_FRAME that says so.
    guess: found by looking through the stack for something like a return address.
    """

    registers: Registers
    trapped: bool = False
    trap_frame: int | None = None
    guess: bool = False

    @property
    def lookup_address(self) -> int:
        """An address within the instruction the frame is at: for symbols."""
        return self.registers.rip - (not self.trapped)


def walk(
    memory: Memory,
    images: Images,
    registers: Registers,
    *,
    trapped: bool = True,
    entered: bool = False,
) -> tuple[list[Frame], list[str]]:
    """The stack from some registers outwards, and in words what was wrong with it.

    entered: they were taken at the first instruction of a function, so that the return address is
    on top of the stack even where unwind data is missing. Ends where the first function of a thread
    or the kernel has no caller, or in user mode.
    """
    walker = _Walker(memory, images, entered=entered)
    return walker.walk(Frame(registers, trapped=trapped)), walker.warnings


class _Walker:
    def __init__(self, memory: Memory, images: Images, *, entered: bool) -> None:
        self._memory = memory
        self._images = images
        self._entered = entered
        self._scanned = 0
        self._stack: tuple[int, tuple[int, ...]] = (0, ())
        self.warnings: list[str] = []

    def walk(self, frame: Frame) -> list[Frame]:
        frames = [frame]
        seen = {(frame.registers.rip, frame.registers.rsp)}
        while not frame.registers.user_mode:
            following = self._next(frame, guessing=any(one.guess for one in frames[-1:]))
            if following is None or following.registers.rip == 0:
                break
            place = (following.registers.rip, following.registers.rsp)
            if place in seen:
                self.warnings.append(f"the stack runs in a circle at {place[1]:x}")
                break
            if len(frames) == MAX_FRAMES:
                self.warnings.append(f"more than {MAX_FRAMES} frames; the rest is left out")
                break
            seen.add(place)
            frames.append(following)
            frame = following
        return frames

    def _next(self, frame: Frame, *, guessing: bool) -> Frame | None:
        registers = frame.registers
        try:
            step = unwind(self._memory, self._images.at, registers, trapped=frame.trapped)
        except UnwindError as error:
            return self._without_data(frame, str(error))
        caller = step.registers
        moved = step.trapped or caller.rsp > registers.rsp
        known = step.trapped or caller.rip == 0 or self._images.at(caller.rip - 1)
        if not moved or not known:
            reason = f"{caller.rip:x}, found at {caller.rsp - 8:x}, is no return address"
            return self._without_data(frame, reason)
        found = self._images.at(frame.lookup_address)
        guessing = guessing or (found is not None and not found[0].unwind_verified)
        return Frame(caller, step.trapped, step.trap_frame, guess=guessing)

    def _without_data(self, frame: Frame, reason: str) -> Frame | None:
        """The next frame where nothing says how large this one is."""
        registers, entered = frame.registers, self._entered
        self._entered = False
        top = self._memory.u64(registers.rsp)
        in_module = self._images.at(registers.rip) is not None
        if frame.trapped and top and (entered or not in_module) and self._follows_a_call(top):
            # Control went where no function is: a call of a bad pointer, its caller on top.
            caller = registers.copy()
            caller.rip, caller.rsp = top, registers.rsp + 8
            caller.cs = caller.flags = None
            return Frame(caller, guess=frame.guess)
        if not frame.guess:
            self.warnings.append(f"from {registers.rip:x} on frames are guesses: {reason}")
        start = registers.rsp + 7 & ~7
        first, words = self._stack
        if not first <= start < first + 8 * len(words):
            first, words = self._stack = (start, self._words(start))
        lowest, highest = self._images.span
        number = (start - first) // 8
        for at in range(number, min(number + _MAX_SCAN // 8, len(words))):
            word = words[at]
            if lowest <= word < highest and self._follows_a_call(word):
                guessed = Registers(rip=word)
                guessed.rsp = first + 8 * at + 8
                return Frame(guessed, guess=True)
        return None

    def _words(self, start: int) -> tuple[int, ...]:
        """A piece of stack, as far as it is there and no more than is looked through in all."""
        size = min(_STACK_SIZE, _MAX_SCANNED - self._scanned)
        stack = self._memory.read_some(start, max(size, 0))
        count = len(stack) // 8
        self._scanned += 8 * count
        return struct.unpack_from(f"<{count}Q", stack)

    def _follows_a_call(self, address: int) -> bool:
        """Whether an address could be a return address: in code, behind a call instruction.

        Where the code is not to be had, any address in a function could be, and where functions
        are not known either, any address in the module.
        """
        found = self._images.at(address)
        if found is None or not found[0].is_code(address - found[1]):
            return False
        image, base = found
        code = image.read(address - 7 - base, 7)
        if code is None:
            try:
                return image.runtime_function(address - 1 - base) is not None
            except LookupError:
                return True
        # E8 rel32; FF /2 with a register, memory, displacement of one or four bytes, or SIB.
        return code[2] == 0xE8 or any(
            code[7 - size] == 0xFF and code[8 - size] >> 3 & 7 == 2 for size in range(2, 8)
        )
