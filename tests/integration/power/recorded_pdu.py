"""Real APC units as they were recorded: snmpsim with snmpsim-data's recordings, made writable."""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.integration.power.snmpd import FACTS, free_port
from tests.support.emulators import emulator_environment
from tests.support.waiting import wait_for

RECORDINGS = {"AP7902B": "apc-7902b", "AP8641": "apc-8641", "AP8932": "apc-8932"}
"""By model: snmpsim-data's files. The model's name is the community that reaches it."""
START_DEADLINE = 60.0
"""It indexes its files first."""
VARIATION = Path(__file__).with_name("snmpsim_variation")
SYS_OBJECT_ID = "1.3.6.1.2.1.1.2.0"


class RecordedPdus:
    """All recordings behind 127.0.0.1:`port`, each by its own community; a context manager.

    Whatever a unit has besides its relays is answered as it was recorded. All its outlets are on in
    the beginning.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self._folder = tempfile.TemporaryDirectory(prefix="recorded-pdus-")

    def __enter__(self) -> Self:
        environment, folder = emulator_environment("snmpsim"), Path(self._folder.name)
        (data := folder / "data").mkdir()
        recorded = next(environment.glob("lib/python*/site-packages/snmpsim_data/data/UPS"))
        for model, name in RECORDINGS.items():
            lines = (recorded / f"{name}.snmprec").read_text().splitlines()
            (data / f"{model}.snmprec").write_text("\n".join(map(_writable, lines)) + "\n")
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    environment / "bin/snmpsim-command-responder",
                    f"--data-dir={data}",
                    f"--cache-dir={folder / 'cache'}",
                    f"--variation-modules-dir={VARIATION}",
                    f"--agent-udpv4-endpoint=127.0.0.1:{self.port}",
                    f"--process-user={pwd.getpwuid(os.getuid()).pw_name}",
                    f"--process-group={grp.getgrgid(os.getgid()).gr_name}",
                ],
                stdout=log,
                stderr=log,
            )
        wait_for("snmpsim", lambda: self.value("AP7902B", SYS_OBJECT_ID), START_DEADLINE)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def value(self, model: str, oid: str) -> str:
        """What net-snmp's client reads of an object; empty while there is no answer."""
        assert self._process.poll() is None, (Path(self._folder.name) / "log").read_text()
        asked = ["snmpget", "-v2c", "-c", model, "-t", "2", "-r", "0", "-Oqvn"]
        command = [*asked, f"127.0.0.1:{self.port}", f".{oid}"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def _relay_objects() -> dict[str, tuple[int, int]]:
    """Columns of APC's three trees: what on and off are in each."""
    found: dict[str, tuple[int, int]] = {}
    for family in ("apc-masterswitch", "apc-rpdu", "apc-rpdu2"):
        facts = FACTS[family]
        state, objects = facts["state"], facts["objects"]
        values = objects[state["object"]]["values"]
        found[objects[state["object"]]["oid"]] = values[state["on"]], values[state["off"]]
        order = objects[facts["order_on"]["object"]]
        on, off = facts["order_on"]["value"], facts["order_off"]["value"]
        found[order["oid"]] = order["values"][on], order["values"][off]
    return found


RELAY_OBJECTS = _relay_objects()


def _writable(line: str) -> str:
    """A line of a recording; one of a relay is left to relay.py."""
    oid, tag, _ = line.split("|", 2)
    column, _, outlet = oid.rpartition(".")
    if column not in RELAY_OBJECTS:
        return line
    on, off = RELAY_OBJECTS[column]
    return f"{oid}|{tag.partition(':')[0]}:relay|outlet={outlet},on={on},off={off}"
