r"""The candidate: driver, content and how they are installed, as a candidate.toml describes them.

INF, sc, MSI and EXE are shapes of the same contract: steps with exit codes. Everything that can be
known without a machine is checked when the file is loaded. Paths of this host are relative to the
candidate.toml and written with slashes; guest paths are absolute (C:\...). See
examples/sensor/candidate.toml.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Annotated, Literal, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator

from images.contract import GuestPath, Seconds
from lab.outcome import LabError
from lab.toml import Section, dotted, line_of, load_toml

SECRET = re.compile(r"\$\{secret:([^}]*)\}")
"""How a step's argument names a secret: ${secret:NAME}."""
Key = tuple[str | int, ...]
"""Where something stands in candidate.toml."""
Text = Annotated[str, Field(min_length=1)]
Activation = Literal["live", "next-boot"]
"""When a sensor takes new content in: while it runs, or at its next start only."""
MACHINES = {0x14C: "i386", 0x1C4: "ARM", 0x200: "IA-64", 0xAA64: "ARM64"}
SUBSYSTEMS = {2: "a Windows program", 3: "a console program", 10: "an EFI program"}


class CandidateFileError(LabError):
    """candidate.toml, or a file it names, is wrong; each line says file, line, key, expectation."""


class ContentError(LabError):
    """A content set is missing or has no content; says where and what was expected."""


class Driver(Section):
    """[driver]: the image that must be found in the running kernel."""

    image: Text
    """The PE on this host."""
    module: Text
    """Its name in the kernel's list of loaded modules."""
    installed: GuestPath
    """Where the install steps put it."""


class CopiedFile(Section):
    """[[files]]: copied into the guest before the install, update and roll_back steps."""

    source: Text
    """A file on this host, or a glob."""
    target: GuestPath
    r"""The guest's path; a folder, which must be there, where it ends with a backslash."""


class Step(Section):
    """[[install]], [[update]], [[roll_back]], [[uninstall]]: one step of several, in order.

    Either a program that is run, or files that are deleted and replaced on the powered-off disk
    (an announced shutdown and boot). update puts this version over an older one, roll_back puts it
    back over a newer one.
    """

    run: list[Text] = Field([])
    r"""Program (C:\...\x.exe) and arguments; ${secret:NAME} stands for a secret's value."""
    success: list[int] = Field([0])
    """Exit codes after which all is well. pnputil's 259 (ERROR_NO_MORE_ITEMS: no device matched, or
    a better driver is there) belongs here for an INF that has no device yet."""
    reboot: list[int] = Field([3010])
    """Exit codes of success that ask for a restart. Listing 1641 (restart initiated) announces that
    the program may restart the machine itself."""
    restart: Literal["always", "if-asked", "never"] = "if-asked"
    """When the lab restarts the machine after it."""
    seconds: Seconds | None = None
    """For its end on a usual machine (times the contract's slowdown); else the contract's."""
    delete: list[GuestPath] = Field([])
    """Files on the powered-off disk; * and ? in the last part."""
    replace: dict[GuestPath, Text] = Field({})
    """Files on the powered-off disk, by guest path, with the file on this host."""

    @field_validator("run")
    @classmethod
    def _starts_with_a_program(cls, run: list[str]) -> list[str]:
        return _program(run) if run else run

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        if bool(self.run) == bool(self.delete or self.replace):
            raise ValueError("expected either run, or delete and replace")
        return self


class Probe(Section):
    """[[verify]], [[content.verify]]: a program whose end and output show that all is well."""

    name: Text
    run: list[Text]
    success: list[int] = Field([0])
    expect: str | None = None
    """A regular expression that its output must hold (multiline, case ignored)."""
    seconds: Seconds | None = None
    """As a step's."""

    @field_validator("run")
    @classmethod
    def _starts_with_a_program(cls, run: list[str]) -> list[str]:
        return _program(run)

    @field_validator("expect")
    @classmethod
    def _is_an_expression(cls, expect: str | None) -> str | None:
        try:
            re.compile(expect or "")
        except re.error as error:
            raise ValueError(f"expected a regular expression: {error}") from None
        return expect


class Content(Section):
    """[content]: files that the sensor reads while it runs."""

    folder: GuestPath
    """Where they lie in the guest."""
    pattern: Text
    """Which names there are content: * and ? are wild."""
    files: Text
    """The default set on this host: a glob."""
    activation: Activation
    settle_seconds: Seconds
    """How long the machine is watched before new content counts as taken in; on a usual machine."""
    verify: list[Probe] = Field([])
    """Asked with the candidate's probes while new content settles."""
    validator: list[Text] = Field([])
    """The vendor's own check of a content file: a command on this host, in the folder of
    candidate.toml, with the file's path after it. What it says is recorded, and stops nothing."""


class Recovery(Section):
    """[recovery]: what makes a machine start again that crashes at each boot: offline edits."""

    delete: list[GuestPath] = Field([])
    """Files to delete; * and ? in the last part."""
    replace: dict[GuestPath, Text] = Field({})
    """Files to replace, by guest path, with the file on this host."""

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if not self.delete and not self.replace:
            raise ValueError("expected delete or replace")
        return self


@dataclass(frozen=True)
class ContentFile:
    """One content file of this host, as it was when the run was made."""

    name: str
    path: Path
    sha256: str

    def read(self) -> bytes:
        """Its bytes. Raises ContentError where they are no longer those it was hashed with."""
        data = self.path.read_bytes()
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise ContentError(f"{self.path} changed on this host since the run began; run again")
        return data


@dataclass(frozen=True)
class ContentSet:
    """Content files that are put on a machine together; files are in the order of their names."""

    name: str
    files: tuple[ContentFile, ...]

    def beside(self, earlier: ContentSet | None) -> ContentSet:
        """Both together, as they lie on a machine: a file replaces an earlier one of its name."""
        files = {file.name: file for one in (earlier, self) if one for file in one.files}
        return ContentSet(self.name, tuple(files[name] for name in sorted(files)))

    def hashes(self) -> dict[str, str]:
        """SHA-256 by file name: what makes two sets the same."""
        return {file.name: file.sha256 for file in self.files}


class Candidate(Section):
    """A whole candidate.toml."""

    schema_version: Annotated[Literal[1], Field(alias="schema")]
    name: Text
    version: Text
    driver: Driver
    files: list[CopiedFile] = Field([])
    install: Annotated[list[Step], Field(min_length=1)]
    update: list[Step] = Field([])
    roll_back: list[Step] = Field([])
    uninstall: list[Step] = Field([])
    verify: list[Probe] = Field([])
    content: Content | None = None
    recovery: Recovery | None = None
    symbols: list[Text] = Field([])
    """Folders of this host with PDBs."""
    secrets: list[Text] = Field([])
    """Names only; the values are lab.toml's."""

    _file: Path = PrivateAttr()
    _image_sha256: str = PrivateAttr(default="")

    @model_validator(mode="after")
    def _names_its_secrets(self) -> Self:
        steps = [step for several in self.steps().values() for step in several]
        for run in [step.run for step in steps] + [probe.run for probe in self.probes()]:
            for name in SECRET.findall(" ".join(run)):
                if name not in self.secrets:
                    raise ValueError(f"a run uses secret {name!r}: name it in secrets")
        return self

    @property
    def file(self) -> Path:
        """The candidate.toml."""
        return self._file

    def steps(self) -> dict[str, list[Step]]:
        """All step lists by what they do."""
        return {
            "install": self.install,
            "update": self.update,
            "roll_back": self.roll_back,
            "uninstall": self.uninstall,
        }

    def probes(self) -> list[Probe]:
        """All probes, the content's last."""
        return [*self.verify, *(self.content.verify if self.content else [])]

    def on_host(self, path: str) -> Path:
        """A path of candidate.toml on this host."""
        return self._file.parent / path

    @property
    def image(self) -> Path:
        """The driver's file on this host."""
        return self.on_host(self.driver.image)

    def require_same_image(self) -> None:
        """Raises CandidateFileError if the driver's file changed since it was loaded."""
        if sha256(self.image) != self._image_sha256:
            raise CandidateFileError(
                f"{self.image} changed on this host since the run began; run again"
            )

    @property
    def symbol_folders(self) -> list[Path]:
        """Folders with PDBs on this host."""
        return [self.on_host(folder) for folder in self.symbols]

    def copies(self) -> list[tuple[Path, str]]:
        """What [[files]] says: each file of this host, and where it goes in the guest."""
        return [
            (source, _target(file.target, source.name))
            for file in self.files
            for source in self._matching(file.source)
        ]

    def default_content(self) -> ContentSet | None:
        """The content set that the candidate comes with. Raises ContentError."""
        if self.content is None:
            return None
        found = self._matching(self.content.files)
        return _content_set("default", found, f"{self._file}: content.files")

    def identity(self) -> dict[str, str]:
        """SHA-256 of everything that makes the candidate, by path relative to candidate.toml."""
        files = {self._file, self.image, *(source for source, _ in self.copies())}
        files.update(self.on_host(source) for _, source in self._replacements())
        if self.content is not None:
            files.update(self._matching(self.content.files))
        folder = self._file.parent
        return {
            Path(os.path.relpath(path, folder)).as_posix(): sha256(path) for path in sorted(files)
        }

    def _matching(self, pattern: str) -> list[Path]:
        found = glob.glob(glob.escape(str(self._file.parent)) + "/" + pattern)
        return [path for path in map(Path, sorted(found)) if path.is_file()]

    def _replacements(self) -> Iterator[tuple[Key, str]]:
        """Files of this host that an offline edit puts on the disk, with their keys."""
        for name, steps in self.steps().items():
            for number, step in enumerate(steps):
                for target, source in step.replace.items():
                    yield (name, number, "replace", target), source
        if self.recovery is not None:
            for target, source in self.recovery.replace.items():
                yield ("recovery", "replace", target), source

    def _problems(self) -> Iterator[tuple[Key, str]]:
        """What is wrong with the files it names: key, and what was expected and found."""
        if wrong := wrong_with_driver(self.image):
            yield ("driver", "image"), f"expected a kernel driver for x64: {self.image} {wrong}"
        for number, file in enumerate(self.files):
            found = len(self._matching(file.source))
            if not found:
                yield ("files", number, "source"), f"no file at {self.on_host(file.source)}"
            elif found > 1 and not file.target.endswith("\\"):
                wanted = "expected a folder, ending with a backslash"
                yield ("files", number, "target"), f"{wanted}, for {found} files"
        for key, source in self._replacements():
            if not self.on_host(source).is_file():
                yield key, f"no file at {self.on_host(source)}"
        for number, folder in enumerate(self.symbols):
            if not self.on_host(folder).is_dir():
                yield ("symbols", number), f"no folder at {self.on_host(folder)}"
        try:
            self.default_content()
        except ContentError as error:
            yield ("content", "files"), str(error)


def load_candidate(path: Path) -> Candidate:
    """Reads and checks a candidate.toml, and the files it names.

    Raises CandidateFileError with one line for each thing that is wrong.
    """
    candidate = load_toml(path, Candidate, CandidateFileError)
    candidate._file = path.absolute()
    text = path.read_text(encoding="utf-8")
    problems = [
        f"{path}:{line_of(text, key)}: {dotted(key)}: {wrong}"
        for key, wrong in candidate._problems()
    ]
    if problems:
        raise CandidateFileError("\n".join(problems))
    candidate._image_sha256 = sha256(candidate.image)
    return candidate


def load_contents(candidate: Candidate, paths: Sequence[Path]) -> list[ContentSet]:
    """The content sets of a run: of folders, the files that are content for the candidate.

    Raises ContentError; also where the candidate knows no content.
    """
    if candidate.content is None and paths:
        raise ContentError(
            f"{candidate.file} has no [content], so there is no place for {paths[0]}"
        )
    return [load_content(path, candidate.content.pattern) for path in paths if candidate.content]


def load_content(path: Path, pattern: str = "*") -> ContentSet:
    """A content set: one file, or the files of a folder whose names match `pattern`.

    Raises ContentError where nothing is there, nothing matches, or a file is empty.
    """
    if path.is_dir():
        files = sorted(file for file in path.glob(pattern) if file.is_file())
    elif path.exists():
        files = [path]
    else:
        raise ContentError(f"{path}: expected a content file or a folder with some; it is missing")
    return _content_set(path.name, files, f"{path} ({pattern})")


def _content_set(name: str, paths: Sequence[Path], where: str) -> ContentSet:
    if not paths:
        raise ContentError(f"{where}: expected at least one content file, found none")
    for path in paths:
        if path.stat().st_size == 0:
            raise ContentError(f"{path}: expected content, found 0 bytes: a copy that was cut off?")
    return ContentSet(name, tuple(ContentFile(path.name, path, sha256(path)) for path in paths))


def sha256(path: Path) -> str:
    """A file's SHA-256 in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def wrong_with_driver(path: Path) -> str:
    """Why a file is no kernel driver for x64 ("is no PE ..."); empty if it seems to be one.

    Looks at what Microsoft's PE format says of headers, and whether the sections are all there.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    try:
        return _wrong_with_headers(data)
    except struct.error:
        return "is no PE"


def _wrong_with_headers(data: bytes) -> str:
    (start,) = struct.unpack_from("<I", data, 0x3C)
    machine, sections = struct.unpack_from("<HH", data, start + 4)
    (optional_size,) = struct.unpack_from("<H", data, start + 20)
    magic, subsystem = struct.unpack_from("<H66xH", data, start + 24)
    if data[:2] != b"MZ" or data[start : start + 4] != b"PE\0\0":
        return "is no PE"
    if machine != 0x8664:
        return f"is for another machine: {MACHINES.get(machine, hex(machine))}"
    if magic != 0x20B or subsystem != 1:
        return f"is {SUBSYSTEMS.get(subsystem, f'for subsystem {subsystem}')}, no kernel driver"
    for number in range(sections):
        header = start + 24 + optional_size + 40 * number
        size, offset = struct.unpack_from("<II", data, header + 16)
        if size and offset + size > len(data):
            return f"is cut off: {len(data)} bytes, and a section ends at {offset + size}"
    return ""


def _program(run: list[str]) -> list[str]:
    if not run or not re.match(r"[A-Z]:\\", run[0]):
        raise ValueError(r"expected a program by its full guest path, such as C:\Windows\x.exe")
    return run


def _target(target: str, name: str) -> str:
    return str(PureWindowsPath(target) / name) if target.endswith("\\") else target
