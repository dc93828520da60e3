"""What bug checks themselves say of who is at fault, from machines with such objects in memory."""

from __future__ import annotations

import struct
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashdump_analysis import Report, triage
from crashdump_analysis.bugchecks import describe, known_codes
from crashdump_analysis.bugchecks.evidence import find_evidence, rule
from crashdump_analysis.bugchecks.faults import Crash
from crashdump_analysis.memory import Memory
from crashdump_analysis.modules import Module, Modules
from crashdump_analysis.registers import Registers
from tests.support.synthetic_dump import (
    DRIVER_BASE,
    FAULT_RIP,
    FAULT_RSP,
    RETURN_TO_ENTRY,
    STACK,
    SyntheticMachine,
    crashed_machine,
    pe_image,
    trap_frame,
)

KERNEL_STACK = 0x58
"""Offset of KTHREAD.KernelStack, which KDDEBUGGER_DATA64 has."""
WORDS = st.integers(0, (1 << 64) - 1)
OBJECTS = 0xFFFFE000_00000000
"""Where tests put kernel objects."""
BUS_BASE, FILTER_BASE = DRIVER_BASE + 0x100000, DRIVER_BASE + 0x200000


def reported(machine: SyntheticMachine, path: Path, *owners: Path) -> Report:
    return triage(machine.write(path / "a.dmp"), owners=owners)


def power_failure(parameters: tuple[int, int, int, int]) -> SyntheticMachine:
    """A 0x9F of a device stack bus.sys < victim.sys < filter.sys; devices at OBJECTS + 0x1000."""
    machine = crashed_machine(0x9F, parameters)
    machine.load("bus.sys", BUS_BASE, pe_image())
    machine.load("filter.sys", FILTER_BASE, pe_image())
    bases = (BUS_BASE, DRIVER_BASE, FILTER_BASE)
    for number, base in enumerate(bases):
        driver, device = OBJECTS + 0x200 * number, OBJECTS + 0x1000 + 0x200 * number
        machine.space.write(driver, struct.pack("<HH20xQ", 4, 0x150, base))
        upper = device + 0x200 if number + 1 < len(bases) else 0
        machine.space.write(device, struct.pack("<HHIQQQ", 3, 0x150, 1, driver, 0, upper))
    return machine


PDO, DEVICE, IRP = OBJECTS + 0x1000, OBJECTS + 0x1200, OBJECTS + 0x3000


def put_irp(machine: SyntheticMachine, device: int, *, location: int = 2, count: int = 3) -> None:
    irp = bytearray(0xD0)
    struct.pack_into("<HH", irp, 0, 6, 0xD0)
    struct.pack_into("<BB", irp, 0x42, count, location)
    struct.pack_into("<Q", irp, 0xB8, IRP + 0x100)
    machine.space.write(IRP, bytes(irp))
    machine.space.write(IRP + 0x100, struct.pack("<BB38xQ", 0x16, 2, device))


def test_rules_are_found_by_the_names_in_the_entries() -> None:
    named = {describe(code, (0, 0, 0, 0)).evidence for code in known_codes()} - {""}
    folder = Path(str(rule.__code__.co_filename)).parent
    there = {path.stem.replace("_", "-") for path in folder.glob("*.py")}
    # These are not for a bug check: for unknown ones, and what rules share.
    assert there - {"--init--", "objects", "raiser"} == named
    for name in named:
        assert callable(rule(name))
    with pytest.raises(ModuleNotFoundError):
        rule("no-such-rule")


def test_a_blocked_power_request_is_the_fault_of_who_has_it(tmp_path: Path) -> None:
    machine = power_failure((3, PDO, 0, IRP))
    put_irp(machine, DEVICE)
    found = reported(machine, tmp_path)
    assert (found.culprit.module, found.culprit.confidence) == ("victim", "high")
    assert f"the IRP {IRP:x} is with the device {DEVICE:x}" in found.culprit.evidence[0]
    # It is on this stack, too, which is chance.
    assert (found.context.frame, found.bucket.id) == (0, "0x9F_3_victim_IMAGE_bus.sys")
    put_irp(machine, DEVICE + 0x200)
    found = reported(machine, tmp_path)
    assert (found.culprit.module, found.culprit.function) == ("filter", None)
    assert found.bucket.id == "0x9F_3_filter_IMAGE_bus.sys"
    assert (found.bucket.family, found.bucket.basis) == ("filter by 0x9F (3)", "evidence")


@pytest.mark.parametrize("broken", ["missing", "completed", "type"])
def test_without_the_request_the_driver_above_the_bus_is_named(tmp_path: Path, broken: str) -> None:
    machine = power_failure((3, PDO, 0, IRP))
    if broken != "missing":
        put_irp(machine, FILTER_BASE, location=4 if broken == "completed" else 2)
    found = reported(machine, tmp_path).culprit
    assert (found.module, found.confidence) == ("victim", "medium")
    assert "from the bus up is bus < victim < filter" in found.evidence[0]


def test_acpi_above_the_bus_is_not_the_devices_driver(tmp_path: Path) -> None:
    machine = power_failure((3, PDO, 0, 0))
    machine.modules[1:] = [
        ("ACPI.sys" if base == DRIVER_BASE else name, base, size)
        for name, base, size in machine.modules[1:]
    ]
    found = reported(machine, tmp_path)
    assert found.bucket.id == "0x9F_3_filter_IMAGE_bus.sys"


def test_a_stuck_device_that_is_not_in_the_dump_is_nobodys(tmp_path: Path) -> None:
    found = reported(crashed_machine(0x9F, (3, PDO, 0, IRP)), tmp_path).culprit
    assert (found.module, found.confidence) == (None, "none")
    assert "not in the dump" in found.reason


def test_the_holder_of_the_plug_and_play_lock(tmp_path: Path) -> None:
    """Its own stack, from where it stopped running; the driver on it is at fault."""
    machine = crashed_machine(0x9F, (4, 300, OBJECTS, 0))
    place = STACK + 0x1000
    machine.write_u64(OBJECTS + KERNEL_STACK, place)
    machine.write_u64(place + 0x30, 0x5555, RETURN_TO_ENTRY, 0, 0, 0, 0, 0, 0)
    found = reported(machine, tmp_path)
    assert found.stack[0].instruction == RETURN_TO_ENTRY
    assert found.context.registers["rbp"] == 0x5555
    assert f"the thread {OBJECTS:x}, which holds the lock" in found.context.source
    assert (found.culprit.module, found.culprit.confidence) == ("victim", "medium")
    assert found.bucket.id == "0x9F_4_victim!unknown_function"
    machine.write_u64(OBJECTS + KERNEL_STACK, 0)
    found = reported(machine, tmp_path)
    assert (found.culprit.module, found.bucket.id) == (None, "0x9F_4")
    assert "holds the lock is not in the dump" in found.culprit.reason


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (0x18, "a null pointer"),
        (0x7FF612340000, "user mode"),
        (DRIVER_BASE + 0x1234, "lies in victim+0x1234"),
        (0xFFFF8000DEAD0000, ""),
        (0xFFF7F80012345678, "by bit 51 alone"),
        (0x0000800012345678, "by bit 47 alone"),
        (0x6162636465666768, "taken for a pointer"),
    ],
)
@pytest.mark.parametrize("code", [0x0A, 0x50, 0xD1])
def test_bad_addresses(tmp_path: Path, code: int, address: int, words: str) -> None:
    found = reported(crashed_machine(code, (address, 2, 0, FAULT_RIP)), tmp_path).culprit
    assert found.module == "victim"
    assert found.evidence == () if not words else words in found.evidence[0]


def test_bad_addresses_of_exceptions(tmp_path: Path) -> None:
    violation = 0xFFFFFFFF_C0000005
    machine = crashed_machine(0x1E, (violation, FAULT_RIP, 0, 0x9C))
    assert "null pointer" in reported(machine, tmp_path).culprit.evidence[0]
    machine = crashed_machine(0x7E, (violation, FAULT_RIP, OBJECTS, 0))
    machine.space.write(OBJECTS, struct.pack("<I12xQI4xQQ", 0xC0000005, FAULT_RIP, 2, 0, 0x9C))
    assert "null pointer" in reported(machine, tmp_path).culprit.evidence[0]
    unknown = crashed_machine(0x1E, (violation, FAULT_RIP, 0, (1 << 64) - 1))
    assert "no address was reported" in reported(unknown, tmp_path).culprit.evidence[0]
    other = crashed_machine(0x1E, (0xC0000094, FAULT_RIP, 0, 0x9C))
    assert reported(other, tmp_path).culprit.evidence == ()


def test_a_device_stack_that_runs_in_a_circle(tmp_path: Path) -> None:
    machine = power_failure((3, PDO, 0, 0))
    machine.write_u64(DEVICE + 0x200 + 0x18, PDO)
    assert reported(machine, tmp_path).culprit.module == "victim"


@pytest.mark.parametrize("code", [0x116, 0x117, 0x141])
def test_display_driver(tmp_path: Path, code: int) -> None:
    machine = crashed_machine(code, (0, BUS_BASE + 0x1234, 0, 0))
    machine.load("display.sys", BUS_BASE, pe_image())
    found = reported(machine, tmp_path)
    assert (found.culprit.module, found.culprit.confidence) == ("display", "high")
    assert found.bucket.id == f"0x{code:X}_IMAGE_display.sys"
    nowhere = crashed_machine(code, (0, 0xFFFFF80000001234, 0, 0))
    assert reported(nowhere, tmp_path).culprit.module is None


def test_a_live_dump_is_told_by_what_is_not_on_its_stack(tmp_path: Path) -> None:
    """Its registers are not those at KeBugCheckEx, whose home space holds the bug check."""
    machine = crashed_machine(0x141, (0, BUS_BASE + 0x1234, 0, 0))
    machine.load("display.sys", BUS_BASE, pe_image())
    assert not reported(machine, tmp_path).bucket.id.startswith("LKD")
    machine.write_u64(machine.registers["rsp"] + 8, 0)
    assert reported(machine, tmp_path).bucket.id == "LKD_0x141_IMAGE_display.sys"
    machine.registers["rsp"] = 0xFFFFAB00_11110000  # a stack that is not in the dump
    assert reported(machine, tmp_path).bucket.id == "0x141_IMAGE_display.sys"
    machine.code = 0x1A5  # ..._LIVEDUMP: of these nobody dies
    assert reported(machine, tmp_path).bucket.id.startswith("LKD_0x1A5")


def test_a_drivers_own_bug_check_is_its_callers(tmp_path: Path) -> None:
    def crashed(first: int, caller: int) -> Report:
        machine = crashed_machine(0xA0000001, (first, 0, 0, 0))
        rsp = FAULT_RSP + 0x1000
        machine.registers["rsp"] = rsp
        machine.write_u64(rsp, caller, 0xA0000001, first, 0, 0, 0)
        return reported(machine, tmp_path)

    found = crashed(5, RETURN_TO_ENTRY)
    assert (found.culprit.module, found.culprit.confidence) == ("victim", "high")
    assert found.bucket.family == "victim raises 0xA0000001 (5)"
    assert crashed(5, RETURN_TO_ENTRY - 4).bucket.family == found.bucket.family  # another build
    assert crashed(6, RETURN_TO_ENTRY).bucket.family != found.bucket.family


def test_who_did_not_raise_a_bug_check_is_not_said_to(tmp_path: Path) -> None:
    """By the owner rules the raiser is never at fault; the driver behind it did not raise it."""
    machine = crashed_machine(0xA0000001, (5, 0, 0, 0))
    machine.load("raiser.sys", BUS_BASE, pe_image())
    machine.registers["rsp"] = FAULT_RSP + 0x1000
    caller = BUS_BASE + RETURN_TO_ENTRY - DRIVER_BASE
    stack = (caller, 0xA0000001, 5, 0, 0, 0, RETURN_TO_ENTRY)
    machine.write_u64(FAULT_RSP + 0x1000, *stack)
    assert reported(machine, tmp_path).bucket.family == "raiser raises 0xA0000001 (5)"
    (tmp_path / "owners.ini").write_text("raiser=ignore")
    found = reported(machine, tmp_path, tmp_path / "owners.ini")
    assert found.culprit.module == "victim"
    assert "raises" not in found.bucket.family


def test_an_unloaded_driver(tmp_path: Path) -> None:
    """By a bug check that says so, and by a jump to where its code was."""
    gone = ("gone.sys", 0xFFFFF800_30000000, 0xFFFFF800_30008000)
    address = gone[1] + 0x1234
    said = crashed_machine(0xCE, (address, 0, address, 0))
    jumped = crashed_machine(0xD1, (address, 2, 8, address))
    jumped.space.write(
        FAULT_RSP - 0x1000, trap_frame({"rip": address, "rsp": FAULT_RSP + 0x28})
    )  # the trap frame on the way there
    for machine in (said, jumped):
        machine.unloaded = [gone]
        found = reported(machine, tmp_path)
        assert (found.culprit.module, found.culprit.confidence) == ("gone", "high")
        assert "gone.sys was before it unloaded" in found.culprit.evidence[0]
        assert found.bucket.id.endswith("_IMAGE_gone.sys")
        machine.unloaded = []
        assert reported(machine, tmp_path).culprit.module == "victim"
    jumped.parameters = (0x10, 2, 8, address)
    assert "null pointer" in reported(jumped, tmp_path).culprit.evidence[0]


@pytest.mark.parametrize("reused", [True, False])
def test_no_unloaded_driver_is_blamed_for_what_was_not_its(tmp_path: Path, reused: bool) -> None:
    """The address behind its last one, and one where another driver lies now."""
    start, end = BUS_BASE, BUS_BASE + len(pe_image())
    address = start + 0x10 if reused else end
    machine = crashed_machine(0xCE, (address, 0, FAULT_RIP, 0))
    machine.unloaded = [("gone.sys", start, end)]
    if reused:
        machine.load("bus.sys", BUS_BASE, pe_image())
    assert reported(machine, tmp_path).culprit.module == "victim"


def test_a_driver_that_is_named(tmp_path: Path) -> None:
    machine = crashed_machine(0xEA, (1, 2, OBJECTS, 0))
    machine.load("display.sys", BUS_BASE, pe_image())
    name = "display.sys".encode("utf-16-le")
    machine.space.write(OBJECTS, struct.pack("<HHIQ", len(name), len(name), 0, OBJECTS + 0x20))
    machine.space.write(OBJECTS + 0x20, name)
    assert reported(machine, tmp_path).culprit.module == "display"
    machine.space.write(OBJECTS + 0x20, b"\0\xd8" * 4)
    assert reported(machine, tmp_path).culprit.module == "victim"  # the stack decides


def test_verifier(tmp_path: Path) -> None:
    machine = crashed_machine(0xC4, (0x62, OBJECTS, 0, 7))
    machine.load("leaky.sys", BUS_BASE, pe_image())
    machine.space.write(OBJECTS, b"LEAKY.SYS\0")
    found = reported(machine, tmp_path)
    assert found.culprit.module == "leaky"
    assert found.bucket.id == "0xc4_62_VRF_IMAGE_leaky.sys"
    rule_of_ddi = crashed_machine(0xC4, (0x20002, OBJECTS, 0, 0))
    rule_of_ddi.space.write(OBJECTS, b"Irql is not below DISPATCH_LEVEL\0")
    found = reported(rule_of_ddi, tmp_path)
    assert found.culprit.module == "victim"
    assert found.culprit.evidence == ("the rule's condition: Irql is not below DISPATCH_LEVEL",)
    assert found.bucket.id == "0xc4_IrqlApcLte_XDV_VRF_victim!unknown_function"


@pytest.mark.parametrize(("record", "words"), [(0xC0000409, "by the exception"), (1, "not tell")])
def test_fast_fail(tmp_path: Path, record: int, words: str) -> None:
    machine = crashed_machine(0x139, (3, FAULT_RSP - 0x1000, OBJECTS, 0))
    machine.space.write(OBJECTS, struct.pack("<I12xQI4xQ", record, FAULT_RIP, 1, 3))
    found = reported(machine, tmp_path).culprit
    assert words in found.evidence[0]
    assert ("another story" in found.reason) == (record == 1)


@pytest.mark.parametrize(
    ("parameters", "bit"),
    [
        ((0x41792, 0xFFFFF6800000_0000, 1 << 21, 0), 21),
        ((0x41792, 0xFFFFF6800000_0000, 0, 1 << 7), 39),
        ((0x403, 1, 0x8000000012345867, 0x8000000012344867), 12),
    ],
)
def test_one_wrong_bit_is_bad_memory(
    tmp_path: Path, parameters: tuple[int, int, int, int], bit: int
) -> None:
    found = reported(crashed_machine(0x1A, parameters), tmp_path)
    assert found.culprit.module is None
    assert f"bit {bit}" in found.culprit.evidence[0]
    assert found.bucket.id == "MEMORY_CORRUPTION_ONE_BIT"


@pytest.mark.parametrize("parameters", [(0x41792, 1, 3, 0), (0x403, 1, 0, 3), (0x411, 1, 1, 0)])
def test_more_wrong_bits_are_not(tmp_path: Path, parameters: tuple[int, int, int, int]) -> None:
    found = reported(crashed_machine(0x1A, parameters), tmp_path).culprit
    assert (found.module, found.confidence) == ("victim", "low")
    assert "afterwards" in found.reason


@pytest.mark.parametrize("code", [0x19, 0x13A])
def test_who_finds_a_damaged_pool_need_not_have_damaged_it(tmp_path: Path, code: int) -> None:
    found = reported(crashed_machine(code, (0x20, OBJECTS, 0, 0)), tmp_path).culprit
    assert (found.module, found.confidence) == ("victim", "medium")
    assert found.reason.endswith("who damaged it may be another")


def test_critical_process_and_object(tmp_path: Path) -> None:
    machine = crashed_machine(0xEF, (OBJECTS, 0, 0, 0))
    machine.space.write(OBJECTS, bytes(0x5A8) + b"csrss.exe\0".ljust(16, b"\0") + bytes(0x400))
    found = reported(machine, tmp_path)
    assert "csrss.exe" in found.culprit.evidence[0]
    assert found.culprit.confidence == "low"
    assert found.bucket.id.startswith("0xEF_csrss.exe_BUGCHECK_CRITICAL_PROCESS_")
    machine = crashed_machine(0xF4, (3, 1, OBJECTS, OBJECTS + 0x20))
    machine.space.write(OBJECTS, b"wininit.exe\0".ljust(0x20, b"\0") + b"it ended\0")
    words = reported(machine, tmp_path).culprit.evidence
    assert words == ("the process is wininit.exe", "the kernel says: it ended")


def test_a_processor_that_hangs(tmp_path: Path) -> None:
    """Its own stack where the dump has its registers; else nobody is named."""
    found = reported(crashed_machine(0x101, (0xC, 0, 0, 7)), tmp_path)
    assert found.culprit.module is None
    assert "processor 7 hangs" in found.culprit.reason
    assert not any("were not found" in one for one in found.warnings if "7" in one)
    huge = crashed_machine(0x101, (0xC, 0, 0, 1 << 60))
    assert reported(huge, tmp_path).culprit.module is None


def test_a_cumulative_watchdog_is_less_sure(tmp_path: Path) -> None:
    single = reported(crashed_machine(0x133, (0, 0x501, 0x500, 0)), tmp_path).culprit
    summed = reported(crashed_machine(0x133, (1, 0x1E00, 0, 0)), tmp_path).culprit
    assert (single.module, single.confidence) == ("victim", "high")
    assert (summed.module, summed.confidence) == ("victim", "medium")
    assert "all DPCs together" in summed.reason


def error_record(*sections: str, unit: bytes = b"") -> bytes:
    """A WHEA_ERROR_RECORD, fatal, with sections of those types."""
    head = b"CPER" + struct.pack("<HIHI", 0x210, 0xFFFFFFFF, len(sections), 1)
    record = head.ljust(0x80, b"\0")
    for one in sections:
        kind = uuid.UUID(one).bytes_le
        record += (bytes(0x10) + kind + bytes(0x14) + unit).ljust(0x48, b"\0")
    return record


MEMORY, PCI_EXPRESS = (
    "a5bc1114-6f64-4ede-b863-3e83ed7c83b1",
    "d995e954-bbc1-430f-ad91-b44dcb3c6f35",
)


def test_hardware_error(tmp_path: Path) -> None:
    machine = crashed_machine(0x124, (4, OBJECTS, 0, 0))
    machine.space.write(OBJECTS, error_record(MEMORY, PCI_EXPRESS, unit=b"DIMM A1"))
    found = reported(machine, tmp_path).culprit
    assert found.module is None
    assert found.evidence == (
        "the error record is fatal and has 2 sections",
        "section 1: memory, of the unit DIMM A1",
        "section 2: PCI Express, of the unit DIMM A1",
    )
    machine.space.write(OBJECTS, b"XPER")
    assert "no error record" in reported(machine, tmp_path).culprit.evidence[0]


@pytest.mark.parametrize(
    ("status", "detail"),
    [
        (0xBE00000000800400, "PROCESSOR_INTERNAL_TIMER"),
        (0xB200000000010005, "PROCESSOR_INTERNAL"),
        (0xBF80000000200135, "PROCESSOR_CACHE"),
        (0xFE00000000800E0F, "PROCESSOR_BUS"),
        (0xBE00000000010091, "PROCESSOR_MEMORY"),
        (0xB200000000000014, "PROCESSOR_TLB"),
        (0xB200000000000000, "PROCESSOR"),
    ],
)
def test_machine_checks(tmp_path: Path, status: int, detail: str) -> None:
    machine = crashed_machine(0x124, (0, 0, status >> 32, status & 0xFFFFFFFF))
    found = reported(machine, tmp_path)
    assert found.bucket.id == f"0x124_0_{detail}"
    assert any("uncorrected" in one for one in found.culprit.evidence)


def test_recursion_at_a_double_fault(tmp_path: Path) -> None:
    machine = crashed_machine(0x7F, (8, 0, 0, 0))
    rsp = FAULT_RSP + 0x30
    for _ in range(20):  # Entry calls itself: 0x28 bytes and a return address
        machine.write_u64(rsp + 0x28, RETURN_TO_ENTRY)
        rsp += 0x30
    machine.write_u64(rsp + 0x28, 0)
    found = reported(machine, tmp_path)
    words = found.culprit.evidence[0]
    assert words.startswith("21 frames return to victim")
    assert f"recursion; they span {20 * 0x30} bytes" in words
    assert found.bucket.id == "0x7F_STACK_OVERFLOW_victim!unknown_function"


def test_a_labs_own_rules_come_first(tmp_path: Path) -> None:
    rules = tmp_path / "ours.ini"
    rules.write_text("victim=our_drivers\nnt!Start*=ignore\n")
    assert reported(crashed_machine(), tmp_path).culprit.owner == "MachineOwner"
    found = reported(crashed_machine(), tmp_path, rules).culprit
    assert (found.module, found.owner) == ("victim", "our_drivers")
    rules = tmp_path / "others.ini"
    rules.write_text("victim=ignore\nnt=kernel_team\n")
    found = reported(crashed_machine(), tmp_path, rules).culprit
    assert (found.module, found.owner, found.confidence) == ("nt", "kernel_team", "medium")


WITH_RULES = [code for code in known_codes() if describe(code, (0, 0, 0, 0)).evidence]


class Anything(Memory):
    """The same few bytes everywhere, so that every pointer leads to something."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_some(self, address: int, size: int) -> bytes:
        start = address % 8
        return (self._data * (size // len(self._data) + 2))[start : start + min(size, 0x2000)]


@given(
    st.sampled_from([*WITH_RULES, 0xA0000001]),
    st.tuples(*[st.sampled_from([0, 1, 3, 4, 0x62, 0x20002, OBJECTS, (1 << 64) - 1]) | WORDS] * 4),
    st.binary(min_size=8, max_size=64),
)
def test_any_bytes_are_evidence_or_none(
    code: int, parameters: tuple[int, int, int, int], data: bytes
) -> None:
    modules = Modules([Module("nt", "ntoskrnl.exe", "", OBJECTS, 1 << 20, 0, 0)])
    crash = Crash(code, parameters, Anything(data), Registers(), (), None, modules)
    found = find_evidence(crash, describe(code, parameters), None)
    assert found is None or all(one.isprintable() for one in found.words)
