"""A variation module of snmpsim: objects of a recording that show and switch the same relays.

A record's value is "outlet=3,on=1,off=2": what the object reads of this outlet's relay, and what
setting it does. snmpsim runs this file itself and gives it `moduleContext`.
"""

from __future__ import annotations

from typing import Any

from pysnmp.smi.error import WrongValueError
from snmpsim.grammar.snmprec import SnmprecGrammar  # type: ignore[import-not-found]

moduleContext: dict[str, Any]  # noqa: N816 - snmpsim's


def init(**context: Any) -> None:
    """All relays are on. snmpsim calls this once."""
    moduleContext["relays"] = {}  # noqa: F821


def variate(oid: Any, tag: str, value: str, **context: Any) -> tuple[Any, str, Any]:
    """Answers a get, getnext or set of one object; snmpsim says which in `context`."""
    if not context["nextFlag"] and not context["exactMatch"]:
        return context["origOid"], tag, context["errorStatus"]
    settings = dict(part.split("=") for part in value.split(","))
    outlet, on, off = settings["outlet"], int(settings["on"]), int(settings["off"])
    relays = moduleContext["relays"]  # noqa: F821
    if context["setFlag"]:
        wanted = int(context["origValue"])
        if wanted not in {on, off}:
            raise WrongValueError(name=oid, idx=context["varsTotal"] - 1)
        relays[outlet] = wanted == on
    state = on if relays.get(outlet, True) else off
    return oid, tag, SnmprecGrammar.TAG_MAP[tag](state)


def shutdown(**context: Any) -> None:
    """Keeps nothing."""
