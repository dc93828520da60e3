"""Boots of a machine that nobody holds, counted from its console and its SSH server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lab.console.log import Log
from lab.physical.boots import Boots
from lab.signals import SignalKind, SignalLog

BOOTING = b"\r\nComputer is booting, SAC started and initialized.\r\n"
STOP = b'<PROPERTY NAME="STOPCODE" TYPE="string"><VALUE>"0x50"</VALUE>\r\n</PROPERTY>'
AT = datetime(2026, 11, 25, 22, 15, tzinfo=UTC)


@pytest.fixture
def signals() -> SignalLog:
    """Of a machine that was switched on."""
    made = SignalLog()
    made.add(SignalKind.POWER_ON, "lab")
    return made


@pytest.fixture
def boots(signals: SignalLog) -> Boots:
    return Boots(signals)


@pytest.fixture
def log(tmp_path: Path, boots: Boots) -> Log:
    made = Log(tmp_path)
    boots.listen_to(made)
    return made


def test_the_first_line_of_sac_belongs_to_the_boot_that_the_lab_gave(
    log: Log, signals: SignalLog
) -> None:
    log.add(BOOTING)
    assert signals.boot == 1
    log.add(BOOTING)
    assert signals.boot == 2
    (restart,) = signals.of(SignalKind.RESTART)
    assert (restart.boot, restart.source) == (1, "console")


def test_a_crash_and_the_restart_after_it(log: Log, signals: SignalLog) -> None:
    """Also where SAC had not said a word before, and where texts come in pieces."""
    for byte in STOP + b"\n!SAC>\n" + BOOTING:
        log.add(bytes([byte]))
    assert signals.boot == 2
    (crash,) = signals.crashes()
    assert (crash.boot, crash.detail) == (1, "stop code 0x50")


def test_between_two_stop_texts_there_was_a_restart(log: Log, signals: SignalLog) -> None:
    log.add(STOP + STOP)
    assert [one.boot for one in signals.crashes()] == [1, 2]


def test_a_crash_that_was_signalled_before_its_stop_text_is_one(
    log: Log, signals: SignalLog
) -> None:
    """SAC answered the ladder, and what it did comes on the console a moment later."""
    signals.add(SignalKind.BUG_CHECK, "console", "SAC was told to crash it")
    log.add(STOP)
    assert signals.boot == 1
    assert len(signals.crashes()) == 1


def test_a_prompt_after_a_bug_check_is_a_sign_of_one(log: Log, signals: SignalLog) -> None:
    log.add(b"\r\n!SAC>")
    assert [one.detail for one in signals.crashes()] == ["it is at !SAC>"]


def test_a_boot_time_that_changed_is_a_boot_that_nobody_heard(
    boots: Boots, signals: SignalLog
) -> None:
    boots.ssh_up(AT)
    boots.ssh_down("the connection ended")
    boots.ssh_up(AT + timedelta(seconds=1))  # the clock was set
    assert signals.boot == 1
    boots.ssh_up(AT + timedelta(seconds=30))
    assert signals.boot == 2
    assert signals.of(SignalKind.RESTART)[0].source == "ssh"
    assert [one.boot for one in signals.of(SignalKind.AGENT_UP)] == [1, 1, 2]


@pytest.mark.parametrize("console_first", [True, False])
def test_one_boot_that_both_tell_counts_once(
    boots: Boots, log: Log, signals: SignalLog, console_first: bool
) -> None:
    log.add(BOOTING)
    boots.ssh_up(AT)
    if console_first:
        log.add(BOOTING)
        boots.ssh_up(AT + timedelta(seconds=30))
    else:  # the console server was slow
        boots.ssh_up(AT + timedelta(seconds=30))
        log.add(BOOTING)
    assert signals.boot == 2
