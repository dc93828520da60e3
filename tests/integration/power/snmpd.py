"""Emulated PDUs that nobody of the lab wrote the SNMP of: net-snmp's snmpd over outlet_tree.py."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.integration.power import outlet_tree
from tests.integration.power.outlet_tree import Behavior, Column, Folder, Mode, Relays
from tests.support.waiting import wait_for

FACTS: dict[str, dict[str, Any]] = tomllib.loads(
    Path(__file__).with_name("mib_facts.toml").read_text(encoding="utf-8")
)
OUTLETS = 8
COMMUNITY = "may-write"
READ_COMMUNITY = "may-read"
USER, AUTH_KEY, PRIV_KEY = "labuser", "authentication", "privacy-key"
START_DEADLINE = 10.0
PREFIX = {1: "", 2: "1.", 3: "1.1."}
"""Of a row's index, by the parts an index has: one unit, tower, infeed."""


class SnmpPdu:
    """One PDU of a family on loopback, all outlets on; a context manager.

    It speaks versions 1 and 2c (COMMUNITY), and 3 (USER, SHA and AES). host, port: for clients that
    know port 161 only; a free port of 127.0.0.1 if not given.
    """

    def __init__(
        self, family: str, host: str = "127.0.0.1", port: int = 0, community: str = COMMUNITY
    ) -> None:
        self.family = family
        self._facts = FACTS[family]
        self._system: str = self._facts["product"]["oid"]
        self._folder = Path(tempfile.mkdtemp(prefix="pdu-"))
        self.host = host
        self.port = port or free_port()
        self._community = community
        self._process: subprocess.Popen[bytes] | None = None
        self._told = Folder(self._folder)

    def __enter__(self) -> Self:
        self._told.write_columns(self._columns(self.places))
        self.reset()
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        shutil.rmtree(self._folder)

    def start(self) -> None:
        """Starts snmpd, and waits until net-snmp's own client has an answer."""
        (self._folder / "snmpd.conf").write_text(
            f"sysobjectid .{self._system}\n"
            f"rwcommunity {self._community} 127.0.0.0/8\n"
            f"rocommunity {READ_COMMUNITY} 127.0.0.0/8\n"
            f"createUser {USER} SHA {AUTH_KEY} AES {PRIV_KEY}\n"
            f"rwuser {USER} priv\n"
            f"pass_persist .{_root(self._facts)}"
            f" {sys.executable} {outlet_tree.__file__} {self._folder}\n"
        )
        environment = {
            **os.environ,
            "SNMP_PERSISTENT_DIR": str(self._folder / "persistent"),
            "MIBS": "",  # none are installed, and it complains about each
        }
        self._process = subprocess.Popen(
            [
                *("snmpd", "-f", "-C", "-c", str(self._folder / "snmpd.conf")),
                *("-Lf", str(self._folder / "log"), f"udp:{self.host}:{self.port}"),
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
        )
        wait_for(f"snmpd as {self.family}", self._answers, START_DEADLINE)

    def kill(self) -> None:
        """Ends snmpd; its port is closed then."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def hang(self, hangs: bool = True) -> None:
        """Stops answering, with its port open; or goes on."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP if hangs else signal.SIGCONT)

    def reset(self) -> None:
        """Good, with all outlets on."""
        self._told.behavior = Behavior()
        self._told.relays = Relays(dict.fromkeys(self.places, True))

    def behave(self, mode: Mode, seconds: float = 0.0) -> None:
        """What it does from now on."""
        self._told.behavior = Behavior(mode, seconds)

    @contextmanager
    def product(self, system: str) -> Iterator[None]:
        """Says that it is this product (sysObjectID)."""
        own, self._system = self._system, system
        self._restart()
        yield
        self._system = own
        self._restart()

    def change_community(self, community: str) -> None:
        """Takes another one from now on; its state stays."""
        self._community = community
        self._restart()

    @contextmanager
    def named(self, names: dict[str, str]) -> Iterator[None]:
        """Outlets with these names, by row; the others keep theirs."""
        columns = self._columns(self.places)
        for column in columns:
            if column.kind == "text":
                column.texts.update(names)
        with self._table(columns):
            yield

    @contextmanager
    def states(self, values: dict[str, int]) -> Iterator[None]:
        """Its state column says these numbers for on and off."""
        columns = self._columns(self.places)
        for column in columns:
            if column.kind == "state":
                column.values = values
        with self._table(columns):
            yield

    @contextmanager
    def _table(self, columns: list[Column]) -> Iterator[None]:
        own = self._told.columns()
        self._told.write_columns(columns)
        self._restart()
        yield
        self._told.write_columns(own)
        self._restart()

    def _restart(self) -> None:
        self.kill()
        self.start()

    @property
    def places(self) -> list[str]:
        """The rows' indices."""
        prefix = PREFIX[self._facts["index_parts"]]
        return [f"{prefix}{number}" for number in range(1, OUTLETS + 1)]

    def is_on(self, place: str) -> bool:
        """What the relay truly is."""
        return self._told.relays.now()[place]

    def switch(self, place: str, on: bool) -> None:
        """Switches a relay without anybody's order."""
        relays = self._told.relays
        relays.on[place] = on
        self._told.relays = relays

    @property
    def orders(self) -> int:
        """Orders the device has got so far."""
        return self._told.relays.orders

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "log").read_text()
        command = ["snmpget", "-v1", "-c", self._community, "-t", "1", "-r", "0"]
        asked = [*command, f"{self.host}:{self.port}", ".1.3.6.1.2.1.1.2.0"]
        return subprocess.run(asked, capture_output=True).returncode == 0

    def _columns(self, places: list[str]) -> list[Column]:
        """By the roles that mib_facts.toml gives the family's objects."""
        facts, objects = self._facts, self._facts["objects"]
        columns: dict[str, Column] = {}
        for name in facts["names"]:
            texts = {place: f"machine-{number}" for number, place in enumerate(places, 1)}
            columns[name] = Column(objects[name]["oid"], "text", texts=texts)
        if printed := facts.get("printed_names"):
            texts = {place: f"{printed['start']}{n}" for n, place in enumerate(places, 1)}
            oid = objects[printed["object"]]["oid"]
            columns[printed["object"]] = Column(oid, "text", texts=texts)
        state = facts["state"]
        values = objects[state["object"]]["values"]
        columns[state["object"]] = Column(
            objects[state["object"]]["oid"],
            "state",
            {"on": values[state["on"]], "off": values[state["off"]]},
        )
        for wanted in ("on", "off"):
            order = facts[f"order_{wanted}"]
            one = objects[order["object"]]
            assert one["access"] == "read-write"
            column = columns.setdefault(order["object"], Column(one["oid"], "order"))
            column.reads_state |= facts.get("command_reads_state", False) or column.kind == "state"
            column.kind = "order"
            value = order["value"]
            column.values[wanted] = one["values"][value] if "values" in one else int(value)
        if lock := facts.get("lock"):
            values = objects[lock["object"]]["values"]
            columns[lock["object"]] = Column(
                objects[lock["object"]]["oid"],
                "lock",
                {"locked": values[lock["locked"]], "free": values[lock["free"]]},
            )
        return list(columns.values())


def _root(facts: dict[str, Any]) -> str:
    """The subtree that snmpd leaves to the outlet tree."""
    numbers = [one["oid"].split(".") for one in facts["objects"].values()]
    shared = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*numbers, strict=False))
    return ".".join(parts[0] for parts in shared)


def free_port() -> int:
    """A UDP port of 127.0.0.1 that nobody has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
