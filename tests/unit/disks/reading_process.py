r"""Opens a disk for the lifetime tests, says "open PID", and stays; or edits it, or lists C:\.

python reading_process.py open|edit|list DISK
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from lab.disks.edit import Delete, Replace, edit
from lab.disks.files import open_files
from lab.disks.overlay import open_overlay


def main() -> None:
    """See the module."""
    what, disk = sys.argv[1], Path(sys.argv[2])
    if what == "edit":
        print("editing", flush=True)
        edit(disk, [Delete(r"C:\delete*.txt"), Replace(r"C:\big.bin", b"new" * 2_000_000)])
        print("edited", flush=True)
        return
    with open_files(open_overlay(disk)) as files:
        if what == "list":
            print(*(file.path for file in files.list("C:\\")), flush=True)
            return
        print("open", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
