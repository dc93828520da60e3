"""An OpenSSH server of a test's own, on loopback, as the user who runs the tests."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from crashdump_analysis.engines.analysis_host import AnalysisHost
from tests.support.waiting import wait_for


@dataclass
class Sshd:
    """A running server: its files, its process and what it takes to log in."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    def host(self, python: Path | str, *, folder: Path | None = None) -> AnalysisHost:
        """Settings to reach it."""
        return AnalysisHost(
            "127.0.0.1",
            self.folder / "known_hosts",
            user=getpass.getuser(),
            port=self.port,
            key=self.folder / "user_key",
            python=str(python),
            folder=str(folder or self.folder / "there"),
        )

    def cut_connections(self) -> None:
        """Ends the server's side of every connection at once; what runs there is left alone."""
        for session in _children(self.process.pid):
            for process in (session, *_children(session)):
                with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                    if Path(f"/proc/{process}/comm").read_text().strip() == "sshd":
                        os.kill(process, signal.SIGKILL)


def _children(process: int) -> list[int]:
    found = Path(f"/proc/{process}/task/{process}/children")
    return [int(word) for word in found.read_text().split()] if found.exists() else []


@contextlib.contextmanager
def sshd(
    folder: Path,
    wrap: Callable[[Sequence[str | Path]], Sequence[str]] = lambda command: [*map(str, command)],
) -> Iterator[Sshd]:
    """Runs a server; `wrap` may change its command line, to run it in a namespace."""
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program, "no sshd here: apt-get install openssh-server (.ci/debian-packages ssh)"
    folder.mkdir(exist_ok=True)
    for name in ("host_key", "user_key"):
        make_key(folder / name)
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kind, key, *_ = (folder / "host_key.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    (folder / "sshd_config").write_text(
        f"""\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
"""
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # which Debian's service makes
    command = wrap([program, "-D", "-e", "-f", folder / "sshd_config"])
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
    try:
        wait_for(
            f"sshd to listen, see {folder}/sshd.log",
            lambda: b"Server listening" in (folder / "sshd.log").read_bytes(),
            30,
        )
        yield Sshd(folder, port, process)
    finally:
        process.terminate()
        process.wait()


def make_key(path: Path, *options: str) -> None:
    """A key pair of ssh-keygen's."""
    options = options or ("-t", "ed25519", "-N", "")
    subprocess.run(["ssh-keygen", "-q", *options, "-f", str(path)], check=True)


FAKE_ENGINE = """\
#!{python}
# Stands for "python" on the host: runs the worker that was copied there with an engine that opens
# any file and tells its hash.
import hashlib, importlib.util, os, signal, sys, time

specification = importlib.util.spec_from_file_location("pykd_worker", sys.argv[2])
worker = importlib.util.module_from_spec(specification)
specification.loader.exec_module(worker)


class FakeEngine(worker.Engine):
    def __init__(self, folder):
        self.version, self._received, self._open = "1.2.3.4", None, False
        self._empty = folder + "/none"

    def open(self, path, symbol_path="", image_path=""):
        with open(path, "rb") as file:
            return {{"dump_class": hashlib.sha256(file.read()).hexdigest(), "output": symbol_path}}

    def command(self, text):
        exec(text)
        return {{"output": text}}


worker.Engine = FakeEngine
sys.argv[1:] = ["--engine", os.path.dirname(sys.argv[2])]
sys.exit(worker.main())
"""


def fake_python(path: Path) -> Path:
    """A program that stands for the host's Python, without Microsoft's engine."""
    path.write_text(FAKE_ENGINE.format(python=sys.executable))
    path.chmod(0o755)
    return path
