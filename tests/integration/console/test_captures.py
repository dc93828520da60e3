"""What public pages show of real SAC is read as it was meant; what none shows, by its form."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import timedelta
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
from lab.console.stop_text import stop_codes
from lab.physical.boots import Boots
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
    assert found[2].address == ip_address("192.0.2.60")
    assert str(found[2].subnet) == "255.255.255.0"
    assert str(found[2].gateway) == "192.0.2.1"
    assert found[3].address == ip_address("fe80::2")
    assert found[3].subnet is None
    with pytest.raises(SacError, match=r"192\.0\.2\.600"):
        parse_addresses("Net: 7, Ip=192.0.2.600  Subnet=255.255.255.0  Gateway=192.0.2.1")


def test_noise_is_no_part_of_an_answer() -> None:
    noise = capture("channel-switch") + capture("boot-2003") + b"\x1b[2J\x1b[1;1HSAC>"
    said = plain(b"first" + noise + b"last")
    assert said.startswith("first")
    assert said.endswith("last")
    for word in ("channel-switch", "SAC>", "EVENT", "\x1b"):
        assert word not in said
    assert plain(capture("boot-2019")).splitlines()[0].endswith("initialized.")


@pytest.mark.parametrize("one_line", [False, True])
def test_stop_codes(one_line: bool, tmp_path: Path) -> None:
    said, code = capture("stop-2003"), 0xE2
    if one_line:
        said, code = said.replace(b"\r\n", b"").replace(b"0xE2", b"0xD1"), 0xD1
    assert stop_codes(said) == [code]
    # Bytes come in any pieces; each stop code is signalled once.
    for size in (1, 7, 64, len(said)):
        signals, log = SignalLog(), Log(tmp_path, str(size))
        log.add(b"before\r\n")
        signals.add(SignalKind.POWER_ON, "lab")
        listener = Boots(signals).listen_to(log)
        for start in range(0, len(said), size):
            log.add(said[start : start + size])
        crashes = signals.of(SignalKind.BUG_CHECK)
        assert [crash.detail for crash in crashes] == [f"stop code 0x{code:X}"], size
        listener.close()
        log.add(said)
        assert len(signals.of(SignalKind.BUG_CHECK)) == 1


# Nobody knows SAC's labels and columns here: these are any.
IDENTITY = """\
        Nom d'hôte: HERE
           Version: 10.0
Système: build 17763: final
             Build: 17763
             Since: 31:02:03
"""
PROCESSES = """\
used: 17 of 20
free: 3

   CPU Time     KiB Pid  Image file  name
0:00:00.000       8   0  System Idle Process
0:00:07.250     140   4  System
1:00:07.25012345678 992  sensor 2.exe

 Other   table
     1       2
"""


def test_identity_under_any_labels() -> None:
    found = parse_identity(plain(IDENTITY.replace("\n", "\r\n").encode()))
    labels = ["Nom d'hôte", "Version", "Système", "Build", "Since"]
    assert list(found.labels) == labels
    assert found.labels["Nom d'hôte"] == "HERE"
    assert found.labels["Système"] == "build 17763: final"
    assert found.build_guess == 17763
    assert found.up_for_guess == timedelta(hours=31, minutes=2, seconds=3)
    assert "Since: 31:02:03" in found.text
    two = parse_identity(f"{IDENTITY}Number: 17134\nTime: 1:00:00\n")
    assert two.build_guess is None  # which of two is not guessed
    assert two.up_for_guess is None
    with pytest.raises(SacError, match="LABEL: VALUE; it said 'Error: no'"):
        parse_identity("Error: no")


@pytest.mark.parametrize("pager", [b"", b"----Press <Enter>, please----\r\n", b"(press ENTER)\r\n"])
def test_processes_under_any_head(pager: bytes) -> None:
    said = PROCESSES.replace("\n", "\r\n").encode()
    at = said.index(b"0:00:07.250")
    found = parse_processes(plain(said[:at] + pager + said[at:]))
    # Two columns that touch in one line cannot be told apart in any.
    assert found.columns == ("CPU Time     KiB", "Pid", "Image file  name")
    assert found.rows == (
        ("0:00:00.000       8", 0, "System Idle Process"),
        ("0:00:07.250     140", 4, "System"),
        ("1:00:07.25012345678", 992, "sensor 2.exe"),
    )
    assert found.having("System") == found.having(4) == [found.rows[1]]
    assert found.having("nosuch.exe") == []
    assert found.text.startswith("used: 17")


def test_an_answer_without_a_table() -> None:
    for said in ("No such command.", "", "17 of 20\n", "word\n12\n", "two words\n"):
        with pytest.raises(SacError, match="a table with a head; it said"):
            parse_processes(said)


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
        b"a " * 49 + b"a\n" + b"1\n" * 32700,
        b"a b\n1\n" * 10900,
        b"\t" * 65536,
        b"press enter" * 6000,
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
