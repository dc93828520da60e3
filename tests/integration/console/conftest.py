"""Serial lines made of parts that others made: pseudo-terminals, socat, ser2net."""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import tempfile
import tty
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lab.console.log import Log, entries
from lab.console.port import Port
from lab.console.transport import Line
from lab.console.watcher import Watcher
from lab.signals import SignalLog
from tests.support.waiting import wait_for

DEADLINE = 20.0
"""Seconds for what takes milliseconds on a quiet host."""
BMC_USER, BMC_PASSWORD = "admin", "secret"


def free_port() -> int:
    """A TCP port of the loopback interface that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Process:
    """A program that runs until it is killed; it can be started again."""

    def __init__(self, command: Sequence[str | Path], ready: Callable[[], bool]) -> None:
        self._command = [str(part) for part in command]
        self._ready = ready
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Starts it and waits until it is ready."""
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(self._command[0], self._ready, DEADLINE, interval=0.01)
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """Ends it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def listens(port: int) -> bool:
    """Whether somebody listens on a TCP port; without connecting to it."""
    with suppress(FileNotFoundError):
        table = Path("/proc/net/tcp").read_text().splitlines()[1:]
        return any(
            line.split()[1] == f"0100007F:{port:04X}" and line.split()[3] == "0A" for line in table
        )
    return False


class Machine:
    """What stands at the other end of a serial line: a pseudo-terminal's master."""

    def __init__(self) -> None:
        self.master, slave = os.openpty()
        tty.setraw(slave)
        self.device = Path(os.ttyname(slave))
        self._slave = slave  # kept open, so that what is said is not lost while nobody listens

    def say(self, data: bytes) -> None:
        """Sends bytes."""
        while data:
            data = data[os.write(self.master, data) :]

    def hear(self, length: int) -> bytes:
        """Waits for bytes that were typed."""
        heard = b""

        def enough() -> bool:
            nonlocal heard
            if select.select([self.master], [], [], 0)[0]:
                heard += os.read(self.master, 65536)
            return len(heard) >= length

        wait_for(f"{length} typed bytes", enough, DEADLINE, interval=0.005)
        return heard

    def close(self) -> None:
        """Takes it away, as an adapter that is pulled out."""
        for file in (self.master, self._slave):
            with suppress(OSError):
                os.close(file)


@dataclass
class Bench:
    """Makes parts that are taken down at the end of the test."""

    folder: Path
    stack: ExitStack
    signals: SignalLog = field(default_factory=SignalLog)

    def machine(self) -> Machine:
        """The far end of a new serial line."""
        made = Machine()
        self.stack.callback(made.close)
        return made

    def process(self, command: Sequence[str | Path], ready: Callable[[], bool]) -> Process:
        """A program, ready."""
        made = Process(command, ready)
        self.stack.callback(made.kill)
        return made

    def ser2net(self, device: Path, *, rfc2217: bool = False) -> tuple[Process, int]:
        """A console server before a device, and its port."""
        port = free_port()
        config = self.folder / f"ser2net-{port}.yaml"
        kind = "telnet(rfc2217)," if rfc2217 else ""
        config.write_text(
            f"connection: &console\n  accepter: {kind}tcp(nodelay),127.0.0.1,{port}\n"
            f"  connector: serialdev,{device},115200n81,local\n"
            "  options:\n    kickolduser: true\n"
        )
        command: list[str | Path] = [
            "ser2net",
            "-n",
            "-u",
            "-c",
            config,
            "-P",
            self.folder / f"{port}.pid",
        ]
        return self.process(command, lambda: listens(port)), port

    def bmc(self, device: Path) -> tuple[Process, int]:
        """OpenIPMI's BMC with Serial over LAN to a device, and its UDP port.

        Through ser2net: ipmi_sim locks devices in a folder that only root may write to.
        """
        _, number = self.ser2net(device)
        with socket.socket(type=socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            port = int(free.getsockname()[1])
        lan, emulation = self.folder / "lan.conf", self.folder / "sim.emu"
        lan.write_text(
            'name "console"\nset_working_mc 0x20\nstartlan 1\n'
            f"addr 127.0.0.1 {port}\npriv_limit admin\n"
            "allowed_auths_admin none md2 md5 straight\nguid a123456789abcdefa123456789abcdef\n"
            f'endlan\nsol "tcp:127.0.0.1:{number}" 115200\n'
            f'user 2 true "{BMC_USER}" "{BMC_PASSWORD}" admin 10 none md2 md5 straight\n'
        )
        emulation.write_text(
            "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02\n"
            "mc_enable 0x20\n"
        )

        def ready() -> bool:
            table = Path("/proc/net/udp").read_text().splitlines()[1:]
            return any(line.split()[1] == f"0100007F:{port:04X}" for line in table)

        state = self.folder / "state"
        command: list[str | Path] = [
            "ipmi_sim",
            "-c",
            lan,
            "-f",
            emulation,
            "-s",
            state,
            "-n",
            "-p",
        ]
        return self.process(command, ready), port

    def log(self) -> Log:
        """A new log in the test's folder."""
        return Log(self.folder)

    def port(self, url: str | Line, log: Log | None = None, *, holder: str = "this test") -> Port:
        """An open port that is connected."""
        port = self.unconnected(url, log, holder=holder)
        wait_for("the connection", lambda: port.connected, DEADLINE, interval=0.005)
        return port

    def unconnected(
        self, url: str | Line, log: Log | None = None, *, holder: str = "this test"
    ) -> Port:
        """A port that has only begun to connect."""
        line = Line(url) if isinstance(url, str) else url
        port = Port(line, log or self.log(), locks=self.folder / "locks", holder=holder)
        self.stack.callback(port.close)
        return port

    def watch(self, log: Log, offset: int | None = None) -> Watcher:
        """Watches a log with this test's signals."""
        return Watcher(log, self.signals, offset=offset)


def marks(log: Log, event: str | None = None) -> list[dict[str, object]]:
    """The events in a log's index, or those of a kind."""
    found = [entry for entry in entries(log.times) if "event" in entry]
    return [entry for entry in found if event in (None, entry["event"])]


@pytest.fixture
def bench() -> Iterator[Bench]:
    """See Bench; its folder has a name short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="console-", dir="/tmp"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield Bench(folder, stack)
