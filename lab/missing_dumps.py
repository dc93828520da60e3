"""What became of the dump of each bug check: it is among those that were found, or why it is not.

Only a machine that restarts by itself leaves more than one question here: then a dump lies in the
pagefile, or was moved aside, or the next bug check wrote over it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from lab.signals import Signal, SignalKind, SignalLog


@dataclass(frozen=True)
class WholeDump:
    """A whole dump that no collection before this one had; time: of its bug check, host's clock."""

    path: str
    time: datetime


@dataclass(frozen=True)
class MissingDump:
    """A bug check without a dump. written_over_by: the boot whose bug check wrote over it."""

    boot: int
    reason: str
    written_over_by: int | None = None


def missing_dumps(
    signals: SignalLog,
    crashes: Sequence[Signal],
    dumps: Sequence[WholeDump],
    *,
    staged_in: str,
    tolerance: timedelta,
) -> list[MissingDump]:
    """The bug checks (oldest first) that none of the dumps belongs to, each with its reason.

    staged_in: where a bug check writes. tolerance: how far a dump's time may be from its signal.
    Where two bug checks are nearer to each other than that, which of them a dump belongs to is a
    guess (the newest it can be), and the reason says so.
    """
    boots = {signal.boot: signal for signal in reversed(crashes)}  # a boot's first signal
    newest_first = sorted(boots.values(), key=lambda signal: signal.boot, reverse=True)
    unclaimed = sorted(dumps, key=lambda dump: dump.time, reverse=True)
    owners: dict[int, WholeDump] = {}
    for signal in newest_first:
        near = [dump for dump in unclaimed if abs(dump.time - signal.at) <= tolerance]
        if _cut(signals, signal) and len(dumps) < len(boots):
            near = [dump for dump in near if dump.path == staged_in]
        if near:
            owners[signal.boot] = near[0]
            unclaimed.remove(near[0])
    missing = []
    for later, signal in zip([None, *newest_first], newest_first, strict=False):
        if signal.boot not in owners:
            missing.append(_missing(signals, signal, later, owners, tolerance))
    return missing[::-1]


def _cut(signals: SignalLog, crash: Signal) -> datetime | None:
    """When the power went before the machine restarted by itself, if it did."""
    if signals.of(SignalKind.RESTART, boot=crash.boot):
        return None
    off = signals.of(SignalKind.POWER_OFF, boot=crash.boot)
    return off[0].at if off else None


def _missing(
    signals: SignalLog,
    crash: Signal,
    later: Signal | None,
    owners: dict[int, WholeDump],
    tolerance: timedelta,
) -> MissingDump:
    if later is not None:
        reason = f"written over by the bug check of boot {later.boot}"
    elif cut := _cut(signals, crash):
        after = (cut - crash.at).total_seconds()
        reason = (
            f"the power was cut before its dump was whole: it was off {after:.3f} s after its bug"
            " check was signalled"
        )
    else:
        reason = "it ended by itself, and no place holds its dump"
    for owner, dump in owners.items():
        if abs(dump.time - crash.at) <= tolerance:
            reason += (
                f"; or {dump.path} holds its dump, and not boot {owner}'s: the two bug checks are"
                " too near each other to tell by time"
            )
    return MissingDump(crash.boot, reason, later.boot if later else None)
