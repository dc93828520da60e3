"""Bug checks in words, and where each family's fault is found."""

from __future__ import annotations

import struct
import tomllib
from pathlib import Path

import pytest

from crashdump_analysis import triage
from crashdump_analysis.bugchecks import CODES, describe, known_codes
from crashdump_analysis.bugchecks.faults import RULES
from tests.support.synthetic_dump import (
    DRIVER_BASE,
    ENTRY,
    FAULT_RIP,
    FAULT_RSP,
    RETURN_TO_ENTRY,
    STACK,
    TRAP_FRAME,
    SyntheticMachine,
    context_record,
    crashed_machine,
    trap_frame,
)

ACCESS_VIOLATION = 0xFFFFFFFF_C0000005
RECORD = STACK + 0x1000
"""Where tests put a record that only a parameter leads to."""


def test_every_entry_of_the_table_is_whole() -> None:
    codes = known_codes()
    for wanted in (
        *(0x0A, 0x1E, 0x3B, 0x50, 0x7E, 0x7F, 0x80, 0x9F, 0xC2, 0xC4, 0xC5, 0xD1),
        *(0x133, 0x139, 0xE2, 0xEF, 0xF7, 0x124),
    ):
        assert wanted in codes
    for code in codes:
        description = describe(code, (1, 2, 3, 4))
        assert description.name.isupper()
        assert description.meaning.endswith(".")
        assert len(description.parameters) == 4
        assert all(one.name and one.meaning for one in description.parameters)
        assert not description.family or description.family in RULES
    used = {describe(code, (0, 0, 0, 0)).family for code in codes}
    of_cases = {describe(0x9F, (4, 0, 0, 0)).family, describe(0x1A, (0x41287, 0, 0, 0)).family}
    assert set(RULES) == (used | of_cases) - {""}
    assert not used & of_cases - {""}


def test_every_case_of_an_entry_is_found_by_its_value() -> None:
    """Cases are read one at a time; here against the whole file."""
    cases = 0
    for path in sorted(CODES.glob("*.toml")):
        code, entry = int(path.stem, 16), tomllib.loads(path.read_text())
        assert path.stem == f"0x{code:X}"
        for value, case in entry.get("cases", {}).items():
            cases += 1
            assert value == f"0x{int(value, 16):X}"
            found = describe(code, (int(value, 16), 0, 0, 0)).parameters
            assert found[0].meaning.endswith(case["meaning"])
            names = [name for name, _ in case.get("parameters", [])]
            assert [one.name for one in found[1:]][: len(names)] == names
        for number in range(1, 5):
            for value, words in entry.get(f"p{number}", {}).items():
                assert value == f"0x{int(value, 16):X}"
                values = [0xBADBADBAD] * 4
                values[number - 1] = int(value, 16)
                assert describe(code, values).parameters[number - 1].meaning.endswith(words)
    assert cases > 500


def test_a_corrupt_store_is_nobodys_fault_on_the_stack() -> None:
    found = describe(0x1C7, (0, 0x11, 0x22, 0x33))
    assert "bad memory" in found.no_culprit
    assert found.named("page_frame_number") == 0x33


def test_names_tell_parameters_apart() -> None:
    for code in known_codes():
        description = describe(code, (1, 2, 3, 4))
        names = [one.name for one in description.parameters]
        assert len(set(names)) == 4, hex(code)
        assert description.named(names[2]) == 3


def test_the_reference_is_whole() -> None:
    """Codes of Microsoft's reference and of its page on live dumps, less those with bit 28 set."""
    codes = known_codes()
    assert len(codes) >= 420
    for wanted in (*range(0x01, 0x20), 0x15E, 0x1A5, 0x1F2, 0x21C8, 0xC000021A, 0xDEADDEAD):
        assert wanted in codes, hex(wanted)


def test_parameters_are_explained_with_their_values() -> None:
    names = {one.name: one.meaning for one in describe(0x50, (1, 0x10, 3, 2)).parameters}
    assert names["access"] == "what was tried: execute"
    assert names["page_fault"] == "kind of page fault: no valid page table entry"
    assert (
        describe(0x7E, (ACCESS_VIOLATION, 0, 0, 0))
        .parameters[0]
        .meaning.endswith("STATUS_ACCESS_VIOLATION")
    )


def test_parameters_that_depend_on_the_first() -> None:
    blocked = describe(0x9F, (3, 0x11, 0x22, 0x33)).parameters
    assert "blocking a request" in blocked[0].meaning
    assert [one.name for one in blocked[1:]] == ["physical_device", "triage", "irp"]
    assert [one.value for one in blocked] == [3, 0x11, 0x22, 0x33]
    other = describe(0x9F, (0x77, 0, 0, 0)).parameters
    assert [one.name for one in other[1:]] == ["parameter_2", "parameter_3", "parameter_4"]
    assert "no public page" in other[1].meaning


def test_an_unknown_bug_check_still_has_a_report(tmp_path: Path) -> None:
    machine = crashed_machine(0xDEADBEE)
    report = triage(machine.write(tmp_path / "a.dmp"))
    assert report.bug_check.name == "BUG_CHECK_DEADBEE"
    assert [one.value for one in report.bug_check.parameters] == list(machine.parameters)
    assert report.context.instruction is None
    assert report.culprit.module == "victim"


def fault_of(machine: SyntheticMachine, path: Path) -> tuple[int | None, str | None, str]:
    """Instruction, module and source of the context in the report."""
    context = triage(machine.write(path / "a.dmp")).context
    return context.instruction, context.module, context.source


@pytest.mark.parametrize("code", [0x0A, 0xC5, 0xD1])
def test_raised_irql(tmp_path: Path, code: int) -> None:
    """The trap frame on the stack whose rip is the fourth parameter."""
    found = fault_of(crashed_machine(code, (0xBAD, 2, 0, FAULT_RIP)), tmp_path)
    assert found[:2] == (FAULT_RIP, "victim")
    assert f"{TRAP_FRAME:x}" in found[2]


@pytest.mark.parametrize("code", [0x50, 0x8E, 0xBE, 0xFC])
def test_raw_third_parameter(tmp_path: Path, code: int) -> None:
    """On the stack it is the trap frame's address; the header has the instruction in its place."""
    machine = crashed_machine(code, (0xBAD, 0, FAULT_RIP, 2))
    machine.write_u64(machine.registers["rsp"] + 8, code, 0xBAD, 0, TRAP_FRAME)
    found = fault_of(machine, tmp_path)
    assert found == (FAULT_RIP, "victim", f"trap frame at {TRAP_FRAME:x} (raw parameter 3)")


def test_third_parameter_of_the_header_where_the_stack_is_missing(tmp_path: Path) -> None:
    machine = crashed_machine(0xFC, (0xBAD, 0, TRAP_FRAME, 2))
    machine.registers["rsp"] = 0xFFFFAB00_11110000
    found = fault_of(machine, tmp_path)
    assert found == (FAULT_RIP, "victim", f"trap frame at {TRAP_FRAME:x} (parameter 3)")


def test_home_space_of_another_bug_check_is_not_believed(tmp_path: Path) -> None:
    machine = crashed_machine(0x50, (0xBAD, 0, FAULT_RIP + 1, 2))  # no frame has that rip
    machine.write_u64(machine.registers["rsp"] + 8, 0x1A, 0xBAD, 0, TRAP_FRAME)
    report = triage(machine.write(tmp_path / "a.dmp"))
    assert report.context.instruction is None
    assert any("were not found" in one for one in report.warnings)
    assert report.culprit.module == "victim"  # the stack leads there all the same


def test_records_on_the_stack_are_aligned(tmp_path: Path) -> None:
    """What looks like a record at an odd address is chance."""
    odd = TRAP_FRAME - 0x300 + 3
    machine = crashed_machine(0xD1, (0xBAD, 2, 0, FAULT_RIP))
    machine.space.write(odd, trap_frame({"rip": FAULT_RIP, "rsp": 0xBAD}))
    machine.registers["rsp"] = odd - 0x23
    machine.write_u64(odd - 0x23, RETURN_TO_ENTRY)
    context = triage(machine.write(tmp_path / "a.dmp")).context
    assert context.registers["rsp"] == FAULT_RSP


@pytest.mark.parametrize(("code", "number"), [(0x7E, 3), (0x3B, 2)])
def test_context_records(tmp_path: Path, code: int, number: int) -> None:
    parameters = [ACCESS_VIOLATION, FAULT_RIP, 0, 0]
    parameters[number] = RECORD
    machine = crashed_machine(code, parameters)
    machine.space.write(RECORD, context_record({"rip": FAULT_RIP, "rsp": FAULT_RSP, "rcx": 7}))
    context = triage(machine.write(tmp_path / "a.dmp")).context
    assert (context.instruction, context.module) == (FAULT_RIP, "victim")
    assert context.source == f"CONTEXT record at {RECORD:x} (parameter {number + 1})"
    assert context.registers["rcx"] == 7  # the record's, not the trap frame's
    assert context.frame == 2


@pytest.mark.parametrize("flags", [0x10005F, 0x5810005F, 0x100001])
def test_context_flags_that_are_right(tmp_path: Path, flags: int) -> None:
    machine = crashed_machine(0x7E, (ACCESS_VIOLATION, FAULT_RIP, 0, RECORD))
    record = context_record({"rip": FAULT_RIP, "rsp": FAULT_RSP}, flags)
    machine.space.write(RECORD, record)
    assert fault_of(machine, tmp_path)[0] == FAULT_RIP


@pytest.mark.parametrize("flags", [0, 0x10001, 0x400001, 0x100002])
def test_context_flags_that_are_wrong(tmp_path: Path, flags: int) -> None:
    machine = crashed_machine(0x7E, (ACCESS_VIOLATION, FAULT_RIP, 0, RECORD))
    record = context_record({"rip": FAULT_RIP, "rsp": FAULT_RSP}, flags)
    machine.space.write(RECORD, record)
    assert fault_of(machine, tmp_path)[0] is None


def test_context_on_the_stack(tmp_path: Path) -> None:
    machine = crashed_machine(0x1E, (ACCESS_VIOLATION, FAULT_RIP, 0, 0))
    machine.space.write(TRAP_FRAME + 0x200, context_record({"rip": FAULT_RIP, "rsp": FAULT_RSP}))
    machine.space.write(TRAP_FRAME, trap_frame({"rip": 0xFFFF8000_00001111, "rsp": FAULT_RSP}))
    found = fault_of(machine, tmp_path)
    assert found[0] == FAULT_RIP
    assert "CONTEXT record found on the stack" in found[2]


def test_without_a_context_on_the_stack_its_trap_frame_serves(tmp_path: Path) -> None:
    found = fault_of(crashed_machine(0x1E, (ACCESS_VIOLATION, FAULT_RIP, 0, 0)), tmp_path)
    assert found[0] == FAULT_RIP
    assert "trap frame" in found[2]


def test_trap_frame_in_the_second_parameter(tmp_path: Path) -> None:
    found = fault_of(crashed_machine(0x139, (3, TRAP_FRAME, 0, 0)), tmp_path)
    assert found == (FAULT_RIP, "victim", f"trap frame at {TRAP_FRAME:x} (parameter 2)")


@pytest.mark.parametrize("code", [0x133, 0x7F])
def test_first_interrupt(tmp_path: Path, code: int) -> None:
    found = fault_of(crashed_machine(code, (0, 0x501, 0x500, 0)), tmp_path)
    assert found == (FAULT_RIP, "victim", "the first interrupt on the stack")


@pytest.mark.parametrize("code", [0x80, 0xE2, 0x124])
def test_bug_checks_without_a_culprit(tmp_path: Path, code: int) -> None:
    report = triage(crashed_machine(code).write(tmp_path / "a.dmp"))
    assert (report.culprit.module, report.culprit.confidence) == (None, "none")
    assert report.culprit.reason
    assert report.bucket.frames == ()
    assert len(report.stack) == 5  # it is shown, it is no evidence


def test_the_headers_exception_record_is_never_used(tmp_path: Path) -> None:
    data = bytearray(crashed_machine(0x50, (0xBAD, 0, 0, 0)).dump())
    struct.pack_into("<IIQQ", data, 0xF00, 0xC0000005, 0, 0, DRIVER_BASE + ENTRY.rva)
    path = tmp_path / "a.dmp"
    path.write_bytes(data)
    assert triage(path).context.instruction is None


def test_a_fault_the_stack_does_not_lead_to(tmp_path: Path) -> None:
    """The stack then begins at the fault, and a warning says so."""
    machine = crashed_machine(0x7E, (ACCESS_VIOLATION, FAULT_RIP, 0, RECORD))
    other = STACK + 0x2000
    machine.space.write(RECORD, context_record({"rip": FAULT_RIP, "rsp": other}))
    machine.write_u64(other + 0x20, 0, RETURN_TO_ENTRY)
    machine.write_u64(other + 0x58, 0)
    report = triage(machine.write(tmp_path / "a.dmp"))
    assert [one.instruction for one in report.stack] == [FAULT_RIP, RETURN_TO_ENTRY]
    assert report.stack[0].trapped
    assert any("does not lead to the fault" in one for one in report.warnings)
    assert report.culprit.confidence == "high"


def test_a_wild_jump_is_blamed_on_its_caller(tmp_path: Path) -> None:
    wild = 0xFFFF8000_00C0FFEE
    machine = crashed_machine(0xD1, (wild, 2, 8, wild))
    machine.space.write(TRAP_FRAME, trap_frame({"rip": wild, "rsp": FAULT_RSP + 0x28}))
    report = triage(machine.write(tmp_path / "a.dmp"))
    assert (report.context.instruction, report.context.module) == (wild, None)
    assert report.culprit.module == "victim"
    assert "address where no module is" in report.culprit.reason
    assert report.bucket.basis == "shapes"
    assert len(report.bucket.frames) == 1
