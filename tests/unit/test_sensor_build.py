"""The sensor's checked-in images: what a loader and a debugger rely on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pefile
import pytest
from symbolic.debuginfo import Archive

from examples.sensor import build

ALLOWED_IMPORTS = {
    line.strip()
    for line in (build.SOURCE / "ntoskrnl.def").read_text().split("EXPORTS")[1].splitlines()
    if line.strip()
}
#: The functions a crash of each kind has on its stack, innermost first, without the outermost.
CHAINS = {
    "process": ["MatchField", "EvaluateInstance", "EvaluateTemplate", "EvaluateProcess"],
    "rate": ["SumBuckets", "AgeRateWindow"],
    "owner": ["OwnerHasPolicy", "EvaluateOwnerInstance"],
    "burst": ["ScanBurstInstances", "CountBursts"],
}

every_variant = pytest.mark.parametrize("variant", build.VARIANTS)


def image(variant: str) -> Any:
    return pefile.PE(str(build.BUILT / variant / "sensor.sys"))


def symcache(variant: str) -> Any:
    archive = Archive.open(str(build.BUILT / variant / "sensor.pdb"))
    (debug_object,) = archive.iter_objects()
    return debug_object.make_symcache()


def frames(lookup: Callable[[int], Any], address: int) -> list[str]:
    """Function names at an RVA, inline frames first."""
    return [location.symbol.split("(")[0] for location in lookup(address)]


@every_variant
def test_headers(variant: str) -> None:
    pe = image(variant)
    assert pe.FILE_HEADER.Machine == pefile.MACHINE_TYPE["IMAGE_FILE_MACHINE_AMD64"]
    assert pe.OPTIONAL_HEADER.Subsystem == pefile.SUBSYSTEM_TYPE["IMAGE_SUBSYSTEM_NATIVE"]
    assert pe.OPTIONAL_HEADER.IMAGE_DLLCHARACTERISTICS_DYNAMIC_BASE
    assert pe.OPTIONAL_HEADER.IMAGE_DLLCHARACTERISTICS_NX_COMPAT
    # PsSetCreateProcessNotifyRoutineEx asks for it.
    assert pe.OPTIONAL_HEADER.IMAGE_DLLCHARACTERISTICS_FORCE_INTEGRITY
    assert pe.verify_checksum()
    assert pe.OPTIONAL_HEADER.CheckSum != 0


@every_variant
def test_no_section_is_writable_and_executable(variant: str) -> None:
    for section in image(variant).sections:
        assert not (section.IMAGE_SCN_MEM_WRITE and section.IMAGE_SCN_MEM_EXECUTE)


@every_variant
def test_imports_only_what_the_kernel_exports(variant: str) -> None:
    (module,) = image(variant).DIRECTORY_ENTRY_IMPORT
    assert module.dll == b"ntoskrnl.exe"
    assert {entry.name.decode() for entry in module.imports} <= ALLOWED_IMPORTS


@every_variant
def test_each_function_of_the_chains_has_unwind_data(variant: str) -> None:
    lookup = symcache(variant).lookup
    unwound = {
        frames(lookup, entry.struct.BeginAddress)[-1]
        for entry in image(variant).DIRECTORY_ENTRY_EXCEPTION
    }
    outermost = {"SensorProcessNotify", "AgeRateWindows", "RunOwnerPolicies", "EvaluateBursts"}
    assert outermost <= unwound
    # SumBuckets, OwnerHasPolicy and ScanBurstInstances may be leaves: those have none.
    callers = {function for chain in CHAINS.values() for function in chain[1:]}
    if variant == "a-inlined":
        assert not callers & unwound
    else:
        assert callers <= unwound


@every_variant
def test_the_pdb_is_that_of_the_image(variant: str) -> None:
    (directory,) = (
        entry
        for entry in image(variant).DIRECTORY_ENTRY_DEBUG
        if entry.struct.Type == pefile.DEBUG_TYPE["IMAGE_DEBUG_TYPE_CODEVIEW"]
    )
    assert directory.entry.CvSignature == b"RSDS"
    assert directory.entry.PdbFileName.rstrip(b"\0") == b"sensor.pdb"
    archive = Archive.open(str(build.BUILT / variant / "sensor.pdb"))
    (debug_object,) = archive.iter_objects()
    identifier = debug_object.debug_id.replace("-", "").upper()
    assert identifier == directory.entry.Signature_String


def test_images_can_be_told_apart_by_timestamp() -> None:
    stamps = [image(variant).FILE_HEADER.TimeDateStamp for variant in build.VARIANTS]
    assert len(set(stamps)) == len(stamps)


@every_variant
def test_lines_are_those_of_the_sources(variant: str) -> None:
    """The read through the pointer from behind the array has the line of its source."""
    lookup = symcache(variant).lookup
    source = (build.SOURCE / "process.c").read_text().splitlines()
    line = 1 + next(i for i, text in enumerate(source) if "Input->Kind == FIELD_NUMBER" in text)
    text = next(section for section in image(variant).sections if section.Name.startswith(b".text"))
    found = set()
    for address in range(text.VirtualAddress, text.VirtualAddress + text.Misc_VirtualSize):
        for location in lookup(address):
            if location.line == line and location.full_path.endswith("process.c"):
                found.add(tuple(frames(lookup, address)))
    chain = [*CHAINS["process"], "SensorProcessNotify"]
    assert found == {tuple(chain) if variant == "a-inlined" else ("MatchField",)}


def test_only_the_fixed_variant_has_the_bounds_check() -> None:
    for variant in build.VARIANTS:
        data = (build.BUILT / variant / "sensor.sys").read_bytes()
        assert (b"inputs supplied" in data) == variant.startswith("b-"), variant


@every_variant
def test_the_nonce_has_its_marker_and_is_empty(variant: str) -> None:
    data = (build.BUILT / variant / "sensor.sys").read_bytes()
    (start,) = (match.start() for match in re.finditer(rb"SNONCE:\0", data))
    assert data[start + 8 : start + 72] == bytes(64)


def test_shifted_code_is_at_other_offsets() -> None:
    def addresses(variant: str) -> dict[str, int]:
        lookup = symcache(variant).lookup
        begins = [entry.struct.BeginAddress for entry in image(variant).DIRECTORY_ENTRY_EXCEPTION]
        return {frames(lookup, begin)[-1]: begin for begin in begins}

    plain, shifted = addresses("a-o2"), addresses("a-shifted")
    assert plain.keys() == shifted.keys()
    assert all(plain[name] != shifted[name] for name in plain)


def test_manifest_has_the_hashes_of_the_files() -> None:
    manifest = json.loads((build.BUILT / "manifest.json").read_text())
    assert manifest["sha256"] == build.hashes(build.BUILT)


@every_variant
def test_no_path_of_the_machine_that_built_it(variant: str) -> None:
    for file in ("sensor.sys", "sensor.pdb"):
        data = (build.BUILT / variant / file).read_bytes()
        assert not re.search(rb"/(tmp|home|root|work)/", data), file


def test_the_inf_installs_a_boot_start_kernel_driver_and_its_content() -> None:
    text = (build.HERE / "sensor.inf").read_text()
    settings = dict(re.findall(r"^(\w+)\s*=\s*([^;\n]+?)\s*(?:;.*)?$", text, re.MULTILINE))
    assert (settings["ServiceType"], settings["StartType"]) == ("1", "0")
    assert settings["ServiceBinary"] == r"%12%\sensor.sys"
    (benign,) = (build.HERE / "content" / "benign").iterdir()
    assert text.count(benign.name) == 2


def test_the_checksum_is_that_of_pefile() -> None:
    data = (build.BUILT / "a-o2" / "sensor.sys").read_bytes()
    pe = pefile.PE(data=data)
    offset = pe.OPTIONAL_HEADER.get_field_absolute_offset("CheckSum")
    assert build.pe_checksum(data, offset) == pe.generate_checksum()
