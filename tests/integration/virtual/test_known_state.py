"""Known states: disk, NVRAM, TPM and memory are back after a revert; bases stay as they are."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from images.contract import Contract
from lab.backend import BackendError, Image
from lab.signals import SignalKind
from tests.integration.virtual.conftest import Slot, SlotFactory
from tests.support.waiting import wait_for

NOTE = r"C:\Windows\Temp\note.txt"


def write_note(slot: Slot) -> None:
    handle = slot.backend.agent("guest-file-open", {"path": NOTE, "mode": "wb"}, 20)
    data = {"handle": handle, "buf-b64": "bm90ZQ=="}
    slot.backend.agent("guest-file-write", data, 20)
    slot.backend.agent("guest-file-close", {"handle": handle}, 20)


def has_note(slot: Slot) -> bool:
    try:
        handle = slot.backend.agent("guest-file-open", {"path": NOTE, "mode": "rb"}, 20)
    except BackendError as error:
        assert "cannot find the file" in str(error)  # noqa: PT017
        return False
    slot.backend.agent("guest-file-close", {"handle": handle}, 20)
    return True


def digest(path: Path) -> str:
    """Of a file, or of all files of a folder."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    whole = hashlib.sha256()
    for file in files:
        if file.is_file() and not file.name.startswith(".lock"):
            whole.update((file.name.encode() if path.is_dir() else b"") + file.read_bytes())
    return whole.hexdigest()


def test_revert_gives_the_images_disk(slot: Slot) -> None:
    slot.boot()
    write_note(slot)
    assert has_note(slot)
    slot.backend.power_off()
    slot.boot()
    assert has_note(slot)
    slot.backend.revert(slot.image)
    assert not slot.backend.is_on()
    slot.boot()
    assert not has_note(slot)


def test_raw_bases(slot_of: SlotFactory, image: Image, store: Path) -> None:
    raw = store / "idle.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(image.disk), str(raw)], check=True)
    assert slot_of(replace(image, disk=raw)).boot() == 1


def test_an_earlier_disk_in_the_folder_is_not_overwritten(slot: Slot, slot_of: SlotFactory) -> None:
    slot.boot()
    write_note(slot)
    slot.backend.dispose(keep_disk=True)
    kept = digest(slot.folder / "disk.qcow2")
    with pytest.raises(BackendError, match="it may be evidence"):
        slot.backend.provision(slot.image, slot.folder, "another-run")
    assert digest(slot.folder / "disk.qcow2") == kept
    (slot.folder / "disk.qcow2").unlink()
    slot.backend.provision(slot.image, slot.folder, "another-run")


def saved(slot: Slot, folder: Path) -> Image:
    """The slot's running machine as an image of its own; the slot is off then."""
    memory, disk = folder / "memory.sav", folder / "saved.qcow2"
    slot.backend.save_memory(memory)
    assert not slot.backend.is_on()
    shutil.copyfile(slot.backend.disk_overlay(), disk)
    return replace(slot.image, name="saved", disk=disk, memory=memory)


def test_two_machines_continue_from_the_same_memory(
    slot: Slot, slot_of: SlotFactory, store: Path
) -> None:
    slot.boot()
    write_note(slot)
    image = saved(slot, store)
    assert slot.heard(SignalKind.POWER_OFF, 1, 1).detail == "saved"
    slot.backend.dispose(keep_disk=False)
    before = digest(image.base), digest(image.memory or store)
    machines = [slot_of(image), slot_of(image)]
    for machine in machines:
        machine.backend.start(hold_restart=True)
    for machine in machines:
        machine.heard(SignalKind.AGENT_UP, 1)
        assert machine.signals.all()[0].kind == SignalKind.RESTORED
        assert has_note(machine)
        machine.backend.nmi()
        machine.heard(SignalKind.RESTART, 1)
        assert b'"0x80"' in machine.backend.console_log().read_bytes()
    # Its memory belongs to the first start only: this is a boot from the disk.
    assert machines[0].boot() == 2
    assert machines[0].signals.of(SignalKind.POWER_ON, boot=2)
    assert has_note(machines[0])
    # And again after a revert.
    machines[0].backend.revert(image)
    machines[0].boot()
    assert machines[0].signals.of(SignalKind.RESTORED, boot=3)
    assert (digest(image.base), digest(image.memory or store)) == before


def test_file_that_is_no_saved_memory(slot_of: SlotFactory, image: Image, store: Path) -> None:
    wrong = store / "wrong.sav"
    for content in (b"", b"LibvirtQemudSave", b"LibvirtQemudSave" + bytes(500)):
        wrong.write_bytes(content)
        slot = slot_of(replace(image, memory=wrong))
        with pytest.raises(BackendError, match="not memory saved by libvirt"):
            slot.backend.start(hold_restart=True)
        assert not slot.backend.is_on()
        assert slot.signals.all() == []


@pytest.fixture(scope="session")
def secure_image(store: Path, contract: Contract) -> Image:
    """UEFI with secure boot and a TPM over an empty disk: its firmware is the guest."""
    disk = store / "empty.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(disk), "8M"], check=True)
    hardware = contract.hardware.model_copy(
        update={"machine": "q35", "firmware": "uefi-secure-boot", "disk_bus": "sata",
                "memory_mib": 256}
    )  # fmt: skip
    return Image("secure", contract.model_copy(update={"hardware": hardware}), disk)


def tpm_of(slot: Slot) -> Path:
    """Where the slot's TPM keeps its state."""
    (found,) = slot.folder.glob("tpm-of-*/tpm2")
    return found


def test_nvram_and_tpm_are_back_after_a_revert(
    slot_of: SlotFactory, secure_image: Image, store: Path
) -> None:
    first = slot_of(secure_image)
    first.backend.start(hold_restart=True)
    first.backend.save_memory(store / "secure.sav")
    nvram, tpm = store / "secure-nvram.fd", store / "secure-tpm"
    shutil.copyfile(first.folder / "nvram.fd", nvram)
    shutil.copytree(tpm_of(first), tpm)
    image = replace(secure_image, nvram=nvram, tpm=tpm)
    known = digest(nvram), digest(tpm)

    continued = slot_of(replace(image, memory=store / "secure.sav"))
    continued.backend.start(hold_restart=True)
    assert [s.kind for s in continued.signals.all()] == [SignalKind.RESTORED]
    assert continued.backend.screenshot()
    assert continued.backend.is_on()
    continued.backend.power_off()

    second = slot_of(image)
    second.backend.start(hold_restart=True)
    wait_for(
        "the firmware to write both",
        lambda: (
            known[0] != digest(second.folder / "nvram.fd") and known[1] != digest(tpm_of(second))
        ),
        second.contract.deadlines.boot_to_agent,
    )
    second.backend.power_off()
    second.backend.revert(image)
    assert (digest(second.folder / "nvram.fd"), digest(tpm_of(second))) == known
    assert (digest(nvram), digest(tpm)) == known
    second.backend.dispose(keep_disk=False)
    assert not list(second.folder.glob("tpm-of-*"))
    assert not (second.folder / "nvram.fd").exists()
