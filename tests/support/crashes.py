"""Crashes that several tests look at, each made once in a test run and kept as files."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from images.contract import Contract
from images.test_kernel.build import PAGEFILE_PATH, build_image
from images.test_kernel.registry import Settings
from tests.support.disk import DUMP_SIGNATURE, dump_in_pagefile
from tests.support.libvirt import Domain, Libvirt
from tests.support.sensor import CrashKind, content_files, sensor_driver
from tests.support.waiting import wait_for

DPC_TIMEOUT = 500
"""Milliseconds; the watchdog's default of 20 s would be most of the tests' time."""


@dataclass(frozen=True)
class Crash:
    """What could be seen of one crash from outside, and its dump.

    screen_text: the lines of the blue screen. console: all that COM1 printed until then. events:
    of the machine, until then. restarts_by_itself: resets seen while it stood at the blue screen.
    crashed_again: whether the boot after the reset button crashed before its agent answered.
    """

    folder: Path
    nonce: str
    screen_text: str
    console: str
    events: list[str]
    restarts_by_itself: int
    crashed_again: bool

    @property
    def dump(self) -> Path:
        """The dump that was in the pagefile."""
        return self.folder / "MEMORY.DMP"

    @property
    def screen(self) -> Path:
        """The blue screen as PNG."""
        return self.folder / "screen.png"


@dataclass(frozen=True)
class CrashMaker:
    """Crashes machines made by `make`; `cache` is shared by all processes of a test run."""

    cache: Path
    make: Callable[[Path], Domain]
    libvirt: Libvirt
    contract: Contract

    def crash(self, kind: CrashKind, variant: str) -> Crash:
        """A crash with the machine stopped at the blue screen; made by the first who asks."""
        folder = self.cache / f"{kind.name}-{variant}"
        folder.mkdir(parents=True, exist_ok=True)
        facts = folder / "facts.json"
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another test process may be at it
            if not facts.exists():
                crash = self._crash(folder, kind, variant)
                facts.write_text(json.dumps({**asdict(crash), "folder": None}))
        return Crash(**{**json.loads(facts.read_text()), "folder": folder})

    def _crash(self, folder: Path, kind: CrashKind, variant: str) -> Crash:
        deadlines = self.contract.deadlines
        nonce = f"{kind.name}/{variant}"
        image = build_image(
            self.libvirt.new_image_path(),
            drivers=[sensor_driver(variant, parameters={"Nonce": nonce})],
            files=content_files(kind.content),
            settings=Settings(auto_reboot=False, dpc_timeout_milliseconds=DPC_TIMEOUT),
        )
        domain = self.make(image)
        with domain.disk() as disk:
            pagefile = disk.extents(PAGEFILE_PATH)[0][0]
        domain.start()
        if kind.trigger:
            domain.wait_for_agent(deadlines.boot_to_agent)
            kind.trigger(domain)
        domain.wait_for_crash(deadlines.boot_to_agent)
        wait_for(
            "the dump's first sector, which is written last",
            lambda: domain.disk_bytes_at(pagefile, 512).startswith(DUMP_SIGNATURE),
            deadlines.dump_writing,
        )
        wait_for(
            "the screen to say so",
            lambda: "dump complete" in domain.screen_text(),
            deadlines.dump_writing,
        )
        domain.screenshot(folder / "screen.png")
        screen_text, console, events = domain.screen_text(), domain.console(), domain.events()
        with domain.disk() as disk:
            (folder / "MEMORY.DMP").write_bytes(dump_in_pagefile(disk.read(PAGEFILE_PATH)))
        restarts = domain.reset_events()
        domain.reset()
        domain.wait_for_restart(deadlines.boot_to_agent, restarts)
        wait_for(
            "the next boot's agent or crash",
            lambda: domain.crash_count() > 1 or domain.agent_answers(),
            deadlines.boot_to_agent,
        )
        crashed_again = domain.crash_count() > 1
        domain.destroy()
        return Crash(folder, nonce, screen_text, console, events, restarts, crashed_again)
