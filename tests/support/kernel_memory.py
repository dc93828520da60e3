"""Structures of the kernel in a dump, read through kdmp-parser at the offsets Windows has."""

from __future__ import annotations

import struct

from tests.oracle.readers import KernelDump

KERNEL_BASE = 0x18
"""Offset in KDDEBUGGER_DATA64 of KernBase."""
NON_PAGED_POOL_START = 0x110
"""Offset in KDDEBUGGER_DATA64 of the address of MmNonPagedPoolStart."""
PROCESSOR_BLOCK = 0x218
"""Offset in KDDEBUGGER_DATA64 of the address of KiProcessorBlock, pointers to each KPRCB."""
OFFSET_PRCB_CONTEXT = 0x338
"""Offset in KDDEBUGGER_DATA64 of where in a KPRCB the pointer to its CONTEXT lies (u16)."""
CONTEXT_RIP = 0xF8
_KD_DEBUGGER_DATA_BLOCK = 0x80  # in DUMP_HEADER64
# In KLDR_DATA_TABLE_ENTRY; the list's links come first.
_DLL_BASE, _BASE_DLL_NAME = 0x30, 0x58


def read(dump: KernelDump, address: int, size: int) -> bytes:
    """Virtual memory that must be in the dump."""
    data = dump.read(address, size)
    assert data is not None, f"{address:x} is not in {dump.path}"
    return data


def pointer(dump: KernelDump, address: int) -> int:
    """A 64-bit number in memory."""
    return int.from_bytes(read(dump, address, 8), "little")


def debugger_data(dump: KernelDump, offset: int) -> int:
    """A 64-bit field of KDDEBUGGER_DATA64."""
    with dump.path.open("rb") as file:
        file.seek(_KD_DEBUGGER_DATA_BLOCK)
        (block,) = struct.unpack("<Q", file.read(8))
    return pointer(dump, block + offset)


def kernel_base(dump: KernelDump) -> int:
    """Where the kernel's image lies."""
    return debugger_data(dump, KERNEL_BASE)


def loaded_modules(dump: KernelDump) -> dict[str, int]:
    """Base addresses of the loaded images by file name, in load order."""
    modules: dict[str, int] = {}
    entry = pointer(dump, dump.ps_loaded_module_list)
    while entry != dump.ps_loaded_module_list:
        length, buffer = struct.unpack("<H6xQ", read(dump, entry + _BASE_DLL_NAME, 16))
        name = read(dump, buffer, length).decode("utf-16-le")
        assert name not in modules, f"{name} is loaded twice, or the list is a loop"
        modules[name] = pointer(dump, entry + _DLL_BASE)
        entry = pointer(dump, entry)
    return modules


def processor_rip(dump: KernelDump) -> int:
    """The instruction the first processor was at, from the context its KPRCB points to.

    Where a hypervisor makes the dump it puts the registers there; the header's context stays as
    the guest prepared it.
    """
    control_block = pointer(dump, debugger_data(dump, PROCESSOR_BLOCK))
    offset = debugger_data(dump, OFFSET_PRCB_CONTEXT) & 0xFFFF
    return pointer(dump, pointer(dump, control_block + offset) + CONTEXT_RIP)
