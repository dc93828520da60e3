"""Unwinding, code by code, and whole stacks. The truth is in how each test lays out its stack."""

from __future__ import annotations

import struct

import pytest

from crashdump_analysis.image import image_in_memory
from crashdump_analysis.loaded_image import Images
from crashdump_analysis.memory import PagedMemory
from crashdump_analysis.modules import loaded_modules
from crashdump_analysis.registers import NAMES, Registers
from crashdump_analysis.stack import MAX_FRAMES, Frame, walk
from crashdump_analysis.unwind import Step, function_start, unwind
from crashdump_analysis.unwind_info import UnwindError
from tests.support.synthetic_dump import (
    ALLOC_LARGE,
    ALLOC_SMALL,
    DRIVER_BASE,
    ENTRY,
    EPILOG,
    FAULT,
    FAULT_RIP,
    FAULT_RSP,
    KE_BUG_CHECK_EX,
    KI_PAGE_FAULT,
    NT_BASE,
    PUSH_MACHFRAME,
    PUSH_NONVOL,
    RETURN_TO_ENTRY,
    RETURN_TO_PAGE_FAULT,
    RETURN_TO_START,
    SAVE_NONVOL,
    SAVE_NONVOL_FAR,
    SAVE_XMM128,
    SAVE_XMM128_FAR,
    SET_FPREG,
    STACK,
    STACK_SIZE,
    TRAP_FRAME,
    Function,
    SyntheticMachine,
    code,
    crashed_machine,
    pe_image,
    trap_frame,
    unwind_info,
)

RETURN = 0xFFFFF800_77777777
RSP = STACK + 0x4000
BODY = 0x30
"""Offset of an instruction in the body of the functions below, which have 0x80 bytes."""


class Bench:
    """One driver with one function, and a stack to unwind it on."""

    def __init__(self, unwind: bytes | None, *functions: Function, text: bytes = b"") -> None:
        self.machine = SyntheticMachine()
        text = text.ljust(0x80, b"\x90")
        one = Function("F", 0x1000, text, unwind)
        self.machine.load("driver.sys", DRIVER_BASE, pe_image([one, *functions]))
        self.machine.space.write(STACK, bytes(STACK_SIZE))

    def stack(self, rsp: int, *values: int) -> None:
        self.machine.write_u64(rsp, *values)

    def step(self, offset: int = BODY, *, trapped: bool = True, **registers: int) -> Step:
        memory = PagedMemory(self.machine.space, self.machine.space.root << 12)
        image = image_in_memory(memory, DRIVER_BASE, "driver.sys")
        state = Registers(rip=DRIVER_BASE + 0x1000 + offset)
        for name, value in {"rsp": RSP, **registers}.items():
            state.integer[NAMES.index(name)] = value
        return unwind(memory, lambda address: (image, DRIVER_BASE), state, trapped=trapped)


def caller(step: Step, *names: str) -> tuple[int | None, ...]:
    """rip and rsp of the caller, then other registers."""
    registers = step.registers
    return (registers.rip, registers.rsp, *(registers.integer[NAMES.index(one)] for one in names))


def test_pushes_and_small_allocations() -> None:
    bench = Bench(
        unwind_info(
            *(code(6, ALLOC_SMALL, 3), code(2, PUSH_NONVOL, 12), code(1, PUSH_NONVOL, 3)),
            prologue=6,
        )
    )
    bench.stack(RSP + 0x20, 0x1212, 0xB0B0, RETURN)
    for trapped in (True, False):
        step = bench.step(trapped=trapped)
        assert caller(step, "r12", "rbx") == (RETURN, RSP + 0x38, 0x1212, 0xB0B0)


@pytest.mark.parametrize(
    ("allocation", "size"),
    [
        (code(7, ALLOC_LARGE, 0, 0x1238 // 8), 0x1238),
        (code(7, ALLOC_LARGE, 1, 0x2340, 0), 0x2340),
        (code(4, ALLOC_SMALL, 15), 0x80),
        (code(4, ALLOC_SMALL, 0), 8),
    ],
)
def test_allocations(allocation: bytes, size: int) -> None:
    bench = Bench(unwind_info(allocation, prologue=7))
    bench.stack(RSP + size, RETURN)
    assert caller(bench.step()) == (RETURN, RSP + size + 8)


def test_saved_registers() -> None:
    bench = Bench(
        unwind_info(
            code(20, SAVE_XMM128_FAR, 7, 0x40, 0),
            code(18, SAVE_XMM128, 6, 2),
            code(14, SAVE_NONVOL_FAR, 7, 0x48, 0),
            code(10, SAVE_NONVOL, 6, 0x50 // 8),
            code(4, ALLOC_SMALL, 7),
            prologue=20,
        )
    )
    bench.stack(RSP + 0x40, RETURN, 0xD1D1, 0x5151)
    assert caller(bench.step(), "rsi", "rdi") == (RETURN, RSP + 0x48, 0x5151, 0xD1D1)


def frame_pointer_bench() -> Bench:
    # push rbp; sub rsp, 40h; lea rbp, [rsp+20h]; and then the stack moves on (alloca)
    bench = Bench(
        unwind_info(
            *(code(10, SET_FPREG), code(5, ALLOC_SMALL, 7), code(1, PUSH_NONVOL, 5)),
            prologue=10,
            frame_register=5,
            frame_offset=0x20,
        )
    )
    bench.stack(RSP + 0x40, 0xBBB, RETURN)
    return bench


def test_frame_pointer() -> None:
    bench = frame_pointer_bench()
    step = bench.step(rsp=RSP - 0x300, rbp=RSP + 0x20)
    assert caller(step, "rbp") == (RETURN, RSP + 0x50, 0xBBB)


def test_frame_pointer_that_is_not_known() -> None:
    with pytest.raises(UnwindError, match="not known"):
        frame_pointer_bench().step()


def test_prologue_with_a_frame_pointer() -> None:
    """In a prologue only what was done is undone; rbp is the caller's until it is set."""
    bench = frame_pointer_bench()
    assert caller(bench.step(5, rbp=0x77), "rbp") == (RETURN, RSP + 0x50, 0xBBB)
    bench.stack(RSP + 0x900, 0xBBB, RETURN)
    assert caller(bench.step(1, rsp=RSP + 0x900, rbp=0x77), "rbp") == (
        RETURN,
        RSP + 0x910,
        0xBBB,
    )
    bench.stack(RSP + 0xA00, RETURN)
    assert caller(bench.step(0, rsp=RSP + 0xA00, rbp=0x77), "rbp") == (RETURN, RSP + 0xA08, 0x77)


def test_operands_are_not_taken_for_codes() -> None:
    """The size of an allocation reads like the code that sets the frame pointer."""
    size = int.from_bytes(code(1, SET_FPREG), "little") * 8
    bench = Bench(
        unwind_info(
            *(code(16, SET_FPREG), code(12, SAVE_NONVOL, 3, 2)),
            *(code(8, ALLOC_LARGE, 0, size // 8), code(1, PUSH_NONVOL, 5)),
            prologue=16,
            frame_register=5,
        )
    )
    bench.stack(RSP + 0x10, 0x3333)
    bench.stack(RSP + size, 0xBBB, RETURN)
    # The frame pointer is still the caller's: what was saved is found from the stack pointer.
    step = bench.step(12, rbp=RSP + 0x1000)
    assert caller(step, "rbp", "rbx") == (RETURN, RSP + size + 16, 0xBBB, 0x3333)


def test_saved_registers_relative_to_the_frame_pointer() -> None:
    bench = Bench(
        unwind_info(
            code(14, SAVE_NONVOL, 3, 0x10 // 8),
            *(code(10, SET_FPREG), code(5, ALLOC_SMALL, 7), code(1, PUSH_NONVOL, 5)),
            prologue=14,
            frame_register=5,
            frame_offset=0x20,
        )
    )
    bench.stack(RSP + 0x10, 0x3333)
    bench.stack(RSP + 0x40, 0xBBB, RETURN)
    assert caller(bench.step(rsp=RSP - 0x100, rbp=RSP + 0x20), "rbx") == (
        RETURN,
        RSP + 0x50,
        0x3333,
    )


# add rsp, 20h; pop r12; pop rbx; ret
EPILOGUE = b"\x48\x83\xc4\x20" + b"\x41\x5c" + b"\x5b" + b"\xc3"


def epilogue_bench(ending: bytes, version: int = 1) -> Bench:
    codes = [code(6, ALLOC_SMALL, 3), code(2, PUSH_NONVOL, 12), code(1, PUSH_NONVOL, 3)]
    if version == 2:  # which says where it is, from the first pop on, and how long
        start = ending.index(b"\x41\x5c")
        from_end = 0x80 - BODY - start
        codes[:0] = [code(len(ending) - start, EPILOG), code(from_end, EPILOG)]
    text = b"\x90" * BODY + ending
    return Bench(unwind_info(*codes, prologue=6, version=version), text=text)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    "ending",
    [
        EPILOGUE,
        b"\x48\x81\xc4\x20\0\0\0" + EPILOGUE[4:],  # add rsp, imm32
        EPILOGUE[:-1] + b"\xf3\xc3",  # rep ret
        EPILOGUE[:-1] + b"\xe9\0\x10\0\0",  # a jump to another function
        EPILOGUE[:-1] + b"\xff\x25\0\0\0\0",  # a jump through an import
        EPILOGUE[:-1] + b"\x48\xff\xe0",  # a jump through a register
        EPILOGUE[:-1] + b"\x48\xff\x60\x10",  # a jump through a table
        EPILOGUE[:-1] + b"\xf2\xc3",  # repne ret
    ],
)
def test_each_instruction_of_an_epilogue(ending: bytes, version: int) -> None:
    bench = epilogue_bench(ending, version)
    bench.stack(RSP + 0x20, 0x1212, 0xB0B0, RETURN)
    first = len(ending) - len(ending[ending.index(b"\x41\x5c") :])
    done = caller(bench.step(BODY), "r12", "rbx")
    assert done == (RETURN, RSP + 0x38, 0x1212, 0xB0B0)
    step = bench.step(BODY + first, rsp=RSP + 0x20)
    assert caller(step, "r12", "rbx") == done
    step = bench.step(BODY + first + 2, rsp=RSP + 0x28, r12=0x1212)
    assert caller(step, "r12", "rbx") == done
    step = bench.step(BODY + first + 3, rsp=RSP + 0x30, r12=0x1212, rbx=0xB0B0)
    assert caller(step, "r12", "rbx") == done


def test_several_epilogues_of_version_2() -> None:
    """By their distance from the end, 12 bits of it; code is not looked at, and there is none."""
    bench = Bench(
        unwind_info(
            code(4, EPILOG, 1),  # four bytes, and one of them is at the end
            code(0x20, EPILOG, 0),
            code(0x34, EPILOG, 1),  # 0x134 before the end
            code(0, EPILOG),  # to make their number even
            *(code(6, ALLOC_SMALL, 3), code(2, PUSH_NONVOL, 12), code(1, PUSH_NONVOL, 3)),
            prologue=6,
            version=2,
        ),
        text=b"\x90" * 0x200,
    )
    bench.stack(RSP, 0x1212, 0xB0B0, RETURN)
    for start in (0x200 - 4, 0x200 - 0x20, 0x200 - 0x134):
        done = (RETURN, RSP + 0x18, 0x1212, 0xB0B0)
        assert caller(bench.step(start), "r12", "rbx") == done
        step = bench.step(start + 2, rsp=RSP + 8, r12=0x1212)
        assert caller(step, "r12", "rbx") == done
        step = bench.step(start + 3, rsp=RSP + 0x10, r12=0x1212, rbx=0xB0B0)
        assert caller(step, "r12", "rbx") == done
        # Before and behind it, the stack is still the body's.
        for outside in {start - 1, start + 4} - {0x200}:
            step = bench.step(outside, rsp=RSP - 0x20)
            assert caller(step, "r12", "rbx") == done


def test_an_epilogue_of_version_2_that_pops_flags_or_ends_a_trap() -> None:
    flags = Bench(
        unwind_info(
            *(code(2, EPILOG, 1), code(0, EPILOG)),
            *(code(3, PUSH_NONVOL, 3), code(1, ALLOC_SMALL, 0)),
            prologue=3,
            version=2,
        )
    )
    flags.stack(RSP, 0xB0B0, 0x246, RETURN)
    assert caller(flags.step(0x7E), "rbx") == (RETURN, RSP + 0x18, 0xB0B0)
    assert caller(flags.step(0x7F, rsp=RSP + 8, rbx=0xB0B0), "rbx") == (RETURN, RSP + 24, 0xB0B0)
    trap = Bench(
        unwind_info(
            *(code(3, EPILOG, 1), code(0, EPILOG)),
            *(code(1, PUSH_NONVOL, 5), code(0, PUSH_MACHFRAME)),
            prologue=1,
            version=2,
        )
    )
    trap.stack(RSP, 0xBBB, RETURN, 0x10, 0x246, STACK + 0x7000, 0x18)
    step = trap.step(0x7D)
    assert step.trapped
    assert caller(step, "rbp") == (RETURN, STACK + 0x7000, 0xBBB)
    odd = Bench(
        unwind_info(
            *(code(3, EPILOG, 1), code(0, EPILOG)),
            *(code(4, PUSH_NONVOL, 5), code(2, SET_FPREG)),
            prologue=4,
            version=2,
        )
    )
    odd.stack(RSP, 1, 2, 3)
    with pytest.raises(UnwindError, match="does not mirror"):
        odd.step(0x7D)


def test_pushes_that_an_epilogue_undoes_are_the_parents() -> None:
    part = Function(
        "part",
        0x1200,
        b"\x90" * 0x20,
        unwind_info(
            *(code(2, EPILOG, 1), code(0, EPILOG)), version=2, chained=(0x1000, 0x1080, 0x3000)
        ),
    )
    bench = Bench(unwind_info(code(1, PUSH_NONVOL, 3), prologue=1, version=2), part)
    bench.stack(RSP, 0xB0B0, RETURN)
    assert caller(bench.step(0x21E), "rbx") == (RETURN, RSP + 16, 0xB0B0)


def test_old_codes_for_xmm_registers_are_passed_over() -> None:
    bench = Bench(
        unwind_info(
            *(code(9, 7, 6, 0x40, 0), code(8, EPILOG, 6, 2), code(4, ALLOC_SMALL, 7)), prologue=9
        )
    )
    bench.stack(RSP + 0x40, RETURN)
    assert caller(bench.step()) == (RETURN, RSP + 0x48)


def test_an_entry_that_points_to_another() -> None:
    """Its unwind information is odd; offsets are then counted from where the other one begins."""
    machine = SyntheticMachine()
    primary = Function(
        "primary",
        0x1100,
        b"\x90" * 0x80,
        unwind_info(code(6, ALLOC_SMALL, 3), code(2, PUSH_NONVOL, 3), prologue=6),
    )
    part = Function("part", 0x1000, b"\x90" * 0x20, unwind_info())
    image = bytearray(pe_image([part, primary]))
    (table,) = struct.unpack_from("<I", image, 0x40 + 0x18 + 0x70 + 8 * 3)
    struct.pack_into("<I", image, table + 8, table + 12 | 1)
    machine.load("driver.sys", DRIVER_BASE, bytes(image))
    machine.space.write(STACK, bytes(STACK_SIZE))
    machine.write_u64(RSP + 0x20, 0xB0B0, RETURN)
    memory = PagedMemory(machine.space, machine.space.root << 12)
    loaded = image_in_memory(memory, DRIVER_BASE, "driver.sys")
    for offset in (0, 3, 0x10):
        registers = Registers(rip=DRIVER_BASE + 0x1000 + offset)
        registers.rsp = RSP
        step = unwind(memory, lambda _: (loaded, DRIVER_BASE), registers, trapped=True)
        assert caller(step, "rbx") == (RETURN, RSP + 0x30, 0xB0B0)
    assert function_start(loaded, 0x1010) == 0x1100
    struct.pack_into("<I", image, table + 12 + 8, table | 1)
    machine.space.write(DRIVER_BASE, bytes(image))
    again = PagedMemory(machine.space, machine.space.root << 12)
    loaded = image_in_memory(again, DRIVER_BASE, "driver.sys")
    with pytest.raises(UnwindError, match="point to each other"):
        unwind(again, lambda _: (loaded, DRIVER_BASE), registers, trapped=True)


def test_a_part_that_jumps_to_its_functions_start_calls_it_again() -> None:
    part = Function(
        "part",
        0x1200,
        b"\x5b\xe9" + struct.pack("<i", 0x1000 - 0x1206),  # pop rbx; jmp F
        unwind_info(chained=(0x1000, 0x1080, 0x3000)),
    )
    bench = Bench(unwind_info(code(1, PUSH_NONVOL, 3), prologue=1), part)
    bench.stack(RSP, 0xB0B0, RETURN)
    assert caller(bench.step(0x200), "rbx") == (RETURN, RSP + 16, 0xB0B0)
    assert caller(bench.step(0x201, rsp=RSP + 8, rbx=7), "rbx") == (RETURN, RSP + 16, 7)


def test_lea_of_another_register_than_the_frames_is_no_epilogue() -> None:
    # lea rsp, [rbx+20h]; ret in a function without a frame pointer
    bench = Bench(
        unwind_info(code(4, ALLOC_SMALL, 3), prologue=4),
        text=b"\x90" * BODY + b"\x48\x8d\x63\x20\xc3",
    )
    bench.stack(RSP + 0x20, RETURN)
    assert caller(bench.step(rbx=STACK)) == (RETURN, RSP + 0x28)


def test_an_epilogue_with_a_frame_pointer() -> None:
    # lea rsp, [rbp+20h]; pop rbp; ret
    bench = Bench(
        unwind_info(
            *(code(10, SET_FPREG), code(5, ALLOC_SMALL, 7), code(1, PUSH_NONVOL, 5)),
            prologue=10,
            frame_register=5,
            frame_offset=0x20,
        ),
        text=b"\x90" * BODY + b"\x48\x8d\x65\x20\x5d\xc3",
    )
    bench.stack(RSP + 0x40, 0xBBB, RETURN)
    assert caller(bench.step(rsp=RSP - 0x100, rbp=RSP + 0x20), "rbp") == (
        RETURN,
        RSP + 0x50,
        0xBBB,
    )


@pytest.mark.parametrize(
    "ending",
    [
        b"\xe9\xd0\xff\xff\xff",  # a jump within the function
        b"\x5b\xe9\xcb\xff\xff\xff",  # pop, and a jump within
        b"\x48\x83\xc4\x20\x90\xc3",  # something else in between
        b"\x5c\xc3",  # pop rsp
        b"\xff\xe0",  # a jump through a register without REX.W: a switch
    ],
)
def test_what_is_no_epilogue(ending: bytes) -> None:
    bench = epilogue_bench(ending)
    bench.stack(RSP + 0x20, 0x1212, 0xB0B0, RETURN)
    assert caller(bench.step(), "r12", "rbx") == (RETURN, RSP + 0x38, 0x1212, 0xB0B0)


def test_a_jump_to_a_part_of_the_same_function_is_no_epilogue() -> None:
    part = Function(
        "part",
        0x1200,
        b"\x90" * 0x20,
        unwind_info(chained=(0x1000, 0x1080, 0x3000)),  # .rdata starts with F's unwind data
    )
    jump = b"\xe9" + struct.pack("<i", 0x1200 - (0x1000 + BODY + 5))
    bench = Bench(
        unwind_info(code(4, ALLOC_SMALL, 3), prologue=4), part, text=b"\x90" * BODY + jump
    )
    bench.stack(RSP, 0xBAD)
    bench.stack(RSP + 0x20, RETURN)
    assert caller(bench.step()) == (RETURN, RSP + 0x28)


def test_chained_unwind_data() -> None:
    part = Function(
        "part",
        0x1200,
        b"\x90" * 0x20,
        unwind_info(
            code(0, SAVE_NONVOL, 6, 0x10 // 8),
            chained=(0x1000, 0x1080, 0x3000),
        ),
    )
    bench = Bench(unwind_info(code(6, ALLOC_SMALL, 3), code(1, PUSH_NONVOL, 3), prologue=6), part)
    bench.stack(RSP + 0x10, 0x5151)
    bench.stack(RSP + 0x20, 0xB0B0, RETURN)
    step = bench.step(0x210)
    assert caller(step, "rsi", "rbx") == (RETURN, RSP + 0x30, 0x5151, 0xB0B0)
    memory = PagedMemory(bench.machine.space, bench.machine.space.root << 12)
    image = image_in_memory(memory, DRIVER_BASE, "driver.sys")
    assert function_start(image, 0x1210) == 0x1000
    assert function_start(image, 0x1010) == 0x1000
    assert function_start(image, 0x1F00) is None


def test_chained_without_end() -> None:
    info = unwind_info(chained=(0x1000, 0x1080, 0x3000))
    with pytest.raises(UnwindError, match="without end"):
        Bench(info).step()


@pytest.mark.parametrize("error_code", [0, 1])
def test_machine_frame(error_code: int) -> None:
    bench = Bench(
        unwind_info(code(4, ALLOC_SMALL, 3), code(0, PUSH_MACHFRAME, error_code), prologue=4)
    )
    bench.stack(RSP + 0x20 + 8 * error_code, RETURN, 0x10, 0x246, STACK + 0x7000, 0x18)
    step = bench.step(trapped=False)
    assert step.trapped
    assert step.trap_frame is None  # what is around it is no KTRAP_FRAME
    assert caller(step) == (RETURN, STACK + 0x7000)
    assert (step.registers.cs, step.registers.flags) == (0x10, 0x246)


def test_a_trap_frame_gives_the_volatile_registers() -> None:
    bench = Bench(unwind_info(code(0, ALLOC_LARGE, 0, 0x160 // 8), code(0, PUSH_MACHFRAME, 1)))
    frame = trap_frame({"rip": RETURN, "rsp": STACK + 0x7000, "rcx": 0xCC, "r11": 0x1B})
    bench.machine.space.write(RSP, frame)
    step = bench.step(trapped=False, rbx=0xB0B0)
    assert step.trap_frame == RSP
    assert caller(step, "rcx", "r11", "rbx") == (RETURN, STACK + 0x7000, 0xCC, 0x1B, 0xB0B0)


def test_a_leaf_has_its_return_address_on_top() -> None:
    bench = Bench(None)
    bench.stack(RSP, RETURN)
    assert caller(bench.step(), "rbx") == (RETURN, RSP + 8, None)
    with pytest.raises(UnwindError, match="no unwind data"):
        bench.step(trapped=False)  # a leaf calls nobody


def test_volatile_registers_do_not_survive_a_call() -> None:
    bench = Bench(unwind_info(code(4, ALLOC_SMALL, 3), prologue=4))
    bench.stack(RSP + 0x20, RETURN)
    step = bench.step(rcx=1, r11=2, rdi=3)
    assert caller(step, "rcx", "r11", "rdi")[2:] == (None, None, 3)


def test_a_return_address_behind_the_function() -> None:
    """After a call that never returns the next byte may be another function's."""
    following = Function("G", 0x1080, b"\x90" * 0x10, unwind_info(code(0, ALLOC_SMALL, 15)))
    bench = Bench(unwind_info(code(4, ALLOC_SMALL, 3), prologue=4), following)
    bench.stack(RSP + 0x20, RETURN)
    assert caller(bench.step(0x80, trapped=False)) == (RETURN, RSP + 0x28)


@pytest.mark.parametrize(
    ("info", "told"),
    [
        (unwind_info(version=3), "version 3"),
        (unwind_info(code(0, 12), prologue=0), "unknown unwind code 12"),
        (unwind_info(code(0, ALLOC_LARGE, 1)), "break off"),
    ],
)
def test_damaged_unwind_data(info: bytes, told: str) -> None:
    with pytest.raises(UnwindError, match=told):
        Bench(info).step()


def test_a_stack_that_is_not_in_the_dump() -> None:
    bench = Bench(unwind_info(code(4, ALLOC_SMALL, 3), prologue=4))
    with pytest.raises(UnwindError, match="not in the dump"):
        bench.step(rsp=0xFFFF9999_00000000)


def walked(machine: SyntheticMachine, **registers: int) -> tuple[list[Frame], list[str]]:
    machine.dump()  # writes the list of modules
    memory = PagedMemory(machine.space, machine.space.root << 12)
    modules, _ = loaded_modules(memory, machine.module_list)
    start = Registers()
    for name, value in {**machine.registers, **registers}.items():
        if name == "rip":
            start.rip = value
        else:
            start.integer[NAMES.index(name)] = value
    return walk(memory, Images(memory, modules), start)


def places(frames: list[Frame]) -> list[tuple[int, int]]:
    return [(one.registers.rip, one.registers.rsp) for one in frames]


def test_a_whole_stack_through_a_trap() -> None:
    frames, warnings = walked(crashed_machine())
    assert places(frames) == [
        (NT_BASE + KE_BUG_CHECK_EX.rva, TRAP_FRAME - 8),
        (RETURN_TO_PAGE_FAULT, TRAP_FRAME),
        (FAULT_RIP, FAULT_RSP),
        (RETURN_TO_ENTRY, FAULT_RSP + 0x30),
        (RETURN_TO_START, FAULT_RSP + 0x60),
    ]
    assert [one.trapped for one in frames] == [True, False, True, False, False]
    assert [one.guess for one in frames] == [False] * 5
    assert warnings == []
    fault = frames[2]
    # rcx from the trap frame, rbx as KiPageFault left it, and after Fault what that had saved.
    assert fault.registers.integer[NAMES.index("rcx")] == 0x1234
    assert fault.registers.integer[NAMES.index("rbx")] == 0xB
    assert frames[3].registers.integer[NAMES.index("rbx")] == 0xBBBB


def without_unwind_data(function: Function) -> Function:
    return Function(function.name, function.rva, function.code)


def test_where_no_unwind_data_is_frames_are_guesses() -> None:
    """Entry has none: StartThread is then found by looking for a return address behind a call."""
    machine = crashed_machine()
    machine.space.write(DRIVER_BASE, pe_image([FAULT, without_unwind_data(ENTRY)]))
    start = NT_BASE + 0x1200
    machine.space.write(start + 0x1B, b"\xe8\0\0\0\0")  # so that a call is before it
    # What looks like addresses but is none: data, code without a call before it.
    machine.write_u64(FAULT_RSP + 0x30, NT_BASE + 0x10, start + 5, 0x1234)
    frames, warnings = walked(machine)
    assert places(frames)[3:] == [
        (RETURN_TO_ENTRY, FAULT_RSP + 0x30),
        (RETURN_TO_START, FAULT_RSP + 0x60),
    ]
    assert [one.guess for one in frames] == [False, False, False, False, True]
    assert "guesses" in warnings[0]
    assert "no unwind data" in warnings[0]


def test_a_return_address_on_top_is_a_guess_too() -> None:
    """Only an interrupted function can have it there for sure."""
    machine = crashed_machine()
    machine.space.write(DRIVER_BASE, pe_image([FAULT, without_unwind_data(ENTRY)]))
    machine.space.write(NT_BASE + 0x1200 + 0x1B, b"\xe8\0\0\0\0")
    machine.write_u64(FAULT_RSP + 0x30, RETURN_TO_START)
    frames, warnings = walked(machine)
    assert places(frames)[4] == (RETURN_TO_START, FAULT_RSP + 0x38)
    assert frames[4].guess
    assert "guesses" in warnings[0]


def test_a_frame_pointer_that_leads_down_the_stack_is_not_followed() -> None:
    machine = crashed_machine()
    frame = Function(
        "Frame",
        ENTRY.rva,
        ENTRY.code,
        unwind_info(*(code(8, SET_FPREG), code(4, ALLOC_SMALL, 4)), prologue=8, frame_register=5),
    )
    machine.space.write(DRIVER_BASE, pe_image([FAULT, frame]))
    down = FAULT_RSP - 0x800
    machine.write_u64(down + 0x28, RETURN_TO_ENTRY)
    frames, warnings = walked(machine, rbp=down)
    assert places(frames)[3] == (RETURN_TO_ENTRY, FAULT_RSP + 0x30)
    assert all(one.registers.rsp > FAULT_RSP for one in frames[3:])
    assert "is no return address" in warnings[0]


def test_a_wild_jump_leads_back_to_the_caller() -> None:
    machine = crashed_machine()
    wild = 0xFFFF8000_00C0FFEE
    frame = trap_frame({"rip": wild, "rsp": FAULT_RSP + 0x28})
    machine.space.write(TRAP_FRAME, frame)
    frames, warnings = walked(machine)
    assert places(frames)[2:] == [
        (wild, FAULT_RSP + 0x28),
        (RETURN_TO_ENTRY, FAULT_RSP + 0x30),
        (RETURN_TO_START, FAULT_RSP + 0x60),
    ]
    assert [one.guess for one in frames] == [False] * 5
    assert warnings == []


def test_a_stack_ends_in_user_mode() -> None:
    machine = crashed_machine()
    machine.space.write(
        TRAP_FRAME, trap_frame({"rip": 0x7FF6_0000_1000, "rsp": 0x1000}, cs=0x33, ss=0x2B)
    )
    frames, warnings = walked(machine)
    assert len(frames) == 3
    assert frames[-1].registers.user_mode
    assert warnings == []


def test_a_stack_that_runs_in_a_circle() -> None:
    machine = crashed_machine()
    frame = trap_frame({"rip": RETURN_TO_PAGE_FAULT, "rsp": TRAP_FRAME})
    machine.space.write(TRAP_FRAME, frame)
    frames, warnings = walked(machine)
    assert len(frames) < 5
    assert "circle" in warnings[-1]


def test_a_stack_without_end_is_cut() -> None:
    machine = SyntheticMachine()
    leaf = Function("Again", 0x1000, b"\xe8\0\0\0\0".ljust(0x80, b"\x90"), unwind_info())
    machine.load("driver.sys", DRIVER_BASE, pe_image([leaf]))
    machine.write_u64(STACK, *[DRIVER_BASE + 0x1005] * (MAX_FRAMES * 2))
    frames, warnings = walked(machine, rip=DRIVER_BASE + 0x1010, rsp=STACK)
    assert len(frames) == MAX_FRAMES
    assert "the rest is left out" in warnings[-1]


def test_a_kernel_stack_that_cannot_be_read() -> None:
    machine = crashed_machine()
    frames, warnings = walked(machine, rsp=0xFFFF9999_00000000)
    assert len(frames) == 1
    assert "not in the dump" in warnings[0]


def test_the_trap_handler_itself_is_no_trap() -> None:
    frames, _ = walked(crashed_machine())
    assert frames[1].registers.rip - NT_BASE - KI_PAGE_FAULT.rva == 0x20
    assert frames[1].lookup_address == frames[1].registers.rip - 1
    assert frames[2].lookup_address == frames[2].registers.rip
