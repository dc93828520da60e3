"""Machines through the lab's own libvirt backend, on a private libvirt of each test process."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from images.contract import Contract
from images.test_kernel.build import build_image
from lab.backend import Backend, BackendFactory, Image
from lab.signals import Signal, SignalKind, SignalLog
from lab.virtual.libvirt import Factory


@dataclass
class Slot:
    """A provisioned slot and what was heard of it."""

    backend: Backend
    signals: SignalLog
    image: Image
    folder: Path
    run_id: str
    contract: Contract = field(init=False)

    def __post_init__(self) -> None:
        self.contract = self.image.contract

    def heard(self, kind: SignalKind, boot: int, deadline: float | None = None) -> Signal:
        """Waits for a signal of a boot; a machine that does not give one fails the test."""
        return self.signals.wait(
            f"{kind} in boot {boot}; heard so far {[s.kind.value for s in self.signals.all()]}",
            lambda: self.signals.of(kind, boot=boot),
            deadline or self.contract.deadlines.boot_to_agent,
        )[0]

    def boot(self, *, hold_restart: bool = True) -> int:
        """Starts it and waits for its agent; gives the boot's number."""
        self.backend.start(hold_restart=hold_restart)
        self.heard(SignalKind.AGENT_UP, self.signals.boot)
        return self.signals.boot

    def run(self, program: str, *arguments: str) -> None:
        r"""Starts a program of C:\Windows\System32 in the guest."""
        path = rf"C:\Windows\System32\{program}"
        self.backend.agent("guest-exec", {"path": path, "arg": list(arguments)}, 20)


SlotFactory = Callable[..., Slot]


@pytest.fixture(scope="session")
def store() -> Iterator[Path]:
    """A folder where every user may read; pytest's own is for its user alone."""
    folder = Path(tempfile.mkdtemp(prefix="lab-store-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def factory(store: Path) -> Iterator[BackendFactory]:
    """The host under test."""
    made = Factory("here", "private", store / "daemons")
    yield made
    made.close()


@pytest.fixture(scope="session")
def image(store: Path, contract: Contract) -> Image:
    """A machine that boots and does nothing."""
    return Image("idle", contract, build_image(store / "idle.qcow2"))


_numbers = itertools.count(1)


@pytest.fixture
def slot_of(store: Path, factory: BackendFactory, image: Image) -> Iterator[SlotFactory]:
    """Provisions slots; they lose their power after the test."""
    made: list[Slot] = []

    def make(of: Image = image, *, host: BackendFactory = factory) -> Slot:
        number = next(_numbers)
        signals = SignalLog()
        run_id = f"run-{number}"
        slot = Slot(host.slot(f"slot-{number}", signals), signals, of, store / run_id, run_id)
        slot.backend.provision(of, slot.folder, run_id)
        made.append(slot)
        return slot

    yield make
    for slot in made:
        slot.backend.dispose(keep_disk=False)


@pytest.fixture
def slot(slot_of: SlotFactory) -> Slot:
    """One slot, still off."""
    return slot_of()
