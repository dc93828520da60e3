r"""Windows' Special Administration Console (SAC): commands without network, agent or login.

Emergency Management Services put it on a serial port. Commands: Microsoft, "Special Administration
Console (SAC) and SAC commands" (learn.microsoft.com, cc785873) and "!Special Administration Console
(!SAC) and !SAC commands" (cc759741). What SAC answers was learnt from public pages and captures;
they lie, with their sources, in tests/integration/console/sac_captures. No wording is relied on
that none of them shows. docs/console.md lists what was never seen.

SAC writes into its own output: an event comes with a prompt of its own, XML for programs comes in
between. A prompt alone therefore ends no answer. After each command a word is typed that is none;
its echo can only come when SAC has done with the command.
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Callable

from pydantic import SecretStr

from lab.console.sac_answers import (
    MORE,
    PROMPT,
    Address,
    Channel,
    CommandResult,
    Identity,
    Processes,
    SacError,
    described,
    parse_addresses,
    parse_channels,
    parse_identity,
    parse_processes,
    plain,
)
from lab.console.stop_text import stop_codes
from lab.console.watcher import NotExpectedError, Watcher
from lab.outcome import HungError
from lab.signals import DeadlineError

ENTER = b"\r"
ERASE_LINE = b"\x08" * 80
"""Backspaces over a terminal's whole line: a half-typed command must not be carried out."""
TO_SAC = b"\x1b\t0"
"""Esc Tab 0: "Press <esc><tab>0 to return to the SAC channel"."""
CRASHED = re.compile(rb'!SAC>|CLASSNAME="BLUESCREEN"')
SYNC_TRIES = 3
_CMD_PROMPT = re.compile(rb"(?:^|[\r\n])[A-Za-z]:\\[^\r\n<>|\"?*]*>")


class SacUnreachable(HungError):  # noqa: N818 - a state, not a mistake
    """No prompt could be had; the message says what came instead."""


class SacAfterBugCheck(SacError):  # noqa: N818 - a state, not a mistake
    """The machine has crashed and is at !SAC>. stop_code: None where the console did not tell."""

    def __init__(self, message: str, stop_code: int | None) -> None:
        super().__init__(message)
        self.stop_code = stop_code


class Sac:
    """SAC of one machine. For one thread at a time: it types.

    watcher: on the machine's console. keyboard: types; a Machine's confirms the lease each time.
    deadline: seconds for one answer (the contract's deadlines.console_reply). Every wait raises
    MachineCrashed, MachineRestarted or MachineLost as soon as that is signalled.
    """

    def __init__(
        self, watcher: Watcher, keyboard: Callable[[bytes], None], *, deadline: float
    ) -> None:
        self._watcher = watcher
        self._type = keyboard
        self._deadline = deadline
        self._at_prompt = False
        """The last exchange ended at a fresh prompt, and nothing was typed since."""
        self._words = (b"#%s%d" % (secrets.token_hex(3).encode(), n) for n in itertools.count(1))

    # Prompt

    def sync(self) -> None:
        """Gets to a fresh `SAC>`, whatever the console is in the middle of.

        Nothing that stands half typed is carried out. Raises SacUnreachable, and SacAfterBugCheck
        at !SAC>.
        """
        said = b""
        self._at_prompt = False
        for _ in range(SYNC_TRIES):
            self._type(ERASE_LINE + TO_SAC + ERASE_LINE)
            word = next(self._words)
            self._type(word + ENTER)
            try:
                self._finish(word, self._deadline / SYNC_TRIES)
            except NotExpectedError as error:
                said += error.said
                self._watcher.read()
            else:
                return
        raise SacUnreachable(
            f"no SAC> within {self._deadline:g} s; {described(said)}. Is EMS on in the boot"
            " settings (bcdedit /ems on), and is this its port?"
        )

    def _finish(self, word: bytes, deadline: float) -> bytes:
        """Waits for the echo of a typed word and the prompt after it; gives what came before."""
        echo = self._watcher.expect(re.escape(word), deadline)
        prompt = self._watcher.expect(PROMPT, deadline)
        if prompt.match[0].startswith(b"!"):
            code = next(reversed(stop_codes(self._watcher.text_before())), None)
            told = "" if code is None else f" with stop code 0x{code:X}"
            raise SacAfterBugCheck(f"the machine is at !SAC>: it crashed{told}", code)
        self._at_prompt = True
        return echo.before

    def begin(self, line: bytes) -> None:
        """Types a command at a fresh prompt."""
        if not self._at_prompt:
            self.sync()
        self._at_prompt = False
        self._type(line + ENTER)

    def command(self, line: str, deadline: float | None = None) -> str:
        """Carries out a command and gives its answer: text without escapes, XML and prompts.

        deadline: seconds, instead of the usual. Raises SacUnreachable, SacAfterBugCheck.
        """
        limit = self._deadline if deadline is None else deadline
        typed = line.encode("ascii")
        self.begin(typed)
        said = b""
        try:
            self._watcher.expect(re.escape(typed) + rb"\r?\n", limit)
            while True:
                found = self._watcher.expect(
                    re.compile(b"|".join((PROMPT.pattern, MORE.pattern))), limit
                )
                said += found.before
                if not MORE.fullmatch(found.match[0]):
                    break
                said += found.match[0]
                self._type(ENTER)
            word = next(self._words)
            self._type(word + ENTER)
            said += self._finish(word, limit)
        except NotExpectedError as error:
            raise SacUnreachable(
                f"SAC did not finish {line!r} within {limit:g} s; {described(error.said)}"
            ) from error
        return plain(said)

    # About the machine

    def help(self) -> dict[str, str]:
        """`?`: what SAC can do, by command."""
        found = {}
        for line in self.command("?").splitlines():
            name, _, text = line.strip().partition("  ")
            if text:
                found[name] = text.strip()
        return found

    def addresses(self) -> list[Address]:
        """`i`: the machine's IP addresses."""
        return parse_addresses(self.command("i"))

    def identity(self) -> Identity:
        """`id`: what SAC says of the machine; see Identity for what is sure."""
        return parse_identity(self.command("id"))

    def processes(self) -> Processes:
        """`t`: what runs; see Processes."""
        return parse_processes(self.command("t"))

    # Ends of a boot

    def crashdump(self) -> None:
        """Has Windows bug check (0xE2) and write a dump; returns once it says that it crashes.

        Needs no healthy agent, only a kernel that still schedules. Raises SacUnreachable.
        """
        self.begin(b"crashdump")
        try:
            self._watcher.regardless_of_boot().expect(CRASHED, self._deadline)
        except DeadlineError as error:
            raise SacUnreachable(f"SAC took `crashdump`, and no bug check came: {error}") from error

    def restart(self) -> None:
        """`restart`; returns once SAC has read it. The caller announces the restart first."""
        self._end("restart")

    def shutdown(self) -> None:
        """`shutdown`; returns once SAC has read it. The caller announces the power-off first."""
        self._end("shutdown")

    def _end(self, command: str) -> None:
        # The echo of its line is the last that surely comes: a prompt may, or the end of the boot.
        typed = command.encode()
        self.begin(typed)
        try:
            self._watcher.regardless_of_boot().expect(re.escape(typed) + rb"\r?\n", self._deadline)
        except NotExpectedError as error:
            raise SacUnreachable(f"SAC did not read {command!r}: {error}") from error

    # Channels

    def channels(self) -> list[Channel]:
        """`ch`."""
        return parse_channels(self.command("ch"))

    def close_channel(self, channel: Channel) -> None:
        """Ends a command prompt channel, whoever opened it."""
        if channel.number == 0:
            raise SacError("SAC's own channel cannot be closed")
        self.command(f"ch -ci {channel.number}")
        if channel in (left := self.channels()):
            raise SacError(f"channel {channel.name} did not close; there are {left}")

    def command_prompt(self) -> CommandPrompt:
        """Opens a new channel with a command prompt, shown; log in to it next.

        Channels that are open already stay as they are: somebody may be logged in there.
        """
        before = {channel.number for channel in self.channels()}
        said = self.command("cmd")
        made = [channel for channel in self.channels() if channel.number not in before]
        if not made:
            raise SacError(
                f'SAC opened no command prompt: {" ".join(said.split())!r}; before "The CMD'
                ' command is now available" there is none, and ten channels are the most there are'
            )
        return CommandPrompt(self, self._watcher, self._type, made[0], self._deadline)


class CommandPrompt:
    """A command prompt in a channel of SAC's; a context manager that ends it."""

    def __init__(
        self,
        sac: Sac,
        watcher: Watcher,
        keyboard: Callable[[bytes], None],
        channel: Channel,
        deadline: float,
    ) -> None:
        self.channel = channel
        self._sac = sac
        self._watcher = watcher
        self._type = keyboard
        self._deadline = deadline

    def __enter__(self) -> CommandPrompt:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._sac.close_channel(self.channel)

    def log_in(self, user: str, password: SecretStr, domain: str = "") -> None:
        """Answers the three questions. domain: empty for an account of the machine itself.

        Raises SacError when SAC asks again: what it says of a wrong password was never seen.
        """
        try:
            self._sac.begin(f"ch -si {self.channel.number}".encode())
            self._watcher.expect(rb"Use any other key to view this channel", self._deadline)
            self._type(ENTER)
            for question, answer in (
                (rb"Username:", user),
                (rb"Domain\s*:", domain),
                (rb"Password:", password.get_secret_value()),
            ):
                self._watcher.expect(question, self._deadline)
                self._type(answer.encode("utf-8") + ENTER)
            end = self._watcher.expect(
                re.compile(rb"Username:|" + _CMD_PROMPT.pattern), self._deadline
            )
        except NotExpectedError as error:
            raise SacUnreachable(f"{self.channel.name}: log in: {error}") from error
        if end.match[0] == b"Username:":
            raise SacError(f"{self.channel.name}: user {user!r} could not log in: wrong password?")

    def run(self, command: str, deadline: float | None = None) -> CommandResult:
        """Runs a command and gives what it printed, and its exit code.

        deadline: seconds for the command. Works where the channel is a stream of text; Windows
        Server 2019 and older draw a screen, and the text is as it was drawn.
        """
        limit = self._deadline if deadline is None else deadline
        typed, ask = command.encode("ascii"), b"echo %errorlevel%"
        try:
            self._type(typed + ENTER)
            self._watcher.expect(re.escape(typed), limit)
            output = self._watcher.expect(_CMD_PROMPT, limit).before
            self._type(ask + ENTER)
            output += self._watcher.expect(re.escape(ask), limit).before
            code = self._watcher.expect(rb"(-?\d+)\s*[\r\n]", limit)
            self._watcher.expect(_CMD_PROMPT, limit)
        except NotExpectedError as error:
            raise SacUnreachable(f"{self.channel.name}: {command!r}: {error}") from error
        return CommandResult(int(code.match[1]), plain(output).strip())
