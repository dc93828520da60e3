"""Relays on a serial port: the conformance suite on each kind, and what only they have."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from fixtures.power_bench import Mode, PowerBench
from fixtures.power_conformance import *  # noqa: F403 - the suite's tests
from lab.power.base import (
    NoEffectError,
    OutletError,
    PowerState,
    UnreachableError,
    Witness,
)
from lab.power.devices import open_device
from lab.power.outlet import Outlet
from lab.power.serial_relay import Device
from tests.integration.power.relay_boards import (
    RELAYS,
    Board,
    LcusBoard,
    LineServer,
    NumatoBoard,
)

TIMING = {
    "answer_seconds": 0.5,
    "attempts": 2,
    "deadline_seconds": 0.6,
    "poll_seconds": 0.05,
    "pause_seconds": 0.2,
}
STATES = {True: PowerState.ON, False: PowerState.OFF}


def open_relays(**table: Any) -> Device:
    device = open_device(
        "relays", {"backend": "serial_relay", "timing": TIMING, **table}, lambda _: SecretStr("")
    )
    assert isinstance(device, Device)
    return device


def relays_on(board: Board, **changes: Any) -> Device:
    kind = "numato" if isinstance(board, NumatoBoard) else "lcus"
    return open_relays(**{"port": str(board.path), "kind": kind, "relays": RELAYS, **changes})


class BoardBench(PowerBench):
    """A relay of a board; a machine on each has power as long as its relay is closed."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self.device = relays_on(board)
        self.outlet = "2"
        self._relay = 2 if self.device.reads_back else 1
        self.modes = frozenset({"good", "lies", "slow", "flapping", "wrong outlet"})
        if self.device.reads_back:
            self.modes |= {"dead", "late", "restarts"}
        else:
            self.witness = Witness("the machine", lambda: STATES[board.is_closed(self._relay)])
            other = (self._relay + 1) % RELAYS
            self.others = [Witness("the neighbor", lambda: STATES[board.is_closed(other)])]

    def behave(self, mode: Mode, seconds: float = 0.0) -> None:
        self._board.behave(mode, seconds)

    def truth(self) -> PowerState:
        return STATES[self._board.is_closed(self._relay)]


class LineBench(PowerBench):
    """A relay on RTS of a console server's port; it can stick."""

    def __init__(self, server: LineServer) -> None:
        self._server = server
        self._stuck: PowerState | None = None
        self.modes = frozenset({"good", "lies"})
        self.device = open_relays(port=f"rfc2217://127.0.0.1:{server.port}", kind="lines")
        self.outlet = "RTS"
        self.witness = Witness("the machine", self.truth)

    def behave(self, mode: Mode, seconds: float = 0.0) -> None:
        self._stuck = self.truth() if mode == "lies" else None

    def truth(self) -> PowerState:
        return self._stuck or STATES[bool(self._server.lines.rts)]


@pytest.fixture(
    params=[
        "numato",
        pytest.param("lcus", marks=pytest.mark.metal),
        pytest.param("lines", marks=pytest.mark.metal),
    ]
)
def power_bench(request: pytest.FixtureRequest) -> Iterator[PowerBench]:
    if request.param == "lines":
        with LineServer() as server:
            bench = LineBench(server)
            yield bench
            bench.device.close()
    else:
        with LcusBoard() if request.param == "lcus" else NumatoBoard() as board:
            board_bench = BoardBench(board)
            yield board_bench
            board_bench.device.close()


@pytest.fixture(params=[LcusBoard, NumatoBoard])
def board(request: pytest.FixtureRequest) -> Iterator[Board]:
    kind: Callable[[], Board] = request.param
    with kind() as plugged:
        yield plugged


def test_lcus_bytes() -> None:
    """The examples of the board's sellers: A0 01 01 A2 and A0 01 00 A1."""
    with LcusBoard() as board:
        device = relays_on(board)
        device.order("1", PowerState.ON)
        device.order("1", PowerState.OFF)
        outlet = Outlet(device, "3", lambda _: None, witness=Witness("x", lambda: PowerState.ON))
        assert outlet.on().tries == 1
        assert board.received == bytes.fromhex("a00101a2 a00100a1 a00301a4")
        device.close()


def test_normally_closed(board: Board) -> None:
    """A relay that is closed takes the power away."""
    device = relays_on(board, contact="normally-closed")
    relay = 1 if device.reads_back else 0
    witness = Witness("the machine", lambda: STATES[not board.is_closed(relay)])
    assert witness.ask() is PowerState.OFF
    assert Outlet(device, "1", lambda _: None, witness=witness).on().found is PowerState.ON
    assert board.closed == [number != relay for number in range(RELAYS)]
    device.close()


def test_a_port_that_is_gone_and_comes_back(board: Board) -> None:
    device = relays_on(board)
    device.order("1", PowerState.OFF)
    board.unplug()
    with pytest.raises(UnreachableError, match="plugged in"):
        device.order("1", PowerState.ON)
    with pytest.raises(UnreachableError, match="plugged in"):
        device.order("1", PowerState.ON)
    board.plug()
    device.order("1", PowerState.ON)
    device.close()


def test_a_port_that_another_program_holds(board: Board) -> None:
    with board.path.open("rb+", buffering=0) as other:
        fcntl.flock(other, fcntl.LOCK_EX)  # as pyserial, picocom and minicom do
        with pytest.raises(UnreachableError, match="another program has the port open"):
            relays_on(board).order("1", PowerState.OFF)


def test_a_numato_module_that_is_none() -> None:
    """Some other device that talks: an LCUS board says nothing, a modem says things."""
    with LcusBoard() as board:
        device = relays_on(board, kind="numato")
        with pytest.raises(UnreachableError, match="does not answer as a Numato module"):
            device.read("1")
        device.close()

    class Modem(LcusBoard):
        def answer(self, received: bytes) -> tuple[bytes, bytes]:
            return b"", b"\xff\x00ERROR>"

    with Modem() as board:
        device = relays_on(board, kind="numato")
        with pytest.raises(UnreachableError, match="whether it is one"):
            device.read("1")
        device.close()


def test_a_relay_without_a_witness_is_refused() -> None:
    with LcusBoard() as board:
        outlet = Outlet(relays_on(board), "1", lambda _: None)
        with pytest.raises(OutletError, match="no witness"):
            outlet.off()
        assert board.received == b""


def test_a_relay_whose_witness_saw_nothing() -> None:
    with LcusBoard() as board:
        device = relays_on(board)
        witness = Witness("the console", lambda: PowerState.UNKNOWN)
        with pytest.raises(NoEffectError, match="the console said unknown"):
            Outlet(device, "1", lambda _: None, witness=witness).off()
        device.close()


def test_a_console_server_that_is_gone() -> None:
    with LineServer() as server:
        device = open_relays(port=f"rfc2217://127.0.0.1:{server.port}", kind="lines")
        device.order("DTR", PowerState.OFF)
        assert (server.lines.rts, server.lines.dtr) == (True, False)
        device.close()
    with pytest.raises(UnreachableError):
        device.order("DTR", PowerState.ON)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"kind": "lines", "contact": "normally-closed"}, "would cut the machine's power"),
        ({"kind": "x10"}, "kind"),
        ({"kind": "lcus", "relays": 0}, "relays"),
        ({"kind": "lcus", "port": ""}, "port"),
    ],
)
def test_wrong_settings(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        open_relays(**{"port": "/dev/null", **table})
