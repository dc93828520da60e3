"""The files of one machine in a run's folder: made from an image's known state, and removed."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from lab.backend import OVERLAY, BackendError, Image
from lab.disks.edit import layers_below
from lab.virtual.console_log import ConsoleLog
from lab.virtual.domain_xml import DomainFiles, DomainIdentity, has_tpm
from lab.virtual.libvirt_daemon import Daemon

TPM_FOLDER = "tpm-of-"
"""How the folder with a TPM's state begins; the run's id follows, for libvirt has a link to it."""


@dataclass(frozen=True)
class MachineFiles:
    """What provision() made for one run. COM1's log and its times are never removed."""

    image: Image
    folder: Path
    identity: DomainIdentity
    console: ConsoleLog
    daemon: Daemon

    @property
    def domain(self) -> DomainFiles:
        """What the domain's description names."""
        return DomainFiles(
            self.image.base.resolve(),
            tuple(layers_below(self.folder / OVERLAY)),
            self.folder / OVERLAY,
            self.console.written_by_libvirt,
            self.folder / "nvram.fd",
        )

    @property
    def tpm(self) -> Path:
        """The TPM's state."""
        return self.folder / f"{TPM_FOLDER}{self.identity.run_id}"

    def make(self) -> None:
        """A clone of the disk, copies of NVRAM and TPM state. Leaves nothing if that fails.

        Raises BackendError.
        """
        account = self.daemon.account
        try:
            if account:
                account.own(self.folder)
                account.require_access(self.folder)
                account.require_access(self.image.base)
            self._clone_disk()
            made = [self.domain.disk]
            if self.image.nvram:
                shutil.copyfile(self.image.nvram, self.domain.nvram)
                made.append(self.domain.nvram)
            if has_tpm(self.image):
                self._make_tpm()
                made.append(self.tpm)
            if account:
                for path in made:
                    account.own(path)
        except BaseException as error:
            self.remove_state()
            self.remove_disk()
            if isinstance(error, OSError):
                raise BackendError(f"{self.folder}: make {self.image.name}: {error}") from error
            raise

    def _clone_disk(self) -> None:
        files = self.domain
        made = subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-F", files.base_format,
             "-b", str(files.base), str(files.disk)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip
        if made.returncode:
            raise BackendError(f"clone {files.base} to {files.disk}: {made.stderr.strip()}")

    def _make_tpm(self) -> None:
        """libvirt 9 has one place for all TPMs; a link there leads to the machine's folder."""
        states = self.daemon.tpm_states
        if states is None:
            raise BackendError(
                f"{self.identity.name} needs a TPM, and where {self.daemon.uri} keeps those is not"
                ' known; use "private", qemu:///session or qemu:///system'
            )
        if self.image.tpm:
            shutil.copytree(self.image.tpm, self.tpm / "tpm2")
        else:
            self.tpm.mkdir()
        if not states.exists():
            states.mkdir(parents=True, mode=0o711)
            if self.daemon.account:
                self.daemon.account.own(states)
        (states / self.identity.uuid).symlink_to(self.tpm)

    def remove_disk(self) -> None:
        """The clone, and the layers under it that edits left."""
        for file in self.folder.glob(f"{OVERLAY}*"):
            file.unlink()

    def remove_state(self) -> None:
        """NVRAM and TPM."""
        self.domain.nvram.unlink(missing_ok=True)
        if self.tpm.exists():
            shutil.rmtree(self.tpm)
        if self.daemon.tpm_states:
            (self.daemon.tpm_states / self.identity.uuid).unlink(missing_ok=True)
