"""A PDB, read by symbolic where that is installed."""

from __future__ import annotations

import importlib
import re
import uuid
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

_NO_START = 0xFFFF_FFFF  # what symbolic gives for the start of an inlined function
_OPEN_PDBS = 16


class PdbError(Exception):
    """A PDB cannot be used; says why and what to do."""


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


@dataclass(frozen=True)
class Pdb:
    """An open PDB: its identity and its functions."""

    path: Path
    guid: uuid.UUID
    age: int
    _symcache: Any

    def lookup(self, rva: int) -> list[SourceFrame]:
        """The functions at an offset from the image's base, inlined ones before their callers."""
        try:
            found = self._symcache.lookup(rva)
        except _symbolic().SymbolicError as error:
            raise PdbError(f"{self.path}: symbolic cannot look up {rva:x}: {error}") from error
        return [
            SourceFrame(
                bare_name(one.symbol),
                one.full_path or None,
                one.line or None,
                one.sym_addr if one.sym_addr != _NO_START else None,
                # The last one is the function itself: the others are inlined in it.
                inline=number < len(found),
            )
            for number, one in enumerate(found, start=1)
        ]


def open_pdb(path: Path) -> Pdb:
    """Opens a PDB; the last few stay open. Raises PdbError."""
    try:
        status = path.stat()
    except OSError as error:
        raise PdbError(f"{path}: {error.strerror}") from error
    return _open(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=_OPEN_PDBS)
def _open(path: Path, mtime: int, size: int) -> Pdb:
    try:
        symbolic = _symbolic()
    except ImportError as error:
        raise PdbError(
            f"{path} is there, but reading PDBs needs the package symbolic: "
            "pip install 'bugcheck-lab[symbols]'"
        ) from error
    try:
        for pdb in symbolic.Archive.open(str(path)).iter_objects():
            guid, _, age = str(pdb.debug_id).rpartition("-")
            return Pdb(path, uuid.UUID(guid), int(age, 16), pdb.make_symcache())
    except (symbolic.SymbolicError, ValueError) as error:
        raise PdbError(f"{path} cannot be read: {error}") from error
    raise PdbError(f"{path} holds no debug information")


def _symbolic() -> Any:
    """The package, imported when first needed: it takes longer than a triage without it."""
    return importlib.import_module("symbolic")


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
