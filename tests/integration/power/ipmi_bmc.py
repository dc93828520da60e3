"""A BMC by IPMI: OpenIPMI's ipmi_sim, whose chassis is a shell script with good or bad manners."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

from fixtures.power_bench import Mode
from tests.support.waiting import wait_for

USER, PASSWORD = "lab", "of-the-bmc"
WATCHER, WATCHERS_PASSWORD = "watcher", "may-look"
START_DEADLINE = 20.0
CHASSIS = """\
#!/bin/sh
# ipmi_sim runs it as: chassis get|set WHAT [VALUE]. The files here are what a test and it tell each
# other: mode, power, coming and due (of a slow order), flips, orders, neighbor.
cd "$(dirname "$0")"
read mode seconds < mode
now() { date +%s%N | cut -c1-13; }
case "$1 $2" in
"get power")
    [ "$mode" = late ] && sleep "$seconds"
    if [ -e due ] && [ "$(now)" -ge "$(cat due)" ]; then mv coming power; rm due; fi
    if [ -e flips ]; then
        echo x >> flips
        echo "power:$(($(wc -l < flips) % 2))"
    else
        echo "power:$(cat power)"
    fi;;
"set power")
    echo "$3" >> orders
    case "$mode" in
    good|late) echo "$3" > power;;
    slow) echo "$3" > coming; echo $(($(now) + seconds)) > due;;
    flapping) : > flips;;
    wrong) echo "$3" > neighbor;;
    locked) exit 1;;
    restarts)
        echo good 0 > mode
        (kill -STOP "$(cat pid)"; sleep "$seconds"; kill -CONT "$(cat pid)") > /dev/null 2>&1 &;;
    esac;;
"get boot") echo "boot:$(cat boot)";;
"set boot") [ "$mode" = lies ] || echo "$3" > boot;;
"set reset") echo reset >> orders;;
"set identify") echo "$*" > light;;
esac
"""


class IpmiSim:
    """One BMC on UDP 127.0.0.1:`port`, good and on; a context manager."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ipmi-"))
        self.port = free_udp_port()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        folder = self._folder
        script = folder / "chassis"
        script.write_text(CHASSIS)
        script.chmod(0o755)
        (folder / "lan.conf").write_text(
            f"""\
name "box"
set_working_mc 0x20
  startlan 1
    addr 127.0.0.1 {self.port}
    priv_limit admin
    guid a123456789abcdefa123456789abcdef
  endlan
  chassis_control "{script}"
  user 2 true "{USER}" "{PASSWORD}" admin 10 none
  user 3 true "{WATCHER}" "{WATCHERS_PASSWORD}" user 10 none
"""
        )
        (folder / "bmc.emu").write_text(
            "mc_setbmc 0x20\n"
            "mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr\n"
            "mc_enable 0x20\n"
        )
        (folder / "state").mkdir()
        self.reset()
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *("ipmi_sim", "-c", folder / "lan.conf", "-f", folder / "bmc.emu"),
                    *("-s", folder / "state", "-n"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        (folder / "pid").write_text(str(self._process.pid))
        wait_for("ipmi_sim", self._answers, START_DEADLINE)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder)

    def reset(self) -> None:
        """Good and on, with nothing ordered."""
        for name in ("coming", "due", "flips", "orders", "light"):
            (self._folder / name).unlink(missing_ok=True)
        for name, text in {"power": "1", "neighbor": "1", "boot": "none"}.items():
            (self._folder / name).write_text(text)
        self.behave("good")

    def behave(self, mode: Mode, seconds: float = 0.0) -> None:
        """What it does from now on."""
        # The shell has whole milliseconds for what it adds to the time, else seconds to sleep.
        given = f"{seconds * 1000:.0f}" if mode == "slow" else f"{seconds:g}"
        (self._folder / "mode").write_text(f"{mode.split()[0]} {given}\n")
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGSTOP if mode == "dead" else signal.SIGCONT)

    def is_on(self) -> bool:
        """What the chassis truly is."""
        due = self._read("due")
        if due and time.time() * 1000 >= int(due):
            return self._read("coming") == "1"
        return self._read("power") == "1"

    def neighbor_is_on(self) -> bool:
        """What the machine is that it switches by mistake."""
        return self._read("neighbor") == "1"

    @property
    def orders(self) -> list[str]:
        """Orders so far: "1", "0" or "reset"."""
        return self._read("orders").split()

    @property
    def light(self) -> bool:
        """Whether the identify light is on."""
        return self._read("light").endswith(" 1")  # seconds, and whether for ever

    def _read(self, name: str) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self._folder / name).read_text().strip()
        return ""

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "log").read_text()
        return is_rmcp_there(self.port)


def is_rmcp_there(port: int) -> bool:
    """Whether a BMC answers Get Channel Authentication Capabilities (IPMI v2.0, 22.13)."""
    request = bytes.fromhex("0600ff07 00000000000000000009 2018c88100388e04b5".replace(" ", ""))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.settimeout(0.2)
        with contextlib.suppress(OSError):  # nobody listens, or nothing came
            one.sendto(request, ("127.0.0.1", port))
            return bool(one.recv(100))
    return False


def free_udp_port() -> int:
    """A UDP port of loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
