"""COM2 for a kernel debugger, on a TCP port of this machine for as long as somebody wants it.

QEMU's COM2 is a pseudo-terminal. A port that QEMU opens itself would have to be chosen before the
start, and libvirt's TCP ports delay each small packet by 40 ms (Nagle).
"""

from __future__ import annotations

import os
import select
import socket
import threading
import tty
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from lab.backend import BackendError

CHUNK = 65536
LOOK_MILLISECONDS = 200
"""How often a connected debugger's machine is looked for while it is off."""
READABLE = select.POLLIN | select.POLLHUP | select.POLLERR


class DebuggerPort:
    """Listens on 127.0.0.1 on a port the kernel chooses; one debugger at a time.

    terminal: gives COM2's pseudo-terminal of the machine as it now runs, or None while it is off.
    A debugger stays connected while the machine restarts; what it sends meanwhile is dropped.
    """

    def __init__(self, terminal: Callable[[], Path | None]) -> None:
        self._terminal = terminal
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1)
        self._stop, self._stopped = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="debugger port", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """HOST:PORT."""
        host, port = self._listener.getsockname()
        return f"{host}:{port}"

    def close(self) -> None:
        """Disconnects the debugger and frees the port."""
        self._stop.close()
        self._thread.join()
        self._listener.close()
        self._stopped.close()

    def _serve(self) -> None:
        while self._stopped.fileno() not in _ready(
            {self._listener.fileno(), self._stopped.fileno()}
        ):
            debugger, _ = self._listener.accept()
            debugger.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with debugger:
                self._connect(debugger)

    def _connect(self, debugger: socket.socket) -> None:
        """Passes bytes both ways until the debugger leaves or close() is called."""
        terminal: int | None = None
        to_guest = b""
        try:
            while True:
                if terminal is None:
                    terminal, to_guest = self._open(), b""
                # What the guest has not taken yet holds up the debugger, not this thread.
                reading = {self._stopped.fileno()} | (set() if to_guest else {debugger.fileno()})
                if terminal is None:
                    ready = _ready(reading, timeout=LOOK_MILLISECONDS)
                else:
                    writing = {terminal} if to_guest else set()
                    ready = _ready(reading | {terminal}, writing)
                if self._stopped.fileno() in ready:
                    return
                if debugger.fileno() in ready:
                    to_guest = debugger.recv(CHUNK)
                    if not to_guest:
                        return
                if terminal is not None and terminal in ready:
                    said, to_guest, on = _exchange(terminal, to_guest)
                    debugger.sendall(said)
                    if not on:
                        os.close(terminal)
                        terminal = None
        except ConnectionError:
            return  # the debugger left in the middle of something
        finally:
            if terminal is not None:
                os.close(terminal)

    def _open(self) -> int | None:
        try:
            path = self._terminal()
            if path is None:
                return None
            terminal = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        except (BackendError, FileNotFoundError):
            return None  # it went off meanwhile, or libvirt is away: look again
        tty.setraw(terminal)
        return terminal


def _ready(
    reading: set[int], writing: set[int] | None = None, timeout: int | None = None
) -> set[int]:
    """Which of the files can be read or written."""
    waiting = select.poll()
    for file in reading:
        waiting.register(file, READABLE | (select.POLLOUT if file in (writing or ()) else 0))
    return {file for file, _ in waiting.poll(timeout)}


def _exchange(terminal: int, to_guest: bytes) -> tuple[bytes, bytes, bool]:
    """What the guest said, what it has not taken yet, and whether it still has power."""
    try:
        if to_guest:
            with suppress(BlockingIOError):
                to_guest = to_guest[os.write(terminal, to_guest) :]
        said = os.read(terminal, CHUNK)
    except BlockingIOError:
        return b"", to_guest, True
    except OSError:  # EIO: QEMU has closed its end
        return b"", b"", False
    return said, to_guest, bool(said)
