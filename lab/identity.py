"""Whether a machine runs what it was given: the driver in its kernel and its content, by hash.

The loaded image is compared in memory, not its file: a driver that was replaced on the disk and not
loaded is found, and so is one that was patched in memory.
"""

from __future__ import annotations

import csv
import hashlib
import ntpath
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from crashdump_analysis.addresses import PhysicalAddress
from crashdump_analysis.dump import open_dump
from crashdump_analysis.errors import DumpError
from crashdump_analysis.image import image_in_file
from crashdump_analysis.image_identity import (
    expected_image,
    image_identity,
    is_patched_by_windows,
    loaded_image,
)
from crashdump_analysis.memory import Memory, PagedMemory
from crashdump_analysis.modules import Module, loaded_modules
from lab.backend import BackendError
from lab.candidate import Candidate, ContentSet, sha256
from lab.disks.blocks import DiskError
from lab.machine import Machine
from lab.outcome import CandidateError, InfrastructureError, TamperedError

DRIVERQUERY = r"C:\Windows\System32\driverquery.exe"
ABSENT = "absent"
"""Stands for the hash of a file that is not there."""


@dataclass(frozen=True)
class Identity:
    """What ran on a machine at one moment, for the record. Hashes are SHA-256 in hexadecimal.

    driver: of the candidate's file, which the file in the guest matches. loaded: how the image in
    the running kernel was compared. loaded_is_weak: it was not compared, only asked for. content:
    hashes by file name, as the running guest reads them; None where no content was given. listing:
    where the names of the content's folder come from, and how far that goes.
    """

    boot: int
    driver: str
    loaded: str
    loaded_is_weak: bool
    content: dict[str, str] | None
    listing: str


def check_identity(machine: Machine, candidate: Candidate, content: ContentSet | None) -> Identity:
    """Asks the running machine for driver and content.

    content: all that must be in the content folder, and nothing else may; None asks for none of it.
    The files on this host must be those the run began with: CandidateFileError, ContentError.
    Raises TamperedError naming each difference: what, expected, found.
    """
    differences: list[str] = []
    candidate.require_same_image()
    driver = sha256(candidate.image)
    installed = _hash_in_guest(machine, candidate.driver.installed)
    if installed != driver:
        differences.append(_difference(candidate.driver.installed, driver, installed))
    loaded, weak, wrong = _loaded_image(machine, candidate)
    differences += wrong
    hashes, listing = None, "no content was given"
    if content is not None:
        hashes, listing, wrong = _content(machine, candidate, content)
        differences += wrong
    if differences:
        raise TamperedError(
            f"{machine.name} does not run what it was given: " + "; ".join(differences)
        )
    return Identity(machine.boot, driver, loaded, weak, hashes, listing)


def check_gone(machine: Machine, candidate: Candidate) -> None:
    """Raises CandidateError naming what an uninstall left: the loaded image, driver or content."""
    left = []
    if _sees_memory(machine):
        with _kernel_memory(machine) as kernel:
            left += [f"{one.image} is loaded at {one.base:#x}" for one in _named(kernel, candidate)]
    elif _driverquery(machine, candidate):
        left.append(f"{candidate.driver.module} is loaded")
    if _hash_in_guest(machine, candidate.driver.installed) != ABSENT:
        left.append(f"{candidate.driver.installed} is there")
    if candidate.content is not None:
        names, _ = _names_on_disk(machine, candidate.content.folder, candidate.content.pattern)
        paths = [str(PureWindowsPath(candidate.content.folder) / name) for name in names]
        left += [f"{path} is there" for path in paths if _hash_in_guest(machine, path) != ABSENT]
    if left:
        raise CandidateError(f"the uninstall of {candidate.name} left: {'; '.join(left)}")


# The loaded image


@dataclass(frozen=True)
class _Kernel:
    """A running kernel's memory and the images in it."""

    memory: Memory
    modules: list[Module]


@dataclass(frozen=True)
class _Roots:
    """Where to start reading in one boot's memory: from its first dump."""

    boot: int
    directory_table_base: int
    module_list: int


_roots: weakref.WeakKeyDictionary[Machine, _Roots] = weakref.WeakKeyDictionary()


class _LiveMemory:
    """A running machine's physical memory."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def read(self, address: PhysicalAddress, size: int) -> bytes | None:
        """See crashdump_analysis.memory.PhysicalMemory."""
        try:
            return self._machine.read_memory(address, size)
        except BackendError:
            return None  # no memory has that address


def _sees_memory(machine: Machine) -> bool:
    return (
        "hypervisor-windows-dump" in machine.contract.capabilities
        and "memory-dump" in machine.features
    )


@contextmanager
def _kernel_memory(machine: Machine) -> Iterator[_Kernel]:
    """The kernel's memory: the first time in a boot a dump, for it says where everything starts.

    After that memory is read as the machine runs, where the backend can: a dump of a machine's
    whole memory stops it for seconds.
    """
    roots = _roots.get(machine)
    if roots and roots.boot == machine.boot and "memory-read" in machine.features:
        memory = PagedMemory(_LiveMemory(machine), roots.directory_table_base)
        yield _kernel(memory, roots.module_list)
        return
    file = machine.folder / "identity.dmp"
    file.unlink(missing_ok=True)
    boot = machine.boot
    machine.dump_memory(file, "win-dmp")
    try:
        with open_dump(file) as dump:
            header = dump.header
            _roots[machine] = _Roots(
                boot, header.directory_table_base, header.ps_loaded_module_list
            )
            machine.measure_clock(machine.guest)  # it stood still meanwhile
            yield _kernel(dump.memory, header.ps_loaded_module_list)
    except DumpError as error:
        raise InfrastructureError(
            f"the hypervisor's dump of {machine.name} cannot be read, so nobody knows what runs:"
            f" {error}"
        ) from error
    finally:
        file.unlink(missing_ok=True)


def _kernel(memory: Memory, module_list: int) -> _Kernel:
    modules, warnings = loaded_modules(memory, module_list)
    if warnings:
        raise InfrastructureError(f"the kernel's list of modules: {'; '.join(warnings)}")
    return _Kernel(memory, list(modules))


def _named(kernel: _Kernel, candidate: Candidate) -> list[Module]:
    wanted = candidate.driver.module.lower()
    return [module for module in kernel.modules if module.image.lower() == wanted]


def _loaded_image(machine: Machine, candidate: Candidate) -> tuple[str, bool, list[str]]:
    """How the loaded image was compared, whether that is weak, and what differs."""
    module = candidate.driver.module
    if not _sees_memory(machine):
        path = _driverquery(machine, candidate)
        wrong = [] if path else [f"{module}: expected in driverquery's list, found nothing"]
        how = f"driverquery lists {path}; the image in memory could not be compared"
        return how, True, wrong
    with _kernel_memory(machine) as kernel:
        found = _named(kernel, candidate)
        if not found:
            known = ", ".join(one.image for one in kernel.modules)
            return "", False, [f"{module}: expected in the running kernel, found only {known}"]
        compared = [_compare(kernel.memory, one, candidate.image) for one in found]
    wrong = [one.difference for one in compared if one.difference]
    return "; ".join(one.how for one in compared), any(one.weak for one in compared), wrong


@dataclass(frozen=True)
class _Compared:
    how: str
    weak: bool = False
    difference: str = ""


def _compare(memory: Memory, module: Module, file: Path) -> _Compared:
    """One loaded image with the candidate's file."""
    where = f"{module.image} at {module.base:#x}"
    size = image_in_file(file.read_bytes(), str(file)).size
    wanted = image_identity(expected_image(file))
    if module.size != size:
        return _Compared("", difference=f"{where}: expected {size} bytes, found {module.size}")
    try:
        contents = loaded_image(memory, module, file)
    except DumpError as error:  # Windows pages out what a driver says may be
        return _Compared(
            f"{where} has the file's size; it could not be compared: {error}", weak=True
        )
    found = image_identity(contents)
    if found != wanted and is_patched_by_windows(file):
        return _Compared(
            f"{where} has the file's size; Windows patches such code as it loads it, so that its"
            " bytes could not be compared",
            weak=True,
        )
    if found != wanted:
        what = f"{where}: its read-only sections in memory"
        return _Compared("", difference=_difference(what, wanted, found))
    return _Compared(
        f"{where}: {len(contents)} bytes of read-only sections in memory are the file's"
    )


def _driverquery(machine: Machine, candidate: Candidate) -> str:
    """The path of the driver as driverquery lists it; empty if it does not run."""
    result = machine.guest.run(DRIVERQUERY, ["/v", "/fo", "csv"])
    if result.state != "ended" or result.exit_code != 0:
        raise InfrastructureError(f"nobody knows which drivers run: {result}")
    wanted = candidate.driver.module.lower()
    for row in csv.DictReader(result.output.strip().splitlines()):
        path = row.get("Path") or ""
        if ntpath.basename(path).lower() == wanted and row.get("State") == "Running":
            return path
    return ""


# Files


def _hash_in_guest(machine: Machine, path: str) -> str:
    try:
        return hashlib.sha256(machine.guest.read_file(path)).hexdigest()
    except FileNotFoundError:
        return ABSENT


def _content(
    machine: Machine, candidate: Candidate, content: ContentSet
) -> tuple[dict[str, str], str, list[str]]:
    """The content's hashes, where the names come from, and what differs."""
    rules = candidate.content
    if rules is None:
        raise CandidateError(f"{candidate.file} has no [content], so content has no place")
    folder = PureWindowsPath(rules.folder)
    expected = {file.name.lower(): file.sha256 for file in content.files}
    names = {file.name.lower(): file.name for file in content.files}
    listed, listing = _names_on_disk(machine, rules.folder, rules.pattern)
    for name in listed:
        names.setdefault(name.lower(), name)
    hashes, differences = {}, []
    for key, name in sorted(names.items()):
        found = _hash_in_guest(machine, str(folder / name))
        wanted = expected.get(key, ABSENT)
        if found != wanted:
            differences.append(_difference(str(folder / name), wanted, found))
        elif found != ABSENT:
            hashes[name] = found
    return hashes, listing, differences


def _names_on_disk(machine: Machine, folder: str, pattern: str) -> tuple[list[str], str]:
    """The names in a folder of the running guest, and how far they can be trusted.

    The agent lists nothing, so they are read from the disk as a power cut now would leave it: NTFS
    may hold back a new name for some seconds. What the disk still shows and the running guest no
    longer has is told apart by asking for the file.
    """
    source = "from the disk as a power cut now would leave it"
    try:
        if "disk" in machine.features:
            with machine.files() as files:
                found = [one for one in files.list(folder, pattern) if not one.is_folder]
                source += "".join(f"; {warning}" for warning in files.warnings)
        else:
            source = "as the running guest lists them"
            found = [
                one for one in machine.guest.files().list(folder, pattern) if not one.is_folder
            ]
    except FileNotFoundError:
        found, source = [], f"{source}; there is no such folder"
    except DiskError as error:
        return [], f"not listed: {error}"
    return [PureWindowsPath(one.path).name for one in found], source


def _difference(what: str, expected: str, found: str) -> str:
    return f"{what}: expected {_short(expected)}, found {_short(found)}"


def _short(value: str) -> str:
    return "no such file" if value == ABSENT else f"sha256 {value}"
