"""KDDEBUGGER_DATA64: where the kernel keeps what debuggers ask for (wdbgexts.h).

Windows 8 and later may leave the block encoded in raw memory; that form is not read yet.
"""

from __future__ import annotations

from typing import Final

from crashdump_analysis.memory import Memory

_TAG: Final = b"KDBG"  # at 0x10; the size of the block follows
_MAX_SIZE = 0x1000
_KERNEL_BASE = 0x18
_PROCESSOR_BLOCK = 0x218
_BUILD_LAB = 0x208
_OFFSET_PRCB_CONTEXT = 0x338


class DebuggerData:
    """The block, read by offset; a field it is too short for is None."""

    def __init__(self, memory: Memory, block: bytes) -> None:
        self._memory = memory
        self._block = block

    @property
    def kernel_base(self) -> int | None:
        """Where the kernel's image lies."""
        return self._field(_KERNEL_BASE)

    @property
    def build_lab(self) -> str:
        """The build in words, such as "19041.1.amd64fre.vb_release.191206-1406"; may be empty."""
        address = self._field(_BUILD_LAB)
        text = self._memory.read_some(address, 128) if address else b""
        return text.partition(b"\0")[0].decode("ascii", "replace")

    def processor_context(self, number: int) -> int | None:
        """Address of the CONTEXT that a processor's KPRCB points to.

        A debugger, or a hypervisor that makes a dump, leaves the processor's registers there.
        """
        block, offset = self._field(_PROCESSOR_BLOCK), self._field(_OFFSET_PRCB_CONTEXT, 2)
        control_block = self._memory.u64(block + 8 * number) if block else None
        if not control_block or not offset:
            return None
        return self._memory.u64(control_block + offset)

    def _field(self, offset: int, size: int = 8) -> int | None:
        data = self._block[offset : offset + size]
        return int.from_bytes(data, "little") if len(data) == size else None


def read_debugger_data(memory: Memory, address: int) -> tuple[DebuggerData | None, list[str]]:
    """The block at the address the header names, or None and the reason in words."""
    start = memory.read(address, 0x18)
    if start is None:
        return None, [f"KDDEBUGGER_DATA64 at {address:x} is not in the dump"]
    size = int.from_bytes(start[0x14:0x18], "little")
    if start[0x10:0x14] != _TAG or not 0x18 < size <= _MAX_SIZE:
        return None, [
            f"KDDEBUGGER_DATA64 at {address:x} is encoded, or it is none: encoded blocks are not "
            "read yet; the list of modules is taken from the header"
        ]
    return DebuggerData(memory, memory.read_some(address, size)), []
