"""Three readers of other people's making agree on the dumps of every crash, and on what is known.

What is known comes from elsewhere than the dump: from the sensor's source, from image files, from
the screen. Microsoft's engine is asked only where its terms were accepted; the others always are.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from pathlib import Path

import pefile
import pytest

from images.contract import Contract
from images.test_kernel.build import BUILT
from tests.integration.conftest import CrashFactory
from tests.oracle.dbgeng import (
    READS,
    Expectations,
    ExpectedFrame,
    compare,
    describe,
    judge,
    volatility_differences,
)
from tests.oracle.readers import KernelDump, Volatility
from tests.support.crashes import DPC_TIMEOUT, Crash
from tests.support.kernel_memory import kernel_base, loaded_modules
from tests.support.sensor import (
    CRASHES,
    KINDS,
    ONE_OF_EACH,
    CrashKind,
    built,
    source_function,
    source_line,
)
from tests.support.symbols import export, places, public_symbol

every_crash = pytest.mark.parametrize(("kind", "variant"), CRASHES)
one_of_each = pytest.mark.parametrize(("kind", "variant"), ONE_OF_EACH)
KERNEL = BUILT / "ntoskrnl.exe"
CLOCK_TICK = 10
"""Milliseconds between the ticks that the DPC watchdog counts."""
OWNER_POLICY_FLAGS = 0x9C
"""Offset in the sensor's owner structure that the exception reads through a null pointer."""

# Frames of the kernel that are as on Windows, between KeBugCheckEx and the sensor.
KERNEL_FRAMES = {
    "killer": ("MmAccessFault", "KiPageFault"),
    "freed": ("KiBugCheckDispatch", "KiPageFault"),
    "exception": ("KiDispatchException", "KiExceptionDispatch", "KiPageFault"),
    "hang": ("KeAccumulateTicks",),
    "nmi": ("KiNmiInterrupt",),
    "keyboard": ("KiInterruptDispatch",),
}
OUTERMOST = ("nt!KiStartSystemThread", "nt!KiSystemStartup")
ASSEMBLY = frozenset(
    {
        "nt!KeBugCheckEx",
        "nt!KiBugCheckDispatch",
        "nt!KiExceptionDispatch",
        "nt!KiNmiInterrupt",
        "nt!KiPageFault",
        "nt!KiStartSystemThread",
        *(f"nt!KiIsrEntry{line}" for line in range(16)),
    }
)


def sensor_base(crash: Crash) -> int:
    """Where the blue screen says that the sensor lies."""
    (base,) = re.findall(r"sensor\.sys Address [0-9A-F]+ base at ([0-9A-F]+)", crash.screen_text)
    return int(base, 16)


def fault(kind: CrashKind, dump: KernelDump) -> int:
    """The sensor's instruction that a bug check is about, from its parameters."""
    return dump.bug_check_parameters[{0x50: 2, 0xD1: 3, 0x7E: 1}[kind.stop_code]]


def image_differences(dump: KernelDump, base: int, image: Path) -> list[str]:
    """Sections that cannot be written to, against the file; relocated pointers aside."""
    out = []
    with pefile.PE(str(image)) as parsed:
        relocated = {
            entry.rva + byte
            for block in getattr(parsed, "DIRECTORY_ENTRY_BASERELOC", [])
            for entry in block.entries
            for byte in range(8)
        }
        imports = parsed.OPTIONAL_HEADER.DATA_DIRECTORY[12]  # bound at load
        relocated.update(range(imports.VirtualAddress, imports.VirtualAddress + imports.Size))
        for section in parsed.sections:
            name = section.Name.rstrip(b"\0").decode()
            if section.IMAGE_SCN_MEM_WRITE or section.IMAGE_SCN_MEM_DISCARDABLE:
                continue
            data = section.get_data()[: section.Misc_VirtualSize]
            found = dump.read(base + section.VirtualAddress, len(data))
            if found is None:
                out.append(f"{image.name} {name}: not in the dump")
                continue
            wrong = [
                at
                for at, (ours, theirs) in enumerate(zip(found, data, strict=True))
                if ours != theirs and section.VirtualAddress + at not in relocated
            ]
            if wrong:
                out.append(f"{image.name} {name}: {len(wrong)} bytes differ, first at {wrong[0]:x}")
    return out


@every_crash
def test_kdmp_parser(crash_of: CrashFactory, kind: str, variant: str, contract: Contract) -> None:
    crash = crash_of(kind, variant)
    dump = KernelDump(crash.dump)
    assert (dump.dump_type, dump.build, dump.machine) == (6, contract.os.build, 0x8664)
    assert dump.processors == contract.hardware.processors
    kernel = kernel_base(dump)
    # Windows takes the registers at the entry of KeBugCheckEx.
    assert dump.registers["rip"] == kernel + export(KERNEL, "KeBugCheckEx")
    reads = dump.sample(1, READS, [(kernel, 0x100000), (dump.registers["rsp"], 0x1000)])
    assert [one for one in reads if dump.read(*one) is None] == []
    assert image_differences(dump, kernel, KERNEL) == []
    modules = loaded_modules(dump)
    assert list(modules) == ["ntoskrnl.exe", "sensor.sys"]
    assert modules["ntoskrnl.exe"] == kernel
    assert image_differences(dump, modules["sensor.sys"], built(variant) / "sensor.sys") == []
    if KINDS[kind].frames:
        assert modules["sensor.sys"] == sensor_base(crash)


@every_crash
def test_parameters(crash_of: CrashFactory, kind: str, variant: str) -> None:
    """The bug check's parameters mean what Windows' documentation says, for the culprit."""
    crash, what = crash_of(kind, variant), KINDS[kind]
    dump = KernelDump(crash.dump)
    first, second, third, fourth = dump.bug_check_parameters
    if kind == "killer":
        assert dump.read(first, 1) is None
        assert second == 0  # a read
    elif kind == "freed":
        assert dump.read(first, 1) is None
        assert (second, third) == (2, 0)  # DISPATCH_LEVEL, a read
    elif kind == "exception":
        record, context = dump.read(third, 0x98), dump.read(fourth, 0x100)
        assert first == 0xFFFFFFFF_C0000005
        assert record is not None
        assert context is not None
        code, at, parameters, access, address = struct.unpack_from("<I12xQI4xQQ", record)
        assert (code, at, parameters, access) == (0xC0000005, second, 2, 0)
        assert address == OWNER_POLICY_FLAGS
        assert struct.unpack_from("<Q", context, 0xF8) == (second,)  # CONTEXT.Rip
    elif kind == "hang":
        assert (first, third) == (0, DPC_TIMEOUT // CLOCK_TICK)
        assert second > third
    else:
        assert (first, second, third, fourth) == (0x4F4454 if kind == "nmi" else 0, 0, 0, 0)
    if what.culprit:
        file, statement = what.culprit
        (place, *_) = places(built(variant) / "sensor.pdb", fault(what, dump) - sensor_base(crash))
        assert (place.function, place.file) == (what.frames[0], file)
        assert place.line == source_line(file, statement)


@pytest.mark.parametrize(("kind", "variant"), [one for one in CRASHES if KINDS[one[0]].frames])
def test_the_dump_bears_its_boots_nonce(crash_of: CrashFactory, kind: str, variant: str) -> None:
    crash, folder = crash_of(kind, variant), built(variant)
    offset = public_symbol(folder / "sensor.pdb", folder / "sensor.sys", "SensorNonce")
    found = KernelDump(crash.dump).read(sensor_base(crash) + offset, 72)
    assert found == b"SNONCE:\0" + crash.nonce.encode().ljust(64, b"\0")


@pytest.fixture(scope="session")
def volatility(tmp_path_factory: pytest.TempPathFactory) -> Volatility:
    """volatility3 with folders of its own for each test process."""
    folder = tmp_path_factory.mktemp("volatility")
    return Volatility(folder / "symbols", folder / "cache")


@one_of_each
def test_volatility3(
    crash_of: CrashFactory, kind: str, variant: str, volatility: Volatility, contract: Contract
) -> None:
    dump = KernelDump(crash_of(kind, variant).dump)
    info = volatility.crash_info(dump.path)
    assert info["MinorVersion"] == contract.os.build
    assert info["DirectoryTableBase"] == dump.directory_table_base
    base = kernel_base(dump)
    modules = volatility.modules(dump.path, KERNEL, dump.ps_loaded_module_list - base)
    sizes = {}
    for name, file in (("ntoskrnl.exe", KERNEL), ("sensor.sys", built(variant) / "sensor.sys")):
        with pefile.PE(str(file), fast_load=True) as image:
            sizes[name] = image.OPTIONAL_HEADER.SizeOfImage
    assert {name: size for name, (_, size) in modules.items()} == sizes
    assert modules["ntoskrnl.exe"][0] == base


def sensor_frames(kind: str, variant: str) -> tuple[str, ...]:
    """The sensor's frames as this engine shows them.

    It takes a trapped instruction for a return address and looks inline frames up one byte before
    it. In that of the inlined exception another function was inlined.
    """
    frames = KINDS[kind].frames
    if (kind, variant) == ("exception", "a-inlined"):
        return ("CriterionNumber", *frames[1:])
    return frames


def expected_stack(kind: str, variant: str) -> Sequence[ExpectedFrame]:
    """Frames that must be there, innermost first; the statement at fault with its line."""
    culprit = KINDS[kind].culprit
    frames = [ExpectedFrame("nt", name) for name in ("KeBugCheckEx", *KERNEL_FRAMES[kind])]
    for number, name in enumerate(sensor_frames(kind, variant)):
        exact = number == 0 and culprit and variant != "a-inlined"
        line = source_line(*culprit) if culprit and exact else None
        frames.append(ExpectedFrame("sensor", name, source_function(name).file, line))
    return frames


@one_of_each
def test_dbgeng(crash_of: CrashFactory, kind: str, variant: str, volatility: Volatility) -> None:
    engine = judge()
    crash, what = crash_of(kind, variant), KINDS[kind]
    dump = KernelDump(crash.dump)
    expected = Expectations(
        what.stop_code,
        dump.bug_check_parameters,  # which test_parameters holds against what is known
        modules={
            "nt": kernel_base(dump),
            "sensor": sensor_base(crash) if what.frames else None,
        },
        stack=expected_stack(kind, variant),
        outermost=OUTERMOST,
        assembly=ASSEMBLY,
    )
    folders = [BUILT, built(variant)]
    engine.open(crash.dump, symbols=folders, images=folders)
    report = engine.report()
    assert compare(engine, report, dump, expected) == []
    assert volatility_differences(volatility, report, dump, KERNEL) == []
    # The sensor's frames are one behind the other, each at a line of its function.
    stack = report["stack"]
    frames = [frame for frame in stack if frame["module"] == "sensor"]
    assert [frame["function"] for frame in frames] == list(sensor_frames(kind, variant)), describe(
        stack
    )
    for frame in frames:
        assert frame["function"] is not None
        assert frame["line"] in source_function(frame["function"]).lines, describe(stack)
    if kind == "exception":
        # What `.exr` and `.cxr` show: the record and the registers at the fault itself.
        scope = engine.context_record(report["bug_check"]["parameters"][3])
        assert scope["registers"]["rip"] == report["bug_check"]["parameters"][1]
        assert scope["stack"][0]["function"] == what.frames[0]
