"""Where a PDB may lie below a folder: flat, or as a symbol store keeps it.

Source of the layout: Microsoft's "Using a Symbol Server": name/GUIDAGE/name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from crashdump_analysis.image import PdbIdentity


def candidates(folders: Iterable[Path], identity: PdbIdentity) -> Iterator[Path]:
    """Files that could be the PDB, the likeliest first. The name comes out of the dump."""
    name = identity.name
    if not name or name in (".", "..") or not name.isprintable() or "/" in name or "\\" in name:
        return
    names = dict.fromkeys((name, name.lower()))  # Windows' names differ in case
    keys = dict.fromkeys((identity.key, identity.key.lower()))
    for folder in folders:
        stored = [Path(one, key, one) for one in names for key in keys]
        for path in (*stored, *map(Path, names)):
            if (folder / path).is_file():
                yield folder / path
