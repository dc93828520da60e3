"""RtlVirtualUnwind of the test kernel, at every instruction of real functions and on bad data."""

import random
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.native.emulator import (
    BUILT,
    DRIVER_BASE,
    KERNEL_BASE,
    RSP,
    STACK_BASE,
    STACK_SIZE,
    Emulator,
    Image,
    Registers,
    kernel_emulator,
    virtual_unwind,
)
from tests.unit.native.seh_programs import Assembly
from tests.unit.native.walker import Walker

DRIVERS = Path(__file__).parents[2] / "examples" / "sensor" / "built"
UNDESCRIBED = {
    "KiInitializeTables": "loads CS by a far return, through two pushes of inline assembly",
    "KiStartSystemThread": "begins on an empty stack",
    "KiExceptionDispatch": "ends by a jump to KiTrapReturn",
    "KiTrapReturn": "is jumped to, with the frame of a trap handler",
    "KiSystemStartup": "changes stacks",
}
"""Functions whose unwind data cannot hold everywhere, and why. As long as they exist."""
WALKS = 80
"""Of each function at most; fewer when eight in a row have found nothing new."""


def check_image(image: Image, part: slice = slice(None)) -> float:
    """Walk functions of an image; the part of their instructions that was checked."""
    unwinder = kernel_emulator()
    if image.base != KERNEL_BASE:
        unwinder.add_image(image)
    walker = Walker(image, seed=1)
    names = {address: name for name, address in unwinder.names.items()}
    checked: set[int] = set()
    total = 0
    for function in image.functions[part]:
        if names.get(image.base + function[0]) in UNDESCRIBED:
            continue
        code = image.memory[function[0] : function[1]]
        total += sum(1 for _ in walker.decoder.disasm(code, image.base + function[0]))
        idle = 0
        for _ in range(WALKS):
            before = len(checked)
            for registers, caller in walker.walk(function):
                checked.add(registers.rip)
                top = STACK_BASE + STACK_SIZE - 0x6400
                unwinder.write(top, walker.processor.read(top, 0x5400))
                unwound = virtual_unwind(unwinder, registers).registers
                where = f"{registers.rip - image.base:#x}: {walker.decode(registers.rip)}"
                assert unwound.rip == caller.rip, where
                assert unwound.integer[RSP] == caller.integer[RSP], where
                assert unwound.kept() == caller.kept(), where
            idle = idle + 1 if len(checked) == before else 0
            if idle == 8:
                break
    return len(checked) / total


@pytest.mark.parametrize("part", range(4))
def test_every_function_of_the_kernel(part: int) -> None:
    image = Image.from_file(BUILT / "ntoskrnl.exe", KERNEL_BASE)
    assert check_image(image, slice(part, None, 4)) > 0.8


@pytest.mark.parametrize(
    "driver", sorted(DRIVERS.glob("*/*.sys")), ids=lambda path: path.parent.name
)
def test_every_function_of_the_drivers(driver: Path) -> None:
    assert check_image(Image.from_file(driver, DRIVER_BASE)) > 0.8


def test_there_are_drivers_to_check() -> None:
    assert len(list(DRIVERS.glob("*/*.sys"))) >= 5


@pytest.fixture(scope="module")
def emulator() -> Emulator:
    emulator = kernel_emulator()
    emulator.add_image(Assembly().image())
    return emulator


RETURN = 0xFFFFF80322220000


def test_epilogue_codes_of_version_2_take_one_slot_each(emulator: Emulator) -> None:
    """Two epilogues and padding ahead of the codes of the prologue, in a body that is none."""
    assembly = Assembly()
    start = assembly.code
    assembly.emit(b"\x53\x48\x83\xec\x20", b"\x90" * 8, b"\xc3")  # push rbx; sub rsp, 0x20
    epilogues = [bytes([0, 6]), bytes([9, 0x06]), bytes([1, 0x16])]
    codes = [bytes([1, 0x30]), bytes([5, 0x32]), *epilogues]
    info = assembly.unwind_info(5, codes, version=2)
    assembly.entries.append((start, assembly.code, info))
    emulator.replace_image(assembly.image())
    rsp = STACK_BASE + STACK_SIZE - 0x1000
    emulator.write(rsp + 0x20, struct.pack("<2Q", 0xB1, RETURN))
    registers = Registers.arbitrary(random.Random(3), rsp, DRIVER_BASE + start + 8)
    unwound = virtual_unwind(emulator, registers)
    assert unwound.registers.rip == RETURN
    assert unwound.registers.integer[RSP] == rsp + 0x30
    assert unwound.registers.integer[3] == 0xB1
    assert unwound.establisher_frame == rsp


def test_a_jump_to_another_part_of_the_function_is_no_epilogue(emulator: Emulator) -> None:
    """As profile-guided compilers split functions: the cold part jumps back."""
    assembly = Assembly()
    start = assembly.code
    assembly.emit(b"\x48\x83\xec\x28", b"\x90" * 4, b"\x48\x83\xc4\x28\xc3")
    middle = assembly.code
    assembly.emit(b"\xe9", struct.pack("<i", start + 5 - middle - 5), b"\xcc" * 3)
    other = assembly.code
    assembly.emit(b"\xe9", struct.pack("<i", other + 0x40 - other - 5), b"\xcc" * 3)
    info = assembly.unwind_info(4, [bytes([4, 0x42])])
    primary = (start, middle, info)
    assembly.entries.append(primary)
    for begin in (middle, other):  # the second one's jump goes nowhere known: a tail call
        chained = assembly.unwind_info(0, [], 0, 4, struct.pack("<3I", *primary))
        assembly.entries.append((begin, begin + 8, chained))
    emulator.replace_image(assembly.image())
    rsp = STACK_BASE + STACK_SIZE - 0x1000
    emulator.write(rsp, struct.pack("<6Q", RETURN + 1, 0, 0, 0, 0, RETURN))
    for begin, expected in ((middle, (RETURN, rsp + 0x30)), (other, (RETURN + 1, rsp + 8))):
        registers = Registers.arbitrary(random.Random(4), rsp, DRIVER_BASE + begin)
        unwound = virtual_unwind(emulator, registers).registers
        assert (unwound.rip, unwound.integer[RSP]) == expected


@settings(max_examples=500, deadline=None)
@given(
    info=st.binary(min_size=24, max_size=80),
    version=st.sampled_from([0, 1, 2, 3]),
    unwind_data=st.sampled_from([0x14000, 0x14001, 0x1FFFC, 0x7FFFFFF0, 0xFFFFFFFE]),
    code=st.binary(min_size=32, max_size=32),
    rsp=st.sampled_from([0, 8, STACK_BASE, STACK_BASE + STACK_SIZE - 4, 1 << 63, (1 << 64) - 8]),
    frame=st.integers(0, (1 << 64) - 1),
    offset=st.integers(0, 31),
)
def test_bad_data_is_survived(  # noqa: PLR0917
    emulator: Emulator, info: bytes, version: int, unwind_data: int, code: bytes, rsp: int,
    frame: int, offset: int,
) -> None:  # fmt: skip
    """No unwind data, code or stack makes the kernel touch memory that is not there."""
    assembly = Assembly()
    start = assembly.code
    assembly.emit(code)
    assembly.add_xdata(bytes([info[0] & 0xF8 | version]) + info[1:])
    assembly.entries.append((start, assembly.code, unwind_data))
    emulator.replace_image(assembly.image())
    registers = Registers.arbitrary(random.Random(5), rsp, DRIVER_BASE + start + offset)
    registers.integer[5] = frame
    virtual_unwind(emulator, registers)  # raises Fault where it is not survived
