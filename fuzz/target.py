"""What must hold for any bytes: a report or a DumpError, soon. Nothing else may happen.

The bytes are a dump, plain or compressed, unless they start as a PE image or a PDB does.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from crashdump_analysis import DumpError, check_dump, triage
from crashdump_analysis.dump import dump_paths
from crashdump_analysis.image import image_in_file, relocations
from crashdump_analysis.image_identity import expected_image
from crashdump_analysis.symbols.msf import PdbError
from crashdump_analysis.symbols.pdb_file import PdbFile
from crashdump_analysis.symbols.pdb_names import PdbNames

SECONDS: Final = 5.0
"""CPU time for one input. Code that reports its coverage takes several times as long as without."""
_ADDRESSES = (0, 0x1000, 0x1010, 0x2345, 0x10000, 0xFFFFFFFF)


class TooSlowError(Exception):
    """An input took longer than it may."""


def check(data: bytes, folder: Path) -> None:
    """Tries the bytes. Raises what must not be raised, or TooSlowError.

    folder: for a file, which every call overwrites.
    """
    path = folder / "input"
    path.write_bytes(data)
    began = time.process_time()
    if data.startswith(b"MZ"):
        _image(path, data)
    elif data.startswith(b"Microsoft C/C++ MSF"):
        _pdb(path)
    else:
        _dump(path)
    seconds = time.process_time() - began
    if seconds > SECONDS:
        raise TooSlowError(f"{len(data)} bytes took {seconds:.1f} s")


def _dump(path: Path) -> None:
    check_dump(path)
    names = [str(path)]
    with suppress(DumpError):
        names = dump_paths(path)[:3]
    for name in names:
        with suppress(DumpError):
            report = triage(name)
            report.to_text()
            report.to_json()


def _image(path: Path, data: bytes) -> None:
    with suppress(DumpError):
        expected_image(path)
    with suppress(DumpError):
        image = image_in_file(data, "input")
        assert image.pdb is None or image.pdb.key
        for address in _ADDRESSES:
            with suppress(LookupError):
                image.runtime_function(address)
        for _ in relocations(image):
            pass


def _pdb(path: Path) -> None:
    with suppress(PdbError):
        pdb = PdbFile(path)
        names = PdbNames(pdb)
        for address in _ADDRESSES:
            pdb.read_image(address, 16)
            if pdb.pdata:
                pdb.pdata.runtime_function(address)
            names.function(address)
