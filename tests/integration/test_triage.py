"""Triage of every crash: right by the sensor's sources, the image files, the way of crashing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path, PureWindowsPath

import jsonschema
import pefile
import pytest

from crashdump_analysis import Report, State, check_dump, read_header, triage
from crashdump_analysis.dump import open_dump
from crashdump_analysis.image_identity import expected_image, image_identity, loaded_image
from crashdump_analysis.modules import loaded_modules
from crashdump_analysis.report import SCHEMA, StackFrame
from images.contract import Contract
from images.test_kernel.build import BUILT, build_image
from images.test_kernel.registry import Settings
from tests.integration.conftest import CrashFactory, MachineFactory
from tests.support.crashes import Crash
from tests.support.dumps import Range, as_triage_dump, without_memory
from tests.support.libvirt import Libvirt
from tests.support.pdbs import with_unwind_data
from tests.support.sensor import (
    BUGS,
    CRASHES,
    KINDS,
    VARIANTS,
    WITH_THE_BUG,
    built,
    content_files,
    load_content,
    sensor_driver,
    source_function,
    source_line,
)
from tests.support.symbols import export
from tests.support.waiting import wait_for

every_crash = pytest.mark.parametrize(("kind", "variant"), CRASHES)
every_bug = pytest.mark.parametrize(("kind", "variant"), BUGS)
KERNEL = BUILT / "ntoskrnl.exe"
PDBS = {"nt": BUILT / "ntkrnlmp.pdb"}
HEADS = {"killer": "AV_R_INVALID", "freed": "AV", "exception": "AV", "hang": "0x133_DPC"}
"""What WinDbg's grammar puts before the module in the bucket of each bug."""


def reported(crash: Crash, variant: str) -> Report:
    return triage(crash.dump, symbols=[BUILT, built(variant)])


@every_crash
def test_header_and_completeness(
    crash_of: CrashFactory, kind: str, variant: str, contract: Contract
) -> None:
    crash, what = crash_of(kind, variant), KINDS[kind]
    found = check_dump(crash.dump)
    assert (found.state, found.size) == (State.COMPLETE, found.required)
    with crash.dump.open("rb") as file:
        header = read_header(file)
    assert header == found.header
    assert header.bug_check_code == what.stop_code
    assert header.required_size == crash.dump.stat().st_size
    assert (header.build, header.processors) == (contract.os.build, contract.hardware.processors)
    assert header.time is not None
    assert header.uptime is not None
    assert 0 < header.uptime.total_seconds() < contract.deadlines.boot_to_agent


@every_crash
def test_report(crash_of: CrashFactory, kind: str, variant: str) -> None:
    crash, what = crash_of(kind, variant), KINDS[kind]
    report = reported(crash, variant)
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(report.to_dict())
    assert report.warnings == ()
    assert report.bug_check.code == what.stop_code
    assert f"{report.bug_check.name}\n" in crash.screen_text
    for one in report.bug_check.parameters:
        assert f"{one.value:016X}" in crash.screen_text
    assert [one.image for one in report.modules] == ["ntoskrnl.exe", "sensor.sys"]
    for module, file in zip(report.modules, (KERNEL, built(variant) / "sensor.sys"), strict=True):
        with pefile.PE(str(file), fast_load=True) as image:
            assert module.size == image.OPTIONAL_HEADER.SizeOfImage
            assert module.timestamp == image.FILE_HEADER.TimeDateStamp
    stack = report.stack
    assert (stack[0].module, stack[0].function, stack[0].offset) == ("nt", "KeBugCheckEx", 0)
    assert stack[-1].function in ("KiStartSystemThread", "KiSystemStartup")
    assert not any(one.guess for one in stack)
    frames = [one for one in stack if one.module == "sensor"]
    assert [one.function for one in frames] == list(what.frames)
    for frame in frames:
        source = source_function(frame.function or "")
        assert frame.line in source.lines
        assert PureWindowsPath(frame.file or "").name == source.file


@every_bug
def test_culprit(crash_of: CrashFactory, kind: str, variant: str) -> None:
    crash, what = crash_of(kind, variant), KINDS[kind]
    report = reported(crash, variant)
    culprit, context = report.culprit, report.context
    assert (culprit.module, culprit.function) == ("sensor", what.frames[0])
    assert culprit.confidence == "high"
    source = source_function(what.frames[0])
    assert PureWindowsPath(culprit.file or "").name == source.file
    assert culprit.line in source.lines
    if what.culprit:
        assert culprit.line == source_line(*what.culprit)
    fault = report.stack[context.frame]
    assert fault.trapped
    assert (fault.module, fault.function) == ("sensor", what.frames[0])
    assert context.instruction == fault.instruction == context.registers["rip"]
    assert context.registers["rsp"] == fault.stack_pointer
    assert context.module == "sensor"
    # The parameter of the bug check that is this instruction's address.
    number = {0x50: 2, 0xD1: 3, 0x7E: 1}.get(what.stop_code)
    if number is not None:
        assert report.bug_check.parameters[number].value == context.instruction


@pytest.mark.parametrize(("kind", "variant"), [one for one in CRASHES if not KINDS[one[0]].frames])
def test_no_culprit(crash_of: CrashFactory, kind: str, variant: str) -> None:
    report = reported(crash_of(kind, variant), variant)
    assert report.culprit.module is None
    assert report.culprit.confidence == "none"
    assert report.bucket.id == f"0x{KINDS[kind].stop_code:X}"
    assert report.bucket.frames == ()


@pytest.mark.timeout(900)  # the first to ask makes every crash there is
def test_families_are_the_labelled_bugs(crash_of: CrashFactory) -> None:
    """One bug has one bucket and one family in each variant, and shares them with no other."""
    families: dict[str, set[str]] = {}
    buckets: dict[str, set[str]] = {}
    for kind, variant in CRASHES:
        bucket = reported(crash_of(kind, variant), variant).bucket
        families.setdefault(bucket.family, set()).add(kind)
        buckets.setdefault(f"{bucket.id} {bucket.hash}", set()).add(kind)
    for keys in (families, buckets):
        assert len(keys) == len(KINDS)
        assert sorted(map(sorted, keys.values())) == [[kind] for kind in sorted(KINDS)]
    assert {name.split()[0] for name in buckets if "sensor" in name} == {
        f"{HEADS[kind]}_sensor!{KINDS[kind].frames[0]}" for kind in HEADS
    }


@every_bug
def test_without_symbols_module_and_offset_are_left(
    crash_of: CrashFactory, kind: str, variant: str
) -> None:
    """The same stack without names; the family is made of the functions' shapes, and says so."""
    crash = crash_of(kind, variant)
    named, bare = reported(crash, variant), triage(crash.dump)
    assert bare.culprit.module == "sensor"
    assert bare.culprit.function is None
    assert bare.context == _without_inline_frames(named).context
    assert [
        (one.module, one.instruction, one.stack_pointer, one.trapped) for one in bare.stack
    ] == [
        (one.module, one.instruction, one.stack_pointer, one.trapped)
        for one in _without_inline_frames(named).stack
    ]
    assert bare.bucket.basis == "shapes"
    assert any("no symbol path" in one for one in bare.warnings)


@every_bug
def test_without_symbolic_functions_are_the_same(
    crash_of: CrashFactory, monkeypatch: pytest.MonkeyPatch, kind: str, variant: str
) -> None:
    """Our own reader names them; inlined functions, files and lines are what is missing."""
    crash = crash_of(kind, variant)
    named = _without_inline_frames(reported(crash, variant))
    monkeypatch.setitem(sys.modules, "symbolic", None)
    plain = reported(crash, variant)
    assert [(one.module, one.function, one.offset) for one in plain.stack] == [
        (one.module, one.function, one.offset) for one in named.stack
    ]
    assert not any(one.file or one.line or one.inline for one in plain.stack)
    assert any("pip install" in one for one in plain.warnings)


# Where unwind data and names come from, if not from the dump.


def pdbs_with_unwind_data(folder: Path, variant: str) -> Path:
    """A folder with PDBs that have unwind data, as Microsoft's linker makes them, and no images."""
    target = folder / "pdbs"
    target.mkdir(exist_ok=True)
    for pdb, image in (
        (PDBS["nt"], KERNEL),
        (built(variant) / "sensor.pdb", built(variant) / "sensor.sys"),
    ):
        (target / pdb.name).write_bytes(with_unwind_data(pdb, image))
    return target


def function_tables(report: Report, variant: str) -> list[Range]:
    """Where the images have their .pdata."""
    ranges = []
    for module, file in zip(report.modules, (KERNEL, built(variant) / "sensor.sys"), strict=True):
        with pefile.PE(str(file), fast_load=True) as image:
            table = image.OPTIONAL_HEADER.DATA_DIRECTORY[3]
        ranges.append((module.base + table.VirtualAddress, table.Size))
    return ranges


def identities(report: Report, variant: str) -> list[Range]:
    """Headers of the images, and the records that tell which PDBs are theirs."""
    ranges = []
    for module, file in zip(report.modules, (KERNEL, built(variant) / "sensor.sys"), strict=True):
        with pefile.PE(str(file)) as image:
            entries = [one.struct for one in image.DIRECTORY_ENTRY_DEBUG]
            ranges.append((module.base, 0x400))
            directory = image.OPTIONAL_HEADER.DATA_DIRECTORY[6]
        ranges.append((module.base + directory.VirtualAddress, directory.Size))
        ranges += [(module.base + one.AddressOfRawData, one.SizeOfData) for one in entries]
    return ranges


def stacks(report: Report) -> list[Range]:
    """The stack from each frame to the next; to the end of a page where the next is elsewhere."""
    places = [one.stack_pointer for one in report.stack if not one.inline]
    return [
        (one, following - one if 0 < following - one < 0x4000 else 0x1000 - one % 0x1000)
        for one, following in pairwise([*places, 0])
    ]


def judged(report: Report) -> dict[str, object]:
    """What must be the same wherever unwind data came from."""
    whole = report.to_dict()
    return {one: whole[one] for one in ("bug_check", "culprit", "bucket", "context", "stack")}


def unwound_by(report: Report) -> set[tuple[str | None, bool | None]]:
    return {(one.unwind, one.verified) for one in report.modules}


@every_bug
def test_without_function_tables_in_the_dump(
    crash_of: CrashFactory, tmp_path: Path, kind: str, variant: str
) -> None:
    """With image and PDB, with the PDB alone, and with neither."""
    crash = crash_of(kind, variant)
    whole = reported(crash, variant)
    assert unwound_by(whole) == {("dump", True)}
    dump = without_memory(crash.dump, tmp_path / "a.dmp", function_tables(whole, variant))
    images = triage(dump, symbols=[BUILT, built(variant)])
    assert unwound_by(images) == {("image", True)}
    pdbs = triage(dump, symbols=[pdbs_with_unwind_data(tmp_path, variant)])
    assert unwound_by(pdbs) == {("pdb", True)}
    for report in (images, pdbs):
        assert judged(report) == judged(whole)
        assert report.warnings == ()
    neither = triage(dump)
    assert unwound_by(neither) == {(None, None)}
    assert neither.culprit.module == "sensor"
    fault = _without_inline_frames(whole)
    assert (neither.context.instruction, neither.context.module, neither.context.offset) == (
        *(fault.context.instruction, "sensor", fault.context.offset),
    )
    assert any(one.guess for one in neither.stack)


@every_bug
def test_a_triage_dump_of_the_same_crash(
    crash_of: CrashFactory, tmp_path: Path, kind: str, variant: str
) -> None:
    """It has the stack and the list of modules; images and PDBs give the rest."""
    crash = crash_of(kind, variant)
    whole = reported(crash, variant)
    kept = stacks(whole)
    dump = as_triage_dump(crash.dump, tmp_path / "a.dmp", kept)
    assert check_dump(dump).state is State.COMPLETE
    images = triage(dump, symbols=[BUILT, built(variant)])
    assert unwound_by(images) == {("image", True)}
    named = as_triage_dump(crash.dump, tmp_path / "b.dmp", [*kept, *identities(whole, variant)])
    pdbs = triage(named, symbols=[pdbs_with_unwind_data(tmp_path, variant)])
    assert unwound_by(pdbs) == {("pdb", True)}
    for report in (images, pdbs):
        assert report.dump.type == 4
        assert judged(report) == judged(whole)
    unverified = triage(dump, symbols=[pdbs_with_unwind_data(tmp_path, variant)])
    assert unwound_by(unverified) == {("pdb", False)}
    assert unverified.culprit.function == whole.culprit.function
    assert unverified.culprit.confidence in ("medium", "low")
    neither = triage(dump)
    assert (neither.culprit.module, neither.culprit.function) == ("sensor", None)
    assert neither.context.offset == whole.context.offset


def _without_inline_frames(report: Report) -> Report:
    before = [one for one in report.stack[: report.context.frame] if not one.inline]
    return Report(
        **{
            **{name: getattr(report, name) for name in report.__dataclass_fields__},
            "stack": tuple(one for one in report.stack if not one.inline),
            "context": type(report.context)(**{**asdict(report.context), "frame": len(before)}),
        }
    )


def test_without_symbols_unlike_builds_have_different_families(crash_of: CrashFactory) -> None:
    """Three of the five are of the same optimisation, and so of the same shapes."""
    families = {triage(crash_of("freed", one).dump).bucket.family for one in VARIANTS}
    assert len(families) == len(VARIANTS) - 2


def test_symbols_of_another_build_are_refused(crash_of: CrashFactory) -> None:
    report = triage(crash_of("killer", "a-o2").dump, symbols=[BUILT, built("a-shifted")])
    assert report.culprit.module == "sensor"
    assert report.culprit.function is None
    assert any("of another build" in one for one in report.warnings)


@pytest.mark.parametrize("variant", WITH_THE_BUG)
def test_the_loaded_images_are_the_files(crash_of: CrashFactory, variant: str) -> None:
    files = {"nt": KERNEL, "sensor": built(variant) / "sensor.sys"}
    with open_dump(crash_of("killer", variant).dump) as dump:
        memory = dump.memory
        modules, _ = loaded_modules(memory, dump.header.ps_loaded_module_list)
        for module in modules:
            file = files[module.name]
            loaded = image_identity(loaded_image(memory, module, file))
            assert loaded == image_identity(expected_image(file))
        (sensor,) = [one for one in modules if one.name == "sensor"]
        for other in set(VARIANTS) - {variant}:
            # Another build's file is laid out otherwise; wherever that leads, it is not this one.
            file = built(other) / "sensor.sys"
            assert image_identity(expected_image(file)) != image_identity(
                loaded_image(memory, sensor, files["sensor"])
            )


def test_the_first_frame_is_the_entry_of_kebugcheckex(crash_of: CrashFactory) -> None:
    report = reported(crash_of("killer", "a-o2"), "a-o2")
    base = next(one.base for one in report.modules if one.name == "nt")
    assert report.stack[0].instruction == base + export(KERNEL, "KeBugCheckEx")


def names_of(stack: Sequence[StackFrame]) -> list[str]:
    return [f"{one.module}!{one.function}" for one in stack]


def test_an_nmi_shows_what_ran_across_stacks(crash_of: CrashFactory) -> None:
    """An NMI has a stack of its own; the walk goes on on the one it interrupted."""
    stack = reported(crash_of("nmi", "a-o2"), "a-o2").stack
    assert "nt!KiNmiInterrupt" in names_of(stack)
    (place,) = [at for at, one in enumerate(stack) if one.trapped and not one.inline]
    assert abs(stack[place].stack_pointer - stack[place - 1].stack_pointer) > 0x10000


def test_a_complete_dump(complete_dump_of: Callable[[str], Path]) -> None:
    """Type 1, with all of memory in it."""
    path = complete_dump_of("a-inlined")
    report = triage(path, symbols=[BUILT, built("a-inlined")])
    assert (report.dump.type, report.warnings) == (1, ())
    assert check_dump(path).state is State.COMPLETE
    what = KINDS["killer"]
    assert report.bucket.id == "AV_R_INVALID_sensor!MatchField"
    assert names_of([one for one in report.stack if one.module == "sensor"]) == [
        f"sensor!{one}" for one in what.frames
    ]


def test_a_hypervisors_dump_of_a_hung_machine(
    libvirt: Libvirt, domain_of: MachineFactory, contract: Contract
) -> None:
    """No bug check and no culprit, but the stack of the processor that hangs."""
    image = build_image(
        libvirt.new_image_path(),
        drivers=[sensor_driver("a-o2")],
        files=content_files("benign"),
        settings=Settings(dpc_timeout_milliseconds=0),
    )
    domain = domain_of(image)
    domain.start()
    domain.wait_for_agent(contract.deadlines.boot_to_agent)
    load_content(domain, "hang")
    wait_for("silence", lambda: not domain.agent_answers(), contract.deadlines.boot_to_agent)

    def reported_in_the_sensor() -> Report | None:  # and not in the clock's interrupt
        report = triage(domain.dump_memory("win-dmp"), symbols=[BUILT, built("a-o2")])
        return report if report.stack[0].module == "sensor" else None

    report = wait_for("the sensor's loop", reported_in_the_sensor, contract.deadlines.boot_to_agent)
    assert (report.dump.type, report.bug_check.name) == (1, "LIVE_SYSTEM_DUMP")
    assert report.culprit.module is None
    functions = [one.function for one in report.stack if one.module == "sensor"]
    assert functions == list(KINDS["hang"].frames)
    assert not any(one.guess for one in report.stack)
    assert report.stack[0].trapped
    assert report.warnings == ()
