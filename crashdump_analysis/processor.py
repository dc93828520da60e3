"""What ran on the processor that crashed: its number and IRQL, its thread and that one's process.

Read by the offsets that KDDEBUGGER_DATA64 gives (wdbgexts.h), so it needs no symbols. Where the
block gives no offset, fields are found by what they must look like, and the report says so:

- EPROCESS.ImageFileName, 15 bytes: a name padded with zeros, if there is just one in the EPROCESS;
- the process's number: in the EPROCESS a number before a pair of kernel pointers (UniqueProcessId,
  ActiveProcessLinks) that in the ETHREAD stands before the thread's (Cid), if there is just one.

Right on all 14 real triage dumps at hand (builds 9600 and 19041).
"""

from __future__ import annotations

import re
import struct
from itertools import pairwise
from typing import Final

from crashdump_analysis.addresses import KERNEL_SPACE
from crashdump_analysis.debugger_data import DebuggerData
from crashdump_analysis.dump.format import DumpFormat
from crashdump_analysis.dump.header import MACHINE_X64
from crashdump_analysis.memory import Memory
from crashdump_analysis.registers import CONTEXT_RIP, CONTEXT_RSP
from crashdump_analysis.report import Processor

# Where KDDEBUGGER_DATA64 has offsets and sizes.
_INITIAL_STACK, _APC_PROCESS = 0x29E, 0x2A0
_SIZE_EPROCESS, _SIZE_PRCB, _SIZE_ETHREAD = 0x2A8, 0x2B0, 0x2C0
_CURRENT_THREAD, _CONTEXT_FRAME, _NUMBER, _SPECIAL_REGISTERS = 0x2B4, 0x2BC, 0x2BE, 0x2F2
_DR7, _CR8 = 0x48, 0xA0  # in KSPECIAL_REGISTERS of x64

_MAX_PROCESSORS: Final = 2048
_STACK_SIZE: Final = 0x10000  # bytes, more than any kernel stack
_IMAGE_NAME = re.compile(rb"[\x21-\x7e][\x20-\x7e]{2,13}\0")
_IMAGE_NAME_SIZE = 15
_MAX_PRIORITY_CLASS = 6  # the byte behind the name
_MAX_ID: Final = 1 << 26


def crashed_processor(
    contents: DumpFormat, debugger_data: DebuggerData | None, rip: int, rsp: int
) -> Processor:
    """The processor whose registers the header has.

    rip, rsp: of the header's context, by which it is found where the dump keeps no copy of it.
    """
    if debugger_data is None:
        return Processor()
    block = contents.processor_block
    source = "the dump's own copy of the KPRCB"
    if block is None:
        found = _by_context(contents, debugger_data, rip, rsp)
        if found is None:
            return Processor(sources=("no processor's saved registers are those of the header",))
        block, source = found
    block = block[: debugger_data.offset(_SIZE_PRCB) or 0]
    number = _number(block, debugger_data.offset(_NUMBER), 4)
    irql = None
    special = debugger_data.offset(_SPECIAL_REGISTERS)
    # Zeros where nobody saved the registers are no IRQL: bit 10 of DR7 is set in any processor.
    saved = special is not None and (_number(block, special + _DR7) or 0) & 1 << 10
    if special and saved and contents.header.machine == MACHINE_X64:
        irql = _number(block, special + _CR8)
    thread = _pointer(block, debugger_data.offset(_CURRENT_THREAD))
    return _with_process(
        contents,
        debugger_data,
        Processor(
            number if number is not None and number < _MAX_PROCESSORS else None,
            irql if irql is not None and irql <= 15 else None,
            thread,
            sources=(f"processor: {source}",),
        ),
    )


def _with_process(
    contents: DumpFormat, debugger_data: DebuggerData, processor: Processor
) -> Processor:
    """The processor with its thread's number and process, as far as they are in the dump."""
    ethread = _copy(
        contents.thread, contents.memory, processor.thread, debugger_data.offset(_SIZE_ETHREAD)
    )
    process = _pointer(ethread, debugger_data.offset(_APC_PROCESS))
    eprocess = _copy(
        contents.process, contents.memory, process, debugger_data.offset(_SIZE_EPROCESS)
    )
    name, place = _image_name(eprocess)
    process_id, thread_id = _client_id(eprocess, ethread)
    sources = list(processor.sources)
    if name is not None:
        sources.append(f"process name: found by its text at 0x{place:x} of the EPROCESS")
    if process_id is not None:
        sources.append("process and thread numbers: those that EPROCESS and ETHREAD share")
    return Processor(
        processor.number,
        processor.irql,
        processor.thread,
        thread_id,
        process,
        process_id,
        name,
        tuple(sources),
    )


def _by_context(
    contents: DumpFormat, debugger_data: DebuggerData, rip: int, rsp: int
) -> tuple[bytes, str] | None:
    """The KPRCB whose saved registers are the header's, else whose thread owns the stack."""
    memory, size = contents.memory, debugger_data.offset(_SIZE_PRCB)
    frame = debugger_data.offset(_CONTEXT_FRAME)
    stack = debugger_data.offset(_INITIAL_STACK)
    current = debugger_data.offset(_CURRENT_THREAD)
    if not size or not current:
        return None
    by_stack = None
    for number in range(min(contents.header.processors, _MAX_PROCESSORS)):
        address = debugger_data.processor_block(number)
        if not address:
            break
        if frame and _saved(memory, address + frame) == (rip, rsp):
            return memory.read_some(address, size), "its saved registers are those of the header"
        saved = debugger_data.processor_context(number)
        if saved and _saved(memory, saved) == (rip, rsp):
            return memory.read_some(address, size), "its saved registers are those of the header"
        thread = memory.u64(address + current)
        top = memory.u64(thread + stack) if thread and stack else None
        if by_stack is None and top and 0 < top - rsp < _STACK_SIZE:
            by_stack = address
    if by_stack is None:
        return None
    return memory.read_some(by_stack, size), "its thread's stack is the one of the header's rsp"


def _saved(memory: Memory, context: int) -> tuple[int | None, int | None]:
    return memory.u64(context + CONTEXT_RIP), memory.u64(context + CONTEXT_RSP)


def _copy(copy: bytes | None, memory: Memory, address: int | None, size: int | None) -> bytes:
    """A structure: the dump's own copy, or out of memory as far as it is there."""
    if not size or not address:
        return b""
    return copy[:size] if copy is not None else memory.read_some(address, size)


def _number(block: bytes, offset: int | None, size: int = 8) -> int | None:
    if offset is None or offset + size > len(block):
        return None
    return int.from_bytes(block[offset : offset + size], "little")


def _pointer(block: bytes, offset: int | None) -> int | None:
    value = _number(block, offset)
    return value if value is not None and value >= KERNEL_SPACE else None


def _image_name(eprocess: bytes) -> tuple[str | None, int]:
    """EPROCESS.ImageFileName and its offset, where only one text could be it."""
    found = []
    for start in range(0, len(eprocess) - _IMAGE_NAME_SIZE, 8):
        match = _IMAGE_NAME.match(eprocess, start)
        end = start + _IMAGE_NAME_SIZE
        if match and not any(eprocess[match.end() : end]) and eprocess[end] <= _MAX_PRIORITY_CLASS:
            found.append((match.group()[:-1].decode("ascii"), start))
    return found[0] if len(found) == 1 else (None, 0)


def _client_id(eprocess: bytes, ethread: bytes) -> tuple[int | None, int | None]:
    """The numbers of a process and its thread, where only one pair could be them."""
    words = struct.unpack_from(f"<{len(eprocess) // 8}Q", eprocess)
    processes = {
        word
        for word, forward, backward in zip(words, words[1:], words[2:], strict=False)
        if _is_id(word) and forward >= KERNEL_SPACE and backward >= KERNEL_SPACE
    }
    words = struct.unpack_from(f"<{len(ethread) // 8}Q", ethread)
    pairs = {
        (process, thread)
        for process, thread in pairwise(words)
        if process in processes and _is_id(thread)
    }
    return pairs.pop() if len(pairs) == 1 else (None, None)


def _is_id(word: int) -> bool:
    return 0 < word < _MAX_ID and word % 4 == 0
