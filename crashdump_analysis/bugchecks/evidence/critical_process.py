"""0xEF: which process ended. Why it did is rarely to be seen from the kernel."""

from __future__ import annotations

import re

from crashdump_analysis.bugchecks import Description
from crashdump_analysis.bugchecks.evidence import Evidence
from crashdump_analysis.bugchecks.faults import Crash

_CRITICAL = ("csrss.exe", "wininit.exe", "smss.exe", "services.exe", "lsass.exe", "svchost.exe",
             "winlogon.exe", "lsaiso.exe")  # fmt: skip
_EPROCESS = 0x1000  # bytes that hold EPROCESS.ImageFileName on every 64-bit Windows so far


def evidence(crash: Crash, description: Description) -> Evidence | None:
    """The process's name, found in its EPROCESS as the one field that holds a critical one."""
    process = crash.memory.read_some(crash.parameters[0], _EPROCESS)
    pattern = b"|".join(re.escape(one.encode()) for one in _CRITICAL)
    found = re.search(rb"(?:" + pattern + rb")\0", process, re.IGNORECASE)
    doubt = "a critical process ended; what made it end need not be on this stack"
    if found is None:
        return Evidence(at_most="low", doubt=doubt)
    name = found.group().rstrip(b"\0").decode("ascii")
    return Evidence(
        (f"the process that ended is {name} (by its name's letters in the process object)",),
        at_most="low",
        doubt=doubt,
        detail=f"{name}_BUGCHECK_CRITICAL_PROCESS",
    )
