"""What a machine's own sshd would do, played in front of its guest agent.

The test kernel has no network and no sshd. So asyncssh's server stands on loopback and hands what
OpenSSH for Windows would carry out to the agent inside: programs, files, the clock. Folders are
read from the disk, for the agent lists none. Of PowerShell it knows the lab's own questions only.
A machine that is off, or whose agent is silent, is silent here, too.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PureWindowsPath
from typing import Any, Literal, TypeVar

import asyncssh
import libvirt
import libvirt_qemu

from lab.disks.files import FileInfo, open_files
from lab.disks.overlay import open_overlay
from lab.guest.windows_commands import LAST_BOOT, NOW

T = TypeVar("T")
USER, PASSWORD = "Administrator", "of-the-machine"
CHUNK = 48 * 1024
AGENT_SECONDS = 20
ALIVE_SECONDS = 2
"""For an agent's answer to a new connection."""
WATCH_SECONDS = 0.1
ENDING = re.compile(r" & call echo (\S+)%\^errorlevel%$")
FOR_EVER = 3600.0
"""For what nobody answers."""
NOT_FOUND = ("cannot find the file", "cannot find the path", "No such file")


class Silent(Exception):  # noqa: N818 - a state
    """The agent does not answer."""


class Refused(Exception):  # noqa: N818 - an answer
    """The agent answered with an error."""


class Agent:
    """A machine's guest agent and disk, by way of the libvirt that the box is made of."""

    def __init__(self, uri: str, domain: str, disk: Path) -> None:
        libvirt.registerErrorHandler(lambda *_: None, None)
        self._connection = libvirt.open(uri)
        self._domain = self._connection.lookupByName(domain)
        self._disk = disk

    def close(self) -> None:
        """Lets libvirt go."""
        self._domain = None
        self._connection.close()

    def power_on(self) -> int:
        """A number for the machine's power-on; 0 while it is off."""
        with suppress(libvirt.libvirtError):
            return int(self._domain.ID()) if self._domain.isActive() else 0
        return 0

    def ask(self, command: str, seconds: int = AGENT_SECONDS, **arguments: object) -> Any:
        """One command."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        request = json.dumps({"execute": command, "arguments": named})
        try:
            answer = libvirt_qemu.qemuAgentCommand(self._domain, request, seconds, 0)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_INTERNAL_ERROR:
                text = str(error)
                if "unable to execute" in text:
                    raise Refused(text.partition(": ")[2]) from None
            raise Silent(str(error)) from None
        return json.loads(answer)["return"]

    def read(self, path: str) -> bytes:
        """A whole file."""
        handle = self.ask("guest-file-open", path=path, mode="rb")
        content = b""
        while True:
            piece = self.ask("guest-file-read", handle=handle, count=CHUNK)
            content += base64.b64decode(piece["buf-b64"])
            if piece["eof"]:
                self.ask("guest-file-close", handle=handle)
                return content

    def write(self, path: str, content: bytes) -> None:
        """A whole file."""
        handle = self.ask("guest-file-open", path=path, mode="wb")
        for start in range(0, len(content), CHUNK):
            part = base64.b64encode(content[start : start + CHUNK]).decode()
            self.ask("guest-file-write", handle=handle, buf_b64=part)
        self.ask("guest-file-close", handle=handle)

    def list(self, folder: str, pattern: str = "*") -> list[FileInfo]:
        """What a folder holds, as the disk is now."""
        with open_files(open_overlay(self._disk, image_format="raw", in_use=True)) as files:
            return files.list(folder, pattern)


def split_command(line: str) -> list[str]:
    """A command line's words as a Windows program gets them: carets off (cmd.exe), then quotes.

    Microsoft, "Parsing C++ command-line arguments"; cmd.exe never sees a quote here without its
    caret, so it takes nothing for quoted.
    """
    line = re.sub(r"\^(.)", r"\1", line)
    words: list[str] = []
    word, quoted, at = "", False, 0
    begun = False
    while at < len(line):
        slashes = len(line) - at - len(line[at:].lstrip("\\"))
        at += slashes
        if at < len(line) and line[at] == '"':
            word += "\\" * (slashes // 2)
            begun = True
            if slashes % 2:
                word += '"'
            else:
                quoted = not quoted
            at += 1
            continue
        word += "\\" * slashes
        begun = begun or slashes > 0
        if at < len(line):
            if line[at] in " \t" and not quoted:
                if begun:
                    words.append(word)
                word, begun = "", False
            else:
                word += line[at]
                begun = True
            at += 1
    return [*words, word] if begun else words


@dataclass
class Answer:
    """What a command printed."""

    code: int
    output: str = ""
    errors: str = ""


class GuestDoor:
    """An SSH server on 127.0.0.1:`port` for one machine, while entered.

    resets: a number that grows with each reset of the machine. unplugged: as if its network cable
    were out, until a person puts it in, or ("until it restarts") until then.
    """

    def __init__(self, agent: Agent, resets: Callable[[], int], folder: Path) -> None:
        self.agent = agent
        self.unplugged: Literal["", "for good", "until it restarts"] = ""
        self.commands: list[str] = []
        self.slowness = 0.0
        """Seconds that each command takes, beyond its own."""
        self._resets = resets
        self._folder = folder
        self._connections: set[asyncssh.SSHServerConnection] = set()
        self._loop = asyncio.new_event_loop()
        self._booted = datetime.now(UTC)
        self._generation = (0, 0)
        self.port = 0

    # Its life

    def start(self) -> None:
        """Listens."""
        key = asyncssh.generate_private_key("ssh-ed25519")
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port = self._call(self._listen(key))
        public = key.export_public_key().decode().strip()
        (self._folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {public}\n")

    def stop(self) -> None:
        """Ends it."""
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Breaks each connection once."""
        self._loop.call_soon_threadsafe(self._abort)

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _listen(self, key: asyncssh.SSHKey) -> int:
        door = self

        class Server(asyncssh.SSHServer):
            def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
                self.connection = conn
                door._connections.add(conn)

            def connection_lost(self, exc: Exception | None) -> None:
                door._connections.discard(self.connection)

            async def begin_auth(self, username: str) -> bool:
                if not await door.lives():
                    self.connection.abort()
                return True

            def password_auth_supported(self) -> bool:
                return True

            def validate_password(self, username: str, password: str) -> bool:
                return (username, password) == (USER, PASSWORD)

        self._acceptor = await asyncssh.listen(
            "127.0.0.1", 0,
            server_factory=Server,
            server_host_keys=[key],
            process_factory=self._serve,
            sftp_factory=functools.partial(Files, self),
            encoding="utf-8",
        )  # fmt: skip
        self._watching = asyncio.create_task(self._watch())
        return int(self._acceptor.get_port())

    async def _end(self) -> None:
        self._watching.cancel()
        self._abort()
        self._acceptor.close()
        await self._acceptor.wait_closed()
        left = asyncio.all_tasks() - {asyncio.current_task()}  # of commands to silent machines
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _abort(self) -> None:
        for connection in list(self._connections):
            connection.abort()

    async def _watch(self) -> None:
        """A machine that went off or restarted knows its connections no more."""
        while True:
            generation = await self.do(lambda: (self.agent.power_on(), self._resets()))
            if generation != self._generation:
                self._generation, self._booted = generation, datetime.now(UTC)
                self._abort()
                if self.unplugged == "until it restarts":
                    self.unplugged = ""
            if self.unplugged:
                self._abort()
            await asyncio.sleep(WATCH_SECONDS)

    async def do(self, what: Callable[[], T]) -> T:
        """Something that blocks."""
        return await self._loop.run_in_executor(None, what)

    async def lives(self) -> bool:
        """Whether somebody inside would answer."""
        if self.unplugged:
            return False
        try:
            await self.do(lambda: self.agent.ask("guest-ping", ALIVE_SECONDS))
        except (Silent, Refused):
            return False
        return True

    # Commands

    async def _serve(self, process: asyncssh.SSHServerProcess[str]) -> None:
        line = process.command or ""
        self.commands.append(line)
        line, mark = ENDING.sub("", line), ENDING.search(line)
        try:
            await asyncio.sleep(self.slowness)
            answer = await self._answer(line)
        except Refused as error:
            answer = Answer(9009, errors=f"{error}\r\n")
        except Silent:
            await asyncio.sleep(FOR_EVER)  # until the connection is gone
            return
        if mark is not None:  # cmd.exe's numbers have a sign
            code = answer.code - (answer.code >> 31 << 32)
            answer.output += f"{mark[1]}{code}\r\n"
        process.stdout.write(answer.output)
        process.stderr.write(answer.errors)
        process.exit(answer.code)

    async def _answer(self, line: str) -> Answer:
        if line == "ver":
            await self.do(lambda: self.agent.ask("guest-ping", ALIVE_SECONDS))
            return Answer(0, "\r\nMicrosoft Windows [Version 10.0.19041]\r\n")
        program, *arguments = split_command(line)
        if program == "powershell.exe":
            return await self.do(lambda: self._powershell(arguments[-1]))
        started = await self.do(
            lambda: self.agent.ask("guest-exec", path=program, arg=arguments, capture_output=True)
        )
        while True:
            status = await self.do(lambda: self.agent.ask("guest-exec-status", pid=started["pid"]))
            if status["exited"]:
                said = (
                    base64.b64decode(status.get(name, "")).decode(errors="replace")
                    for name in ("out-data", "err-data")
                )
                return Answer(status["exitcode"] & 0xFFFF_FFFF, *said)
            await asyncio.sleep(0.02)

    def _powershell(self, encoded: str) -> Answer:
        script = base64.b64decode(encoded).decode("utf-16-le")
        if script == NOW:
            return Answer(0, _round_trip(self._guest_time()))
        if script == LAST_BOOT:
            self.agent.ask("guest-ping", ALIVE_SECONDS)
            return Answer(0, _round_trip(self._booted))
        if found := re.fullmatch(r"Set-Date \(\[DateTime\]::Parse\('(.+)'\)\)", script):
            time = datetime.fromisoformat(found[1]).timestamp()
            self.agent.ask("guest-set-time", time=int(time * 1_000_000_000))
            return Answer(0)
        return Answer(1, errors=f"{script}: not known here\r\n")

    def _guest_time(self) -> datetime:
        return datetime.fromtimestamp(self.agent.ask("guest-get-time") / 1e9, UTC)


def _round_trip(time: datetime) -> str:
    return f"{time:%Y-%m-%dT%H:%M:%S.%f}0Z\r\n"


@dataclass
class OpenFile:
    """A file that was opened; content is written when it is closed."""

    path: str
    content: bytearray
    written: bool


class Files(asyncssh.SFTPServer):
    """SFTP as OpenSSH for Windows has it: /C:/folder/name."""

    def __init__(self, door: GuestDoor, chan: Any) -> None:
        super().__init__(chan)
        self._door = door

    async def _do(self, what: Callable[[], T]) -> T:
        try:
            return await self._door.do(what)
        except Refused as error:
            if any(text in str(error) for text in NOT_FOUND):
                raise asyncssh.SFTPNoSuchFile(str(error)) from None
            raise asyncssh.SFTPFailure(str(error)) from None
        except FileNotFoundError as error:
            raise asyncssh.SFTPNoSuchFile(str(error)) from None
        except Silent:
            await asyncio.sleep(FOR_EVER)
            raise

    def realpath(self, path: bytes) -> bytes:
        """Paths are absolute."""
        return path

    async def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> OpenFile:
        """Reads all of it at once."""
        name = _windows(path)
        if pflags & asyncssh.FXF_WRITE:
            return OpenFile(name, bytearray(), True)
        if name.lower().endswith("pagefile.sys"):
            raise asyncssh.SFTPPermissionDenied("it is in use")  # as Windows has it
        content = await self._do(lambda: self._door.agent.read(name))
        return OpenFile(name, bytearray(content), False)

    def read(self, file_obj: object, offset: int, size: int) -> bytes:
        """A part."""
        assert isinstance(file_obj, OpenFile)
        return bytes(file_obj.content[offset : offset + size])

    def write(self, file_obj: object, offset: int, data: bytes) -> int:
        """A part."""
        assert isinstance(file_obj, OpenFile)
        file_obj.content[offset : offset + len(data)] = data
        return len(data)

    async def close(self, file_obj: object) -> None:
        """Writes it."""
        assert isinstance(file_obj, OpenFile)
        if file_obj.written:
            content = bytes(file_obj.content)
            await self._do(lambda: self._door.agent.write(file_obj.path, content))

    def fstat(self, file_obj: object) -> asyncssh.SFTPAttrs:
        """Its size."""
        assert isinstance(file_obj, OpenFile)
        return asyncssh.SFTPAttrs(size=len(file_obj.content))

    async def stat(self, path: bytes) -> asyncssh.SFTPAttrs:
        """Of a file."""
        whole = PureWindowsPath(_windows(path))
        found = await self._do(lambda: self._door.agent.list(str(whole.parent)))
        for one in found:
            if PureWindowsPath(one.path).name.lower() == whole.name.lower():
                return _attributes(one)
        raise asyncssh.SFTPNoSuchFile(str(whole))

    lstat = stat

    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        """What a folder holds."""
        folder = _windows(path)
        await self._do(lambda: self._door.agent.ask("guest-ping", ALIVE_SECONDS))
        for one in await self._do(lambda: self._door.agent.list(folder)):
            name = PureWindowsPath(one.path).name.encode()
            yield asyncssh.SFTPName(name, attrs=_attributes(one))


def _attributes(one: FileInfo) -> asyncssh.SFTPAttrs:
    kind = asyncssh.FILEXFER_TYPE_DIRECTORY if one.is_folder else asyncssh.FILEXFER_TYPE_REGULAR
    return asyncssh.SFTPAttrs(type=kind, size=one.size)


def _windows(path: bytes) -> str:
    return str(PureWindowsPath(path.decode().lstrip("/")))


@contextmanager
def guest_door(agent: Agent, resets: Callable[[], int], folder: Path) -> Iterator[GuestDoor]:
    """A running one."""
    door = GuestDoor(agent, resets, folder)
    door.start()
    try:
        yield door
    finally:
        door.stop()
