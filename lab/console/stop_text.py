"""What Windows' Emergency Management Services print on the console at a bug check.

Source: Microsoft's documentation of EMS and SAC ("Boot parameters to enable EMS redirection", the
BLUESCREEN instance of the in-band XML) and public captures of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from lab.console.log import Log

STOP_CODE = re.compile(
    rb'<PROPERTY NAME="STOPCODE" TYPE="string"><VALUE>"0x([0-9A-Fa-f]{1,8})"</VALUE>'
)
_LONGEST = 256
"""Bytes in which the text of one stop code ends."""


def stop_codes(console: bytes) -> list[int]:
    """Every stop code the console has told, oldest first."""
    return [int(found, 16) for found in STOP_CODE.findall(console)]


class ConsoleListener:
    """Calls back for each text of a pattern that comes from now on, in the order they came.

    No text may be longer than 256 bytes. told: called in the thread that reads the console.
    """

    def __init__(
        self, log: Log, pattern: re.Pattern[bytes], told: Callable[[re.Match[bytes]], None]
    ) -> None:
        self._log = log
        self._pattern = pattern
        self._told = told
        self._offset = log.size
        log.listen(self._look)

    def _look(self) -> None:
        # In the writer's thread, after each piece.
        start = self._offset
        said = self._log.read(start)
        ends = 0
        for found in self._pattern.finditer(said):
            ends = found.end()
            self._told(found)
        # A text that has only begun is looked at again with its end.
        self._offset = start + max(ends, len(said) - _LONGEST)

    def close(self) -> None:
        """Ends it."""
        self._log.forget(self._look)
