"""Leases: never two holders, whatever happens to processes and to the database."""

from __future__ import annotations

import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from images.contract import CATALOG
from lab import leases
from lab.lease_database import LeaseStoreError
from lab.leases import (
    Holding,
    Lease,
    LeaseLost,
    LeaseStore,
    LeaseUnavailable,
    UnknownSlotError,
)
from lab.outcome import Outcome
from lab.processes import Process
from tests.support.waiting import wait_for

ROOT = CATALOG.parent.parent
LONG = 600.0
"""An expiry that no test waits for."""
DEADLINE = 60.0


class Holder:
    """A process of tests/unit/lab/lease_holder.py."""

    def __init__(self, *arguments: str | Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.unit.lab.lease_holder", *map(str, arguments)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def confirm(self) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.line()

    def stop(self, database: Path) -> None:
        """Stops it, but not within a transaction: that would lock the others out."""

        def is_stopped_outside() -> bool:
            self.process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)
            connection = sqlite3.connect(database, timeout=0, isolation_level=None)
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                self.process.send_signal(signal.SIGCONT)
                return False
            finally:
                connection.close()
            return True

        wait_for("a moment outside of transactions", is_stopped_outside, DEADLINE)

    def output(self) -> list[str]:
        return self.process.communicate(timeout=120)[0].split()


@pytest.fixture
def start() -> Iterator[Callable[..., Holder]]:
    """Starts holders, which end with the test."""
    started: list[Holder] = []

    def start(*arguments: str | Path) -> Holder:
        started.append(Holder(*arguments))
        return started[-1]

    yield start
    for holder in started:
        holder.process.kill()
        holder.process.communicate()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "store" / "leases.sqlite"


def open_store(
    database: Path, *slots: str, expiry: float = LONG, margin: float = 1.0
) -> LeaseStore:
    return LeaseStore(database, slots=slots or ["vm"], expiry=expiry, margin=margin)


def acquire(store: LeaseStore, *slots: str, wait: float = 0.0, purpose: str = "a test") -> Lease:
    return store.acquire(
        slots or ["vm"], holder="somebody", purpose=purpose, run_id="run-7", wait=wait
    )


def queue(store: LeaseStore, *slots: str, got: list[str], name: str) -> threading.Thread:
    """A request in a thread of its own, which is in the queue when this returns."""
    waiting = threading.Event()

    def ask() -> None:
        with store.acquire(
            slots,
            holder=name,
            purpose="a test",
            run_id=name,
            wait=DEADLINE,
            on_wait=lambda _: waiting.set(),
        ) as lease:
            got.append(f"{name} {lease.slot}")

    thread = threading.Thread(target=ask)
    thread.start()
    assert waiting.wait(DEADLINE)
    return thread


# Holding and giving back


def test_tokens_grow_by_one_for_ever(database: Path) -> None:
    tokens = []
    for _ in range(3):
        with acquire(open_store(database)) as lease:
            tokens.append(lease.token)
    assert tokens == [1, 2, 3]
    assert open_store(database).holdings() == []


def test_a_held_machine_is_refused_with_who_what_and_why(database: Path) -> None:
    store = open_store(database)
    with acquire(store, purpose="the night run"):
        (holding,) = store.holdings()
        with pytest.raises(LeaseUnavailable) as caught:
            acquire(store)
    assert caught.value.outcome is Outcome.INFRASTRUCTURE
    for part in ("vm", "somebody", "the night run", "run-7", str(os.getpid())):
        assert part in str(caught.value)
    assert (holding.slot, holding.state, holding.token) == ("vm", "held", 1)
    assert holding.acquired_at <= datetime.now(UTC) <= holding.expires_at
    assert holding.expires_at - holding.acquired_at <= timedelta(seconds=LONG + 1)


def test_the_first_free_candidate_is_given(database: Path) -> None:
    store = open_store(database, "a", "b")
    with acquire(store, "a", "b") as first, acquire(store, "a", "b") as second:
        assert (first.slot, second.slot) == ("a", "b")


@pytest.mark.parametrize("slots", [["vm-9"], ["vm", "vm-9"], []])
def test_an_unknown_machine_is_refused_at_once(database: Path, slots: list[str]) -> None:
    store = open_store(database)
    with pytest.raises(UnknownSlotError, match="machines: vm") as caught:
        store.acquire(slots, holder="me", purpose="x", run_id="x", wait=LONG)
    assert caught.value.outcome is Outcome.HARNESS


def test_a_lease_that_was_given_back_confirms_nothing(database: Path) -> None:
    store = open_store(database)
    lease = acquire(store)
    lease.confirm("a reset")
    lease.release()
    lease.release()
    with pytest.raises(LeaseLost, match=r"a reset: not done.*released"):
        lease.confirm("a reset")
    with acquire(store) as other:
        lease.release()  # must not give back what is another's now
        assert [holding.token for holding in store.holdings()] == [other.token]


def test_heartbeats_renew_the_lease(database: Path) -> None:
    store = open_store(database, expiry=3)
    with acquire(store) as lease:
        first = store.holdings()[0].expires_at

        def renewed() -> bool:
            return store.holdings()[0].expires_at > first + timedelta(seconds=4)

        wait_for("a life longer than the expiry", renewed, DEADLINE)
        lease.confirm("a look")


def test_a_broken_lease_ends_with_the_reason(database: Path) -> None:
    store = open_store(database, expiry=3)
    assert not store.break_lease("vm", "nobody has it")
    with acquire(store) as lease:
        assert store.break_lease("vm", "maintenance")
        with pytest.raises(LeaseUnavailable, match="broken: maintenance"):
            acquire(store)  # its holder may not know yet

        def reason() -> str:
            try:
                lease.confirm("a look")
            except LeaseLost as error:
                return str(error)
            return ""

        assert "maintenance" in wait_for("the heartbeat to hear of it", reason, DEADLINE)
    with acquire(store) as other:
        assert other.token == 2
        assert store.holdings()[0].state == "held"


# Several processes


def test_two_processes_never_hold_one_machine(
    database: Path, tmp_path: Path, start: Callable[..., Holder]
) -> None:
    rounds = 40
    racers = [start("race", database, "vm", tmp_path, str(rounds)) for _ in range(2)]
    outputs = [racer.output() for racer in racers]
    assert "both" not in outputs[0] + outputs[1]
    tokens = [[int(token) for token in output] for output in outputs]
    assert sorted(tokens[0] + tokens[1]) == list(range(1, 2 * rounds + 1))
    # They were there at the same time, or this had shown nothing.
    assert max(own[0] for own in tokens) < min(own[-1] for own in tokens)


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_holder_is_followed_at_once(
    database: Path, start: Callable[..., Holder], reaped: bool
) -> None:
    holder = start("hold", database, "vm", str(LONG), "1")
    assert holder.line() == "held 1"
    store = open_store(database)
    assert store.holdings()[0].alive
    holder.process.send_signal(signal.SIGKILL)
    if reaped:
        holder.process.wait()
    wait_for("the death to be seen", lambda: store.holdings()[0].state == "dead", DEADLINE)
    with acquire(store) as lease:
        assert lease.token == 2


def test_a_stopped_holder_is_lost_and_followed_only_after_expiry_and_margin(
    database: Path, start: Callable[..., Holder]
) -> None:
    holder = start("hold", database, "vm", "3", "0.5")
    assert holder.line() == "held 1"
    assert holder.confirm() == "fine"
    holder.stop(database)
    store = open_store(database, expiry=LONG, margin=0.5)
    expires_at = store.holdings()[0].expires_at
    with acquire(store, wait=DEADLINE) as lease:
        followed_at = datetime.now(UTC)
        assert lease.token == 2
        assert followed_at - expires_at >= timedelta(seconds=0.4)  # of 0.5; the wall clock is set
        holder.process.send_signal(signal.SIGCONT)
        assert holder.confirm().startswith("lost: a look: not done")
        assert store.holdings()[0].token == 2


def test_an_expired_lease_is_lost_though_nobody_followed(
    database: Path, start: Callable[..., Holder]
) -> None:
    holder = start("hold", database, "vm", "2", "0.5")
    assert holder.line() == "held 1"
    holder.stop(database)
    store = open_store(database)
    wait_for("the expiry", lambda: store.holdings()[0].state == "expired", DEADLINE)
    holder.process.send_signal(signal.SIGCONT)
    assert holder.confirm().startswith("lost: ")
    assert holder.confirm().startswith("lost: ")


def test_the_process_of_another_boot_is_dead_and_of_another_container_unknown() -> None:
    this = Process.this()
    assert not this.is_dead()
    assert Process.parse(str(this)) == this
    assert dataclasses.replace(this, boot="earlier").is_dead()
    assert dataclasses.replace(this, started=this.started - 1).is_dead()
    assert not dataclasses.replace(this, namespace="pid:[1]", pid=2**22 + 1).is_dead()


def test_a_lease_of_an_earlier_boot_is_followed_at_once(database: Path) -> None:
    store = open_store(database)
    lease = acquire(store)
    earlier = dataclasses.replace(Process.this(), boot="earlier")
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE slots SET process = ?, expires = 1e12", [str(earlier)])
    connection.close()
    assert store.holdings()[0].state == "dead"
    with acquire(store) as other:
        assert other.token == 2
    lease.release()


# Waiting


def test_who_asked_first_is_served_first(database: Path) -> None:
    store = open_store(database)
    got: list[str] = []
    with acquire(store):
        threads = [queue(store, "vm", got=got, name=name) for name in ("one", "two", "three")]
    for thread in threads:
        thread.join(DEADLINE)
    assert got == ["one vm", "two vm", "three vm"]


def test_a_request_does_not_wait_behind_one_for_another_machine(database: Path) -> None:
    store = open_store(database, "a", "b")
    got: list[str] = []
    with acquire(store, "a"):
        first = queue(store, "a", got=got, name="one")
        with acquire(store, "a", "b") as lease:
            assert lease.slot == "b"
    first.join(DEADLINE)
    assert got == ["one a"]


def test_a_late_request_does_not_take_the_machine_of_an_early_one(database: Path) -> None:
    store = open_store(database)
    with sqlite3.connect(database) as connection:  # one that is there and does not look just now
        connection.execute(
            "INSERT INTO requests (candidates, process, seen) VALUES ('[\"vm\"]', ?, 1e12)",
            [str(Process.this())],
        )
    connection.close()
    with pytest.raises(LeaseUnavailable, match="requests that came earlier"):
        acquire(store)


def test_a_request_that_stopped_asking_lets_others_pass(
    database: Path, start: Callable[..., Holder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "STALE_SECONDS", 1.5)
    store = open_store(database)
    with acquire(store):
        stopped = start("hold", database, "vm", str(LONG), "1")
        wait_for("its request", lambda: _requests(database), DEADLINE)
        stopped.stop(database)
    with acquire(store, wait=DEADLINE):
        stopped.process.send_signal(signal.SIGCONT)
    assert stopped.line() == "held 3"


def test_a_dead_request_is_forgotten(database: Path, start: Callable[..., Holder]) -> None:
    store = open_store(database)
    with acquire(store):
        killed = start("hold", database, "vm", str(LONG), "1")
        wait_for("its request", lambda: _requests(database), DEADLINE)
        killed.process.kill()
        killed.process.wait()
    with acquire(store) as lease:
        assert lease.token == 2
    assert _requests(database) == 0


def test_a_waiting_request_tells_for_whom(database: Path) -> None:
    store = open_store(database)
    told: list[list[Holding]] = []
    with acquire(store), pytest.raises(LeaseUnavailable):
        store.acquire(["vm"], holder="me", purpose="x", run_id="x", wait=0.5, on_wait=told.append)
    assert [[holding.holder for holding in holdings] for holdings in told] == [["somebody"]]
    assert _requests(database) == 0


def _requests(database: Path) -> int:
    connection = sqlite3.connect(database)
    try:
        return int(connection.execute("SELECT count(*) FROM requests").fetchone()[0])
    finally:
        connection.close()


# Trouble with the database


def test_a_database_that_is_away_for_a_while_does_no_harm(database: Path) -> None:
    store = open_store(database, expiry=6)
    away = database.with_name("away")
    with acquire(store) as lease:
        expires_at = store.holdings()[0].expires_at
        database.rename(away)
        with pytest.raises(LeaseStoreError, match="the file is gone"):
            store.holdings()
        wait_for("a heartbeat to fail", lambda: lease._trouble, DEADLINE)
        lease.confirm("a look")
        away.rename(database)
        wait_for("a renewal", lambda: store.holdings()[0].expires_at > expires_at, DEADLINE)
        lease.confirm("a look")


def test_without_the_database_a_holder_stops_before_its_expiry(database: Path) -> None:
    store = open_store(database, expiry=3, margin=1)
    lease = acquire(store)
    expires_at = store.holdings()[0].expires_at
    database.unlink()

    def lost() -> str:
        try:
            lease.confirm("a look")
        except LeaseLost as error:
            return str(error)
        assert datetime.now(UTC) < expires_at - timedelta(seconds=0.9)
        return ""

    assert "the file is gone" in wait_for("the end", lost, DEADLINE)
    with pytest.raises(LeaseStoreError):
        lease.release()


def test_a_database_made_anew_waits_for_leases_it_cannot_know(database: Path) -> None:
    store = open_store(database, expiry=3, margin=0.5)
    lease = acquire(store)
    database.unlink()
    anew = open_store(database, expiry=3, margin=0.5)
    with pytest.raises(LeaseUnavailable, match="made anew"):
        acquire(anew)
    with acquire(anew, wait=DEADLINE), pytest.raises(LeaseLost):
        lease.confirm("a look")
    lease.release()


def test_a_locked_database_delays_others_and_ends_the_lease(database: Path) -> None:
    store = open_store(database, expiry=6, margin=1)
    lease = acquire(store)
    blocker = sqlite3.connect(database, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")

    def lost() -> str:
        try:
            lease.confirm("a look")
        except LeaseLost as error:
            return str(error)
        return ""

    assert "locked" in wait_for("the end", lost, DEADLINE)
    with pytest.raises(LeaseStoreError, match="locked"):
        acquire(store)
    blocker.execute("ROLLBACK")
    blocker.close()
    with acquire(store, wait=DEADLINE) as other:
        assert other.token == 2
    lease.release()


def test_an_error_in_the_with_block_is_not_hidden_by_one_at_its_end(database: Path) -> None:
    def act() -> None:
        with acquire(open_store(database)):
            database.unlink()
            raise KeyError("the first")

    with pytest.raises(KeyError, match="the first") as caught:
        act()
    assert any("could not be released" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("content", [b"", b"no database at all" * 100])
def test_a_damaged_database_is_an_error_that_says_what_to_do(
    database: Path, content: bytes
) -> None:
    database.parent.mkdir()
    database.write_bytes(content)
    with pytest.raises(LeaseStoreError, match="remove the file") as caught:
        open_store(database)
    assert str(database) in str(caught.value)


def test_a_database_of_another_version_is_refused(database: Path) -> None:
    open_store(database)
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE store SET version = 7")
    connection.close()
    with pytest.raises(LeaseStoreError, match="expected version 1, found 7"):
        open_store(database)


def test_many_stores_at_once_make_one_database(database: Path) -> None:
    errors: list[LeaseStoreError] = []

    def open_one() -> None:
        try:
            open_store(database)
        except LeaseStoreError as error:
            errors.append(error)

    threads = [threading.Thread(target=open_one) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with acquire(open_store(database)) as lease:
        assert lease.token == 1
