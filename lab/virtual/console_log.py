"""What COM1 says, in one file that only grows, and when each part of it came.

virtlogd writes the bytes and begins a new file when one is full (2 MiB unless told otherwise; the
full one gets the suffix ".0"). Here they are put together again.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from lab.console.log import Log

CHUNK = 1 << 20


class ConsoleLog(Log):
    """Follows the file that virtlogd writes; has all bytes since the first power-on.

    Its times are those at which bytes were first seen, within WATCH_SECONDS of when they came.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.written_by_libvirt = folder / "com1.log"
        self._following = threading.Lock()
        self._source: BinaryIO | None = None

    def look(self) -> None:
        """See Log. What finds no room now is taken over later."""
        with suppress(OSError):
            self.follow()

    def follow(self) -> int:
        """Takes over what is new; returns how many bytes that were. Any thread may call it.

        Raises OSError when there is no room for it; nothing is lost by that.
        """
        with self._following:
            new = self._take()
            if self._source is not None and self._was_replaced(self._source):
                new += self._take()  # written before it was replaced
                self._source.close()
                self._source = None
                new += self._take()
            return new

    def _was_replaced(self, source: BinaryIO) -> bool:
        try:
            current = self.written_by_libvirt.stat()
        except FileNotFoundError:
            return False  # between the two steps of a replacement
        return os.fstat(source.fileno()).st_ino != current.st_ino

    def _take(self) -> int:
        if self._source is None:
            if not self.written_by_libvirt.exists():
                return 0
            self._source = self.written_by_libvirt.open("rb")
        taken = 0
        while data := self._source.read(CHUNK):
            try:
                self.add(data)
            except OSError:  # the disk is full: nothing is lost, the next call tries again
                self._source.seek(-len(data), os.SEEK_CUR)
                raise
            taken += len(data)
        return taken

    def close(self) -> None:
        """Takes over the rest, if there is room, and lets the file go."""
        with suppress(OSError):  # libvirt's own file still has it
            self.follow()
        with self._following:
            if self._source is not None:
                self._source.close()
                self._source = None
