"""Files of a running Windows over SFTP, as lab.dumps wants them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, TypeVar

import asyncssh

from lab.backend import AgentError, AgentSilent, AgentUnreachable
from lab.disks.blocks import DiskError
from lab.disks.files import FileInfo

if TYPE_CHECKING:
    from lab.guest.ssh import SshGuest

T = TypeVar("T")
PIECE = 1 << 20
"""Bytes of a file in one request; each has the deadline for a command."""


class SshFiles:
    """What lab.dumps asks of a disk, of a Windows that runs: see lab.dumps.DumpFiles."""

    def __init__(self, guest: SshGuest) -> None:
        self._sftp = guest.sftp
        self.warnings: list[str] = []

    def stat(self, path: str) -> FileInfo:
        """Raises FileNotFoundError."""

        async def work(client: asyncssh.SFTPClient) -> asyncssh.SFTPAttrs:
            return await client.stat(path_there(path))

        return _info(path, self._do(path, work))

    def list(self, folder: str, pattern: str = "*") -> list[FileInfo]:
        """What is in the folder and matches, * and ? being wild. Raises FileNotFoundError."""

        async def work(client: asyncssh.SFTPClient) -> list[tuple[str, asyncssh.SFTPAttrs]]:
            found = await client.readdir(path_there(folder))
            return [(str(one.filename), one.attrs) for one in found]

        return [
            _info(str(PureWindowsPath(folder) / name), attributes)
            for name, attributes in self._do(folder, work)
            if fnmatch(name.lower(), pattern.lower()) and name not in {".", ".."}
        ]

    def read(
        self,
        path: str,
        offset: int = 0,
        length: int | None = None,
        *,
        past_valid_data: bool = False,
    ) -> bytes:
        """Bytes of a file; fewer than `length` only at its end.

        past_valid_data says nothing here: what a running Windows shows is valid.
        """

        async def work(client: asyncssh.SFTPClient) -> bytes:
            async with client.open(path_there(path), "rb") as file:
                # bytes, though its type says str
                content: Any = await file.read(-1 if length is None else length, offset)
            return bytes(content)

        return self._do(path, work)

    def copy(
        self,
        path: str,
        destination: Path,
        *,
        length: int | None = None,
        past_valid_data: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Copies a file, or its first `length` bytes; returns the bytes copied, on stable storage.

        Raises FileNotFoundError, DiskError, and OSError where the host cannot take it.
        """
        end = self.stat(path).size if length is None else length
        done = 0
        with destination.open("wb") as sink:
            while done < end:
                piece = self.read(path, done, min(PIECE, end - done))
                if not piece:
                    raise DiskError(f"{path} ends at byte {done}, and {end} are wanted")
                sink.write(piece)
                done += len(piece)
                if progress:
                    progress(done)
        return done

    def _do(self, path: str, work: Callable[[asyncssh.SFTPClient], Coroutine[Any, Any, T]]) -> T:
        try:
            return self._sftp(path, work)
        except (AgentUnreachable, AgentSilent):
            raise  # the machine, not the file
        except AgentError as error:
            raise DiskError(str(error)) from None


def path_there(path: str) -> str:
    r"""C:\x as OpenSSH for Windows names it over SFTP: /C:/x."""
    return "/" + PureWindowsPath(path).as_posix()


def _info(path: str, attributes: asyncssh.SFTPAttrs) -> FileInfo:
    modified = None
    if attributes.mtime is not None:
        modified = datetime.fromtimestamp(attributes.mtime, UTC)
    size = attributes.size or 0
    is_folder = attributes.type == asyncssh.FILEXFER_TYPE_DIRECTORY
    return FileInfo(path, size, modified, size, is_folder)
