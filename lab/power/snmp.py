"""SNMP requests to one agent: versions 1, 2c and 3 through pysnmp 7, synchronous.

Versions 1 and 2c answer nothing to a wrong community (RFC 1157 section 4.1, RFC 3584 section 5.2):
silence alone says neither "dead" nor "refused". The agent is then asked for its version 3 engine
identifier, which needs no credentials (RFC 3414 section 4): whoever answers that is alive.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import SecretStr
from pysnmp.error import PySnmpError
from pysnmp.hlapi.v3arch import asyncio as hlapi
from pysnmp.proto import errind
from pysnmp.proto.rfc1902 import Integer32, OctetString
from pysnmp.proto.rfc1905 import EndOfMibView, NoSuchInstance, NoSuchObject

from lab import loop_thread
from lab.power.base import RefusedError, Timing, UnreachableError

SYS_OBJECT_ID = "1.3.6.1.2.1.1.2.0"
"""SNMPv2-MIB sysObjectID: which product it is."""
MAXIMUM_ROWS = 2000
"""Of one column: no device has as many outlets; one that answers without end is cut off."""
BULK_ROWS = 20
LIBRARY_SECONDS = 10.0
"""Beyond the time-outs that the library itself keeps: a limit against one that never returns."""

AuthProtocol = Literal["MD5", "SHA", "SHA-224", "SHA-256", "SHA-384", "SHA-512"]
PrivProtocol = Literal["DES", "AES", "AES-192", "AES-256"]
_AUTH = {
    "MD5": hlapi.USM_AUTH_HMAC96_MD5,
    "SHA": hlapi.USM_AUTH_HMAC96_SHA,
    "SHA-224": hlapi.USM_AUTH_HMAC128_SHA224,
    "SHA-256": hlapi.USM_AUTH_HMAC192_SHA256,
    "SHA-384": hlapi.USM_AUTH_HMAC256_SHA384,
    "SHA-512": hlapi.USM_AUTH_HMAC384_SHA512,
}
_PRIV = {
    "DES": hlapi.USM_PRIV_CBC56_DES,
    "AES": hlapi.USM_PRIV_CFB128_AES,
    "AES-192": hlapi.USM_PRIV_CFB192_AES_BLUMENTHAL,
    "AES-256": hlapi.USM_PRIV_CFB256_AES_BLUMENTHAL,
}
_REFUSALS: dict[type[errind.ErrorIndication], str] = {
    errind.UnknownUserName: "it knows no such user",
    errind.UnknownSecurityName: "it knows no such user",
    errind.WrongDigest: "the authentication key or protocol is wrong",
    errind.AuthenticationFailure: "the authentication key or protocol is wrong",
    errind.AuthenticationError: "the authentication key or protocol is wrong",
    errind.DecryptionError: "the privacy key or protocol is wrong",
    errind.UnsupportedSecurityLevel: "the user has no authentication or privacy there",
}
_STALE = (errind.NotInTimeWindow, errind.UnknownEngineID, errind.EngineIDMismatch)
"""What an agent that restarted says to keys and times of before."""
_NO_SUCH_NAME = 2

Value = int | str | None
"""Integers; texts and object identifiers as text; None: there is no such object."""


@dataclass(frozen=True)
class Community:
    """Versions 1 and 2c."""

    version: Literal["1", "2c"]
    community: SecretStr


@dataclass(frozen=True)
class User:
    """Version 3. A key that is None leaves that protection away."""

    name: str
    auth: tuple[AuthProtocol, SecretStr] | None
    priv: tuple[PrivProtocol, SecretStr] | None


class SnmpAgent:
    """One agent at `host`:`port` (UDP). Thread-safe.

    Requests raise UnreachableError or RefusedError. timing: answer_seconds and attempts count.
    """

    def __init__(
        self, host: str, port: int, credentials: Community | User, timing: Callable[[], Timing]
    ) -> None:
        self._address = (host, port)
        self._credentials = credentials
        self._timing = timing
        self._lock = threading.Lock()
        self._engine: Any = None

    def __str__(self) -> str:
        return f"{self._address[0]}:{self._address[1]}"

    def get(self, oid: str) -> Value:
        """One object; None if the agent has none such."""
        (value,) = self._request(hlapi.get_cmd, [_object(oid)]).values()
        return value

    def set(self, oid: str, value: int) -> None:
        """Sets an integer. RefusedError if the agent answers with any error."""
        self._request(hlapi.set_cmd, [_object(oid, value)], setting=True)

    def walk(self, column: str) -> dict[str, Value]:
        """The rows of a table's column by their index ("3", "1.1.7"), in the agent's order."""
        rows: dict[str, Value] = {}
        last = column
        while len(rows) < MAXIMUM_ROWS:
            found = self._next(last)
            for oid, value in found.items():
                if not oid.startswith(f"{column}.") or value is None:
                    return rows
                if _numbers(oid) <= _numbers(last):
                    raise UnreachableError(
                        f"{self}: its table {column} does not come in order ({oid} after {last});"
                        " this is no agent that can be read"
                    )
                rows[oid.removeprefix(f"{column}.")] = value
                last = oid
            if not found:
                return rows
        raise UnreachableError(f"{self}: its table {column} has no end; restart the device")

    def close(self) -> None:
        """Closes the socket; the next request opens one again."""
        with self._lock:
            engine, self._engine = self._engine, None
        if engine is not None:
            loop_thread.run(_close(engine), LIBRARY_SECONDS)

    def _next(self, oid: str) -> dict[str, Value]:
        if isinstance(self._credentials, Community) and self._credentials.version == "1":
            return self._request(hlapi.next_cmd, [_object(oid)])
        return self._request(hlapi.bulk_cmd, [0, BULK_ROWS, _object(oid)])

    def _request(
        self, command: Callable[..., Any], arguments: list[Any], *, setting: bool = False
    ) -> dict[str, Value]:
        """One request, sent again while there is no answer; what silence means is found out."""
        trouble, status, values = self._send(command, arguments, self._timing().attempts)
        silent = isinstance(trouble, errind.RequestTimedOut)
        if isinstance(trouble, _STALE) or (silent and self._is_alive()):
            self.close()  # keys and times of before the agent's restart go with the engine
            trouble, status, values = self._send(command, arguments, self._timing().attempts)
            if isinstance(trouble, errind.RequestTimedOut):
                raise RefusedError(f"{self} is alive and does not answer to {self._blame()}")
        if trouble is not None:
            for kind, meaning in _REFUSALS.items():
                if isinstance(trouble, kind):
                    raise RefusedError(f"{self} refuses: {meaning} ({trouble}); {self._where()}")
            raise UnreachableError(
                f"{self} does not answer SNMP ({trouble}): look whether the device has power and"
                " network and whether its address is right. A device without SNMP version 3 is as"
                " silent to a wrong community"
            )
        if status == _NO_SUCH_NAME and not setting:
            return {str(arguments[-1][0]): None}
        if status:
            raise RefusedError(
                f"{self} refuses with {status.prettyPrint()}: look whether the outlet is locked or"
                f" reserved there, and whether the credentials may write; {self._where()}"
            )
        return values

    def _send(
        self, command: Callable[..., Any], arguments: list[Any], attempts: int
    ) -> tuple[Any, Any, dict[str, Value]]:
        """Gives the library's error, the agent's error status, and the values by identifier."""

        async def send() -> Any:
            with self._lock:
                if self._engine is None:
                    self._engine = hlapi.SnmpEngine()
                engine = self._engine
            target = await self._target(attempts)
            context = hlapi.ContextData()
            return await command(engine, self._auth(), target, context, *arguments, lookupMib=False)

        trouble, status, _, found = self._run(send(), attempts)
        return trouble, status, {str(name): _plain(value) for name, value in found}

    def _is_alive(self) -> bool:
        """Whether it answers a version 3 user that nobody has, which every such agent does."""
        nobody = hlapi.UsmUserData("bugcheck-lab-is-anybody-there")  # noqa: S509 - has no keys

        async def ask() -> Any:
            engine = hlapi.SnmpEngine()
            try:
                target, context = await self._target(1), hlapi.ContextData()
                return await hlapi.get_cmd(
                    engine, nobody, target, context, _object(SYS_OBJECT_ID), lookupMib=False
                )
            finally:
                engine.close_dispatcher()

        return not isinstance(self._run(ask(), 1)[0], errind.RequestTimedOut)

    async def _target(self, attempts: int) -> Any:
        kind = hlapi.Udp6TransportTarget if ":" in self._address[0] else hlapi.UdpTransportTarget
        seconds = self._timing().answer_seconds
        return await kind.create(self._address, timeout=seconds, retries=attempts - 1)

    def _run(self, coroutine: Coroutine[Any, Any, Any], attempts: int) -> Any:
        limit = self._timing().answer_seconds * attempts + LIBRARY_SECONDS
        try:
            return loop_thread.run(coroutine, limit)
        except (OSError, PySnmpError) as error:  # TimeoutError is an OSError
            raise UnreachableError(f"{self} cannot be asked: {error or 'no answer'}") from error

    def _auth(self) -> Any:
        one = self._credentials
        if isinstance(one, Community):
            model = 0 if one.version == "1" else 1
            return hlapi.CommunityData(one.community.get_secret_value(), mpModel=model)
        keys: dict[str, Any] = {}
        if one.auth is not None:
            keys["authProtocol"] = _AUTH[one.auth[0]]
            keys["authKey"] = one.auth[1].get_secret_value()
        if one.priv is not None:
            keys["privProtocol"] = _PRIV[one.priv[0]]
            keys["privKey"] = one.priv[1].get_secret_value()
        return hlapi.UsmUserData(one.name, **keys)  # noqa: S509 - what lab.toml asks for

    def _blame(self) -> str:
        if isinstance(self._credentials, Community):
            return (
                f"this community in version {self._credentials.version}: one of them is wrong;"
                f" {self._where()}"
            )
        return (
            "this user: its privacy key or protocol is wrong, or this host is not among those it"
            f" answers; {self._where()}"
        )

    def _where(self) -> str:
        return "compare the device's own SNMP settings with lab.toml"


async def _close(engine: Any) -> None:
    engine.close_dispatcher()


def _object(oid: str, value: int | None = None) -> Any:
    name = hlapi.ObjectIdentity(oid)
    if value is None:
        return hlapi.ObjectType(name)
    return hlapi.ObjectType(name, Integer32(value))


def _plain(value: Any) -> Value:
    if isinstance(value, (NoSuchObject, NoSuchInstance, EndOfMibView)):
        return None
    if isinstance(value, OctetString):
        return bytes(value).decode("utf-8", "replace").strip("\0 ")
    try:
        return int(value)
    except (TypeError, ValueError):
        return str(value)


def _numbers(oid: str) -> tuple[int, ...]:
    return tuple(int(part) for part in oid.split("."))
