"""A writer of kernel dumps whose every byte is known: page tables, modules, stack, unwind data.

Written from the public layouts, and not with the code under test: DUMP_HEADER64, bitmap dumps
(kdmp-parser's structures), KLDR_DATA_TABLE_ENTRY, PE and x64 unwind data (Microsoft).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PAGE = 0x1000
FULL, BITMAP_FULL, BITMAP_KERNEL = 1, 5, 6
FILETIME = 133_658_357_400_000_000
"""2024-07-19 04:09:00 UTC, in 100 ns since 1601."""

NT_BASE = 0xFFFFF800_10000000
DRIVER_BASE = 0xFFFFF800_20000000
STACK = 0xFFFFAB00_00010000
"""The lowest address of a kernel stack of 32 KiB."""
STACK_SIZE = 0x8000
STRUCTURES = 0xFFFFAC00_00000000
"""Where lists, names and the debugger's block lie."""
DEBUGGER_DATA, BUILD_LAB, PROCESS_LIST = (STRUCTURES + one for one in (0x8000, 0x8800, 0x8900))
PROCESSORS, UNLOADED = STRUCTURES + 0xA000, STRUCTURES + 0xB000
PRCB, ETHREAD, EPROCESS = (STRUCTURES + one for one in (0x20000, 0x10000, 0x11000))
PRCB_SIZE = 0x800
TIMESTAMP = 0x669A0000
"""Of every synthetic image."""

_INTEGER_REGISTERS = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *(f"r{number}" for number in range(8, 16)),
)


class AddressSpace:
    """Physical pages, and page tables that map virtual addresses to them."""

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self._next = 0x10
        self.root = self.allocate()

    def allocate(self) -> int:
        """A new zeroed physical page; its number. Every third number stays unused."""
        number = self._next
        self._next += 2 if number % 3 == 0 else 1
        self.pages[number] = bytearray(PAGE)
        return number

    def map(self, address: int, page: int | None = None, *, size: int = PAGE) -> int:
        """Maps the page at an address: 4 KiB, or a large one of 2 MiB or 1 GiB; its number."""
        levels = {PAGE: 3, 1 << 21: 2, 1 << 30: 1}[size]
        table = self.root
        for level in range(levels):
            table = self._entry(table, address >> (39 - 9 * level) & 0x1FF)
        index = address >> (39 - 9 * levels) & 0x1FF
        (present,) = struct.unpack_from("<Q", self.pages[table], index * 8)
        if present and page is None:
            return int(present >> 12)
        page = self.allocate() if page is None else page
        large = 0x80 if size != PAGE else 0
        struct.pack_into("<Q", self.pages[table], index * 8, page << 12 | 0x63 | large)
        return page

    def _entry(self, table: int, index: int) -> int:
        (entry,) = struct.unpack_from("<Q", self.pages[table], index * 8)
        if not entry:
            entry = self.allocate() << 12 | 0x63
            struct.pack_into("<Q", self.pages[table], index * 8, entry)
        return int(entry >> 12 & 0xFFFFFFFFFF)

    def write(self, address: int, data: bytes) -> None:
        """Puts data into virtual memory, mapping 4 KiB pages where none are."""
        at = 0
        while at < len(data):
            offset = (address + at) % PAGE
            page = self.pages[self.map(address + at - offset)]
            piece = data[at : at + PAGE - offset]
            page[offset : offset + len(piece)] = piece
            at += len(piece)

    def peek(self, address: int, size: int) -> bytes:
        """Virtual memory as it is; what is not mapped is an error."""
        out = bytearray()
        while len(out) < size:
            at, table = address + len(out), self.root
            for shift in (39, 30, 21, 12):
                index = at >> shift & 0x1FF
                (entry,) = struct.unpack_from("<Q", self.pages[table], index * 8)
                assert entry, f"{at:x} is not mapped"
                table = entry >> 12 & 0xFFFFFFFFFF
            page = self.pages[table]
            out += page[at % PAGE : at % PAGE + size - len(out)]
        return bytes(out)

    def read(self, address: int, size: int) -> bytes | None:
        """Physical memory within a page: the reader's protocol for a live machine."""
        page = self.pages.get(address >> 12)
        return None if page is None else bytes(page[address % PAGE : address % PAGE + size])


@dataclass(frozen=True)
class Function:
    """A function of a synthetic image: its place, code and UNWIND_INFO (None: a leaf)."""

    name: str
    rva: int
    code: bytes
    unwind: bytes | None = None


def unwind_info(
    *codes: bytes,
    prologue: int = 0,
    version: int = 1,
    flags: int = 0,
    frame_register: int = 0,
    frame_offset: int = 0,
    chained: tuple[int, int, int] | None = None,
) -> bytes:
    """UNWIND_INFO. `codes` in the order of the structure: the last of the prologue first.

    frame_offset: bytes, a multiple of 16.
    """
    slots = b"".join(codes)
    flags |= 4 if chained else 0
    head = bytes(
        (version | flags << 3, prologue, len(slots) // 2, frame_register | frame_offset // 16 << 4)
    )
    slots += bytes(len(slots) % 4)
    return head + slots + (struct.pack("<III", *chained) if chained else b"")


def code(offset: int, operation: int, argument: int = 0, *operand: int) -> bytes:
    """One unwind code; operands are 16-bit slots."""
    return struct.pack(f"<BB{len(operand)}H", offset, operation | argument << 4, *operand)


PUSH_NONVOL, ALLOC_LARGE, ALLOC_SMALL, SET_FPREG, SAVE_NONVOL, SAVE_NONVOL_FAR, EPILOG = range(7)
SAVE_XMM128, SAVE_XMM128_FAR, PUSH_MACHFRAME = 8, 9, 10


def pe_image(
    functions: Sequence[Function] = (),
    *,
    pdb: tuple[str, bytes, int] | None = None,
    timestamp: int = TIMESTAMP,
    text_size: int = 0x2000,
) -> bytes:
    """A PE32+ image as it lies in memory: headers, .text at 0x1000, .rdata behind it.

    pdb: file name, GUID (as it lies in the RSDS record) and age.
    """
    text = bytearray(b"\xcc" * text_size)
    rdata_rva = 0x1000 + text_size
    rdata = bytearray()
    entries = []
    for one in functions:
        text[one.rva - 0x1000 : one.rva - 0x1000 + len(one.code)] = one.code
        if one.unwind is not None:
            entries.append((one.rva, one.rva + len(one.code), rdata_rva + len(rdata)))
            rdata += one.unwind + bytes(-len(one.unwind) % 4)
    pdata = rdata_rva + len(rdata)
    rdata += b"".join(struct.pack("<III", *entry) for entry in sorted(entries))
    debug = rdata_rva + len(rdata)
    if pdb:
        name, guid, age = pdb
        record = b"RSDS" + guid + struct.pack("<I", age) + name.encode() + b"\0"
        rdata += struct.pack("<12xIII4x", 2, len(record), debug + 28) + record
    directories = [(0, 0)] * 16
    directories[3] = (pdata, 12 * len(entries)) if entries else (0, 0)
    directories[6] = (debug, 28) if pdb else (0, 0)
    size = rdata_rva + -(-max(len(rdata), 1) // PAGE) * PAGE
    optional = struct.pack("<H14xII", 0x20B, 0x1000, 0x1000)
    optional += struct.pack("<QII16xIII", 0, PAGE, 0x200, size, 0x400, 0)
    optional = optional.ljust(0x6C, b"\0") + struct.pack("<I", 16)
    optional += b"".join(struct.pack("<II", *one) for one in directories)
    headers = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    headers += b"PE\0\0" + struct.pack("<HHI8xHH", 0x8664, 2, timestamp, len(optional), 0x22)
    headers += optional
    headers += struct.pack("<8sIIII12xI", b".text", text_size, 0x1000, text_size, 0x400, 0x60000020)
    headers += struct.pack(
        "<8sIIII12xI", b".rdata", len(rdata), rdata_rva, len(rdata), 0x400 + text_size, 0x40000040
    )
    image = bytearray(size)
    image[: len(headers)] = headers
    image[0x1000 : 0x1000 + text_size] = text
    image[rdata_rva : rdata_rva + len(rdata)] = rdata
    return bytes(image)


@dataclass
class SyntheticMachine:
    """A crashed x64 machine. `registers` are the header's, by name; `parameters` the bug check's.

    `modules`: what was loaded, as (file name, base address, size), in load order. `unloaded`: what
    was before, the last that went first. `process`: the image's name, the numbers of the process
    and its thread that ran on the `processor` that crashed. `encoding`: KiWaitNever, KiWaitAlways
    and the address that KDDEBUGGER_DATA64 is encoded with; None for plain.
    """

    code: int = 0xD1
    parameters: tuple[int, int, int, int] = (0, 0, 0, 0)
    registers: dict[str, int] = field(default_factory=dict)
    space: AddressSpace = field(default_factory=AddressSpace)
    modules: list[tuple[str, int, int]] = field(default_factory=list)
    machine: int = 0x8664
    build: int = 19041
    encoding: tuple[int, int, int] | None = None
    process: tuple[str, int, int] = ("System", 4, 0x2C)
    irql: int = 2
    processor: int = 0
    processors: int = 1
    unloaded: list[tuple[str, int, int]] = field(default_factory=list)

    def load(self, name: str, base: int, image: bytes) -> None:
        """Loads an image: its bytes at its base, and an entry in the list of modules."""
        self.space.write(base, image)
        self.modules.append((name, base, len(image)))

    def write_u64(self, address: int, *values: int) -> None:
        """Puts 64-bit numbers into memory."""
        self.space.write(address, struct.pack(f"<{len(values)}Q", *values))

    @property
    def module_list(self) -> int:
        """Address of PsLoadedModuleList."""
        return STRUCTURES

    def write(self, path: Path, dump_type: int = BITMAP_KERNEL) -> Path:
        """Writes the dump and gives its path."""
        path.write_bytes(self.dump(dump_type))
        return path

    def dump(self, dump_type: int = BITMAP_KERNEL) -> bytes:
        """The bytes of the dump."""
        self._write_structures()
        numbers = sorted(self.space.pages)
        pages = b"".join(self.space.pages[number] for number in numbers)
        if dump_type == FULL:
            return self.header(dump_type, 0x2000 + len(pages), numbers) + pages
        bits = -(-(numbers[-1] + 1) // 64) * 64
        bitmap = sum(1 << number for number in numbers).to_bytes(bits // 8, "little")
        first = 0x2000 + -(-(0x38 + len(bitmap)) // PAGE) * PAGE
        summary = struct.pack("<8s24xQQQ", b"SDMPDUMP", first, len(numbers), bits) + bitmap
        header = self.header(dump_type, first + len(pages), numbers)
        return header + summary.ljust(first - 0x2000, b"\0") + pages

    def header(self, dump_type: int, size: int, numbers: Sequence[int] = ()) -> bytes:
        """DUMP_HEADER64 of a dump of that type and size. numbers: of the pages in it."""
        header = bytearray(b"PAGE" * 0x800)
        struct.pack_into("<8sII", header, 0, b"PAGEDU64", 15, self.build)
        lists = (self.module_list, PROCESS_LIST)
        struct.pack_into("<QQQQ", header, 0x10, self.space.root << 12, 0, *lists)
        struct.pack_into("<IIII", header, 0x30, self.machine, self.processors, self.code, 0)
        struct.pack_into("<4Q", header, 0x40, *self.parameters)
        struct.pack_into("<Q", header, 0x80, DEBUGGER_DATA)
        runs: list[list[int]] = []
        for number in numbers:
            if runs and sum(runs[-1]) == number:
                runs[-1][1] += 1
            else:
                runs.append([number, 1])
        if dump_type == FULL:
            assert len(runs) <= 42, "more runs than the header holds"
            struct.pack_into("<IIQ", header, 0x88, len(runs), 0, len(numbers))
            for index, run in enumerate(runs):
                struct.pack_into("<QQ", header, 0x98 + 16 * index, *run)
        record = self.context_record()
        header[0x348 : 0x348 + len(record)] = record
        struct.pack_into("<IIQQ", header, 0xF98, dump_type, 0, size, FILETIME)
        struct.pack_into("<Q", header, 0x1030, 90 * 10_000_000)  # up for 90 s
        return bytes(header)

    def _write_structures(self) -> None:
        entries = [STRUCTURES + 0x1000 + 0x200 * number for number in range(len(self.modules))]
        links = [self.module_list, *entries, self.module_list]
        self.write_u64(self.module_list, links[1], links[-2])
        for number, (name, base, size) in enumerate(self.modules):
            entry, text = entries[number], name.encode("utf-16-le")
            path = f"\\SystemRoot\\System32\\drivers\\{name}".encode("utf-16-le")
            data = bytearray(0xA0)
            struct.pack_into("<QQ", data, 0, links[number + 2], links[number])
            struct.pack_into("<QQI", data, 0x30, base, base + 0x1000, size)
            struct.pack_into("<I", data, 0x80, TIMESTAMP)
            struct.pack_into("<HHIQ", data, 0x48, len(path), len(path), 0, entry + 0x120)
            struct.pack_into("<HHIQ", data, 0x58, len(text), len(text), 0, entry + 0xA0)
            self.space.write(entry, bytes(data))
            self.space.write(entry + 0xA0, text)
            self.space.write(entry + 0x120, path)
        self._write_processors()
        self._write_unloaded_drivers()
        self.space.write(BUILD_LAB, b"19041.1.amd64fre.synthetic\0")
        block = self.debugger_data()
        if self.encoding:
            block = encoded(block, *self.encoding)
        self.space.write(DEBUGGER_DATA, block)

    def debugger_data(self) -> bytes:
        """KDDEBUGGER_DATA64 in plain; the offsets are those of build 19041."""
        block = bytearray(0x380)
        block[0x10:0x14] = b"KDBG"
        struct.pack_into("<IQ", block, 0x14, len(block), self.modules[0][1] if self.modules else 0)
        struct.pack_into("<QQ", block, 0x48, self.module_list, PROCESS_LIST)
        struct.pack_into("<Q", block, 0x208, BUILD_LAB)
        struct.pack_into("<QQQ", block, 0x218, PROCESSORS, UNLOADED, UNLOADED + 8)
        struct.pack_into("<HHH", block, 0x29C, 0x58, 0x28, 0xB8)  # KTHREAD: stacks, process
        struct.pack_into("<HHHH", block, 0x2A8, 0xA40, 0x550, 0x540, 0x28)  # EPROCESS: size ...
        struct.pack_into("<HHH", block, 0x2B0, PRCB_SIZE, 0x3000, 0x08)
        struct.pack_into("<HHH", block, 0x2BC, 0x1F0, 0x24, 0x898)
        struct.pack_into("<H", block, 0x2F2, 0x100)
        struct.pack_into("<H", block, 0x338, 0x700)
        return bytes(block)

    def context_record(self) -> bytes:
        """The header's CONTEXT."""
        if self.machine == 0xAA64:
            return arm64_context_record(self.registers)
        return context_record(self.registers)

    def _write_processors(self) -> None:
        """KPRCBs; the one that crashed has the header's context and runs the process."""
        self.write_u64(PROCESSORS, *(PRCB + 0x1000 * one for one in range(self.processors)))
        for number in range(self.processors):
            address, crashed = PRCB + 0x1000 * number, number == self.processor
            block = bytearray(PRCB_SIZE)
            struct.pack_into("<Q", block, 0x08, ETHREAD if crashed else 0)
            struct.pack_into("<I", block, 0x24, number)
            struct.pack_into("<Q", block, 0x100 + 0x48, 0x400)  # Dr7
            struct.pack_into("<Q", block, 0x100 + 0xA0, self.irql)  # Cr8
            record = self.context_record() if crashed else bytes(0x4D0)
            block[0x1F0 : 0x1F0 + len(record)] = record
            self.space.write(address, bytes(block))
        name, process_id, thread_id = self.process
        thread = bytearray(0x898)
        struct.pack_into("<Q", thread, 0x28, STACK + STACK_SIZE)
        struct.pack_into("<Q", thread, 0xB8, EPROCESS)
        struct.pack_into("<QQ", thread, 0x478, process_id, thread_id)
        self.space.write(ETHREAD, bytes(thread))
        process = bytearray(0xA40)
        struct.pack_into("<QQQ", process, 0x440, process_id, PROCESS_LIST, PROCESS_LIST)
        struct.pack_into("<15sB", process, 0x5A8, name.encode(), 2)
        self.space.write(EPROCESS, bytes(process))

    def _write_unloaded_drivers(self) -> None:
        """MmUnloadedDrivers, MmLastUnloadedDriver behind it, and the array of 50."""
        array = UNLOADED + 0x100
        self.write_u64(UNLOADED, array, len(self.unloaded))
        self.space.write(array, bytes(50 * 0x28))
        for number, (name, start, end) in enumerate(reversed(self.unloaded)):
            text, place = name.encode("utf-16-le"), UNLOADED + 0x1000 + 0x40 * number
            self.space.write(place, text)
            entry = struct.pack("<HH4xQQQQ", len(text), len(text), place, start, end, FILETIME)
            self.space.write(array + 0x28 * number, entry)


def encoded(block: bytes, wait_never: int, wait_always: int, address: int) -> bytes:
    """KDDEBUGGER_DATA64 as Windows 8 and later keep it: the inverse of the published decoding."""
    turn, out = wait_never & 0x3F, []
    for (word,) in struct.iter_unpack("<Q", block):
        swapped = int.from_bytes((word ^ wait_always).to_bytes(8, "little"), "big") ^ address
        turned = (swapped >> turn | swapped << (64 - turn)) & (1 << 64) - 1
        out.append(turned ^ wait_never)
    return struct.pack(f"<{len(out)}Q", *out)


def arm64_context_record(registers: Mapping[str, int]) -> bytes:
    """An ARM64 CONTEXT with those registers: x0 to x28, fp, lr, sp, pc, cpsr."""
    record = bytearray(0x390)
    struct.pack_into("<II", record, 0, 0x40001F, registers.get("cpsr", 0x60000005))
    names = (*(f"x{number}" for number in range(29)), "fp", "lr", "sp", "pc")
    struct.pack_into("<33Q", record, 8, *(registers.get(name, 0) for name in names))
    return bytes(record)


def context_record(registers: Mapping[str, int], flags: int = 0x10001F) -> bytes:
    """An x64 CONTEXT with those registers; others are zero."""
    record = bytearray(0x4D0)
    struct.pack_into("<I", record, 0x30, flags)
    struct.pack_into("<H", record, 0x38, 0x10)
    for number, name in enumerate(_INTEGER_REGISTERS):
        struct.pack_into("<Q", record, 0x78 + 8 * number, registers.get(name, 0))
    struct.pack_into("<Q", record, 0xF8, registers.get("rip", 0))
    struct.pack_into("<I", record, 0x44, registers.get("efl", 0x246))
    return bytes(record)


def trap_frame(registers: Mapping[str, int], *, cs: int = 0x10, ss: int = 0x18) -> bytes:
    """A KTRAP_FRAME with those registers."""
    frame = bytearray(0x190)
    for name, offset in (
        *(("rax", 0x30), ("rcx", 0x38), ("rdx", 0x40), ("r8", 0x48), ("r9", 0x50)),
        *(("r10", 0x58), ("r11", 0x60), ("rbp", 0x158), ("rip", 0x168), ("rsp", 0x180)),
    ):
        struct.pack_into("<Q", frame, offset, registers.get(name, 0))
    struct.pack_into("<QQ", frame, 0x170, cs, 0x246)
    struct.pack_into("<Q", frame, 0x188, ss)
    return bytes(frame)


# A kernel and a driver that crashes, for tests that need a whole stack.
#
#   nt!KeBugCheckEx <- nt!KiPageFault (trap) <- victim!Fault <- victim!Entry <- nt!StartThread

KE_BUG_CHECK_EX = Function("KeBugCheckEx", 0x1000, b"\x48\x89\x4c\x24\x08".ljust(0x20, b"\xcc"))
KI_PAGE_FAULT = Function(
    "KiPageFault",
    0x1100,
    b"\x90" * 0x40,
    unwind_info(code(0, ALLOC_LARGE, 0, 0x160 // 8), code(0, PUSH_MACHFRAME, 1)),
)
START_THREAD = Function(
    "StartThread", 0x1200, b"\x90" * 0x40, unwind_info(code(4, ALLOC_SMALL, 4), prologue=4)
)
FAULT = Function(
    "Fault",
    0x1000,
    b"\x53\x48\x83\xec\x20"
    + b"\x90" * 0x30
    + b"\x48\x83\xc4\x20\x5b\xc3",  # push rbx; sub rsp, 20h
    unwind_info(code(5, ALLOC_SMALL, 3), code(1, PUSH_NONVOL, 3), prologue=5),
)
ENTRY = Function(
    "Entry",
    0x1100,
    b"\x48\x83\xec\x28" + b"\x90" * 0x10 + b"\xe8\0\0\0\0" + b"\x90" * 8,  # sub rsp, 28h; call
    unwind_info(code(4, ALLOC_SMALL, 4), prologue=4),
)
FAULT_RIP = DRIVER_BASE + FAULT.rva + 0x10
RETURN_TO_ENTRY = DRIVER_BASE + ENTRY.rva + 0x19
RETURN_TO_START = NT_BASE + START_THREAD.rva + 0x20
RETURN_TO_PAGE_FAULT = NT_BASE + KI_PAGE_FAULT.rva + 0x20
TRAP_FRAME = STACK + 0x5000
FAULT_RSP = STACK + 0x6000


def crashed_machine(code: int = 0xD1, parameters: Sequence[int] | None = None) -> SyntheticMachine:
    """A machine whose driver victim.sys read a bad address, with a whole stack.

    The trap frame is what the stack leads through; rcx there is 0x1234.
    """
    machine = SyntheticMachine(code)
    nt = pe_image(
        [KE_BUG_CHECK_EX, KI_PAGE_FAULT, START_THREAD], pdb=("ntkrnlmp.pdb", b"N" * 16, 1)
    )
    machine.load("ntoskrnl.exe", NT_BASE, nt)
    driver = pe_image([FAULT, ENTRY], pdb=("victim.pdb", b"V" * 16, 1))
    machine.load("victim.sys", DRIVER_BASE, driver)
    machine.space.write(STACK, bytes(STACK_SIZE))
    rsp = TRAP_FRAME - 8  # KiPageFault calls KeBugCheckEx with nothing between
    machine.parameters = tuple(parameters or (0xFFFF8000DEAD0000, 2, 0, FAULT_RIP))  # type: ignore[assignment]
    machine.registers = {"rip": NT_BASE + KE_BUG_CHECK_EX.rva, "rsp": rsp, "rbx": 0xB}
    # Behind the return address the home space, which overlaps the trap frame's own as on Windows.
    frame = trap_frame({"rip": FAULT_RIP, "rsp": FAULT_RSP, "rcx": 0x1234, "rbp": 0x5})
    machine.space.write(TRAP_FRAME, frame)
    machine.write_u64(rsp, RETURN_TO_PAGE_FAULT, code, *machine.parameters)
    # Fault: 0x20 bytes, rbx, return address; Entry: 0x28 bytes, return address; StartThread.
    machine.write_u64(FAULT_RSP + 0x20, 0xBBBB, RETURN_TO_ENTRY)
    machine.write_u64(FAULT_RSP + 0x30 + 0x28, RETURN_TO_START)
    machine.write_u64(FAULT_RSP + 0x60 + 0x28, 0)
    return machine
