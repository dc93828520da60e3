"""Machines out of the pool: they failed, and a person has to look at them before the next run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa

from lab.lease_database import quarantine


@dataclass(frozen=True)
class Quarantined:
    """A machine that nobody gets before a person gives it back. since: UTC."""

    slot: str
    reason: str
    run_id: str
    since: datetime

    def __str__(self) -> str:
        return (
            f"{self.slot} is taken out of the pool since {self.since:%Y-%m-%d %H:%M:%S} UTC, run"
            f" {self.run_id}: {self.reason}"
        )


def quarantined(connection: sa.Connection) -> dict[str, Quarantined]:
    """All that are out, by the machines' names."""
    rows = connection.execute(sa.select(quarantine).order_by(quarantine.c.slot))
    return {
        row.slot: Quarantined(row.slot, row.reason, row.run_id, row.since.replace(tzinfo=UTC))
        for row in rows
    }


def take_out(connection: sa.Connection, slot: str, reason: str, run_id: str) -> None:
    """Takes a machine out of the pool; a later reason replaces the first."""
    put_back(connection, slot)
    since = datetime.now(UTC).replace(tzinfo=None)
    connection.execute(
        sa.insert(quarantine).values(slot=slot, reason=reason, run_id=run_id, since=since)
    )


def put_back(connection: sa.Connection, slot: str) -> bool:
    """Puts it back; False if it was in the pool."""
    done = connection.execute(sa.delete(quarantine).where(quarantine.c.slot == slot))
    return done.rowcount > 0
