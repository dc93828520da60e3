"""0xC4: what Driver Verifier says of the rule that was broken; its own frames are never blamed."""

from __future__ import annotations

import re

from crashdump_analysis.bugchecks import Description
from crashdump_analysis.bugchecks.evidence import Evidence
from crashdump_analysis.bugchecks.evidence.objects import (
    ascii_text,
    module_of_file,
    unicode_string,
)
from crashdump_analysis.bugchecks.faults import Crash

_UNLOADING_WITH_POOL = 0x62
_FIRST_RULE = 0x20000  # from here on kinds are rules of DDI compliance checking


def evidence(crash: Crash, description: Description) -> Evidence | None:
    """A driver that is named, or the text of the rule; who broke it is then on the stack."""
    kind, second = crash.parameters[:2]
    if kind == _UNLOADING_WITH_POOL:
        name = ascii_text(crash.memory, second) or unicode_string(crash.memory, second)
        module = module_of_file(crash.modules, name)
        if module:
            return Evidence(
                (f"Driver Verifier names {name}",),
                module.name,
                module.image,
                f"{module.name} unloads and leaves {crash.parameters[3]} allocations behind",
                "high",
            )
    if kind < _FIRST_RULE:
        return None
    condition = ascii_text(crash.memory, second)
    words = (f"the rule's condition: {condition}",) if condition else ()
    found = re.search(r"(?:compliance|verification) rule (\w+)", description.parameters[0].meaning)
    return Evidence(words, detail=f"{found[1]}_XDV" if found else "")
