"""The report: its schema, its text, the command line; and images proven to be the file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jsonschema
import pefile
import pytest

from crashdump_analysis import DumpError, triage
from crashdump_analysis.image_identity import expected_image, image_identity, loaded_image
from crashdump_analysis.memory import PagedMemory
from crashdump_analysis.modules import Module
from crashdump_analysis.report import SCHEMA, Processor
from crashdump_analysis.triage import main
from images.test_kernel.build import BUILT
from tests.support.sensor import built
from tests.support.synthetic_dump import (
    BITMAP_FULL,
    BITMAP_KERNEL,
    DRIVER_BASE,
    FAULT_RIP,
    FULL,
    PAGE,
    STACK,
    AddressSpace,
    SyntheticMachine,
    crashed_machine,
)


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    parsed = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(parsed)
    return jsonschema.Draft202012Validator(parsed)


@pytest.mark.parametrize("dump_type", [FULL, BITMAP_FULL, BITMAP_KERNEL])
def test_report_of_a_known_crash(
    tmp_path: Path, dump_type: int, schema: jsonschema.Draft202012Validator
) -> None:
    path = crashed_machine().write(tmp_path / "a.dmp", dump_type)
    report = triage(path)
    data = json.loads(report.to_json())
    schema.validate(data)
    assert data == report.to_dict()
    assert data["dump"]["type"] == dump_type
    assert data["dump"]["time"] == "2024-07-19T04:09:00+00:00"
    assert data["dump"]["uptime"] == 90
    assert data["bug_check"]["code"] == 0xD1
    assert [one["value"] for one in data["bug_check"]["parameters"]][3] == FAULT_RIP
    assert [one["name"] for one in data["modules"]] == ["nt", "victim"]
    assert data["modules"][1]["timestamp"] == 0x669A0000
    assert data["modules"][1]["pdb"] == f"victim.pdb {'56' * 16}1"
    assert data["context"]["registers"]["rcx"] == 0x1234
    assert data["context"]["frame"] == 2
    assert data["stack"][2]["trapped"]
    assert not data["stack"][0]["trapped"]
    assert data["culprit"]["module"] == "victim"
    assert data["culprit"]["confidence"] == "high"
    assert data["bucket"]["id"] == "AV_victim!unknown_function"
    assert data["warnings"] == ["no symbol path was given: functions, files and lines are missing"]


@pytest.mark.parametrize("code", [0x80, 0xDEADBEE, 0x50, 0x161])
def test_every_kind_of_report_fits_the_schema(
    tmp_path: Path, code: int, schema: jsonschema.Draft202012Validator
) -> None:
    schema.validate(triage(crashed_machine(code).write(tmp_path / "a.dmp")).to_dict())


def test_an_empty_machine_fits_the_schema(
    tmp_path: Path, schema: jsonschema.Draft202012Validator
) -> None:
    report = triage(SyntheticMachine().write(tmp_path / "a.dmp"))
    schema.validate(report.to_dict())
    assert report.modules == ()
    assert report.culprit.module is None
    assert report.to_text()


def test_text_is_in_the_order_that_is_read(tmp_path: Path) -> None:
    text = triage(crashed_machine().write(tmp_path / "a.dmp")).to_text()
    order = ["DRIVER_IRQL", "CULPRIT", "BUCKET", "FAMILY", "REGISTERS", "STACK", "MODULES", "DUMP"]
    places = [text.index(word) for word in order]
    assert places == sorted(places)
    assert "instruction fffff80020001010  victim+0x1010" in text
    assert ">  2 ffffab0000016000 fffff80020001010 victim+0x1010 (trap)" in text
    assert "crashed 2024-07-19T04:09:00+00:00, up 0:01:30" in text


def test_a_cut_dump_is_reported_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "cut.dmp"
    data = crashed_machine().dump()
    path.write_bytes(data[: len(data) // 2])
    report = triage(path)
    assert any(one.startswith("the dump is cut") for one in report.warnings)
    assert report.bug_check.code == 0xD1


def test_an_encoded_debugger_block_is_decoded(tmp_path: Path) -> None:
    machine = crashed_machine()
    machine.encoding = (0x1122334455667788, 0x99AABBCCDDEEFF00, 0xFFFFF80312345670)
    report = triage(machine.write(tmp_path / "a.dmp"))
    assert report.machine.debugger_data == "encoded"
    assert report.machine.build_lab == "19041.1.amd64fre.synthetic"
    assert report.processor.process_name == "System"
    assert not any("KDDEBUGGER_DATA64" in one for one in report.warnings)


def test_a_debugger_block_that_cannot_be_decoded_is_a_warning(tmp_path: Path) -> None:
    machine = crashed_machine()
    machine.encoding = (1, 2, 3)
    data = bytearray(machine.dump())
    data[0x28:0x30] = STACK.to_bytes(8, "little")  # the header's PsActiveProcessHead is another
    path = tmp_path / "a.dmp"
    path.write_bytes(data)
    report = triage(path)
    assert any("encoded" in one for one in report.warnings)
    assert report.machine.debugger_data is None
    assert report.processor == Processor()
    assert report.modules[0].name == "nt"  # the first of the list is the kernel
    assert report.culprit.module == "victim"


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = crashed_machine().write(tmp_path / "good.dmp")
    bad = tmp_path / "bad.dmp"
    bad.write_bytes(b"MDMP".ljust(0x3000))
    assert main([str(good)]) == 0
    assert capsys.readouterr().out.startswith("DRIVER_IRQL_NOT_LESS_OR_EQUAL")
    assert main([str(bad), str(good), str(good), "--json", "--symbols", str(tmp_path)]) == 3
    printed = capsys.readouterr()
    assert "user-mode minidump" in printed.err
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert [one["culprit"]["module"] for one in lines] == ["victim", "victim"]
    assert main([str(tmp_path / "none.dmp")]) == 3
    assert "nothing there" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_text_can_be_printed_anywhere_and_steers_no_terminal(tmp_path: Path, encoding: str) -> None:
    folder = tmp_path / os.fsdecode(b"\xff\n")
    folder.mkdir()
    data = crashed_machine().dump()
    assert data.count(b"amd64fre") == 1
    (folder / "a.dmp").write_bytes(data.replace(b"amd64fre", b"\x1b[2J\r\n\xff\x07"))
    for path, words in (folder / "a.dmp", b"CULPRIT  victim"), (folder, b"1 dump, 1 family"):
        done = subprocess.run(
            [sys.executable, "-m", "crashdump_analysis.triage", path],
            capture_output=True,
            check=True,
            env={**os.environ, "PYTHONIOENCODING": f"{encoding}:strict"},
        )
        assert words in done.stdout
        assert b"\x1b" not in done.stdout
        assert done.stderr == b""


def test_one_folder_of_symbols_is_one_folder(tmp_path: Path) -> None:
    path = crashed_machine().write(tmp_path / "a.dmp")
    missing = tmp_path / "none"
    for symbols in (str(missing), missing, [missing]):
        warnings = triage(path, symbols=symbols).warnings
        told = [one for one in warnings if one.startswith("symbol folder")]
        assert told == [f"symbol folder {missing} is not there"]


def test_module_is_a_command_and_imports_nothing_heavy(tmp_path: Path) -> None:
    path = crashed_machine().write(tmp_path / "a.dmp")
    watch = (
        "import runpy, sys\n"
        f"sys.argv = ['triage', {str(path)!r}]\n"
        "try:\n    runpy.run_module('crashdump_analysis.triage', run_name='__main__')\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'symbolic', 'pefile', 'lief', 'pydantic', 'lab', 'pytest', 'asyncio',"
        " 'crashdump_analysis.comparison', 'crashdump_analysis.engines.analyze'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", watch], capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "[]"
    assert "CULPRIT  victim" in done.stdout
    assert "image: victim.sys, build 669A00004000" in done.stdout


def test_triage_stays_a_function_whatever_is_imported() -> None:
    import crashdump_analysis  # noqa: PLC0415
    import crashdump_analysis.triage as package  # noqa: PLC0415

    assert callable(crashdump_analysis.triage)
    assert package is not None


SENSOR = built("a-o2") / "sensor.sys"
KERNEL = BUILT / "ntoskrnl.exe"
"""Unlike the sensor it has relocations in sections that cannot be written to."""
FAR = DRIVER_BASE + 0x12340000


def relocated(space: AddressSpace, file: Path, base: int) -> Module:
    """Loads a real image as a kernel does: relocated, imports filled, .reloc discarded."""
    with pefile.PE(str(file)) as image:
        image.relocate_image(base)
        size = image.OPTIONAL_HEADER.SizeOfImage
        data = bytearray(image.get_memory_mapped_image().ljust(size, b"\0"))
        table = image.OPTIONAL_HEADER.DATA_DIRECTORY[12]
        data[table.VirtualAddress : table.VirtualAddress + table.Size] = b"\xfe" * table.Size
        for section in image.sections:
            if section.IMAGE_SCN_MEM_DISCARDABLE:
                start = section.VirtualAddress
                data[start : start + section.Misc_VirtualSize] = bytes(section.Misc_VirtualSize)
    space.write(base, bytes(data))
    return Module("sensor", "sensor.sys", "", base, size, 0, 0)


@pytest.mark.parametrize("base", [DRIVER_BASE, FAR])
@pytest.mark.parametrize("file", [SENSOR, KERNEL], ids=lambda file: file.name)
def test_a_loaded_image_is_its_file(file: Path, base: int) -> None:
    space = AddressSpace()
    module = relocated(space, file, base)
    loaded = loaded_image(PagedMemory(space, space.root << 12), module, file)
    assert image_identity(loaded) == image_identity(expected_image(file))
    assert len(loaded) > 8000


def test_an_image_relocated_for_another_base_is_not_its_file() -> None:
    """The kernel's constants hold pointers: they must be those of where it lies."""
    space = AddressSpace()
    module = relocated(space, KERNEL, FAR)
    moved = replace(module, base=FAR + 0x100000)
    size = module.size // PAGE * PAGE
    data = PagedMemory(space, space.root << 12).read(FAR, size)
    assert data is not None
    space.write(moved.base, data)
    loaded = loaded_image(PagedMemory(space, space.root << 12), moved, KERNEL)
    assert loaded != expected_image(KERNEL)


@pytest.mark.parametrize("section", [".text", ".rdata"])
def test_one_changed_bit_in_memory_is_another_identity(section: str) -> None:
    space = AddressSpace()
    module = relocated(space, SENSOR, FAR)
    with pefile.PE(str(SENSOR)) as image:
        (found,) = [one for one in image.sections if one.Name.rstrip(b"\0") == section.encode()]
        # In .rdata behind the import tables, which lld puts first.
        place = FAR + found.VirtualAddress + found.Misc_VirtualSize - 8
    original = PagedMemory(space, space.root << 12).read(place, 1)
    assert original is not None
    space.write(place, bytes((original[0] ^ 1,)))
    memory = PagedMemory(space, space.root << 12)
    assert loaded_image(memory, module, SENSOR) != expected_image(SENSOR)


def test_another_build_has_another_identity() -> None:
    assert expected_image(SENSOR) != expected_image(built("a-shifted") / "sensor.sys")


def test_an_image_that_is_not_all_in_memory_is_an_error() -> None:
    space = AddressSpace()
    module = relocated(space, SENSOR, FAR)
    page = space.map(FAR + PAGE)
    del space.pages[page]
    with pytest.raises(DumpError, match=r"sensor\.sys \.text.*not there"):
        loaded_image(PagedMemory(space, space.root << 12), module, SENSOR)


@pytest.mark.parametrize("data", [b"", b"MZ", b"MZ".ljust(0x1000), b"\x7fELF" * 100])
def test_a_file_that_is_no_image_is_an_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "driver.sys"
    path.write_bytes(data)
    with pytest.raises(DumpError, match="expected a PE"):
        expected_image(path)
