"""What SAC's commands answer, as values; see lab.console.sac.

`ch` and `cmd` are read as public captures show them, `i` as another program's test has it. Of `id`
and `t` no public capture was found, so no label and no column of theirs is known here: `id` is read
as lines "LABEL: VALUE", `t` as a table under whatever heads it. What more is told of them is a
guess from a value's form, is called one, and was never checked against Windows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address

from lab.outcome import InfrastructureError

PROMPT = re.compile(rb"!?SAC>")
MORE = re.compile(rb"(?i:press)\W{1,4}(?i:enter)")
"""A page is full. That SAC pages is documented (`p`); how it says so is a guess."""
GARBAGE_SHARE = 0.25
"""Of bytes that no text has, from which on the speed is suspected."""
_ESCAPES = re.compile(rb"\x1b(?:\[[0-9;?]*[A-Za-z@]|[()][A-Z0-9]|[=>])")
_XML = re.compile(
    rb"(?:<\?xml[^>]{0,64}>\s{0,8})?<(machine-info|channel-switch|BP)>.{0,2048}?</\1>\s{0,8}",
    re.DOTALL,
)
_MORE_LINE = re.compile(rb"[^\r\n]{0,80}" + MORE.pattern + rb"[^\r\n]{0,80}[\r\n]*")
_EVENT = re.compile(rb"\r?\n?EVENT:[^\r\n]{0,160}(?:\r?\nChannel:[^\r\n]{0,160})?\r?\n(?:SAC>)?")
_CHANNEL = re.compile(r"^[ \t]*(\d{1,3})[ \t]+\((\w{0,8})[ \t]*\)[ \t]+(\S.*)$", re.MULTILINE)
_ADDRESS = re.compile(
    r"^[ \t]*Net:[ \t]*(\d{1,9}),[ \t]*Ip=(\S{1,64})(?:[ \t]+Subnet=(\S{1,64}))?"
    r"(?:[ \t]+Gateway=(\S{1,64}))?[ \t]*$",
    re.MULTILINE,
)
_LABEL = re.compile(r"^[ \t]*([^\s:][^:\n]{0,63}):[ \t]+(\S.*)$", re.MULTILINE)
_BUILD = re.compile(r"\d{4,5}")
_UP = re.compile(r"(\d{1,5}):(\d\d):(\d\d)")
_WHOLE = re.compile(r"\d{1,18}")
_DIGIT = re.compile(r"\d")
LONGEST_HEAD = 100
"""Characters. SAC draws on a terminal of 80 columns."""
LONGEST_ANSWER = 65536
"""Bytes; of a longer one the end is taken. No answer of SAC's comes near it."""


class SacError(InfrastructureError):
    """SAC answered something else than what was asked for; the message has its words."""


@dataclass(frozen=True)
class Address:
    """One line of `i`. network: SAC's number of the interface. subnet, gateway: of IPv4 only."""

    network: int
    address: IPv4Address | IPv6Address
    subnet: IPv4Address | None = None
    gateway: IPv4Address | None = None


@dataclass(frozen=True)
class Identity:
    """What `id` says of the machine.

    labels: every label with its value as printed, in SAC's order. build_guess: the only value that
    reads like a build number; up_for_guess: the only one that reads H:MM:SS, taken for the time
    since the boot. None where there is no such value, or more than one. text: the answer.
    """

    labels: dict[str, str]
    build_guess: int | None
    up_for_guess: timedelta | None
    text: str


@dataclass(frozen=True)
class Processes:
    """The table that `t` answers.

    columns: their heads as printed. rows: a line each, a cell for each column, whole numbers as
    int. text: the answer.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[int | str, ...], ...]
    text: str

    def having(self, cell: int | str) -> list[tuple[int | str, ...]]:
        """The rows with this cell: a process by its name or its number, whichever column it is."""
        return [row for row in self.rows if cell in row]


@dataclass(frozen=True)
class Channel:
    """One line of `ch`. status: SAC's letters. Number 0 is SAC itself."""

    number: int
    name: str
    status: str


@dataclass(frozen=True)
class CommandResult:
    """A command that ended in a command prompt channel."""

    exit_code: int
    output: str


def parse_addresses(answer: str) -> list[Address]:
    """The lines of `i`. Raises SacError for one that has no address in it."""
    found = []
    for number, address, subnet, gateway in _ADDRESS.findall(answer):
        try:
            found.append(
                Address(
                    int(number),
                    ip_address(address),
                    IPv4Address(subnet) if subnet else None,
                    IPv4Address(gateway) if gateway else None,
                )
            )
        except ValueError as error:
            raise SacError(f"`i` answered {answer!r}: {error}") from error
    return found


def parse_identity(answer: str) -> Identity:
    """The lines of `id`. Raises SacError for fewer than two lines of a label and a value."""
    labels = {label.strip(): value.strip() for label, value in _LABEL.findall(answer)}
    if len(labels) < 2:
        raise SacError(f"`id` was expected to answer lines of LABEL: VALUE; it said {answer!r}")
    builds = [int(value) for value in labels.values() if _BUILD.fullmatch(value)]
    times = [
        timedelta(hours=int(found[1]), minutes=int(found[2]), seconds=int(found[3]))
        for found in map(_UP.fullmatch, labels.values())
        if found
    ]
    return Identity(
        labels,
        build_guess=builds[0] if len(builds) == 1 else None,
        up_for_guess=times[0] if len(times) == 1 else None,
        text=answer,
    )


def parse_processes(answer: str) -> Processes:
    """The longest table of `t`: a line of words without digits, and the lines with digits under it.

    Raises SacError where there is none.
    """
    tables: list[list[str]] = [[]]
    for line in answer.expandtabs().splitlines():
        if _DIGIT.search(line):
            if tables[-1]:
                tables[-1].append(line)
        elif line.strip():
            is_head = len(line.split()) > 1 and len(line) <= LONGEST_HEAD
            tables.append([line] if is_head else [])
    head, *lines = max(tables, key=len) or [""]
    if not lines:
        raise SacError(f"`t` was expected to answer a table with a head; it said {answer!r}")
    cuts = _columns(head, lines)
    columns, *rows = ([line[start:end].strip() for start, end in cuts] for line in [head, *lines])
    return Processes(
        tuple(columns),
        tuple(tuple(int(cell) if _WHOLE.fullmatch(cell) else cell for cell in row) for row in rows),
        answer,
    )


def _columns(head: str, lines: list[str]) -> list[tuple[int, int | None]]:
    """Where columns begin and end: at places that are blank in every line, with a head each.

    The last one runs to the end of the line, for names with blanks in them.
    """
    used = bytearray(len(head))
    for line in [head, *lines]:
        for word in re.finditer(r"\S+", line[: len(head)]):
            used[word.start() : word.end()] = b"\1" * (word.end() - word.start())
    starts = [
        part.start() for part in re.finditer(rb"\x01+", used) if head[slice(*part.span())].strip()
    ]
    starts[0] = 0
    return list(zip(starts, [*starts[1:], None], strict=True))


def parse_channels(answer: str) -> list[Channel]:
    """The lines of `ch`. Raises SacError where SAC itself is not among them."""
    found = [Channel(int(n), name.strip(), status) for n, status, name in _CHANNEL.findall(answer)]
    if not any(channel.number == 0 for channel in found):
        raise SacError(f"`ch` was expected to list SAC itself; it answered {answer!r}")
    return found


def plain(said: bytes) -> str:
    """Text as a person reads it: no escape sequences, XML, events, prompts, padding."""
    said = said[-LONGEST_ANSWER:]
    for noise in (_ESCAPES, _XML, _EVENT, _MORE_LINE, PROMPT):
        said = noise.sub(b"", said)
    lines = said.decode("utf-8", errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    return "\n".join(line.rstrip() for line in lines.split("\n")).strip("\n")


def described(said: bytes) -> str:
    """What came instead, and a guess why."""
    if not said:
        return "the console said nothing at all"
    strange = sum(byte > 0x7E or (byte < 0x20 and byte not in b"\r\n\t\b\x1b") for byte in said)
    shown = ascii(said[-200:].decode("latin-1"))[1:-1]
    if strange > GARBAGE_SHARE * len(said):
        return f"what came is no text ({shown}): is the speed (baud) right?"
    return f"it said {shown}"
