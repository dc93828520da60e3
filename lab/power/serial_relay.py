"""Relays on a serial port: a machine's mains or DC through a contact.

[power.m1-relay]
backend = "serial_relay"
port = "/dev/serial/by-id/usb-1a86_USB_Serial-if00-port0"   # or rfc2217://HOST:PORT
kind = "lcus"        # or "numato", or "lines": relays on RTS and DTR themselves
relays = 4
outlet = "2"

lcus: LCUS-1 to LCUS-8 (LC Technology, CH340). Four bytes: A0, relay, 01 or 00, their sum, at 9600
baud (https://tilga.com/prod/5732195). What they answer to a query differs by board, and many answer
nothing: a witness has to say what became of an order.
numato: Numato Lab's USB relay modules (https://numato.com/docs/8-channel-usb-relay-module/):
"relay on 0", "relay off 0" and "relay readall" (hex digits, a bit a relay), each ended by a
carriage return; they answer with an echo, the value and ">". Relays count from 0, after 9 from A.
lines: an asserted line closes the contact. A line cannot be read back: a witness has to.
"""

from __future__ import annotations

import string
import termios
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import serial
from pydantic import Field, model_validator

from lab.power.base import (
    DeviceSettings,
    OutletError,
    PowerDevice,
    PowerState,
    Secrets,
    Timing,
    UnreachableError,
)

T = TypeVar("T")
Kind = Literal["lcus", "numato", "lines"]
BAUD = 9600
PROMPT = b">"
LONGEST_ANSWER = 200
"""Bytes of a Numato module's answer; it is one line."""
CONTROL_LINES = ("RTS", "DTR")


class SerialRelaySettings(DeviceSettings):
    """[power.NAME] with backend = "serial_relay"."""

    port: Annotated[str, Field(min_length=1)]
    """A device file, or a URL of pyserial's. Names in /dev/serial/by-id stay the same."""
    kind: Kind
    relays: Annotated[int, Field(ge=1, le=32)] = 1
    """How many the board has; of lines there are two."""
    contact: Literal["normally-open", "normally-closed"] = "normally-open"
    """The contact that the machine's power goes through."""

    @model_validator(mode="after")
    def _is_safe(self) -> Self:
        if self.kind == "lines" and self.contact == "normally-closed":
            raise ValueError(
                "expected contact normally-open with kind lines: opening a port asserts both lines,"
                " which would cut the machine's power"
            )
        return self


class _Board(ABC):
    """What differs between boards. port: open, with a time-out for reading and writing."""

    reads_back = False

    def __init__(self, relays: int) -> None:
        self.relays = relays

    def outlets(self) -> list[str]:
        """As they are printed on the board."""
        return [str(number) for number in range(1, self.relays + 1)]

    @abstractmethod
    def switch(self, port: Any, relay: int, *, closed: bool) -> None:
        """Closes or opens the contact of the relay at this place of outlets()."""

    def closed(self, port: Any) -> dict[int, bool]:
        """Which relays the board says are closed."""
        raise NotImplementedError


class _Lcus(_Board):
    def switch(self, port: Any, relay: int, *, closed: bool) -> None:
        order = bytes([0xA0, relay + 1, closed])
        port.write(order + bytes([sum(order) & 0xFF]))
        port.flush()


class _Numato(_Board):
    reads_back = True
    _digits = string.digits + string.ascii_uppercase

    def outlets(self) -> list[str]:
        return [str(number) for number in range(self.relays)]

    def switch(self, port: Any, relay: int, *, closed: bool) -> None:
        self._command(port, f"relay {'on' if closed else 'off'} {self._digits[relay]}")

    def closed(self, port: Any) -> dict[int, bool]:
        said = self._command(port, "relay readall")
        try:
            bits = int(said, 16)
        except ValueError:
            raise UnreachableError(
                f"{port.name} answers {said[:40]!r} to a Numato module's 'relay readall': look"
                " whether it is one"
            ) from None
        return {relay: bool(bits >> relay & 1) for relay in range(self.relays)}

    def _command(self, port: Any, command: str) -> str:
        """Gives the value that it answers, if any."""
        port.reset_input_buffer()
        port.write(f"{command}\r".encode())
        said = bytes(port.read_until(PROMPT, LONGEST_ANSWER))
        if not said.endswith(PROMPT):
            raise UnreachableError(
                f"{port.name} does not answer as a Numato module (got {said[:40]!r}): look whether"
                " it has power and whether this is its port"
            )
        lines = said.rstrip(PROMPT).decode("ascii", "replace").split()
        return lines[-1] if lines else ""


class _Lines(_Board):
    def outlets(self) -> list[str]:
        return list(CONTROL_LINES)

    def switch(self, port: Any, relay: int, *, closed: bool) -> None:
        setattr(port, CONTROL_LINES[relay].lower(), closed)


BOARDS: dict[Kind, type[_Board]] = {"lcus": _Lcus, "numato": _Numato, "lines": _Lines}
WITNESSED = Timing(answer_seconds=2, attempts=1, deadline_seconds=60)
READ_BACK = Timing(answer_seconds=2, attempts=2, deadline_seconds=5)


class Device(PowerDevice):
    """One board, whose port stays open and belongs to this process alone."""

    Settings = SerialRelaySettings
    settings: SerialRelaySettings

    def __init__(self, name: str, settings: SerialRelaySettings, secrets: Secrets) -> None:
        super().__init__(name, settings, secrets)
        self._board = BOARDS[settings.kind](settings.relays)
        self.reads_back = self._board.reads_back
        self.default_timing = READ_BACK if self.reads_back else WITNESSED
        self._one_command = threading.RLock()
        self._port: Any = None

    def locate(self, outlet: str) -> str:
        """A relay by its number on the board, or a line by its name."""
        if outlet not in (known := self._board.outlets()):
            raise OutletError(
                f"{self.address()} has no relay {outlet!r}; expected one of {', '.join(known)}: set"
                f" outlet, or relays in [power.{self.name}]"
            )
        return outlet

    def read(self, place: str) -> PowerState:
        """What the board says of its relay."""
        return self.read_all()[place]

    def read_all(self) -> dict[str, PowerState]:
        """What the board says of all."""
        if not self.reads_back:
            return {}
        closed = self._on_port(self._board.closed)
        return {
            name: PowerState.ON if closed[at] is self._powers else PowerState.OFF
            for at, name in enumerate(self._board.outlets())
        }

    def order(self, place: str, wanted: PowerState) -> None:
        """Switches the relay."""
        relay = self._board.outlets().index(place)
        closed = (wanted is PowerState.ON) is self._powers
        self._on_port(lambda port: self._board.switch(port, relay, closed=closed))

    def address(self) -> str:
        """Kind and port."""
        return f"{self.settings.kind} relays {self.name} ({self.settings.port})"

    def close(self) -> None:
        """Lets the port go; the relays stay as they are."""
        with self._one_command:
            port, self._port = self._port, None
            if port is not None:
                with suppress(serial.SerialException, OSError):  # it is gone already
                    port.close()

    @property
    def _powers(self) -> bool:
        """Whether a closed relay is a machine with power."""
        return self.settings.contact == "normally-open"

    def _on_port(self, command: Callable[[Any], T]) -> T:
        """One command at a time; a port that is gone is opened again by the next."""
        with self._one_command:
            try:
                if self._port is None:
                    self._port = self._opened()
                return command(self._port)
            except UnreachableError:
                self.close()
                raise
            except (serial.SerialException, OSError, ValueError, termios.error) as error:
                self.close()
                raise UnreachableError(
                    f"{self.address()} cannot be used: {error}: look whether it is plugged in,"
                    " whether another program has the port open, and whether you may use it (group"
                    " dialout)"
                ) from error

    def _opened(self) -> Any:
        url, seconds = self.settings.port, self.timing.answer_seconds
        is_device = "://" not in url
        options = {"exclusive": True, "write_timeout": seconds} if is_device else {}
        port = serial.serial_for_url(url, baudrate=BAUD, timeout=seconds, **options)
        if is_device and Path(url).is_char_device():
            # Else the system lets both lines go when the last program closes the port (termios(3)).
            settings = termios.tcgetattr(port.fileno())
            settings[2] &= ~termios.HUPCL
            termios.tcsetattr(port.fileno(), termios.TCSANOW, settings)
        return port
