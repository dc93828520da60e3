"""The images in a machine's memory, and where the parts of them come from that a dump lacks.

A triage dump has neither headers nor unwind data of most images; a kernel dump lacks what was paged
out. The same bytes are in the image's file, if a symbol path leads to it, and unwind data is in
Microsoft's PDBs too. In that order each part is taken from the first that has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Literal, TypeVar

from crashdump_analysis.addresses import PAGE_SIZE
from crashdump_analysis.errors import DumpError
from crashdump_analysis.image import (
    DEBUG,
    SECTION_EXECUTE,
    Image,
    PdbIdentity,
    RuntimeFunction,
    Section,
    image_in_memory,
)
from crashdump_analysis.memory import Memory
from crashdump_analysis.modules import Module, Modules
from crashdump_analysis.symbols import Pdb, PdbError, SourceFrame, Symbols
from crashdump_analysis.unwind import function_start

UnwindSource = Literal["dump", "image", "pdb"]
_Found = TypeVar("_Found")


class LoadedImage:
    """One loaded image. Files are looked for when something is asked that the dump does not have.

    verified: False once a PDB is in use of which only name and size are known to be right.
    """

    def __init__(self, memory: Memory, module: Module, symbols: Symbols) -> None:
        self.module = module
        self.verified = True
        self.unwind_source: UnwindSource | None = None
        """Where unwind data came from, the farthest place if several; None while none did."""
        self._memory = memory
        self._symbols = symbols

    @cached_property
    def in_dump(self) -> Image | None:
        """The image by its headers in the dump; None where they are not there."""
        if self._memory.u16(self.module.base) is None:
            return None  # as most images of a triage dump; an exception for each takes longer
        try:
            return image_in_memory(self._memory, self.module.base, self.module.image)
        except DumpError:
            return None

    @cached_property
    def file(self) -> Image | None:
        """The image's file: one of the same name, timestamp and size."""
        timestamp = self.in_dump.timestamp if self.in_dump else self.module.timestamp
        return self._symbols.image(self.module, timestamp)

    @cached_property
    def pdb(self) -> Pdb | None:
        """The image's PDB."""
        identity = self._identity_in_dump or (self.file.pdb if self.file else None)
        if identity is not None:
            return self._symbols.pdb(identity)
        has_none = self.in_dump is not None and self.in_dump.directory(DEBUG)[1] == 0
        if self.file is not None or has_none:
            return None
        found = self._symbols.unverified_pdb(self.module)
        self.verified = found is None
        return found

    @property
    def _identity_in_dump(self) -> PdbIdentity | None:
        return self.in_dump.pdb if self.in_dump else None

    # What a report says of every module. Nothing is looked for on its behalf.

    @property
    def timestamp(self) -> int | None:
        """Of its PE header, as far as the dump says."""
        return self.in_dump.timestamp if self.in_dump else self.module.timestamp

    @property
    def identity(self) -> PdbIdentity | None:
        """Which PDB belongs to it, as far as that is known by now."""
        file: Image | None = self.__dict__.get("file")
        return self._identity_in_dump or (file.pdb if file else None)

    @property
    def pdb_in_use(self) -> Pdb | None:
        """The PDB, if it was asked for and found."""
        found: Pdb | None = self.__dict__.get("pdb")
        return found

    @property
    def build(self) -> str:
        """Timestamp and size, which tell builds apart; "unknown" without a timestamp."""
        return "unknown" if self.timestamp is None else f"{self.timestamp:08X}{self.module.size:x}"

    # What unwinding and naming ask.

    @property
    def unwind_verified(self) -> bool:
        """Whether the unwind data in use is known to be of this image."""
        return self.verified or self.unwind_source != "pdb"

    def read(self, rva: int, size: int) -> bytes | None:
        """`size` bytes at an offset from the base that nobody writes to; None where none has it."""
        found = self._memory.read(self.module.base + rva, size)
        if found is None and self.file is not None:
            found = self.file.read(rva, size)
        if found is None and self.pdb is not None:
            found = self._in_pdb(lambda pdb: pdb.file.read_image(rva, size))
        return found

    def runtime_function(self, rva: int) -> RuntimeFunction | None:
        """As Image.runtime_function, from the first place that has the function table."""
        for source, find in self._function_tables():
            try:
                found = find(rva)
            except LookupError:
                continue
            if self.unwind_source != "pdb":
                self.unwind_source = source
            return found
        raise LookupError(f"there is no unwind data of {self.module.image}")

    def _function_tables(
        self,
    ) -> Iterator[tuple[UnwindSource, Callable[[int], RuntimeFunction | None]]]:
        if self.in_dump is not None:
            yield "dump", self.in_dump.runtime_function
        if self.file is not None:
            yield "image", self.file.runtime_function
        part = self._in_pdb(lambda pdb: pdb.file.pdata)
        if part is not None:
            yield "pdb", part.runtime_function

    def functions(self, rva: int) -> list[SourceFrame]:
        """The functions at an offset from the base, inlined ones before their callers."""
        if self.pdb is None:
            return []
        return self._symbols.functions(self.pdb, rva, lambda: function_start(self, rva))

    @property
    def sections(self) -> tuple[Section, ...]:
        """The sections; empty where nobody knows them."""
        for image in (self.in_dump, self.file):
            try:
                if image is not None:
                    return image.sections
            except DumpError:
                continue
        return self._in_pdb(lambda pdb: pdb.file.sections) or ()

    def is_code(self, rva: int) -> bool:
        """Whether an offset from the base lies in a section that can be executed.

        Where nobody knows the sections, whether it lies behind the headers.
        """
        sections = self.sections
        return (
            rva >= PAGE_SIZE
            if not sections
            else any(
                one.flags & SECTION_EXECUTE and 0 <= rva - one.rva < one.size for one in sections
            )
        )

    def _in_pdb(self, find: Callable[[Pdb], _Found | None]) -> _Found | None:
        try:
            return find(self.pdb) if self.pdb else None
        except PdbError as error:
            self._symbols.warn(str(error))
            return None


class Images:
    """The loaded images of a dump, each looked at when first asked for."""

    def __init__(self, memory: Memory, modules: Modules, symbols: Symbols | None = None) -> None:
        self._memory = memory
        self._modules = modules
        self._symbols = symbols or Symbols()
        self._images: dict[int, LoadedImage] = {}

    def of(self, module: Module) -> LoadedImage:
        """A module's image."""
        if module.base not in self._images:
            self._images[module.base] = LoadedImage(self._memory, module, self._symbols)
        return self._images[module.base]

    def at(self, address: int) -> tuple[LoadedImage, int] | None:
        """The image an address lies in, and where it is loaded; None where it is in no module."""
        module = self._modules.at(address)
        return (self.of(module), module.base) if module else None

    @property
    def span(self) -> tuple[int, int]:
        """The lowest address of any image, and the first one behind all of them."""
        return self._modules.span

    def is_code(self, address: int) -> bool:
        """Whether an address lies in code of an image, as far as that is known."""
        found = self.at(address)
        return found is not None and found[0].is_code(address - found[1])
