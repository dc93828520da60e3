"""Power by commands: whatever has a program that switches it.

    [power.rack-b]
    backend = "exec"
    status = "uhubctl --location 1-1 --ports {outlet}"
    on = "uhubctl --location 1-1 --ports {outlet} --action on"
    off = "uhubctl --location 1-1 --ports {outlet} --action off"
    on_pattern = " power"
    off_pattern = " off"

A command is a program with its arguments, run without a shell. Secrets go to its standard input
(`input`) and never on the command line, which every user of the host can read. docs/power.md has
worked examples for fence-agents, pdudaemon and labgrid.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import tempfile
from typing import Annotated

from pydantic import AfterValidator, Field

from lab.power.base import (
    Action,
    DeviceSettings,
    OutletError,
    PowerDevice,
    PowerState,
    RefusedError,
    Secrets,
    Timing,
    UnreachableError,
)

SECRET = re.compile(r"\$\{secret:([^}]*)\}")
"""How `input` names a secret: ${secret:NAME}, as a candidate's steps do."""
READ = 64 * 1024
"""Bytes of its output that are looked at, from the end."""
SHOWN = 500
"""How many characters of what a command said a message shows."""


def _is_command(text: str) -> str:
    if not shlex.split(text):  # raises ValueError for quotes that do not close
        raise ValueError("expected a program with its arguments")
    if SECRET.search(text):
        raise ValueError("a secret on a command line is seen by every user: use input instead")
    return text


def _is_pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"expected a regular expression: {error}") from None
    return text


Command = Annotated[str, AfterValidator(_is_command)]
Pattern = Annotated[str, AfterValidator(_is_pattern)]
ExitCodes = Annotated[list[int], Field(min_length=1)]


class ExecSettings(DeviceSettings):
    """[power.NAME] with backend = "exec"; {outlet} and {action} stand in commands and in input."""

    on: Command
    off: Command
    exit_codes: ExitCodes = Field([0])
    """Of on and off, when the order was taken."""
    status: Command | None = None
    """Without it the device cannot be read back, and a machine on it needs a witness."""
    status_exit_codes: ExitCodes = Field([0])
    """When status has an answer."""
    on_pattern: Pattern = r"(?i)\bon\b"
    """What status prints, on either output, of an outlet that is on. Both patterns, or neither,
    found: the state is unknown."""
    off_pattern: Pattern = r"(?i)\boff\b"
    refused_pattern: Pattern | None = None
    """What any of them prints when it is refused; whatever else goes wrong is unreachable."""
    input: str = ""
    """Goes to each command's standard input; ${secret:NAME} stands for a secret."""


class Device(PowerDevice):
    """Commands of lab.toml."""

    Settings = ExecSettings
    settings: ExecSettings
    default_timing = Timing(answer_seconds=15, attempts=1, deadline_seconds=30, poll_seconds=1)

    def __init__(self, name: str, settings: ExecSettings, secrets: Secrets) -> None:
        super().__init__(name, settings, secrets)
        self.reads_back = settings.status is not None

    def read(self, place: str) -> PowerState:
        """By the status command."""
        assert self.settings.status is not None  # else reads_back is False
        said = self._run("status", self.settings.status, place, self.settings.status_exit_codes)
        on = bool(re.search(self.settings.on_pattern, said))
        off = bool(re.search(self.settings.off_pattern, said))
        if on == off:
            return PowerState.UNKNOWN
        return PowerState.ON if on else PowerState.OFF

    def order(self, place: str, wanted: PowerState) -> None:
        """By the on or the off command, which may verify or not."""
        if wanted is PowerState.ON:
            self._run("on", self.settings.on, place, self.settings.exit_codes)
        else:
            self._run("off", self.settings.off, place, self.settings.exit_codes)

    def address(self) -> str:
        """The program's name and the table's."""
        return f"{shlex.split(self.settings.off)[0]} {self.name}"

    def _run(self, action: Action, command: str, outlet: str, exit_codes: list[int]) -> str:
        """What it said on both outputs; UnreachableError unless it ends with a good exit code."""

        def filled(text: str) -> str:
            return text.replace("{outlet}", outlet).replace("{action}", action)

        arguments = [filled(argument) for argument in shlex.split(command)]
        given = SECRET.sub(
            lambda found: self._secrets(found[1]).get_secret_value(), filled(self.settings.input)
        )
        for attempt in range(1, self.timing.attempts + 1):
            code, said = self._start(arguments, given)
            if code in exit_codes:
                return said
            ended = "did not end in time" if code is None else f"ended with exit code {code}"
            message = f"{shlex.join(arguments)} {ended} and said: {said[-SHOWN:] or 'nothing'}"
            if self.settings.refused_pattern and re.search(self.settings.refused_pattern, said):
                raise RefusedError(f"{message}; that means it refuses, by [power.{self.name}]")
            if attempt == self.timing.attempts:
                raise UnreachableError(f"{message}; try it by hand")
        raise AssertionError("there is at least one attempt")

    def _start(self, arguments: list[str], given: str) -> tuple[int | None, str]:
        """Exit code and output; None for one that was killed with all it started."""
        # Files, so that nobody waits for a daemon that keeps the outputs open.
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as text:
            text.write(given.encode())
            text.seek(0)
            try:
                process = subprocess.Popen(
                    arguments,
                    stdin=text,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise OutletError(
                    f"{arguments[0]} cannot be started: {error.strerror}; install it, or correct"
                    f" [power.{self.name}]"
                ) from error
            try:
                code: int | None = process.wait(self.timing.answer_seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                if process.returncode is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            output.seek(max(0, output.seek(0, os.SEEK_END) - READ))
            return code, output.read().decode(errors="replace").strip()
