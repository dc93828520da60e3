"""Functions, files and lines by address, out of PDBs that belong to the images in the dump."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from crashdump_analysis.image import PdbIdentity
from crashdump_analysis.symbols.pdb import Pdb, PdbError, SourceFrame, open_pdb
from crashdump_analysis.symbols.search import candidates

__all__ = ["SourceFrame", "Symbols"]


class Symbols:
    """PDBs below a search path of folders. A PDB whose GUID or age differs is never used."""

    def __init__(self, folders: Iterable[Path] = ()) -> None:
        self._folders: Sequence[Path] = tuple(folders)
        self._pdbs: dict[PdbIdentity, Pdb | None] = {}
        self.warnings: list[str] = []
        """Why symbols are missing, in words; each thing once."""
        for folder in self._folders:
            if not folder.is_dir():
                self._warn(f"symbol folder {folder} is not there")

    def lookup(self, identity: PdbIdentity, rva: int) -> list[SourceFrame]:
        """The functions at an offset from an image's base, inlined ones before their callers.

        Empty where there is no PDB or it knows no function there.
        """
        pdb = self._pdb(identity)
        if pdb is None:
            return []
        try:
            return pdb.lookup(rva)
        except PdbError as error:
            self._warn(str(error))
            return []

    def used(self, identity: PdbIdentity) -> Path | None:
        """The PDB that lookups in an image were answered from."""
        pdb = self._pdbs.get(identity)
        return pdb.path if pdb else None

    def _pdb(self, identity: PdbIdentity) -> Pdb | None:
        if identity not in self._pdbs:
            self._pdbs[identity] = self._find(identity)
        return self._pdbs[identity]

    def _find(self, identity: PdbIdentity) -> Pdb | None:
        if not self._folders:
            self._warn("no symbol path was given: functions, files and lines are missing")
            return None
        refused: list[str] = []
        for path in candidates(self._folders, identity):
            try:
                pdb = open_pdb(path)
            except PdbError as error:
                refused.append(str(error))
                continue
            if (pdb.guid, pdb.age) == (identity.guid, identity.age):
                return pdb
            refused.append(
                f"{path} is of another build ({pdb.guid.hex.upper()}{pdb.age:X}, wanted "
                f"{identity.key}) and is not used"
            )
        folders = ", ".join(map(str, self._folders))
        for warning in refused or [f"no PDB {identity} in {folders}"]:
            self._warn(warning)
        return None

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)
