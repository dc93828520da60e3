"""Symbol paths: every form in which Windows' debuggers read one, stores, pointers, caches."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crashdump_analysis.image import PdbIdentity, image_in_file
from crashdump_analysis.modules import Module
from crashdump_analysis.symbols import SymbolPath, Symbols, environment_symbol_path
from crashdump_analysis.symbols.path import MICROSOFTS_SERVER, default_cache
from crashdump_analysis.symbols.server import Server
from crashdump_analysis.symbols.store import Folder, Store, Wanted, pointed_at
from tests.support.sensor import built

PDB = built("a-o2") / "sensor.pdb"
SYS = built("a-o2") / "sensor.sys"


def identity() -> PdbIdentity:
    found = image_in_file(SYS.read_bytes(), str(SYS)).pdb
    assert found is not None
    return found


def sensor_module(name: str = "sensor", image: str = "sensor.sys") -> tuple[Module, int]:
    """The sensor as a dump's list of modules has it, and its timestamp."""
    parsed = image_in_file(SYS.read_bytes(), str(SYS))
    base = 0xFFFFF80020000000
    return (
        Module(name, image, "", base, parsed.size, base, 0, parsed.timestamp),
        parsed.timestamp,
    )


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default cache of these tests."""
    monkeypatch.setenv("DBGHELP_HOMEDIR", str(tmp_path / "home"))


def described(text: str) -> list[list[tuple[str, str]]]:
    """The chains of a symbol path: kind and place of each element."""
    return [
        [(type(one).__name__, str(one)) for one in chain] for chain in SymbolPath([text]).chains
    ]


HOME = "~"  # stands for the default cache


@pytest.mark.parametrize(
    ("text", "chains"),
    [
        ("/a", [[("Folder", "/a")]]),
        ("/a;/b", [[("Folder", "/a")], [("Folder", "/b")]]),
        (" /a ;; /b;", [[("Folder", "/a")], [("Folder", "/b")]]),
        ('"/a b";/c:d', [[("Folder", "/a b")], [("Folder", "/c:d")]]),
        ("srv*/a", [[("Store", "/a")]]),
        ("SRV*/a*/b", [[("Store", "/a"), ("Store", "/b")]]),
        ("symsrv*symsrv.dll*/a*/b", [[("Store", "/a"), ("Store", "/b")]]),
        ("srv**/b", [[("Store", HOME), ("Store", "/b")]]),
        ("srv*/a*", [[("Store", "/a"), ("Store", HOME)]]),
        ("srv*/a*https://s/x/", [[("Store", "/a"), ("Server", "https://s/x")]]),
        ("srv*https://s/x", [[("Store", HOME), ("Server", "https://s/x")]]),
        ("srv*", [[("Store", HOME), ("Server", MICROSOFTS_SERVER)]]),
        (
            "srv*/a*/b*HTTP://s",
            [[("Store", "/a"), ("Store", "/b"), ("Server", "HTTP://s")]],
        ),
        (
            "srv*/a*http://s;srv*/b*http://t",
            [
                [("Store", "/a"), ("Server", "http://s")],
                [("Store", "/b"), ("Server", "http://t")],
            ],
        ),
        (
            "/n;cache*/c;/f;srv*http://s",
            [
                [("Folder", "/n")],
                [("Store", "/c"), ("Folder", "/f")],
                [("Store", "/c"), ("Server", "http://s")],
            ],
        ),
        ("cache*;/f", [[("Store", HOME), ("Folder", "/f")]]),
        ("cache*/c;cache*/d;/f", [[("Store", "/d"), ("Folder", "/f")]]),
        ("cache*/c;srv*/a*/b", [[("Store", "/c"), ("Store", "/a"), ("Store", "/b")]]),
    ],
)
def test_forms_of_a_symbol_path(text: str, chains: list[list[tuple[str, str]]]) -> None:
    expected = [
        [(kind, str(default_cache()) if place == HOME else place) for kind, place in chain]
        for chain in chains
    ]
    assert described(text) == expected


@pytest.mark.parametrize("text", ["symsrv*other.dll*/a", "sevr*/a", "*", "a*b"])
def test_what_is_not_understood_is_said(text: str) -> None:
    path = SymbolPath([text])
    assert path.chains == []
    assert "is not understood" in path.problems[0]


def test_an_address_with_a_password_is_not_used_and_not_printed() -> None:
    path = SymbolPath(["srv*https://someone:hunter2@symbols.example/store"])
    assert str(path.chains) + str(path) == "[[]]"
    (problem,) = path.problems
    assert "symbols.example" in problem
    assert "hunter2" not in problem
    assert "someone" not in problem


@pytest.mark.skipif(sys.platform == "win32", reason="these are paths there")
@pytest.mark.parametrize("place", [r"C:\Symbols", r"\\server\share"])
def test_paths_of_windows_elsewhere_make_no_folders(place: str, tmp_path: Path) -> None:
    path = SymbolPath([f"srv*{place}*http://s"])
    assert [str(one) for one in path.chains[0]] == [str(default_cache()), "http://s"]
    assert "is a path of Windows" in path.problems[0]
    # But a folder may be called so here.
    odd = tmp_path / "C:\\Symbols"
    odd.mkdir()
    shutil.copy(PDB, odd / "sensor.pdb")
    assert Symbols([str(odd)]).pdb(identity()) is not None


def test_the_environments_path() -> None:
    assert environment_symbol_path({}) == []
    assert environment_symbol_path({"_NT_SYMBOL_PATH": " "}) == []
    assert environment_symbol_path({"_NT_SYMBOL_PATH": " /a "}) == ["/a"]
    both = {"_NT_SYMBOL_PATH": "/a", "_NT_ALT_SYMBOL_PATH": "srv*/b"}
    assert environment_symbol_path(both) == ["srv*/b;/a"]


def test_the_default_cache() -> None:
    assert default_cache({"DBGHELP_HOMEDIR": "/h"}) == Path("/h/sym")
    if sys.platform != "win32":
        assert default_cache({"XDG_CACHE_HOME": "/x"}) == Path("/x/bugcheck-lab/symbols")


def put(root: Path, place: str, source: Path = PDB) -> Path:
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, path)
    return path


@pytest.mark.parametrize(
    "place",
    [
        "{name}",
        "symbols/sys/{name}",
        "sys/{name}",
        "{name}/{key}/{name}",
        "{name}/{lower}/{name}",
    ],
)
def test_places_in_a_folder(tmp_path: Path, place: str) -> None:
    which = identity()
    text = place.format(name=which.name, key=which.key, lower=which.key.lower())
    expected = put(tmp_path / "f", text)
    symbols = Symbols([tmp_path / "f"])
    found = symbols.pdb(which)
    assert found is not None
    assert found.path == expected
    assert symbols.warnings == []


def test_a_store_of_two_levels(tmp_path: Path) -> None:
    which = identity()
    store, cache = tmp_path / "s", tmp_path / "c"
    put(store, f"se/sensor.pdb/{which.key}/sensor.pdb")
    assert Symbols([f"srv*{store}"]).pdb(which) is None  # nothing says that it has two
    (store / "index2.txt").touch()
    assert Symbols([f"srv*{store}"]).pdb(which) is not None
    cache.mkdir()
    (cache / "index2.txt").touch()
    found = Symbols([f"srv*{cache}*{store}"]).pdb(which)
    assert found is not None
    assert found.path == cache / "se" / "sensor.pdb" / which.key / "sensor.pdb"


def test_a_store_is_not_looked_through_as_a_folder(tmp_path: Path) -> None:
    put(tmp_path, "sensor.pdb")
    assert Symbols([f"srv*{tmp_path}"]).pdb(identity()) is None
    assert Symbols([tmp_path]).pdb(identity()) is not None


def test_a_chain_of_stores_is_filled(tmp_path: Path) -> None:
    which = identity()
    near, middle, far = (tmp_path / one for one in ("near", "middle", "far"))
    put(far, f"sensor.pdb/{which.key}/sensor.pdb")
    found = Symbols([f"srv*{near}*{middle}*{far}"]).pdb(which)
    assert found is not None
    assert found.path == near / "sensor.pdb" / which.key / "sensor.pdb"
    for store in (near, middle):
        copy = store / "sensor.pdb" / which.key / "sensor.pdb"
        assert copy.read_bytes() == PDB.read_bytes()
        assert [one.name for one in copy.parent.iterdir()] == ["sensor.pdb"]  # no parts left
        if sys.platform != "win32":
            assert stat.S_IMODE(copy.stat().st_mode) == 0o644
    # What is near is taken, though the far one is gone.
    shutil.rmtree(far)
    assert Symbols([f"srv*{near}*{middle}*{far}"]).pdb(which) is not None


def test_a_cache_for_folders(tmp_path: Path) -> None:
    which = identity()
    put(tmp_path / "before", "other.pdb")
    put(tmp_path / "folder", "sensor.pdb")
    path = f"{tmp_path / 'before'};cache*{tmp_path / 'cache'};{tmp_path / 'folder'}"
    found = Symbols([path]).pdb(which)
    assert found is not None
    assert found.path == tmp_path / "cache" / "sensor.pdb" / which.key / "sensor.pdb"
    assert [one.name for one in (tmp_path / "before").iterdir()] == ["other.pdb"]


def test_the_first_place_that_has_it_is_taken(tmp_path: Path) -> None:
    which = identity()
    for one in ("a", "b"):
        put(tmp_path / one, "sensor.pdb")
    found = Symbols([tmp_path / "a", f"{tmp_path / 'b'}"]).pdb(which)
    assert found is not None
    assert found.path == tmp_path / "a" / "sensor.pdb"


def test_pointers(tmp_path: Path) -> None:
    which = identity()
    real = put(tmp_path / "elsewhere", "renamed.bin")
    folder = tmp_path / "s" / "sensor.pdb" / which.key
    folder.mkdir(parents=True)
    pointer = folder / "file.ptr"
    for text in (f"PATH:{real}\r\n", f"{real}"):
        pointer.write_text(text)
        found = Symbols([f"srv*{tmp_path / 's'}"]).pdb(which)
        assert found is not None
        assert found.path == real
    pointer.write_text("MSG: ask the build team")
    symbols = Symbols([f"srv*{tmp_path / 's'}"])
    assert symbols.pdb(which) is None
    assert "says: ask the build team" in symbols.warnings[0]
    pointer.write_text(f"PATH:{built('a-shifted') / 'sensor.pdb'}")
    symbols = Symbols([f"srv*{tmp_path / 's'}"])
    assert symbols.pdb(which) is None
    assert "of another build" in symbols.warnings[0]


def test_what_a_pointer_says() -> None:
    assert pointed_at("PATH:\\\\server\\share\\a.pdb\r\n") == ("\\\\server\\share\\a.pdb", "")
    assert pointed_at("C:\\symbols\\a.pdb\0\0") == ("C:\\symbols\\a.pdb", "")
    assert pointed_at("MSG: none") == ("", "none")
    assert pointed_at("") == ("", "")


def test_a_compressed_file_is_named(tmp_path: Path) -> None:
    which = identity()
    folder = tmp_path / "sensor.pdb" / which.key
    folder.mkdir(parents=True)
    (folder / "sensor.pd_").write_bytes(b"MSCF")
    symbols = Symbols([f"srv*{tmp_path}"])
    assert symbols.pdb(which) is None
    assert "sensor.pd_ is compressed (a cabinet)" in symbols.warnings[0]


def test_a_file_in_a_cache_that_is_another_is_replaced(tmp_path: Path) -> None:
    which = identity()
    cache, far = tmp_path / "c", tmp_path / "s"
    place = f"sensor.pdb/{which.key}/sensor.pdb"
    put(far, place)
    for other in (b"", b"half a PDB", (built("a-shifted") / "sensor.pdb").read_bytes()):
        put(cache, place).write_bytes(other)
        found = Symbols([f"srv*{cache}*{far}"]).pdb(which)
        assert found is not None
        assert (cache / place).read_bytes() == PDB.read_bytes()


# Images


@pytest.mark.parametrize("key", ["{0:08X}{1:x}", "{0:08x}{1:x}", "{0:08X}{1:X}"])
def test_images_in_a_store(tmp_path: Path, key: str) -> None:
    module, timestamp = sensor_module(image="Sensor.sys")
    put(tmp_path, f"sensor.sys/{key.format(timestamp, module.size)}/sensor.sys", SYS)
    image = Symbols([f"srv*{tmp_path}"]).image(module, timestamp)
    assert image is not None
    assert (image.timestamp, image.size) == (timestamp, module.size)


def test_an_image_of_another_build_is_never_used(tmp_path: Path) -> None:
    module, timestamp = sensor_module()
    put(tmp_path, "sensor.sys", built("a-shifted") / "sensor.sys")
    symbols = Symbols([tmp_path])
    assert symbols.image(module, timestamp) is None
    assert "of another build" in symbols.warnings[0]
    put(tmp_path, "sensor.sys").write_bytes(b"MZ no image".ljust(0x200))
    symbols = Symbols([tmp_path])
    assert symbols.image(module, timestamp) is None
    assert "expected a PE header" in symbols.warnings[0]
    put(tmp_path, "sensor.sys").write_bytes(b"")
    assert Symbols([tmp_path]).image(module, timestamp) is None


def test_without_a_timestamp_no_image_is_looked_for(tmp_path: Path) -> None:
    module, timestamp = sensor_module()
    put(tmp_path, "sensor.sys", SYS)
    assert Symbols([tmp_path]).image(module, None) is None
    assert Symbols([tmp_path]).image(module, timestamp) is not None


def test_a_file_that_is_gone_again(tmp_path: Path) -> None:
    module, timestamp = sensor_module()
    image, path = put(tmp_path, "sensor.sys", SYS), SymbolPath([tmp_path])
    pdb = put(tmp_path, "sensor.pdb")
    assert Symbols(path).image(module, timestamp) is not None
    assert Symbols(path).pdb(identity()) is not None
    image.unlink()
    pdb.unlink()
    symbols = Symbols(path)
    assert symbols.image(module, timestamp) is None
    assert symbols.pdb(identity()) is None
    assert [str(tmp_path) in one for one in symbols.warnings] == [True, True]


@pytest.mark.parametrize("name", ["ntoskrnl.exe", "ntkrnlmp.exe"])
def test_the_kernels_two_names(tmp_path: Path, name: str) -> None:
    module, timestamp = sensor_module("nt", "ntoskrnl.exe")
    put(tmp_path, name, SYS)
    assert Symbols([tmp_path]).image(module, timestamp) is not None


def test_an_unverified_pdb_needs_name_and_size(tmp_path: Path) -> None:
    module, _ = sensor_module()
    symbols = Symbols([tmp_path])
    assert symbols.unverified_pdb(module) is None
    assert symbols.warnings == []
    put(tmp_path, "sensor.pdb", built("a-shifted") / "sensor.pdb")  # of the same size
    found = symbols.unverified_pdb(module)
    assert found is not None
    assert "used for sensor.sys unverified" in symbols.warnings[0]
    larger = Module(**{**module.__dict__, "size": module.size + 0x1000})
    assert Symbols([tmp_path]).unverified_pdb(larger) is None
    # One in a store has an identity that nobody asked for.
    store = tmp_path / "store"
    put(store, f"sensor.pdb/{identity().key}/sensor.pdb")
    assert Symbols([f"srv*{store}", store]).unverified_pdb(module) is None


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "..", "", "a/b", "a\\b", "a\0b", "c:x", "a*", "x" * 300, "\u4e00" * 250],
)
def test_names_out_of_a_dump_lead_nowhere_else(tmp_path: Path, name: str) -> None:
    asked: list[Path] = []

    def check(path: Path) -> str:
        asked.append(path)
        return ""

    path = SymbolPath([tmp_path, f"srv*{tmp_path}*http://localhost:9"])
    assert path.find(Wanted(name, "0", check)) == (None, [])
    assert asked == []


def test_long_names_and_paths_are_nothing_special(tmp_path: Path) -> None:
    """Longer than file systems take: nothing is there, and nothing is raised."""
    module, timestamp = sensor_module(image="\u4e00" * 250 + ".sys")
    for element in (str(tmp_path), "x" * 5000, f"srv*{'y' * 5000}", "a\0b"):
        symbols = Symbols([element])
        assert symbols.image(module, timestamp) is None
        assert symbols.unverified_pdb(module) is None
        assert symbols.pdb(identity()) is None


# Caches that cannot be written


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that cannot be written to: root may, so that it is a file there."""
    path = tmp_path / "read-only"
    if os.name == "nt" or os.geteuid() == 0:
        path.write_text("in the way")
        yield path
        return
    path.mkdir()
    path.chmod(0o500)
    yield path
    path.chmod(0o700)


def test_a_cache_that_cannot_be_written_is_left_out(tmp_path: Path, read_only: Path) -> None:
    which = identity()
    far = tmp_path / "far"
    place = put(far, f"sensor.pdb/{which.key}/sensor.pdb")
    path = SymbolPath([f"srv*{read_only}*{far}"])
    symbols = Symbols(path)
    found = symbols.pdb(which)
    assert found is not None
    assert found.path == place
    assert f"cannot be kept in {read_only}" in symbols.warnings[0]


def test_kinds_of_places() -> None:
    """What a chain is made of: only stores are written to."""
    (chain,) = SymbolPath(["cache*/c;/f"]).chains
    assert [type(one) for one in chain] == [Store, Folder]
    (chain,) = SymbolPath(["srv*http://s"]).chains
    assert [type(one) for one in chain] == [Store, Server]
