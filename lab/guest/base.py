"""What the lab can ask of a running Windows, whatever the channel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from lab.outcome import CandidateError


@dataclass(frozen=True)
class CommandResult:
    """What is known of a program that was started in the guest.

    state "ended": exit_code, output and errors are its own. "unknown": the channel died with the
    command; it may have run, and it is never repeated. "running": it did not end in time.
    """

    program: str
    arguments: tuple[str, ...]
    state: Literal["ended", "unknown", "running"]
    exit_code: int | None = None
    output: str = ""
    errors: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        line = " ".join([self.program, *self.arguments])
        if self.state != "ended":
            return f"`{line}`: {self.state} after {self.seconds:.1f} s"
        said = (self.output.strip() + "\n" + self.errors.strip()).strip()
        return f"`{line}` ended with {self.exit_code}" + (f": {said}" if said else "")


class GuestFileNotFoundError(CandidateError, FileNotFoundError):
    """The guest has no such file: a statement about what was put on it, not about this host."""


class Guest(ABC):
    """A handle on one boot of a machine's Windows.

    It belongs to the boot it was made in: when that boot has crashed or ended, each call raises
    MachineCrashed or MachineRestarted, the moment the signal comes. Deadlines are the contract's.
    """

    boot: int

    @abstractmethod
    def answers(self) -> bool:
        """Whether the channel answers now."""

    @abstractmethod
    def run(
        self, program: str, arguments: Sequence[str] = (), *, deadline: float | None = None
    ) -> CommandResult:
        r"""Runs a program (C:\...\x.exe) and waits for its end; never runs it a second time.

        deadline: seconds; the contract's deadlines.command where it is None.
        """

    @abstractmethod
    def read_file(self, path: str) -> bytes:
        """A whole file. Raises GuestFileNotFoundError, or AgentError for another refusal."""

    @abstractmethod
    def write_file(self, path: str, content: bytes) -> None:
        """Creates or replaces a file; its folder must be there."""

    @abstractmethod
    def time(self) -> datetime:
        """The guest's clock, UTC."""

    @abstractmethod
    def set_time(self, time: datetime) -> None:
        """Sets the guest's clock."""
