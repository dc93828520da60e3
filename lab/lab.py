"""A lab that is open: its settings, its store, its leases, and machines for those who hold one."""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lab.backend import BackendFactory, Feature, Image
from lab.config import BACKEND_FOLDERS, Config, Slot
from lab.images import ImageStore
from lab.leases import Holding, Lease, open_leases
from lab.machine import Machine
from lab.outcome import InfrastructureError, LabError
from lab.signals import SignalLog

Say = Callable[[str], None]


class Lab:
    """Everything one lab.toml describes; a context manager that disconnects at its end."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.runs.mkdir(parents=True, exist_ok=True)
        self.images = ImageStore(config)
        self.leases = open_leases(config)
        self._factories: dict[tuple[str, str], BackendFactory] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Disconnects from every hypervisor; daemons the lab started for itself end."""
        for factory in self._factories.values():
            factory.close()
        self._factories.clear()

    @property
    def runs(self) -> Path:
        """Where each run has its folder."""
        return self.config.store / "runs"

    def slots(
        self, name: str | None = None, tags: Sequence[str] = (), image: str | None = None
    ) -> list[str]:
        """The slots of a [machines.NAME] table, or one slot, or all; with all of the tags.

        image: those only that can be put into its state or, where it is installed, have it.
        """
        wanted = set(tags)
        found = [
            slot.name
            for slot in self.config.slots().values()
            if name in (None, slot.name, slot.machine) and wanted <= slot.tags
        ]
        if not found:
            asked = f"machine {name!r}" if name else "a machine"
            with_tags = f" with tags {', '.join(sorted(wanted))}" if wanted else ""
            raise LabError(
                f"{self.config.file}: {asked}{with_tags} is wanted, and there is none; known:"
                f" {', '.join(self.config.slots()) or 'no machine at all'}"
            )
        if image is None:
            return found
        installed = self.config.image(image).installed
        fitting = [one for one in found if ("disk" in self.features_of(one)) is not installed]
        if not fitting:
            why = (
                "is installed on physical machines only"
                if installed
                else "has a disk, and nothing can be written to theirs: it takes an image with"
                " installed = true"
            )
            raise LabError(
                f"{self.config.where('images', image)}: image {image} does not fit"
                f" {', '.join(found)}: it {why}"
            )
        return fitting

    def lease(
        self,
        slots: Sequence[str],
        *,
        purpose: str,
        run_id: str,
        wait: float,
        say: Say,
        quarantined: bool = False,
    ) -> Lease:
        """Leases any one of some slots; waits up to `wait` seconds and says for whom.

        quarantined: also one that was taken out of the pool.
        """

        def waiting(holdings: list[Holding]) -> None:
            said = "; ".join(f"{one.slot}: {one.holder} ({one.purpose})" for one in holdings)
            say(f"Waiting for a machine; held: {said}")

        return self.leases.acquire(
            slots,
            holder=f"{os.environ.get('USER') or os.getuid()}@{socket.gethostname()}",
            purpose=purpose,
            run_id=run_id,
            wait=wait,
            on_wait=waiting,
            quarantined=quarantined,
        )

    def machine(self, lease: Lease, image: Image, folder: Path) -> Machine:
        """The machine of a lease, in the image's known state, off. The one way to a backend."""
        lease.confirm("provision")
        slot = self.config.slots()[lease.slot]
        signals = SignalLog()
        backend = self.factory(slot).slot(slot.name, signals, lease.confirm)
        backend.provision(image, folder, lease.run_id)
        return Machine(backend, lease, image, signals, folder)

    def features_of(self, slot: str) -> frozenset[Feature]:
        """What a machine has, before it is leased."""
        found = self.config.slots()[slot]
        factory: type[BackendFactory] = _backend_module(found.backend).Factory
        return factory.features_of(self.config, found)

    def factory(self, slot: Slot) -> BackendFactory:
        """The backend's connection for a slot's host, made when it is first needed."""
        key = (slot.backend, slot.host_name)
        if key not in self._factories:
            self._factories[key] = _backend_module(slot.backend).Factory.of(self.config, slot)
        return self._factories[key]

    def run_folder(self, run: str) -> Path:
        """The folder of a run, by its id or the start of it, or by path; "last" is the newest."""
        if (folder := Path(run)).is_dir():
            return folder
        known = sorted(one for one in self.runs.iterdir() if one.is_dir())
        if run == "last" and known:
            return known[-1]
        found = [one for one in known if one.name.startswith(run)]
        if len(found) != 1:
            newest = ", ".join(one.name for one in known[-5:]) or "none"
            what = "several runs begin" if found else "no run begins"
            raise LabError(f"{self.runs}: {what} with {run!r}; the newest are: {newest}")
        return found[0]


def _backend_module(name: str) -> Any:
    for folder in BACKEND_FOLDERS:
        try:
            return importlib.import_module(f"lab.{folder}.{name}")
        except ModuleNotFoundError as error:
            if error.name in {f"lab.{folder}", f"lab.{folder}.{name}"}:
                continue
            raise InfrastructureError(
                f"backend {name!r} needs {error.name}, which is not installed:"
                " pip install 'bugcheck-lab[lab]'"
            ) from error
    raise LabError(f"no backend {name!r} in lab/{' or lab/'.join(BACKEND_FOLDERS)}")
