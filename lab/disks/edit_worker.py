"""Writes to the files of one volume, run by lab/disks/edit.py.

    unshare --mount --pid --fork --kill-child [--user --map-current-user --keep-caps] \
        python -I edit_worker.py SCRATCH_FOLDER

It is the first process of a process namespace and has a mount namespace of its own: whatever ends
it ends the tools it runs and takes away their mounts. The task is one line of JSON on standard
input; when that ends, the one who asked is gone, and so is this process. It prints "done" or what
went wrong.

Not root, it has the rights of root in a user namespace of its own, under its own user id: ntfs-3g
refuses to run as a mapped root, which may not set its groups.

QEMU shows the volume as a file (FUSE). mtools edits FAT32 in that file; ntfs-3g mounts it as NTFS.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from signal import SIGTERM
from typing import Any

DONE = "done"


class ToolError(Exception):
    """A tool failed; the message is what it said."""


def edit_volume(task: dict[str, Any], scratch: Path) -> None:
    """Does the task. Raises ToolError and OSError."""
    volume = scratch / "volume"
    volume.touch()
    server_id = scratch / "server"
    disk = {"driver": "file", "filename": task["disk"]}
    overlay = {"driver": "qcow2", "node-name": "overlay", "file": disk}
    part = {
        "driver": "raw",
        "node-name": "volume",
        "file": "overlay",
        "offset": task["offset"],
        "size": task["length"],
    }
    export = {
        "type": "fuse",
        "id": "volume",
        "node-name": "volume",
        "mountpoint": str(volume),
        "writable": True,
    }
    _run(
        "qemu-storage-daemon", "--daemonize", "--pidfile", str(server_id),
        "--blockdev", json.dumps(overlay), "--blockdev", json.dumps(part),
        "--export", json.dumps(export),
    )  # fmt: skip
    server = int(server_id.read_text())
    # Until asked for once, a new FUSE mount has no owner, and Linux lets only root open it.
    volume.stat()
    if task["filesystem"] == "ntfs":
        mount = scratch / "mount"
        mount.mkdir()
        _edit_ntfs(volume, mount, task["steps"], server)
    else:
        _edit_fat32(volume, task["steps"])
    os.kill(server, SIGTERM)  # it writes out what it holds
    _, status = os.waitpid(server, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise ToolError(f"qemu-storage-daemon ended with code {code}")


def _edit_fat32(volume: Path, steps: Sequence[dict[str, Any]]) -> None:
    for step in steps:
        if any(set(name) & set('*?[]"\\/') for name in step["names"]):
            raise ToolError(f"mtools cannot be told the name {step['names']!r}")
        path = "::/" + "/".join(step["names"])
        if step["content"] is None:
            _run("mdel", "-i", str(volume), path)
        else:
            content = base64.b64decode(step["content"])
            try:
                _run("mcopy", "-o", "-i", str(volume), "-", path, content=content)
            except ToolError as error:
                # In which of two places mcopy notices depends on what it could count in time.
                if "Disk full" in str(error) or "No free cluster" in str(error):
                    raise ToolError(
                        f"the volume is full: no room for the {len(content)} bytes of"
                        f" {step['names'][-1]} (mcopy: {error})"
                    ) from None
                raise


def _edit_ntfs(volume: Path, mount: Path, steps: Sequence[dict[str, Any]], server: int) -> None:
    # norecover: a log that is not clean is refused, never thrown away. uid to umask: all is ours.
    options = f"norecover,windows_names,noatime,uid={os.getuid()},gid={os.getgid()},umask=0"
    _run("ntfs-3g", "-o", options, str(volume), str(mount))
    try:
        for step in steps:
            with _folder(mount, step["names"][:-1]) as folder:
                _edit_file(folder, step["names"][-1], step["content"])
    finally:
        if ctypes.CDLL(None, use_errno=True).umount2(os.fsencode(mount), 0):
            raise ToolError(f"NTFS cannot be unmounted: {os.strerror(ctypes.get_errno())}")
    # Unmounting does not wait for ntfs-3g; as the first process here we are given it as a child.
    ended, status = os.waitpid(-1, 0)
    if ended == server:
        raise ToolError("qemu-storage-daemon ended too early")
    if code := os.waitstatus_to_exitcode(status):
        raise ToolError(f"ntfs-3g ended with code {code}")


def _edit_file(folder: int, name: str, content: str | None) -> None:
    if content is None:
        os.unlink(name, dir_fd=folder)
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with open(os.open(name, flags, 0o644, dir_fd=folder), "wb") as file:
        file.write(base64.b64decode(content))
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _folder(root: Path, names: Sequence[str]) -> Iterator[int]:
    """Opens a folder name by name; a link on the disk must not lead out of it."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in names:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            inner = os.open(name, flags, dir_fd=folder)
            os.close(folder)
            folder = inner
        yield folder
    finally:
        os.close(folder)


def _run(*command: str, content: bytes = b"") -> None:
    environment = {
        "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "MTOOLS_SKIP_CHECK": "1",
    }
    try:
        done = subprocess.run(
            command,
            env=environment,
            input=content,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except FileNotFoundError:
        raise ToolError(f"{command[0]} is not installed: see `lab check`") from None
    # mcopy says "Disk full" and gives 0; it and mdel say nothing when all is well.
    if done.returncode or (done.stdout and command[0] in ("mcopy", "mdel")):
        raise ToolError(f"{command[0]}: {done.stdout.decode(errors='replace').strip()}")


def _leave_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing comes but the end
    os._exit(1)


def main() -> None:
    """See the module."""
    task = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        edit_volume(task, Path(sys.argv[1]))
    except (ToolError, OSError) as error:
        print(error)
    else:
        print(DONE)


if __name__ == "__main__":
    main()
