"""[machines.NAME.ssh] in lab.toml: how a machine's SSH server is reached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr

from lab.toml import Section


@dataclass(frozen=True)
class SshAddress:
    """Where an SSH server is and who logs in.

    known_hosts: the file that has its key; a server that is not in it is never spoken to. key: the
    file with the private key, or the key itself. password: of the user or, where there is a key, of
    the key.
    """

    host: str
    port: int
    user: str
    known_hosts: Path
    key: Path | SecretStr | None
    password: SecretStr | None

    def __str__(self) -> str:
        return f"{self.user}@{self.host}:{self.port}"


class SshSettings(Section):
    """[machines.NAME.ssh]."""

    host: Annotated[str, Field(min_length=1)]
    """Its name or address."""
    port: Annotated[int, Field(ge=1, le=65535)] = 22
    user: Annotated[str, Field(min_length=1)] = "Administrator"
    """An administrator: steps install drivers, and evidence is read from C:\\Windows."""
    known_hosts: Annotated[str, Field(min_length=1)] = "~/.ssh/known_hosts"
    """The file that has the machine's key; relative to lab.toml."""
    key: Annotated[str, Field(min_length=1)] | None = None
    """The file with the private key; relative to lab.toml."""
    key_secret: str | None = None
    """Instead of key: the NAME of the secret that is the private key itself."""
    password_secret: str | None = None
    """The NAME of the secret that is the user's password or, where there is a key, the key's."""

    def address(self, at: Callable[[str], Path], secrets: Callable[[str], SecretStr]) -> SshAddress:
        """With the secrets. at: gives the path of a name in lab.toml. Raises ConfigError."""
        key: Path | SecretStr | None = at(self.key) if self.key else None
        if self.key_secret is not None:
            key = secrets(self.key_secret)
        password = secrets(self.password_secret) if self.password_secret else None
        return SshAddress(self.host, self.port, self.user, at(self.known_hosts), key, password)
