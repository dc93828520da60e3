"""Processes of this host told apart for sure, so that a dead one's belongings can be taken over."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self


def boot_time() -> float:
    """Seconds since the host booted, sleep included; the same for all its processes.

    No one sets this clock (CLOCK_BOOTTIME), and unlike time.monotonic() it goes on while the host
    sleeps, as the clocks of all others do.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """This boot of the host, as no other (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@dataclass(frozen=True)
class Process:
    """One process. started: clock ticks since the boot; namespace: where its pid counts."""

    pid: int
    started: int
    namespace: str
    boot: str

    @classmethod
    def this(cls) -> Self:
        """The process that asks."""
        pid = os.getpid()
        stat = _stat(pid)
        assert stat is not None
        return cls(pid, stat[1], _namespace(), boot_id())

    @classmethod
    def parse(cls, text: str) -> Self:
        """From what str() gave."""
        return cls(**json.loads(text))

    def __str__(self) -> str:
        return json.dumps(vars(self))

    def is_dead(self) -> bool:
        """Whether it has certainly ended; of another container's process nobody can tell: False.

        For records of this host only: a process of another boot is taken for dead.
        """
        if self.boot != boot_id():
            return True
        if self.namespace != _namespace():
            return False
        stat = _stat(self.pid)
        if stat is not None:
            state, started = stat
            return state in "ZX" or started != self.started
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # another user's, and /proc hides it (hidepid)
            return False
        return False


def _namespace() -> str:
    return os.readlink("/proc/self/ns/pid")


def _stat(pid: int) -> tuple[str, int] | None:
    """State and start of a process (proc(5): fields 3 and 22 of stat); None if not shown."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name before may hold anything
    return fields[0], int(fields[19])
