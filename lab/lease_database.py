"""The SQLite file that leases are kept in: its tables, and transactions on it.

A connection lives for one transaction. A longer one would go on with a file that was removed or
replaced, and SQLite's closing of it would then delete the write-ahead log of the new file
(https://sqlite.org/howtocorrupt.html, "unlinking or renaming a database file while in use").
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa

from lab.outcome import InfrastructureError
from lab.processes import boot_id, boot_time

SCHEMA_VERSION = 1

_tables = sa.MetaData()
store = sa.Table(
    "store",
    _tables,
    sa.Column("version", sa.Integer, nullable=False),
    # Nothing is granted before this time of this boot: leases of a lost file may still be held.
    sa.Column("quiet_boot", sa.String, nullable=False),
    sa.Column("quiet_until", sa.Float, nullable=False),
)
slots = sa.Table(
    "slots",
    _tables,
    sa.Column("slot", sa.String, primary_key=True),
    sa.Column("token", sa.Integer, nullable=False),  # of the last grant; never goes back
    sa.Column("held", sa.Boolean, nullable=False),
    # Of the last grant, too. Times are of boot_time(); acquired_at is UTC, for people.
    sa.Column("holder", sa.String, nullable=False),
    sa.Column("purpose", sa.String, nullable=False),
    sa.Column("run_id", sa.String, nullable=False),
    sa.Column("host", sa.String, nullable=False),
    sa.Column("process", sa.String, nullable=False),
    sa.Column("acquired_at", sa.DateTime, nullable=False),
    sa.Column("expires", sa.Float, nullable=False),
    sa.Column("free_from", sa.Float, nullable=False),
    sa.Column("broken", sa.String),  # why it was taken away
)
quarantine = sa.Table(
    "quarantine",
    _tables,
    sa.Column("slot", sa.String, primary_key=True),
    sa.Column("reason", sa.String, nullable=False),
    sa.Column("run_id", sa.String, nullable=False),
    sa.Column("since", sa.DateTime, nullable=False),  # UTC
)
requests = sa.Table(
    "requests",
    _tables,
    sa.Column("ticket", sa.Integer, primary_key=True),
    sa.Column("candidates", sa.JSON, nullable=False),
    sa.Column("process", sa.String, nullable=False),
    sa.Column("seen", sa.Float, nullable=False),
    sqlite_autoincrement=True,
)


class LeaseStoreError(InfrastructureError):
    """The lease database cannot be used; the message says why and what to do."""


class LeaseDatabase:
    """A lease database, made if absent. Thread-safe.

    busy: seconds a transaction waits for others'. quiet: seconds in which a new file grants
    nothing, if there was one before that is gone and its leases may still be held.
    """

    def __init__(self, path: Path, *, busy: float, quiet: float) -> None:
        self.path = path.absolute()
        self._engine = sa.create_engine(
            # mode=rw: a file that is gone is an error, never a new and empty database.
            sa.URL.create(
                "sqlite", database=self.path.as_uri(), query={"mode": "rw", "uri": "true"}
            ),
            connect_args={"timeout": busy},
            poolclass=sa.NullPool,
        )
        sa.event.listen(self._engine, "connect", _on_connect)
        sa.event.listen(self._engine, "begin", _on_begin)
        self._create(quiet)
        with self.transaction() as connection:
            quarantine.create(connection, checkfirst=True)  # files of before have none
            version = connection.scalar(sa.select(store.c.version))
        if version != SCHEMA_VERSION:
            raise LeaseStoreError(
                f"{path}: expected version {SCHEMA_VERSION}, found {version}: another version of "
                "the lab made it; end all runs and remove it"
            )

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """A transaction beside which no other writes. LeaseStoreError if the database fails."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except (sa.exc.DatabaseError, sqlite3.DatabaseError) as error:
            cause = str(getattr(error, "orig", error))
            if not self.path.exists():
                cause = "the file is gone"
            raise LeaseStoreError(
                f"{self.path}: {cause}; if it stays so, end all runs and remove the file"
            ) from None

    def quiet_seconds(self, connection: sa.Connection) -> float:
        """For how long nothing is granted yet."""
        row = connection.execute(sa.select(store)).one()
        return max(0.0, row.quiet_until - boot_time()) if row.quiet_boot == boot_id() else 0.0

    def _create(self, quiet: float) -> None:
        lock_path = self.path.with_suffix(".lock")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with lock_path.open("a+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if self.path.exists():
                    return
                lock.seek(0)
                existed = bool(lock.read())
                self._create_tables(boot_time() + (quiet if existed else 0.0))
                lock.write(f"{datetime.now(UTC)}: made {self.path.name}\n")
        except (OSError, sa.exc.DatabaseError) as error:
            cause = getattr(error, "orig", None) or getattr(error, "strerror", error)
            raise LeaseStoreError(f"{self.path}: cannot be made: {cause}") from None

    def _create_tables(self, quiet_until: float) -> None:
        # Made under another name: whoever finds the file finds all of it.
        new = self.path.with_suffix(f".new-{os.getpid()}")
        new.unlink(missing_ok=True)
        engine = sa.create_engine(f"sqlite:///{new}", poolclass=sa.NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")  # stays with the file
        with engine.begin() as connection:
            _tables.create_all(connection)
            connection.execute(
                sa.insert(store).values(
                    version=SCHEMA_VERSION, quiet_boot=boot_id(), quiet_until=quiet_until
                )
            )
        for suffix in ("-wal", "-shm"):  # of a file that is gone
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        new.rename(self.path)


def _on_connect(connection: sqlite3.Connection, _record: object) -> None:
    # SQLAlchemy's documented way to begin transactions itself: Python's sqlite3 begins them late.
    connection.isolation_level = None
    connection.execute("PRAGMA synchronous = FULL")


def _on_begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
