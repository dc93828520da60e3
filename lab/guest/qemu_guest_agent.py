"""QEMU's guest agent: programs, files and the clock of a running guest.

Commands as in QEMU's qga/qapi-schema.json ("QEMU Guest Agent Protocol Reference").
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from lab.backend import AgentError, AgentSilent, AgentUnreachable
from lab.guest.base import CommandResult, Guest, GuestFileNotFoundError, wait_for_a_reason
from lab.signals import DeadlineError

if TYPE_CHECKING:
    from lab.machine import Machine

CHUNK = 48 * 1024
"""Bytes in one guest-file-read or guest-file-write; half a megabyte kills the agent's channel."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NOT_FOUND = ("cannot find the file", "cannot find the path", "No such file or directory")
"""How the agent says that a file is not there: strerror's words, or an English Windows' own."""


def open_guest(machine: Machine) -> Guest:
    """A handle on the machine's current boot."""
    return QemuGuestAgent(machine)


class QemuGuestAgent(Guest):
    """One boot's Windows through QEMU's agent; never sends a command twice."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.boot = machine.boot

    def _ask(self, command: str, **arguments: object) -> Any:
        """One command; argument names have "_" for "-"."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        try:
            return self._machine.agent(command, named, boot=self.boot)
        except (AgentUnreachable, AgentSilent):
            wait_for_a_reason(self._machine, self.boot, self.answers)
            raise

    def answers(self) -> bool:
        """Whether the channel answers now."""
        try:
            self._machine.agent("guest-ping", {}, boot=self.boot)
        except AgentError:
            return False
        return True

    def run(
        self, program: str, arguments: Sequence[str] = (), *, deadline: float | None = None
    ) -> CommandResult:
        """guest-exec, then guest-exec-status until it has ended. See Guest.run.

        Raises AgentError where the program cannot be started, AgentUnreachable where it was not
        even asked for. QEMU's agent tells an exit once: an answer that is lost is lost for good.
        """
        deadline = self._machine.contract.deadlines.command if deadline is None else deadline
        began = time.monotonic()
        status: dict[str, Any] = {}
        state: Literal["ended", "unknown", "running"] = "ended"

        def ended() -> bool:
            status.update(self._ask("guest-exec-status", pid=started["pid"]))
            return bool(status["exited"])

        try:
            started = self._ask(
                "guest-exec", path=program, arg=list(arguments), capture_output=True
            )
        except AgentSilent:
            state = "unknown"
        else:
            try:
                self._machine.signals.wait(f"{program} to end", ended, deadline, boot=self.boot)
            except DeadlineError:
                state = "running"
            except AgentError:  # whether the channel or the agent died: nobody knows how it ended
                state = "unknown"
        return CommandResult(
            program,
            tuple(arguments),
            state,
            # Windows' exit codes are unsigned; the agent's JSON has 64-bit numbers of either sign.
            status["exitcode"] & 0xFFFF_FFFF if state == "ended" else None,
            _text(status, "out-data"),
            _text(status, "err-data"),
            time.monotonic() - began,
        )

    @contextmanager
    def _open(self, path: str, mode: str) -> Iterator[int]:
        """A file handle of the agent, closed also after an error."""
        handle: int = self._ask("guest-file-open", path=path, mode=mode)
        try:
            yield handle
        except BaseException:
            with suppress(AgentError):  # the first error says more
                self._ask("guest-file-close", handle=handle)
            raise
        self._ask("guest-file-close", handle=handle)

    def read_file(self, path: str) -> bytes:
        """A whole file, in pieces of 48 KiB."""
        content = b""
        try:
            with self._open(path, "rb") as handle:
                ended = False
                while not ended:
                    piece = self._ask("guest-file-read", handle=handle, count=CHUNK)
                    content += base64.b64decode(piece["buf-b64"])
                    ended = piece["eof"]
        except AgentError as error:
            if any(said in error.message for said in NOT_FOUND):
                raise GuestFileNotFoundError(f"{path}: {error.message}") from None
            raise
        return content

    def write_file(self, path: str, content: bytes) -> None:
        """Creates or replaces a file in place, in pieces of 48 KiB, and flushes it to the disk."""
        with self._open(path, "wb") as handle:
            for start in range(0, len(content), CHUNK):
                piece = content[start : start + CHUNK]
                text = base64.b64encode(piece).decode()
                written = self._ask("guest-file-write", handle=handle, buf_b64=text)
                if written["count"] != len(piece):
                    raise AgentError(
                        f"{path}: {written['count']} of {len(piece)} bytes written at {start}"
                    )
            self._ask("guest-file-flush", handle=handle)

    def time(self) -> datetime:
        """guest-get-time: nanoseconds since 1970, UTC."""
        return EPOCH + timedelta(microseconds=self._ask("guest-get-time") // 1000)

    def set_time(self, time: datetime) -> None:
        """guest-set-time."""
        microseconds = (time - EPOCH) // timedelta(microseconds=1)
        self._ask("guest-set-time", time=microseconds * 1000)


def _text(status: dict[str, Any], name: str) -> str:
    return base64.b64decode(status.get(name, "")).decode(errors="replace")
