"""How to reach a serial console: the contract of a transport, and which URL takes which.

A transport is one file in lab/console; TRANSPORTS names it by the URL's scheme. What has no scheme
is a device file of this host.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol, Self
from urllib.parse import urlsplit

from pydantic import SecretStr

from lab.outcome import InfrastructureError

READ_SECONDS = 0.2
"""How long one read may wait for a byte; closing a port takes as long."""
TRANSPORTS = {
    "": "serial_device",
    "rfc2217": "serial_device",
    "socket": "plain_socket",
    "unix": "plain_socket",
    "sol": "serial_over_lan",
}


class ConsoleError(InfrastructureError):
    """A console could not be reached or used; says which, why, and what to do."""


class ConsoleGone(ConsoleError):  # noqa: N818 - a state, not a mistake
    """The connection ended, or is not there now."""


class Mark(Protocol):
    """Notes an event in the console's log: lab.console.log.Log.mark."""

    def __call__(self, event: str, *, offset: int | None = None, **details: object) -> None:
        """See Log.mark."""


@dataclass(frozen=True)
class Line:
    """Where a console is and how to talk to it.

    url: /dev/ttyUSB0, rfc2217://HOST:PORT, socket://HOST:PORT, unix:///PATH or sol://HOST[:PORT].
    baud: bits a second where the lab sets them (8 data bits, no parity, 1 stop bit). user, password
    and cipher_suite are for Serial over LAN.
    """

    url: str
    baud: int = 115200
    user: str = ""
    password: SecretStr | None = None
    cipher_suite: int | None = None

    @property
    def port(self) -> str:
        """The port's name: two lines with one name are the same wire."""
        return self.url.partition("?")[0]


class Connection(ABC):
    """An open console; a context manager that closes it. read() is for one thread alone."""

    @abstractmethod
    def read(self) -> bytes:
        """The bytes that have come; waits up to READ_SECONDS for the first. ConsoleGone."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Sends all of it. Raises ConsoleGone."""

    @abstractmethod
    def close(self) -> None:
        """Lets the port go."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Transport(ABC):
    """A way to open one console, again and again."""

    @abstractmethod
    def open(self, mark: Mark) -> Connection:
        """Connects. What has to be told of that is told to `mark`. Raises ConsoleError."""


def open_transport(line: Line) -> Transport:
    """The transport of a line's URL. Raises ConsoleError for one that no transport takes."""
    scheme = urlsplit(line.url).scheme
    if scheme not in TRANSPORTS:
        known = ", ".join(f"{name}://" for name in TRANSPORTS if name)
        raise ConsoleError(f"console {line.url}: expected a device file or one of {known}")
    module = importlib.import_module(f"lab.console.{TRANSPORTS[scheme]}")
    transport: Transport = module.open_line(line)
    return transport
