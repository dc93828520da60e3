"""Walks every path through compiled functions, as a processor would, without calling or storing.

Calls are stepped over and memory outside the frame is left alone, so that any function of any image can
be walked. What moves the stack pointer or saves and restores registers is really executed: where a
function's caller is, is known at every instruction from what was true at its entry.
"""

import random
import struct
from collections import Counter
from collections.abc import Iterator

import capstone
import unicorn
from capstone import x86 as cs

from tests.unit.native.emulator import (
    MASK,
    PAGE,
    REGISTERS,
    RETURN_ADDRESS,
    RSP,
    STACK_BASE,
    STACK_SIZE,
    Fault,
    Image,
    Processor,
    Registers,
)

PUSH_MACHFRAME = 10
SKIPPED = {"int3", "ud2", "hlt", "iretq", "ret", "retf", "syscall", "sysret", "sysretq"}
FRAME_REGISTERS = {cs.X86_REG_RSP, cs.X86_REG_RBP}
SLOTS = {1: 2, 4: 2, 5: 3, 8: 2, 9: 3}


def unwind_codes(image: Image, unwind_data: int) -> list[tuple[int, int, int]]:
    """(offset, operation, info) of an UNWIND_INFO, operands left out."""
    count = image.memory[unwind_data + 2]
    codes, index = [], 0
    while index < count:
        offset, byte = image.memory[unwind_data + 4 + 2 * index : unwind_data + 6 + 2 * index]
        operation, info = byte & 15, byte >> 4
        codes.append((offset, operation, info))
        index += 3 if (operation, info) == (1, 1) else SLOTS.get(operation, 1)
    return codes


class Walker:
    """Walks the functions of one image on a processor of its own."""

    def __init__(self, image: Image, seed: int) -> None:
        self.processor = Processor()
        self.processor.map(image.base, -(-len(image.memory) // PAGE) * PAGE)
        self.processor.write(image.base, image.memory)
        self.image = image
        self.random = random.Random(seed)
        self.decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        self.decoder.detail = True
        self.visits: Counter[int] = Counter()

    def decode(self, address: int) -> capstone.CsInsn:
        """The instruction at `address`."""
        offset = address - self.image.base
        code = self.image.memory[offset : offset + 16]
        return next(self.decoder.disasm(code, address))

    def walk(
        self, function: tuple[int, int, int], limit: int = 3000
    ) -> Iterator[tuple[Registers, Registers]]:
        """One path: the registers before each instruction, and those of the caller."""
        begin, end, unwind_data = function
        codes = unwind_codes(self.image, unwind_data)
        machine = next((info for _, operation, info in codes if operation == PUSH_MACHFRAME), None)
        rsp = STACK_BASE + STACK_SIZE - 0x2000 - 8 * self.random.randrange(8)
        registers = Registers.arbitrary(self.random, rsp, self.image.base + begin)
        self.processor.write(rsp - 0x4000, self.random.randbytes(0x5000))
        if machine is None:
            expected = Registers(list(registers.integer), list(registers.xmm), RETURN_ADDRESS)
            expected.integer[RSP] = rsp + 8
            self.processor.write(rsp, struct.pack("<Q", RETURN_ADDRESS))
        else:  # error code, rip, cs, eflags, rsp, ss
            expected = Registers(list(registers.integer), list(registers.xmm), RETURN_ADDRESS)
            expected.integer[RSP] = rsp + 0x800
            frame = struct.pack("<5Q", RETURN_ADDRESS, 0x10, 0x202, rsp + 0x800, 0x18)
            self.processor.write(rsp, b"\0" * (8 * machine) + frame)
        self.processor.set_registers(registers)
        lowest, pc, previous = rsp, registers.rip, ""
        for _ in range(limit):
            if not self.image.base + begin <= pc < self.image.base + end:
                return
            current = self.processor.registers()
            current.rip = pc
            instruction = self.decode(pc)
            if machine is not None and (
                current.integer[RSP] > lowest or self.leaves(instruction, begin, end)
            ):
                return  # a trap handler's way out is no epilogue: Windows cannot unwind it either
            lowest = min(lowest, current.integer[RSP])
            self.visits[pc] += 1
            # Inline assembly that reads or sets the flags through the stack: unwind data cannot
            # describe the one instruction in between.
            if instruction.mnemonic != "popfq" and (previous, instruction.mnemonic) != (
                "pushfq",
                "pop",
            ):
                yield current, expected
            previous = instruction.mnemonic
            following = self.step(instruction, begin, end)
            if following is None:
                return
            pc = following

    def leaves(self, instruction: capstone.CsInsn, begin: int, end: int) -> bool:
        """Whether this jumps out of the function."""
        return instruction.mnemonic == "jmp" and not (
            self.image.base + begin <= instruction.operands[0].imm & MASK < self.image.base + end
        )

    def step(self, instruction: capstone.CsInsn, begin: int, end: int) -> int | None:
        """Carry out one instruction as far as it matters here; the next address, or the end."""
        following = instruction.address + instruction.size
        name = instruction.mnemonic
        if name in SKIPPED:
            return None
        if instruction.group(cs.X86_GRP_CALL):
            return following
        if instruction.group(cs.X86_GRP_JUMP):
            operand = instruction.operands[0]
            if operand.type != cs.X86_OP_IMM:
                return None
            target = operand.imm & MASK
            if name == "jmp":
                return target
            if not self.image.base + begin <= target < self.image.base + end:
                return following
            return min(
                (target, following),
                key=lambda address: (self.visits[address], self.random.random()),
            )
        if name == "popfq":  # its effect on the stack only
            self.processor.cpu.reg_write(
                REGISTERS[RSP], self.processor.cpu.reg_read(REGISTERS[RSP]) + 8
            )
        elif self.is_harmless(instruction):
            self.execute(instruction)
        return following

    def is_harmless(self, instruction: capstone.CsInsn) -> bool:
        """Register to register, or within the frame."""
        if instruction.group(cs.X86_GRP_PRIVILEGE) or (instruction.mnemonic.startswith(
            ("rep", "div", "idiv", "in", "out", "cli", "sti", "swapgs", "popf", "lods", "stos",
             "movs", "ldmxcsr", "fxrstor", "ltr", "lidt", "lgdt", "wr", "rd", "cpuid")
        ) and instruction.mnemonic not in ("inc",) and not instruction.mnemonic.startswith(
            ("movsx", "movsd")
        )):  # fmt: skip
            return False
        for operand in instruction.operands:
            if operand.type == cs.X86_OP_REG and operand.reg in (
                cs.X86_REG_CR0, cs.X86_REG_CR3, cs.X86_REG_CR4, cs.X86_REG_CR8,
                cs.X86_REG_SS, cs.X86_REG_DS, cs.X86_REG_ES, cs.X86_REG_FS, cs.X86_REG_GS,
            ):  # fmt: skip
                return False
            if operand.type != cs.X86_OP_MEM or instruction.mnemonic == "lea":
                continue
            if operand.mem.base not in FRAME_REGISTERS or operand.mem.index:
                return False
            base = REGISTER_INDEX[operand.mem.base]
            address = self.processor.registers().integer[base] + operand.mem.disp
            if not STACK_BASE <= address < STACK_BASE + STACK_SIZE - 16:
                return False
        return True

    def execute(self, instruction: capstone.CsInsn) -> None:
        """Run one instruction for real."""
        if instruction.mnemonic == "sub" and instruction.operands[0].reg == cs.X86_REG_RSP:
            amount = instruction.operands[1]
            if amount.type == cs.X86_OP_REG:  # a variable allocation: of some moderate size
                register = getattr(
                    unicorn.x86_const, f"UC_X86_REG_{instruction.reg_name(amount.reg).upper()}"
                )
                self.processor.cpu.reg_write(register, 0x40)
        try:
            self.processor.cpu.emu_start(
                instruction.address, instruction.address + instruction.size, count=1
            )
        except unicorn.UcError as error:
            raise Fault(f"{instruction.mnemonic} {instruction.op_str}: {error}") from error


REGISTER_INDEX = {cs.X86_REG_RSP: RSP, cs.X86_REG_RBP: 5}
