"""The [power.NAME] tables of docs/power.md for other people's programs, as they stand there."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import textwrap
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from lab.power.base import NoEffectError, OutletError, PowerState, UnreachableError, Witness
from lab.power.devices import open_device
from lab.power.outlet import Outlet
from tests.integration.power.snmpd import COMMUNITY, SnmpPdu
from tests.support.emulators import emulator_environment
from tests.support.waiting import wait_for

pytestmark = pytest.mark.metal
PAGE = Path(__file__).parents[3] / "docs/power.md"
ON, OFF = PowerState.ON, PowerState.OFF
START_DEADLINE = 60.0
QUICK = {"poll_seconds": 0.1, "steady_readings": 2, "deadline_seconds": 4, "pause_seconds": 0.1}


def example(name: str, **changes: str) -> dict[str, Any]:
    """A table of the page, with some words of it changed to what is there in a test."""
    blocks = re.findall(rf"^    \[power\.{name}\]\n(?:(?:    .*)?\n)+", PAGE.read_text(), re.M)
    assert len(blocks) == 1
    text = textwrap.dedent(blocks[0])
    for word, other in changes.items():
        assert word in text
        text = text.replace(word, other)
    table: dict[str, Any] = tomllib.loads(text)["power"][name]
    return {**table, "timing": QUICK}


def outlet_of(table: dict[str, Any], outlet: str, witness: Witness | None = None) -> Outlet:
    device = open_device("example", table, lambda _: SecretStr(COMMUNITY))
    return Outlet(device, outlet, lambda _: None, witness=witness)


def free_tcp_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def running(folder: Path, name: str, *command: str | Path) -> Iterator[None]:
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def test_fence_agents(pdu_of: Callable[[str], SnmpPdu]) -> None:
    pdu = pdu_of("apc-rpdu")
    there = {"ip=pdu-b.lab.example": f"ip=127.0.0.1\nipport={pdu.port}"}
    outlet = outlet_of(example("rack-b", **there), "machine-3")
    assert (outlet.status().found, outlet.off().found, outlet.status().found) == (ON, OFF, OFF)
    assert not pdu.is_on("3")
    pdu.kill()
    try:
        with pytest.raises(UnreachableError, match="No Response"):
            outlet.status()
    finally:
        pdu.start()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SnmpPdu]:
    """A labgrid place called m1, acquired; its outlet is the third of a PDU."""
    programs = emulator_environment("labgrid") / "bin"
    address = f"127.0.0.1:{free_tcp_port()}"
    monkeypatch.setenv("LG_COORDINATOR", address)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")

    def client(*arguments: str) -> str:
        done = subprocess.run(["labgrid-client", *arguments], capture_output=True, text=True)
        return done.stdout

    with ExitStack() as stack:
        # labgrid's driver for APC knows one community.
        pdu = stack.enter_context(SnmpPdu("apc-masterswitch", community="private"))
        export = {"model": "apc", "host": f"127.0.0.1:{pdu.port}", "index": "3"}
        (tmp_path / "export.yaml").write_text(json.dumps({"rack": {"NetworkPowerPort": export}}))
        coordinator = programs / "labgrid-coordinator"
        stack.enter_context(running(tmp_path, "coordinator", coordinator, "-l", address))
        wait_for("the coordinator", lambda: "help" not in client("places"), START_DEADLINE)
        exporter: list[str | Path] = [
            programs / "labgrid-exporter",
            "--hostname",
            "here",
            "--name",
            "here",
        ]
        stack.enter_context(running(tmp_path, "exporter", *exporter, tmp_path / "export.yaml"))
        wait_for("the export", lambda: "here/rack" in client("resources"), START_DEADLINE)
        client("-p", "m1", "create")
        client("-p", "m1", "add-match", "here/rack/*")
        assert "acquired" in client("-p", "m1", "acquire")
        yield pdu


def test_labgrid(place: SnmpPdu) -> None:
    outlet = outlet_of(example("labgrid"), "m1")
    assert (outlet.status().found, outlet.off().found) == (ON, OFF)
    assert not place.is_on("3")
    assert outlet.on().found is ON
    place.behave("lies")
    with pytest.raises(NoEffectError):  # labgrid itself says nothing
        outlet.off()
    with pytest.raises(UnreachableError, match="no-such-place"):
        outlet_of(example("labgrid"), "no-such-place").status()


@pytest.fixture
def pdudaemon(tmp_path: Path, pdu_of: Callable[[str], SnmpPdu]) -> Iterator[tuple[SnmpPdu, int]]:
    """pdudaemon in front of a PDU, and its port."""
    pdu, port = pdu_of("apc-rpdu"), free_tcp_port()
    order = (
        f"snmpset -v2c -c {COMMUNITY} -t 1 -r 0 127.0.0.1:{pdu.port}"
        " .1.3.6.1.4.1.318.1.1.12.3.3.1.1.4.%s i"
    )
    driver = {"driver": "localcmdline", "cmd_on": f"{order} 1", "cmd_off": f"{order} 2"}
    settings = {
        "daemon": {"hostname": "127.0.0.1", "port": port, "listener": "http"},
        "pdus": {"pdu-c": {**driver, "retries": 1, "retrydelay": 0}},
    }
    (tmp_path / "conf").write_text(json.dumps(settings))

    def answers() -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5)
        except urllib.error.HTTPError:
            return True  # it has no such page
        except OSError:
            return False
        return True

    program = emulator_environment("pdudaemon") / "bin/pdudaemon"
    with running(tmp_path, "pdudaemon", program, "--conf", tmp_path / "conf"):
        wait_for("pdudaemon", answers, START_DEADLINE)
        yield pdu, port


def test_pdudaemon(pdudaemon: tuple[SnmpPdu, int]) -> None:
    pdu, port = pdudaemon
    table = example("pdudaemon", **{"16421": str(port)})
    with pytest.raises(OutletError, match="has no witness"):
        outlet_of(table, "3").off()
    assert pdu.is_on("3")
    witness = Witness("BMC of m1", lambda: ON if pdu.is_on("3") else OFF)
    result = outlet_of(table, "3", witness).off()
    assert (result.found, result.said_by, pdu.is_on("3")) == (OFF, "BMC of m1", False)
    pdu.reset()
    pdu.behave("lies")
    with pytest.raises(NoEffectError, match="BMC of m1 said on"):
        outlet_of(table, "3", witness).off()
