"""One connection to a libvirt daemon: opened, heard, and opened again when it broke."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import libvirt
import libvirt_qemu

from lab.backend import BackendError
from lab.signals import DeadlineError, SignalLog
from lab.virtual.libvirt_events import start_event_loop

RECONNECT_SECONDS = 30.0
"""How long a daemon that died may take to answer again."""
KEEPALIVE = (5, 6)
"""Seconds between questions whether the daemon lives, and how many may stay unanswered."""


class Listener(Protocol):
    """Who hears of one domain. All but connection_back() must not block."""

    def lifecycle(self, event: int, detail: int) -> None:
        """A virDomainEventType and its detail."""

    def agent_connected(self, connected: bool) -> None:
        """The guest agent's channel was opened or closed from inside."""

    def monitor(self, event: str, details: dict[str, Any]) -> None:
        """An event of QEMU's monitor as it came (qapi/run-state.json)."""

    def connection_back(self) -> None:
        """The daemon was away and is back; what happened meanwhile was not heard."""

    def connection_lost(self, reason: str) -> None:
        """The daemon is away for good."""


@contextmanager
def asking(what: str) -> Iterator[None]:
    """Turns libvirt's errors into BackendError; `what` was asked, and of which domain."""
    try:
        yield
    except libvirt.libvirtError as error:
        said = error.get_error_message() or str(error)
        raise BackendError(f"{what}: libvirt says: {said}{_advice(error, said)}") from error


def _advice(error: libvirt.libvirtError, said: str) -> str:
    if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
        return "; the machine is off: start it first"
    if "Permission denied" in said:
        return (
            "; the user that QEMU runs as must be able to enter every folder above this file:"
            " choose another store in lab.toml"
        )
    if "socket" in said or "connection" in said.lower():
        return "; look whether libvirtd runs and what it logged"
    return ""


class Connection:
    """Calls go through `open`; events go to whoever listens for the domain's UUID.

    still_there: called while the daemon is waited for; raises BackendError if it cannot come.
    patience: seconds for the first answer; 0 when the daemon must be there already.
    """

    def __init__(self, uri: str, still_there: Callable[[], None], patience: float) -> None:
        self.uri = uri
        self._still_there = still_there
        self._listeners: dict[str, Listener] = {}
        self._lock = threading.Lock()
        self._answers = threading.Event()
        self._closed = False
        self._lost = ""
        start_event_loop()
        self._open(patience)

    @property
    def lost(self) -> str:
        """Why it is gone for good; empty while it is not."""
        return self._lost

    @property
    def open(self) -> Any:
        """libvirt's virConnect; waits while a broken connection is opened again."""
        if not self._lost and not self._answers.wait(2 * RECONNECT_SECONDS):
            raise BackendError(f"{self.uri}: libvirt did not come back")
        if self._lost:
            raise BackendError(f"{self.uri}: {self._lost}")
        return self._connection

    def listen(self, uuid: str, listener: Listener) -> None:
        """From now on `listener` hears of the domain with this UUID."""
        with self._lock:
            self._listeners[uuid] = listener

    def forget(self, uuid: str) -> None:
        """Nobody listens for this domain any more."""
        with self._lock:
            self._listeners.pop(uuid, None)

    def close(self) -> None:
        """Closes it; machines that were started through it lose their power."""
        self._closed = True
        if self._answers.is_set() and not self._lost:
            with asking(f"close {self.uri}"):
                self._connection.unregisterCloseCallback()
                self._connection.close()
        self._lost = self._lost or "the connection was closed"

    # Opening

    def _open(self, patience: float) -> None:
        refused: list[libvirt.libvirtError] = []

        def attempt() -> Any:
            self._still_there()
            try:
                return libvirt.open(self.uri)
            except libvirt.libvirtError as error:
                refused.append(error)
                return None

        try:
            connection = SignalLog().wait(f"libvirt at {self.uri}", attempt, patience)
        except DeadlineError as error:
            raise BackendError(
                f"{self.uri}: no libvirt answers: {refused[-1].get_error_message()}."
                " Look whether libvirtd runs; where no service manager starts it,"
                ' uri = "private" in lab.toml makes the lab start its own'
            ) from error
        with asking(f"listen to {self.uri}"):
            connection.setKeepAlive(*KEEPALIVE)
            connection.registerCloseCallback(self._broke, None)
            for event, callback in (
                (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle),
                (libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE, self._agent),
            ):
                connection.domainEventRegisterAny(None, event, callback, None)
            libvirt_qemu.qemuMonitorEventRegister(connection, None, None, self._monitor, None, 0)
        self._connection = connection
        self._answers.set()

    def _broke(self, connection: Any, reason: int, opaque: None) -> None:
        if not self._closed:
            self._answers.clear()
            threading.Thread(target=self._open_again, name="libvirt again", daemon=True).start()

    def _open_again(self) -> None:
        try:
            self._open(RECONNECT_SECONDS)
        except BackendError as error:
            self._lost = f"the connection to libvirt broke, and it did not come back: {error}"
            self._answers.set()
        for listener in self._all_listeners():
            if self._lost:
                listener.connection_lost(self._lost)
            else:
                listener.connection_back()

    # Events, in libvirt's event thread

    def _all_listeners(self) -> list[Listener]:
        with self._lock:
            return list(self._listeners.values())

    def _listener(self, domain: Any) -> Listener | None:
        with self._lock:
            return self._listeners.get(domain.UUIDString())

    def _lifecycle(self, _: Any, domain: Any, event: int, detail: int, opaque: None) -> None:
        if listener := self._listener(domain):
            listener.lifecycle(event, detail)

    def _agent(self, _: Any, domain: Any, state: int, reason: int, opaque: None) -> None:
        if listener := self._listener(domain):
            connected = libvirt.VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_CONNECTED
            listener.agent_connected(state == connected)

    def _monitor(  # noqa: PLR0917 - libvirt's
        self,
        _: Any,
        domain: Any,
        event: str,
        seconds: int,
        microseconds: int,
        details: str | None,
        opaque: None,
    ) -> None:
        if listener := self._listener(domain):
            listener.monitor(event, json.loads(details) if details else {})
