"""Where unwind data and names come from: the dump, an image's file, a PDB; and what is labelled."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import pytest

from crashdump_analysis import Report, triage
from crashdump_analysis.symbols import SymbolPath
from crashdump_analysis.triage.command import main
from tests.support.pdbs import Symbol, pdb
from tests.support.synthetic_dump import (
    DRIVER_BASE,
    ENTRY,
    FAULT,
    FAULT_RIP,
    FAULT_RSP,
    KE_BUG_CHECK_EX,
    KI_PAGE_FAULT,
    NT_BASE,
    RETURN_TO_ENTRY,
    RETURN_TO_PAGE_FAULT,
    RETURN_TO_START,
    START_THREAD,
    TIMESTAMP,
    TRAP_FRAME,
    Function,
    SyntheticMachine,
    crashed_machine,
    pe_image,
)
from tests.support.synthetic_triage import triage_dump

RDATA = 0x3000
"""Where pe_image puts unwind data, .pdata and the debug directory: one page."""
TEXT_SIZE = 0x2000
WHOLE_STACK = [
    (NT_BASE + KE_BUG_CHECK_EX.rva, TRAP_FRAME - 8),
    (RETURN_TO_PAGE_FAULT, TRAP_FRAME),
    (FAULT_RIP, FAULT_RSP),
    (RETURN_TO_ENTRY, FAULT_RSP + 0x30),
    (RETURN_TO_START, FAULT_RSP + 0x60),
]
NAMES = ["KeBugCheckEx", "KiPageFault", "Fault", "Entry", "StartThread"]
NT = [KE_BUG_CHECK_EX, KI_PAGE_FAULT, START_THREAD]
DRIVER = [FAULT, ENTRY]


@pytest.fixture(autouse=True)
def _without_symbolic(monkeypatch: pytest.MonkeyPatch) -> None:
    """These PDBs have what our reader wants, and not all that symbolic does."""
    monkeypatch.setitem(sys.modules, "symbolic", None)


def in_memory(functions: list[Function], name: str, guid: bytes) -> bytes:
    return pe_image(functions, pdb=(name, guid, 1))


def as_file(image: bytes) -> bytes:
    """The file of an image that pe_image made: sections follow at 0x400."""
    return image[:0x400] + image[0x1000 : 0x1000 + TEXT_SIZE] + image[RDATA:]


def pdb_of(functions: list[Function], image: bytes, guid: bytes, *, unwind: bool = True) -> bytes:
    table, size = struct.unpack_from("<II", image, 0x40 + 0x18 + 0x70 + 8 * 3)
    (sections,) = struct.unpack_from("<H", image, 0x40 + 6)
    start = 0x40 + 0x18 + 0x70 + 8 * 16
    return pdb(
        guid,
        symbols=[Symbol(1, one.rva - 0x1000, one.name, len(one.code)) for one in functions],
        sections=[image[start + 40 * n : start + 40 * n + 40] for n in range(sections)],
        pdata=(table, image[table : table + size]) if unwind else None,
        xdata=(RDATA, image[RDATA:table]) if unwind else None,
    )


IMAGES = {
    "ntoskrnl.exe": in_memory(NT, "ntkrnlmp.pdb", b"N" * 16),
    "victim.sys": in_memory(DRIVER, "victim.pdb", b"V" * 16),
}
PDBS = {
    "ntkrnlmp.pdb": pdb_of(NT, IMAGES["ntoskrnl.exe"], b"N" * 16),
    "victim.pdb": pdb_of(DRIVER, IMAGES["victim.sys"], b"V" * 16),
}


def put_image(store: Path, name: str, image: bytes) -> None:
    folder = store / name / f"{TIMESTAMP:08X}{len(image):x}"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(as_file(image))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A symbol store with the images."""
    for name, image in IMAGES.items():
        put_image(tmp_path / "store", name, image)
    return tmp_path / "store"


@pytest.fixture
def pdbs(tmp_path: Path) -> Path:
    """A folder with the PDBs."""
    folder = tmp_path / "pdbs"
    folder.mkdir()
    for name, data in PDBS.items():
        (folder / name).write_bytes(data)
    return folder


def small(tmp_path: Path, *blocks: tuple[int, int]) -> Path:
    """A triage dump, which holds the stack, and of images only those pieces."""
    path = tmp_path / "mini.dmp"
    path.write_bytes(triage_dump(crashed_machine(), blocks=blocks))
    return path


def places(report: Report) -> list[tuple[int, int]]:
    return [(one.instruction, one.stack_pointer) for one in report.stack]


def sources(report: Report) -> list[tuple[str | None, bool | None]]:
    return [(one.unwind, one.verified) for one in report.modules]


def test_a_dump_with_everything_asks_for_nothing(tmp_path: Path) -> None:
    """No image is looked for: the path would say if it were."""
    path = SymbolPath([f"srv*{tmp_path}*http://127.0.0.1:9"], offline=True)
    report = triage(crashed_machine().write(tmp_path / "a.dmp"), symbols=path)
    assert places(report) == WHOLE_STACK
    assert sources(report) == [("dump", None), ("dump", None)]
    assert not any(".sys" in one or ".exe" in one for one in report.warnings)


def test_without_any_data_the_rest_is_guessed(tmp_path: Path) -> None:
    report = triage(small(tmp_path))
    assert sources(report) == [(None, None), (None, None)]
    assert any(one.guess for one in report.stack)
    # Module and offset are right all the same.
    assert (report.culprit.module, report.culprit.function) == ("victim", None)
    assert report.context.offset == FAULT_RIP - DRIVER_BASE


def test_images_of_a_store_are_enough_to_walk(tmp_path: Path, store: Path) -> None:
    report = triage(small(tmp_path), symbols=[store])
    assert places(report) == WHOLE_STACK
    assert not any(one.guess for one in report.stack)
    assert sources(report) == [("image", None), ("image", None)]
    assert [one.pdb for one in report.modules] == [
        f"ntkrnlmp.pdb {'4E' * 16}1",
        f"victim.pdb {'56' * 16}1",
    ]
    assert any("no PDB victim.pdb" in one for one in report.warnings)


def test_images_and_pdbs(tmp_path: Path, store: Path, pdbs: Path) -> None:
    report = triage(small(tmp_path), symbols=[store, pdbs])
    assert places(report) == WHOLE_STACK
    assert [one.function for one in report.stack] == NAMES
    assert sources(report) == [("image", True), ("image", True)]
    assert (report.culprit.function, report.culprit.confidence) == ("Fault", "high")
    assert [one.symbols for one in report.modules] == [str(pdbs / name) for name in PDBS]


def identities() -> list[tuple[int, int]]:
    """Pieces of the images that tell which PDBs are theirs: headers, and the RSDS record."""
    pieces = []
    for base, image in ((NT_BASE, IMAGES["ntoskrnl.exe"]), (DRIVER_BASE, IMAGES["victim.sys"])):
        rva, size = struct.unpack_from("<II", image, 0x40 + 0x18 + 0x70 + 8 * 6)
        pieces += [(base, 0x400), (base + rva, size + 0x40)]
    return pieces


def test_pdbs_alone_where_the_dump_says_which(tmp_path: Path, pdbs: Path) -> None:
    report = triage(small(tmp_path, *identities()), symbols=[pdbs])
    assert places(report) == WHOLE_STACK
    assert [one.function for one in report.stack] == NAMES
    assert not any(one.guess for one in report.stack)
    assert sources(report) == [("pdb", True), ("pdb", True)]
    assert report.culprit.confidence == "high"


def test_pdbs_of_another_build_are_never_used(tmp_path: Path, pdbs: Path) -> None:
    (pdbs / "victim.pdb").write_bytes(pdb_of(DRIVER, IMAGES["victim.sys"], b"W" * 16))
    report = triage(small(tmp_path, *identities()), symbols=[pdbs])
    assert sources(report) == [("pdb", True), (None, None)]
    assert any("victim.pdb is of another build" in one for one in report.warnings)
    assert not any(one.function for one in report.stack if one.module == "victim")


def test_pdbs_whose_identity_nobody_knows_are_labelled(tmp_path: Path, pdbs: Path) -> None:
    report = triage(small(tmp_path), symbols=[pdbs])
    # The way from KeBugCheckEx to the fault is no more than likely, so the stack begins there.
    assert places(report) == WHOLE_STACK[2:]
    assert [one.function for one in report.stack] == NAMES[2:]
    assert sources(report) == [("pdb", False), ("pdb", False)]
    assert [one.guess for one in report.stack] == [False, True, True]
    assert report.culprit.function == "Fault"
    assert report.culprit.confidence in ("medium", "low")
    assert report.culprit.reason.endswith("its symbols are unverified")
    assert any("victim.pdb is used for victim.sys unverified" in one for one in report.warnings)
    assert "(unverified)" in report.to_text()


def test_a_pdb_for_an_image_of_another_size_is_not_used(tmp_path: Path, pdbs: Path) -> None:
    larger = pe_image(DRIVER, pdb=("victim.pdb", b"V" * 16, 1), text_size=0x3000)
    (pdbs / "victim.pdb").write_bytes(pdb_of(DRIVER, larger, b"V" * 16))
    report = triage(small(tmp_path), symbols=[pdbs])
    assert sources(report)[1] == (None, None)
    assert not any(one.function for one in report.stack if one.module == "victim")


def test_an_image_decides_which_pdb_it_is(tmp_path: Path, store: Path, pdbs: Path) -> None:
    """With the file at hand the identity is known, and then a PDB must have it."""
    (pdbs / "victim.pdb").write_bytes(pdb_of(DRIVER, IMAGES["victim.sys"], b"W" * 16))
    report = triage(small(tmp_path), symbols=[store, pdbs])
    assert sources(report) == [("image", True), ("image", None)]
    assert places(report) == WHOLE_STACK
    assert any("victim.pdb is of another build" in one for one in report.warnings)


def test_an_image_without_a_pdb_has_none(tmp_path: Path, store: Path, pdbs: Path) -> None:
    """Its debug directory is empty: a PDB of that name is not its."""
    image = pe_image(DRIVER)
    machine = crashed_machine()
    machine.space.write(DRIVER_BASE, image)
    report = triage(machine.write(tmp_path / "a.dmp"), symbols=[pdbs])
    assert sources(report) == [("dump", True), ("dump", None)]
    assert not any(one.function for one in report.stack if one.module == "victim")


def unmap(machine: SyntheticMachine, address: int) -> None:
    """Takes a page out of the machine's memory, as if it had been paged out."""
    table = machine.space.root
    for shift in (39, 30, 21):
        (entry,) = struct.unpack_from(
            "<Q", machine.space.pages[table], (address >> shift & 511) * 8
        )
        table = entry >> 12
    struct.pack_into("<Q", machine.space.pages[table], (address >> 12 & 511) * 8, 0)


def paged_out(tmp_path: Path) -> Path:
    """A kernel dump without the pages that have the driver's unwind data."""
    machine = crashed_machine()
    unmap(machine, DRIVER_BASE + RDATA)
    return machine.write(tmp_path / "kernel.dmp")


def test_unwind_data_that_was_paged_out(tmp_path: Path, store: Path) -> None:
    report = triage(paged_out(tmp_path))
    assert any(one.guess for one in report.stack)
    assert any("no unwind data of victim.sys" in one for one in report.warnings)
    report = triage(paged_out(tmp_path), symbols=[store])
    assert places(report) == WHOLE_STACK
    assert sources(report) == [("dump", None), ("image", None)]


def test_a_pdb_for_an_image_whose_debug_record_was_paged_out(tmp_path: Path, pdbs: Path) -> None:
    report = triage(paged_out(tmp_path), symbols=[pdbs])
    assert places(report) == WHOLE_STACK
    assert sources(report) == [("dump", True), ("pdb", False)]


def test_a_pdb_without_unwind_data_gives_names_only(tmp_path: Path, pdbs: Path) -> None:
    data = pdb_of(DRIVER, IMAGES["victim.sys"], b"V" * 16, unwind=False)
    (pdbs / "victim.pdb").write_bytes(data)
    report = triage(small(tmp_path, *identities()), symbols=[pdbs])
    assert sources(report)[1] == (None, True)
    assert report.culprit.function == "Fault"


@pytest.mark.parametrize("version", [0, 7])
def test_unwind_data_of_an_unknown_form_is_left_out(
    tmp_path: Path, pdbs: Path, version: int
) -> None:
    whole = PDBS["victim.pdb"]
    start = whole.index(struct.pack("<III", 1, 0x20, 12 * len(DRIVER)))
    (pdbs / "victim.pdb").write_bytes(
        whole[:start] + struct.pack("<I", version) + whole[start + 4 :]
    )
    report = triage(small(tmp_path, *identities()), symbols=[pdbs])
    assert sources(report)[1] == (None, True)
    assert any("in a form that is not known" in one for one in report.warnings)


def test_code_out_of_an_image_says_what_follows_a_call(tmp_path: Path, store: Path) -> None:
    """A triage dump has no code: a word on the stack is then held against the image's."""
    machine = crashed_machine()
    without = [FAULT, Function(ENTRY.name, ENTRY.rva, ENTRY.code)]
    image = in_memory(without, "victim.pdb", b"V" * 16)
    machine.space.write(DRIVER_BASE, image)
    other = tmp_path / "other"
    put_image(other, "victim.sys", image)
    put_image(other, "ntoskrnl.exe", IMAGES["ntoskrnl.exe"])
    # Behind no call: they are in code, and would do if nobody knew the code.
    machine.write_u64(FAULT_RSP + 0x30, DRIVER_BASE + ENTRY.rva + 5, NT_BASE + 0x1210)
    path = tmp_path / "mini.dmp"
    path.write_bytes(triage_dump(machine))
    report = triage(path, symbols=[other])
    assert places(report)[3] == (RETURN_TO_ENTRY, FAULT_RSP + 0x30)
    assert DRIVER_BASE + ENTRY.rva + 5 not in [one.instruction for one in report.stack[4:]]
    assert NT_BASE + 0x1210 not in [one.instruction for one in report.stack]


def test_one_path_serves_many_dumps(tmp_path: Path, store: Path, pdbs: Path) -> None:
    path = SymbolPath([store, pdbs])
    reports = [triage(small(tmp_path), symbols=path) for _ in range(2)]
    assert reports[0] == reports[1]


def test_the_command_looks_along_the_environments_path(
    tmp_path: Path,
    store: Path,
    pdbs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And where --symbols points before that."""
    dump = str(small(tmp_path))
    monkeypatch.delenv("_NT_ALT_SYMBOL_PATH", raising=False)
    monkeypatch.setenv("_NT_SYMBOL_PATH", f"srv*{store};{pdbs}")
    assert main([dump, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [one["function"] for one in report["stack"]] == NAMES
    assert [one["unwind"] for one in report["modules"]] == ["image", "image"]
    first = tmp_path / "first"
    first.mkdir()
    (first / "victim.pdb").write_bytes(PDBS["victim.pdb"])
    assert main([dump, "--json", "--symbols", str(first)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [one["symbols"] for one in report["modules"]] == [
        str(pdbs / "ntkrnlmp.pdb"),
        str(first / "victim.pdb"),
    ]
