"""Typing on COM1 of a virtual machine: its pseudo-terminal, opened when somebody first types.

What the machine says there is read and dropped, for virtlogd has it in the log already; if nobody
read it, the machine would wait for room.
"""

from __future__ import annotations

import os
import select
import threading
import time
import tty
from collections.abc import Callable
from pathlib import Path

from lab.backend import BackendError
from lab.console.log import Log

CHUNK = 65536
WRITE_SECONDS = 10.0
"""For the machine to take what is typed."""


class ConsoleKeyboard:
    """One machine's; it is opened again after each power-on.

    terminal: COM1's pseudo-terminal as the machine now runs, or None while it is off.
    """

    def __init__(self, terminal: Callable[[], Path | None], log: Log) -> None:
        self._terminal = terminal
        self._log = log
        self._lock = threading.Lock()
        self._file: int | None = None
        self._stop, self._stopped = os.pipe()
        self._reader: threading.Thread | None = None

    def type(self, data: bytes) -> None:
        """Types. Raises BackendError where the machine is off, or does not take it."""
        with self._lock:
            if self._file is None:
                self._open()
            assert self._file is not None
            self._log.mark("typed", length=len(data))
            self._write(self._file, data)

    def _open(self) -> None:
        try:
            path = self._terminal()
            if path is None:
                raise BackendError("type on the console: the machine is off")
            file = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError as error:
            raise BackendError(f"type on the console: {error}") from error
        tty.setraw(file)
        self._file = file
        self._reader = threading.Thread(
            target=self._drain, args=(file,), name="console keyboard", daemon=True
        )
        self._reader.start()

    @staticmethod
    def _write(file: int, data: bytes) -> None:
        end = time.monotonic() + WRITE_SECONDS
        while data:
            try:
                data = data[os.write(file, data) :]
            except BlockingIOError:
                left = end - time.monotonic()
                if left <= 0 or not select.select([], [file], [], left)[1]:
                    raise BackendError(
                        f"type on the console: the machine took nothing for {WRITE_SECONDS:g} s"
                    ) from None
            except OSError as error:  # EIO: it went off
                raise BackendError(f"type on the console: {error}") from error

    def _drain(self, file: int) -> None:
        """Reads until the machine goes off or close() is called."""
        try:
            while self._stopped not in select.select([file, self._stopped], [], [])[0]:
                if not os.read(file, CHUNK):
                    return
                self._log.look()
        except OSError:  # EIO: QEMU has closed its end
            return
        finally:
            with self._lock:
                os.close(file)
                self._file = None

    def close(self) -> None:
        """Lets the pseudo-terminal go, for good."""
        os.close(self._stop)
        if self._reader is not None:
            self._reader.join()
        os.close(self._stopped)
