"""Device files of this host, and rfc2217://HOST:PORT, by pyserial.

A device is opened exclusively: pyserial's `exclusive` is a flock() that other programs honour, and
TIOCEXCL refuses every further open() by an ordinary user. What pyserial's URLs take after "?" goes
with them; rfc2217:// in front of a pseudo-terminal needs "?ign_set_control".
"""

from __future__ import annotations

import fcntl
import os
import termios
from contextlib import suppress
from pathlib import Path

import serial

from lab.console.transport import (
    READ_SECONDS,
    Connection,
    ConsoleError,
    ConsoleGone,
    Line,
    Mark,
    Transport,
)

WRITE_SECONDS = 10.0


class SerialConnection(Connection):
    """A port that pyserial has opened. exclusive: its device refuses to be opened again."""

    def __init__(self, port: serial.SerialBase, name: str, *, exclusive: bool) -> None:
        self._port = port
        self._name = name
        self._exclusive = exclusive

    def read(self) -> bytes:
        """See Connection."""
        try:
            first = self._port.read(1)
            return bytes(first) + bytes(self._port.read(self._port.in_waiting)) if first else b""
        except (serial.SerialException, OSError, TypeError) as error:
            # TypeError: pyserial has closed the file in another thread.
            raise ConsoleGone(f"console {self._name}: {error}") from error

    def write(self, data: bytes) -> None:
        """See Connection."""
        try:
            sent = 0
            while sent < len(data):
                sent += self._port.write(data[sent:]) or 0
            self._port.flush()
        except (serial.SerialException, OSError, TypeError) as error:
            raise ConsoleGone(f"console {self._name}: type on it: {error}") from error

    def close(self) -> None:
        """See Connection."""
        with suppress(serial.SerialException, OSError, TypeError):  # it is gone already
            if self._exclusive:  # the refusal outlives this file where others have the device open
                fcntl.ioctl(self._port.fileno(), termios.TIOCNXCL)
        with suppress(serial.SerialException, OSError):
            self._port.close()


class SerialTransport(Transport):
    """A device file or an RFC 2217 server."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._is_device = "://" not in line.url

    def open(self, mark: Mark) -> Connection:
        """See Transport."""
        line = self._line
        # RFC 2217 has neither: its server does as it likes.
        options = {"exclusive": True, "write_timeout": WRITE_SECONDS} if self._is_device else {}
        try:
            port = serial.serial_for_url(
                line.url, baudrate=line.baud, timeout=READ_SECONDS, **options
            )
        except (serial.SerialException, OSError, ValueError) as error:
            raise ConsoleError(f"console {line.port}: {error}{self._advice()}") from error
        if self._is_device:
            try:
                fcntl.ioctl(port.fileno(), termios.TIOCEXCL)
            except OSError as error:
                port.close()
                raise ConsoleError(f"console {line.port}: not exclusively: {error}") from error
        return SerialConnection(port, line.port, exclusive=self._is_device)

    def _advice(self) -> str:
        if not self._is_device:
            return "; is its console server running?"
        path = Path(self._line.url)
        if not path.exists():
            return "; is the adapter plugged in? by-id names in /dev/serial/by-id do not change"
        if holders := _holders(path):
            return f"; it is open in {', '.join(holders)}: end that first"
        if not os.access(path, os.R_OK | os.W_OK):
            return "; add yourself to the group dialout and log in again"
        return ""


def _holders(device: Path) -> list[str]:
    """The processes that have a device open, as far as /proc shows them."""
    found = []
    target = str(device.resolve())
    for process in Path("/proc").glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        with suppress(OSError):  # it ended, or belongs to another user
            if any(os.readlink(file) == target for file in (process / "fd").iterdir()):
                name = (process / "comm").read_text().strip()
                found.append(f"{name} (process {process.name})")
    return found


def open_line(line: Line) -> Transport:
    """See lab.console.transport."""
    return SerialTransport(line)
