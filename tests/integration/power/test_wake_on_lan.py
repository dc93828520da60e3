"""Wake-on-LAN, on loopback: a machine that hears its packet has power, and tells by its witness."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from typing import Any, Self

import pytest
from pydantic import SecretStr, ValidationError

from lab.power.base import (
    NoEffectError,
    OutletError,
    PowerError,
    PowerState,
    RefusedError,
    UnreachableError,
    Witness,
)
from lab.power.devices import open_device
from lab.power.outlet import Outlet
from lab.power.wake_on_lan import Device

MAC = "52:54:00:12:34:56"
TIMING = {"deadline_seconds": 0.6, "poll_seconds": 0.02, "orders": 3}


class Card:
    """A network card that listens at UDP 127.0.0.1:`port` for the packets of its MAC address.

    deaf: how many packets it does not hear.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self.heard: list[bytes] = []
        self.deaf = 0
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        while packet := self._socket.recv(2000):
            self.heard.append(packet)

    def power(self) -> PowerState:
        """By the magic packet's definition: FF six times, then the address sixteen times."""
        mine = re.escape(bytes.fromhex(MAC.replace(":", "")))
        awake = [one for one in self.heard if re.search(rb"\xff{6}(?:" + mine + rb"){16}", one)]
        return PowerState.ON if len(awake) > self.deaf else PowerState.OFF


@pytest.fixture
def card() -> Iterator[Card]:
    with Card() as listening:
        yield listening


def waker(card: Card | None = None, **changes: Any) -> Device:
    where = {"address": "127.0.0.1", "port": card.port if card else 9}
    table = {"backend": "wake_on_lan", "mac": MAC, "timing": TIMING, **where, **changes}
    device = open_device("wake", table, lambda _: SecretStr(""))
    assert isinstance(device, Device)
    return device


def outlet_of(device: Device, witness: Witness | None) -> Outlet:
    return Outlet(device, "machine", lambda _: None, witness=witness)


@pytest.mark.parametrize("mac", [MAC, MAC.replace(":", "-")])
def test_wakes(card: Card, mac: str) -> None:
    result = outlet_of(waker(card, mac=mac), Witness("the console", card.power)).on()
    assert (result.before, result.found, result.tries) == (PowerState.OFF, PowerState.ON, 1)
    assert result.said_by == "the console"
    assert len(card.heard[0]) == 102


def test_a_packet_that_was_lost_is_sent_again(card: Card) -> None:
    card.deaf = 1
    assert outlet_of(waker(card), Witness("the console", card.power)).on().tries == 2


def test_a_machine_that_does_not_wake(card: Card) -> None:
    card.deaf = 99
    with pytest.raises(NoEffectError, match="the console said off"):
        outlet_of(waker(card), Witness("the console", card.power)).on()
    assert len(card.heard) == 3


def test_another_machine_wakes(card: Card) -> None:
    other = waker(card, mac="52:54:00:12:34:57")
    with pytest.raises(NoEffectError):
        outlet_of(other, Witness("the console", card.power)).on()


def test_off_is_impossible(card: Card) -> None:
    outlet = outlet_of(waker(card), Witness("the console", card.power))
    for action in (outlet.off, outlet.cycle):
        with pytest.raises(RefusedError, match="cannot be switched off"):
            action()
    assert card.heard == []


def test_without_a_witness_nothing_is_done(card: Card) -> None:
    outlet = outlet_of(waker(card), None)
    for action in (outlet.on, outlet.status):
        with pytest.raises(OutletError, match="no witness"):
            action()
    assert card.heard == []


def test_a_network_that_is_not_there() -> None:
    device = waker(address="nowhere.invalid")
    with pytest.raises(UnreachableError, match="in the network of that broadcast address"):
        device.order("machine", PowerState.ON)
    with pytest.raises(PowerError, match="could not be sent its packet"):
        outlet_of(device, Witness("the console", lambda: PowerState.OFF)).on()


@pytest.mark.parametrize("mac", ["", "52:54:00:12:34", "52:54:00:12:34:5G", "525400123456"])
def test_wrong_settings(mac: str) -> None:
    with pytest.raises(ValidationError, match="mac"):
        waker(mac=mac)
