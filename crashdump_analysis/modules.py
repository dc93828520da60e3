"""The kernel's list of loaded images, PsLoadedModuleList.

A circle of KLDR_DATA_TABLE_ENTRY; the offsets are those of 64-bit Windows since Vista, as published
in loader structures and seen in triage dumps. The list is hostile input: it may loop, break off, or
name what it likes.
"""

from __future__ import annotations

import bisect
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from crashdump_analysis.addresses import KERNEL_SPACE, PAGE_SIZE
from crashdump_analysis.memory import Memory

MAX_MODULES: Final = 2000
_MAX_IMAGE = 1 << 30  # bytes
_MAX_NAME = 1024  # bytes
_ENTRY_SIZE = 0x80


@dataclass(frozen=True)
class Module:
    """A loaded image. Address and size in bytes; checksum and timestamp as in its PE header.

    `name` is what a debugger calls it ("nt", "sensor"), `image` its file name, `path` where it was
    loaded from.
    """

    name: str
    image: str
    path: str
    base: int
    size: int
    entry_point: int
    checksum: int
    timestamp: int | None = None

    def __contains__(self, address: int) -> bool:
        return self.base <= address < self.base + self.size


class Modules:
    """The loaded images in load order, and which of them an address lies in."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        self._in_load_order = tuple(modules)
        self._by_base = sorted(self._in_load_order, key=lambda module: module.base)
        self._bases = [module.base for module in self._by_base]
        self.span = (
            min(self._bases, default=0),
            max((module.base + module.size for module in self._by_base), default=0),
        )
        """The lowest address of any module, and the first one behind all of them."""

    def __iter__(self) -> Iterator[Module]:
        return iter(self._in_load_order)

    def __len__(self) -> int:
        return len(self._in_load_order)

    def at(self, address: int) -> Module | None:
        """The module an address lies in."""
        number = bisect.bisect_right(self._bases, address) - 1
        if number >= 0 and address in self._by_base[number]:
            return self._by_base[number]
        return None

    def named(self, name: str) -> Module | None:
        """The first module of that name, in any case."""
        wanted = name.lower()
        return next((one for one in self if one.name.lower() == wanted), None)


def loaded_modules(
    memory: Memory, list_head: int, kernel_base: int | None = None
) -> tuple[Modules, list[str]]:
    """Walks the list; gives the modules and, in words, what was wrong with it.

    list_head: address of PsLoadedModuleList. kernel_base: where the kernel lies, which is then
    called "nt"; without it the first entry is.
    """
    modules: list[Module] = []
    warnings: list[str] = []
    seen = {list_head}
    entry = memory.u64(list_head)
    if entry is None:
        return Modules(), [f"the list of modules at {list_head:x} is not in the dump"]
    while entry != list_head:
        data = memory.read(entry, _ENTRY_SIZE)
        if entry in seen:
            warnings.append(f"the list of modules runs in a circle at {entry:x}")
        elif len(seen) > MAX_MODULES:
            warnings.append(f"more than {MAX_MODULES} modules; the rest is left out")
        elif data is None:
            warnings.append(f"the list of modules breaks off: {entry:x} is not in the dump")
        if entry in seen or len(seen) > MAX_MODULES or data is None:
            break
        seen.add(entry)
        module = _module(memory, data, kernel_base, first=not modules)
        if module is None:
            warnings.append(f"the module entry at {entry:x} describes no image")
        else:
            modules.append(module)
        (entry,) = struct.unpack_from("<Q", data)
    return Modules(modules), warnings


def _module(memory: Memory, entry: bytes, kernel_base: int | None, *, first: bool) -> Module | None:
    path = _unicode(memory, *struct.unpack_from("<H6xQ", entry, 0x48))
    image = _unicode(memory, *struct.unpack_from("<H6xQ", entry, 0x58))
    (base,) = struct.unpack_from("<Q", entry, 0x30)
    kernel = base == kernel_base or (kernel_base is None and first)
    return module_of_entry(entry, 0, path, image, kernel=kernel)


def module_of_entry(
    table: bytes, at: int, path: str, image: str = "", *, kernel: bool, timestamped: bool = False
) -> Module | None:
    """The module that a KLDR_DATA_TABLE_ENTRY at an offset in a table describes; None for none.

    image: the file's name, if it is not the end of the path. kernel: it is the kernel's.
    timestamped: it is of a triage dump's list, in which the PE timestamp is kept here; in memory
    Windows has something else in that place.
    """
    base, entry_point, size = struct.unpack_from("<QQI", table, at + 0x30)
    if not (base >= KERNEL_SPACE and base % PAGE_SIZE == 0 and 0 < size <= _MAX_IMAGE):
        return None
    image = image or _file_name(path)
    (checksum,) = struct.unpack_from("<I", table, at + 0x78)
    (timestamp,) = struct.unpack_from("<I", table, at + 0x80) if timestamped else (None,)
    name = "nt" if kernel else module_name(image) or f"image_{base:x}"
    return Module(name, image or name, path, base, size, entry_point, checksum, timestamp or None)


def module_name(image: str) -> str:
    """What a debugger calls an image file: without extension and without odd characters."""
    name = _file_name(image)
    stem = name.rpartition(".")[0] or name
    if stem.isascii() and stem.isalnum():
        return stem
    return re.sub(r"[^0-9A-Za-z_$@?]", "_", stem)


def _file_name(path: str) -> str:
    return path.replace("/", "\\").rpartition("\\")[2]


def _unicode(memory: Memory, size: int, address: int) -> str:
    data = memory.read(address, size) if 0 < size <= _MAX_NAME else None
    if data is None:
        return ""
    return printable(data)


def printable(utf16: bytes) -> str:
    """UTF-16 of a dump as text, with marks in place of what would disturb a terminal."""
    return printable_text(utf16.decode("utf-16-le", "replace"))


def printable_text(text: str) -> str:
    """One line of text, with marks in place of what would disturb a terminal."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)
