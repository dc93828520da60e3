"""A known state with memory: an image that was booted once and saved, for runs that restore it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version

from lab.backend import OVERLAY, Image
from lab.images import locked
from lab.lab import Lab
from lab.leases import Lease
from lab.outcome import InfrastructureError, LabError

MEMORY = "memory.sav"


def with_memory(lab: Lab, lease: Lease, image: Image, say: Callable[[str], None]) -> Image:
    """The image's state right after a boot: its disk then, and the memory that belongs to it.

    Made once, on the leased machine, and kept in the store until image or contract change.
    """
    if "save-restore" not in lab.features_of(lease.slot):
        raise LabError(f"machine {lease.slot} cannot save its memory: it has no save-restore")
    identity = lab.images.identity(image)
    # Another version of the lab may describe its machines otherwise.
    made_of = version("bugcheck-lab") + "".join(
        f"{part}{entry['sha256']}" for part, entry in sorted(identity.items())
    )
    name = f"{image.name}-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}-memory"
    folder = lab.config.store / "images" / name
    with locked(folder.with_suffix(".lock"), lambda: say(f"Waiting for another process: {name}")):
        if not folder.exists():
            say(f"Booting {image.name} once and saving its memory")
            making = folder.with_suffix(".part")
            if making.exists():  # of a process that was killed
                shutil.rmtree(making)
            machine = lab.machine(lease, image, making)
            try:
                machine.start()
                machine.wait_for_agent()
                machine.save_memory(making / MEMORY)
            except LabError as error:
                raise InfrastructureError(
                    f"image {image.name} cannot be saved with its memory: {error}; its disk is in"
                    f" {making}"
                ) from error
            finally:
                machine.dispose(keep_disk=True)
            making.rename(folder)
    for file in (folder / OVERLAY, folder / MEMORY):
        file.chmod(0o444)  # machines write to their clones
    return replace(image, disk=folder / OVERLAY, memory=folder / MEMORY)
