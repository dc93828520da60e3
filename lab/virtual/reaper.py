"""Runs libvirt's daemons as their subreaper.

    python reaper.py tied FOLDER USER COMMAND...
    python reaper.py detached "" "" COMMAND...

libvirt's QEMU processes detach from it. Here they come to this process, which collects them the
moment they end; under a slow init libvirt waits seconds for each. A daemon that was killed is
started again, and libvirtd then finds its running machines.

tied: ends with the owner, who holds the other end of standard input, however it dies; then all that
was started ends, and FOLDER is removed. detached: ends when a daemon has ended by itself, and asks
the others to end.
USER: whom the daemons run as; "" keeps the user.
"""

from __future__ import annotations

import ctypes
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
RESTARTS = 10
"""How often killed daemons are started again, in all; one that dies at once must not loop."""


def _children() -> list[int]:
    """Process ids whose parent is this process; field 4 of /proc/PID/stat (proc(5))."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue  # it ended meanwhile
            if int(stat.rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(entry.name))
    return found


def _identity(user: str) -> dict[str, Any]:
    if not user:
        return {}
    kvm = Path("/dev/kvm")
    groups = [kvm.stat().st_gid] if kvm.exists() else []
    return {"user": user, "group": "nogroup", "extra_groups": [gid for gid in groups if gid]}


class Daemons:
    """The daemons, by process id."""

    def __init__(self, folder: str, user: str, commands: list[str]) -> None:
        self._folder = folder or "/"
        self._identity = _identity(user)
        self._restarts = RESTARTS
        self._running: dict[int, str] = {}
        for command in commands:
            self._start(command)

    def _start(self, command: str) -> None:
        process = subprocess.Popen(
            shlex.split(command), cwd=self._folder, stdin=subprocess.DEVNULL, **self._identity
        )
        self._running[process.pid] = command

    def collect(self) -> bool:
        """Collects what has ended and starts killed daemons again; False: one ended for good."""
        complete = True
        while True:
            try:
                process, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if not process:
                return complete
            if command := self._running.pop(process, None):
                code = os.waitstatus_to_exitcode(status)
                print(f"{command} ended: {code}", flush=True)
                if code < 0 and self._restarts:
                    self._restarts -= 1
                    complete &= self._start_again(command)
                else:
                    complete = False

    def _start_again(self, command: str) -> bool:
        try:
            self._start(command)
        except OSError as error:  # it may have been removed meanwhile
            print(f"{command} cannot be started again: {error}", flush=True)
            return False
        return True

    def terminate(self) -> None:
        """Asks all of them to end."""
        for process in self._running:
            os.kill(process, signal.SIGTERM)


def main() -> None:
    """See the module."""
    mode, folder, user, *commands = sys.argv[1:]
    tied = mode == "tied"
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    daemons = Daemons(folder, user, commands)
    watched = [woken, *([sys.stdin.fileno()] if tied else [])]
    while True:
        ready = select.select(watched, [], [])[0]
        if signal.SIGTERM in (os.read(woken, 4096) if woken in ready else b""):
            break
        if sys.stdin.fileno() in ready:
            break
        if not daemons.collect():
            break
    if not tied:
        daemons.terminate()
        return
    # Killing one makes its children ours: repeat until none is left.
    while children := _children():
        for child in children:
            os.kill(child, signal.SIGKILL)
        os.waitpid(-1, 0)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
