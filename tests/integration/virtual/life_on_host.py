"""A machine's life on the libvirt of a URI, for the tests that run it as a process of its own.

python -m tests.integration.virtual.life_on_host URI DISK FOLDER [USER]
"""

from __future__ import annotations

import os
import pwd
import shutil
import sys
from pathlib import Path

from images.contract import CATALOG, load_contract
from lab.backend import Backend, Image
from lab.signals import SignalKind, SignalLog
from lab.virtual.libvirt import Factory


def life(uri: str, disk: Path, folder: Path) -> None:
    """Boots, crashes, boots, is saved, continues from there, and is disposed of."""
    contract = load_contract(CATALOG.parent / "test_kernel/contract.toml")
    image = Image("idle", contract, disk)
    owner = disk.stat().st_uid
    factory = Factory("there", uri, folder / "daemons")
    signals = SignalLog()
    machine: Backend = factory.slot("life", signals)
    machine.provision(image, folder / "run", "life-run")
    deadline = contract.deadlines.boot_to_agent

    def heard(kind: SignalKind, boot: int) -> None:
        signals.wait(f"{kind} in boot {boot}", lambda: signals.of(kind, boot=boot), deadline)

    machine.start(hold_restart=True)
    heard(SignalKind.AGENT_UP, 1)
    assert factory.leftovers() == [("life-run", f"machine lab-life-life-run on {uri}")]
    machine.nmi()
    heard(SignalKind.BUG_CHECK, 1)
    heard(SignalKind.RESTART, 1)
    assert b'"0x80"' in machine.console_log().read_bytes()
    with machine.disk() as blocks:
        assert blocks.read(510, 2) == b"\x55\xaa"
    machine.start(hold_restart=True)
    heard(SignalKind.AGENT_UP, 2)
    machine.save_memory(folder / "memory.sav")
    shutil.copyfile(machine.disk_overlay(), folder / "saved.qcow2")
    machine.revert(Image("saved", contract, folder / "saved.qcow2", memory=folder / "memory.sav"))
    machine.start(hold_restart=True)
    heard(SignalKind.AGENT_UP, 3)
    assert signals.of(SignalKind.RESTORED, boot=3)
    assert machine.agent("guest-ping", {}, 20) == {}
    machine.dump_memory(folder / "memory.dmp", "win-dmp")
    assert (folder / "memory.dmp").read_bytes()[:8] == b"PAGEDU64"
    machine.dispose(keep_disk=False)
    assert factory.leftovers() == []
    assert disk.stat().st_uid == owner
    factory.close()


def main() -> None:
    """See the module. USER: become that user first, with a home in FOLDER."""
    uri, disk, folder, *user = sys.argv[1:]
    if user:
        account = pwd.getpwnam(user[0])
        os.chown(folder, account.pw_uid, account.pw_gid)
        os.setgroups([])
        os.setresgid(*[account.pw_gid] * 3)
        os.setresuid(*[account.pw_uid] * 3)
    life(uri, Path(disk), Path(folder))
    print("lived", flush=True)


if __name__ == "__main__":
    main()
