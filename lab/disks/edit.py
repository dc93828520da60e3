r"""Edits of a powered-off machine's disk: delete or replace files, once the evidence is sealed.

Nothing that exists is written to. The edit goes into a new qcow2 layer on the overlay, is read back
there, and then the layer takes the overlay's name in one rename; the overlay stays as its backing
file, under the name NAME.before-edit-1 (-2, ...). So an edit cut off at any moment leaves the disk
as it was, costs no copy of the disk whatever its size, and what was edited can still be looked at.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Literal

from lab.disks import edit_worker
from lab.disks.blocks import BaseImageError, DiskError, DiskInUseError
from lab.disks.files import DiskFiles, FileInfo, open_files
from lab.disks.overlay import open_overlay

HASH_PIECE = 4 << 20


@dataclass(frozen=True)
class Delete:
    r"""Deletes the file C:\...; with * or ? in the last name, all files that match."""

    path: str


@dataclass(frozen=True)
class Replace:
    r"""Gives the file C:\... this content; it is created where there is none, its folder is not."""

    path: str
    content: bytes


Edit = Delete | Replace


@dataclass(frozen=True)
class EditDone:
    """What became of one file; `absent` is a Delete that found nothing, with its pattern as path.

    The hashes are None where there was, or is, no file.
    """

    path: str
    action: Literal["deleted", "replaced", "created", "absent"]
    before_sha256: str | None
    after_sha256: str | None


@dataclass(frozen=True)
class _Step:
    """One file, found on the disk."""

    done: EditDone
    content: bytes | None


def edit(overlay: Path, edits: Sequence[Edit], *, deadline: float = 300.0) -> list[EditDone]:
    """Makes the edits, all or none, on a qcow2 overlay that no machine has open.

    deadline: seconds for the tools that write. Takes no privilege but to write beside the overlay
    and to open /dev/fuse.

    Raises BaseImageError for a disk without backing file, DiskInUseError, DirtyLogError,
    HibernatedError, BitLockerError, FileNotFoundError for the folder of a file to be created, and
    DiskError for what cannot be read, written or read back. The disk is then as it was.
    """
    with _alone(overlay), open_files(open_overlay(overlay)) as files:
        # The open overlay keeps machines out until the end: QEMU's image lock.
        if files.edit_refusal:
            raise files.edit_refusal
        steps = _plan(files, edits)
        changes = [step for step in steps if step.done.action != "absent"]
        if changes:
            with _new_layer(overlay) as layer:
                _write(layer, files, changes, deadline)
                _verify(layer, changes)
    return [step.done for step in steps]


def _plan(files: DiskFiles, edits: Sequence[Edit]) -> list[_Step]:
    """The files meant by the edits, as they are now."""
    steps: list[_Step] = []
    for wanted in edits:
        path = PureWindowsPath(wanted.path)
        try:
            found = files.list(str(path.parent), path.name if _is_pattern(wanted) else "*")
        except FileNotFoundError:
            if isinstance(wanted, Replace):
                raise
            found = []
        if not _is_pattern(wanted):
            found = [files.stat(wanted.path)] if files.exists(wanted.path) else []
            if found and found[0].is_folder:
                raise DiskError(f"{wanted.path} is a folder: only files are deleted or replaced")
        found = [file for file in found if not file.is_folder]
        if isinstance(wanted, Replace):
            steps.append(_replacement(files, wanted, found))
        elif found:
            steps += [
                _Step(EditDone(file.path, "deleted", _sha256(files, file.path), None), None)
                for file in found
            ]
        else:
            steps.append(_Step(EditDone(wanted.path, "absent", None, None), None))
    # Of several edits of one file the last counts. These paths are compared without case.
    return list({PureWindowsPath(step.done.path): step for step in steps}.values())


def _is_pattern(wanted: Edit) -> bool:
    return isinstance(wanted, Delete) and any(c in PureWindowsPath(wanted.path).name for c in "*?")


def _replacement(files: DiskFiles, wanted: Replace, found: list[FileInfo]) -> _Step:
    after = hashlib.sha256(wanted.content).hexdigest()
    if found:
        path = found[0].path
        done = EditDone(path, "replaced", _sha256(files, path), after)
    else:
        new = PureWindowsPath(wanted.path)
        folder = files.stat(str(new.parent)).path
        done = EditDone(str(PureWindowsPath(folder) / new.name), "created", None, after)
    return _Step(done, wanted.content)


def _sha256(files: DiskFiles, path: str) -> str:
    digest = hashlib.sha256()
    offset = 0
    while piece := files.read(path, offset, HASH_PIECE):
        digest.update(piece)
        offset += len(piece)
    return digest.hexdigest()


@contextlib.contextmanager
def _alone(overlay: Path) -> Iterator[None]:
    """Refuses base images, and edits of one overlay at the same time."""
    with overlay.open("rb") as file:
        # The qcow2 header: magic, version, then the offset of the backing file's name, 0 for none.
        # https://gitlab.com/qemu-project/qemu/-/blob/master/docs/interop/qcow2.txt
        header = file.read(16)
        if header[:4] != b"QFI\xfb":
            raise DiskError(f"{overlay} is no qcow2 file: only overlays are edited")
        if not any(header[8:16]):
            raise BaseImageError(f"{overlay} has no backing file: it is a base, not an overlay")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DiskInUseError(f"{overlay} is being edited already") from None
        yield


@contextlib.contextmanager
def _new_layer(overlay: Path) -> Iterator[Path]:
    """An empty layer on the overlay, which takes its place unless the block raises."""
    layer = overlay.with_name(f"{overlay.name}.edited")
    layer.unlink(missing_ok=True)  # of an edit that was cut off
    before = _keep(overlay)
    try:
        made = subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", before.name,
             str(layer)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip
        if made.returncode:
            raise DiskError(f"no layer can be put on {overlay}: {made.stderr.strip()}")
        shutil.copymode(overlay, layer)
        if os.geteuid() == 0:
            owner = overlay.stat()
            os.chown(layer, owner.st_uid, owner.st_gid)
        yield layer
        with layer.open("rb") as file:
            os.fsync(file.fileno())
        layer.replace(overlay)
        folder = os.open(overlay.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except BaseException:
        layer.unlink(missing_ok=True)
        if before.samefile(overlay):
            before.unlink()
        raise


def layers_below(overlay: Path) -> list[Path]:
    """The layers that edits put under the overlay, the nearest first."""
    found: list[Path] = []
    number = 1
    while (before := overlay.with_name(f"{overlay.name}.before-edit-{number}")).exists():
        if not before.samefile(overlay):  # of an edit that was cut off
            found.insert(0, before)
        number += 1
    return found


def _keep(overlay: Path) -> Path:
    """A second name for the overlay, under which it is the backing file."""
    number = len(layers_below(overlay)) + 1
    before = overlay.with_name(f"{overlay.name}.before-edit-{number}")
    if not before.exists():  # else it is of an edit that was cut off
        os.link(overlay, before)
    return before


def _write(layer: Path, files: DiskFiles, steps: Sequence[_Step], deadline: float) -> None:
    """Has the worker write the steps into the volume on the layer."""
    task = {
        "disk": str(layer.absolute()),
        "offset": files.volume_offset,
        "length": files.volume_length,
        "filesystem": files.filesystem,
        "steps": [
            {
                "names": PureWindowsPath(step.done.path).parts[1:],
                "content": None
                if step.content is None
                else base64.b64encode(step.content).decode(),
            }
            for step in steps
        ],
    }
    namespaces = ["--mount", "--pid", "--fork", "--kill-child"]
    if os.geteuid():
        namespaces += ["--user", "--map-current-user", "--keep-caps"]
    with tempfile.TemporaryDirectory(prefix="edit-", dir=layer.parent) as scratch:
        worker = subprocess.Popen(
            ["unshare", *namespaces, sys.executable, "-I", edit_worker.__file__, scratch],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert worker.stdin is not None
        assert worker.stdout is not None
        # The group: unshare may not have told the kernel yet that its child goes with it.
        watchdog = threading.Timer(deadline, os.killpg, (worker.pid, signal.SIGKILL))
        watchdog.start()
        try:
            # The pipe stays open until the worker has ended: its end is how it would notice ours.
            with contextlib.suppress(BrokenPipeError):
                worker.stdin.write(json.dumps(task).encode() + b"\n")
                worker.stdin.flush()
            said = worker.stdout.read().decode(errors="replace").strip()
        finally:
            watchdog.cancel()
            os.killpg(worker.pid, signal.SIGKILL)
            code = worker.wait()
            worker.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                worker.stdin.close()
    if said != edit_worker.DONE:
        raise DiskError(
            f"the files could not be edited: {said or f'not done in {deadline:g} s (code {code})'}"
        )


def _verify(layer: Path, steps: Sequence[_Step]) -> None:
    """Reads the edited files back."""
    with open_files(open_overlay(layer)) as files:
        for step in steps:
            path, wanted = step.done.path, step.done.after_sha256
            found = _sha256(files, path) if files.exists(path) else None
            if found != wanted:
                raise DiskError(f"{path} was {step.done.action}, but reads back as {found}")
