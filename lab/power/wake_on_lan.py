"""Wake-on-LAN: switches on, and nothing else; the machine's witness says whether it worked.

[power.m1-wake]
backend = "wake_on_lan"
mac = "52:54:00:12:34:56"
address = "192.168.7.255"     # the broadcast address of the machine's network
timing.deadline_seconds = 180 # until its witness sees it: a console, an agent

The magic packet is six bytes FF and sixteen times the MAC address (AMD, Magic Packet Technology,
publication 20213), sent as a UDP datagram. It says nothing back, and whether the machine's firmware
and driver have it enabled cannot be asked.
"""

from __future__ import annotations

import socket
from typing import Annotated

from pydantic import Field

from lab.power.base import (
    DeviceSettings,
    OutletError,
    PowerDevice,
    PowerState,
    RefusedError,
    Timing,
    UnreachableError,
)

THE_MACHINE = "machine"
"""The name of its one outlet."""


class WakeOnLanSettings(DeviceSettings):
    """[power.NAME] with backend = "wake_on_lan"."""

    mac: Annotated[str, Field(pattern=r"^[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}$")]
    address: Annotated[str, Field(min_length=1)] = "255.255.255.255"
    """Where the packet goes: a broadcast address of the network that the machine is in."""
    port: Annotated[int, Field(ge=1, le=65535)] = 9
    outlet: str | None = THE_MACHINE


class Device(PowerDevice):
    """One machine that can be woken."""

    Settings = WakeOnLanSettings
    settings: WakeOnLanSettings
    default_timing = Timing(deadline_seconds=120, poll_seconds=1, orders=3)
    can_order = frozenset({PowerState.ON})
    reads_back = False

    def locate(self, outlet: str) -> str:
        """There is one only."""
        if outlet != THE_MACHINE:
            raise OutletError(
                f"{self.address()} has no outlet {outlet!r}: it wakes one machine; leave outlet"
                " away"
            )
        return outlet

    def order(self, place: str, wanted: PowerState) -> None:
        """Sends the packet."""
        if wanted is not PowerState.ON:
            raise RefusedError(f"{self.address()} switches on only")
        mac = bytes.fromhex(self.settings.mac.replace(":", "").replace("-", ""))
        target = (self.settings.address, self.settings.port)
        try:
            family, kind, protocol, _, where = socket.getaddrinfo(*target, type=socket.SOCK_DGRAM)[
                0
            ]
            with socket.socket(family, kind, protocol) as sender:
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                sender.sendto(b"\xff" * 6 + 16 * mac, where)
        except OSError as error:
            raise UnreachableError(
                f"{self.address()} could not be sent its packet: {error}: look whether this host"
                " is in the network of that broadcast address"
            ) from error

    def address(self) -> str:
        """MAC address, and where packets go."""
        return f"Wake-on-LAN {self.name} ({self.settings.mac} by {self.settings.address})"
