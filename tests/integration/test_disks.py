"""The disk of a machine that crashed: its dump read, what did it deleted, healthy again."""

from __future__ import annotations

from pathlib import Path

import pytest

from images.contract import Contract
from images.test_kernel.build import PAGEFILE_PATH, build_image
from lab.disks.blocks import DiskInUseError
from lab.disks.edit import Delete, edit
from lab.disks.files import open_files
from lab.disks.overlay import open_overlay
from tests.integration.conftest import MachineFactory
from tests.oracle.readers import KernelDump
from tests.support.disk import dump_in_pagefile
from tests.support.libvirt import Libvirt
from tests.support.sensor import KINDS, content_files, sensor_driver

KILLER = "killer"


def test_from_the_dump_on_its_disk_to_a_machine_that_boots(
    libvirt: Libvirt, domain_of: MachineFactory, contract: Contract, tmp_path: Path
) -> None:
    content = content_files(KILLER)
    image = build_image(libvirt.new_image_path(), drivers=[sensor_driver("a-o2")], files=content)
    domain = domain_of(image, hold_restarts=True)
    domain.start()
    domain.wait_for_crash(contract.deadlines.boot_to_agent)

    domain.wait_for_power_off(contract.deadlines.dump_writing)
    owner = domain.overlay.stat()
    with open_files(open_overlay(domain.overlay)) as files:
        copied = tmp_path / "pagefile"
        assert files.copy(PAGEFILE_PATH, copied) == files.stat(PAGEFILE_PATH).size
    dump = tmp_path / "MEMORY.DMP"
    dump.write_bytes(dump_in_pagefile(copied.read_bytes()))
    assert KernelDump(dump).bug_check_code == KINDS[KILLER].stop_code

    edits = [Delete(path) for path in content]
    assert {one.action for one in edit(domain.overlay, edits)} == {"deleted"}
    edited = domain.overlay.stat()
    assert (edited.st_uid, edited.st_gid, edited.st_mode) == (
        owner.st_uid,
        owner.st_gid,
        owner.st_mode,
    )
    domain.start()
    domain.wait_for_agent(contract.deadlines.boot_to_agent)
    assert domain.crash_count() == 1
    with pytest.raises(DiskInUseError, match="in use by a machine"):
        edit(domain.overlay, edits)
    with open_files(open_overlay(domain.overlay, in_use=True)) as files:
        assert not any(files.exists(path) for path in content)
        assert files.stat(PAGEFILE_PATH).size == copied.stat().st_size
