"""Microsoft's engine in a worker process: the host's side of pykd_worker.py's protocol.

Where the worker runs is a class of its own: under Wine (wine.py), on this Windows (windows.py), on
another machine over SSH (ssh.py). What they share is here.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import queue
import subprocess
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self, cast

from crashdump_analysis.engines import EngineError, Place, Report, Scope

WORKER = Path(__file__).with_name("pykd_worker.py")

Progress = Callable[[str], None]
"""Is told in a few words what is being done."""


def silent(text: str) -> None:
    """A Progress that tells nobody."""


class Channel(Protocol):
    """The three pipes of one worker process."""

    def exchange(self, request: bytes, deadline: float) -> bytes:
        """Writes a request (or nothing) and gives the next line; `deadline` in seconds.

        Raises TimeoutError, EOFError where the worker has ended, and EngineError where the way to
        it is cut.
        """

    def last_words(self) -> str:
        """The end of what an ended worker wrote to stderr."""

    def end(self) -> None:
        """Ends the worker at once."""


class WorkerEngine(ABC):
    """Microsoft's engine in a warm worker process, used for one dump after another.

    The worker starts with the first request and again after it was ended; an answer that does not
    come in time ends it. Parse dumps from strangers as a user who may do nothing else: the worker
    runs with its user's rights. Not thread-safe.
    """

    def __init__(
        self, *, start_deadline: float = 90.0, deadline: float = 120.0, say: Progress = silent
    ) -> None:
        """Deadlines in seconds: for the worker's hello, and for each request's answer."""
        self._start_deadline = start_deadline
        self._deadline = deadline
        self._say = say
        self._channel: Channel | None = None
        self._number = 0
        self._hello: dict[str, Any] = {}

    @property
    @abstractmethod
    def place(self) -> str:
        """Where the engine runs, for a reader."""

    @abstractmethod
    def _connect(self) -> Channel:
        """Starts a worker. Raises EngineError."""

    def _path_there(self, dump: str | os.PathLike[str]) -> str:
        """The dump's path as the worker sees it."""
        return os.path.abspath(dump)

    def _symbol_path_there(self, elements: Iterable[str | os.PathLike[str]]) -> str:
        """A WinDbg symbol path as the worker sees it."""
        return ";".join(os.fspath(element) for element in elements)

    def _advice(self) -> str:
        """What to do where the engine's files are missing."""
        return ""

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shut_down()

    @property
    def version(self) -> str:
        """Version of dbgeng.dll; starts the worker if need be."""
        self._start()
        return str(self._hello["engine"]["version"])

    def open(
        self,
        dump: str | os.PathLike[str],
        symbols: Iterable[str | os.PathLike[str]] = (),
        images: Iterable[str | os.PathLike[str]] = (),
    ) -> str:
        """Opens a kernel dump, closing the one before; gives its kind ("triage", "full", ...).

        `symbols` and `images` are folders and WinDbg path elements. Where images are not named
        the symbol path serves for them too: a PDB without its image can be the wrong one.
        """
        self._start()
        symbol_path = self._symbol_path_there(symbols)
        answer = self.request(
            "open",
            path=self._path_there(dump),
            symbol_path=symbol_path,
            image_path=self._symbol_path_there(images) or symbol_path,
        )
        return str(answer["dump_class"])

    def report(self) -> Report:
        """Bug check, system, modules, registers and stack of the open dump."""
        return cast(Report, self.request("report"))

    def trap_frame(self, address: int) -> Scope:
        """Registers and stack as ``.trap`` shows them for a KTRAP_FRAME at an address."""
        return cast(Scope, self.request("scope", kind="trap", address=address))

    def context_record(self, address: int) -> Scope:
        """Registers and stack as ``.cxr`` shows them for a CONTEXT record at an address."""
        return cast(Scope, self.request("scope", kind="cxr", address=address))

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[bytes | None]:
        """Virtual memory of (address, size in bytes) ranges.

        None where nothing can be read, fewer bytes where the dump's memory ends inside a range.
        """
        answer = self.request("read", ranges=[list(one) for one in ranges])
        return [None if data is None else bytes.fromhex(data) for data in answer["data"]]

    def lookup(self, addresses: Sequence[int]) -> list[Place]:
        """The names and lines of addresses; nothing of inlined functions."""
        return cast(list[Place], self.request("lookup", addresses=list(addresses))["places"])

    def command(self, text: str, *, deadline: float | None = None) -> str:
        """What a debugger command prints; `deadline` in seconds."""
        return str(self.request("command", deadline=deadline, text=text)["output"])

    def script(self, text: str) -> str:
        """What a pykd script prints; `pykd` is imported and attached to the open dump."""
        return str(self.request("script", text=text)["output"])

    def close(self) -> None:
        """Closes the dump; the worker stays warm."""
        if self._channel:
            self.request("close")

    def shut_down(self) -> None:
        """Ends the worker, kindly first."""
        if self._channel:
            with contextlib.suppress(EngineError):
                self.request("quit", deadline=10.0)
        self._end()

    def request(
        self, method: str, *, deadline: float | None = None, **params: object
    ) -> dict[str, Any]:
        """Sends one request of the worker's protocol and gives its result.

        `deadline` in seconds. Raises EngineError; after "deadline" and "worker-died" the dump must
        be opened again.
        """
        self._start()
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        answer = self._exchange(
            json.dumps(message).encode() + b"\n", method, deadline or self._deadline
        )
        if answer.get("id") != self._number:
            self._end()
            raise EngineError("worker-died", f"{method}: the worker answered another request")
        return _result(answer)

    def _start(self) -> None:
        if self._channel:
            return
        self._channel = self._connect()
        answer = self._exchange(b"", "start", self._start_deadline)
        if "error" in answer:
            self._end()
            answer["error"]["message"] += self._advice()
        self._hello = _result(answer, "hello")

    def _exchange(self, request: bytes, what: str, deadline: float) -> dict[str, Any]:
        assert self._channel is not None
        try:
            line = self._channel.exchange(request, deadline)
        except EngineError:
            self._end()
            raise
        except TimeoutError:
            self._end()
            raise EngineError(
                "deadline",
                f"{what}: no answer from the debugger engine within {deadline:g} s; it was ended "
                "and starts afresh with the next dump",
            ) from None
        except EOFError:
            words = self._channel.last_words()
            self._end()
            raise EngineError(
                "worker-died",
                f"{what}: the debugger engine's process {self.place} ended by itself"
                + (f":\n{words}" if words else " without a word"),
            ) from None
        try:
            answer = json.loads(line)
        except ValueError:
            self._end()
            raise EngineError("worker-died", f"{what}: the worker wrote {line[:200]!r}") from None
        return cast(dict[str, Any], answer)

    def _end(self) -> None:
        if self._channel:
            self._channel.end()
            self._channel = None


def _result(answer: dict[str, Any], key: str = "result") -> dict[str, Any]:
    if "error" in answer:
        error = answer["error"]
        raise EngineError(error["kind"], error["message"], error.get("hresult"))
    return cast(dict[str, Any], answer[key])


class ProcessChannel:
    """A worker that is a child of this process.

    Threads read its pipes, since on Windows nothing else can wait for one with a deadline.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], folder: Path | None = None
    ) -> None:
        # Pipes, all three: CPython under Wine does not start on regular files.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            cwd=folder,
        )
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._errors: collections.deque[bytes] = collections.deque(maxlen=20)
        _start(self._read_answers)
        self._reading_errors = _start(self._read_errors)
        self._writing: threading.Thread | None = None

    @property
    def process_id(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    def exchange(self, request: bytes, deadline: float) -> bytes:
        """See Channel."""
        self._writing = _start(self._write, request)
        try:
            line = self._lines.get(timeout=deadline)
        except queue.Empty:
            raise TimeoutError from None
        if not line:
            raise EOFError
        return line

    def last_words(self) -> str:
        """See Channel."""
        self._reading_errors.join(2)  # Wine's services may hold the pipe for a while longer
        return b"".join(list(self._errors)).decode(errors="replace").strip()

    def end(self) -> None:
        """See Channel. The Wine process is the Windows process; nothing is left."""
        self._process.kill()
        self._process.wait()
        if self._writing:
            self._writing.join()  # whose pipe nobody reads any more
        self._stdin.close()

    @property
    def _stdin(self) -> IO[bytes]:
        return cast(IO[bytes], self._process.stdin)

    def _write(self, request: bytes) -> None:
        # Without the pipe's buffer, which could not be closed while this thread hangs in it. A
        # worker that has ended is noticed where its answers end.
        with contextlib.suppress(OSError):
            while request:
                request = request[os.write(self._stdin.fileno(), request[: 1 << 16]) :]

    def _read_answers(self) -> None:
        with cast(IO[bytes], self._process.stdout) as pipe:
            for line in pipe:
                self._lines.put(line)
        self._lines.put(b"")

    def _read_errors(self) -> None:
        with cast(IO[bytes], self._process.stderr) as pipe:
            self._errors.extend(pipe)


def _start(target: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread
