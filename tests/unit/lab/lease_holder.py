"""A process that leases machines, for the tests of leases. Each line it prints is an event.

python -m tests.unit.lab.lease_holder hold DATABASE SLOT EXPIRY MARGIN
    prints "held TOKEN"; then at each line of input asks confirm(): "fine" or "lost: WHY"
python -m tests.unit.lab.lease_holder race DATABASE SLOT FOLDER ROUNDS
    takes and gives back the slot; "both" if it was not alone with it
"""

from __future__ import annotations

import sys
from pathlib import Path

from lab import leases
from lab.leases import LeaseLost, LeaseStore


def hold(database: str, slot: str, expiry: str, margin: str) -> None:
    """One lease, until the input ends."""
    store = LeaseStore(Path(database), slots=[slot], expiry=float(expiry), margin=float(margin))
    with store.acquire([slot], holder="holder", purpose="test", run_id="run", wait=60) as lease:
        print("held", lease.token, flush=True)
        for _ in sys.stdin:
            try:
                lease.confirm("a look")
                print("fine", flush=True)
            except LeaseLost as error:
                print("lost:", error, flush=True)


def race(database: str, slot: str, folder: str, rounds: str) -> None:
    """Many short leases; a file that only one process can have made shows who is inside."""
    leases.POLL_SECONDS = 0.005
    store = LeaseStore(Path(database), slots=[slot], expiry=30, margin=3)
    inside = Path(folder) / "inside"
    for _ in range(int(rounds)):
        with store.acquire([slot], holder="racer", purpose="race", run_id="run", wait=60) as lease:
            try:
                inside.touch(exist_ok=False)
            except FileExistsError:
                print("both", flush=True)
                return
            lease.confirm("a look")
            print(lease.token, flush=True)
            inside.unlink()


if __name__ == "__main__":
    {"hold": hold, "race": race}[sys.argv[1]](*sys.argv[2:])
