"""DUMP_HEADER64: the first 0x2000 bytes of every 64-bit Windows kernel dump.

Sources of the layout: kdmp-parser's structures (MIT) and the public symbols of the debugger; the
offsets below are bytes from the start of the file. Fields that nobody wrote hold the text "PAGE".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from crashdump_analysis.addresses import PhysicalAddress, VirtualAddress
from crashdump_analysis.errors import DumpError

HEADER_SIZE: Final = 0x2000
SIGNATURE: Final = b"PAGEDU64"
_SIGNATURE_32: Final = b"PAGEDUMP"
MACHINE_X64: Final = 0x8664
MACHINE_ARM64: Final = 0xAA64
MACHINES: Final = {0x8664: "x64", 0xAA64: "ARM64", 0x14C: "x86", 0x200: "IA-64"}
CONTEXT_OFFSET: Final = 0x348
MEMORY_BLOCK_OFFSET: Final = 0x88
MEMORY_BLOCK_SIZE: Final = 700

TYPE_NAMES: Final = {
    1: "full",
    2: "kernel summary",
    3: "header only",
    4: "triage (minidump)",
    5: "bitmap full",
    6: "bitmap kernel",
    7: "automatic",
    8: "kernel range",
    9: "kernel and user range",
    10: "full range",
}

_FILETIME_EPOCH = datetime(1601, 1, 1, tzinfo=UTC)
_FILLER_32, _FILLER_64 = 0x45474150, 0x4547415045474150  # "PAGE", where nothing was written
_EXCEPTION_FORM = 0x1000_0000  # bit 28: the "_M" form that small dumps hold
_TRIAGE_TYPE = 4

# How files begin that people take for kernel dumps.
_OTHER_FORMATS = {
    b"MDMP": "a user-mode minidump (MDMP)",
    b"\x7fELF": "an ELF file, such as an ELF core",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip file",
    b"\x28\xb5\x2f\xfd": "a zstd file",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"MZ": "a PE image",
    b"QFI\xfb": "a qcow2 disk image",
    b"Microsoft C/C++ MSF": "a PDB",
}


class Readable(Protocol):
    """A binary file, at the start of the dump."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes."""


@dataclass(frozen=True)
class DumpHeader:
    """What a dump's header says, before any of its memory is looked at.

    `bug_check_code` is as the dump bears it; `stop_code` is without bit 28. `time` is when the
    machine crashed by its own clock (UTC), `uptime` since its start, `required_size` the dump's
    size in bytes as Windows computed it before writing; each is None where the header has none.
    `processors` counts them. Addresses are the kernel's.
    """

    dump_type: int
    bug_check_code: int
    parameters: tuple[int, int, int, int]
    time: datetime | None
    uptime: timedelta | None
    required_size: int | None
    build: int
    machine: int
    processors: int
    directory_table_base: PhysicalAddress
    ps_loaded_module_list: VirtualAddress
    debugger_data: VirtualAddress
    ps_active_process_head: VirtualAddress

    @property
    def stop_code(self) -> int:
        """The bug check code without bit 28, which says that a small dump is about an exception."""
        if self.bug_check_code >> 28 == 1:
            return self.bug_check_code & ~_EXCEPTION_FORM
        return self.bug_check_code

    @property
    def bug_check_text(self) -> str | None:
        """What stands in the bug check's fields if that is text and no bug check; else None.

        DumpIt writes words there: its files are the memory of a machine that did not crash.
        """
        fields = [
            value.to_bytes(8, "little").rstrip(b"\0")
            for value in (self.bug_check_code, *self.parameters)
        ]
        if all(len(one) >= 4 and one.isascii() and one.decode().isprintable() for one in fields):
            return b" ".join(fields).decode()
        return None

    @property
    def type_name(self) -> str:
        """The dump type in words."""
        return TYPE_NAMES.get(self.dump_type, "unknown")

    @property
    def machine_name(self) -> str:
        """The processor architecture in words."""
        return MACHINES.get(self.machine, f"machine type 0x{self.machine:X}")


def read_header(
    source: bytes | bytearray | memoryview | Readable, where: str = "dump"
) -> DumpHeader:
    """Reads a header out of a dump's first 0x2000 bytes, or a file that stands at them.

    Says nothing about the rest, so it serves for a dump that is still inside pagefile.sys. `where`
    names the source in errors. Raises DumpError where it is no header of a 64-bit kernel dump.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source[:HEADER_SIZE])
    else:
        data = source.read(HEADER_SIZE)
    if not data.startswith(SIGNATURE):
        raise DumpError(
            where, expected="a kernel dump, which starts with PAGEDU64", found=_is(data)
        )
    if len(data) < HEADER_SIZE:
        raise DumpError(
            where, expected=f"a header of {HEADER_SIZE} bytes", found=f"{len(data)} bytes"
        )
    build, directory_table_base = struct.unpack_from("<IQ", data, 0x0C)
    module_list, process_list = struct.unpack_from("<QQ", data, 0x20)
    machine, processors, code = struct.unpack_from("<3I", data, 0x30)
    (debugger_data,) = struct.unpack_from("<Q", data, 0x80)
    dump_type, required, time = struct.unpack_from("<I4xQQ", data, 0xF98)
    (uptime,) = struct.unpack_from("<Q", data, 0x1030)
    return DumpHeader(
        dump_type,
        code,
        struct.unpack_from("<4Q", data, 0x40),
        filetime(time),
        timedelta(microseconds=uptime // 10) if uptime not in (0, _FILLER_64) else None,
        required if required not in (0, _FILLER_64) else None,
        build,
        machine,
        processors,
        PhysicalAddress(directory_table_base),
        VirtualAddress(module_list),
        VirtualAddress(debugger_data),
        VirtualAddress(process_list),
    )


def _is(data: bytes) -> str:
    if not data:
        return "an empty file"
    if data.startswith(_SIGNATURE_32):
        return f"a 32-bit kernel dump (PAGEDUMP){_about_32(data)}; only 64-bit Windows is supported"
    for start, name in _OTHER_FORMATS.items():
        if data.startswith(start):
            return name
    if not any(data):
        return f"only zeros in its first {len(data)} bytes"
    return f"the bytes {data[:8].hex(' ')}"


def _about_32(data: bytes) -> str:
    """What the header of a 32-bit dump (DUMP_HEADER32, 0x1000 bytes) says of it, in words."""
    if len(data) < 0xF8C:
        return ""
    code, *parameters = struct.unpack_from("<5I", data, 0x28)
    (dump_type,) = struct.unpack_from("<I", data, 0xF88)
    name = TYPE_NAMES.get(dump_type, "unknown")
    values = " ".join(f"{one:x}" for one in parameters)
    return f" of type {dump_type} {name}, bug check 0x{code:X}, parameters {values}"


def filetime(value: int) -> datetime | None:
    """A FILETIME, 100 ns since 1601, as UTC; None where nothing was written or it cannot be."""
    if value in (0, _FILLER_64):
        return None
    try:
        return _FILETIME_EPOCH + timedelta(microseconds=value // 10)
    except OverflowError:
        return None
