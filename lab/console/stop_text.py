"""The stop code that Windows' Emergency Management Services print on the console at a bug check.

Source: Microsoft's documentation of EMS and SAC ("Boot parameters to enable EMS redirection",
the BLUESCREEN instance of the in-band XML) and public captures of it.
"""

from __future__ import annotations

import re

_STOP_CODE = re.compile(
    rb'<PROPERTY NAME="STOPCODE" TYPE="string"><VALUE>"0x([0-9A-Fa-f]{1,8})"</VALUE>'
)


def stop_codes(console: bytes) -> list[int]:
    """Every stop code the console has told, oldest first."""
    return [int(found, 16) for found in _STOP_CODE.findall(console)]
