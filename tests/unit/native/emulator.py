"""Runs functions of the checked-in test kernel in the Unicorn processor emulator.

What is tested is the binary users get: no compiler is needed, and no kernel has to boot. The few
functions that need a live memory manager (pool, page validity, module list) are answered here.
"""

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pefile
import unicorn
from symbolic.debuginfo import Archive
from unicorn import x86_const as x86

BUILT = Path(__file__).parents[3] / "images" / "test_kernel" / "built"
PAGE = 0x1000
STACK_BASE, STACK_SIZE = 0xFFFFF80318A00000, 0x100000
HEAP_BASE, HEAP_SIZE = 0xFFFF840500000000, 0x40000
KERNEL_BASE, DRIVER_BASE = 0xFFFFF80312000000, 0xFFFFF80320000000
PCR_BASE = 0xFFFFF78000010000
RETURN_ADDRESS = 0xFFFFF80777770000  # not mapped: where a call from outside comes back to
MASK = (1 << 64) - 1

# In the order of CONTEXT and of unwind codes.
REGISTERS = [
    getattr(x86, f"UC_X86_REG_{name}")
    for name in (
        "RAX",
        "RCX",
        "RDX",
        "RBX",
        "RSP",
        "RBP",
        "RSI",
        "RDI",
        "R8",
        "R9",
        "R10",
        "R11",
        "R12",
        "R13",
        "R14",
        "R15",
    )
]
RSP = 4
NONVOLATILE = (3, 5, 6, 7, 12, 13, 14, 15)
XMM = [getattr(x86, f"UC_X86_REG_XMM{number}") for number in range(16)]
NONVOLATILE_XMM = range(6, 16)

CONTEXT_SIZE, CONTEXT_REGISTERS, CONTEXT_RIP, CONTEXT_XMM = 0x4D0, 0x78, 0xF8, 0x1A0


@dataclass(frozen=True)
class Image:
    """A PE image as a loader maps it."""

    base: int
    memory: bytes
    exception_table: tuple[int, int]
    """RVA and size in bytes."""

    @classmethod
    def from_file(cls, path: Path, base: int) -> "Image":
        """Map the PE file at `path`, relocated to `base`."""
        with pefile.PE(str(path)) as pe:
            pe.relocate_image(base)
            directory = pe.OPTIONAL_HEADER.DATA_DIRECTORY[3]  # IMAGE_DIRECTORY_ENTRY_EXCEPTION
            size = pe.OPTIONAL_HEADER.SizeOfImage
            mapped = pe.get_memory_mapped_image().ljust(size, b"\0")
            return cls(
                base,
                bytes(mapped[:size]),
                (directory.VirtualAddress, directory.Size),
            )

    @cached_property
    def functions(self) -> list[tuple[int, int, int]]:
        """RUNTIME_FUNCTION entries: RVAs of begin, end and unwind data."""
        start, size = self.exception_table
        return list(struct.iter_unpack("<3I", self.memory[start : start + size]))


def functions_by_name(image: Image, pdb: Path) -> dict[str, int]:
    """Addresses of the functions that the PDB tells of."""
    archive = Archive.open(str(pdb))
    cache: Any = next(iter(archive.iter_objects())).make_symcache()
    names: dict[str, int] = {}
    for rva in range(PAGE, len(image.memory), 16):  # every function is aligned to 16
        for location in cache.lookup(rva)[-1:]:
            names.setdefault(location.symbol.split("(")[0], image.base + location.sym_addr)
    return names


class EmulationError(Exception):
    """The emulated code touched memory that is not there, or could not be run."""


class Processor:
    """A processor with a stack."""

    def __init__(self) -> None:
        self.cpu: Any = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self.cpu.ctl_set_tlb_mode(unicorn.UC_TLB_VIRTUAL)  # all 64 bits of an address
        self.pages: set[int] = set()
        self.map(STACK_BASE, STACK_SIZE)

    def map(self, address: int, size: int) -> None:
        """Map zeroed pages."""
        self.cpu.mem_map(address, size)
        self.pages |= set(range(address >> 12, (address + size) >> 12))

    def read(self, address: int, size: int) -> bytes:
        """Bytes of the emulated memory."""
        return bytes(self.cpu.mem_read(address, size))

    def write(self, address: int, data: bytes) -> None:
        """Change the emulated memory."""
        self.cpu.mem_write(address, data)

    def registers(self) -> "Registers":
        """All integer and XMM registers, and the instruction pointer."""
        values = self.cpu.reg_read_batch([*REGISTERS, *XMM, x86.UC_X86_REG_RIP])
        return Registers(list(values[:16]), list(values[16:32]), values[32])

    def set_registers(self, registers: "Registers") -> None:
        """Set all integer and XMM registers; not the instruction pointer."""
        for register, value in zip(REGISTERS + XMM, registers.integer + registers.xmm, strict=True):
            self.cpu.reg_write(register, value)


class Emulator(Processor):
    """A processor with the kernel image, a heap and a module list."""

    def __init__(self, kernel: Image, names: dict[str, int]) -> None:
        super().__init__()
        self.kernel = kernel
        self.names = names
        self.modules: list[tuple[Image, int]] = []
        self.debug_output = b""
        self._error: BaseException | None = None
        self._fault = ""
        self.map(HEAP_BASE, HEAP_SIZE)
        self.map(PCR_BASE, 2 * PAGE)
        self._heap = HEAP_BASE
        self.cpu.reg_write(x86.UC_X86_REG_GS_BASE, PCR_BASE)
        thread = PCR_BASE + PAGE
        self.write(PCR_BASE + 0x188, struct.pack("<Q", thread))
        self.write(thread + 0x30, struct.pack("<2Q", STACK_BASE, STACK_BASE + STACK_SIZE))
        self.cpu.hook_add(unicorn.UC_HOOK_MEM_INVALID, self._invalid)
        self.answer(names["MiIsAddressValid"], lambda: self.argument(0) >> 12 in self.pages)
        self.answer(names["MiModuleFromAddress"], lambda: self._module_entry(self.argument(0)))
        self.answer(names["ExAllocatePoolWithTag"], lambda: self.allocate(self.argument(1)))
        self.answer(names["ExFreePoolWithTag"], lambda: 0)
        self.answer(names["HalDebugPrint"], self._debug_print)
        self.answer(names["KeBugCheckEx"], self._bug_check)
        self.add_image(kernel)

    def add_image(self, image: Image) -> None:
        """Map an image and put it on the module list."""
        size = -(-len(image.memory) // PAGE) * PAGE
        self.map(image.base, size)
        self.modules.append((image, self.allocate(0xA0)))
        self._heap_floor = self._heap
        self.replace_image(image)

    def replace_image(self, image: Image) -> None:
        """Put another image of the same size in the place of the last one."""
        _, entry = self.modules[-1]
        self.modules[-1] = (image, entry)
        self.write(image.base, image.memory)
        self.cpu.ctl_remove_cache(image.base, image.base + len(image.memory))
        rva, length = image.exception_table
        self.write(entry + 0x10, struct.pack("<QI", image.base + rva, length))
        self.write(entry + 0x30, struct.pack("<3Q", image.base, 0, len(image.memory)))

    def answer(self, address: int, function: Callable[[], int]) -> None:
        """Have `function` stand in for the code at `address`."""

        def return_to_caller() -> None:
            rsp = self.cpu.reg_read(x86.UC_X86_REG_RSP)
            self.cpu.reg_write(x86.UC_X86_REG_RAX, int(function()) & MASK)
            self.cpu.reg_write(x86.UC_X86_REG_RSP, rsp + 8)
            self.cpu.reg_write(x86.UC_X86_REG_RIP, *struct.unpack("<Q", self.read(rsp, 8)))

        self.watch(address, return_to_caller)

    def watch(self, address: int, function: Callable[[], object]) -> None:
        """Call `function` each time execution reaches `address`."""
        self.watch_range(address, address + 1, lambda _address: function())

    def watch_range(self, begin: int, end: int, function: Callable[[int], object]) -> None:
        """Call `function` with the address of each instruction in a range."""

        def hook(cpu: Any, address: int, _size: int, _data: object) -> None:
            try:
                function(address)
            except BaseException as error:  # carried over the emulator's C frames
                self._error = error
                cpu.emu_stop()

        self.cpu.hook_add(unicorn.UC_HOOK_CODE, hook, begin=begin, end=end - 1)

    def _invalid(
        self, cpu: Any, access: int, address: int, size: int, _value: int, _data: object
    ) -> bool:
        rip = cpu.reg_read(x86.UC_X86_REG_RIP)
        self._fault = f"access {access} of {size} bytes at {address:#x}, rip {rip:#x}"
        return False

    def _module_entry(self, address: int) -> int:
        for image, entry in self.modules:
            if image.base <= address < image.base + len(image.memory):
                return entry
        return 0

    def _debug_print(self) -> int:
        self.debug_output += self.text(self.argument(0))
        return 0

    def _bug_check(self) -> int:
        raise EmulationError(f"bug check {self.argument(0):#x} ({self.argument(1):#x})")

    def argument(self, index: int) -> int:
        """The integer argument of the function that is being entered."""
        if index < 4:
            return int(self.cpu.reg_read(REGISTERS[(1, 2, 8, 9)[index]]))
        rsp = self.cpu.reg_read(x86.UC_X86_REG_RSP)
        return int(struct.unpack("<Q", self.read(rsp + 8 * (index + 1), 8))[0])

    def text(self, address: int) -> bytes:
        """The NUL-terminated string at `address`."""
        text = bytearray()
        while (byte := self.read(address + len(text), 1)) != b"\0":
            text += byte
        return bytes(text)

    def allocate(self, size: int, data: bytes = b"") -> int:
        """A block of the heap, aligned to 16 bytes; all go with the next `reset`."""
        block = self._heap
        self._heap += max(size, len(data), 1) + 31 & ~15  # never adjacent
        if self._heap > HEAP_BASE + HEAP_SIZE:
            raise EmulationError("the emulated heap is used up")
        if data:
            self.write(block, data)
        return block

    def reset(self) -> None:
        """Free what `allocate` gave since the last image was added."""
        self._heap = self._heap_floor

    def call(self, function: str | int, *arguments: int | bytes) -> int:
        """Call as C on Windows does; bytes go by address, NUL-terminated. Gives rax."""
        address = self.names[function] if isinstance(function, str) else function
        values = [
            self.allocate(0, value + b"\0\0") if isinstance(value, bytes) else value & MASK
            for value in arguments
        ]
        rsp = STACK_BASE + STACK_SIZE - 0x400 - 8
        slots = [RETURN_ADDRESS, 0, 0, 0, 0, *values[4:]]
        self.write(rsp, struct.pack(f"<{len(slots)}Q", *slots))
        for register, value in zip((1, 2, 8, 9), values, strict=False):
            self.cpu.reg_write(REGISTERS[register], value)
        self.cpu.reg_write(x86.UC_X86_REG_RSP, rsp)
        self.run(address)
        if self.cpu.reg_read(x86.UC_X86_REG_RSP) != rsp + 8:
            raise EmulationError(f"{function} came back with another stack pointer")
        return int(self.cpu.reg_read(x86.UC_X86_REG_RAX))

    def run(self, address: int, limit: int = 5_000_000) -> None:
        """Run from `address` until something returns to the outside."""
        self._error, self._fault = None, ""
        try:
            self.cpu.emu_start(address, RETURN_ADDRESS, count=limit)
        except unicorn.UcError as error:
            if self._error is None:
                raise EmulationError(f"{error}: {self._fault}") from error
        if self._error is not None:
            raise self._error
        if (rip := self.cpu.reg_read(x86.UC_X86_REG_RIP)) != RETURN_ADDRESS:
            raise EmulationError(f"stopped at {rip:#x} after {limit} instructions")


@dataclass
class Registers:
    """What a CONTEXT holds, as far as unwinding changes it."""

    integer: list[int]
    xmm: list[int]
    rip: int

    @classmethod
    def arbitrary(cls, source: random.Random, rsp: int, rip: int) -> "Registers":
        """Values that cannot be mistaken for one another."""
        integer = [source.getrandbits(64) for _ in range(16)]
        integer[RSP] = rsp
        return cls(integer, [source.getrandbits(128) for _ in range(16)], rip)

    def to_context(self) -> bytes:
        """A CONTEXT (x64) with CONTEXT_FULL in its flags."""
        context = bytearray(CONTEXT_SIZE)
        struct.pack_into("<I", context, 0x30, 0x10000F)
        struct.pack_into("<I", context, 0x118, 0x1F80)  # MXCSR
        struct.pack_into("<16Q", context, CONTEXT_REGISTERS, *self.integer)
        struct.pack_into("<Q", context, CONTEXT_RIP, self.rip)
        xmm = b"".join(value.to_bytes(16, "little") for value in self.xmm)
        context[CONTEXT_XMM : CONTEXT_XMM + 256] = xmm
        return bytes(context)

    @classmethod
    def from_context(cls, context: bytes) -> "Registers":
        """Read a CONTEXT (x64)."""
        xmm = context[CONTEXT_XMM : CONTEXT_XMM + 256]
        return cls(
            list(struct.unpack_from("<16Q", context, CONTEXT_REGISTERS)),
            [int.from_bytes(xmm[at : at + 16], "little") for at in range(0, 256, 16)],
            struct.unpack_from("<Q", context, CONTEXT_RIP)[0],
        )

    def kept(self) -> dict[str, int]:
        """What a called function must give back to its caller."""
        kept = {f"r{number}": self.integer[number] for number in NONVOLATILE}
        return kept | {f"xmm{number}": self.xmm[number] for number in NONVOLATILE_XMM}


@dataclass(frozen=True)
class Unwound:
    """The answer of RtlVirtualUnwind."""

    registers: Registers
    handler: int
    handler_data: int
    establisher_frame: int


def virtual_unwind(emulator: Emulator, registers: Registers, handler_type: int = 3) -> Unwound:
    """RtlLookupFunctionEntry and RtlVirtualUnwind for the frame in `registers`."""
    emulator.reset()
    results = emulator.allocate(0x30)
    context = emulator.allocate(0, registers.to_context())
    entry = emulator.call("RtlLookupFunctionEntry", registers.rip, results, 0)
    (base,) = struct.unpack("<Q", emulator.read(results, 8))
    handler = emulator.call(
        "RtlVirtualUnwind", handler_type, base, registers.rip, entry, context,
        results + 0x10, results + 0x18, 0,
    )  # fmt: skip
    data, frame = struct.unpack("<2Q", emulator.read(results + 0x10, 16))
    unwound = Registers.from_context(emulator.read(context, CONTEXT_SIZE))
    return Unwound(unwound, handler, data, frame)


def kernel_emulator() -> Emulator:
    """A new emulator with the checked-in kernel."""
    image = Image.from_file(BUILT / "ntoskrnl.exe", KERNEL_BASE)
    return Emulator(image, functions_by_name(image, BUILT / "ntkrnlmp.pdb"))
