"""Runs daemons as their subreaper and ends whatever they leave behind.

    python reaper.py WORK_DIRECTORY USER PROGRAM...

libvirt's QEMU processes detach from it. Here their orphans come to this process, which collects
them at once (a slow init would leave zombies that libvirt waits for) and, on SIGTERM or when its
own parent dies in any way, kills them all and removes WORK_DIRECTORY. USER "" keeps the user.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

# Numbers from <linux/prctl.h>.
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


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


def main() -> None:
    """See the module."""
    work_directory, user, *programs = sys.argv[1:]
    parent = os.getppid()
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})
    identity = {"user": user, "group": "nogroup", "extra_groups": []} if user else {}
    for program in programs:
        subprocess.Popen([program], cwd=work_directory, **identity)  # type: ignore[call-overload]
    while os.getppid() == parent:
        if signal.sigwait({signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}) != signal.SIGCHLD:
            break
        while (ended := _collect()) > 0:
            print(f"process {ended} ended", flush=True)
    # Killing one makes its children ours: repeat until none is left.
    while children := _children():
        for child in children:
            os.kill(child, signal.SIGKILL)
        os.waitpid(-1, 0)
    shutil.rmtree(work_directory, ignore_errors=True)


def _collect() -> int:
    try:
        return os.waitpid(-1, os.WNOHANG)[0]
    except ChildProcessError:
        return 0


if __name__ == "__main__":
    main()
