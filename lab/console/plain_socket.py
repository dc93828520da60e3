"""socket://HOST:PORT and unix:///PATH: a console server's or a hypervisor's raw stream of bytes.

Not pyserial's socket://, which takes one byte a call and leaves Nagle's delay of 40 ms on.
"""

from __future__ import annotations

import select
import socket
from urllib.parse import urlsplit

from lab.console.transport import (
    READ_SECONDS,
    Connection,
    ConsoleError,
    ConsoleGone,
    Line,
    Mark,
    Transport,
)

CHUNK = 65536
CONNECT_SECONDS = 10.0
WRITE_SECONDS = 10.0


class SocketConnection(Connection):
    """A connected stream socket."""

    def __init__(self, stream: socket.socket, port: str) -> None:
        self._stream = stream
        self._port = port
        stream.settimeout(WRITE_SECONDS)

    def read(self) -> bytes:
        """See Connection."""
        try:
            if not select.select([self._stream], [], [], READ_SECONDS)[0]:
                return b""
            data = self._stream.recv(CHUNK)
        except (OSError, ValueError) as error:  # ValueError: closed meanwhile
            raise ConsoleGone(f"console {self._port}: {error}") from error
        if not data:
            raise ConsoleGone(f"console {self._port}: the other side closed the connection")
        return data

    def write(self, data: bytes) -> None:
        """See Connection."""
        try:
            self._stream.sendall(data)
        except OSError as error:
            raise ConsoleGone(f"console {self._port}: type on it: {error}") from error

    def close(self) -> None:
        """See Connection."""
        self._stream.close()


class SocketTransport(Transport):
    """A raw TCP port or a unix socket."""

    def __init__(self, line: Line) -> None:
        parts = urlsplit(line.url)
        self._port = line.port
        try:
            self._address = (parts.hostname or "", parts.port or 0)
        except ValueError as error:
            raise ConsoleError(f"console {line.url}: {error}") from None
        self._path = parts.path if parts.scheme == "unix" else ""
        if not self._path and not all(self._address):
            raise ConsoleError(f"console {line.url}: expected socket://HOST:PORT or unix:///PATH")

    def open(self, mark: Mark) -> Connection:
        """See Transport."""
        try:
            if self._path:
                stream = socket.socket(socket.AF_UNIX)
                try:
                    stream.connect(self._path)
                except BaseException:
                    stream.close()
                    raise
            else:
                stream = socket.create_connection(self._address, CONNECT_SECONDS)
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                # A peer that vanished without a word is noticed after about half a minute.
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        except OSError as error:
            raise ConsoleError(
                f"console {self._port}: {error}; is its console server running?"
            ) from error
        return SocketConnection(stream, self._port)


def open_line(line: Line) -> Transport:
    """See lab.console.transport."""
    return SocketTransport(line)
