"""A power backend as a third party writes it, and its bench: a relay that is a file.

The whole driver is FileRelay: what it reads, what it orders, what it cannot do. docs/power.md shows
it. The suite runs on it with

    pytest -p tests.integration.power.file_relay --pyargs fixtures.power_conformance
"""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from fixtures.power_bench import Mode, PowerBench
from lab.power.base import (
    DeviceSettings,
    OutletError,
    PowerDevice,
    PowerState,
    Timing,
    UnreachableError,
)


class FileRelaySettings(DeviceSettings):
    """[power.NAME] with backend = "file_relay"."""

    folder: str


class FileRelay(PowerDevice):
    """Relays that are files: the word in one is its state, what is written to it an order."""

    Settings = FileRelaySettings
    settings: FileRelaySettings
    default_timing = Timing(
        answer_seconds=0.1, attempts=1, deadline_seconds=0.3, poll_seconds=0.02, pause_seconds=0.1
    )

    def locate(self, outlet: str) -> str:
        known = [path.name for path in Path(self.settings.folder).glob("relay-*")]
        if f"relay-{outlet}" not in known and Path(self.settings.folder).exists():
            raise OutletError(f"there is no relay {outlet!r}; known: {known}")
        return f"relay-{outlet}"

    def read(self, place: str) -> PowerState:
        try:
            word = (Path(self.settings.folder) / place).read_text()
        except OSError as error:
            raise UnreachableError(f"{self.address()}: {error}; plug it in") from error
        return PowerState(word) if word in {"on", "off"} else PowerState.UNKNOWN

    def order(self, place: str, wanted: PowerState) -> None:
        path = Path(self.settings.folder) / place
        if path.exists():
            path.write_text(wanted)


class LyingRelay(FileRelay):
    """Takes every order and does nothing."""

    def order(self, place: str, wanted: PowerState) -> None:
        """Nothing."""


class FileBench(PowerBench):
    """One relay in a folder."""

    modes = frozenset({"good", "lies", "dead"})
    outlet = "1"

    def __init__(self, folder: Path) -> None:
        self._folder, self._away = folder / "relays", folder / "unplugged"
        self._folder.mkdir()
        self._relay = self._folder / "relay-1"
        self._relay.write_text("on")
        self.device = self._open(FileRelay)

    def _open(self, kind: type[FileRelay]) -> FileRelay:
        settings = FileRelaySettings(backend="file_relay", folder=str(self._folder))
        return kind("bench", settings, lambda _: SecretStr(""))

    def behave(self, mode: Mode, seconds: float = 0.0) -> None:
        if self._away.exists():
            self._away.rename(self._folder)
        if mode == "dead":
            self._folder.rename(self._away)
        self.device = self._open(LyingRelay if mode == "lies" else FileRelay)

    def truth(self) -> PowerState:
        return PowerState(self._relay.read_text())


@pytest.fixture
def power_bench(tmp_path: Path) -> FileBench:
    """What the conformance suite asks for."""
    return FileBench(tmp_path)
