"""Functions by address out of a PDB: by symbolic where that is installed, else by our own reader.

symbolic adds inlined functions, files and lines.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from crashdump_analysis.symbols.msf import PdbError
from crashdump_analysis.symbols.pdb_file import PdbFile
from crashdump_analysis.symbols.pdb_names import PdbNames

__all__ = ["Pdb", "PdbError", "SourceFrame", "open_pdb", "without_symbolic"]

_NO_START = 0xFFFF_FFFF  # what symbolic gives for the start of an inlined function
_OPEN_PDBS = 32


@dataclass(frozen=True)
class SourceFrame:
    """A function, with file and line where known. `start` is in bytes from the image's base.

    inline: the compiler put it into its caller; such a function has no start of its own.
    """

    function: str
    file: str | None
    line: int | None
    start: int | None
    inline: bool


class Pdb:
    """An open PDB. Raises PdbError where it is none or cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = PdbFile(path)
        self.trouble = ""
        """Why symbolic, where it is installed, could not read the PDB; our own reader then does."""

    @property
    def guid(self) -> uuid.UUID:
        """The GUID that its image names."""
        return self.file.guid

    @property
    def age(self) -> int:
        """The age that its image names."""
        return self.file.age

    def lookup(
        self, rva: int, function_start: Callable[[], int | None] = lambda: None
    ) -> list[SourceFrame]:
        """The functions at an offset from the image's base, inlined ones before their callers.

        function_start: where unwind data says that the function there starts; a public symbol
        before that is another function's. Raises PdbError.
        """
        if self._symcache is None:
            found = self._names.function(rva)
            if found is None or (found.size is None and found.start < (function_start() or 0)):
                return []
            return [SourceFrame(found.name, None, None, found.start, inline=False)]
        try:
            frames = self._symcache.lookup(rva)
        except _symbolic_error() as error:
            raise PdbError(f"{self.path}: symbolic cannot look up {rva:x}: {error}") from error
        return [
            SourceFrame(
                bare_name(one.symbol),
                one.full_path or None,
                one.line or None,
                one.sym_addr if one.sym_addr != _NO_START else None,
                # The last one is the function itself: the others are inlined in it.
                inline=number < len(frames),
            )
            for number, one in enumerate(frames, start=1)
        ]

    @cached_property
    def _names(self) -> PdbNames:
        return PdbNames(self.file)

    @cached_property
    def _symcache(self) -> Any:
        """symbolic's index of the PDB; None where it is not installed or cannot read it."""
        if without_symbolic():
            return None
        # Imported when first needed: it takes longer than a triage without it.
        symbolic = importlib.import_module("symbolic")
        try:
            for pdb in symbolic.Archive.open(str(self.path)).iter_objects():
                return pdb.make_symcache()
            reason = "no debug information"
        except (symbolic.SymbolicError, ValueError) as error:
            reason = str(error)
        self.trouble = f"{self.path}: symbolic finds {reason}; files and lines are missing"
        return None


def without_symbolic() -> bool:
    """Whether the package symbolic is missing, so that there are no inlined functions and lines."""
    try:
        return importlib.util.find_spec("symbolic") is None
    except ValueError:  # it was blocked in this process
        return True


def _symbolic_error() -> type[Exception]:
    error: type[Exception] = importlib.import_module("symbolic").SymbolicError
    return error


def open_pdb(path: Path) -> Pdb:
    """Opens a PDB; the last few stay open. Raises PdbError."""
    try:
        status = path.stat()
        return _open(path, status.st_mtime_ns, status.st_size, without_symbolic())
    except OSError as error:
        raise PdbError(f"{path}: {error.strerror}") from error


@lru_cache(maxsize=_OPEN_PDBS)
def _open(path: Path, mtime: int, size: int, plain: bool) -> Pdb:
    return Pdb(path)


def bare_name(name: str) -> str:
    """A function's name without its parameters, which symbolic adds to names out of PDBs."""
    name = re.sub(r"\)( const| volatile| &| &&)*$", ")", name)
    if not name.endswith(")"):
        return name
    depth = 0
    for at in range(len(name) - 1, -1, -1):
        depth += (name[at] == ")") - (name[at] == "(")
        if depth == 0:
            bare = name[:at]
            return bare if bare and not bare.endswith("operator") else name
    return name
