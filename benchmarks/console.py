"""What typing a line and expecting its answer costs, against the bare connection below it.

Each round does the same exchanges both ways over each transport, one after the other: by hand, with
nothing but the connection, and by the lab, whose reader thread logs every byte with its time before
a watcher sees it. Nobody sleeps: the far end answers as soon as it has the line.

    python -m benchmarks.console --help
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import statistics
import sys
import threading
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from pydantic import SecretStr

from benchmarks.report import PAGE, Times, host, write_section
from images.contract import load_contract
from images.test_kernel.build import build_image
from lab.backend import Image
from lab.console.log import Log
from lab.console.port import Port
from lab.console.transport import Line, open_transport
from lab.console.watcher import Watcher
from lab.signals import SignalKind, SignalLog
from lab.virtual.libvirt import Factory, LibvirtBackend
from tests.integration.console.conftest import BMC_PASSWORD, BMC_USER, Bench, Machine
from tests.support.labs import CONTRACT, lab_folder
from tests.support.waiting import wait_for

DEADLINE = 20.0
TITLE = "Typing and expecting"
TEXT = """{host}

{rounds} rounds of {exchanges} exchanges: a line is typed, and its answer waited for. The far end
is a process of this host behind a pseudo-terminal, the console server ser2net 4.3.11 (`nodelay`),
or the BMC OpenIPMI's ipmi_sim with ipmitool. By hand is the bare connection: a raw socket for TCP,
the open device, pyserial for RFC 2217, ipmitool's terminal. The last line is COM1 of a virtual
machine, whose guest looks for a key a hundred times a second; there the lab reads virtlogd's file,
and by hand it is the pseudo-terminal.

{table}
"""
Exchange = Callable[[int], None]
"""Types line number N and returns when its answer is there."""


@contextmanager
def answering(machine: Machine) -> Iterator[None]:
    """The far end: answers each line at once."""
    stop = threading.Event()

    def answer() -> None:
        heard = b""
        while not stop.is_set():
            if select.select([machine.master], [], [], 0.1)[0]:
                heard += os.read(machine.master, 4096)
                while b"\r" in heard:
                    line, _, heard = heard.partition(b"\r")
                    machine.say(b"answer to %s\r\n" % line)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def bare(line: Line) -> Iterator[Exchange]:
    """A transport's connection and nothing else."""
    with open_transport(line).open(lambda *_, **__: None) as connection:

        def exchange(number: int) -> None:
            connection.write(b"line %d\r" % number)
            said = b""
            while b"answer to line %d\r\n" % number not in said:
                said += connection.read()

        yield exchange


@contextmanager
def raw_socket(line: Line) -> Iterator[Exchange]:
    """A TCP socket, as one would write it."""
    address = line.url.removeprefix("socket://").split(":")
    with closing(socket.create_connection((address[0], int(address[1])))) as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def exchange(number: int) -> None:
            stream.sendall(b"line %d\r" % number)
            said = b""
            while b"answer to line %d\r\n" % number not in said:
                said += stream.recv(4096)

        yield exchange


@contextmanager
def by_the_lab(line: Line, folder: Path) -> Iterator[Exchange]:
    """A port and a watcher."""
    with Port(line, Log(folder), locks=folder / "locks", holder="benchmark") as port:
        wait_for("the connection", lambda: port.connected, DEADLINE, interval=0.005)
        watcher = Watcher(port.log, SignalLog())

        def exchange(number: int) -> None:
            port.write(b"line %d\r" % number)
            watcher.expect(b"answer to line %d\r\n" % number, DEADLINE)

        yield exchange


def timed(exchange: Exchange, exchanges: int) -> float:
    """Seconds of one exchange: the median of several."""
    times = []
    for number in range(exchanges + 3):
        began = time.monotonic()
        exchange(number)
        times.append(time.monotonic() - began)
    return statistics.median(times[3:])


def measure_ports(rounds: int, exchanges: int) -> dict[str, list[float]]:
    """Seconds of an exchange, by transport and way."""
    times: dict[str, list[float]] = {}
    with lab_folder() as folder:
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
            for name in ("device", "TCP", "RFC 2217", "Serial over LAN"):
                place = folder / f"{number}-{name.replace(' ', '-')}"
                place.mkdir()
                with ExitStack() as stack:
                    bench = Bench(place, stack)
                    machine = bench.machine()
                    stack.enter_context(answering(machine))
                    line = _line(name, bench, machine)
                    by_hand = raw_socket if name == "TCP" else bare
                    with by_hand(line) as exchange:
                        times.setdefault(f"{name}, by hand", []).append(timed(exchange, exchanges))
                    with by_the_lab(line, place) as exchange:
                        times.setdefault(f"{name}, by the lab", []).append(
                            timed(exchange, exchanges)
                        )
    return times


def _line(name: str, bench: Bench, machine: Machine) -> Line:
    if name == "device":
        return Line(str(machine.device))
    if name == "TCP":
        return Line(f"socket://127.0.0.1:{bench.ser2net(machine.device)[1]}")
    if name == "RFC 2217":
        port = bench.ser2net(machine.device, rfc2217=True)[1]
        return Line(f"rfc2217://127.0.0.1:{port}?ign_set_control")
    port = bench.bmc(machine.device)[1]
    return Line(
        f"sol://127.0.0.1:{port}",
        user=BMC_USER,
        password=SecretStr(BMC_PASSWORD),
        cipher_suite=3,
    )


def measure_machine(rounds: int, exchanges: int) -> dict[str, list[float]]:
    """Seconds until a typed key is echoed by SAC on a virtual machine's COM1, by way."""
    hand, lab = "virtual COM1, by hand", "virtual COM1, by the lab"
    times: dict[str, list[float]] = {hand: [], lab: []}
    with lab_folder() as folder, ExitStack() as stack:
        factory = Factory("bench", "private", folder / "hosts")
        stack.callback(factory.close)
        image = Image("idle", load_contract(CONTRACT), build_image(folder / "idle.qcow2"))

        def booted(name: str) -> tuple[LibvirtBackend, SignalLog]:
            signals = SignalLog()
            backend = factory.slot(name, signals)
            assert isinstance(backend, LibvirtBackend)
            backend.provision(image, folder / name, name)
            stack.callback(backend.dispose, keep_disk=False)
            backend.start(hold_restart=True)
            up = image.contract.deadlines.boot_to_agent
            signals.wait("the agent", lambda: signals.of(SignalKind.AGENT_UP), up)
            return backend, signals

        backend, signals = booted("lab")
        watcher = Watcher(backend.console(), signals)
        terminal = booted("hand")[0]._domain.terminal(0)
        assert terminal is not None
        file = os.open(terminal, os.O_RDWR | os.O_NOCTTY)
        stack.callback(os.close, file)
        tty.setraw(file)

        def by_lab(number: int) -> None:
            backend.type_on_console(key(number))
            watcher.expect(echo(number), DEADLINE)

        def by_hand(number: int) -> None:
            os.write(file, key(number))
            said = heard(DEADLINE)
            while echo(number) not in said:
                said += heard(DEADLINE)

        def heard(seconds: float) -> bytes:
            if not select.select([file], [], [], seconds)[0]:
                raise TimeoutError(f"no echo within {seconds:g} s")
            return os.read(file, 4096)

        def first_by_hand() -> bool:
            os.write(file, key(0))
            with suppress(TimeoutError):
                return echo(0) in heard(1)
            return False

        # QEMU looks once a second for who types first, and SAC may not listen yet.
        wait_for("the first echo", first_by_hand, DEADLINE)
        by_lab(0)
        for exchange in (by_hand, by_lab):
            exchange(1)
        for _ in range(rounds):
            times[hand].append(timed(by_hand, exchanges))
            times[lab].append(timed(by_lab, exchanges))
    return times


def key(number: int) -> bytes:
    """A letter, each time another, and then its erasure: SAC's line has an end."""
    return b"\x7f" if number % 2 else b"%c" % (ord("a") + number // 2 % 26)


def echo(number: int) -> bytes:
    """What SAC says to it."""
    return b"\b \b" if number % 2 else key(number)


def milliseconds(times: Times) -> str:
    """A table: each transport by hand and by the lab, and the ratio of the same rounds."""
    rows = ["| | by hand, ms | by the lab, ms | times by hand |", "|---|---|---|---|"]
    for name in [name.removesuffix(", by hand") for name in times if name.endswith("by hand")]:
        hand, lab = times[f"{name}, by hand"], times[f"{name}, by the lab"]
        ratio = statistics.median(one / base for one, base in zip(lab, hand, strict=True))
        rows.append(
            f"| {name} | {1000 * statistics.median(hand):.2f} | {1000 * statistics.median(lab):.2f}"
            f" | {ratio:.1f} |"
        )
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; see --help."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.console", description="Times typing and expecting."
    )
    parser.add_argument("--rounds", type=int, default=10, help="paired rounds (default: 10)")
    parser.add_argument("--exchanges", type=int, default=50, help="in a round (default: 50)")
    parser.add_argument(
        "--output", type=Path, default=PAGE, help="the page to write (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    counts = options.rounds, options.exchanges
    times = {**measure_ports(*counts), **measure_machine(*counts)}
    text = TEXT.format(
        host=host(), rounds=counts[0], exchanges=counts[1], table=milliseconds(times)
    )
    print(write_section(options.output, TITLE, text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
