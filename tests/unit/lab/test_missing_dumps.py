"""Which bug check a dump belongs to, and why there is none of another."""

from __future__ import annotations

from datetime import timedelta

from lab.missing_dumps import MissingDump, WholeDump, missing_dumps
from lab.signals import Signal, SignalKind, SignalLog

PAGEFILE, ASIDE, COPY = r"C:\pagefile.sys", r"C:\DUMP1234.tmp", r"C:\Windows\MEMORY.DMP"
EXACT, NEAR = timedelta(0), timedelta(seconds=60)
"""Tolerances: a signal's time tells it from all others, or from none of a test's."""


class Heard:
    """Signals of a machine that restarts by itself."""

    def __init__(self) -> None:
        self.signals = SignalLog()
        self.crashes: list[Signal] = []

    def crash(self, end: SignalKind | None = SignalKind.RESTART) -> Signal:
        """A boot that crashes and then ends so."""
        self.signals.add(SignalKind.POWER_ON, "test")
        self.crashes.append(self.signals.add(SignalKind.BUG_CHECK, "test"))
        if end is not None:
            self.signals.add(end, "test")
        return self.crashes[-1]

    def missing(self, *dumps: WholeDump, tolerance: timedelta = EXACT) -> list[MissingDump]:
        return missing_dumps(
            self.signals, self.crashes, dumps, staged_in=PAGEFILE, tolerance=tolerance
        )


def dump(path: str, crash: Signal) -> WholeDump:
    return WholeDump(path, crash.at)


def test_a_dump_answers_for_its_bug_check() -> None:
    heard = Heard()
    assert heard.missing(dump(PAGEFILE, heard.crash())) == []


def test_two_signals_of_one_bug_check_want_one_dump() -> None:
    heard = Heard()
    crash = heard.crash(end=None)
    heard.crashes.append(heard.signals.add(SignalKind.PANICKED, "test"))
    assert heard.missing(dump(PAGEFILE, crash)) == []


def test_a_loop_leaves_the_last_dump() -> None:
    heard = Heard()
    for _ in range(2):
        heard.crash()
    last = heard.crash()
    missing = heard.missing(dump(PAGEFILE, last))
    assert [(one.boot, one.written_over_by) for one in missing] == [(1, 2), (2, 3)]
    assert [one.reason for one in missing] == [
        "written over by the bug check of boot 2",
        "written over by the bug check of boot 3",
    ]


def test_where_times_do_not_tell_the_reason_says_so() -> None:
    heard = Heard()
    heard.crash()
    last = heard.crash()
    (missing,) = heard.missing(dump(PAGEFILE, last), tolerance=NEAR)
    assert missing.boot == 1
    assert r"or C:\pagefile.sys holds its dump, and not boot 2's" in missing.reason


def test_a_copy_and_a_new_dump_are_of_two_boots() -> None:
    heard = Heard()
    first, second = heard.crash(), heard.crash()
    assert heard.missing(dump(COPY, first), dump(PAGEFILE, second), tolerance=NEAR) == []


def test_a_power_cut_while_the_dump_was_written() -> None:
    heard = Heard()
    crash = heard.crash(end=None)
    off = heard.signals.add(SignalKind.POWER_OFF, "test")
    (missing,) = heard.missing()
    after = (off.at - crash.at).total_seconds()
    assert missing == MissingDump(
        1,
        f"the power was cut before its dump was whole: it was off {after:.3f} s after its bug check"
        " was signalled",
    )


def test_what_was_moved_aside_is_not_the_dump_of_a_cut_boot() -> None:
    heard = Heard()
    first = heard.crash()
    heard.crash(end=SignalKind.POWER_OFF)
    (missing,) = heard.missing(dump(ASIDE, first), tolerance=NEAR)
    assert missing.boot == 2
    assert "power was cut before its dump was whole" in missing.reason
    assert "too near each other" in missing.reason


def test_a_cut_right_after_the_dump_was_whole() -> None:
    heard = Heard()
    crash = heard.crash(end=SignalKind.POWER_OFF)
    assert heard.missing(dump(PAGEFILE, crash)) == []


def test_a_dump_of_another_time_is_nobodys() -> None:
    heard = Heard()
    crash = heard.crash()
    other = WholeDump(PAGEFILE, crash.at + 2 * NEAR)
    (missing,) = heard.missing(other, tolerance=NEAR)
    assert missing == MissingDump(1, "it ended by itself, and no place holds its dump")
