"""The connection to one machine's SSH server: kept while it can be, and made again when it broke.

A connection lives in one boot at the most. Each begins with the question when Windows booted, so a
machine that restarted while nobody could hear it is found out by the next one.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import asyncssh
from pydantic import SecretStr

from lab import loop_thread
from lab.backend import AgentError, AgentSilent, AgentUnreachable
from lab.guest.ssh_settings import SshAddress
from lab.guest.windows_commands import (
    LAST_BOOT,
    exit_code_in,
    parse_time,
    powershell,
    telling_its_end,
)

T = TypeVar("T")
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 2.0
"""Seconds between attempts to connect; each pause is twice the one before."""
CONNECT_SECONDS = 15.0
"""For a connection with its login, and for the question after it."""
KEEPALIVE_SECONDS = 5.0
"""Three without an answer, and the machine is gone."""
GRACE_SECONDS = 5.0
"""For the loop to give back what has ended, beyond a question's own deadline."""


@dataclass(frozen=True)
class Finished:
    """A command that ended; exit_code as Windows has it, unsigned."""

    exit_code: int
    output: str
    errors: str


class CommandRuns(Exception):  # noqa: N818 - a state, not a mistake
    """A command did not end in its time; it was left alone."""


class SshLink:
    """See the module. Methods may be called from any thread but the loop's.

    up: called with the time of the boot for each new connection; down: with the reason, when one
    has ended. Both are called in the loop's thread.
    """

    def __init__(
        self, address: SshAddress, *, up: Callable[[datetime], None], down: Callable[[str], None]
    ) -> None:
        self.address = address
        self._up = up
        self._down = down
        self._lock = threading.Lock()
        self._connection: asyncssh.SSHClientConnection | None = None
        self._trouble = "nobody has connected yet"
        self._work: Future[None] | None = None

    def start(self) -> None:
        """Begins to connect; once more does nothing."""
        with self._lock:
            if self._work is None:
                self._work = asyncio.run_coroutine_threadsafe(self._keep(), loop_thread.loop())

    def stop(self, why: str) -> None:
        """Lets the connection go and makes no other; the machine goes off, or the run ends."""
        with self._lock:
            if self._work is None:
                return
            self._work.cancel()
            self._work = None
        loop_thread.run(self._let_go(why), GRACE_SECONDS)

    @property
    def trouble(self) -> str:
        """Why there is no connection; empty where there is one."""
        return self._trouble

    @property
    def connected(self) -> bool:
        """Whether there is a connection, to the best knowledge."""
        return self._connection is not None

    def run(self, command: str, deadline: float, what: str = "") -> Finished:
        """Runs a command line of cmd.exe, once. deadline: seconds. what: instead of it in messages.

        Raises AgentUnreachable where it was not given to anybody, AgentSilent where nobody knows
        what became of it, CommandRuns where it did not end in time.
        """
        return self._in_loop(self._run(command, deadline, what or f"`{command}`"), deadline)

    def sftp(
        self,
        what: str,
        work: Callable[[asyncssh.SFTPClient], Coroutine[Any, Any, T]],
        deadline: float,
    ) -> T:
        """Something done with files, in a session of its own. deadline: seconds.

        Raises AgentUnreachable, AgentSilent, and asyncssh.SFTPError as the server gives it.
        """
        return self._in_loop(self._with_files(what, work, deadline), deadline)

    def _in_loop(self, work: Coroutine[Any, Any, T], deadline: float) -> T:
        try:
            return loop_thread.run(work, deadline + GRACE_SECONDS)
        except TimeoutError:
            raise AgentSilent(f"{self.address} did not answer within {deadline:g} s") from None

    # In the loop

    async def _keep(self) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    connection = await self._connect()
                try:
                    booted = await self._boot_time(connection)
                    pause = FIRST_PAUSE
                    self._connection, self._trouble = connection, ""
                    self._up(booted)
                    await connection.wait_closed()
                    self._lost("the connection ended")
                finally:
                    connection.abort()
            except (OSError, asyncssh.Error, AgentError, ValueError, TimeoutError) as error:
                self._lost(str(error) or f"no answer within {CONNECT_SECONDS:g} s")
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _lost(self, why: str) -> None:
        was_up, self._connection = self._connection is not None, None
        self._trouble = why
        if was_up:
            self._down(why)

    async def _let_go(self, why: str) -> None:
        self._lost(why)

    async def _connect(self) -> asyncssh.SSHClientConnection:
        address = self.address
        if not address.known_hosts.is_file():
            raise AgentUnreachable(f"{address}: {self._unknown()}: there is no such file")
        password = address.password.get_secret_value() if address.password else None
        options: dict[str, Any] = {"client_keys": None, "password": None}
        if address.key is not None:
            options |= {"client_keys": [_key(address.key, password)], "agent_path": None}
        elif password is not None:
            options |= {"password": password, "agent_path": None}
        try:
            return await asyncssh.connect(
                address.host,
                address.port,
                username=address.user,
                config=None,
                known_hosts=str(address.known_hosts),
                keepalive_interval=KEEPALIVE_SECONDS,
                **options,
            )
        except asyncssh.HostKeyNotVerifiable as error:
            raise AgentUnreachable(f"{address}: {self._unknown()} ({error})") from None
        except asyncssh.PermissionDenied as error:
            raise AgentUnreachable(
                f"{address} refuses the login: {error}; see [machines.NAME.ssh]"
            ) from None

    def _unknown(self) -> str:
        address = self.address
        return (
            f"its key is not in {address.known_hosts}. Look at the key on the machine's own screen,"
            f" compare with `ssh-keyscan -p {address.port} {address.host}`, and put that line there"
        )

    async def _boot_time(self, connection: asyncssh.SSHClientConnection) -> datetime:
        async with asyncio.timeout(CONNECT_SECONDS):
            done = await connection.run(powershell(LAST_BOOT), encoding="utf-8", errors="replace")
        return parse_time(str(done.stdout))

    async def _run(self, command: str, deadline: float, what: str) -> Finished:
        connection = self._there()
        mark = f"#{secrets.token_hex(4)}:"
        line = telling_its_end(command, mark)
        try:
            process = await connection.create_process(line, encoding="utf-8", errors="replace")
        except asyncssh.ChannelOpenError as error:
            raise AgentUnreachable(f"{self.address} opens no session: {error}") from None
        except (OSError, asyncssh.Error) as error:
            raise self._gone(what, error) from None
        try:
            async with asyncio.timeout(deadline):
                done = await process.wait()
        except TimeoutError:
            raise CommandRuns(f"{what} did not end within {deadline:g} s") from None
        except (OSError, asyncssh.Error) as error:
            raise self._gone(what, error) from None
        ended = exit_code_in(str(done.stdout), mark)
        if ended is None:
            raise self._gone(what, "its channel died before it told its exit code")
        return Finished(ended[1], ended[0], str(done.stderr))

    async def _with_files(
        self,
        what: str,
        work: Callable[[asyncssh.SFTPClient], Coroutine[Any, Any, T]],
        deadline: float,
    ) -> T:
        connection = self._there()
        try:
            async with asyncio.timeout(deadline), connection.start_sftp_client() as client:
                return await work(client)
        except asyncssh.SFTPError as error:
            if isinstance(error, asyncssh.SFTPConnectionLost | asyncssh.SFTPNoConnection):
                raise self._gone(what, error) from None
            raise
        except TimeoutError:
            raise AgentSilent(f"{self.address}: {what}: not done within {deadline:g} s") from None
        except (OSError, asyncssh.Error) as error:
            raise self._gone(what, error) from None

    def _there(self) -> asyncssh.SSHClientConnection:
        if self._connection is None:
            raise AgentUnreachable(f"{self.address} is not connected: {self._trouble}")
        return self._connection

    def _gone(self, what: str, error: object) -> AgentSilent:
        return AgentSilent(f"{self.address} was lost at {what}: {error}")


def _key(key: Path | SecretStr, passphrase: str | None) -> asyncssh.SSHKey:
    try:
        if isinstance(key, SecretStr):
            return asyncssh.import_private_key(key.get_secret_value(), passphrase)
        return asyncssh.read_private_key(str(key), passphrase)
    except (OSError, asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
        name = "the key" if isinstance(key, SecretStr) else f"the key {key}"
        raise AgentUnreachable(f"{name} cannot be used: {error}") from None
