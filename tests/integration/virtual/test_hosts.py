"""Where machines run, and what becomes of them when a part of it dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from images.contract import CATALOG
from lab.backend import AgentUnreachable, BackendError, BackendFactory, Image
from lab.outcome import Outcome
from lab.signals import MachineLost, SignalKind, SignalLog
from lab.virtual import libvirt_daemon
from lab.virtual.libvirt import Factory
from tests.integration.virtual.conftest import Slot, SlotFactory
from tests.support.waiting import wait_for

OWNER = """
import sys
from dataclasses import replace
from pathlib import Path
from images.contract import load_contract
from lab.backend import Image
from lab.signals import SignalLog
from lab.virtual.libvirt import Factory
disk, contract, store = map(Path, sys.argv[1:4])
factory = Factory("here", sys.argv[4], store / "daemons")
backend = factory.slot("owned", SignalLog())
backend.provision(Image("idle", load_contract(contract), disk), store / "owned", "owned-run")
backend.start(hold_restart=True)
print(backend.address(), flush=True)
sys.stdin.read()
"""
CONTRACT = CATALOG.parent / "test_kernel/contract.toml"


def processes(program: str, naming: str) -> list[int]:
    """Processes of a program with `naming` in an argument or in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name = (process / "comm").read_text().strip()
            said = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue  # it ended, or is another user's
        if name.startswith(program) and naming.encode() in said:
            found.append(int(process.name))
    return found


def daemon_folder(address: str) -> str:
    """The folder of the private daemons that a machine's address names."""
    return address.partition("?socket=")[2].partition("/run/")[0]


def answers(slot: Slot) -> bool:
    """Whether the agent answers."""
    try:
        slot.backend.agent("guest-ping", {}, 20)
    except AgentUnreachable:
        return False
    return True


@pytest.fixture
def own_factory(store: Path) -> BackendFactory:
    """A libvirt that a test may break; close it."""
    return Factory("own", "private", store / "daemons")


def test_two_private_hosts_do_not_meet(
    slot: Slot, slot_of: SlotFactory, own_factory: BackendFactory
) -> None:
    try:
        other = slot_of(host=own_factory)
        slot.boot()
        other.boot()
        assert [run for run, _ in own_factory.leftovers()] == [other.run_id]
        slot.backend.nmi()
        slot.heard(SignalKind.RESTART, 1)
        assert other.backend.is_on()
        assert not other.signals.of(SignalKind.BUG_CHECK)
        other.backend.dispose(keep_disk=False)
    finally:
        own_factory.close()


def test_remove_takes_one_run_and_nothing_else(slot_of: SlotFactory, factory: Factory) -> None:
    mine, dead = slot_of(), slot_of()
    mine.boot()
    dead.boot()
    (what,) = factory.remove(dead.run_id)
    assert dead.run_id in what
    off = dead.heard(SignalKind.LOST, 1)
    assert off.detail == "somebody else switched it off"
    assert mine.backend.is_on()
    assert dead.backend.disk_overlay().exists()
    assert mine.run_id in [run for run, _ in factory.leftovers()]
    assert factory.remove(dead.run_id) == []


def test_nothing_runs_when_the_owner_is_killed_and_its_files_stay(
    image: Image, store: Path
) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(image.disk), str(CONTRACT), str(store), "private"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout
    assert owner.stdin
    folder = daemon_folder(owner.stdout.readline().strip())
    assert folder
    programs = ("virtlogd", "libvirtd", "qemu-system")
    for program in programs:
        assert processes(program, folder), program
    owner.kill()
    owner.wait()
    owner.stdout.close()
    owner.stdin.close()
    wait_for("all of it to end", lambda: not any(processes(one, folder) for one in programs), 20)
    wait_for("the daemons' folder to go", lambda: not Path(folder).exists(), 20)
    assert (store / "owned/disk.qcow2").stat().st_size > 0
    assert (store / "owned/console.log").exists()


def test_killed_libvirtd_comes_back_and_the_held_machine_with_it(slot: Slot) -> None:
    slot.boot()
    (libvirtd,) = processes("libvirtd", daemon_folder(slot.backend.address()))
    os.kill(libvirtd, signal.SIGKILL)
    slot.heard(SignalKind.RECONNECTED, 1)
    wait_for("the agent", lambda: answers(slot), 20)
    slot.backend.nmi()
    slot.heard(SignalKind.BUG_CHECK, 1)
    assert slot.heard(SignalKind.RESTART, 1).detail == "guest-reset"
    assert slot.boot() == 2


def test_free_machine_is_lost_with_its_libvirtd(slot: Slot) -> None:
    slot.boot(hold_restart=False)
    (libvirtd,) = processes("libvirtd", daemon_folder(slot.backend.address()))
    os.kill(libvirtd, signal.SIGKILL)
    with pytest.raises(MachineLost, match="may have restarted meanwhile") as lost:
        slot.signals.wait("never", lambda: False, 60, boot=1)
    assert lost.value.outcome is Outcome.INFRASTRUCTURE
    slot.backend.power_off()
    assert slot.boot() == 2


def test_libvirt_that_is_gone_for_good(
    own_factory: BackendFactory, store: Path, image: Image
) -> None:
    backend = own_factory.slot("gone", SignalLog())
    backend.provision(image, store / "gone", "gone-run")
    backend.start(hold_restart=True)
    folder = daemon_folder(backend.address())
    assert processes("qemu-system", folder)
    own_factory.close()
    assert not processes("qemu-system", folder)
    for refused in (backend.nmi, backend.is_on, lambda: backend.dispose(keep_disk=False)):
        with pytest.raises(BackendError, match="closed"):
            refused()
    assert backend.disk_overlay().exists()


def test_killed_qemu_is_the_hosts_fault(slot: Slot) -> None:
    slot.boot()
    name = slot.backend.address().partition(" on ")[0]
    of_host = set(processes("qemu-system", daemon_folder(slot.backend.address())))
    (qemu,) = of_host & set(processes("qemu-system", f"guest={name},"))
    os.kill(qemu, signal.SIGKILL)
    lost = slot.heard(SignalKind.LOST, 1)
    assert "QEMU ended by itself" in lost.detail
    assert not slot.backend.is_on()


def test_absent_libvirtd_is_named_with_its_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(libvirt_daemon, "DAEMON_FOLDERS", str(tmp_path))
    with pytest.raises(BackendError, match=r"\[hosts.here\].*no libvirtd.*apt-get install"):
        Factory("here", "private", tmp_path).slot("m", SignalLog())


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("qemu+ssh://far/system", "another machine"),
        ("qemu+unix:///session?socket=/none", "no libvirt answers"),
    ],
)
def test_uri_that_leads_nowhere(uri: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=words):
        Factory("there", uri, tmp_path).slot("m", SignalLog())


def test_killed_reaper_loses_the_machines_and_closing_tidies_up(
    own_factory: BackendFactory, store: Path, image: Image
) -> None:
    signals = SignalLog()
    backend = own_factory.slot("orphan", signals)
    backend.provision(image, store / "orphan", "orphan-run")
    backend.start(hold_restart=True)
    folder = daemon_folder(backend.address())
    of_host = [*processes("virtlogd", folder), *processes("libvirtd", folder)]
    for process in [*processes("python", f"tied\0{folder}"), *of_host]:
        os.kill(process, signal.SIGKILL)
    for process in processes("qemu-system", folder):
        os.kill(process, signal.SIGKILL)
    signals.wait("the loss", lambda: signals.of(SignalKind.LOST), 60)
    own_factory.close()
    assert not Path(folder).exists()
    assert backend.disk_overlay().exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs machines as another user")
def test_store_that_the_machines_user_cannot_enter(
    factory: BackendFactory, image: Image, tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    backend = factory.slot("m", SignalLog())
    with pytest.raises(BackendError, match=r"nobody.* cannot enter .*another store"):
        backend.provision(image, closed / "run", "run")
