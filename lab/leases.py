"""Who may touch which machine: leases in one SQLite file, for all processes of this host.

A holder acts only until its last confirmed expiry less a margin, whether the database can be
reached or not; the next holder comes after that expiry plus the margin. A holder whose process is
dead is followed at once. All times are of lab.processes.boot_time().

SQLite's write-ahead log does not work across hosts (https://sqlite.org/wal.html), so a lease of
another boot is one of this host before it restarted: nobody holds it any more.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import sqlalchemy as sa

from lab.config import Config
from lab.lease_database import LeaseDatabase, LeaseStoreError, requests, slots
from lab.outcome import InfrastructureError, LabError
from lab.processes import Process, boot_id, boot_time
from lab.quarantine import Quarantined, put_back, quarantined, take_out

BUSY_SECONDS = 5.0
"""How long a transaction waits for another process's."""
POLL_SECONDS = 0.1
"""How often a waiting request asks."""
REFRESH_SECONDS = 1.0
"""How often a waiting request says that it is there."""
STALE_SECONDS = 5.0
"""A request that has not said so for this long lets others pass, and keeps its place."""


class UnknownSlotError(LabError):
    """A machine was asked for that lab.toml does not have: waiting would never end."""


class LeaseUnavailable(InfrastructureError):  # noqa: N818 - a state, not a mistake
    """No machine came free in time; the message says who holds what, and why."""


class LeaseLost(InfrastructureError):  # noqa: N818 - a state, not a mistake
    """The holder may no longer touch the machine."""


State = Literal["held", "broken", "expired", "dead"]
"""broken: taken away, and until its expiry perhaps still in use. expired: its holder was not heard
of in time. dead: its holder's process ended without giving it back. The last two are free."""


@dataclass(frozen=True)
class Holding:
    """A machine that was leased and not given back. Times are UTC by the host's clock now."""

    slot: str
    state: State
    token: int
    holder: str
    purpose: str
    run_id: str
    acquired_at: datetime
    expires_at: datetime
    pid: int
    host: str
    broken: str
    """Why it was taken away; empty if it was not."""

    @property
    def alive(self) -> bool:
        """Whether the holder may still touch the machine."""
        return self.state in {"held", "broken"}

    def __str__(self) -> str:
        return (
            f"{self.slot} is held by {self.holder} (process {self.pid} on {self.host}) for "
            f"{self.purpose}, run {self.run_id}, since {self.acquired_at:%Y-%m-%d %H:%M:%S} UTC"
            + ("" if self.state == "held" else f"; {self.state}")
            + (f": {self.broken}" if self.broken else "")
        )


class Lease:
    """A machine that is this process's own; a context manager that releases it. Thread-safe.

    token: grows by one with each grant of the slot, for ever. A thread renews the lease every
    third of its expiry.
    """

    def __init__(
        self, leases: LeaseStore, slot: str, token: int, run_id: str, *, expires: float
    ) -> None:
        self.slot = slot
        self.token = token
        self.run_id = run_id
        self._leases = leases
        self._lock = threading.Lock()
        self._expires = expires
        self._lost = ""
        self._trouble = ""
        self._stop = threading.Event()
        self._heartbeat = threading.Thread(target=self._beat, name=f"lease-{slot}", daemon=True)
        self._heartbeat.start()

    def confirm(self, action: str) -> None:
        """Returns if the machine may be touched now; `action` says what for.

        Asks nothing but this process's clock. Raises LeaseLost.
        """
        with self._lock:
            self._end_if_late()
            if self._lost:
                raise LeaseLost(
                    f"{action}: not done, the lease of {self.slot} (token {self.token}) is lost: "
                    f"{self._lost}"
                )

    def release(self) -> None:
        """Gives the machine back; one that is lost or released already is fine.

        Raises LeaseStoreError if the database cannot be told: then the lease ends by itself.
        """
        self._stop.set()
        self._heartbeat.join()
        with self._lock:
            self._lost = self._lost or "it was released"
        self._leases.release(self.slot, self.token)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.release()
        except LeaseStoreError as trouble:
            if error is None:
                raise
            error.add_note(f"The lease of {self.slot} could not be released: {trouble}")

    def _end_if_late(self) -> None:
        if not self._lost and boot_time() > self._expires - self._leases.margin:
            why = self._trouble or "this process did not run for too long"
            self._lost = f"it could not be renewed in time: {why}"

    def _beat(self) -> None:
        pause = self._leases.expiry / 3
        while not self._stop.wait(pause):
            with self._lock:
                self._end_if_late()
                if self._lost:
                    return
            try:
                expires = self._leases.renew(self.slot, self.token)
            except LeaseStoreError as error:
                with self._lock:
                    self._trouble = str(error)
                pause = self._leases.expiry / 30
            except LeaseLost as error:
                with self._lock:
                    self._lost = str(error)
                return
            else:
                with self._lock:
                    self._expires, self._trouble = expires, ""
                pause = self._leases.expiry / 3


class LeaseStore:
    """The leases of one lab. Thread-safe; not to be carried through fork().

    path: the database, made if absent. slots: the machines there are. expiry, margin: seconds.
    Every method raises LeaseStoreError if the database cannot be used. A process that is stopped in
    the few milliseconds of a transaction keeps others from renewing, too: their leases are lost,
    none is granted twice.
    """

    def __init__(self, path: Path, *, slots: Collection[str], expiry: float, margin: float) -> None:
        self.expiry = expiry
        self.margin = margin
        self._slots = sorted(slots)
        self._process = Process.this()
        self._database = LeaseDatabase(
            path, busy=min(BUSY_SECONDS, expiry / 3), quiet=expiry + margin
        )

    def acquire(
        self,
        candidates: Sequence[str],
        *,
        holder: str,
        purpose: str,
        run_id: str,
        wait: float,
        on_wait: Callable[[list[Holding]], None] | None = None,
        quarantined: bool = False,
    ) -> Lease:
        """The first free machine of `candidates`; who asked first is served first.

        wait: seconds. on_wait is called with who holds the candidates, when waiting begins and
        whenever that changes. quarantined: also one that was taken out of the pool, to look at it.
        Raises UnknownSlotError at once, LeaseUnavailable when the time is over, or when all
        candidates are out of the pool.
        """
        self._refuse_unknown(candidates)
        end = boot_time() + wait
        ticket = self._queue(candidates)
        purposes = {"holder": holder, "purpose": purpose, "run_id": run_id}
        told: list[tuple[str, State, int]] | None = None
        pause = threading.Event()
        granted = None
        try:
            while True:
                with self._database.transaction() as connection:
                    if not quarantined:  # one may have been taken out since
                        candidates = _in_the_pool(connection, candidates)
                    granted = self._grant(connection, ticket, candidates, purposes)
                    holdings = _holdings(connection)
                    quiet = self._database.quiet_seconds(connection)
                if granted is not None:
                    slot, token, expires = granted
                    return Lease(self, slot, token, run_id, expires=expires)
                holdings = [holding for holding in holdings if holding.slot in candidates]
                if boot_time() >= end:
                    raise LeaseUnavailable(_unavailable(candidates, holdings, wait, quiet))
                seen = [(holding.slot, holding.state, holding.token) for holding in holdings]
                if on_wait is not None and seen != told:
                    on_wait(holdings)
                    told = seen
                pause.wait(POLL_SECONDS)
        finally:
            if granted is None:
                self._leave(ticket)

    def holdings(self) -> list[Holding]:
        """What was leased and not given back, by the machines' names."""
        with self._database.transaction() as connection:
            return _holdings(connection)

    def release(self, slot: str, token: int) -> None:
        """Gives a machine back, if the lease with this token still holds it."""
        with self._database.transaction() as connection:
            connection.execute(sa.update(slots).where(*_held(slot, token)).values(held=False))

    def quarantine(self, slot: str, reason: str, *, run_id: str) -> None:
        """Takes a machine out of the pool until put_back(); a later reason replaces the first."""
        self._refuse_unknown([slot])
        with self._database.transaction() as connection:
            take_out(connection, slot, reason, run_id)

    def put_back(self, slot: str) -> bool:
        """Puts a machine back into the pool; False if it was in it."""
        self._refuse_unknown([slot])
        with self._database.transaction() as connection:
            return put_back(connection, slot)

    def quarantined(self) -> dict[str, Quarantined]:
        """What is out of the pool, by the machines' names."""
        with self._database.transaction() as connection:
            return quarantined(connection)

    def break_lease(self, slot: str, reason: str) -> bool:
        """Takes a machine from its holder, who is told `reason` at the next heartbeat.

        Until the lease expires the machine may still be in use: it is free after that and the
        margin, or when the holder gives it back or dies. False if nobody holds it.
        """
        self._refuse_unknown([slot])
        with self._database.transaction() as connection:
            update = sa.update(slots).where(slots.c.slot == slot, slots.c.held)
            return connection.execute(update.values(broken=reason)).rowcount > 0

    def renew(self, slot: str, token: int) -> float:
        """One heartbeat; gives the new expiry. Raises LeaseLost."""
        now = boot_time()
        expires = now + self.expiry
        with self._database.transaction() as connection:
            update = sa.update(slots).where(
                *_held(slot, token), slots.c.expires > now, slots.c.broken.is_(None)
            )
            changed = connection.execute(
                update.values(expires=expires, free_from=expires + self.margin)
            )
            if changed.rowcount:
                return expires
            row = connection.execute(sa.select(slots).where(slots.c.slot == slot)).first()
        if row is None:
            raise LeaseLost("the lease database was made anew and does not know it")
        if row.token != token:
            raise LeaseLost(f"{row.holder} has the machine now, for {row.purpose}")
        raise LeaseLost(f"it was broken: {row.broken}" if row.broken else "it had expired")

    def _refuse_unknown(self, candidates: Sequence[str]) -> None:
        unknown = sorted(set(candidates) - set(self._slots))
        if unknown or not candidates:
            wanted = f"no machine is called {', '.join(unknown)}" if unknown else "no machine fits"
            has = ", ".join(self._slots) or "none"
            raise UnknownSlotError(f"{wanted}; the lab's machines: {has}")

    def _queue(self, candidates: Sequence[str]) -> int:
        with self._database.transaction() as connection:
            made = connection.execute(
                sa.insert(requests).values(
                    candidates=list(candidates), process=str(self._process), seen=boot_time()
                )
            )
            return int(made.lastrowid)

    def _leave(self, ticket: int) -> None:
        with self._database.transaction() as connection:
            connection.execute(sa.delete(requests).where(requests.c.ticket == ticket))

    def _grant(
        self,
        connection: sa.Connection,
        ticket: int,
        candidates: Sequence[str],
        purposes: dict[str, str],
    ) -> tuple[str, int, float] | None:
        """Slot, token and expiry of a new lease; None if the request has to wait."""
        now = boot_time()
        slot = self._next_slot(connection, ticket, candidates, now)
        if slot is None or self._database.quiet_seconds(connection):
            return None
        last = connection.scalar(sa.select(slots.c.token).where(slots.c.slot == slot))
        token, expires = (last or 0) + 1, now + self.expiry
        values: dict[str, Any] = {
            "token": token,
            "held": True,
            **purposes,
            "host": socket.gethostname(),
            "process": str(self._process),
            "acquired_at": datetime.now(UTC).replace(tzinfo=None),
            "expires": expires,
            "free_from": expires + self.margin,
            "broken": None,
        }
        if last is None:
            connection.execute(sa.insert(slots).values(slot=slot, **values))
        else:
            connection.execute(sa.update(slots).where(slots.c.slot == slot).values(values))
        connection.execute(sa.delete(requests).where(requests.c.ticket == ticket))
        return slot, token, expires

    def _next_slot(
        self, connection: sa.Connection, ticket: int, candidates: Sequence[str], now: float
    ) -> str | None:
        """The machine that this request may take now: those who asked before choose first."""
        taken = {holding.slot for holding in _holdings(connection) if holding.alive}
        for request in connection.execute(sa.select(requests).order_by(requests.c.ticket)).all():
            mine = requests.c.ticket == request.ticket
            if request.ticket == ticket:
                if now - request.seen > REFRESH_SECONDS:
                    connection.execute(sa.update(requests).where(mine).values(seen=now))
                return next((slot for slot in candidates if slot not in taken), None)
            if Process.parse(request.process).is_dead():
                connection.execute(sa.delete(requests).where(mine))
            elif now - request.seen <= STALE_SECONDS:
                taken.update([slot for slot in request.candidates if slot not in taken][:1])
        raise LeaseStoreError(
            f"{self._database.path}: was replaced while a request was waiting; ask again"
        )


def open_leases(config: Config) -> LeaseStore:
    """The leases of a lab.toml."""
    return LeaseStore(
        config.store / "leases.sqlite",
        slots=config.slots(),
        expiry=config.leases.expiry_seconds,
        margin=config.leases.margin_seconds,
    )


def _held(slot: str, token: int) -> tuple[sa.ColumnElement[bool], ...]:
    return slots.c.slot == slot, slots.c.token == token, slots.c.held


def _holdings(connection: sa.Connection) -> list[Holding]:
    rows = connection.execute(sa.select(slots).where(slots.c.held).order_by(slots.c.slot))
    return [_holding(row) for row in rows]


def _holding(row: sa.Row[Any]) -> Holding:
    process, now = Process.parse(row.process), boot_time()
    acquired_at, expires_at = row.acquired_at.replace(tzinfo=UTC), datetime.now(UTC)
    if process.boot == boot_id():  # else its times are of another clock; it ended with its boot
        expires_at += timedelta(seconds=row.expires - now)
    state: State = "held"
    if process.is_dead():
        state = "dead"
    elif now >= row.free_from:
        state = "expired"
    elif row.broken:
        state = "broken"
    return Holding(
        slot=row.slot,
        state=state,
        token=row.token,
        holder=row.holder,
        purpose=row.purpose,
        run_id=row.run_id,
        acquired_at=acquired_at,
        expires_at=expires_at,
        pid=process.pid,
        host=row.host,
        broken=row.broken or "",
    )


def _in_the_pool(connection: sa.Connection, candidates: Sequence[str]) -> list[str]:
    """Those that somebody may get; to wait for others would be to wait for a person."""
    out = quarantined(connection)
    found = [slot for slot in candidates if slot not in out]
    if not found:
        said = "\n".join(f"  {out[slot]}" for slot in candidates)
        raise LeaseUnavailable(
            f"no machine is in the pool:\n{said}\nLook at it (lab health MACHINE), then lab"
            " machines --release MACHINE"
        )
    return found


def _unavailable(
    candidates: Sequence[str], holdings: list[Holding], wait: float, quiet: float
) -> str:
    lines = [f"no machine came free within {wait:g} s:", *(f"  {holding}" for holding in holdings)]
    if quiet:
        lines.append(
            "  the lease database was removed and made anew: leases it does not know may be held "
            f"for another {quiet:.0f} s"
        )
    elif free := sorted(set(candidates) - {one.slot for one in holdings if one.alive}):
        lines.append(f"  {', '.join(free)}: requests that came earlier are waiting for it")
    return "\n".join(lines)
