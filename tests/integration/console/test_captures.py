"""What others captured of real SAC is read as it was meant."""

from __future__ import annotations

import time
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import pytest

from lab.console.log import Log
from lab.console.sac_answers import (
    Channel,
    SacError,
    described,
    parse_addresses,
    parse_channels,
    parse_identity,
    parse_processes,
    plain,
)
from lab.console.stop_text import StopTextListener, stop_codes
from lab.signals import SignalKind, SignalLog

CAPTURES = Path(__file__).with_name("sac_captures")


def capture(name: str) -> bytes:
    """A capture as it was on the wire."""
    lines = (CAPTURES / f"{name}.txt").read_text().split("\n")
    return "\r\n".join(lines[1:]).encode()


def test_every_capture_names_its_source() -> None:
    files = sorted(CAPTURES.glob("*.txt"))
    assert len(files) > 5
    listed = (CAPTURES / "README.md").read_text()
    for file in files:
        assert file.read_text().startswith("# "), file.name
        assert f"`{file.name}`" in listed, file.name


def test_channels() -> None:
    said = plain(capture("channels"))
    assert parse_channels(said) == [Channel(0, "SAC", "AV"), Channel(1, "Cmd0001", "AV")]
    assert "EVENT" not in said
    with pytest.raises(SacError, match="was expected to list SAC itself"):
        parse_channels("1 (AV)    Cmd0001")


def test_addresses() -> None:
    found = parse_addresses(plain(capture("addresses")))
    assert [one.network for one in found] == [3, 3, 7, 7]
    assert found[2].address == ip_address("10.88.0.60")
    assert str(found[2].subnet) == "255.255.255.0"
    assert str(found[2].gateway) == "10.88.0.1"
    assert found[3].address == ip_address("fe80::2")
    assert found[3].subnet is None
    with pytest.raises(SacError, match=r"10\.88\.0\.600"):
        parse_addresses("Net: 7, Ip=10.88.0.600  Subnet=255.255.255.0  Gateway=10.88.0.1")


def test_noise_is_no_part_of_an_answer() -> None:
    noise = capture("channel-switch") + capture("boot-2003") + b"\x1b[2J\x1b[1;1HSAC>"
    said = plain(b"first" + noise + b"last")
    assert said.startswith("first")
    assert said.endswith("last")
    for word in ("channel-switch", "SAC>", "EVENT", "\x1b"):
        assert word not in said
    assert plain(capture("boot-2019")).splitlines()[0].endswith("initialized.")


@pytest.mark.parametrize(("name", "code"), [("stop-2003", 0xE2), ("stop-2019", 0xD1)])
def test_stop_codes(name: str, code: int, tmp_path: Path) -> None:
    said = capture(name)
    assert stop_codes(said) == [code]
    # Bytes come in any pieces; each stop code is signalled once.
    for size in (1, 7, 64, len(said)):
        signals, log = SignalLog(), Log(tmp_path, f"{name}-{size}")
        log.add(b"before\r\n")
        listener = StopTextListener(log, signals)
        for start in range(0, len(said), size):
            log.add(said[start : start + size])
        crashes = signals.of(SignalKind.BUG_CHECK)
        assert [crash.detail for crash in crashes] == [f"stop code 0x{code:X}"], size
        listener.close()
        log.add(said)
        assert len(signals.of(SignalKind.BUG_CHECK)) == 1


def test_answers_that_are_none() -> None:
    with pytest.raises(SacError, match="Time since last reboot"):
        parse_identity("           Computer Name: HERE\n            Build Number: 17763\n")
    with pytest.raises(SacError, match="no line of a process"):
        parse_processes("Unrecognized command.")


def test_garbage_is_called_by_its_name() -> None:
    assert "is the speed (baud) right?" in described(bytes(range(128, 256)) * 2)
    assert "baud" not in described(capture("boot-2003"))
    assert described(b"") == "the console said nothing at all"


@pytest.mark.parametrize(
    "said",
    [
        b"<BP>" * 16384,
        b"\n" * 65536,
        b" " * 65535 + b"x",
        b"Net: 1, Ip=" * 6000,
        b"A" * 65536 + b":",
        b"1" * 65536,
        b"  0:00:00.000" * 5000,
        b"\x1b[" * 32768,
        bytes(range(256)) * 4096,
        b"EVENT:" * 10000,
    ],
    ids=lambda said: repr(said[:12]),
)
def test_hostile_answers_take_no_time_and_raise_nothing_else(said: bytes) -> None:
    began = time.monotonic()
    text = plain(said)
    for parse in (parse_addresses, parse_channels, parse_identity, parse_processes):
        with suppress(SacError):
            parse(text)
    described(said)
    stop_codes(said)
    assert time.monotonic() - began < 5
