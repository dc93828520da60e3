"""Machines as a lease gives them out, over a private libvirt of the lab's own."""

from __future__ import annotations

import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pefile
import pytest

from images.contract import Contract
from images.test_kernel.build import build_image
from lab.backend import Backend, Image
from lab.candidate import Candidate, load_candidate
from lab.leases import LeaseStore
from lab.machine import Machine
from lab.signals import SignalLog
from lab.steps import Steps
from lab.virtual.libvirt import Factory
from tests.support.sensor import SENSOR, built

SLOT = "one"
_machines = pytest.StashKey[list["Rig"]]()


@dataclass(frozen=True)
class Rig:
    """A machine of a test. The backend is for what a machine does behind the lab's back."""

    machine: Machine
    backend: Backend
    notes: list[str]

    def steps(self, candidate: Candidate) -> Steps:
        """The candidate's steps on this machine; what they say is kept in `notes`."""
        return Steps(self.machine, candidate, note=self.notes.append)

    def installed(self, candidate: Candidate) -> Steps:
        """The candidate's steps, after its install."""
        steps = self.steps(candidate)
        steps.install()
        return steps


RigFactory = Callable[[Path], Rig]


@pytest.fixture(scope="session")
def lab_folder() -> Iterator[Path]:
    """A folder whose name is short enough for sockets, and that machines' accounts can reach."""
    folder = Path(tempfile.mkdtemp(prefix="bl-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def hypervisor(lab_folder: Path) -> Iterator[Factory]:
    """The lab's connection to a libvirt that it starts for itself."""
    factory = Factory("tests", "private", lab_folder / "hosts")
    yield factory
    factory.close()


@pytest.fixture(scope="session")
def base_disk(lab_folder: Path) -> Path:
    """The disk of a machine without drivers."""
    return build_image(lab_folder / "base.qcow2")


@pytest.fixture
def rig_of(
    hypervisor: Factory,
    lab_folder: Path,
    contract: Contract,
    request: pytest.FixtureRequest,
) -> Iterator[RigFactory]:
    """Makes running machines over a disk; power and lease go when the test ends."""
    made = request.node.stash.setdefault(_machines, [])
    leases = []

    def make(disk: Path) -> Rig:
        run_id = uuid.uuid4().hex[:8]
        store = LeaseStore(lab_folder / f"{run_id}.sqlite", slots=[SLOT], expiry=30, margin=3)
        lease = store.acquire([SLOT], holder="tests", purpose="test", run_id=run_id, wait=10)
        leases.append(lease)
        signals = SignalLog()
        backend = hypervisor.slot(SLOT, signals)
        image = Image(contract.name, contract, disk)
        folder = lab_folder / run_id
        backend.provision(image, folder, run_id)
        rig = Rig(Machine(backend, lease, image, signals, folder), backend, [])
        made.append(rig)
        rig.machine.start()
        rig.machine.wait_for_agent()
        return rig

    yield make
    for rig in made:
        rig.backend.dispose(keep_disk=False)
    for lease in leases:
        lease.release()


@pytest.fixture
def rig(rig_of: RigFactory, base_disk: Path) -> Rig:
    """A running machine without drivers."""
    return rig_of(base_disk)


@pytest.fixture(scope="session")
def inf_candidate() -> Candidate:
    """The sensor as its INF installs it."""
    return load_candidate(SENSOR / "candidate.toml")


@pytest.fixture(scope="session")
def sc_candidate() -> Candidate:
    """The sensor as sc.exe installs it."""
    return load_candidate(SENSOR / "candidate-sc.toml")


@dataclass(frozen=True)
class CandidateMaker:
    """Makes candidates that differ from the sensor's in a few places, in a folder of their own."""

    folder: Path

    def make(self, shape: str, *changes: tuple[str, str], driver: bytes | None = None) -> Candidate:
        """A copy of the sensor's folder with texts of its candidate file changed.

        shape: the candidate file's name. driver: what built/a-o2/sensor.sys is instead.
        """
        folder = self.folder / uuid.uuid4().hex[:8]
        shutil.copytree(SENSOR, folder, ignore=shutil.ignore_patterns("src", "__pycache__"))
        text = (folder / shape).read_text()
        for old, new in changes:
            assert old in text, f"{old!r} is not in {shape}"
            text = text.replace(old, new)
        (folder / shape).write_text(text)
        if driver is not None:
            (folder / "built/a-o2/sensor.sys").write_bytes(driver)
        return load_candidate(folder / shape)


@pytest.fixture
def candidates(tmp_path: Path) -> CandidateMaker:
    """See CandidateMaker."""
    return CandidateMaker(tmp_path)


@pytest.fixture(scope="session")
def endless_driver() -> bytes:
    """The sensor with a DriverEntry that never returns: a jump to itself (EB FE)."""
    return patched_entry(b"\xeb\xfe")


def patched_entry(code: bytes) -> bytes:
    """The sensor's driver file with other code at its entry point."""
    data = bytearray((built("a-o2") / "sensor.sys").read_bytes())
    with pefile.PE(data=bytes(data), fast_load=True) as image:
        entry = image.get_offset_from_rva(image.OPTIONAL_HEADER.AddressOfEntryPoint)
    data[entry : entry + len(code)] = code
    return bytes(data)


class Behind:
    """A thread that does something to the machine while the test waits for something else."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._error: BaseException | None = None
        self._result: object = None

        def work() -> None:
            try:
                self._result = action()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def result(self) -> Any:
        """What the action gave; raises what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result


@contextmanager
def behind(action: Callable[[], object]) -> Iterator[Behind]:
    """Runs `action` in a thread while the body runs; waits for it at the end."""
    thread = Behind(action)
    yield thread
    thread._thread.join()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Shows what was heard of the machines of a failed test."""
    report = yield
    if report.failed:
        for rig in item.stash.get(_machines, []):
            report.sections += [
                ("signals", "\n".join(map(str, rig.machine.signals.all()))),
                ("notes", "\n".join(rig.notes)),
                ("console", rig.machine.console_bytes().decode(errors="replace")[-2000:]),
            ]
    return report
