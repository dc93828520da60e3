"""lab.toml as typed settings, and the secrets it names.

A wrong file is explained before anything starts: file, line, key, what was expected and what was
found. Paths are relative to lab.toml. examples/lab.toml shows every table.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, RootModel, SecretStr

from crashdump_analysis.engines.analysis_host import AnalysisHost
from images.contract import CATALOG, CatalogEntry, ContractError, load_catalog
from lab.console.settings import ConsoleSettings
from lab.guest.ssh_settings import SshSettings
from lab.outcome import LabError
from lab.power.devices import is_bmc, outlet_of
from lab.power.devices import problems as power_problems
from lab.settings_file import ENVIRONMENT_VARIABLE, FILE_NAME
from lab.toml import Section, line_of, load_toml

SECRET_PREFIX = "LAB_SECRET_"  # noqa: S105 - the start of a variable's name
OUTPUT = "OUTPUT.qcow2"
"""Stands in a build command for the disk it makes."""
BACKEND_FOLDERS = ("virtual", "physical")
"""A backend is the file NAME.py in one of these folders of lab/."""


class ConfigError(LabError):
    """lab.toml or a file it names is wrong; the message has file, line, key and what is right."""


def _is_name(name: str) -> str:
    # It becomes part of file names and of the names a hypervisor shows.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", name):
        raise ValueError("expected a name of letters, digits, dots, dashes and underscores")
    return name


def _is_uri(uri: str) -> str:
    if uri != "private" and not re.match(r"[a-z][a-z0-9+.-]*://", uri):
        raise ValueError('expected "private" or a libvirt URI such as "qemu:///system"')
    return uri


Name = Annotated[str, AfterValidator(_is_name)]
RelativePath = Annotated[str, Field(min_length=1)]


class ImageSettings(Section):
    """[images.NAME]: a known state. An image of images/catalog.toml needs no keys at all."""

    contract: RelativePath | None = None
    """Its contract.toml; the catalog's if not given."""
    disk: RelativePath | None = None
    """The base disk (qcow2 or raw), never written to."""
    build: str | None = None
    """Instead of disk: the command that makes it as OUTPUT.qcow2, run in lab.toml's folder."""
    installed: bool = False
    """Instead of disk: it is on the machine already, in whatever state; for physical machines."""
    inputs: Annotated[list[RelativePath], Field(default_factory=list)]
    """Files and folders the build reads: when they change, the image is built anew."""
    nvram: RelativePath | None = None
    """UEFI variables."""
    tpm: RelativePath | None = None
    """The folder with the TPM's state."""
    symbols: Annotated[list[RelativePath], Field(default_factory=list)]
    """Folders with the PDBs of the image's own kernel and drivers."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """What the disk must be."""


class HostSettings(Section):
    """[hosts.NAME]: where a hypervisor runs."""

    uri: Annotated[str, AfterValidator(_is_uri)]
    """`private` for daemons that the lab starts itself, or a libvirt URI."""


class MachineSettings(Section):
    """[machines.NAME]: one or several machines of a kind."""

    backend: str
    """The file in lab/virtual or lab/physical that drives it."""
    host: str | None = None
    """Of a virtual machine: the NAME of a [hosts.NAME] table."""
    count: Annotated[int, Field(ge=1, le=1000)] = 1
    """How many; more than one are called NAME-1, NAME-2 ..."""
    tags: Annotated[list[str], Field(default_factory=list)]
    """What tests may ask for."""
    console: ConsoleSettings | None = None
    """[machines.NAME.console]: its serial console, where the backend has none of its own."""
    power: str | None = None
    """What switches it: the NAME of a [power.NAME] table, with ":OUTLET" where that has several."""
    bmc: str | None = None
    """Its BMC, where that is not what switches it: written as power is."""
    ssh: SshSettings | None = None
    """[machines.NAME.ssh]: its SSH server, where the image's agent is that."""


class LeaseSettings(Section):
    """[leases]: how long a holder that is no longer heard of keeps its machine."""

    expiry_seconds: Annotated[float, Field(ge=1)] = 30
    """Seconds from the last heartbeat to the lease's end."""
    margin_seconds: Annotated[float, Field(gt=0)] = 3
    """A holder stops so long before the end, and the next one waits so long after it: longer than
    any single action takes."""


class AnalysisHostSettings(Section):
    """[analysis_host]: a Windows with Microsoft's debugger engine, reached over SSH."""

    host: Annotated[str, Field(min_length=1)]
    """Its name or address."""
    port: Annotated[int, Field(ge=1, le=65535)] = 22
    """Of its SSH server."""
    user: str | None = None
    """Who logs in there; the one who runs the lab if not given."""
    known_hosts: RelativePath = "~/.ssh/known_hosts"
    """The file that has the host's key. A host that is not in it is never spoken to."""
    key: RelativePath | None = None
    """The file with the private key. Without a key and a password the SSH agent is asked."""
    key_secret: str | None = None
    """Instead of key: the NAME of the secret that is the private key itself."""
    password: str | None = None
    """The NAME of the secret that is the user's password or, where there is a key, the key's."""
    python: str = "python"
    """The command that starts Python (3.8 or newer, 64-bit) there."""
    engine: str = ""
    """The folder there with dbgeng.dll; the first that is found if not given."""
    symbols: str = ""
    """WinDbg symbol path there, such as 'srv*C:\\symbols*https://msdl.microsoft.com/...'."""
    folder: str = "bugcheck-lab"
    """The folder there for the worker and for dumps while they are looked at."""


class Settings(Section):
    """A whole lab.toml."""

    schema_version: Annotated[Literal[1], Field(alias="schema")]
    store: RelativePath = ".work/lab"
    """The folder for runs, evidence, leases and built images."""
    secrets: RelativePath | None = None
    """A TOML file of NAME = "value" lines."""
    images: Annotated[dict[Name, ImageSettings], Field(default_factory=dict)]
    hosts: Annotated[dict[Name, HostSettings], Field(default_factory=dict)]
    machines: Annotated[dict[Name, MachineSettings], Field(default_factory=dict)]
    power: Annotated[dict[Name, dict[str, Any]], Field(default_factory=dict)]
    """Power devices; what their tables hold is their backend's (lab/power/BACKEND.py)."""
    leases: LeaseSettings = LeaseSettings()
    analysis_host: AnalysisHostSettings | None = None


@dataclass(frozen=True)
class ImageSource:
    """Where an image comes from: `disk`, or `build` run in `folder`; the other is None."""

    name: str
    contract: Path
    disk: Path | None
    build: str | None
    folder: Path
    inputs: tuple[Path, ...]
    nvram: Path | None
    tpm: Path | None
    symbols: tuple[Path, ...]
    installed: bool
    sha256: str | None


@dataclass(frozen=True)
class Slot:
    """One machine that can be leased. machine: the NAME of its [machines.NAME] table."""

    name: str
    machine: str
    backend: str
    host_name: str
    """Empty for a physical machine, and host is None."""
    host: HostSettings | None
    tags: frozenset[str]
    console: ConsoleSettings | None = None


class Config:
    """A checked lab.toml: `settings` as they stand in the file, and what follows from them."""

    def __init__(self, file: Path, settings: Settings) -> None:
        self.file = file
        self.settings = settings
        self._folder = file.absolute().parent
        problems = list(_inconsistencies(settings, self._folder))
        if problems:
            raise ConfigError("\n".join(f"{_where(file, key)}: {text}" for key, text in problems))
        self.store = self.at(settings.store)
        self.images = settings.images
        self.leases = settings.leases
        self.secrets_file = self._path(settings.secrets)
        self._secrets = {} if self.secrets_file is None else _read_secrets(self.secrets_file)

    def where(self, *key: str) -> str:
        """The place of a key for messages: "lab.toml:12: images.win11.disk"."""
        return _where(self.file, key)

    def slots(self) -> dict[str, Slot]:
        """Every machine by its slot's name: NAME, or NAME-1, NAME-2 ... where count is above 1."""
        hosts = self.settings.hosts
        return {
            slot: Slot(
                slot,
                name,
                table.backend,
                table.host or "",
                hosts[table.host] if table.host else None,
                frozenset(table.tags),
                table.console,
            )
            for name, table in self.settings.machines.items()
            for slot in _slot_names(name, table.count)
        }

    def image(self, name: str) -> ImageSource:
        """Where an image comes from. Raises ConfigError for a name lab.toml does not have."""
        if name not in self.settings.images:
            known = _nearest(name, self.settings.images)
            raise ConfigError(f"{self.file}: there is no [images.{name}]{known}")
        settings = self.settings.images[name]
        contract, build = self._path(settings.contract), settings.build
        folder = self._folder
        inputs = tuple(self.at(path) for path in settings.inputs)
        symbols = tuple(self.at(path) for path in settings.symbols)
        if entry := _catalog().get(name):
            contract = contract or CATALOG.parent / entry.contract
            if build is None and settings.disk is None and not settings.installed:
                # The catalog's commands are written for the folder that images/ lies in.
                build, folder = entry.build, CATALOG.parent.parent
                inputs += tuple(CATALOG.parent / path for path in entry.inputs)
                symbols += tuple(CATALOG.parent / path for path in entry.symbols)
        assert contract is not None  # else it had been refused
        return ImageSource(
            name=name,
            contract=contract,
            disk=self._path(settings.disk),
            build=build,
            folder=folder,
            inputs=inputs,
            nvram=self._path(settings.nvram),
            tpm=self._path(settings.tpm),
            symbols=symbols,
            installed=settings.installed,
            sha256=settings.sha256,
        )

    def analysis_host(self) -> AnalysisHost | None:
        """The machine that [analysis_host] names. Raises ConfigError where a secret is missing."""
        settings = self.settings.analysis_host
        if settings is None:
            return None
        key: Path | SecretStr | None = self._path(settings.key)
        if settings.key_secret is not None:
            key = self.secret(settings.key_secret)
        password = None if settings.password is None else self.secret(settings.password)
        return AnalysisHost(
            host=settings.host,
            known_hosts=self.at(settings.known_hosts),
            user=settings.user,
            port=settings.port,
            key=key.get_secret_value if isinstance(key, SecretStr) else key,
            password=password.get_secret_value if password else None,
            python=settings.python,
            symbols=settings.symbols,
            engine=settings.engine,
            folder=settings.folder,
        )

    def secret(self, name: str) -> SecretStr:
        """A secret: from the secrets file, or else the environment's LAB_SECRET_<NAME>.

        Raises ConfigError naming both places if neither has it.
        """
        if name in self._secrets:
            return self._secrets[name]
        variable = SECRET_PREFIX + re.sub(r"[^A-Z0-9]", "_", name.upper())
        if variable in os.environ:
            return SecretStr(os.environ[variable])
        file = self.secrets_file
        place = f"{file} has no {name}" if file else f"{self.file} names no `secrets` file"
        raise ConfigError(
            f"secret {name!r} is missing: {place}, the environment has no {variable}; add it to one"
        )

    def _path(self, relative: str | None) -> Path | None:
        return None if relative is None else self.at(relative)

    def at(self, relative: str) -> Path:
        """The path of a name that is relative to lab.toml."""
        return _resolved(self._folder, relative)


def load_config(path: Path | None = None) -> Config:
    """Reads and checks a lab.toml: `path`, or ./lab.toml, or the one that LAB_TOML names.

    Raises ConfigError with one line for each thing that is wrong.
    """
    file = path or _find()
    return Config(file, load_toml(file, Settings, ConfigError))


def _find() -> Path:
    here, named = Path(FILE_NAME), os.environ.get(ENVIRONMENT_VARIABLE)
    if here.exists():
        return here
    if named:
        return Path(named)
    raise ConfigError(
        f"there is no {FILE_NAME} in {Path.cwd()}, and {ENVIRONMENT_VARIABLE} names none; start "
        "with a copy of examples/lab.toml"
    )


def _resolved(folder: Path, relative: str) -> Path:
    return (folder / Path(relative).expanduser()).resolve()


def _where(file: Path, key: tuple[str, ...]) -> str:
    return f"{file}:{line_of(file.read_text(encoding='utf-8'), key)}: {'.'.join(key)}"


def _nearest(wrong: str, known: Iterable[str]) -> str:
    names = sorted(known)
    if close := difflib.get_close_matches(wrong, names, n=1):
        return f'; did you mean "{close[0]}"?'
    return f"; expected one of {', '.join(names)}" if names else "; there are none at all"


def _slot_names(machine: str, count: int) -> list[str]:
    return [machine] if count == 1 else [f"{machine}-{n + 1}" for n in range(count)]


def _inconsistencies(settings: Settings, folder: Path) -> Iterator[tuple[tuple[str, ...], str]]:
    """What is wrong although each key is right in itself: (key, text)."""
    leases = settings.leases
    if leases.margin_seconds * 3 > leases.expiry_seconds:
        yield (
            ("leases",),
            "expected margin_seconds of at most a third of expiry_seconds, or a holder has no time "
            f"to act; found {leases.margin_seconds:g} and {leases.expiry_seconds:g}",
        )
    if settings.secrets is not None:
        yield from _missing_file(("secrets",), _resolved(folder, settings.secrets))
    host = settings.analysis_host
    if host is not None and host.key is not None:
        if host.key_secret is not None:
            yield ("analysis_host", "key_secret"), "expected key or key_secret; found both"
        yield from _missing_file(("analysis_host", "key"), _resolved(folder, host.key))
    for name, image in settings.images.items():
        yield from _image_problems(("images", name), image, folder)
    for name, table in settings.power.items():
        yield from ((("power", name, *key), text) for key, text in power_problems(table))
    yield from _machine_problems(settings, folder)


def _image_problems(
    key: tuple[str, ...], image: ImageSettings, folder: Path
) -> Iterator[tuple[tuple[str, ...], str]]:
    catalog = _catalog()
    in_catalog = key[-1] in catalog
    if image.contract is not None:
        yield from _missing_file((*key, "contract"), _resolved(folder, image.contract))
    elif not in_catalog:
        yield key, f"expected a contract or a name of {CATALOG.name}{_nearest(key[-1], catalog)}"
    given = [name for name in ("disk", "build", "installed") if getattr(image, name)]
    if len(given) > 1:
        yield (*key, given[-1]), f"expected disk, build or installed; found {' and '.join(given)}"
    elif not given and not in_catalog:
        yield key, "expected disk, build or installed; found none of them"
    if image.build is not None:
        try:
            words = shlex.split(image.build)
        except ValueError as error:
            yield (*key, "build"), f"expected a command; found {image.build!r}: {error}"
        else:
            if not any(OUTPUT in word for word in words[1:]):
                found = f"expected a command that writes {OUTPUT}; found {image.build!r}"
                yield (*key, "build"), found


def _machine_problems(settings: Settings, folder: Path) -> Iterator[tuple[tuple[str, ...], str]]:
    owners: dict[str, str] = {}
    for name, machine in settings.machines.items():
        key = ("machines", name)
        if machine.host is not None and machine.host not in settings.hosts:
            known = _nearest(machine.host, settings.hosts)
            yield (*key, "host"), f"there is no [hosts.{machine.host}]{known}"
        yield from _backend_problems(key, machine)
        for part in ("power", "bmc"):
            if (wire := getattr(machine, part)) is not None:
                yield from _power_problems((*key, part), wire, machine, settings)
        if machine.bmc is not None and not is_bmc(
            settings.power.get(machine.bmc.partition(":")[0])
        ):
            yield (*key, "bmc"), "expected the [power.NAME] of a BMC: backend redfish or ipmi"
        if machine.console is not None and machine.count > 1:
            yield (*key, "console"), "expected a count of 1 beside console: a port is one machine's"
        if machine.ssh is not None and machine.ssh.key is not None:
            yield from _missing_file((*key, "ssh", "key"), _resolved(folder, machine.ssh.key))
        for slot in _slot_names(name, machine.count):
            if slot in owners:
                yield key, f"machine {slot} is in [machines.{owners[slot]}] already"
            owners[slot] = name


def _backend_problems(
    key: tuple[str, ...], machine: MachineSettings
) -> Iterator[tuple[tuple[str, ...], str]]:
    folder = _backend_folder(machine.backend)
    if folder is None:
        places = " or ".join(f"lab/{folder}" for folder in BACKEND_FOLDERS)
        found = f"expected the name of a file in {places}; found {machine.backend!r}"
        yield (*key, "backend"), found
    elif folder == "virtual" and machine.host is None:
        yield key, "expected a host: the NAME of a [hosts.NAME] table"
    elif folder == "physical" and machine.power is None:
        yield key, 'expected power = "DEVICE:OUTLET": nothing else switches it'
    elif folder == "physical" and (machine.host is not None or machine.count > 1):
        yield key, "expected no host and a count of 1: it is one machine, and no host's"


def _power_problems(
    key: tuple[str, ...], wire: str, machine: MachineSettings, settings: Settings
) -> Iterator[tuple[tuple[str, ...], str]]:
    device, _, outlet = wire.partition(":")
    if machine.count > 1:
        yield key, "expected a count of 1 beside power: an outlet is one machine's"
    if device not in settings.power:
        yield key, f"there is no [power.{device}]{_nearest(device, settings.power)}"
        return
    table = settings.power[device]
    if not outlet and not any(power_problems(table)) and outlet_of(table) is None:
        yield key, f'expected "{device}:OUTLET", or an outlet in [power.{device}]'


def _missing_file(key: tuple[str, ...], path: Path) -> Iterator[tuple[tuple[str, ...], str]]:
    if not path.is_file():
        yield key, f"expected a file; there is none at {path}"


def _backend_folder(name: str) -> str | None:
    """Which of BACKEND_FOLDERS has a backend of that name."""
    for folder in BACKEND_FOLDERS:
        if name.isidentifier() and importlib.util.find_spec(f"lab.{folder}.{name}"):
            return folder
    return None


def _catalog() -> dict[str, CatalogEntry]:
    try:
        return load_catalog()
    except ContractError as error:
        raise ConfigError(str(error)) from None


def _read_secrets(file: Path) -> dict[str, SecretStr]:
    # The model takes any value, so that no message about a wrong one can show it.
    secrets = load_toml(file, RootModel[dict[str, Any]], ConfigError).root
    for name, value in secrets.items():
        if not isinstance(value, str):
            raise ConfigError(f"{_where(file, (name,))}: expected text in quotes")
    return {name: SecretStr(value) for name, value in secrets.items()}
