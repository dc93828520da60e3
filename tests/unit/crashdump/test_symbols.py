"""Symbols: where PDBs are looked for, and that a wrong one is never used. The sensor's are real."""

from __future__ import annotations

import shutil
import sys
import uuid
from pathlib import Path

import pefile
import pytest

from crashdump_analysis.image import PdbIdentity, image_in_file
from crashdump_analysis.symbols import SourceFrame, Symbols
from crashdump_analysis.symbols.pdb import bare_name
from tests.support.pdbs import Symbol, pdb
from tests.support.sensor import VARIANTS, built, source_function
from tests.support.symbols import places


def identity(variant: str) -> PdbIdentity:
    path = built(variant) / "sensor.sys"
    found = image_in_file(path.read_bytes(), str(path)).pdb
    assert found is not None
    return found


def code_addresses(variant: str) -> list[int]:
    """Offsets all over the image's code."""
    with pefile.PE(str(built(variant) / "sensor.sys"), fast_load=True) as image:
        (text,) = [one for one in image.sections if one.Name.startswith(b".text")]
        return list(range(text.VirtualAddress, text.VirtualAddress + text.Misc_VirtualSize, 7))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_identity_in_the_image_is_the_debug_directorys(variant: str) -> None:
    with pefile.PE(str(built(variant) / "sensor.sys")) as image:
        (entry,) = [one.entry for one in image.DIRECTORY_ENTRY_DEBUG if one.entry]
    found = identity(variant)
    assert (found.name, found.age) == ("sensor.pdb", entry.Age)
    assert found.key == f"{entry.Signature_String}".upper()


@pytest.mark.parametrize("variant", ["a-inlined", "a-o0"])
def test_functions_files_and_lines(variant: str) -> None:
    symbols, which = Symbols([built(variant)]), identity(variant)
    inlined = 0
    for rva in code_addresses(variant):
        found = symbols.lookup(which, rva)
        if not found or found[0].file is None:
            continue  # between functions, or in assembly
        expected = places(built(variant) / "sensor.pdb", rva)
        assert [(one.function, one.line) for one in found] == [
            (one.function, one.line or None) for one in expected
        ]
        assert [one.inline for one in found] == [True] * (len(found) - 1) + [False]
        assert found[-1].start is not None
        assert found[-1].start <= rva
        inlined += len(found) - 1
    assert symbols.warnings == []
    assert (inlined > 100) == (variant == "a-inlined")


def function_starts() -> dict[int, str]:
    """Offsets of the first bytes of the functions in a-o2, and their names."""
    symbols = Symbols([built("a-o2")])
    which = identity("a-o2")
    return {
        found[-1].start: found[-1].function
        for rva in code_addresses("a-o2")
        if (found := symbols.lookup(which, rva)) and found[-1].start is not None
    }


@pytest.mark.parametrize("layout", ["{name}", "{name}/{key}/{name}", "{name}/{lower}/{name}"])
def test_flat_folders_and_symbol_stores(tmp_path: Path, layout: str) -> None:
    which = identity("a-o2")
    place = layout.format(name=which.name, key=which.key, lower=which.key.lower())
    path = tmp_path / "store" / place
    path.parent.mkdir(parents=True)
    shutil.copy(built("a-o2") / "sensor.pdb", path)
    symbols = Symbols([tmp_path / "store"])
    rva, function = next(iter(function_starts().items()))
    assert symbols.lookup(which, rva)[-1].function == function
    assert symbols.used(which) == path
    assert symbols.warnings == []
    assert source_function(function).file  # one of the sensor's


def test_a_pdb_of_another_build_is_never_used(tmp_path: Path) -> None:
    which = identity("a-o2")
    symbols = Symbols([built("a-shifted")])
    rva = next(iter(function_starts()))
    assert symbols.lookup(which, rva) == []
    assert symbols.used(which) is None
    assert "of another build" in symbols.warnings[0]
    assert which.key in symbols.warnings[0]
    # The right one further down the path is still found.
    symbols = Symbols([built("a-shifted"), built("a-o2")])
    assert symbols.lookup(which, rva)


def test_same_guid_with_another_age_is_another_build() -> None:
    which = identity("a-o2")
    older = PdbIdentity(which.name, which.guid, which.age + 1)
    symbols = Symbols([built("a-o2")])
    assert symbols.lookup(older, next(iter(function_starts()))) == []
    assert "of another build" in symbols.warnings[0]


def test_what_is_missing_is_said_once(tmp_path: Path) -> None:
    which = identity("a-o2")
    symbols = Symbols([tmp_path, tmp_path / "none"])
    for rva in (0x1000, 0x1010):
        assert symbols.lookup(which, rva) == []
    assert len(symbols.warnings) == 2
    assert "none is not there" in symbols.warnings[0]
    assert f"no PDB {which}" in symbols.warnings[1]
    symbols = Symbols()
    assert symbols.lookup(which, 0x1000) == []
    assert "no symbol path" in symbols.warnings[0]


@pytest.mark.parametrize("data", [b"", b"no PDB at all", b"\0" * 0x2000])
def test_a_file_that_is_no_pdb(tmp_path: Path, data: bytes) -> None:
    which = identity("a-o2")
    (tmp_path / which.name).write_bytes(data)
    symbols = Symbols([tmp_path])
    assert symbols.lookup(which, next(iter(function_starts()))) == []
    (warning,) = symbols.warnings
    assert str(tmp_path / which.name) in warning
    # Where the right one lies further down the path, nothing is missing.
    symbols = Symbols([tmp_path, built("a-o2")])
    assert symbols.lookup(which, next(iter(function_starts())))
    assert symbols.warnings == []


def test_a_damaged_pdb(tmp_path: Path) -> None:
    which = identity("a-o2")
    data = (built("a-o2") / "sensor.pdb").read_bytes()
    for size in (0x1000, len(data) // 2, len(data) - 0x1000):
        (tmp_path / which.name).write_bytes(data[:size])
        symbols = Symbols([tmp_path])
        for rva in (0x1000, 0x1500):
            symbols.lookup(which, rva)  # a result or a warning, never an exception


@pytest.mark.parametrize("name", ["../../etc/passwd", "..", "", "a/b.pdb", "a\\b.pdb", "a\0b"])
def test_a_name_out_of_a_dump_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    which = PdbIdentity(name, identity("a-o2").guid, 1)
    assert Symbols([tmp_path]).lookup(which, 0x1000) == []


def test_what_symbolic_cannot_read_our_own_reader_does(tmp_path: Path) -> None:
    """A PDB with functions, and without the streams of types that symbolic wants."""
    path = tmp_path / "victim.pdb"
    path.write_bytes(pdb(b"G" * 16, symbols=[Symbol(1, 0x10, "Fault", size=0x20)]))
    symbols = Symbols([tmp_path])
    found = symbols.pdb(PdbIdentity(path.name, uuid.UUID(bytes_le=b"G" * 16), 1))
    assert found is not None
    assert [one.function for one in symbols.functions(found, 0x1018)] == ["Fault"]
    (warning,) = symbols.warnings
    assert "victim.pdb: symbolic finds" in warning


def test_without_symbolic_functions_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own reader names them; a warning says what is missing and how to get it."""
    expected = function_starts()
    monkeypatch.setitem(sys.modules, "symbolic", None)  # what importing then raises is ImportError
    which = identity("a-o2")
    symbols = Symbols([built("a-o2")])
    for start, function in expected.items():
        for rva in (start, start + 1):
            (found,) = symbols.lookup(which, rva)
            assert found == SourceFrame(function, None, None, start, inline=False)
    (warning,) = symbols.warnings
    assert "pip install 'bugcheck-lab[symbols]'" in warning
    assert "lines" in warning


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("MatchField", "MatchField"),
        ("MatchField(_FIELD*, unsigned long)", "MatchField"),
        ("Composition::At(int) const", "Composition::At"),
        ("Call(void (*)(int), char)", "Call"),
        ("Functor::operator()(int)", "Functor::operator()"),
        ("operator()", "operator()"),
        ("`anonymous namespace'::Read(int)", "`anonymous namespace'::Read"),
        ("(anonymous namespace)::Read(int)", "(anonymous namespace)::Read"),
        (")odd", ")odd"),
        ("odd)", "odd)"),
    ],
)
def test_names_without_parameters(name: str, bare: str) -> None:
    assert bare_name(name) == bare
