"""100 crash cycles over kinds and variants: every dump is the one of its own cycle.

Each cycle gives the driver a nonce of its own, boots, crashes, restarts, and is held before the
next boot. The new dump on the disk, where those of earlier cycles may be, too, bears the nonce.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from images.contract import Contract
from images.test_kernel.build import REGISTRY_PATH, build_image
from images.test_kernel.registry import Settings, registry_text
from tests.oracle.readers import KernelDump
from tests.support.crashes import DPC_TIMEOUT
from tests.support.disk import DUMP_SIGNATURE, dump_in_pagefile
from tests.support.kernel_memory import (
    NON_PAGED_POOL_START,
    debugger_data,
    loaded_modules,
    pointer,
    read,
)
from tests.support.libvirt import Domain, Libvirt
from tests.support.sensor import (
    CRASHES,
    KINDS,
    CrashKind,
    built,
    content_files,
    sensor_driver,
)
from tests.support.symbols import public_symbol

pytestmark = pytest.mark.soak
CYCLES = 100
"""In all."""
SHARES = [
    ((kind, variant), len(range(number, CYCLES, len(CRASHES))))
    for number, (kind, variant) in enumerate(CRASHES)
]
"""Every crash, and how many of the cycles are its own."""
SETTINGS = Settings(dpc_timeout_milliseconds=DPC_TIMEOUT)


def set_nonce(domain: Domain, variant: str, nonce: str) -> None:
    """Writes the driver's nonce into the registry of a machine that is off."""
    driver = sensor_driver(variant, parameters={"Nonce": nonce})
    with domain.disk() as disk:
        disk.write(REGISTRY_PATH, registry_text(SETTINGS, [driver.service]).encode())
        disk.commit()


def dumps(domain: Domain) -> list[bytes]:
    """The whole dumps on the disk of a machine that is off: in the pagefile, or moved aside."""
    found = []
    with domain.disk() as disk:
        for name in (*disk.names("C:\\", "pagefile.sys"), *disk.names("C:\\", "DUMP*.tmp")):
            content = disk.read(rf"C:\{name}")
            if content.startswith(DUMP_SIGNATURE):
                found.append(dump_in_pagefile(content))
    return found


def crash(domain: Domain, kind: CrashKind, contract: Contract) -> bytes:
    """One cycle of a machine that holds its restarts; gives the dump that was not there before.

    It is in the pagefile, or, where the crash came while the last dump was being moved aside, where
    that one was.
    """
    crashes = domain.crash_count()
    before = dumps(domain)
    domain.start()
    if kind.trigger:
        domain.wait_for_agent(contract.deadlines.boot_to_agent)
        kind.trigger(domain)
    domain.wait_for_crash(contract.deadlines.boot_to_agent, crashes + 1)
    domain.wait_for_power_off(contract.deadlines.dump_writing)
    assert domain.crash_count() == crashes + 1
    (dump,) = [one for one in dumps(domain) if one not in before]
    return dump


@pytest.mark.parametrize(("crashing", "cycles"), SHARES, ids=["-".join(one) for one, _ in SHARES])
def test_every_dump_bears_its_cycles_nonce(
    libvirt: Libvirt, contract: Contract, tmp_path: Path, crashing: tuple[str, str], cycles: int
) -> None:
    name, variant = crashing
    kind, folder = KINDS[name], built(variant)
    symbol = public_symbol(folder / "sensor.pdb", folder / "sensor.sys", "SensorNonce")
    image = build_image(
        libvirt.new_image_path(),
        drivers=[sensor_driver(variant)],
        files=content_files(kind.content),
        settings=SETTINGS,
    )
    domain = Domain(libvirt, image, hold_restarts=True)
    pools, layouts = set(), set()
    for cycle in range(cycles):
        nonce = f"{name}/{variant}/cycle {cycle}"
        set_nonce(domain, variant, nonce)
        file = tmp_path / f"{cycle}.dmp"
        file.write_bytes(crash(domain, kind, contract))
        dump = KernelDump(file)
        assert dump.bug_check_code == kind.stop_code
        modules = loaded_modules(dump)
        found = read(dump, modules["sensor.sys"] + symbol, 72)
        assert found == b"SNONCE:\0" + nonce.encode().ljust(64, b"\0")
        pool = pointer(dump, debugger_data(dump, NON_PAGED_POOL_START))
        pools.add(pool)
        layouts.add((pool, *modules.values()))
        file.unlink()
    domain.close()
    assert len(layouts) == cycles
    # The pool starts at one of 8,192 places: two cycles may meet by chance, hardly four.
    assert len(pools) >= cycles - 1
