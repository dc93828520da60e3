"""COM2 for a kernel debugger, on a TCP port of this machine for as long as somebody wants it.

QEMU's COM2 is a pseudo-terminal. A port that QEMU opens itself would have to be chosen before the
start, and libvirt's TCP ports delay each small packet by 40 ms (Nagle).
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
import tty
from collections.abc import Callable
from pathlib import Path

CHUNK = 65536


class DebuggerPort:
    """Listens on 127.0.0.1 on a port the kernel chooses; one debugger at a time.

    terminal: gives COM2's pseudo-terminal of the machine as it now runs, or None while it is off.
    A debugger stays connected while the machine restarts.
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
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._listener, selectors.EVENT_READ)
            waiting.register(self._stopped, selectors.EVENT_READ)
            while all(key.fileobj is not self._stopped for key, _ in waiting.select()):
                debugger, _ = self._listener.accept()
                debugger.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with debugger:
                    if not self._connect(debugger):
                        return

    def _connect(self, debugger: socket.socket) -> bool:
        """Until the debugger leaves; False when it is all over."""
        terminal: int | None = None
        with selectors.DefaultSelector() as waiting:
            waiting.register(debugger, selectors.EVENT_READ)
            waiting.register(self._stopped, selectors.EVENT_READ)
            while True:
                if terminal is None and (terminal := self._open()) is not None:
                    waiting.register(terminal, selectors.EVENT_READ)
                # While the machine is off there is nothing to wait for: look again soon.
                ready = [key.fd for key, _ in waiting.select(None if terminal else 0.2)]
                if self._stopped.fileno() in ready:
                    break
                if debugger.fileno() in ready and not self._pass_on(debugger, terminal):
                    break
                if terminal in ready and terminal is not None:
                    data = _read(terminal)
                    if data:
                        debugger.sendall(data)
                    else:  # the machine went off
                        waiting.unregister(terminal)
                        os.close(terminal)
                        terminal = None
        if terminal is not None:
            os.close(terminal)
        return self._stopped.fileno() not in ready

    @staticmethod
    def _pass_on(debugger: socket.socket, terminal: int | None) -> bool:
        try:
            data = debugger.recv(CHUNK)
        except OSError:
            return False
        if terminal is not None:
            os.write(terminal, data)
        return bool(data)

    def _open(self) -> int | None:
        path = self._terminal()
        if path is None:
            return None
        try:
            terminal = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError:
            return None  # it went off meanwhile
        tty.setraw(terminal)
        return terminal


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, CHUNK)
    except BlockingIOError:
        raise
    except OSError:  # EIO: the other end is closed
        return b""
