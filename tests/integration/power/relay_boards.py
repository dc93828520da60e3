"""Relay boards on a serial port: no emulator of theirs exists, so these are written here.

They follow the public notes of the protocols that lab/power/serial_relay.py cites. LcusBoard and
NumatoBoard are the far side of a pseudo-terminal; LineServer is pyserial's own RFC 2217 server over
its loop:// port, whose RTS and DTR are the relays.
"""

from __future__ import annotations

import os
import pty
import re
import select
import socket
import tempfile
import threading
import time
import tty
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Self

import serial
from serial.rfc2217 import PortManager

from fixtures.power_bench import Mode

RELAYS = 4


class Board(ABC):
    """A board behind the device file `path`, its relays all closed; a context manager."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="relays-")
        self.path = Path(self._folder.name, "port")
        self.closed = [True] * RELAYS
        self.received = b""
        self._mode: Mode = "good"
        self._seconds = 0.0
        self._coming: dict[int, tuple[bool, float]] = {}
        self._flapping: int | None = None
        self._silent_until = 0.0
        self._unplugged = threading.Event()
        self._unplugged.set()
        self._terminals: tuple[int, int] | None = None
        self._stop, self._wake = os.pipe()
        self._lock = threading.RLock()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self.plug()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.write(self._wake, b"x")
        self._thread.join()
        self._close()
        os.close(self._stop)
        os.close(self._wake)
        self._folder.cleanup()

    def plug(self) -> None:
        """Its port is there."""
        with self._lock:
            board, host = pty.openpty()
            tty.setraw(host)
            self._terminals = (board, host)
            self.path.unlink(missing_ok=True)
            self.path.symlink_to(os.ttyname(host))  # as /dev/serial/by-id does

    def unplug(self) -> None:
        """Its port is gone; the relays stay."""
        self._unplugged.clear()
        assert self._unplugged.wait(10)  # as long as the thread waits at it, it is not closed

    def _close(self) -> None:
        terminals, self._terminals = self._terminals, None
        for terminal in terminals or ():
            os.close(terminal)
        self.path.unlink(missing_ok=True)

    def behave(self, mode: Mode, seconds: float = 0.0) -> None:
        """From now on."""
        with self._lock:
            self._settle()
            self._coming.clear()
            self._flapping = None
            self._mode, self._seconds = mode, seconds
        if mode == "dead":
            self.unplug()
        elif self._terminals is None:
            self.plug()

    def is_closed(self, relay: int) -> bool:
        """What a relay truly is; one that flaps is closed every other time."""
        with self._lock:
            self._settle()
            if relay == self._flapping:
                self.closed[relay] = not self.closed[relay]
            return self.closed[relay]

    def switch(self, relay: int, closed: bool) -> None:
        """An order has come for it."""
        match self._mode:
            case "slow":
                self._coming[relay] = (closed, time.monotonic() + self._seconds)
            case "flapping":
                self._flapping = relay
            case "wrong outlet":
                self.closed[(relay + 1) % RELAYS] = closed
            case "restarts":
                self._silent_until = time.monotonic() + self._seconds
                self._mode = "good"
            case "good" | "late":
                self.closed[relay] = closed

    @abstractmethod
    def answer(self, received: bytes) -> tuple[bytes, bytes]:
        """What is left of the bytes received, and what is answered."""

    def _settle(self) -> None:
        for relay, (closed, at) in list(self._coming.items()):
            if time.monotonic() >= at:
                self.closed[relay] = closed
                del self._coming[relay]

    def _run(self) -> None:
        left = b""
        while True:
            if not self._unplugged.is_set():
                self._close()
                self._unplugged.set()
            watched = [self._stop, *(self._terminals or ())[:1]]
            ready = select.select(watched, [], [], 0.02)[0]
            if self._stop in ready:
                return
            if ready:
                left = self._read(ready[0], left)

    def _read(self, terminal: int, left: bytes) -> bytes:
        new = os.read(terminal, 1000)
        self.received += new
        if self._mode == "late":
            select.select([self._stop], [], [], self._seconds)
        if time.monotonic() < self._silent_until:
            return b""
        with self._lock:
            left, answer = self.answer(left + new)
        if time.monotonic() >= self._silent_until:
            os.write(terminal, answer)
        return left


class LcusBoard(Board):
    """A0, relay from 1, 01 or 00, their sum; says nothing."""

    def answer(self, received: bytes) -> tuple[bytes, bytes]:
        while len(received) >= 4:
            order, received = received[:4], received[4:]
            start, relay, closed, check = order
            if start == 0xA0 and check == sum(order[:3]) & 0xFF and 1 <= relay <= RELAYS:
                self.switch(relay - 1, bool(closed))
        return received, b""


class NumatoBoard(Board):
    """Echoes a line, answers it, and prompts with ">"."""

    def answer(self, received: bytes) -> tuple[bytes, bytes]:
        said = b""
        while b"\r" in received:
            line, _, received = received.partition(b"\r")
            said += line + b"\n\r"
            if order := re.fullmatch(rb"relay (on|off) (\d)", line):
                self.switch(int(order[2]), order[1] == b"on")
            elif line == b"relay readall":
                bits = sum(self.is_closed(relay) << relay for relay in range(RELAYS))
                said += f"{bits:02x}\n\r".encode()
            said += b">"
        return received, said


class LineServer:
    """RTS and DTR of a port on a console server, at rfc2217://127.0.0.1:`port`."""

    def __init__(self) -> None:
        self.lines = serial.serial_for_url("loop://", timeout=0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _run(self) -> None:
        with suppress(OSError):  # closed: the end
            while True:
                client = self._listener.accept()[0]
                with client, suppress(OSError):
                    self._serve(client)

    def _serve(self, client: socket.socket) -> None:
        class Connection:
            def write(self, data: bytes) -> None:
                client.sendall(data)

        manager = PortManager(self.lines, Connection())
        while received := client.recv(1000):
            b"".join(manager.filter(received))  # bytes for the port itself lead nowhere
