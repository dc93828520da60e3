"""Walks every path through compiled functions, as a processor would, without calling or storing.

Calls are stepped over and memory outside the frame is left alone, so that any function of any image
can be walked. What moves the stack pointer or saves and restores registers is really executed:
where a function's caller is, is known at every instruction from what was true at its entry.
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
    EmulationError,
    Image,
    Processor,
    Registers,
)

PUSH_MACHFRAME = 10
ENDS = {"int", "int3", "ud2", "hlt", "iretq", "ret", "retf", "syscall", "sysret", "sysretq"}
LEFT_OUT = (
    "cpuid", "div", "fxrstor", "idiv", "in ", "insb", "insd", "ldmxcsr", "lgdt", "lidt", "lods",
    "ltr", "movsb", "movsd", "movsq", "movsw", "out", "popf", "rd", "rep", "stos", "swapgs", "wr",
)  # fmt: skip
"""Beginnings of mnemonics: they fault here, or store through rdi."""
GENERAL_REGISTERS = {
    getattr(cs, f"X86_REG_{name}"): index
    for index, name in enumerate(
        ("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI",
         "R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15")
    )
}  # fmt: skip
FRAME_REGISTERS = (RSP, 5)
SYSTEM_REGISTERS = {
    getattr(cs, f"X86_REG_{name}")
    for name in ("CR0", "CR2", "CR3", "CR4", "CR8", "SS", "DS", "ES", "FS", "GS")
}
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


def relative_target(instruction: capstone.CsInsn) -> int:
    """What a lea relative to rip gives; 0 for other instructions."""
    if instruction.mnemonic != "lea" or instruction.operands[1].mem.base != cs.X86_REG_RIP:
        return 0
    target: int = (instruction.address + instruction.size + instruction.operands[1].mem.disp) & MASK
    return target


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
        self.body = 0  # where the prologue of the function is over
        self.table = 0  # what the last lea rip-relative gave: in a switch, its table

    def decode(self, address: int) -> capstone.CsInsn:
        """The instruction at `address`."""
        offset = address - self.image.base
        code = self.image.memory[offset : offset + 16]
        return next(self.decoder.disasm(code, address))

    def walk(
        self, function: tuple[int, int, int], limit: int = 3000
    ) -> Iterator[tuple[Registers, Registers]]:
        """One path: the registers before each instruction not seen before, and the caller's."""
        begin, end, unwind_data = function
        codes = unwind_codes(self.image, unwind_data)
        self.body = self.image.base + begin + self.image.memory[unwind_data + 1]
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
            instruction = self.decode(pc)
            if machine is not None:
                depth = self.processor.cpu.reg_read(REGISTERS[RSP])
                if depth > lowest or self.leaves(instruction, begin, end):
                    return  # a trap handler's way out is no epilogue: nor does Windows unwind it
                lowest = min(lowest, depth)
            # Inline assembly that reads or sets the flags through the stack: unwind data cannot
            # describe the one instruction in between.
            by_hand = previous == "pushfq" and instruction.mnemonic == "pop"
            if not self.visits[pc] and not by_hand and instruction.mnemonic != "popfq":
                current = self.processor.registers()
                current.rip = pc
                yield current, expected
            self.visits[pc] += 1
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
        following: int = instruction.address + instruction.size
        name = instruction.mnemonic
        if name in ENDS:
            return None
        if instruction.group(cs.X86_GRP_JUMP):
            return self.jump(instruction, following, begin, end)
        self.table = relative_target(instruction) or self.table
        if name == "popfq":  # its effect on the stack only
            rsp = self.processor.cpu.reg_read(REGISTERS[RSP])
            self.processor.cpu.reg_write(REGISTERS[RSP], rsp + 8)
        elif not instruction.group(cs.X86_GRP_CALL) and self.is_harmless(instruction):
            self.execute(instruction)
        return following

    def jump(
        self, instruction: capstone.CsInsn, following: int, begin: int, end: int
    ) -> int | None:
        """Where to go: of two ways the one less often gone."""
        operand = instruction.operands[0]
        if operand.type == cs.X86_OP_REG and instruction.bytes[0] & 0xF8 != 0x48:
            return min(self.table_targets(begin, end), key=self.preference, default=None)
        if operand.type != cs.X86_OP_IMM:
            return None
        target: int = operand.imm & MASK
        if instruction.mnemonic == "jmp":
            return target
        if not self.image.base + begin <= target < self.image.base + end:
            return following
        return min((target, following), key=self.preference)

    def preference(self, address: int) -> tuple[int, float]:
        """Lowest where the walk has been least often."""
        return self.visits[address], self.random.random()

    def table_targets(self, begin: int, end: int) -> list[int]:
        """Where a switch may go: clang's tables of offsets relative to the table itself."""
        code = list(self.decoder.disasm(self.image.memory[begin:end], self.image.base + begin))
        places = {instruction.address for instruction in code}
        tables = {relative_target(instruction) for instruction in code}
        address = self.table
        targets: list[int] = []
        while self.image.base <= address < self.image.base + len(self.image.memory) - 4:
            offset = address - self.image.base
            target = self.table + struct.unpack_from("<i", self.image.memory, offset)[0]
            if target not in places or (targets and address in tables):
                break  # past the end, or the next table
            targets.append(target)
            address += 4
        return targets

    def is_harmless(self, instruction: capstone.CsInsn) -> bool:
        """Register to register, or within the frame."""
        if instruction.group(cs.X86_GRP_PRIVILEGE) or instruction.mnemonic.startswith(LEFT_OUT):
            return False
        for index, operand in enumerate(instruction.operands):
            if operand.type == cs.X86_OP_REG and operand.reg in SYSTEM_REGISTERS:
                return False
            if operand.type != cs.X86_OP_MEM or instruction.mnemonic == "lea":
                continue
            base = GENERAL_REGISTERS.get(operand.mem.base)
            # Prologues and epilogues may store and load by a copy of rsp.
            by_copy = instruction.address < self.body or index > 0
            if base is None or operand.mem.index or not (base in FRAME_REGISTERS or by_copy):
                return False
            address = self.processor.cpu.reg_read(REGISTERS[base]) + operand.mem.disp
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
            raise EmulationError(f"{instruction.mnemonic} {instruction.op_str}: {error}") from error
