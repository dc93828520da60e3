"""The least a machine must do: boot, answer its agent, restart, be saved and restored."""

from __future__ import annotations

import pytest

from images.contract import Contract
from images.test_kernel.build import build_image
from tests.integration.conftest import MachineFactory
from tests.support.libvirt import Domain, Libvirt


@pytest.fixture
def healthy(libvirt: Libvirt, domain_of: MachineFactory, contract: Contract) -> Domain:
    """A machine without drivers whose agent has answered."""
    domain = domain_of(build_image(libvirt.new_image_path()))
    domain.start()
    domain.wait_for_agent(contract.deadlines.boot_to_agent)
    return domain


def test_boots_and_its_agent_names_the_system(healthy: Domain, contract: Contract) -> None:
    assert healthy.state().startswith("running")
    assert healthy.reset_events() == 0
    osinfo = healthy.agent("guest-get-osinfo")
    assert osinfo["id"] == contract.os.id
    supported = {command["name"] for command in healthy.agent("guest-info")["supported_commands"]}
    assert {"guest-ping", "guest-exec", "guest-exec-status", "guest-file-open"} <= supported


def test_reset_button_boots_again(healthy: Domain, contract: Contract) -> None:
    healthy.reset()
    healthy.wait_for_restart(contract.deadlines.boot_to_agent)
    healthy.wait_for_agent(contract.deadlines.boot_to_agent)


def test_saved_machine_goes_on_where_it_was(healthy: Domain, contract: Contract) -> None:
    healthy.write_file(r"C:\Windows\Temp\kept.txt", b"written before the save")
    saved = healthy.folder / "memory.sav"
    healthy.save(saved)
    assert healthy.state() == "off"
    healthy.restore(saved)
    healthy.wait_for_agent(contract.deadlines.agent_reply)
    assert healthy.read_file(r"C:\Windows\Temp\kept.txt") == b"written before the save"
    assert healthy.reset_events() == 0


def test_shutdown_through_the_agent_powers_off(healthy: Domain, contract: Contract) -> None:
    # Not awaited: it may be off before it can say how the program ended.
    shutdown = r"C:\Windows\System32\shutdown.exe"
    healthy.agent("guest-exec", path=shutdown, arg=["/s", "/t", "0"])
    healthy.wait_for_power_off(contract.deadlines.shutdown)
