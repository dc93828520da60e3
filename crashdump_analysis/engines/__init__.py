"""Engines that open a kernel dump and report on it, and the types and errors they share."""

from __future__ import annotations

from typing import TypedDict


class BugCheck(TypedDict):
    """The stop code as the dump bears it (bit 28 included) and its four parameters."""

    code: int
    parameters: list[int]


class System(TypedDict):
    """The crashed machine: PE machine type, OS build, time (Unix seconds, UTC), uptime (s)."""

    machine: int
    build: int
    build_text: str
    checked: bool
    processors: int
    time: int
    uptime: int


class Module(TypedDict):
    """A loaded or unloaded image: address and size in bytes; PE timestamp and checksum.

    `loaded_image` is the path of the image file whose contents the engine uses; where it has none,
    the image's name as the dump has it, or nothing.
    """

    name: str
    image: str
    base: int
    size: int
    timestamp: int
    checksum: int
    unloaded: bool
    symbols: str
    symbols_mismatch: bool
    symbol_file: str
    loaded_image: str
    flags: int


class Frame(TypedDict):
    """One stack frame: addresses, and names and source line where symbols gave them.

    `displacement` is in bytes from the function's start, or from the module's base where
    `function` is None. An inline frame shares the addresses of the function it was inlined in.
    """

    instruction: int
    child_sp: int
    frame: int
    inline: bool
    module: str | None
    function: str | None
    displacement: int | None
    file: str | None
    line: int | None


HOST_ERROR_KINDS = {
    "deadline": "the engine took too long and was ended",
    "worker-died": "the engine's process ended by itself",
    "setup": "the engine could not be installed",
    "terms": "the licence question of the engine is not answered",
    "host-unreachable": "the analysis host does not answer, or is no SSH server",
    "host-key": "the analysis host is not the one of the known_hosts file",
    "host-refused": "the analysis host does not let this user in",
    "host-gone": "the connection to the analysis host broke off",
    "host-setup": "the worker cannot be put on the analysis host, or not started there",
}
"""Kinds of errors that come from beside the worker."""

# `return` is a keyword, so this one entry needs the functional form.
FrameWithReturn = TypedDict("FrameWithReturn", {"return": int})


class StackFrame(Frame, FrameWithReturn):
    """A frame and its return address."""


class EngineVersion(TypedDict):
    """Which engine made a report."""

    name: str
    version: str


class Report(TypedDict):
    """What an engine says of a dump, at the state the bug check left."""

    engine: EngineVersion
    bug_check: BugCheck
    system: System
    modules: list[Module]
    registers: dict[str, int]
    stack: list[StackFrame]
    warnings: list[str]


class Scope(TypedDict):
    """Registers and stack of a trap frame or CONTEXT record, and what the engine printed."""

    registers: dict[str, int]
    stack: list[StackFrame]
    output: str


class Place(TypedDict):
    """What is at an address; `displacement` as in Frame, the last four as in Module."""

    module: str | None
    function: str | None
    displacement: int | None
    file: str | None
    line: int | None
    symbols: str
    symbols_mismatch: bool
    symbol_file: str
    loaded_image: str


class EngineError(Exception):
    """An engine could not do what was asked.

    `kind` is one of the worker's ERROR_KINDS or of HOST_ERROR_KINDS. `hresult` is the engine's own
    code, where it gave one.
    """

    def __init__(self, kind: str, message: str, hresult: int | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.hresult = hresult
