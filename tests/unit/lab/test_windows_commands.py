"""Command lines for cmd.exe and PowerShell, read back by rules that others wrote down."""

from __future__ import annotations

import base64
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.guest.windows_commands import (
    NOW,
    command_line,
    exit_code_in,
    parse_time,
    powershell,
    set_clock,
    telling_its_end,
)
from tests.integration.metal.guest_door import split_command

ARGUMENTS = st.lists(
    st.text(st.characters(min_codepoint=32, max_codepoint=0x17F), max_size=12), max_size=5
)


def test_what_cmd_makes_something_of_has_a_caret() -> None:
    line = command_line(r"C:\x y.exe", ["a&b", "100%", 'say "hi"', "", "\\\\end\\"])
    assert line == (r'^"C:\x y.exe^" a^&b 100^% ^"say \^"hi\^"^" ^"^" \\end' + "\\")


@given(ARGUMENTS)
def test_a_program_gets_its_arguments_as_they_are(arguments: list[str]) -> None:
    assert split_command(command_line("program.exe", arguments)) == ["program.exe", *arguments]


@pytest.mark.parametrize("wrong", ["a\nb", "a\rb", "a\0b"])
def test_a_line_end_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="cannot hold line ends"):
        command_line("program.exe", [wrong])


def test_an_exit_code_has_all_its_bytes() -> None:
    assert telling_its_end("x.exe", "#1:") == "x.exe & call echo #1:%^errorlevel%"
    assert exit_code_in("said#1:3010\r\n", "#1:") == ("said", 3010)
    assert exit_code_in("#1:7 #1:-1073741819\r\n", "#1:") == ("#1:7 ", 0xC0000005)
    for unfinished in ("said", "said#1:", "said#1:%errorlevel%\r\n"):
        assert exit_code_in(unfinished, "#1:") is None


def test_powershell_gets_its_script_encoded() -> None:
    *_, encoded = powershell(NOW).split()
    assert base64.b64decode(encoded).decode("utf-16-le") == NOW
    time = datetime(2026, 11, 25, 22, 15, 30, tzinfo=UTC)
    assert set_clock(time) == "Set-Date ([DateTime]::Parse('2026-11-25T22:15:30.000000Z'))"


@pytest.mark.parametrize(
    ("said", "microsecond"),
    [
        ("2026-11-25T22:15:30.1234567Z\r\n", 123456),
        ("2026-11-25T22:15:30Z", 0),
        ("noise\r\n2026-11-25T22:15:30.5Z", 500000),
    ],
)
def test_times_are_read(said: str, microsecond: int) -> None:
    assert parse_time(said) == datetime(2026, 11, 25, 22, 15, 30, microsecond, UTC)


def test_what_is_no_time_is_told() -> None:
    with pytest.raises(ValueError, match="found 'powershell is not recognized'"):
        parse_time("powershell is not recognized")
