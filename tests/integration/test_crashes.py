"""Every kind of crash with every variant of the sensor, as it is seen from outside."""

from __future__ import annotations

import re

import pytest
from PIL import Image

from images.contract import Contract
from images.test_kernel.build import build_image
from tests.integration.conftest import CrashFactory, MachineFactory
from tests.oracle.readers import KernelDump
from tests.support.libvirt import Libvirt
from tests.support.sensor import CRASHES, KINDS, content_files, load_content, sensor_driver
from tests.support.waiting import wait_for

every_crash = pytest.mark.parametrize(("kind", "variant"), CRASHES)
BLUE = bytes((0, 0, 168))  # colour 1 of the VGA palette


@every_crash
def test_the_dump_bears_the_stop_code(crash_of: CrashFactory, kind: str, variant: str) -> None:
    assert KernelDump(crash_of(kind, variant).dump).bug_check_code == KINDS[kind].stop_code


@every_crash
def test_the_screen_is_blue_and_says_why(crash_of: CrashFactory, kind: str, variant: str) -> None:
    crash = crash_of(kind, variant)
    with Image.open(crash.screen) as screen:
        pixels = screen.convert("RGB").tobytes()
    blue = sum(pixels[at : at + 3] == BLUE for at in range(0, len(pixels), 3))
    assert blue > 0.8 * len(pixels) / 3
    dump = KernelDump(crash.dump)
    shown = [int(number, 16) for number in re.findall(r"0x([0-9A-F]{8,16})\b", crash.screen_text)]
    assert shown[:5] == [dump.bug_check_code, *dump.bug_check_parameters]
    assert ("sensor.sys" in crash.screen_text) == bool(KINDS[kind].frames)


@every_crash
def test_hypervisor_and_console_are_told(crash_of: CrashFactory, kind: str, variant: str) -> None:
    crash = crash_of(kind, variant)
    assert sum("Crashed Crashloaded" in line for line in crash.events) == 1
    assert not [line for line in crash.events if "Panicked" in line]
    assert "\r\r" not in crash.console
    (stop_code,) = re.findall(
        r'<INSTANCE CLASSNAME="BLUESCREEN">\s*'
        r'<PROPERTY NAME="STOPCODE" TYPE="string"><VALUE>"0x([0-9A-F]+)"</VALUE>',
        crash.console,
    )
    assert int(stop_code, 16) == KINDS[kind].stop_code


@every_crash
def test_it_waits_for_the_reset_button_and_boots(
    crash_of: CrashFactory, kind: str, variant: str
) -> None:
    crash = crash_of(kind, variant)
    assert crash.restarts_by_itself == 0  # AutoReboot is off
    # What is on the disk crashes the next boot, too; a key or an NMI does not come again. Freed
    # memory is used and the hang begins by a timer: the agent may be quicker.
    if kind not in {"freed", "hang"}:
        assert crash.crashed_again == (KINDS[kind].trigger is None)


def test_bounds_check_survives_the_killer(
    libvirt: Libvirt, domain_of: MachineFactory, contract: Contract
) -> None:
    image = build_image(
        libvirt.new_image_path(), drivers=[sensor_driver("b-o2")], files=content_files("killer")
    )
    domain = domain_of(image)
    domain.start()
    domain.wait_for_agent(contract.deadlines.boot_to_agent)
    # Each program that runs is a process creation for the sensor to evaluate.
    for _ in range(5):
        assert domain.execute(r"C:\Windows\System32\sc.exe", "query", "sensor").exit_code == 0
    assert domain.crash_count() == 0
    assert domain.reset_events() == 0


def test_killer_beside_a_running_sensor_crashes_it(
    libvirt: Libvirt, domain_of: MachineFactory, contract: Contract
) -> None:
    image = build_image(
        libvirt.new_image_path(), drivers=[sensor_driver("a-o2")], files=content_files("benign")
    )
    domain = domain_of(image)
    domain.start()
    domain.wait_for_agent(contract.deadlines.boot_to_agent)
    load_content(domain, "killer")
    domain.wait_for_crash(contract.deadlines.boot_to_agent)
    domain.wait_for_restart(contract.deadlines.dump_writing)
    # The file is on the disk now: the next boot crashes on it.
    wait_for("the next crash", lambda: domain.crash_count() > 1, contract.deadlines.boot_to_agent)
