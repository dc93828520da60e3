"""Agent commands: answered, refused, not sent, or lost on the way."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from images.contract import Contract
from images.test_kernel.build import build_image
from images.test_kernel.registry import Settings
from lab.backend import AgentError, AgentSilent, AgentUnreachable, Image
from lab.signals import SignalKind
from tests.integration.virtual.conftest import Slot, SlotFactory
from tests.support.sensor import content_files, sensor_driver


def test_agent_answers(slot: Slot) -> None:
    slot.boot()
    assert slot.backend.agent("guest-ping", {}, 20) == {}
    assert slot.backend.agent("guest-get-osinfo", {}, 20)["id"] == slot.contract.os.id


def test_agents_own_error_is_its_text(slot: Slot) -> None:
    slot.boot()
    with pytest.raises(AgentError) as refused:
        slot.backend.agent("guest-file-open", {"path": r"C:\none\none", "mode": "rb"}, 20)
    assert type(refused.value) is AgentError
    assert refused.value.message.endswith("The system cannot find the path specified.")


def test_command_that_cannot_be_sent(slot: Slot) -> None:
    with pytest.raises(AgentUnreachable, match="not sent"):
        slot.backend.agent("guest-ping", {}, 20)
    slot.backend.start(hold_restart=True)
    with pytest.raises(AgentUnreachable, match="not connected"):
        slot.backend.agent("guest-ping", {}, 20)
    slot.heard(SignalKind.AGENT_UP, 1)
    slot.backend.nmi()
    slot.heard(SignalKind.RESTART, 1)
    with pytest.raises(AgentUnreachable, match="not sent"):
        slot.backend.agent("guest-ping", {}, 20)


@pytest.fixture
def hung(slot_of: SlotFactory, store: Path, contract: Contract) -> Slot:
    """A machine whose sensor soon loops at DISPATCH_LEVEL for ever."""
    disk = build_image(
        store / "hangs.qcow2",
        drivers=[sensor_driver("a-o2")],
        files=content_files("hang"),
        settings=Settings(dpc_timeout_milliseconds=0),
    )
    slot = slot_of(Image("hangs", contract, disk))
    slot.boot()
    return slot


def test_agent_of_a_hung_machine_is_silent_and_the_machine_can_be_crashed(hung: Slot) -> None:
    deadline = hung.contract.deadlines.boot_to_agent
    hung.signals.wait("silence", lambda: _silent(hung), deadline)
    began = time.monotonic()
    with pytest.raises(AgentError):
        hung.backend.agent("guest-ping", {}, 1)
    assert time.monotonic() - began < 10
    hung.backend.nmi()
    hung.heard(SignalKind.RESTART, 1, hung.contract.deadlines.dump_writing)


def test_command_under_way_when_the_machine_dies_is_silent(hung: Slot) -> None:
    deadline = hung.contract.deadlines.boot_to_agent
    hung.signals.wait("silence", lambda: _silent(hung), deadline)
    raised: list[AgentError] = []

    def ask() -> None:
        try:
            hung.backend.agent("guest-ping", {}, 60)
        except AgentError as error:
            raised.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    hung.signals.wait("the command under way", lambda: _waits(hung), deadline)
    hung.backend.power_off()
    thread.join(30)
    assert not thread.is_alive()
    assert [type(error) for error in raised] == [AgentSilent]


def _silent(slot: Slot) -> str:
    """What a command is told whose answer does not come; empty if it comes."""
    try:
        slot.backend.agent("guest-ping", {}, 1)
    except AgentSilent as error:
        return str(error)
    return ""


def _waits(slot: Slot) -> bool:
    """Whether another command keeps a command from being sent."""
    try:
        slot.backend.agent("guest-ping", {}, 1)
    except AgentUnreachable:
        return True
    except AgentSilent:
        return False
    raise AssertionError("the machine answers again")
