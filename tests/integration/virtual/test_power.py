"""Power and what is heard: boots, bug checks, restarts held and not held, who switched it off."""

from __future__ import annotations

from pathlib import Path

import pytest

import lab.virtual.libvirt
from images.contract import Contract
from images.test_kernel.build import PAGEFILE_PATH, build_image
from images.test_kernel.registry import CrashDump, Settings
from lab.backend import BackendError, Image
from lab.disks.files import open_files
from lab.signals import SignalKind
from tests.integration.virtual.conftest import Slot, SlotFactory
from tests.support.disk import dump_in_pagefile
from tests.support.sensor import content_files, sensor_driver


def test_restart_after_a_bug_check_is_held(slot: Slot) -> None:
    boot = slot.boot()
    slot.backend.nmi()
    restart = slot.heard(SignalKind.RESTART, boot, slot.contract.deadlines.dump_writing)
    assert restart.detail == "guest-reset"
    assert not slot.backend.is_on()
    assert [s.kind for s in slot.signals.all()] == [
        SignalKind.POWER_ON,
        SignalKind.AGENT_UP,
        SignalKind.BUG_CHECK,
        SignalKind.RESTART,
    ]
    with open_files(slot.backend.disk()) as files:
        staged = files.read(PAGEFILE_PATH, 0, slot.contract.dump.staged_bytes)
        assert len(dump_in_pagefile(staged)) > 1 << 19
    assert slot.boot() == 2
    slot.backend.power_off()
    assert slot.heard(SignalKind.POWER_OFF, 2, 1).detail == "lab"


def test_each_boot_of_a_free_machine_counts_once(slot: Slot) -> None:
    slot.boot(hold_restart=False)
    slot.run("shutdown.exe", "/r", "/t", "0")
    slot.heard(SignalKind.AGENT_UP, 2)
    slot.backend.nmi()
    slot.heard(SignalKind.AGENT_UP, 3)
    slot.backend.reset()
    slot.heard(SignalKind.AGENT_UP, 4)
    restarts = slot.signals.of(SignalKind.RESTART)
    assert [(s.boot, s.detail) for s in restarts] == [
        (1, "guest-reset"),
        (2, "guest-reset"),
        (3, "lab"),
    ]
    assert [s.boot for s in slot.signals.of(SignalKind.BUG_CHECK)] == [2]
    assert slot.signals.boot == 4


def test_boot_loop_has_one_bug_check_a_boot(
    slot_of: SlotFactory, store: Path, contract: Contract
) -> None:
    disk = build_image(
        store / "killer.qcow2", drivers=[sensor_driver("a-o2")], files=content_files("killer")
    )
    slot = slot_of(Image("killer", contract, disk))
    slot.backend.start(hold_restart=False)
    slot.heard(SignalKind.BUG_CHECK, 6)
    slot.backend.power_off()
    boots = [s.boot for s in slot.signals.of(SignalKind.BUG_CHECK)]
    assert boots[:6] == [1, 2, 3, 4, 5, 6]
    assert not slot.signals.of(SignalKind.AGENT_UP)


def test_holding_is_switched_while_it_runs(slot: Slot) -> None:
    slot.boot(hold_restart=False)
    slot.backend.hold_restart(True)
    slot.run("shutdown.exe", "/r", "/t", "0")
    slot.heard(SignalKind.RESTART, 1)
    assert not slot.backend.is_on()
    slot.boot(hold_restart=True)
    slot.backend.hold_restart(False)
    slot.run("shutdown.exe", "/r", "/t", "0")
    slot.heard(SignalKind.AGENT_UP, 3)


@pytest.mark.parametrize("watch_seconds", [lab.virtual.libvirt.WATCH_SECONDS, 60])
def test_reset_button_boots_and_the_next_restart_is_held(
    slot: Slot, monkeypatch: pytest.MonkeyPatch, watch_seconds: float
) -> None:
    """Also where the lab causes it before the watcher has looked."""
    monkeypatch.setattr(lab.virtual.libvirt, "WATCH_SECONDS", watch_seconds)
    slot.boot()
    slot.backend.reset()
    slot.heard(SignalKind.AGENT_UP, 2)
    slot.backend.nmi()
    slot.heard(SignalKind.RESTART, 2)
    assert not slot.backend.is_on()
    assert slot.signals.boot == 2


def test_guest_that_shuts_down_says_so(slot: Slot) -> None:
    slot.boot()
    slot.run("shutdown.exe", "/s", "/t", "0")
    off = slot.heard(SignalKind.POWER_OFF, 1, slot.contract.deadlines.shutdown)
    assert off.detail == "guest-shutdown"


def test_power_button(slot: Slot) -> None:
    slot.boot()
    slot.backend.press_power_button()
    off = slot.heard(SignalKind.POWER_OFF, 1, slot.contract.deadlines.shutdown)
    assert off.detail == "guest-shutdown"


def test_machine_stopped_by_a_panic_keeps_its_power(
    slot_of: SlotFactory, store: Path, contract: Contract
) -> None:
    disk = build_image(store / "panics.qcow2", settings=Settings(dump=CrashDump.NONE))
    slot = slot_of(Image("panics", contract, disk))
    slot.boot()
    slot.backend.nmi()
    slot.heard(SignalKind.PANICKED, 1, contract.deadlines.dump_writing)
    assert slot.backend.is_on()
    assert not slot.signals.of(SignalKind.BUG_CHECK, SignalKind.RESTART, SignalKind.POWER_OFF)
    slot.backend.power_off()
    assert not slot.backend.is_on()


def test_power_off_of_a_machine_that_is_off(slot: Slot) -> None:
    slot.backend.power_off()
    assert slot.signals.all() == []
    with pytest.raises(BackendError, match=r"NMI to lab-slot-\d+-run-\d+ .*start it first"):
        slot.backend.nmi()


def test_second_start_is_refused(slot: Slot) -> None:
    slot.boot()
    with pytest.raises(BackendError, match="on already"):
        slot.backend.start(hold_restart=True)
    assert slot.signals.boot == 1
