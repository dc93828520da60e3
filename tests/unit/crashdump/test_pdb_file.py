"""Our own reader of PDBs: on PDBs whose every byte is known, on real ones, on damaged ones."""

from __future__ import annotations

import random
import struct
import uuid
from pathlib import Path
from typing import Any

import pefile
import pytest
from symbolic.debuginfo import Archive

from crashdump_analysis.symbols.msf import MAGIC, MsfFile, PdbError
from crashdump_analysis.symbols.pdb_file import PdbFile
from crashdump_analysis.symbols.pdb_names import PdbNames, plain_name
from images.test_kernel.build import BUILT
from tests.support.pdbs import Symbol, msf, pdb, section_header, streams_of, with_unwind_data
from tests.support.sensor import VARIANTS, built

REAL = [
    *((built(one) / "sensor.pdb", built(one) / "sensor.sys") for one in VARIANTS),
    (BUILT / "ntkrnlmp.pdb", BUILT / "ntoskrnl.exe"),
]
real = pytest.mark.parametrize(("path", "image"), REAL, ids=lambda one: str(one)[-24:])


def opened(tmp_path: Path, data: bytes) -> PdbFile:
    path = tmp_path / "a.pdb"
    path.write_bytes(data)
    return PdbFile(path)


def named(file: PdbFile, rva: int) -> tuple[str, int] | None:
    found = PdbNames(file).function(rva)
    return (found.name, found.start) if found else None


@pytest.mark.parametrize("block", [0x200, 0x400, 0x1000, 0x2000])
def test_streams_are_put_together_from_blocks(tmp_path: Path, block: int) -> None:
    contents = [b"", b"a", bytes(range(256)) * 40, b"b" * block, b"c" * (block + 1)]
    path = tmp_path / "a.pdb"
    path.write_bytes(msf(contents, block))
    file = MsfFile(path)
    assert len(file) == len(contents)
    for number, content in enumerate(contents):
        stream = file.stream(number)
        assert stream is not None
        assert stream.read(0, len(content) + 100) == content
        for offset, size in ((0, 7), (block - 3, 6), (len(content) - 2, 9), (len(content), 4)):
            assert (
                stream.read(offset, size) == content[max(offset, 0) : offset + size] or offset < 0
            )
    assert file.stream(len(contents)) is None


def test_identity_is_guid_and_the_age_of_the_dbi_stream(tmp_path: Path) -> None:
    """The image has that age; the other one grows when the PDB is stripped or indexed."""
    guid = bytes(range(16))
    file = opened(tmp_path, pdb(guid, age=3, info_age=7))
    assert (file.guid, file.age) == (uuid.UUID(bytes_le=guid), 3)
    assert file.key == "03020100050407060809" + "0A0B0C0D0E0F" + "3"


def test_without_a_dbi_stream_the_info_streams_age_is_all_there_is(tmp_path: Path) -> None:
    info = struct.pack("<III", 20000404, 0, 5) + b"G" * 16
    file = opened(tmp_path, msf([b"", info]))
    assert (file.age, file.sections, file.pdata) == (5, (), None)
    assert named(file, 0x1000) is None


@real
def test_identity_of_real_ones(path: Path, image: Path) -> None:
    with pefile.PE(str(image)) as parsed:
        (entry,) = [one.entry for one in parsed.DIRECTORY_ENTRY_DEBUG if one.entry]
        size = parsed.OPTIONAL_HEADER.SizeOfImage
        sections = [
            (one.Name.rstrip(b"\0").decode(), one.VirtualAddress, one.Misc_VirtualSize)
            for one in parsed.sections
        ]
    file = PdbFile(path)
    assert file.key == entry.Signature_String.upper()
    assert file.image_size == size
    assert [(one.name, one.rva, one.size) for one in file.sections] == sections


@real
def test_names_are_those_that_symbolic_gives(path: Path, image: Path) -> None:
    names = PdbNames(PdbFile(path))
    cache: Any = Archive.open(str(path)).get_object(arch="x86_64").make_symcache()
    (text,) = [one for one in PdbFile(path).sections if one.name == ".text"]
    seen = set()
    for rva in range(text.rva, text.rva + text.size, 37):
        theirs = cache.lookup(rva)
        ours = names.function(rva)
        assert (ours.name if ours else None) == (
            theirs[-1].symbol.partition("(")[0] if theirs else None
        )
        if ours and theirs:
            assert ours.start == theirs[-1].sym_addr
            assert ours.size is None or rva < ours.start + ours.size
            seen.add(ours.name)
    assert len(seen) > 10


@real
def test_unwind_data_is_the_images(tmp_path: Path, path: Path, image: Path) -> None:
    assert PdbFile(path).pdata is None  # these compilers leave it out
    file = opened(tmp_path, with_unwind_data(path, image))
    assert file.key == PdbFile(path).key
    with pefile.PE(str(image)) as parsed:
        directory = parsed.OPTIONAL_HEADER.DATA_DIRECTORY[3]
        assert file.pdata is not None
        assert file.pdata.rva == directory.VirtualAddress
        assert file.pdata.data == parsed.get_data(directory.VirtualAddress, directory.Size)
        for entry in parsed.DIRECTORY_ENTRY_EXCEPTION:
            one = entry.struct
            assert file.pdata.runtime_function(one.BeginAddress) == (
                *(one.BeginAddress, one.EndAddress, one.UnwindData),
            )
            assert file.read_image(one.UnwindData, 4) == parsed.get_data(one.UnwindData, 4)
    # What was added has changed nothing else.
    text = file.sections[0]
    assert named(file, text.rva + 0x40) == named(PdbFile(path), text.rva + 0x40)


def test_public_symbols(tmp_path: Path) -> None:
    symbols = [
        Symbol(1, 0x10, "First"),
        Symbol(1, 0x80, "?Second@Inner@Outer@@YAHXZ"),
        Symbol(2, 0, "Data"),
    ]
    sections = [section_header(".text", 0x1000, 0x1000), section_header(".data", 0x2000, 0x100)]
    file = opened(tmp_path, pdb(symbols=symbols, sections=sections))
    assert named(file, 0x100F) is None
    assert named(file, 0x1010) == ("First", 0x1010)
    assert named(file, 0x107F) == ("First", 0x1010)
    assert named(file, 0x1080) == ("Outer::Inner::Second", 0x1080)
    assert named(file, 0x1FFF) == ("Outer::Inner::Second", 0x1080)
    assert named(file, 0x2000) == ("Data", 0x2000)
    assert named(file, 0x2100) is None
    found = PdbNames(file).function(0x1011)
    assert found is not None
    assert found.size is None


def test_procedures_end_where_they_end(tmp_path: Path) -> None:
    symbols = [
        Symbol(1, 0x10, "Static", size=0x20),
        Symbol(1, 0x40, "Global", size=0x10),
        Symbol(1, 0x40, "Global"),
        Symbol(1, 0x60, "InAssembly"),
    ]
    file = opened(tmp_path, pdb(symbols=symbols))
    assert named(file, 0x1010) == ("Static", 0x1010)
    assert named(file, 0x102F) == ("Static", 0x1010)
    assert named(file, 0x1030) is None
    assert named(file, 0x104F) == ("Global", 0x1040)
    assert named(file, 0x1050) is None  # the public symbol is the procedure's
    assert named(file, 0x1070) == ("InAssembly", 0x1060)


def test_code_that_was_moved_about_has_symbols_of_where_it_was(tmp_path: Path) -> None:
    """OMAP: Microsoft's kernels of some years. (now, before); before 0: made by the tool."""
    before = [section_header(".text", 0x5000, 0x1000)]
    moved = [(0x1000, 0x5100), (0x1040, 0), (0x1050, 0x5000)]
    symbols = [Symbol(1, 0, "Hot"), Symbol(1, 0x100, "Cold")]
    file = opened(tmp_path, pdb(symbols=symbols, moved=(moved, before)))
    assert named(file, 0x1008) == ("Cold", 0x1000)
    assert named(file, 0x1045) is None
    assert named(file, 0x1054) == ("Hot", 0x1050)
    assert named(file, 0x10) is None


@pytest.mark.parametrize(
    ("mangled", "plain"),
    [
        ("KeBugCheckEx", "KeBugCheckEx"),
        ("?Match@@YAHPEAX@Z", "Match"),
        ("?At@Composition@dxg@@QEAAXXZ", "dxg::Composition::At"),
        ("??0Composition@@QEAA@XZ", "??0Composition@@QEAA@XZ"),  # a constructor
        ("??$Get@H@@YAHXZ", "??$Get@H@@YAHXZ"),  # a template
        ("?Get@?$Box@H@@QEAAHXZ", "?Get@?$Box@H@@QEAAHXZ"),
        ("?f@1@@YAXXZ", "?f@1@@YAXXZ"),  # a name repeated by number
        ("_RTC_Terminate", "_RTC_Terminate"),
    ],
)
def test_simple_mangled_names_are_undone(mangled: str, plain: str) -> None:
    assert plain_name(mangled) == plain


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "is empty"),
        (b"no PDB" * 100, "is no PDB"),
        (MAGIC, "is no PDB"),
        (MAGIC + struct.pack("<6I", 3, 1, 3, 100, 0, 2), "blocks of 3 bytes"),
        (MAGIC + struct.pack("<6I", 512, 1, 3, 1 << 31, 0, 2), "directory"),
        (MAGIC + struct.pack("<6I", 512, 1, 3, 0, 0, 2) + bytes(512), "directory"),
        (MAGIC + struct.pack("<6I", 512, 1, 3, 16, 0, 0xFFFFFFFF) + bytes(512), "directory"),
        (msf([b"", b"short"]), "no info stream"),
        (msf([b"", struct.pack("<III", 19970604, 1, 1) + bytes(16)]), "old kind"),
        (msf([]), "no info stream"),
    ],
)
def test_what_is_no_pdb_is_refused_with_a_reason(tmp_path: Path, data: bytes, told: str) -> None:
    with pytest.raises(PdbError, match=told):
        opened(tmp_path, data)


def test_streams_that_the_file_does_not_hold(tmp_path: Path) -> None:
    data = bytearray(msf([b"", b"x" * 3000]))
    (map_block,) = struct.unpack_from("<I", data, 52)
    (directory,) = struct.unpack_from("<I", data, map_block * 0x400)
    struct.pack_into("<I", data, directory * 0x400 + 12, 0x7FFFFFFF)  # the stream's first block
    path = tmp_path / "a.pdb"
    path.write_bytes(data)
    stream = MsfFile(path).stream(1)
    assert stream is not None
    with pytest.raises(PdbError, match="block 2147483647 is not there"):
        stream.read(0, 10)
    struct.pack_into("<I", data, directory * 0x400 + 8, 0x7FFFFFFF)  # its size
    path.write_bytes(data)
    stream = MsfFile(path).stream(1)
    assert stream is not None
    with pytest.raises(PdbError, match="larger than its blocks"):
        stream.read(0x10000, 10)


def everything(file: PdbFile) -> None:
    """Asks for all there is."""
    names = PdbNames(file)
    for part in (lambda: file.sections, lambda: file.pdata, lambda: file.xdata):
        try:
            part()
        except PdbError:
            continue
    for rva in (0x1000, 0x1010, 0x1044, 0x1065, 0x2FFF):
        try:
            names.function(rva)
        except PdbError:
            continue


def test_any_damage_is_a_pdb_error_or_none(tmp_path: Path) -> None:
    symbols = [Symbol(1, 0x10, "Static", size=0x20), Symbol(1, 0x40, "Public")]
    whole = pdb(symbols=symbols, pdata=(0x3000, bytes(24)), xdata=(0x4000, bytes(8)))
    chance = random.Random(4)
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 3, 20))):
            data[chance.randrange(len(data))] = chance.choice((0, 0xFF, chance.randrange(256)))
        if chance.random() < 0.2:
            del data[chance.randrange(len(data)) :]
        try:
            everything(opened(tmp_path, bytes(data)))
        except PdbError:
            continue


def test_streams_round_trip_through_the_tests_own_writer() -> None:
    contents = [b"", b"a" * 5000, b"", b"b"]
    assert streams_of(msf(contents)) == contents
