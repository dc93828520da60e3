"""Microsoft's engine on an analysis host: another machine, reached over SSH.

The worker is copied there over SFTP under a name that has its hash in it, and started by the
host's Python. Dumps go through its standard input, packed with gzip, and are deleted there with
the next one and at the end. Symbols stay there: the engine uses the host's own symbol path.

A host is only ever known by its key: a host that is not in the known_hosts file is refused.
Needs the package asyncssh.
"""

from __future__ import annotations

import asyncio
import base64
import collections
import contextlib
import hashlib
import os
import threading
import zlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import asyncssh

from crashdump_analysis.engines import EngineError
from crashdump_analysis.engines.analysis_host import AnalysisHost
from crashdump_analysis.engines.worker import WORKER, Progress, WorkerEngine, silent

T = TypeVar("T")

_CHUNK = 1 << 20  # bytes of a gzip stream in one request
_KEEPALIVE = 10.0  # seconds; three without an answer and the host is gone


class SshEngine(WorkerEngine):
    """The engine on an analysis host."""

    def __init__(
        self,
        host: AnalysisHost,
        *,
        start_deadline: float = 90.0,
        deadline: float = 120.0,
        say: Progress = silent,
    ) -> None:
        super().__init__(start_deadline=start_deadline, deadline=deadline, say=say)
        self._host = host

    @property
    def place(self) -> str:
        """See WorkerEngine."""
        return f"on {self._host}"

    def _path_there(self, dump: str | os.PathLike[str]) -> str:
        """Sends the dump."""
        path = Path(dump)
        try:
            size = path.stat().st_size
        except OSError as error:
            raise EngineError("dump-missing", f"{path}: {error.strerror}") from None
        try:
            return self._send(path, size)
        except EngineError:
            with contextlib.suppress(EngineError):
                self.close()  # deletes what has come there
            raise

    def _send(self, path: Path, size: int) -> str:
        self.request("receive", size=size)
        digest = hashlib.sha256()

        def parts() -> Iterator[bytes]:
            done = 0
            with path.open("rb") as file:
                while data := file.read(_CHUNK):
                    digest.update(data)
                    done += len(data)
                    self._say(f"sending it to {self._host}: {min(done / size, 1):.0%}")
                    yield data

        for chunk in _packed(parts()):
            self.request("chunk", data=base64.b64encode(chunk).decode())
        return str(self.request("received", sha256=digest.hexdigest())["path"])

    def _symbol_path_there(self, elements: Iterable[str | os.PathLike[str]]) -> str:
        return self._host.symbols

    def _connect(self) -> _SshChannel:
        self._say(f"connecting to {self._host}")
        channel = _SshChannel(self._host)
        try:
            channel.start(self._start_deadline)
        except BaseException:
            channel.end()
            raise
        return channel


def _packed(parts: Iterable[bytes]) -> Iterator[bytes]:
    """A gzip stream of the parts, in pieces of at least _CHUNK bytes but for the last."""
    deflate = zlib.compressobj(level=1, wbits=31)
    waiting = b""
    for part in parts:
        waiting += deflate.compress(part)
        if len(waiting) >= _CHUNK:
            yield waiting
            waiting = b""
    yield waiting + deflate.flush()


class _SshChannel:
    """A worker on the host; everything asynchronous is in a thread with its event loop."""

    def __init__(self, host: AnalysisHost) -> None:
        self._host = host
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._connection: asyncssh.SSHClientConnection | None = None
        self._process: asyncssh.SSHClientProcess[bytes] | None = None
        self._errors: collections.deque[bytes] = collections.deque(maxlen=20)
        self._reading_errors: asyncio.Task[None] | None = None

    def start(self, deadline: float) -> None:
        """Connects, copies the worker and starts it; all in `deadline` seconds.

        Raises EngineError.
        """
        try:
            self._run(self._start(), deadline)
        except TimeoutError:
            raise EngineError(
                "host-unreachable",
                f"analysis host {self._host}: not connected, or the worker not started, within "
                f"{deadline:g} s",
            ) from None

    def exchange(self, request: bytes, deadline: float) -> bytes:
        """See Channel."""
        return self._run(self._exchange(request), deadline)

    def last_words(self) -> str:
        """See Channel."""

        async def errors() -> None:
            if self._reading_errors:
                await asyncio.wait([self._reading_errors], timeout=2)

        with contextlib.suppress(TimeoutError):
            self._run(errors(), 5)
        return b"".join(self._errors).decode(errors="replace").strip()

    def end(self) -> None:
        """See Channel. The worker ends with its input, and deletes the dump."""
        with contextlib.suppress(TimeoutError):
            self._run(self._end(), 5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T], deadline: float) -> T:
        future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, deadline), self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    async def _start(self) -> None:
        host = self._host
        if not host.known_hosts.is_file():
            raise EngineError("host-key", f"{self._unknown_host()}: there is no such file")
        password = host.password() if host.password else None
        options: dict[str, Any] = {"agent_path": None}
        if host.key is not None:
            options |= {"client_keys": [_key(host, password)], "password": None}
        elif password is not None:
            options |= {"client_keys": None, "password": password}
        else:
            options = {"client_keys": None, "password": None}
        if host.user:
            options["username"] = host.user
        self._connection = await _explained(
            host,
            asyncssh.connect(
                host.host,
                host.port,
                config=None,
                known_hosts=str(host.known_hosts),
                keepalive_interval=_KEEPALIVE,
                **options,
            ),
            self._unknown_host,
        )
        worker = await _explained(host, self._copy_worker(), self._unknown_host)
        engine = f' --engine "{host.engine}"' if host.engine else ""
        self._process = await _explained(
            host,
            self._connection.create_process(f'{host.python} -u "{worker}"{engine}', encoding=None),
            self._unknown_host,
        )
        self._reading_errors = asyncio.create_task(self._read_errors())

    def _unknown_host(self) -> str:
        host = self._host
        return (
            f"analysis host {host} is not the one of {host.known_hosts}. Ask its owner for the "
            f"fingerprint of its key, compare with `ssh-keyscan -p {host.port} {host.host} | "
            "ssh-keygen -lf -`, and put the line of ssh-keyscan into that file"
        )

    async def _copy_worker(self) -> str:
        """Puts the worker into the host's folder, unless it is there; gives its path there."""
        assert self._connection is not None
        source = WORKER.read_bytes()
        name = f"pykd_worker-{hashlib.sha256(source).hexdigest()[:16]}.py"
        path = f"{self._host.folder.rstrip('/')}/{name}"
        async with self._connection.start_sftp_client() as sftp:
            await sftp.makedirs(self._host.folder, exist_ok=True)
            if not await _has(sftp, path, source):
                part = f"{path}.{os.getpid()}"
                async with sftp.open(part, "wb") as file:
                    await file.write(source)
                if await sftp.exists(path):  # SFTP's rename replaces nothing
                    await sftp.remove(path)
                await sftp.rename(part, path)
                if not await _has(sftp, path, source):
                    raise EngineError(
                        "host-setup",
                        f"analysis host {self._host}: {path} is not what was written there",
                    )
        return path

    async def _exchange(self, request: bytes) -> bytes:
        assert self._process is not None
        try:
            if request:
                self._process.stdin.write(request)
                await self._process.stdin.drain()
            line = bytearray()
            while not line.endswith(b"\n"):
                part = await self._process.stdout.read(1 << 16)
                if not part:
                    break
                line += part
        except (OSError, asyncssh.Error) as error:
            raise self._gone(error) from None
        if not line.endswith(b"\n"):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait_closed(), 2)
            # The host tells how a program ended, as long as it can be heard.
            if self._process.exit_status is None and self._process.exit_signal is None:
                raise self._gone("it does not answer any more")
            raise EOFError
        return bytes(line)

    def _gone(self, error: object) -> EngineError:
        return EngineError(
            "host-gone",
            f"the connection to analysis host {self._host} broke off ({error}); the next dump "
            "connects again",
        )

    async def _read_errors(self) -> None:
        assert self._process is not None
        with contextlib.suppress(asyncssh.Error, OSError):
            async for line in self._process.stderr:
                self._errors.append(line)

    async def _end(self) -> None:
        if self._reading_errors:
            self._reading_errors.cancel()
        if self._process:
            self._process.close()
        if self._connection:
            self._connection.close()
            await self._connection.wait_closed()


def _key(host: AnalysisHost, passphrase: str | None) -> asyncssh.SSHKey:
    try:
        if callable(host.key):
            return asyncssh.import_private_key(host.key(), passphrase)
        return asyncssh.read_private_key(str(host.key), passphrase)
    except (OSError, asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
        name = "the key" if callable(host.key) else f"the key {host.key}"
        raise EngineError("host-refused", f"{name} for analysis host {host}: {error}") from None


async def _has(sftp: asyncssh.SFTPClient, path: str, data: bytes) -> bool:
    if not await sftp.exists(path):
        return False
    async with sftp.open(path, "rb") as file:
        found: object = await file.read()  # bytes, though its type says str
        return found == data


async def _explained(host: AnalysisHost, work: Awaitable[T], unknown_host: Callable[[], str]) -> T:
    """Awaits a step of the start; what fails is told by who must do something about it."""
    try:
        return await work
    except asyncssh.HostKeyNotVerifiable:
        raise EngineError("host-key", unknown_host()) from None
    except asyncssh.PermissionDenied as error:
        raise EngineError(
            "host-refused",
            f"analysis host {host} does not let this user in: {error.reason}; look at user, key "
            "and password",
        ) from None
    except asyncssh.SFTPError as error:
        raise EngineError(
            "host-setup",
            f"analysis host {host}: the worker cannot be put into {host.folder}: {error.reason}",
        ) from None
    except (OSError, asyncssh.Error) as error:
        raise EngineError("host-unreachable", f"analysis host {host}: {error}") from None
