"""Machines out of the pool: nobody gets them, in no process, before a person gives them back."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from lab.lease_database import quarantine
from lab.leases import Lease, LeaseStore, LeaseUnavailable, UnknownSlotError


def store_at(path: Path) -> LeaseStore:
    return LeaseStore(path, slots=["m1", "m2"], expiry=30, margin=3)


@pytest.fixture
def store(tmp_path: Path) -> LeaseStore:
    return store_at(tmp_path / "leases.sqlite")


def acquire(store: LeaseStore, *slots: str, quarantined: bool = False) -> Lease:
    return store.acquire(
        slots, holder="a", purpose="b", run_id="c", wait=0, quarantined=quarantined
    )


def test_another_machine_is_taken_and_none_at_last(store: LeaseStore, tmp_path: Path) -> None:
    store.quarantine("m1", "it does not come up", run_id="run-7")
    again = store_at(tmp_path / "leases.sqlite")  # as another process would
    with acquire(again, "m1", "m2") as lease:
        assert lease.slot == "m2"
    with pytest.raises(LeaseUnavailable) as refused:
        acquire(again, "m1")
    for part in ("m1 is taken out of the pool since", "run run-7", "it does not come up",
                 "lab machines --release"):  # fmt: skip
        assert part in str(refused.value)


def test_the_last_reason_stands_until_it_is_put_back(store: LeaseStore) -> None:
    store.quarantine("m1", "first", run_id="1")
    store.quarantine("m1", "second", run_id="2")
    assert store.quarantined()["m1"].reason == "second"
    assert store.put_back("m1")
    assert not store.put_back("m1")
    assert store.quarantined() == {}
    acquire(store, "m1").release()


def test_who_looks_at_it_gets_it_all_the_same(store: LeaseStore) -> None:
    store.quarantine("m1", "why", run_id="1")
    acquire(store, "m1", quarantined=True).release()


def test_a_machine_that_there_is_not(store: LeaseStore) -> None:
    with pytest.raises(UnknownSlotError):
        store.quarantine("m9", "why", run_id="1")
    with pytest.raises(UnknownSlotError):
        store.put_back("m9")


def test_a_database_of_before_gets_the_table(store: LeaseStore, tmp_path: Path) -> None:
    with store._database.transaction() as connection:
        quarantine.drop(connection)
        assert not sa.inspect(connection).has_table("quarantine")
    assert store_at(tmp_path / "leases.sqlite").quarantined() == {}
