"""Command lines for OpenSSH for Windows, whose shell is cmd.exe, and for PowerShell in it."""

from __future__ import annotations

import base64
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime

HELLO = "ver"
"""Costs next to nothing and changes nothing: cmd.exe itself answers."""
NOW = "[DateTime]::UtcNow.ToString('o')"
LAST_BOOT = "(Get-CimInstance Win32_OperatingSystem).LastBootUpTime.ToUniversalTime().ToString('o')"
_META = re.compile(r'[()%!^"<>&|]')
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d{1,7})?Z")


def command_line(program: str, arguments: Sequence[str]) -> str:
    """A program with its arguments as they are, whatever cmd.exe makes of some characters.

    Quoted as Microsoft's C runtime reads it ("Parsing C++ command-line arguments"); then each
    character that means something to cmd.exe has a caret, quotes too, so that cmd.exe never takes
    a part for quoted. Raises ValueError for what no command line can hold.
    """
    words = [program, *arguments]
    if any(character in word for word in words for character in "\r\n\0"):
        raise ValueError(f"a command line cannot hold line ends: {words!r}")
    return _META.sub(r"^\g<0>", subprocess.list2cmdline(words))


def telling_its_end(line: str, mark: str) -> str:
    """Has cmd.exe print the exit code behind a mark: SSH libraries keep the lowest byte alone.

    cmd.exe would put %errorlevel% in before the program runs; `call` looks again after it, and the
    caret hides it from the first look.
    """
    return f"{line} & call echo {mark}%^errorlevel%"


def exit_code_in(output: str, mark: str) -> tuple[str, int] | None:
    """What a command printed, and its exit code, unsigned; None if it never came to its end."""
    said, found, code = output.rpartition(mark)
    if not found or not re.fullmatch(r"-?\d{1,10}\s*", code):
        return None
    return said, int(code) & 0xFFFF_FFFF


def powershell(script: str) -> str:
    """Runs a script; encoded, so that no shell on the way can read anything into it."""
    encoded = base64.b64encode(script.encode("utf-16-le")).decode()
    return f"powershell.exe -NoProfile -NonInteractive -EncodedCommand {encoded}"


def set_clock(time: datetime) -> str:
    """The script that sets the clock."""
    return f"Set-Date ([DateTime]::Parse('{time.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}'))"


def parse_time(said: str) -> datetime:
    """What the round-trip format ("o") printed: UTC, to the microsecond. Raises ValueError."""
    found = _TIME.search(said)
    if found is None:
        raise ValueError(f"expected a time such as 2026-11-25T22:15:30.1234567Z; found {said!r}")
    time = datetime.fromisoformat(found[1]).replace(tzinfo=UTC)
    return time.replace(microsecond=int((found[2] or ".0")[1:].ljust(6, "0")[:6]))
