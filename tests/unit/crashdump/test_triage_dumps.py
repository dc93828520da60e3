"""Triage dumps: what they keep, reports of both of their kinds, and what is wrong with them."""

from __future__ import annotations

import json
import struct
import uuid
from pathlib import Path

import jsonschema
import pytest

from crashdump_analysis import DumpError, Report, State, check_dump, triage
from crashdump_analysis.dump import open_dump
from crashdump_analysis.report import SCHEMA, Processor
from tests.support.synthetic_dump import (
    DRIVER_BASE,
    EPROCESS,
    ETHREAD,
    FAULT_RIP,
    FAULT_RSP,
    FULL,
    NT_BASE,
    RETURN_TO_ENTRY,
    RETURN_TO_PAGE_FAULT,
    STACK,
    STACK_SIZE,
    TIMESTAMP,
    TRAP_FRAME,
    SyntheticMachine,
    context_record,
    crashed_machine,
    trap_frame,
)
from tests.support.synthetic_triage import TriageDump, triage_dump

TAG = uuid.UUID("bc5c008f-1e3a-44d7-988d-86f6884c6758")
"""Of SMBIOS tables."""
OTHER_TAG = uuid.UUID("01234567-89ab-cdef-0123-456789abcdef")
UNLOADED = [
    ("dump_stornvme.sys", DRIVER_BASE + 0x100000, DRIVER_BASE + 0x130000),
    ("dam.sys", DRIVER_BASE + 0x200000, DRIVER_BASE + 0x21C000),
]

both_kinds = pytest.mark.parametrize("kernel", [False, True], ids=["converted", "kernel"])


def written(tmp_path: Path, dump: TriageDump | SyntheticMachine) -> Path:
    path = tmp_path / "mini.dmp"
    whole = dump if isinstance(dump, TriageDump) else TriageDump(dump)
    path.write_bytes(whole.write())
    return path


def report_of(tmp_path: Path, dump: TriageDump | SyntheticMachine) -> Report:
    report = triage(written(tmp_path, dump))
    jsonschema.validate(report.to_dict(), json.loads(SCHEMA.read_text()))
    assert report.to_text()
    return report


@both_kinds
def test_report_of_a_known_crash(tmp_path: Path, kernel: bool) -> None:
    machine = crashed_machine()
    machine.unloaded = UNLOADED
    machine.processor, machine.processors = 2, 4
    machine.process = ("notepad.exe", 4712, 816)
    secondary = [(TAG.bytes_le, b"SECRET-SERIAL"), (OTHER_TAG.bytes_le, b"")]
    report = report_of(tmp_path, TriageDump(machine, kernel, secondary=secondary))
    assert (report.dump.type, report.dump.type_name) == (4, "triage (minidump)")
    assert report.bug_check.code == 0xD1
    assert [one.value for one in report.bug_check.parameters] == list(machine.parameters)
    assert [(one.name, one.image, one.base, one.timestamp) for one in report.modules] == [
        ("nt", "ntoskrnl.exe", NT_BASE, TIMESTAMP),
        ("victim", "victim.sys", DRIVER_BASE, TIMESTAMP),
    ]
    folder = "" if kernel else "\\SystemRoot\\System32\\drivers\\"
    assert report.modules[1].path == f"{folder}victim.sys"
    assert report.machine.debugger_data == "plain"
    one = report.processor
    assert (one.number, one.irql) == (2, 2)
    assert (one.thread, one.thread_id, one.process, one.process_id, one.process_name) == (
        *(ETHREAD, 816, EPROCESS, 4712, "notepad.exe"),
    )
    assert any("found by its text at 0x5a8" in source for source in one.sources)
    assert [(one.name, one.start, one.end, one.time) for one in report.unloaded_drivers] == [
        ("dump_stornvm", *UNLOADED[0][1:], None),
        ("dam.sys", *UNLOADED[1][1:], None),
    ]
    assert [(one.tag, one.name, one.size) for one in report.secondary_data] == [
        (str(TAG), "SMBIOS tables", 13),
        (str(OTHER_TAG), None, 0),
    ]
    for text in (report.to_text(), report.to_json()):
        assert "SECRET" not in text  # contents may be personal data
    assert "PROCESSOR  2, IRQL 2 (DISPATCH_LEVEL)" in report.to_text()
    assert "notepad.exe (4712)" in report.to_text()


@both_kinds
def test_the_fault_is_found_and_the_rest_of_the_stack_is_a_guess(
    tmp_path: Path, kernel: bool
) -> None:
    report = report_of(tmp_path, TriageDump(crashed_machine(), kernel))
    assert "trap frame" in report.context.source
    assert report.context.instruction == FAULT_RIP
    assert report.context.registers["rcx"] == 0x1234
    assert (report.context.module, report.context.offset) == ("victim", 0x1010)
    places = [(one.instruction, one.guess) for one in report.stack]
    assert places[0] == (FAULT_RIP, False)
    assert (RETURN_TO_ENTRY, True) in places
    assert all(guess for _, guess in places[1:])
    assert report.culprit.module == "victim"


def test_the_caller_of_the_bug_check_is_no_guess(tmp_path: Path) -> None:
    machine = crashed_machine(0xDEAD, (1, 2, 3, 4))
    report = report_of(tmp_path, TriageDump(machine))
    assert [(one.instruction, one.guess) for one in report.stack[:2]] == [
        (NT_BASE + 0x1000, False),
        (RETURN_TO_PAGE_FAULT, False),
    ]
    assert report.context.source == "the dump's header, at KeBugCheckEx"
    # Without the bug check's parameters in its home space nobody knows what is on top of the stack.
    machine = crashed_machine(0xDEAD, (1, 2, 3, 4))
    machine.write_u64(machine.registers["rsp"] + 8, 0)
    report = report_of(tmp_path, TriageDump(machine))
    assert [one.guess for one in report.stack[:2]] == [False, True]
    assert report.context.source == "the dump's header"


def test_a_wild_jump_blames_the_caller(tmp_path: Path) -> None:
    machine = crashed_machine(parameters=(0xFFFF8000DEAD0000, 2, 8, 0xFFFF8000DEAD0000))
    frame = trap_frame({"rip": 0xFFFF8000DEAD0000, "rsp": FAULT_RSP})
    machine.space.write(TRAP_FRAME, frame)
    machine.write_u64(machine.registers["rsp"] + 8, machine.code, *machine.parameters)
    machine.write_u64(FAULT_RSP, RETURN_TO_ENTRY)
    report = report_of(tmp_path, TriageDump(machine))
    assert report.context.module is None
    assert (report.stack[1].instruction, report.stack[1].guess) == (RETURN_TO_ENTRY, False)
    assert report.culprit.module == "victim"


def test_a_scan_takes_nothing_for_a_return_address_that_no_call_is_before(tmp_path: Path) -> None:
    """With the code in the dump, only what follows a call counts."""
    machine = crashed_machine(0xDEAD, (1, 2, 3, 4))
    victim = DRIVER_BASE + 0x1000
    machine.write_u64(FAULT_RSP - 0x10, victim + 0x20)  # between instructions that are no calls
    without = report_of(tmp_path, TriageDump(machine))
    with_code = report_of(tmp_path, TriageDump(machine, blocks=[(victim, 0x200)]))
    assert victim + 0x20 in [one.instruction for one in without.stack]
    assert victim + 0x20 not in [one.instruction for one in with_code.stack]
    assert RETURN_TO_ENTRY in [one.instruction for one in with_code.stack]


@pytest.mark.parametrize("code", [0x3B, 0x7E, 0x1000007E])
def test_the_header_of_a_converted_dump_may_have_the_registers_of_the_fault(
    tmp_path: Path, code: int
) -> None:
    """The CONTEXT that a parameter names is then not in the dump."""
    machine = crashed_machine(code, (0xC0000005, FAULT_RIP, 0xFFFFD00000001000, 0xFFFFD00000002000))
    machine.registers = {"rip": FAULT_RIP, "rsp": FAULT_RSP, "rbx": 0x77}
    report = report_of(tmp_path, TriageDump(machine))
    assert report.context.source.startswith("the dump's header")
    assert report.context.instruction == FAULT_RIP
    assert report.context.registers["rbx"] == 0x77
    assert report.culprit.module == "victim"
    machine.registers["rip"] += 1  # elsewhere: then they are not the fault's
    assert report_of(tmp_path, TriageDump(machine)).context.instruction is None


def test_a_page_fault_whose_home_space_is_missing(tmp_path: Path) -> None:
    machine = crashed_machine(0x50, (0xFFFF8000DEAD0000, 0, FAULT_RIP, 2))
    machine.write_u64(machine.registers["rsp"] + 8, 0, 0, 0, 0)
    report = report_of(tmp_path, TriageDump(machine))
    assert report.context.instruction == FAULT_RIP
    assert "found on the stack by its rip" in report.context.source


def test_the_exception_record_of_the_header_is_never_used(tmp_path: Path) -> None:
    data = bytearray(triage_dump(crashed_machine()))
    before = data.copy()
    struct.pack_into("<IIQQ", data, 0xF00, 0x80000003, 0, 0, NT_BASE + 0x1000)
    reports = []
    for one in (before, data):
        path = tmp_path / "mini.dmp"
        path.write_bytes(one)
        reports.append(triage(path))
    assert reports[0] == reports[1]


def test_blocks_win_over_the_saved_stack(tmp_path: Path) -> None:
    machine = crashed_machine()
    data = bytearray(triage_dump(machine, blocks=[(TRAP_FRAME + 0x30, 0x18)]))
    at = len(data) - 4 - 0x18
    struct.pack_into("<3Q", data, at, 0x11, 0x5678, 0x33)  # rax, rcx, rdx of the trap frame
    path = tmp_path / "mini.dmp"
    path.write_bytes(data)
    assert triage(path).context.registers["rcx"] == 0x5678


def test_copies_of_thread_and_process_are_memory(tmp_path: Path) -> None:
    with open_dump(written(tmp_path, crashed_machine())) as dump:
        assert dump.pages is None
        assert dump.memory.u64(ETHREAD + 0xB8) == EPROCESS
        assert dump.memory.read(EPROCESS + 0x5A8, 7) == b"System\0"
        assert dump.memory.read(dump.header.debugger_data + 0x10, 4) == b"KDBG"
        assert dump.memory.read(STACK, 8) is None  # below rsp


# What is not as it should be


def test_a_dump_without_its_mark_is_refused(tmp_path: Path) -> None:
    data = bytearray(triage_dump(crashed_machine()))
    data[-4:] = b"DRGT"
    path = tmp_path / "mini.dmp"
    path.write_bytes(data)
    with pytest.raises(DumpError, match="expected TRGD"):
        triage(path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({0x04: 0}, "the size of a triage dump"),
        ({0x04: 0xFFFFFFFF, 0x08: 0xFFFFFFFB}, "the size of a triage dump"),
        ({0x08: 0x2000}, "the offset of its last four bytes"),
    ],
)
def test_sizes_that_cannot_be_are_refused(
    tmp_path: Path, changes: dict[int, int], expected: str
) -> None:
    with pytest.raises(DumpError, match=expected):
        triage(written(tmp_path, TriageDump(crashed_machine(), changes=changes)))


def test_a_dump_cut_anywhere_is_a_report_or_a_dump_error(tmp_path: Path) -> None:
    machine = crashed_machine()
    machine.unloaded = UNLOADED
    secondary = [(TAG.bytes_le, b"data")]
    data = TriageDump(machine, blocks=[(NT_BASE, 0x40)], secondary=secondary).write()
    path = tmp_path / "mini.dmp"
    refused = 0
    for size in [*range(0x2000, len(data), 0xF4), *range(len(data) - 0x60, len(data))]:
        path.write_bytes(data[:size])
        checked = check_dump(path)
        try:
            report = triage(path)
        except DumpError:
            refused += 1
            assert size < 0x2080
            continue
        assert report.bug_check.code == 0xD1
        cut = size < report.dump.required_size
        assert any("the dump is cut" in one for one in report.warnings) == cut
        assert (checked.state is State.TRUNCATED) == cut
    assert refused > 0


HUGE = 0xFFFFFFFF


def test_any_field_may_say_anything(tmp_path: Path) -> None:
    machine = crashed_machine()
    machine.unloaded = UNLOADED
    whole = triage_dump(machine, blocks=[(NT_BASE, 0x40)])
    path = tmp_path / "mini.dmp"
    for field in range(0x200C, 0x2080, 4):
        for value in (0, 1, 0x1FFF, 0x2000, 0x7FFFFFFF, HUGE):
            data = bytearray(whole)
            struct.pack_into("<I", data, field, value)
            path.write_bytes(data)
            report = triage(path)
            assert report.bug_check.code == 0xD1, f"{field:x} {value:x}"
            assert report.to_text()


def test_counts_beyond_the_file_are_told(tmp_path: Path) -> None:
    report = report_of(tmp_path, TriageDump(crashed_machine(), changes={0x34: HUGE, 0x7C: HUGE}))
    assert any("blocks of memory are read" in one for one in report.warnings)
    assert any("modules are read" in one for one in report.warnings)


def test_the_kernel_is_known_by_its_base(tmp_path: Path) -> None:
    machine = crashed_machine()
    whole = TriageDump(machine)
    data = bytearray(whole.write())
    first = int.from_bytes(data[0x2030:0x2034], "little")
    data[first : first + 0x120] = data[first + 0x90 : first + 0x120] + data[first : first + 0x90]
    path = tmp_path / "mini.dmp"
    path.write_bytes(data)
    assert [one.name for one in triage(path).modules] == ["victim", "nt"]
    struct.pack_into("<I", data, 0x2074, 0)  # without debugger data the first is taken for it
    path.write_bytes(data)
    assert [one.name for one in triage(path).modules] == ["nt", "ntoskrnl"]


def test_a_module_with_a_hostile_name(tmp_path: Path) -> None:
    machine = crashed_machine()
    machine.modules.append(("\x1b[2J\u202e.sys", DRIVER_BASE + 0x100000, 0x1000))
    machine.modules.append(("x" * 600 + ".sys", DRIVER_BASE + 0x200000, 0x1000))
    report = report_of(tmp_path, TriageDump(machine))
    assert report.modules[2].name.isascii()
    assert "\x1b" not in report.to_text()
    assert len(report.modules[3].path) <= 512


@pytest.mark.parametrize(
    ("code", "parameters"),
    [
        (0x5454414D, (0x4E4F4F4D, 0x534C4F53, 0x4E4F4F4D, 0x534C4F53)),
        (0x45474150, (0x4547415045474150,) * 4),
    ],
)
def test_text_in_the_bug_check_fields_is_refused_by_name(
    tmp_path: Path, code: int, parameters: tuple[int, int, int, int]
) -> None:
    machine = crashed_machine(code, parameters)
    path = tmp_path / "a.dmp"
    for data in (machine.dump(FULL), triage_dump(machine)):
        path.write_bytes(data)
        with pytest.raises(DumpError, match="text in the bug-check fields"):
            triage(path)


def test_secondary_data_that_is_cut_or_lies(tmp_path: Path) -> None:
    whole = TriageDump(crashed_machine(), secondary=[(TAG.bytes_le, bytes(64))] * 2).write()
    start = whole.index(b"DumpBlob") + 0x10
    path = tmp_path / "mini.dmp"
    for data, count, told in (
        (whole, 2, None),
        (whole[: start + 0x20 + 0x40 + 0x30], 1, f"secondary data {TAG}"),
        (whole[: start + 0x20 + 0x40 + 0x10], 1, None),
        (whole[: start - 8], 0, None),
        (whole[: start + 20] + struct.pack("<I", HUGE) + whole[start + 24 :], 0, "is cut"),
    ):
        path.write_bytes(data)
        report = triage(path)
        assert len(report.secondary_data) == count
        assert told is None or any(told in one for one in report.warnings)


def test_secondary_data_without_end(tmp_path: Path) -> None:
    secondary = [(OTHER_TAG.bytes_le, b"")] * 3000
    report = report_of(tmp_path, TriageDump(crashed_machine(), secondary=secondary))
    assert len(report.secondary_data) == 1024
    assert any("more than 1024 pieces" in one for one in report.warnings)


def test_a_process_that_cannot_be_told_is_unknown(tmp_path: Path) -> None:
    machine = crashed_machine()
    dump = TriageDump(machine)
    dump.write()
    path = tmp_path / "mini.dmp"
    data = bytearray(dump.write())
    process = data.index(b"System\0")
    data[process - 0x100 : process - 0x100 + 16] = b"other.exe".ljust(15, b"\0") + b"\2"
    path.write_bytes(data)
    report = triage(path)
    assert report.processor.process_name is None  # two texts could be it
    assert report.processor.process_id == 4
    data = bytearray(TriageDump(machine, changes={0x70: 0x2080, 0x74: 0}).write())
    path.write_bytes(data)
    report = triage(path)
    assert report.processor == Processor()
    assert report.machine.debugger_data is None
    assert any("KDDEBUGGER_DATA64" in one for one in report.warnings)


# Full dumps: the same by KDDEBUGGER_DATA64


def test_processor_and_unloaded_drivers_of_a_full_dump(tmp_path: Path) -> None:
    machine = crashed_machine()
    machine.unloaded = UNLOADED
    machine.processor, machine.processors = 1, 3
    machine.process = ("a_long_name_14", 8, 12)
    report = triage(machine.write(tmp_path / "a.dmp", FULL))
    one = report.processor
    assert (one.number, one.irql, one.thread, one.process_name) == (1, 2, ETHREAD, "a_long_name_14")
    assert (one.process_id, one.thread_id) == (8, 12)
    assert "its saved registers are those of the header" in one.sources[0]
    assert [(one.name, one.start) for one in report.unloaded_drivers] == [
        ("dump_stornvme.sys", UNLOADED[0][1]),
        ("dam.sys", UNLOADED[1][1]),
    ]
    assert all(one.time is not None for one in report.unloaded_drivers)


def test_the_processor_of_a_full_dump_by_its_stack(tmp_path: Path) -> None:
    machine = crashed_machine()
    data = bytearray(machine.dump(FULL))
    record = context_record(machine.registers)
    copy = data.index(record, 0x2000)
    data[copy : copy + len(record)] = bytes(len(record))  # nobody saved them in the KPRCB
    path = tmp_path / "a.dmp"
    path.write_bytes(data)
    report = triage(path)
    assert report.processor.thread == ETHREAD
    assert "its thread's stack" in report.processor.sources[0]
    saved = copy - 0x1F0 + 0x100 + 0x48
    data[saved : saved + 8] = bytes(8)  # nor Dr7: then Cr8 is no IRQL
    path.write_bytes(data)
    report = triage(path)
    assert (report.processor.irql, report.processor.number) == (None, 0)


# ARM64


def arm64_machine() -> SyntheticMachine:
    machine = SyntheticMachine(0x50, (0x10, 0, NT_BASE + 0x4444, 2), machine=0xAA64, build=22000)
    machine.modules += [("ntoskrnl.exe", NT_BASE, 0x100000), ("victim.sys", DRIVER_BASE, 0x10000)]
    machine.space.write(STACK, bytes(STACK_SIZE))
    machine.registers = {f"x{number}": 0x1000 + number for number in range(29)} | {
        "fp": STACK + 0x100,
        "lr": DRIVER_BASE + 0x1234,
        "sp": STACK + 0x80,
        "pc": NT_BASE + 0x5678,
    }
    return machine


@both_kinds
def test_an_arm64_dump_has_header_modules_and_registers(tmp_path: Path, kernel: bool) -> None:
    machine = arm64_machine()
    report = report_of(tmp_path, TriageDump(machine, kernel))
    assert report.machine.architecture == "ARM64"
    assert [one.name for one in report.modules] == ["nt", "victim"]
    for name, value in machine.registers.items():
        assert report.context.registers[name] == value
    assert not {"rip", "rsp", "rax"} & set(report.context.registers)
    assert [(one.module, one.offset, one.guess) for one in report.stack] == [
        ("nt", 0x5678, False),
        ("victim", 0x1234, True),
    ]
    assert (report.processor.process_name, report.processor.irql) == ("System", None)
    assert any("ARM64 are not unwound" in one for one in report.warnings)
    assert "x28=000000000000101c" in report.to_text()


def test_an_arm64_dump_whose_lr_leads_nowhere(tmp_path: Path) -> None:
    machine = arm64_machine()
    machine.registers["lr"] = 5
    assert len(report_of(tmp_path, TriageDump(machine)).stack) == 1


def test_an_arm64_dump_with_a_record_of_x64(tmp_path: Path) -> None:
    data = bytearray(triage_dump(arm64_machine()))
    data[0x348:0x34C] = bytes(4)
    path = tmp_path / "mini.dmp"
    path.write_bytes(data)
    report = triage(path)
    assert report.bug_check.code == 0x50
    assert any("no ARM64 registers" in one for one in report.warnings)


def test_an_arm64_dump_of_pages_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DumpError, match="expected x64 as the machine of a full dump, found ARM64"):
        triage(arm64_machine().write(tmp_path / "a.dmp", FULL))
