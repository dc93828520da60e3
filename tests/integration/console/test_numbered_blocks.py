"""Whatever happens in between: each byte received is logged, each gap lies at a reconnect mark.

A machine says numbered blocks without end; the console server before it is killed and started again
at random moments. What our socket received is written down at the lowest place there is, the
transport's read(), and compared byte by byte.
"""

from __future__ import annotations

import itertools
import random
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import pytest

import lab.console.port
from lab.console.log import entries
from lab.console.transport import Connection, Line, Mark, Transport, open_transport
from tests.integration.console.conftest import DEADLINE, Bench, Machine, marks
from tests.support.waiting import wait_for

BLOCK = re.compile(rb"<block (\d{8}) x{64}>\r\n")
BLOCK_BYTES = len(b"<block 00000000 >\r\n") + 64


class Heard(Transport):
    """A transport that writes down what it received."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self.received = bytearray()

    def open(self, mark: Mark) -> Connection:
        connection = self._inner.open(mark)
        read = connection.read

        def reading() -> bytes:
            data = read()
            self.received += data
            return data

        connection.read = reading  # type: ignore[method-assign]
        return connection


@contextmanager
def talking(machine: Machine) -> Iterator[list[int]]:
    """A machine that says blocks at about 100 kB/s; gives the number of the next one."""
    numbers, stop = [0], threading.Event()

    def talk() -> None:
        while not stop.wait(0.005):
            for _ in range(6):
                machine.say(b"<block %08d %s>\r\n" % (numbers[0], b"x" * 64))
                numbers[0] += 1

    thread = threading.Thread(target=talk, daemon=True)
    thread.start()
    yield numbers
    stop.set()
    thread.join(DEADLINE)


def check(bench: Bench, seconds: float, seed: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """One run; gives how often the server was killed."""
    heard: list[Heard] = []

    def listening(line: Line) -> Transport:
        heard.append(Heard(open_transport(line)))
        return heard[-1]

    monkeypatch.setattr(lab.console.port, "open_transport", listening)
    dice, machine = random.Random(seed), bench.machine()
    server, number = bench.ser2net(machine.device)
    port = bench.port(f"socket://127.0.0.1:{number}")
    kills, pause = 0, threading.Event()
    with talking(machine) as numbers:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pause.wait(dice.uniform(0.05, 0.6))
            server.kill()
            kills += 1
            pause.wait(dice.uniform(0.0, 0.3))
            server.start()
            port.retry()
            wait_for("the connection", lambda: port.connected, DEADLINE)
        seen = port.log.size
        wait_for("more bytes", lambda: port.log.size > seen + 10 * BLOCK_BYTES, DEADLINE)
    port.close()
    log = port.log
    said = log.path.read_bytes()
    assert said == bytes(heard[0].received)

    # Blocks that are whole and follow one another, or a mark stands where they do not.
    connections = {int(str(one["offset"])): one for one in marks(log, "connected")}
    assert len(connections) > kills // 2
    assert all(one["gap_seconds"] is not None for at, one in connections.items() if at)
    blocks = [(found.start(), found.end(), int(found[1])) for found in BLOCK.finditer(said)]
    assert len(blocks) > 100
    gaps = 0
    for (_, end_before, before), (start, _, after) in itertools.pairwise(blocks):
        if start != end_before or after != before + 1:
            gaps += 1
            between = [at for at in connections if end_before - BLOCK_BYTES <= at <= start]
            assert between, f"blocks {before} and {after} at {end_before}, {start}: no mark"
            assert after > before, "a block came twice, and no server here replays"
    assert numbers[0] >= blocks[-1][2] > 0
    assert gaps <= len(connections)

    # The gap's length is the time between the two marks.
    told = [entry for entry in entries(log.times) if entry.get("event") in {"lost", "connected"}]
    assert [one["event"] for one in told] == ["connected", "lost"] * (len(told) // 2)
    for lost, again in zip(told[1::2], told[2::2], strict=False):
        passed = datetime.fromisoformat(again["at"]) - datetime.fromisoformat(lost["at"])
        assert again["gap_seconds"] == pytest.approx(passed.total_seconds(), abs=0.25)
        assert lost["offset"] == again["offset"]
    return kills


def test_every_byte_received_is_logged_and_every_gap_is_marked(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check(bench, 6, 19_07_2024, monkeypatch) >= 3


@pytest.mark.soak
def test_the_same_for_ten_minutes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(bench, 600, int(time.time()), monkeypatch) >= 100
