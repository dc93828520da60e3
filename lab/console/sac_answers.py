"""What SAC's commands answer, as values; see lab.console.sac.

The answers of `i`, `ch` and `cmd` are read as public captures show them. Of `id` and `t` no whole
capture could be had: `id` is read as lines of a label and a value, `t` by its columns.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address

from lab.outcome import InfrastructureError

PROMPT = re.compile(rb"!?SAC>")
GARBAGE_SHARE = 0.25
"""Of bytes that no text has, from which on the speed is suspected."""
_ESCAPES = re.compile(rb"\x1b(?:\[[0-9;?]*[A-Za-z@]|[()][A-Z0-9]|[=>])")
_XML = re.compile(
    rb"(?:<\?xml[^>]{0,64}>\s{0,8})?<(machine-info|channel-switch|BP)>.{0,2048}?</\1>\s{0,8}",
    re.DOTALL,
)
_EVENT = re.compile(rb"\r?\n?EVENT:[^\r\n]{0,160}(?:\r?\nChannel:[^\r\n]{0,160})?\r?\n(?:SAC>)?")
_CHANNEL = re.compile(r"^[ \t]*(\d{1,3})[ \t]+\((\w{0,8})[ \t]*\)[ \t]+(\S.*)$", re.MULTILINE)
_ADDRESS = re.compile(
    r"^[ \t]*Net:[ \t]*(\d{1,9}),[ \t]*Ip=(\S{1,64})(?:[ \t]+Subnet=(\S{1,64}))?"
    r"(?:[ \t]+Gateway=(\S{1,64}))?[ \t]*$",
    re.MULTILINE,
)
_LABEL = re.compile(r"^[ \t]*([A-Z][A-Za-z ]{0,64}):(.*)$", re.MULTILINE)
_UP = re.compile(r"(\d{1,9}):(\d\d):(\d\d)")
_PROCESS = re.compile(
    r"^[ \t]*\d{1,9}:\d\d:\d\d\.\d{3}[ \t]+\d{1,9}:\d\d:\d\d\.\d{3}[ \t]*(\d{1,12})"
    r"[ \t]+\d+[ \t]+\d+[ \t]+(\d{1,3})[ \t]+(\d{1,9})[ \t]+(\d{1,9})[ \t]+(\d{1,9})"
    r"[ \t]+(\S.*)$",
    re.MULTILINE,
)
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
    """What `id` says. up_for: since the last boot. labels: every line as SAC names it."""

    name: str
    build: int
    up_for: timedelta
    labels: dict[str, str]


@dataclass(frozen=True)
class Process:
    """One line of `t`. working_set: KiB."""

    pid: int
    name: str
    threads: int
    handles: int
    priority: int
    working_set: int


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
    """The lines of `id`. Raises SacError where name, build or time since the boot are missing."""
    labels = {label.strip(): value.strip() for label, value in _LABEL.findall(answer)}
    lower = {label.lower(): value for label, value in labels.items()}
    name, build = lower.get("computer name"), lower.get("build number", "")
    up = _UP.fullmatch(lower.get("time since last reboot", ""))
    if not name or not build.isdigit() or up is None:
        raise SacError(
            "`id` was expected to tell Computer Name, Build Number and Time since last reboot; it"
            f" answered {answer!r}"
        )
    hours, minutes, seconds = (int(part) for part in up.groups())
    return Identity(
        name, int(build), timedelta(hours=hours, minutes=minutes, seconds=seconds), labels
    )


def parse_processes(answer: str) -> list[Process]:
    """The lines of `t` in its short form. Raises SacError where there is none."""
    found = [
        Process(int(pid), name.strip(), int(threads), int(handles), int(priority), int(working_set))
        for working_set, priority, handles, threads, pid, name in _PROCESS.findall(answer)
    ]
    if not found:
        raise SacError(f"`t` answered no line of a process: {answer!r}")
    return found


def parse_channels(answer: str) -> list[Channel]:
    """The lines of `ch`. Raises SacError where SAC itself is not among them."""
    found = [Channel(int(n), name.strip(), status) for n, status, name in _CHANNEL.findall(answer)]
    if not any(channel.number == 0 for channel in found):
        raise SacError(f"`ch` was expected to list SAC itself; it answered {answer!r}")
    return found


def plain(said: bytes) -> str:
    """Text as a person reads it: no escape sequences, XML, events, prompts, padding."""
    said = said[-LONGEST_ANSWER:]
    for noise in (_ESCAPES, _XML, _EVENT, PROMPT):
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
