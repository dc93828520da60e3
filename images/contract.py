"""What an image promises a harness: read from its contract.toml, checked, typed.

Every image, Windows or not, has one. Code that needs a deadline, a path or a device asks the
contract and never knows which image it deals with.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

CATALOG = Path(__file__).with_name("catalog.toml")
"""The images this repository knows."""

Seconds = Annotated[float, Field(gt=0)]
GuestPath = Annotated[str, Field(pattern=r"^[A-Z]:\\")]
DumpType = Literal["none", "complete", "kernel", "small", "automatic", "active"]
"""The kinds of dump CrashControl's CrashDumpEnabled and FilterPages can ask for."""
Capability = Literal[
    "bug-check-screen",  # a bug check shows its stop code on the screen
    "crash-by-keyboard",  # keyboard.crash_keys cause bug check 0xE2
    "crash-by-nmi",  # an NMI causes bug check 0x80
    "guest-exec",  # the agent runs programs
    "guest-files",  # the agent reads and writes files
    "hypervisor-windows-dump",  # the hypervisor can take a Windows dump of a hung machine
    "save-restore",  # memory can be saved and restored
    "screenshot",  # the screen can be seen from outside
]


class ContractError(Exception):
    """A contract or the catalog is wrong; the message names file, key and what was expected."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class OperatingSystem(_Section):
    """What runs in the image."""

    family: Literal["windows"]
    id: str
    """guest-get-osinfo's id."""
    build: Annotated[int, Field(gt=0)]
    """The Windows build number its structures follow."""


class Hardware(_Section):
    """The machine the image was made for."""

    machine: Literal["pc", "q35"]
    firmware: Literal["bios", "uefi", "uefi-secure-boot"]
    disk_bus: Literal["ide", "sata", "scsi", "virtio", "nvme"]
    memory_mib: Annotated[int, Field(ge=16)]
    processors: Annotated[int, Field(ge=1)]


class Agent(_Section):
    """Who runs commands inside, and on which channel."""

    kind: Literal["qemu-guest-agent", "ssh"]
    """ssh: OpenSSH for Windows, which listens from the start on, and gives an administrator cmd.exe
    and SFTP."""
    channel: str = ""
    """qemu-guest-agent: the name of its virtio-serial port."""


class Deadlines(_Section):
    """The longest each thing may take, in seconds; beyond it the machine counts as hung."""

    boot_to_agent: Seconds
    agent_reply: Seconds
    """For the agent's answer to one request."""
    command: Seconds
    """For a program to end in the guest, unless the candidate gives the step a time of its own."""
    dump_writing: Seconds
    """From the bug check to the reset."""
    dump_copying: Seconds
    """From the next boot to a complete dump file."""
    shutdown: Seconds
    console_reply: Seconds = 30.0
    """For SAC's answer to one command."""
    slowdown: Annotated[float, Field(ge=1)] = 1.0
    """How many times slower than a usual machine it runs; times a candidate gives are for a
    usual machine and are multiplied by this."""


class Dump(_Section):
    """How the image is set to write dumps, and where they lie."""

    setting: DumpType
    supported: Annotated[list[DumpType], Field(min_length=1)]
    staged_in: GuestPath
    """Where a bug check writes: the pagefile or DedicatedDumpFile."""
    staged_bytes: Annotated[int, Field(ge=0)]
    file: GuestPath
    """Where the next boot puts it."""
    quiet_seconds: Seconds = 2.0
    """No disk write for so long after a bug check: nothing more of the dump is written."""
    old_file_overwritten: bool


class Console(_Section):
    """Serial ports: whose they are. "none" when the image has no such console."""

    ems: Literal["COM1", "COM2", "none"]
    debugger: Literal["COM1", "COM2", "none"]
    sac: bool = False
    """Whether the Special Administration Console answers on the port of `ems`."""


class Panic(_Section):
    """How a bug check is told to the hypervisor."""

    device: Literal["pvpanic-isa", "pvpanic-pci", "hyper-v", "none"]
    crash_loaded_before_dump: bool
    """CRASHLOADED is told first: the guest deals with the crash itself, do not stop it."""
    panicked: Literal["never", "when-dumps-are-off", "always"]
    """When PANICKED is told, at which QEMU stops the machine."""
    vmcoreinfo: bool
    """The guest offers its dump header, so that libvirt's win-dmp format works."""


class Keyboard(_Section):
    """Keys that crash the machine, in the order they are pressed; none if empty."""

    crash_keys: list[str]


class Boot(_Section):
    """What happens after a bug check."""

    auto_reboot: bool
    repair_after_failed_boots: Annotated[int, Field(ge=0)]
    """Failed boots in a row before the repair screen; 0 is never."""
    repair_screen_waits: bool
    """The repair screen waits for a person and does not boot again by itself."""
    loop_after_crashes: Annotated[int, Field(ge=2)] = 2
    """Boots in a row that crash, the last one before its agent answers: then it is a boot loop."""


class Requirement(_Section):
    """Something that must be true inside the image; `lab image check` asks it."""

    name: str
    program: GuestPath
    arguments: list[str] = []
    exit_codes: list[int] = [0]
    expect: str | None = None
    """A regular expression that the program's output must hold (multiline, case ignored)."""
    fix: str
    """What to do where it is not so."""


class Contract(_Section):
    """All that one image promises."""

    schema_version: Annotated[Literal[1], Field(alias="schema")]
    name: Annotated[str, Field(min_length=1)]
    description: str
    capabilities: list[Capability]
    os: OperatingSystem
    hardware: Hardware
    agent: Agent
    deadlines: Deadlines
    dump: Dump
    console: Console
    panic: Panic
    keyboard: Keyboard
    boot: Boot
    requires: list[Requirement] = []


class CatalogEntry(_Section):
    """One image of the catalog."""

    contract: str
    """The contract's path, relative to the catalog."""
    build: str
    """The command that makes its disk."""
    inputs: list[str] = []
    """Files and folders it reads, relative to the catalog: when they change it is built anew."""
    symbols: list[str] = []
    """Folders with the PDBs of what it is built from, relative to the catalog."""


class Catalog(_Section):
    """The images of a catalog file by name."""

    images: dict[str, CatalogEntry]


def load_contract(path: Path) -> Contract:
    """Reads a contract. Raises ContractError naming every wrong key."""
    return _load(path, Contract)


def load_catalog(path: Path = CATALOG) -> dict[str, CatalogEntry]:
    """The known images by name. Raises ContractError naming every wrong key."""
    return _load(path, Catalog).images


Model = TypeVar("Model", bound=BaseModel)


def _load(path: Path, model: type[Model]) -> Model:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ContractError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ContractError(f"{path}: not TOML: {error}") from None
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines = [f"{path}: {error.error_count()} wrong"]
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"])
            found = "" if problem["type"] == "missing" else f" (found {problem['input']!r})"
            lines.append(f"  {key}: {problem['msg']}{found}")
        raise ContractError("\n".join(lines)) from None
