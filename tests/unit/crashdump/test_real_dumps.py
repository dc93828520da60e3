"""Real triage dumps of real Windows, where they are at hand: ../shared/dumps beside the project.

They hold names of machines, people and processes and are no part of the project, so that the tests
name files and numbers only and print nothing of a report.
"""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from crashdump_analysis import DumpError, Report, State, check_dump, triage
from crashdump_analysis.report import SCHEMA

DUMPS = Path(__file__).parents[4] / "shared" / "dumps"

pytestmark = pytest.mark.skipif(
    not DUMPS.is_dir(), reason="real dumps are no part of the project; they go to ../shared/dumps"
)

# Of each file: build, bug check as in the header, parameters, modules (the README of the dumps),
# and what was found by hand in a hex dump: processor, IRQL.
KNOWN = {
    "crocket_111217-27671-01": (9600, 0xA0000001, (5, 0, 0, 0), 166, 1, 11),
    "crocket_111217-44343-01": (9600, 0xA0000001, (5, 0, 0, 0), 168, 1, 11),
    "crocket_111317-27812-01": (9600, 0x50, (0x7FFE0320, 0, 0xFFFFF801EDDF9151, 8), 164, 2, 0),
    "crocket_111317-33765-01": (9600, 0xA0000001, (5, 0, 0, 0), 171, 0, 11),
    "crocket_111317-46125-01": (9600, 0xA0000001, (5, 0, 0, 0), 181, 1, 11),
    "crocket_111317-52015-01": (9600, 0x1A, (0x41287, 0x14DBFF6666AF, 0, 0), 179, 0, 0),
    "crocket_111417-133953-01": (9600, 0xA0000001, (5, 0, 0, 0), 178, 1, 11),
    "crocket_111417-173000-01": (9600, 0x100000EA, (0xFFFFE000CFCEE880, 0, 0, 0), 179, 0, 0),
    "crocket_111417-28234-01": (9600, 0xA0000001, (5, 0, 0, 0), 177, 1, 11),
    "crocket_111417-33000-01": (9600, 0xA0000001, (5, 0, 0, 0), 163, 1, 11),
    "daimuvg_102622-12000-01": (19041, 0x101, (0xC, 0, 0xFFFF98802B36A180, 2), 207, 5, 13),
    "daimuvg_102622-12546-01": (
        *(19041, 0x1E, (0xFFFFFFFFC0000005, 0xFFFFF8031B40F001, 0, 0x289), 207, 3, 0),
    ),
    "dell_040124-5515-01": (
        *(19041, 0x1C7, (0, 0xFFFF85824E1B8000, 0xA9E69D15, 0x2268DA), 205, 18, 0),
    ),
    "ojusha_100623-4953-01": (
        *(19041, 0x1A, (0x402, 0xFFFFA30EBF6F0090, 0x851AF68C0, 0xFFFFA30EBF6F7248), 149, 7, 2),
    ),
}
ATIKMDAG = [name for name, known in KNOWN.items() if known[1] == 0xA0000001]

# Where the fault is, as the header's own parameters say.
FAULTS = {
    "crocket_111317-27812-01": 0xFFFFF801EDDF9151,
    "daimuvg_102622-12546-01": 0xFFFFF8031B40F001,
}

_reports: dict[str, Report] = {}


def report_of(name: str) -> Report:
    if name not in _reports:
        _reports[name] = triage(DUMPS / "kernel" / f"{name}.dmp")
    return _reports[name]


def test_no_dump_is_left_out() -> None:
    assert {path.stem for path in (DUMPS / "kernel").glob("*.dmp")} == set(KNOWN)


@pytest.mark.parametrize("name", KNOWN)
def test_header_and_modules(name: str) -> None:
    build, code, parameters, modules, processor, irql = KNOWN[name]
    report = report_of(name)
    jsonschema.validate(report.to_dict(), json.loads(SCHEMA.read_text()))
    assert report.to_text()
    assert (report.machine.build, report.bug_check.raw_code) == (build, code)
    assert tuple(one.value for one in report.bug_check.parameters) == parameters
    assert len(report.modules) == modules
    assert report.modules[0].name == "nt"
    # Those of session drivers whose headers were paged out are zero in the kernel's own list.
    assert sum(one.timestamp is None for one in report.modules) <= 10
    assert (report.processor.number, report.processor.irql) == (processor, irql)
    assert report.processor.thread is not None
    assert report.processor.process_name is not None
    assert report.machine.debugger_data == "plain"
    assert report.unloaded_drivers
    assert len(report.secondary_data) >= 9
    assert any(one.name == "SMBIOS tables" for one in report.secondary_data)
    assert not any("cut" in one for one in report.warnings)
    assert check_dump(DUMPS / "kernel" / f"{name}.dmp").state is State.COMPLETE


@pytest.mark.parametrize("name", KNOWN)
def test_stack(name: str) -> None:
    """The first frame is certain, and so is the caller of KeBugCheckEx; the rest are guesses."""
    report = report_of(name)
    assert not report.stack[0].guess
    certain = 2 if report.context.source.endswith("at KeBugCheckEx") else 1
    assert [one.guess for one in report.stack[:certain]] == [False] * certain
    assert all(one.guess for one in report.stack[certain:])
    assert all(one.module for one in report.stack)
    assert report.context.instruction == FAULTS.get(name, report.context.instruction)


@pytest.mark.parametrize("name", ATIKMDAG)
def test_the_caller_of_a_driver_defined_bug_check_is_the_culprit(name: str) -> None:
    report = report_of(name)
    assert report.stack[1].module == "atikmdag"
    assert report.culprit.module == "atikmdag"


def test_the_crashes_of_atikmdag_are_one_family() -> None:
    """Seven crashes of one bug, in two builds of the driver; no other crash belongs to it."""
    families = {name: report_of(name).bucket.family for name in KNOWN}
    (family,) = {families[name] for name in ATIKMDAG}
    assert [name for name in KNOWN if families[name] == family] == ATIKMDAG
    modules = [
        next(one for one in report_of(name).modules if one.name == "atikmdag") for name in ATIKMDAG
    ]
    assert len({(one.timestamp, one.size) for one in modules}) == 2


def test_threads_that_belong_to_their_process_have_numbers() -> None:
    """Idle threads and DPCs on them have none; a System thread's process is always number 4."""
    found = {name: report_of(name).processor for name in KNOWN}
    numbered = [one for one in found.values() if one.process_id is not None]
    assert len(numbered) == 7
    assert all(one.thread_id for one in numbered)
    assert {one.process_id for one in numbered if one.process_name == "System"} == {4}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("negative/7nani_IRQL_32bit", "32-bit kernel dump"),
        ("negative/7nani_PAGE_FAULT_IN_NONPAGED_AREA", "the end of the file"),
        ("negative/crocket_111217-47250-01", "only zeros"),
        ("negative/imhex_dumpit_header16k", "text in the bug-check fields"),
        ("user/r2_calc", "user-mode minidump"),
        ("user/rustmd_invalid-parameter", "user-mode minidump"),
        ("user/rustmd_test", "user-mode minidump"),
    ],
)
def test_what_is_no_kernel_dump_is_refused_by_name(name: str, found: str) -> None:
    with pytest.raises(DumpError) as caught:
        triage(DUMPS / f"{name}.dmp")
    assert found in caught.value.found
