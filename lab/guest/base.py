"""What the lab can ask of a running Windows, whatever the channel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from lab.backend import BackendError
from lab.outcome import CandidateError
from lab.signals import DOWN_KINDS, DeadlineError

if TYPE_CHECKING:
    from lab.dumps import DumpFiles
    from lab.machine import Machine


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

    def files(self) -> DumpFiles:
        """The files of the running machine, to look for dumps. Raises BackendError if it cannot."""
        raise BackendError(f"{type(self).__name__} cannot look for dumps of a running machine")


def wait_for_a_reason(machine: Machine, boot: int, answers: Callable[[], bool]) -> None:
    """A channel may die before the signal that says why: raises MachineCrashed and the like.

    Returns when the machine went down as announced, answers again, or said nothing in time.
    """

    def knows_more() -> bool:
        return bool(machine.signals.of(*DOWN_KINDS, boot=boot)) or answers()

    deadlines = machine.contract.deadlines
    seconds = deadlines.agent_reply
    if not {"hold-restart", "console-log"} & machine.features:  # its next boot must tell
        seconds += deadlines.dump_writing + deadlines.boot_to_agent
    with suppress(DeadlineError):
        machine.signals.wait("the reason why the agent is silent", knows_more, seconds, boot=boot)
    machine.signals.raise_if_down(boot)
