"""KDDEBUGGER_DATA64: where the kernel keeps what debuggers ask for, and offsets in its structures.

Layout: wdbgexts.h. Windows 8 and later may leave the block encoded in raw memory (dumps that a
hypervisor or an acquisition tool made): a 64-bit word of it that is stored as w means

    byteswap(rotate_left(w ^ KiWaitNever, KiWaitNever) ^ KdpDataBlockEncoded) ^ KiWaitAlways

(published with volatility's win8_kdbg). Exclusive or, rotation and byte order are all linear, so
this is the same as byteswap(rotate_left(w, n)) ^ key with one n and one key for the block.
The dump's header holds two words of the block in plain, PsLoadedModuleList and PsActiveProcessHead:
the first gives the key for each of the 64 rotations, the second and the block's tag say which one
is right. No symbols are needed.
"""

from __future__ import annotations

import struct
from typing import Final

from crashdump_analysis.addresses import KERNEL_SPACE
from crashdump_analysis.dump.header import DumpHeader
from crashdump_analysis.memory import Memory

_TAG: Final = b"KDBG"  # at 0x10; the size of the block follows
_START: Final = 0x18  # bytes up to and with the size
_LEAST, _MOST = 0x2C8, 0x1000  # bytes: of 64-bit Windows since Vista; a generous limit
_KERNEL_BASE, _MODULE_LIST, _PROCESS_LIST = 0x18, 0x48, 0x50
_BUILD_LAB, _PROCESSOR_BLOCK = 0x208, 0x218
_UNLOADED, _LAST_UNLOADED = 0x220, 0x228
_PRCB_CONTEXT = 0x338
_MASK: Final = (1 << 64) - 1


class DebuggerData:
    """The block, read by offset; a field it is too short for is None. Offsets are in bytes.

    decoded: it was encoded in the dump.
    """

    def __init__(self, memory: Memory, block: bytes, *, decoded: bool = False) -> None:
        self._memory = memory
        self._block = block
        self.decoded = decoded

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

    @property
    def unloaded_drivers(self) -> int | None:
        """Address of MmUnloadedDrivers, which points to the list of unloaded drivers."""
        return self._field(_UNLOADED)

    @property
    def last_unloaded_driver(self) -> int | None:
        """Address of MmLastUnloadedDriver, the number of the next entry that will be written."""
        return self._field(_LAST_UNLOADED)

    def processor_block(self, number: int) -> int | None:
        """Address of a processor's KPRCB."""
        block = self._field(_PROCESSOR_BLOCK)
        return self._memory.u64(block + 8 * number) if block else None

    def processor_context(self, number: int) -> int | None:
        """Address of the CONTEXT that a processor's KPRCB points to.

        A debugger, or a hypervisor that makes a dump, leaves the processor's registers there.
        """
        control_block, offset = self.processor_block(number), self.offset(_PRCB_CONTEXT)
        if not control_block or not offset:
            return None
        return self._memory.u64(control_block + offset)

    def offset(self, field: int) -> int | None:
        """One of the 16-bit offsets or sizes at the end of the block, by its own offset.

        None where the block is too short or holds zero, which is no offset of use.
        """
        return self._field(field, 2) or None

    def _field(self, offset: int, size: int = 8) -> int | None:
        data = self._block[offset : offset + size]
        return int.from_bytes(data, "little") if len(data) == size else None


def read_debugger_data(
    memory: Memory, header: DumpHeader, copy: bytes | None = None
) -> tuple[DebuggerData | None, list[str]]:
    """The block that the header names, decoded where needed; or None and the reason in words.

    copy: the block as the dump keeps it beside memory, if it does.
    """
    address = header.debugger_data
    block = memory.read_some(address, _MOST) if copy is None else copy
    if len(block) < _START:
        return None, [f"KDDEBUGGER_DATA64 at {address:x} is not in the dump"]
    size = _size(block)
    if size:
        return DebuggerData(memory, block[:size]), []
    if not any(block[:_LEAST]):
        return None, [f"KDDEBUGGER_DATA64 at {address:x} holds only zeros"]
    decoded = _decode(block, header)
    if decoded is not None:
        return DebuggerData(memory, decoded, decoded=True), []
    return None, [
        f"KDDEBUGGER_DATA64 at {address:x} is encoded and what the header says does not decode it, "
        "or it is none: modules are taken from the header's list, and the processor's thread and "
        "process are unknown"
    ]


def _size(block: bytes) -> int | None:
    """The size of a block in plain, None where it is none."""
    size = int.from_bytes(block[0x14:0x18], "little")
    return size if block[0x10:0x14] == _TAG and _LEAST <= size <= _MOST else None


def _decode(block: bytes, header: DumpHeader) -> bytes | None:
    """An encoded block in plain; None where it cannot be told that it is one."""
    known = {
        offset: value
        for offset, value in (
            (_MODULE_LIST, header.ps_loaded_module_list),
            (_PROCESS_LIST, header.ps_active_process_head),
        )
        if value >= KERNEL_SPACE
    }
    if not known or len(block) < _LEAST:
        return None
    words = struct.unpack_from(f"<{_LEAST // 8}Q", block)
    offset, value = next(iter(known.items()))
    for rotation in range(64):
        key = _turned(words[offset // 8], rotation) ^ value
        tag = (_turned(words[2], rotation) ^ key).to_bytes(8, "little")
        size = int.from_bytes(tag[4:], "little")
        if tag[:4] != _TAG or not _LEAST <= size <= min(_MOST, len(block)):
            continue
        if all(_turned(words[at // 8], rotation) ^ key == right for at, right in known.items()):
            whole = struct.unpack_from(f"<{size // 8}Q", block)
            return struct.pack(
                f"<{len(whole)}Q", *(_turned(word, rotation) ^ key for word in whole)
            )
    return None


def _turned(word: int, rotation: int) -> int:
    """A 64-bit word rotated to the left, then with its bytes in reverse."""
    rotated = (word << rotation | word >> (64 - rotation)) & _MASK
    return int.from_bytes(rotated.to_bytes(8, "little"), "big")
