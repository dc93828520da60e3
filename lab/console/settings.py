"""[machines.NAME.console] in lab.toml: a serial console that the lab connects to by itself.

A virtual machine needs none: its console is the hypervisor's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr

from lab.console.log import Log
from lab.console.port import Port
from lab.console.transport import ConsoleError, Line, open_transport
from lab.toml import Section

HANDOVER_SECONDS = 10.0
"""`lab console` that only watches lets a port go to who holds the machine; so long it may take."""
FOLDER = "consoles"
"""In the store: the ports' locks, and a folder with the log of each machine's console."""


def _is_console(url: str) -> str:
    try:
        open_transport(Line(url))
    except ConsoleError as error:
        raise ValueError(str(error)) from None
    return url


class ConsoleSettings(Section):
    """[machines.NAME.console]."""

    url: Annotated[str, AfterValidator(_is_console)]
    """/dev/serial/by-id/..., rfc2217://HOST:PORT, socket://HOST:PORT, unix:///PATH or sol://BMC."""
    baud: Annotated[int, Field(ge=50)] = 115200
    """Bits a second, for a device file and RFC 2217."""
    user: str = ""
    """Of the BMC, for sol://."""
    password_secret: str | None = None
    """The NAME of the secret that is the BMC's password."""
    cipher_suite: Annotated[int, Field(ge=0, le=255)] | None = None
    """IPMI's, for sol:// to a BMC that ipmitool's own choice does not suit; 3 and 17 are usual."""

    def line(self, secrets: Callable[[str], SecretStr]) -> Line:
        """Where it is, with the password. secrets: gives a secret by its name."""
        return Line(
            self.url,
            self.baud,
            self.user,
            secrets(self.password_secret) if self.password_secret else None,
            self.cipher_suite,
        )


def log_folder(store: Path, machine: str) -> Path:
    """Where the log of a machine's port lies, run after run."""
    return store / FOLDER / machine


def open_port(
    settings: ConsoleSettings,
    secrets: Callable[[str], SecretStr],
    *,
    machine: str,
    store: Path,
    holder: str,
    wait: float = HANDOVER_SECONDS,
) -> Port:
    """The console's port, with its log in store/consoles/MACHINE. Raises PortHeld, ConfigError.

    wait: seconds that another holder gets to let the port go.
    """
    folder = log_folder(store, machine)
    folder.mkdir(parents=True, exist_ok=True)
    line = settings.line(secrets)
    return Port(line, Log(folder), locks=store / FOLDER / "locks", holder=holder, wait=wait)
