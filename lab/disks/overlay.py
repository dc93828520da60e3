"""A local disk image, qcow2 with its backing files or raw, as a block source.

QEMU itself reads the format, in a process of `qemu-nbd` (Debian's qemu-utils) on a socket that only
this process holds. That takes no privilege but to read the files. The server ends with close(), and
when this process dies in any way.
"""

from __future__ import annotations

import socket
import subprocess
import tempfile
from pathlib import Path
from typing import IO, Literal

from lab.disks.blocks import DiskError, DiskInUseError
from lab.disks.nbd import NetworkBlocks

# qemu-nbd leaves when its client does, but only after the handshake. The shell around it covers the
# time before: it reads a pipe that ends with this process, however that dies. (A parent-death
# signal would come when the *thread* ends that opened the disk.) qemu-nbd takes its listening
# socket as file 3 by systemd's protocol, so nobody waits for a socket to appear.
SERVE = """
LISTEN_FDS=1; export LISTEN_FDS
sh -c 'LISTEN_PID=$$; export LISTEN_PID; exec qemu-nbd "$@"' serve "$@" 3<&1 >/dev/null </dev/null &
exec >/dev/null
read -r _
kill -9 $! 2>/dev/null
wait
"""


def open_overlay(
    path: Path,
    *,
    image_format: Literal["qcow2", "raw"] = "qcow2",
    in_use: bool = False,
    deadline: float = 60.0,
) -> NetworkBlocks:
    """Opens a disk image for reading, backing files and all.

    image_format: never guessed, because a guest could write a qcow2 header into a raw disk and so
    name any file of the host as its backing file.
    in_use: read the disk although a machine has it open. What is read is then what a cut of the
    power at that moment would leave, at best; without it such a disk raises DiskInUseError, and no
    machine can open it for writing before close().
    deadline: seconds for one answer of the server.

    Raises DiskError when the image cannot be opened.
    """
    listener = socket.socket(socket.AF_UNIX)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(deadline)
    with listener:
        with tempfile.TemporaryDirectory(prefix="disk-") as folder:
            listener.bind(f"{folder}/socket")
            listener.listen(1)
            connection.connect(f"{folder}/socket")  # the folder has done its work
        errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with the disk
        image = {
            "driver": image_format,
            "file.driver": "file",
            "file.filename": str(path.absolute()),
            **({"force-share": "on"} if in_use else {}),
        }
        # In QEMU's option lists a comma in a value is written twice.
        options = ",".join(f"{key}={value.replace(',', ',,')}" for key, value in image.items())
        server = subprocess.Popen(
            ["sh", "-c", SERVE, "serve", "--read-only", "--image-opts", options],
            stdin=subprocess.PIPE,
            stdout=listener.fileno(),
            stderr=errors,
            start_new_session=True,  # Ctrl-C is for the harness, which may have evidence to copy
        )
    try:
        return _LocalDisk(connection, server, errors)
    except DiskError as error:
        connection.close()
        said = _end(server, errors)
        if "lock" in said:
            raise DiskInUseError(f"{path} is in use by a machine: {said}") from error
        raise DiskError(f"{path} cannot be opened as {image_format}: {said or error}") from error
    except BaseException:
        connection.close()
        _end(server, errors)
        raise


class _LocalDisk(NetworkBlocks):
    """The blocks, and the process that serves them."""

    def __init__(
        self,
        connection: socket.socket,
        server: subprocess.Popen[bytes],
        errors: IO[bytes],
    ) -> None:
        super().__init__(connection)
        self._server = server
        self._errors = errors

    def close(self) -> None:
        super().close()
        if not self._errors.closed:
            _end(self._server, self._errors)


def _end(server: subprocess.Popen[bytes], errors: IO[bytes]) -> str:
    """Ends the server; returns what it complained about."""
    assert server.stdin is not None
    server.stdin.close()
    server.wait()
    with errors:
        errors.seek(0)
        return " ".join(errors.read(4000).decode(errors="replace").split())
