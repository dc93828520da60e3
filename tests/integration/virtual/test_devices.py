"""What can be seen of a machine and pressed: screen, keys, console, COM2, memory, disk."""

from __future__ import annotations

import io
import json
import socket
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from PIL import Image as Picture

from images.contract import Contract
from lab.backend import BackendError, Image
from lab.signals import SignalKind
from lab.virtual.screen import as_png
from tests.integration.virtual.conftest import Slot, SlotFactory
from tests.oracle.readers import KernelDump
from tests.support.waiting import wait_for

ECHO_PLUS_ONE = bytes.fromhex("bafd02 ec a801 74f8 baf802 ec fec0 ee ebef")
"""A boot sector: read COM2's line status until a byte is there; send it back, plus one; again."""


def disk_of(code: bytes, path: Path) -> Path:
    """A disk whose boot sector is `code`."""
    raw = path.with_suffix(".raw")
    raw.write_bytes(code.ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(raw), str(path)], check=True)
    return path


def test_screenshot_is_a_png(slot: Slot) -> None:
    slot.boot()
    with Picture.open(io.BytesIO(slot.backend.screenshot())) as picture:
        assert picture.format == "PNG"
        assert picture.size == (720, 400)


def test_ppm_screenshots_become_png() -> None:
    pixels = bytes(range(2 * 3 * 3))
    with Picture.open(io.BytesIO(as_png(b"P6\n2 3\n255\n" + pixels))) as picture:
        assert (picture.format, picture.size, picture.tobytes()) == ("PNG", (2, 3), pixels)
    with pytest.raises(BackendError, match="ends before"):
        as_png(b"P6\n2 3\n255\n" + pixels[:-1])
    with pytest.raises(BackendError, match="neither PNG nor PPM"):
        as_png(b"JFIF")


def test_crash_keys(slot: Slot) -> None:
    slot.boot()
    slot.backend.press_keys(slot.contract.keyboard.crash_keys)
    slot.heard(SignalKind.BUG_CHECK, 1, slot.contract.deadlines.dump_writing)


def test_unknown_key_is_named(slot: Slot) -> None:
    with pytest.raises(BackendError, match=r"no key is called any-key;.*scroll-lock"):
        slot.backend.press_keys(["enter", "any-key"])


def test_console_log_grows_over_power_ons_and_says_when(slot: Slot) -> None:
    began = datetime.now(UTC)
    logs = []
    for boot in (1, 2):
        slot.boot()
        slot.backend.nmi()
        slot.heard(SignalKind.RESTART, boot)
        logs.append(slot.backend.console_log().read_bytes())
    assert logs[0].count(b'"0x80"') == 1
    assert logs[1].startswith(logs[0])
    assert logs[1].count(b'"0x80"') == 2
    lines = (slot.folder / "console.times.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    offsets = [entry["offset"] for entry in entries]
    assert offsets[0] == 0
    assert offsets == sorted(set(offsets))
    assert len(logs[0]) in offsets
    times = [datetime.fromisoformat(entry["at"]) for entry in entries]
    crash = slot.signals.of(SignalKind.BUG_CHECK)[0].at
    assert began < times[0] < crash + timedelta(seconds=5)
    assert times == sorted(times)


@pytest.fixture
def echo(slot_of: SlotFactory, store: Path, contract: Contract) -> Slot:
    """A machine that answers each byte on COM2."""
    return slot_of(Image("echo", contract, disk_of(ECHO_PLUS_ONE, store / "echo.qcow2")))


def test_debugger_port_is_com2(echo: Slot) -> None:
    host, port = echo.backend.debugger_port().split(":")
    with socket.create_connection((host, int(port)), timeout=20) as debugger:

        def answers() -> bool:
            debugger.sendall(b"A")
            debugger.settimeout(0.3)
            try:
                return debugger.recv(100).startswith(b"B")
            except TimeoutError:
                return False

        for _ in range(2):  # the debugger stays connected while the machine is off
            echo.backend.start(hold_restart=True)
            wait_for("COM2 to answer", answers, echo.contract.deadlines.boot_to_agent)
            echo.backend.power_off()
        assert echo.backend.debugger_port() == f"{host}:{port}"
    echo.backend.dispose(keep_disk=False)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5)


def test_memory_of_the_running_machine(echo: Slot) -> None:
    echo.backend.start(hold_restart=True)
    wait_for(
        "the boot sector at its place",
        lambda: echo.backend.read_memory(0x7C00, 510).startswith(ECHO_PLUS_ONE),
        echo.contract.deadlines.boot_to_agent,
    )
    low = echo.backend.read_memory(0, 0x20000)  # more than libvirt reads at once
    assert len(low) == 0x20000
    assert low[0x7C00:].startswith(ECHO_PLUS_ONE)


def test_dumps_taken_by_the_hypervisor(slot: Slot, tmp_path: Path) -> None:
    slot.boot()
    windows, elf = tmp_path / "memory.dmp", tmp_path / "memory.elf"
    slot.backend.dump_memory(windows, "win-dmp")
    slot.backend.dump_memory(elf, "elf")
    dump = KernelDump(windows)
    assert (dump.dump_type, dump.build) == (1, slot.contract.os.build)
    assert elf.read_bytes()[:4] == b"\x7fELF"
    with pytest.raises(BackendError, match=r"memory\.elf exists already"):
        slot.backend.dump_memory(elf, "elf")
    assert slot.backend.is_on()


def test_bytes_written_grow_with_a_dump(slot: Slot) -> None:
    slot.boot(hold_restart=False)
    before = slot.backend.disk_bytes_written()
    slot.backend.nmi()
    slot.heard(SignalKind.AGENT_UP, 2)
    assert slot.backend.disk_bytes_written() > before + (1 << 19)


def test_disk_of_a_running_machine_is_read_only_and_its_base_is_untouched(slot: Slot) -> None:
    before = slot.image.base.read_bytes()
    slot.boot()
    slot.backend.nmi()
    slot.heard(SignalKind.RESTART, 1)
    slot.boot()
    with slot.backend.disk() as disk:
        assert disk.read(510, 2) == b"\x55\xaa"
    assert slot.image.base.read_bytes() == before
    assert slot.backend.disk_overlay().parent == slot.folder
