"""A whole stack: step after step, through interrupts, and by guessing where no data leads on."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from crashdump_analysis.addresses import KERNEL_SPACE, PAGE_SIZE
from crashdump_analysis.errors import DumpError
from crashdump_analysis.image import SECTION_EXECUTE, Image, image_in_memory
from crashdump_analysis.memory import Memory
from crashdump_analysis.modules import Module, Modules
from crashdump_analysis.registers import Registers
from crashdump_analysis.unwind import UnwindError, unwind

MAX_FRAMES: Final = 512
_MAX_SCAN = 0x3000  # bytes of stack looked through for one return address
_MAX_SCANNED = 0x10000  # for all of a stack


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


class Images:
    """The headers of the loaded images, each read when first asked for."""

    def __init__(self, memory: Memory, modules: Modules) -> None:
        self._memory = memory
        self._modules = modules
        self._images: dict[int, Image | None] = {}
        self.missing: dict[int, str] = {}
        """By base address of the module, why its headers could not be read."""

    def of(self, module: Module) -> Image | None:
        """A module's image; None where its headers are not in the dump."""
        if module.base not in self._images:
            try:
                image = image_in_memory(self._memory, module.base, module.image)
                self._images[module.base] = image
            except DumpError as error:
                self._images[module.base] = None
                self.missing[module.base] = str(error)
        return self._images[module.base]

    def module_at(self, address: int) -> Module | None:
        """The module an address lies in, whether or not its headers are in the dump."""
        return self._modules.at(address)

    def at(self, address: int) -> tuple[Image, int] | None:
        """The image an address lies in, and where it is loaded."""
        module = self._modules.at(address)
        image = self.of(module) if module else None
        return (image, module.base) if image and module else None

    def is_code(self, address: int) -> bool:
        """Whether an address lies in a section of a module that can be executed.

        Where the dump lacks the module's headers, whether it lies behind where they were.
        """
        found = self.at(address)
        if found is None:
            module = self._modules.at(address)
            return module is not None and address >= module.base + PAGE_SIZE
        image, base = found
        try:
            sections = image.sections
        except DumpError:
            return False
        return any(
            section.flags & SECTION_EXECUTE and 0 <= address - base - section.rva < section.size
            for section in sections
        )


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
        known = step.trapped or caller.rip == 0 or self._images.module_at(caller.rip - 1)
        if not moved or not known:
            reason = f"{caller.rip:x}, found at {caller.rsp - 8:x}, is no return address"
            return self._without_data(frame, reason)
        return Frame(caller, step.trapped, step.trap_frame, guess=guessing)

    def _without_data(self, frame: Frame, reason: str) -> Frame | None:
        """The next frame where nothing says how large this one is."""
        registers, entered = frame.registers, self._entered
        self._entered = False
        top = self._memory.u64(registers.rsp)
        module = self._images.module_at(registers.rip)
        if module and self._images.of(module) is None:
            reason = f"the dump holds no unwind data of {module.image}"
        if frame.trapped and top and (entered or not module) and self._follows_a_call(top):
            # Control went where no function is: a call of a bad pointer, its caller on top.
            caller = registers.copy()
            caller.rip, caller.rsp = top, registers.rsp + 8
            caller.cs = caller.flags = None
            return Frame(caller, guess=frame.guess)
        if not frame.guess:
            self.warnings.append(f"from {registers.rip:x} on frames are guesses: {reason}")
        start = registers.rsp + 7 & ~7
        size = min(_MAX_SCAN, _MAX_SCANNED - self._scanned)
        stack = self._memory.read_some(start, size)
        for at, (word,) in enumerate(struct.iter_unpack("<Q", stack[: len(stack) & ~7])):
            if word >= KERNEL_SPACE and self._follows_a_call(word):
                self._scanned += 8 * at + 8
                guessed = Registers(rip=word)
                guessed.rsp = start + 8 * at + 8
                return Frame(guessed, guess=True)
        return None

    def _follows_a_call(self, address: int) -> bool:
        """Whether an address could be a return address: in code, behind a call instruction.

        Where a triage dump holds neither the code nor its image's headers, any address in the
        module could be.
        """
        if not self._images.is_code(address):
            return False
        code = self._memory.read(address - 7, 7)
        if code is None:
            return self._images.at(address) is None
        # E8 rel32; FF /2 with a register, memory, displacement of one or four bytes, or SIB.
        return code[2] == 0xE8 or any(
            code[7 - size] == 0xFF and code[8 - size] >> 3 & 7 == 2 for size in range(2, 8)
        )
