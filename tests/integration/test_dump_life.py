"""What becomes of a dump: written to the pagefile, overwritten, moved aside, copied, cut short."""

from __future__ import annotations

from pathlib import Path

import pytest

from images.contract import Contract
from images.test_kernel.build import (
    MEMORY_DUMP_PATH,
    MIB,
    PAGEFILE_PATH,
    build_image,
)
from images.test_kernel.registry import CONTROL, CrashDump, Settings
from tests.integration.conftest import MachineFactory
from tests.oracle.readers import KernelDump
from tests.support.disk import DUMP_SIGNATURE, DiskFiles, dump_in_pagefile, dump_time
from tests.support.libvirt import Domain, Libvirt
from tests.support.sensor import content_files, sensor_driver
from tests.support.waiting import wait_for

CRASH_CONTROL = CONTROL + r"\CrashControl"
SYSTEM32 = r"C:\Windows\System32"
SLOW_DISK = 4 * MIB
"""Bytes a second; a complete dump of 64 MiB takes a quarter of a minute to copy."""
OLD_DUMP = b"PAGEDU64 of another day" + bytes(5000)


def names_of_dumps(disk: DiskFiles) -> list[str]:
    """The dumps that were moved aside and wait for their copy."""
    return disk.names("C:\\", "DUMP*.tmp")


def pagefile_dump(domain: Domain) -> bytes:
    """The dump in the pagefile; raises ValueError if there is none."""
    with domain.disk() as disk:
        return dump_in_pagefile(disk.read(PAGEFILE_PATH))


def crash_and_hold(domain: Domain, contract: Contract) -> bytes:
    """Boots, crashes by NMI, and gives the dump of the machine, which is then off."""
    domain.hold_restarts = True
    domain.start()
    domain.wait_for_agent(contract.deadlines.boot_to_agent)
    domain.inject_nmi()
    domain.wait_for_power_off(contract.deadlines.dump_writing)
    domain.hold_restarts = False
    return pagefile_dump(domain)


def wait_for_the_copy(domain: Domain, contract: Contract) -> None:
    """Waits until no dump is left that waits for its copy."""

    def copied() -> bool:
        with domain.disk() as disk:
            return not names_of_dumps(disk) and disk.read(PAGEFILE_PATH)[:8] != DUMP_SIGNATURE

    wait_for("the dump to be copied", copied, contract.deadlines.dump_copying, interval=0.3)


@pytest.fixture
def killer_image(libvirt: Libvirt) -> Path:
    """A machine that crashes at each boot before its dumps can be copied."""
    return build_image(
        libvirt.new_image_path(),
        drivers=[sensor_driver("a-o2")],
        files=content_files("killer"),
        memory_dump=OLD_DUMP,
    )


def test_boot_loop_overwrites_its_dump(
    killer_image: Path, domain_of: MachineFactory, contract: Contract
) -> None:
    deadline = contract.deadlines.boot_to_agent
    domain = domain_of(killer_image, hold_restarts=True)
    domain.start()
    domain.wait_for_power_off(deadline)
    first = pagefile_dump(domain)
    domain.hold_restarts = False
    domain.start()
    domain.wait_for_crash(deadline, 5)
    domain.destroy()

    domain.hold_restarts = True
    domain.start()
    domain.wait_for_power_off(deadline)
    assert dump_time(pagefile_dump(domain)) > dump_time(first)
    with domain.disk() as disk:
        assert names_of_dumps(disk) == []
        assert disk.read(MEMORY_DUMP_PATH) == OLD_DUMP


def test_repair_screen_waits_for_enter(
    libvirt: Libvirt, domain_of: MachineFactory, contract: Contract, tmp_path: Path
) -> None:
    deadline = contract.deadlines.boot_to_agent
    image = build_image(
        libvirt.new_image_path(),
        drivers=[sensor_driver("a-o2")],
        files=content_files("killer"),
        failed_boot_limit=3,
    )
    domain = domain_of(image)
    domain.start()
    wait_for("repair", lambda: "Automatic Repair" in domain.screen_text(), deadline)
    # It waits: nothing is written, nothing restarts, the picture stays.
    restarts = domain.reset_events()
    picture = domain.screenshot(tmp_path / "repair.png").read_bytes()
    domain.wait_for_quiet_disk(deadline, quiet=2.0)
    assert domain.crash_count() == 3
    assert domain.reset_events() == restarts
    assert domain.screenshot(tmp_path / "later.png").read_bytes() == picture
    assert not domain.agent_answers()

    domain.send_keys("KEY_ENTER")
    domain.wait_for_restart(deadline, restarts)
    domain.wait_for_crash(deadline, 6)  # it counts from the beginning: three boots more
    wait_for("repair", lambda: "Automatic Repair" in domain.screen_text(), deadline)
    assert domain.crash_count() == 6


def test_reg_add_turns_automatic_restart_off(
    libvirt: Libvirt, domain_of: MachineFactory, contract: Contract
) -> None:
    deadline = contract.deadlines.boot_to_agent
    key = r"HKLM\SYSTEM\CurrentControlSet\Control\CrashControl"
    domain = domain_of(build_image(libvirt.new_image_path()))
    domain.start()
    domain.wait_for_agent(deadline)
    changed = domain.execute(
        rf"{SYSTEM32}\reg.exe", "add", key, "/v", "AutoReboot", "/t", "REG_DWORD", "/d", "0", "/f"
    )
    assert (changed.exit_code, changed.errors) == (0, "")
    domain.agent("guest-exec", path=rf"{SYSTEM32}\shutdown.exe", arg=["/r", "/t", "0"])
    domain.wait_for_restart(deadline)
    domain.wait_for_agent(deadline)
    shown = domain.execute(rf"{SYSTEM32}\reg.exe", "query", key, "/v", "AutoReboot")
    assert shown.output.split() == [CRASH_CONTROL, "AutoReboot", "REG_DWORD", "0x0"]

    restarts = domain.reset_events()
    domain.inject_nmi()
    domain.wait_for_crash(contract.deadlines.dump_writing)
    wait_for(
        "the end of the dump",
        lambda: "Physical memory dump complete" in domain.screen_text(),
        contract.deadlines.dump_writing,
    )
    domain.wait_for_quiet_disk(contract.deadlines.dump_writing)
    assert domain.reset_events() == restarts
    assert domain.state().startswith("running")
    pagefile_dump(domain)


def test_next_boot_moves_the_dump_aside_and_copies_it(
    libvirt: Libvirt, domain_of: MachineFactory, contract: Contract, tmp_path: Path
) -> None:
    domain = domain_of(build_image(libvirt.new_image_path(), memory_dump=OLD_DUMP))
    dump = crash_and_hold(domain, contract)
    domain.start()
    domain.wait_for_agent(contract.deadlines.boot_to_agent)
    wait_for_the_copy(domain, contract)
    with domain.disk() as disk:
        assert disk.read(MEMORY_DUMP_PATH) == dump
        assert len(disk.read(PAGEFILE_PATH)) == contract.dump.staged_bytes
    file = tmp_path / "MEMORY.DMP"
    file.write_bytes(domain.read_file(MEMORY_DUMP_PATH))
    assert KernelDump(file).bug_check_code == 0x80
    # The new pagefile is as good as the first one.
    domain.destroy()
    assert dump_time(crash_and_hold(domain, contract)) > dump_time(dump)


def test_dump_that_may_not_overwrite_is_dropped(
    libvirt: Libvirt, domain_of: MachineFactory, contract: Contract
) -> None:
    image = build_image(
        libvirt.new_image_path(), memory_dump=OLD_DUMP, settings=Settings(overwrite_dump=False)
    )
    domain = domain_of(image)
    crash_and_hold(domain, contract)
    domain.start()
    domain.wait_for_agent(contract.deadlines.boot_to_agent)
    wait_for_the_copy(domain, contract)
    with domain.disk() as disk:
        assert disk.read(MEMORY_DUMP_PATH) == OLD_DUMP


def test_power_cut_leaves_half_a_copy_and_its_source(
    libvirt: Libvirt, domain_of: MachineFactory, contract: Contract
) -> None:
    settings = Settings(dump=CrashDump.COMPLETE)
    domain = domain_of(build_image(libvirt.new_image_path(), settings=settings))
    dump = crash_and_hold(domain, contract)
    domain.start()
    domain.limit_disk_writes(SLOW_DISK)
    wait_for(
        "a part of the copy",
        lambda: domain.disk_bytes_written() > 2 * SLOW_DISK,
        contract.deadlines.dump_copying,
    )
    domain.destroy()
    with domain.disk() as disk:
        (source,) = names_of_dumps(disk)
        assert disk.read(rf"C:\{source}") == dump
        half = disk.read(MEMORY_DUMP_PATH)
        assert 0 < len(half) < len(dump)
        assert disk.read(PAGEFILE_PATH)[:8] != DUMP_SIGNATURE

    domain.start()
    domain.wait_for_agent(contract.deadlines.boot_to_agent)
    wait_for_the_copy(domain, contract)
    with domain.disk() as disk:
        assert disk.read(MEMORY_DUMP_PATH) == dump


def test_dumps_turned_off_stop_the_machine(
    libvirt: Libvirt, domain_of: MachineFactory, contract: Contract
) -> None:
    domain = domain_of(
        build_image(libvirt.new_image_path(), settings=Settings(dump=CrashDump.NONE))
    )
    domain.start()
    domain.wait_for_agent(contract.deadlines.boot_to_agent)
    domain.inject_nmi()
    wait_for(
        "the panic",
        lambda: domain.state() == "crashed (panicked)",
        contract.deadlines.dump_writing,
    )
    assert domain.crash_count() == 0
    assert "STOP: 0x00000080" in domain.screen_text()
    assert '"0x80"' in domain.console()
    with pytest.raises(ValueError, match="holds no dump"):
        pagefile_dump(domain)


def test_complete_dump_holds_all_memory(
    libvirt: Libvirt, domain_of: MachineFactory, contract: Contract, tmp_path: Path
) -> None:
    settings = Settings(dump=CrashDump.COMPLETE)
    domain = domain_of(build_image(libvirt.new_image_path(), settings=settings))
    file = tmp_path / "complete.dmp"
    file.write_bytes(crash_and_hold(domain, contract))
    dump = KernelDump(file)
    assert (dump.dump_type, dump.bug_check_code) == (1, 0x80)
    # Less than a megabyte belongs to the firmware.
    assert contract.hardware.memory_mib - 1 <= dump.page_count / 256 < contract.hardware.memory_mib
    assert file.stat().st_size == 0x2000 + dump.page_count * 0x1000


def test_dump_in_a_pagefile_of_many_pieces(
    libvirt: Libvirt, domain_of: MachineFactory, contract: Contract, tmp_path: Path
) -> None:
    image = build_image(
        libvirt.new_image_path(), pagefile_bytes=8 * MIB, pagefile_extents=64, memory_dump=OLD_DUMP
    )
    domain = domain_of(image)
    with domain.disk() as disk:
        pieces = [size for _, size in disk.extents(PAGEFILE_PATH)]
    file = tmp_path / "pieces.dmp"
    file.write_bytes(crash_and_hold(domain, contract))
    assert len(pieces) == 64
    assert file.stat().st_size > 4 * pieces[0]
    dump = KernelDump(file)
    assert (dump.dump_type, dump.bug_check_code) == (6, 0x80)
    assert len(list(dump.mapped_pages())) > 100


@pytest.mark.parametrize("pagefile_bytes", [256 * 1024, 0])
def test_no_room_for_a_dump_is_said_on_the_screen(
    libvirt: Libvirt, domain_of: MachineFactory, contract: Contract, pagefile_bytes: int
) -> None:
    image = build_image(
        libvirt.new_image_path(),
        pagefile_bytes=pagefile_bytes,
        settings=Settings(auto_reboot=False),
    )
    domain = domain_of(image)
    domain.start()
    domain.wait_for_agent(contract.deadlines.boot_to_agent)
    domain.inject_nmi()
    domain.wait_for_crash(contract.deadlines.dump_writing)
    reason = "pagefile.sys has 256 KiB" if pagefile_bytes else "pagefile.sys cannot be"
    wait_for("the reason", lambda: reason in domain.screen_text(), contract.deadlines.dump_writing)
    with domain.disk() as disk:
        assert not disk.exists(MEMORY_DUMP_PATH)
        if pagefile_bytes:
            assert disk.read(PAGEFILE_PATH) == bytes(pagefile_bytes)
        else:
            assert not disk.exists(PAGEFILE_PATH)
