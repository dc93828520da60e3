"""OpenSSH for Windows: programs, files and the clock of a running machine, over its network."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import asyncssh

from lab.backend import AgentError, AgentSilent, AgentUnreachable
from lab.guest.base import CommandResult, Guest, GuestFileNotFoundError, wait_for_a_reason
from lab.guest.ssh_files import SshFiles, path_there
from lab.guest.ssh_link import CommandRuns, Finished, SshLink
from lab.guest.windows_commands import HELLO, NOW, command_line, parse_time, powershell, set_clock
from lab.signals import StaleHandleError

if TYPE_CHECKING:
    from lab.machine import Machine

T = TypeVar("T")


def open_guest(machine: Machine) -> Guest:
    """A handle on the machine's current boot."""
    return SshGuest(machine)


class SshGuest(Guest):
    """One boot's Windows through its SSH server; never runs a command twice."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.boot = machine.boot

    def _ask(self, what: str, ask: Callable[[SshLink], T], deadline: float | None = None) -> T:
        """deadline: seconds; the contract's deadlines.agent_reply where it is None."""
        limit = self._machine.contract.deadlines.agent_reply if deadline is None else deadline
        try:
            return self._machine.ssh(what, ask, boot=self.boot, deadline=limit)
        except (AgentUnreachable, AgentSilent):
            wait_for_a_reason(self._machine, self.boot, self.answers)
            raise

    def _command(self, what: str, line: str) -> Finished:
        """Something that answers at once: too long is no answer."""
        deadline = self._machine.contract.deadlines.agent_reply

        def ask(link: SshLink) -> Finished:
            try:
                return link.run(line, deadline, what)
            except CommandRuns as error:
                raise AgentSilent(str(error)) from None

        return self._ask(what, ask)

    def answers(self) -> bool:
        """Whether a command is carried out now; a connection alone says little."""
        deadline = self._machine.contract.deadlines.agent_reply
        try:
            self._machine.ssh(
                HELLO, lambda link: link.run(HELLO, deadline), boot=self.boot, deadline=deadline
            )
        except (AgentError, CommandRuns):
            return False
        return True

    def run(
        self, program: str, arguments: Sequence[str] = (), *, deadline: float | None = None
    ) -> CommandResult:
        """One SSH session. See Guest.run.

        Raises AgentUnreachable where the program was not even asked for.
        """
        limit = self._machine.contract.deadlines.command if deadline is None else deadline
        began = time.monotonic()
        line = command_line(program, arguments)
        self._machine.signals.raise_if_down(self.boot)
        state: Literal["ended", "unknown", "running"] = "ended"
        done = None
        try:
            done = self._ask(program, lambda link: link.run(line, limit), limit)
        except AgentUnreachable:
            raise
        except (AgentSilent, StaleHandleError):  # it restarted as announced under the command
            state = "unknown"
        except CommandRuns:
            state = "running"
        return CommandResult(
            program,
            tuple(arguments),
            state,
            done.exit_code if done else None,
            done.output if done else "",
            done.errors if done else "",
            time.monotonic() - began,
        )

    def read_file(self, path: str) -> bytes:
        """A whole file, over SFTP."""

        async def work(client: asyncssh.SFTPClient) -> bytes:
            async with client.open(path_there(path), "rb") as file:
                content: Any = await file.read()  # bytes, though its type says str
            return bytes(content)

        return self.sftp(path, work)

    def write_file(self, path: str, content: bytes) -> None:
        """Creates or replaces a file in place, over SFTP."""

        async def work(client: asyncssh.SFTPClient) -> None:
            async with client.open(path_there(path), "wb") as file:
                await file.write(content)

        self.sftp(path, work)

    def sftp(self, path: str, work: Callable[[asyncssh.SFTPClient], Coroutine[Any, Any, T]]) -> T:
        """Something done with a file, within the deadline for a command.

        Raises GuestFileNotFoundError, and AgentError with the server's words for other refusals.
        """
        deadline = self._machine.contract.deadlines.command
        try:
            return self._ask(path, lambda link: link.sftp(path, work, deadline), deadline)
        except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath) as error:
            raise GuestFileNotFoundError(f"{path}: {error}") from None
        except asyncssh.SFTPError as error:
            raise AgentError(f"{path}: {error}") from None

    def time(self) -> datetime:
        """PowerShell's clock, UTC."""
        said = self._command("asking its clock", powershell(NOW))
        try:
            return parse_time(said.output)
        except ValueError as error:
            raise AgentError(f"the clock: {error}; {said.errors}") from None

    def set_time(self, time: datetime) -> None:
        """PowerShell's Set-Date."""
        done = self._command("setting its clock", powershell(set_clock(time)))
        if done.exit_code:
            raise AgentError(f"the clock could not be set: {done.errors.strip()}")

    def files(self) -> SshFiles:
        """The files of the running machine, to look for dumps and copy them."""
        return SshFiles(self)
