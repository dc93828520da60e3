"""BMCs on a machine that runs: power, and the NMI that makes it write its dump."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from images.contract import Contract
from images.test_kernel.build import build_image
from lab.power.base import PowerState
from lab.power.bmc import Bmc, witness
from lab.power.devices import open_device
from lab.power.outlet import Outlet
from tests.integration.conftest import MachineFactory
from tests.integration.power import ipmi_bmc, redfish_bmc
from tests.integration.power.virtual_bmc import virtual_bmc
from tests.support.certificates import make_certificate
from tests.support.libvirt import Domain, Libvirt
from tests.support.waiting import wait_for

TIMING = {"answer_seconds": 10.0, "deadline_seconds": 60.0, "pause_seconds": 0.2}


@pytest.fixture
def domain(libvirt: Libvirt, domain_of: MachineFactory) -> Iterator[Domain]:
    """A machine that libvirt knows also while it is off, as a BMC does; off."""
    made = domain_of(build_image(libvirt.new_image_path()), hold_restarts=True)
    description = made.folder / "defined.xml"
    description.write_text(made.xml())
    libvirt.virsh("define", str(description))
    yield made
    made.virsh("undefine")  # what runs goes with its power


@pytest.fixture(params=["ipmi", pytest.param("redfish", marks=pytest.mark.metal)])
def bmc(
    request: pytest.FixtureRequest, libvirt: Libvirt, domain: Domain, tmp_path: Path
) -> Iterator[Bmc]:
    table: dict[str, Any] = {
        "backend": request.param,
        "user": ipmi_bmc.USER,
        "password_secret": "bmc",
        "timing": TIMING,
    }
    with ExitStack() as stack:
        if request.param == "ipmi":
            port = stack.enter_context(virtual_bmc(libvirt.uri, domain.name))
            table |= {"address": "127.0.0.1", "port": port}
        else:
            emulator = stack.enter_context(redfish_bmc.sushy_emulator(libvirt.uri))
            certificate = make_certificate(tmp_path / "bmc.pem")
            door = stack.enter_context(redfish_bmc.FrontDoor(emulator, certificate))
            table |= {"address": f"127.0.0.1:{door.port}", "outlet": domain.name}
            table |= {"fingerprint": certificate.fingerprint}
        device = open_device("bmc", table, lambda _: SecretStr(ipmi_bmc.PASSWORD))
        assert isinstance(device, Bmc)
        yield device
        device.close()


def is_off(domain: Domain) -> bool:
    return domain.state().startswith("shut off")


def test_on_nmi_and_off(bmc: Bmc, domain: Domain, contract: Contract) -> None:
    assert bmc.settings.outlet is not None
    outlet = Outlet(bmc, bmc.settings.outlet, lambda _: None)
    assert outlet.on().before is PowerState.OFF
    assert witness(bmc, bmc.settings.outlet).ask() is PowerState.ON
    domain.wait_for_agent(contract.deadlines.boot_to_agent)
    bmc.nmi(outlet.place())
    domain.wait_for_crash(contract.deadlines.boot_to_agent)
    # Its dump is written, and its restart is held.
    wait_for("the restart", lambda: is_off(domain), contract.deadlines.dump_writing)
    assert '"0x80"' in domain.console()
    assert outlet.status().found is PowerState.OFF
    outlet.on()
    assert outlet.off().tries == 1
    assert is_off(domain)
