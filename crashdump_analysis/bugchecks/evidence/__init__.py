"""What a bug check itself says of who is at fault: one file a rule, found by its name.

A rule is a function `evidence(crash, description)` in the file that the bug check's entry names
(`evidence = "device-stack"` is device_stack.py). It gives what it found, or None: then the stack
alone decides, as it does where the rule names nobody.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from crashdump_analysis.bugchecks import Description
from crashdump_analysis.bugchecks.faults import Crash, Fault

Confidence = Literal["high", "medium", "low", "none"]


@dataclass(frozen=True)
class Evidence:
    """What was found.

    words: what was seen, a sentence each. module: who that names, if anybody, with the reason and
    how sure it is; elsewhere: the stack is another's, and a frame of that module on it is chance.
    no_culprit: why nobody is at fault. at_most, doubt: how sure the stack can be at most, and why,
    where the stack decides. detail, image: what WinDbg puts into the bucket behind the code, and
    behind IMAGE; bucket: the whole bucket where it has neither.
    """

    words: tuple[str, ...] = ()
    module: str | None = None
    image: str = ""
    reason: str = ""
    confidence: Confidence = "medium"
    elsewhere: bool = False
    no_culprit: str = ""
    at_most: Confidence = "high"
    doubt: str = ""
    detail: str = ""
    bucket: str = ""


Rule = Callable[[Crash, Description], Evidence | None]


def rule(name: str) -> Rule:
    """The rule of that name; ModuleNotFoundError where there is none."""
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    found: Rule = module.evidence
    return found


def find_evidence(crash: Crash, description: Description, fault: Fault | None) -> Evidence | None:
    """What there is besides the stack: an unloaded driver, the bug check's rule, its raiser."""
    names = [description.evidence or ("" if description.known else "raiser")]
    if fault is not None and crash.modules.at(fault.registers.rip) is None:
        names.insert(0, "unloaded-driver")
    found = (rule(name)(crash, description) for name in names if name)
    return next((one for one in found if one is not None), None)
