"""What must be known of an analysis host; ssh.py speaks to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class AnalysisHost:
    """A machine with Windows, an SSH server, Python and the engine.

    known_hosts: the file that has the host's key. key: file with the private key, or what gives
    the key itself; password: gives that of the user or, where there is a key, of the key; without
    either the user's SSH agent is asked. python: the command that starts Python there. symbols:
    WinDbg symbol path there. engine: folder there with dbgeng.dll; empty for the first found.
    folder: there, for the worker and for dumps; may be relative to the user's home.
    """

    host: str
    known_hosts: Path
    user: str | None = None
    port: int = 22
    key: Path | Callable[[], str] | None = None
    password: Callable[[], str] | None = None
    python: str = "python"
    symbols: str = ""
    engine: str = ""
    folder: str = "bugcheck-lab"

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        return f"{user}{self.host}:{self.port}"
