"""Machines that are not at ease: hung, at the blue screen, copying a dump; made to speak, saved."""

from __future__ import annotations

import struct

import pytest

from images.contract import Contract
from images.test_kernel.build import BUILT, MEMORY_DUMP_PATH, MIB, PAGEFILE_PATH, build_image
from images.test_kernel.registry import CrashDump, Settings
from tests.integration.conftest import MachineFactory
from tests.oracle.dbgeng import describe, judge
from tests.oracle.readers import KernelDump
from tests.support.disk import dump_in_pagefile
from tests.support.kernel_memory import processor_rip
from tests.support.libvirt import Domain, Libvirt
from tests.support.sensor import (
    KINDS,
    VARIANTS,
    built,
    content_files,
    load_content,
    loaded_drivers,
    sensor_driver,
)
from tests.support.symbols import places
from tests.support.waiting import wait_for


@pytest.fixture
def hung(libvirt: Libvirt, domain_of: MachineFactory, contract: Contract) -> tuple[Domain, int]:
    """A machine whose sensor loops at DISPATCH_LEVEL for ever, and where the sensor lies."""
    image = build_image(
        libvirt.new_image_path(),
        drivers=[sensor_driver("a-o2")],
        files=content_files("benign"),
        settings=Settings(dpc_timeout_milliseconds=0),
    )
    domain = domain_of(image, hold_restarts=True)
    domain.start()
    domain.wait_for_agent(contract.deadlines.boot_to_agent)
    base = sensor_base(domain)
    load_content(domain, "hang")
    wait_for("silence", lambda: not domain.agent_answers(), contract.deadlines.boot_to_agent)
    return domain, base


def sensor_base(domain: Domain) -> int:
    """Where driverquery says that the sensor lies."""
    return int(loaded_drivers(domain)["sensor"]["Base Address"], 16)


def crash_by_nmi(domain: Domain, contract: Contract) -> KernelDump:
    """Sends an NMI to a machine that holds its restarts; gives its dump."""
    domain.inject_nmi()
    domain.wait_for_power_off(contract.deadlines.dump_writing)
    assert domain.crash_count() == 1
    file = domain.folder / "nmi.dmp"
    with domain.disk() as disk:
        file.write_bytes(dump_in_pagefile(disk.read(PAGEFILE_PATH)))
    return KernelDump(file)


def stack_functions(dump: KernelDump, base: int) -> set[str]:
    """The sensor's functions that any stack word of the bug check's stack points into."""
    found: set[str] = set()
    size = (built("a-o2") / "sensor.sys").stat().st_size
    # The NMI has a stack of its own; the interrupted code's address is in the frame on its top.
    start = dump.registers["rsp"] & ~7
    words = dump.read(start, -start % 0x1000)
    assert words is not None
    for (word,) in struct.iter_unpack("<Q", words):
        if base <= word < base + 2 * size:
            found |= {place.function for place in places(built("a-o2") / "sensor.pdb", word - base)}
    return found


def test_nmi_makes_a_hung_machine_write_its_dump(
    hung: tuple[Domain, int], contract: Contract
) -> None:
    domain, base = hung
    dump = crash_by_nmi(domain, contract)
    assert dump.bug_check_code == 0x80
    assert stack_functions(dump, base) == {"ScanBurstInstances"}


def test_dbgeng_shows_who_hung_it(hung: tuple[Domain, int], contract: Contract) -> None:
    engine = judge()
    dump = crash_by_nmi(hung[0], contract)
    folders = [BUILT, built("a-o2")]
    engine.open(dump.path, symbols=folders, images=folders)
    report = engine.report()
    assert report["bug_check"]["code"] == 0x80
    names = [frame["function"] for frame in report["stack"] if frame["module"] == "sensor"]
    assert names == list(KINDS["hang"].frames), describe(report["stack"])
    assert report["warnings"] == []


def test_hypervisors_windows_dump_of_a_hung_machine(
    hung: tuple[Domain, int], contract: Contract
) -> None:
    domain, base = hung

    def dumped_in_the_sensor() -> KernelDump | None:  # and not in the clock's interrupt
        dump = KernelDump(domain.dump_memory("win-dmp"))
        return dump if 0 <= processor_rip(dump) - base < 0x6000 else None

    dump = wait_for("the sensor's loop", dumped_in_the_sensor, contract.deadlines.boot_to_agent)
    assert domain.state().startswith("running")
    assert (dump.dump_type, dump.build, dump.machine) == (1, contract.os.build, 0x8664)
    assert dump.bug_check_code == 0x161  # LIVE_SYSTEM_DUMP: QEMU's, for a machine without one
    offset = processor_rip(dump) - base
    assert [one.function for one in places(built("a-o2") / "sensor.pdb", offset)] == [
        "ScanBurstInstances"
    ]
    reads = dump.sample(1, 1000, [(base, 0x6000)])
    assert [one for one in reads if dump.read(*one) is None] == []


def test_hung_machine_is_as_hung_after_a_restore(
    hung: tuple[Domain, int], contract: Contract
) -> None:
    domain, base = hung
    saved = domain.folder / "memory.sav"
    domain.save(saved)
    domain.restore(saved)
    assert not domain.agent_answers()
    dump = crash_by_nmi(domain, contract)
    assert dump.bug_check_code == 0x80
    assert stack_functions(dump, base) == {"ScanBurstInstances"}


def test_blue_screen_stays_through_save_and_restore(
    libvirt: Libvirt, domain_of: MachineFactory, contract: Contract
) -> None:
    domain = domain_of(build_image(libvirt.new_image_path(), settings=Settings(auto_reboot=False)))
    domain.start()
    domain.wait_for_agent(contract.deadlines.boot_to_agent)
    domain.inject_nmi()
    wait_for(
        "the end of the dump",
        lambda: "Physical memory dump complete" in domain.screen_text(),
        contract.deadlines.dump_writing,
    )
    screen = domain.screen_text()
    saved = domain.folder / "memory.sav"
    domain.save(saved)
    domain.restore(saved)
    assert domain.screen_text() == screen
    domain.reset()
    domain.wait_for_agent(contract.deadlines.boot_to_agent)


def test_copy_of_a_dump_goes_on_after_a_restore(
    libvirt: Libvirt, domain_of: MachineFactory, contract: Contract
) -> None:
    image = build_image(libvirt.new_image_path(), settings=Settings(dump=CrashDump.COMPLETE))
    domain = domain_of(image, hold_restarts=True)
    domain.start()
    domain.wait_for_agent(contract.deadlines.boot_to_agent)
    dump = crash_by_nmi(domain, contract).path.read_bytes()
    domain.start()
    domain.limit_disk_writes(4 * MIB)
    wait_for(
        "a part of the copy",
        lambda: domain.disk_bytes_written() > 8 * MIB,
        contract.deadlines.dump_copying,
    )
    saved = domain.folder / "memory.sav"
    domain.save(saved)
    with domain.disk() as disk:
        assert 0 < len(disk.read(MEMORY_DUMP_PATH)) < len(dump)
        assert len(disk.names("C:\\", "DUMP*.tmp")) == 1
    domain.restore(saved)
    domain.limit_disk_writes(0)
    domain.wait_for_agent(contract.deadlines.boot_to_agent)

    def copied() -> bool:
        with domain.disk() as disk:
            return not disk.names("C:\\", "DUMP*.tmp")

    wait_for("the end of the copy", copied, contract.deadlines.dump_copying, interval=0.3)
    with domain.disk() as disk:
        assert disk.read(MEMORY_DUMP_PATH) == dump
    assert domain.crash_count() == 1


def test_golden_cycle(libvirt: Libvirt, domain_of: MachineFactory, contract: Contract) -> None:
    """Back to a booted machine: its saved memory, over a new overlay on the disk it had then."""
    image = build_image(
        libvirt.new_image_path(), drivers=[sensor_driver("a-o2")], files=content_files("benign")
    )
    domain = domain_of(image)
    domain.start()
    domain.wait_for_agent(contract.deadlines.boot_to_agent)
    base = sensor_base(domain)
    saved, golden = domain.folder / "memory.sav", domain.folder / "golden.qcow2"
    domain.save(saved)
    domain.overlay.rename(golden)
    domain.image = golden
    for crashes in (1, 2):
        domain.new_overlay()
        domain.restore(saved)
        domain.wait_for_agent(contract.deadlines.agent_reply)
        assert sensor_base(domain) == base  # not booted again
        load_content(domain, "killer")
        domain.wait_for_crash(contract.deadlines.boot_to_agent, crashes)
        domain.destroy()


@pytest.mark.parametrize("variant", VARIANTS)
def test_stopped_sensor_leaves_nothing_behind(
    libvirt: Libvirt, domain_of: MachineFactory, contract: Contract, variant: str
) -> None:
    image = build_image(
        libvirt.new_image_path(), drivers=[sensor_driver(variant)], files=content_files("benign")
    )
    domain = domain_of(image)
    domain.start()
    domain.wait_for_agent(contract.deadlines.boot_to_agent)
    stopped = domain.execute(r"C:\Windows\System32\sc.exe", "stop", "sensor")
    assert stopped.exit_code == 0, stopped
    # Its callbacks and timers would run in memory that is gone.
    for name in ("killer", "freed", "hang"):
        load_content(domain, name)
    for _ in range(5):
        loaded_drivers(domain)
    assert domain.crash_count() == 0
