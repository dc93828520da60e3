"""Whether the image that is loaded is the file: one hash for both where they are equal.

A loader changes an image: it adds the difference of the base addresses to each relocated pointer,
fills in import addresses, drops discardable sections. `loaded_image` undoes the first, and both
sides leave out the rest, so that what remains must be the same to the byte: sections that can be
neither written to nor discarded, which is where code and constants are.

Not undone, because it is not documented: what Windows patches into code itself (Retpoline, import
call optimization, hot patches). An image it was done to is reported as different.
"""

from __future__ import annotations

import bisect
import hashlib
import os
import struct
from pathlib import Path
from typing import Final

from crashdump_analysis.errors import DumpError
from crashdump_analysis.image import (
    ADDRESS_TABLE,
    DELAY_IMPORT,
    IMPORT,
    LOAD_CONFIG,
    SECTION_DISCARDABLE,
    SECTION_WRITE,
    Image,
    Section,
    image_in_file,
    relocations,
)
from crashdump_analysis.memory import Memory
from crashdump_analysis.modules import Module

MAX_FILE: Final = 256 << 20
"""Bytes of an image file; larger ones are refused."""

_FILLED_BY_THE_LOADER = (IMPORT, ADDRESS_TABLE, DELAY_IMPORT)
# In IMAGE_LOAD_CONFIG_DIRECTORY64: addresses of the two pointers that Control Flow Guard fills in.
_GUARD_POINTERS = (0x70, 0x78)
# There, too: u32 offset and u16 section of the dynamic value relocation table.
_DYNAMIC_RELOCATIONS = 0xE0


def expected_image(file: str | os.PathLike[str]) -> bytes:
    """What `loaded_image` gives when the file is what was loaded.

    Sections one after the other, each behind its offset and size. Raises DumpError where the file
    is no PE32+ image, and OSError where it cannot be read.
    """
    image = _file(Path(file))
    return _comparable(image, [(one, _contents(image, one)) for one in _compared(image)], moved=0)


def loaded_image(memory: Memory, module: Module, file: str | os.PathLike[str]) -> bytes:
    """The module's sections in memory, with relocations undone and what the loader fills left out.

    The file tells where relocations and sections are: in memory that part was discarded. Raises
    DumpError where the file is no PE32+ image or a page of the module is not in memory.
    """
    image = _file(Path(file))
    sections = []
    for section in _compared(image):
        data = memory.read(module.base + section.rva, section.size)
        if data is None:
            raise DumpError(
                f"{module.image} {section.name}",
                expected=f"{section.size} bytes of it in memory",
                found="pages that are not there",
            )
        sections.append((section, data))
    return _comparable(image, sections, moved=module.base - image.preferred_base)


def is_patched_by_windows(file: str | os.PathLike[str]) -> bool:
    """Whether the image lists places that Windows patches as it loads it (see the module).

    That is its dynamic value relocation table (IMAGE_LOAD_CONFIG_DIRECTORY64). Raises DumpError.
    """
    image = _file(Path(file))
    start, size = image.directory(LOAD_CONFIG)
    table = (
        image.read(start + _DYNAMIC_RELOCATIONS, 6) if size >= _DYNAMIC_RELOCATIONS + 6 else None
    )
    return bool(table and any(table))


def image_identity(contents: bytes) -> str:
    """SHA-256 of what `expected_image` or `loaded_image` gave, in hex."""
    return hashlib.sha256(contents).hexdigest()


def _file(path: Path) -> Image:
    size = path.stat().st_size
    if size > MAX_FILE:
        raise DumpError(str(path), expected=f"an image of up to {MAX_FILE} bytes", found=f"{size}")
    return image_in_file(path.read_bytes(), str(path))


def _compared(image: Image) -> list[Section]:
    unwanted = SECTION_WRITE | SECTION_DISCARDABLE
    sections = [one for one in image.sections if one.size and not one.flags & unwanted]
    if not sections:
        raise DumpError(image.where, expected="a section that cannot be written to", found="none")
    return sections


def _contents(image: Image, section: Section) -> bytes:
    data = image.read(section.rva, section.size)
    if data is None:
        raise DumpError(
            f"{image.where} {section.name}",
            expected=f"{section.size} bytes",
            found="a section that goes on behind the end of the file",
        )
    return data


def _comparable(image: Image, sections: list[tuple[Section, bytes]], *, moved: int) -> bytes:
    """Sections as both sides have them; `moved` is how far from its preferred base they lie."""
    pieces = {section.rva: bytearray(data) for section, data in sections}
    starts = sorted(pieces)
    for rva in relocations(image) if moved else ():
        start = starts[max(bisect.bisect_right(starts, rva) - 1, 0)]
        piece, at = pieces[start], rva - start
        if 0 <= at <= len(piece) - 8:
            (value,) = struct.unpack_from("<Q", piece, at)
            struct.pack_into("<Q", piece, at, (value - moved) % (1 << 64))
    for rva, size in _left_out(image):
        for start, piece in pieces.items():
            first, end = max(rva - start, 0), min(rva + size - start, len(piece))
            if first < end:
                piece[first:end] = bytes(end - first)
    return b"".join(
        struct.pack("<II", start, len(pieces[start])) + pieces[start] for start in starts
    )


def _left_out(image: Image) -> list[tuple[int, int]]:
    """Offsets and sizes of what the loader fills in."""
    ranges = [image.directory(number) for number in _FILLED_BY_THE_LOADER]
    start, size = image.directory(LOAD_CONFIG)
    for offset in _GUARD_POINTERS:
        pointer = image.read(start + offset, 8) if offset + 8 <= size else None
        if pointer and any(pointer):
            ranges.append((int.from_bytes(pointer, "little") - image.preferred_base, 8))
    return ranges
