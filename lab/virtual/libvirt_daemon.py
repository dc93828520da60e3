"""The libvirt daemon of a host of lab.toml, started by hand where nobody else does.

"private" is a libvirtd in session mode on sockets in a folder of its own: two do not meet, and
nothing of one outlives its owner. libvirtd has no session mode for root, so root runs it as
`nobody`. The machines' files lie elsewhere and stay.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import libvirt

from lab.backend import BackendError
from lab.signals import DeadlineError, SignalLog
from lab.virtual.account import Account
from lab.virtual.libvirt_events import start_event_loop

START_SECONDS = 60.0
"""For a daemon's first answer; it takes 0.4 s, and 8 s when it must ask QEMU what it can do."""
DAEMON_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where Debian keeps daemons; not in an ordinary user's PATH."""
SYSTEM_FOLDER = Path("/run/libvirt")
IDLE_SECONDS = 120
"""After which a system daemon that the lab started ends, if no machine runs."""
CONSOLE_LOG_LIMIT = 1 << 30
"""Bytes after which virtlogd starts a new file; libvirt's default is 2 MiB."""


@dataclass(frozen=True)
class Daemon:
    """Whom to talk to.

    account: the user the machines run as, where their files must be given to it; None where
    libvirt does that, or where it is the lab's own. tpm_states: where libvirt keeps the TPMs of
    its machines, a folder for each UUID; None where that is not known. stop: ends what was started.
    """

    uri: str
    account: Account | None = None
    tpm_states: Path | None = None
    patience: float = 0.0
    still_there: Callable[[], None] = field(default=lambda: None)
    stop: Callable[[], None] = field(default=lambda: None)


def open_daemon(host: str, uri: str, scratch: Path) -> Daemon:
    """Finds or starts the daemon of [hosts.`host`]. Raises BackendError.

    scratch: a folder for what daemons print.
    """
    if uri == "private":
        return _private(host, scratch)
    if re.match(r"[a-z0-9]+(\+[a-z0-9]+)?://[^/]", uri):
        raise BackendError(
            f"[hosts.{host}]: {uri} is on another machine, where the lab's disks are not; run the"
            " lab there, or use a local URI such as qemu:///system"
        )
    if uri == "qemu:///system":
        return _system(host, scratch)
    if uri == "qemu:///session" and os.geteuid() == 0:
        raise BackendError(
            f'[hosts.{host}]: root has no {uri}; use "private" or qemu:///system, or another user'
        )
    states = _session_tpm_states() if uri == "qemu:///session" else None
    return Daemon(uri, tpm_states=states)


def _session_tpm_states() -> Path:
    settings = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(settings) / "libvirt/qemu/swtpm"


def _require_programs(host: str, *programs: str) -> None:
    path = f"{os.environ.get('PATH', '')}:{DAEMON_FOLDERS}"
    if missing := [one for one in programs if not shutil.which(one, path=path)]:
        raise BackendError(
            f"[hosts.{host}]: this machine has no {' and no '.join(missing)}. Install it:"
            " apt-get install libvirt-daemon libvirt-daemon-driver-qemu qemu-system-x86 qemu-utils"
        )


def _reaper(
    *arguments: str, tied: bool, log: Path, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("reaper.py")), *arguments],
            env=environment,
            stdin=subprocess.PIPE if tied else subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Ctrl-C is for the lab, which may have evidence to save before the machines end.
            start_new_session=True,
        )


def _require_alive(host: str, process: subprocess.Popen[bytes], log: Path) -> None:
    if process.poll() is not None:
        said = log.read_text(errors="replace").strip().splitlines()
        raise BackendError(
            f"[hosts.{host}]: the libvirtd that the lab started ended: {' / '.join(said[-4:])}"
            f" (all of it: {log}). Install what it lacks, for qemu:///system the package"
            " libvirt-daemon-system"
        )


def _private(host: str, scratch: Path) -> Daemon:
    _require_programs(host, "virtlogd", "libvirtd", "qemu-system-x86_64", "qemu-img")
    account = Account.named("nobody") if os.geteuid() == 0 else None
    # Not in `scratch`: QEMU's sockets lie below, and a socket's path has 107 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="lab-", dir="/tmp"))
    folder.chmod(0o755)
    for name in ("run", "config/libvirt", "cache", "home"):
        (folder / name).mkdir(mode=0o700, parents=True)
    settings = folder / "config/libvirt/virtlogd.conf"
    settings.write_text(f"max_size = {CONSOLE_LOG_LIMIT}\n")
    if account:
        account.own(folder)
    environment = {
        **os.environ,
        "XDG_RUNTIME_DIR": str(folder / "run"),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "HOME": str(folder / "home"),
        "PATH": f"{os.environ.get('PATH', '')}:{DAEMON_FOLDERS}",
    }
    log = scratch / f"{folder.name}.log"
    process = _reaper(
        "tied",
        str(folder),
        account.name if account else "",
        f"virtlogd --config {settings}",
        "libvirtd",
        tied=True,
        log=log,
        environment=environment,
    )

    def stop() -> None:
        if process.stdin:
            process.stdin.close()  # the reaper ends when nobody holds its standard input
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)  # the reaper did that, unless it was killed

    socket = folder / "run/libvirt/libvirt-sock"
    return Daemon(
        f"qemu+unix:///session?socket={socket}",
        account,
        folder / "config/libvirt/qemu/swtpm",
        START_SECONDS,
        lambda: _require_alive(host, process, log),
        stop,
    )


def _system(host: str, scratch: Path) -> Daemon:
    daemon = Daemon("qemu:///system", tpm_states=Path("/var/lib/libvirt/swtpm"))
    if Path("/run/systemd/system").is_dir() or _answers(daemon.uri):
        return daemon
    if os.geteuid() != 0:
        raise BackendError(
            f"[hosts.{host}]: no libvirtd answers at {daemon.uri}, and no service manager runs"
            " here. Start libvirtd as root, or use qemu:///session"
        )
    _require_programs(host, "virtlogd", "libvirtd", "qemu-system-x86_64", "qemu-img")
    SYSTEM_FOLDER.mkdir(parents=True, exist_ok=True)
    with (SYSTEM_FOLDER / "lab.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be starting it
        if not _answers(daemon.uri):
            _start_system(host, daemon.uri, scratch / "libvirtd-system.log")
    return daemon


def _start_system(host: str, uri: str, log: Path) -> None:
    process = _reaper(
        "detached",
        "",
        "",
        "virtlogd",
        f"libvirtd --timeout {IDLE_SECONDS}",
        tied=False,
        log=log,
        environment={**os.environ, "PATH": f"{os.environ.get('PATH', '')}:{DAEMON_FOLDERS}"},
    )

    def answers() -> bool:
        _require_alive(host, process, log)
        return _answers(uri)

    try:
        SignalLog().wait(f"libvirtd at {uri}", answers, START_SECONDS)
    except DeadlineError as error:
        raise BackendError(f"[hosts.{host}]: {error}; see {log}") from error


def _answers(uri: str) -> bool:
    start_event_loop()
    try:
        libvirt.open(uri).close()
    except libvirt.libvirtError:
        return False
    return True
