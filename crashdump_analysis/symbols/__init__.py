"""PDBs and images that belong to what is in a dump, looked for along a symbol path."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable
from os import PathLike
from os.path import isfile
from pathlib import Path

from crashdump_analysis.errors import DumpError
from crashdump_analysis.image import Image, PdbIdentity, image_in_file
from crashdump_analysis.modules import Module
from crashdump_analysis.symbols.path import SymbolPath, environment_symbol_path
from crashdump_analysis.symbols.pdb import Pdb, PdbError, SourceFrame, open_pdb, without_symbolic
from crashdump_analysis.symbols.store import Wanted

__all__ = ["Pdb", "PdbError", "SourceFrame", "SymbolPath", "Symbols", "environment_symbol_path"]

# What the kernel's files are called: where it was loaded from, and in symbol stores.
_KERNELS = ("ntoskrnl.exe", "ntkrnlmp.exe")


class Symbols:
    """Symbols for one dump. What does not belong to an image in it is never used.

    The path may be made once for many dumps. Files are looked for when they are first asked for.
    """

    def __init__(self, path: SymbolPath | Iterable[str | PathLike[str]] = ()) -> None:
        self._path = path if isinstance(path, SymbolPath) else SymbolPath(path)
        self._used: dict[PdbIdentity, Pdb | None] = {}
        self.warnings: list[str] = []
        """Why symbols are missing, in words; each thing once."""
        for problem in self._path.problems:
            self.warn(problem)

    def pdb(self, identity: PdbIdentity) -> Pdb | None:
        """The PDB of that name, GUID and age; None, with a warning, where there is none."""
        if identity not in self._used:
            self._used[identity] = self._pdb(identity)
        return self._used[identity]

    def _pdb(self, identity: PdbIdentity) -> Pdb | None:
        if not self._path:
            self.warn("no symbol path was given: functions, files and lines are missing")
            return None

        def check(path: Path) -> str:
            try:
                pdb = open_pdb(path)
            except PdbError as error:
                return str(error)
            if (pdb.guid, pdb.age) == (identity.guid, identity.age):
                return ""
            return (
                f"{path} is of another build ({pdb.file.key}, wanted {identity.key}) and is not "
                "used"
            )

        path, problems = self._path.find(Wanted(identity.name, identity.key, check))
        if path is None and not problems:
            problems = [f"no PDB {identity} in {self._path}"]
        for problem in problems:
            self.warn(problem)
        return self._open(path) if path else None

    def _open(self, path: Path) -> Pdb | None:
        try:
            pdb = open_pdb(path)
        except PdbError as error:
            self.warn(str(error))
            return None
        if without_symbolic():
            self.warn(
                "files, lines and inlined functions are missing: reading them needs the package "
                "symbolic: pip install 'bugcheck-lab[symbols]'"
            )
        return pdb

    def unverified_pdb(self, module: Module) -> Pdb | None:
        """A PDB in a folder of the path that may be a module's, of which only the size is known.

        It lies there under the module's name, and its section table makes an image of that size.
        """
        names = _KERNELS if module.name == "nt" else (module.image,)
        for folder in self._path.folders:
            for name in dict.fromkeys((*names, *map(str.lower, names))):
                path = folder / f"{Path(name).stem}.pdb"
                if not Wanted(path.name, "", str).allowed or not isfile(path):
                    continue
                try:
                    pdb = open_pdb(path)
                    if pdb.file.image_size == module.size:
                        self.warn(
                            f"{path} is used for {module.image} unverified: its name and the "
                            "image's size are right, but nothing says that it is of this build"
                        )
                        return self._open(path)
                except PdbError as error:
                    self.warn(str(error))
        return None

    def image(self, module: Module, timestamp: int | None) -> Image | None:
        """The file of a loaded image, by name, timestamp and size; None where there is none."""
        if not self._path or timestamp is None:
            return None
        key = f"{timestamp:08X}{module.size:x}"

        def check(path: Path) -> str:
            try:
                image = open_image(path)
            except DumpError as error:
                return str(error)
            if (image.timestamp, image.size) == (timestamp, module.size):
                return ""
            return f"{path} is of another build ({image.key}, wanted {key}) and is not used"

        for name in _KERNELS if module.name == "nt" else (module.image,):
            path, problems = self._path.find(Wanted(name, key, check))
            for problem in problems:
                self.warn(problem)
            if path is not None:
                return self._open_image(path)
        return None

    def _open_image(self, path: Path) -> Image | None:
        try:
            return open_image(path)
        except DumpError as error:  # it was there when it was found
            self.warn(str(error))
            return None

    def lookup(self, identity: PdbIdentity, rva: int) -> list[SourceFrame]:
        """The functions at an offset from an image's base, inlined ones before their callers.

        Empty where there is no PDB or it knows no function there.
        """
        pdb = self.pdb(identity)
        return self.functions(pdb, rva) if pdb else []

    def functions(
        self, pdb: Pdb, rva: int, function_start: Callable[[], int | None] = lambda: None
    ) -> list[SourceFrame]:
        """As `lookup`, in an open PDB. function_start: as for `Pdb.lookup`."""
        try:
            found = pdb.lookup(rva, function_start)
        except PdbError as error:
            self.warn(str(error))
            return []
        if pdb.trouble:
            self.warn(pdb.trouble)
        return found

    def used(self, identity: PdbIdentity) -> Path | None:
        """The PDB that lookups in an image were answered from."""
        pdb = self._used.get(identity)
        return pdb.path if pdb else None

    def warn(self, text: str) -> None:
        """Keeps a warning, once."""
        if text not in self.warnings:
            self.warnings.append(text)


def open_image(path: Path) -> Image:
    """An image file, mapped. Raises DumpError where it is no 64-bit image."""
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: it is empty
        raise DumpError(str(path), expected="an image file", found=str(error)) from error
    return image_in_file(data, str(path))
