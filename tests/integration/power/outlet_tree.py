"""The outlets of an emulated PDU: a pass_persist program of net-snmp's snmpd, good or bad.

It serves the objects that mib_facts.toml gives a family, and behaves as its folder says:
`behavior.json` is what a test writes, `relays.json` what this program did. Run by snmpd as
`python outlet_tree.py FOLDER`; the protocol is in snmpd.conf(5), MIB-specific extension commands.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Mode = Literal[
    "good", "lies", "slow", "flapping", "late", "refuses", "locked", "wrong outlet", "restarts"
]
Kind = Literal["text", "state", "order", "lock"]


@dataclass
class Behavior:
    """What the device does. seconds: how late it follows or answers, how long it restarts."""

    mode: Mode = "good"
    seconds: float = 0.0


@dataclass
class Relays:
    """What the relays are, and what they are going to be: (state, when by time.time())."""

    on: dict[str, bool]
    coming: dict[str, tuple[bool, float]] = field(default_factory=dict)
    orders: int = 0
    """Orders that were followed or not, whatever was answered."""

    def now(self) -> dict[str, bool]:
        """What they are at this moment."""
        due = {place: state for place, (state, at) in self.coming.items() if at <= time.time()}
        return {**self.on, **due}


@dataclass
class Column:
    """A column of the outlet table.

    values: {"on": 1, "off": 2} of a state or of orders that this object takes; {"locked": 2,
    "free": 1} of a lock. texts: by row. reads_state: an order's object that reads as the state, in
    the order's own values; others read as 0.
    """

    oid: str
    kind: Kind
    values: dict[str, int] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    reads_state: bool = False


class Folder:
    """What a test and this program tell each other."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def columns(self) -> list[Column]:
        return [Column(**one) for one in json.loads((self._path / "columns.json").read_text())]

    def write_columns(self, columns: list[Column]) -> None:
        self._write("columns.json", [asdict(one) for one in columns])

    @property
    def behavior(self) -> Behavior:
        return Behavior(**json.loads((self._path / "behavior.json").read_text()))

    @behavior.setter
    def behavior(self, behavior: Behavior) -> None:
        self._write("behavior.json", asdict(behavior))

    @property
    def relays(self) -> Relays:
        found = json.loads((self._path / "relays.json").read_text())
        coming = {place: (state, at) for place, (state, at) in found.pop("coming").items()}
        return Relays(coming=coming, **found)

    @relays.setter
    def relays(self, relays: Relays) -> None:
        self._write("relays.json", asdict(relays))

    def _write(self, name: str, content: object) -> None:
        part = self._path / f"{name}.part"
        part.write_text(json.dumps(content))
        part.rename(self._path / name)  # a reader sees the old one or the new one


def _numbers(oid: str) -> tuple[int, ...]:
    return tuple(int(part) for part in oid.strip(".").split("."))


class Tree:
    """Answers of the table."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._columns = folder.columns()
        places = list(folder.relays.on)
        cells = [(column, place) for column in self._columns for place in places]
        self._cells = {
            _numbers(f"{column.oid}.{place}"): (column, place) for column, place in cells
        }
        self._order = sorted(self._cells)
        self._flapping = ""
        self._flips = 0

    def get(self, oid: str) -> list[str]:
        number = _numbers(oid)
        if number not in self._cells:
            return ["NONE"]
        return self._answer(number)

    def get_next(self, oid: str) -> list[str]:
        number = _numbers(oid)
        following = next((one for one in self._order if one > number), None)
        return ["NONE"] if following is None else self._answer(following)

    def set(self, oid: str, value: str) -> str:
        number = _numbers(oid)
        if number not in self._cells:
            return "not-writable"
        column, place = self._cells[number]
        if column.kind != "order":
            return "not-writable"
        kind, _, text = value.partition(" ")
        if kind != "integer":
            return "wrong-type"
        wanted = {"on": True, "off": False}
        named = {number: wanted[name] for name, number in column.values.items()}
        if int(text) not in named:
            return "wrong-value"
        return self._follow(place, named[int(text)])

    def _answer(self, number: tuple[int, ...]) -> list[str]:
        column, place = self._cells[number]
        value: Any
        if column.kind == "text":
            value, kind = column.texts[place], "string"
        else:
            kind = "integer"
            on = self._is_on(place)
            if column.kind == "state" or column.reads_state:
                value = column.values["on" if on else "off"]
            elif column.kind == "lock":
                locked = self._folder.behavior.mode == "locked"
                value = column.values["locked" if locked else "free"]
            else:
                value = 0
        return ["." + ".".join(map(str, number)), kind, str(value)]

    def _is_on(self, place: str) -> bool:
        if self._folder.behavior.mode == "flapping" and place == self._flapping:
            self._flips += 1
            return self._flips % 2 == 0
        return self._folder.relays.now()[place]

    def _follow(self, place: str, on: bool) -> str:
        behavior, relays = self._folder.behavior, self._folder.relays
        has_lock = any(column.kind == "lock" for column in self._columns)
        if behavior.mode == "refuses" or (behavior.mode == "locked" and not has_lock):
            return "not-writable"
        relays.orders += 1
        relays.on, relays.coming = relays.now(), {
            one: coming for one, coming in relays.coming.items() if coming[1] > time.time()
        }  # fmt: skip
        if behavior.mode == "slow":
            relays.coming[place] = (on, time.time() + behavior.seconds)
        elif behavior.mode == "wrong outlet":
            places = list(relays.on)
            relays.on[places[(places.index(place) + 1) % len(places)]] = on
        elif behavior.mode == "flapping":
            self._flapping = place
        elif behavior.mode in {"good", "late"}:
            relays.on[place] = on
        self._folder.relays = relays
        if behavior.mode == "restarts":
            self._restart(behavior)
        return "DONE"

    def _restart(self, behavior: Behavior) -> None:
        """The whole device is silent for a while, and what it was ordered is forgotten."""
        self._folder.behavior = Behavior()
        snmpd = os.getppid()
        wake_up = f"kill -STOP {snmpd}; sleep {behavior.seconds:g}; kill -CONT {snmpd}"
        subprocess.Popen(["/bin/sh", "-c", wake_up])


def main() -> None:
    """Answers snmpd until it closes the pipe."""
    folder = Folder(Path(sys.argv[1]))
    tree = Tree(folder)
    # snmpd 5.9 sends an empty line after each "set".
    lines = (line.rstrip("\n") for line in sys.stdin if line != "\n")
    for command in lines:
        if command == "PING":
            answer = ["PONG"]
        else:
            oid = next(lines)
            value = next(lines) if command == "set" else ""
            behavior = folder.behavior
            if behavior.mode == "late" and command != "getnext":  # a walk is many of them
                time.sleep(behavior.seconds)
            if command == "set":
                answer = [tree.set(oid, value)]
            else:
                answer = tree.get(oid) if command == "get" else tree.get_next(oid)
        print("\n".join(answer), flush=True)


if __name__ == "__main__":
    main()
