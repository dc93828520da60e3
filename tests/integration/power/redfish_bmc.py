"""A BMC by Redfish: sushy-tools' emulator over a libvirt, behind a front door.

The emulator speaks for the systems. The door has what it lacks: sessions that expire, and the bad
manners of real BMCs. It answers by HTTPS, and asks the emulator by HTTP on loopback.
"""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fixtures.power_bench import Mode
from tests.support.certificates import Certificate
from tests.support.emulators import emulator_environment
from tests.support.waiting import wait_for

USER, PASSWORD = "lab", "of-the-bmc"
SESSIONS = "/redfish/v1/SessionService/Sessions"
START_DEADLINE = 60.0
SYSTEMS = ("machine", "neighbor")
EMULATOR = """
import sys, libvirt
from sushy_tools.emulator import main
uri, settings, *names = sys.argv[1:]
connection = libvirt.open(uri)
for name in names:
    connection.defineXML(
        f"<domain type='test'><name>{name}</name><memory>1024</memory><os><type>hvm</type></os>"
        "<devices><disk type='file' device='disk'><source file='/a'/><target dev='hda'/></disk>"
        "<disk type='file' device='cdrom'><source file='/b'/><target dev='hdc'/></disk></devices>"
        "</domain>"
    ).create()
sys.argv = ["sushy-emulator", "--config", settings]
main.main()
"""
FORWARD_SECONDS = 60.0
REFUSALS = {"locked": 403, "conflict": 409, "fails": 503}


class SushyEmulator:
    """A running emulator on 127.0.0.1:`port`, asked by plain HTTP."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """One request; gives status and body."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=FORWARD_SECONDS)
        try:
            headers = {"Content-Type": "application/json"} if body else {}
            connection.request(method, path, body or None, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def path_of(self, name: str) -> str:
        """A system's path."""
        listed = json.loads(self.ask("GET", "/redfish/v1/Systems")[1])["Members"]
        paths = [str(one["@odata.id"]) for one in listed]
        (found,) = [path for path in paths if self._system(path)["Name"] == name]
        return found

    def is_on(self, path: str) -> bool:
        """Whether a system has power."""
        return bool(self._system(path)["PowerState"] == "On")

    def switch(self, path: str, kind: str) -> None:
        """Gives an order of ResetType."""
        body = json.dumps({"ResetType": kind}).encode()
        status, answer = self.ask("POST", f"{path}/Actions/ComputerSystem.Reset", body)
        assert status == 204, answer

    def _system(self, path: str) -> Any:
        return json.loads(self.ask("GET", path)[1])


@contextmanager
def sushy_emulator(libvirt_uri: str = "test:///default") -> Iterator[SushyEmulator]:
    """Runs it over a libvirt.

    libvirt's own test driver switches in no time: with it, there are the systems of SYSTEMS, both
    on. It forgets them with its last connection, so one is kept open in the emulator.
    """
    python = emulator_environment("redfish") / "bin/python"
    with tempfile.TemporaryDirectory(prefix="redfish-") as folder:
        port = free_port()
        settings, log = Path(folder, "emulator.conf"), Path(folder, "log")
        settings.write_text(
            f"SUSHY_EMULATOR_LISTEN_IP = '127.0.0.1'\nSUSHY_EMULATOR_LISTEN_PORT = {port}\n"
            f"SUSHY_EMULATOR_STATE_DIR = {folder!r}\nSUSHY_EMULATOR_LIBVIRT_URI = {libvirt_uri!r}\n"
        )
        wanted = SYSTEMS if libvirt_uri.startswith("test:") else ()
        with log.open("wb") as output:
            process = subprocess.Popen(
                [python, "-c", EMULATOR, libvirt_uri, settings, *wanted],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        emulator = SushyEmulator(port)

        def answers() -> bool:
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(OSError):
                return emulator.ask("GET", "/redfish/v1/")[0] == 200
            return False

        try:
            wait_for("sushy-emulator", answers, START_DEADLINE)
            yield emulator
        finally:
            process.kill()
            process.wait()


class FrontDoor:
    """The BMC as it is reached: HTTPS on 127.0.0.1:`port`; a context manager.

    has_sessions: else it takes user and password with each request only. other: the path of the
    system that it switches by mistake. mode: as in the conformance suite, and "fails": HTTP 503;
    "already off": HTTP 409 to an order to switch off what is off, "conflict": to all orders;
    "new schema": systems have LocationIndicatorActive; "nonsense": `nonsense` is every
    answer's body.
    """

    def __init__(
        self, emulator: SushyEmulator, certificate: Certificate, *, has_sessions: bool = True
    ) -> None:
        self.has_sessions = has_sessions
        self.other = ""
        self.nonsense = b""
        self.password = PASSWORD
        self.light = False
        """LocationIndicatorActive."""
        self.logins = 0
        """Sessions that were asked for."""
        self.resets: list[str] = []
        """Kinds of reset that were asked for."""
        self._sessions: set[str] = set()
        self.emulator = emulator
        self._mode: Mode | str = "good"
        self._seconds = 0.0
        self._changed = threading.Event()
        self._flapping = ""
        self._flips = 0
        self._timers: list[threading.Timer] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.file)
        door = self

        class Handler(_Handler):
            door: FrontDoor

        Handler.door = door
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> FrontDoor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.behave("good")
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def behave(self, mode: Mode | str, seconds: float = 0.0) -> None:
        """From now on; orders that were still to be followed are forgotten."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._mode, self._seconds = mode, seconds
        self._flapping = ""
        changed, self._changed = self._changed, threading.Event()
        changed.set()

    def expire_sessions(self) -> None:
        """No token of before is good any more."""
        self._sessions.clear()

    @property
    def sessions(self) -> int:
        """How many are open."""
        return len(self._sessions)

    # What the handler asks

    def hold(self) -> None:
        """Waits as long as the BMC is silent."""
        if self._mode == "dead":
            self._changed.wait(FORWARD_SECONDS)
        elif self._mode in {"late", "restarting"}:
            self._changed.wait(self._seconds)

    def knows(self, headers: Any) -> bool:
        """Whether a request's token, or user and password, are good."""
        if headers.get("X-Auth-Token") in self._sessions:
            return True
        kind, _, value = headers.get("Authorization", "").partition(" ")
        return bool(kind == "Basic" and base64.b64decode(value).decode() == self._login)

    @property
    def _login(self) -> str:
        return f"{USER}:{self.password}"

    def log_in(self, body: dict[str, str]) -> str | None:
        """A new session's token, or None."""
        self.logins += 1
        if f"{body.get('UserName')}:{body.get('Password')}" != self._login:
            return None
        token = secrets.token_hex()
        self._sessions.add(token)
        return token

    def log_out(self, token: str) -> None:
        """Ends a session."""
        self._sessions.discard(token)

    def reset(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Follows an order to a system, or not."""
        kind = json.loads(body)["ResetType"]
        self.resets.append(kind)
        if self._mode == "already off" and kind == "ForceOff" and not self._is_on(path):
            return 409, b'{"error": {"message": "the system is off already"}}'
        if self._mode == "slow":
            self._later(self._seconds, self.emulator.ask, "POST", path, body)
        elif self._mode == "flapping":
            self._flapping, self._flips = path.partition("/Actions")[0], 1
        elif self._mode == "wrong outlet":
            path = f"{self.other}/Actions/ComputerSystem.Reset"
        elif self._mode == "restarts":
            self._later(self._seconds, self.behave, "good")
            self._mode = "restarting"
            self.hold()
            return 204, b""
        if self._mode in REFUSALS:
            return REFUSALS[self._mode], b'{"error": {"message": "refused"}}'
        if self._mode in {"lies", "slow", "flapping"}:
            return 204, b""
        return self.emulator.ask("POST", path, body)

    def _is_on(self, path: str) -> bool:
        return self.emulator.is_on(path.partition("/Actions")[0])

    def _later(self, seconds: float, what: Callable[..., object], *arguments: object) -> None:
        timer = threading.Timer(seconds, what, arguments)
        timer.daemon = True
        self._timers.append(timer)
        timer.start()

    def changed(self, path: str, answer: bytes) -> bytes:
        """An answer of the emulator as this BMC gives it."""
        if self._mode == "nonsense":
            return self.nonsense
        if path.strip("/") == "redfish/v1" and self.has_sessions:
            root = json.loads(answer)
            root["Links"] = {"Sessions": {"@odata.id": SESSIONS}}
            return json.dumps(root).encode()
        if self._mode == "new schema" and b'"IndicatorLED"' in answer:
            return json.dumps(json.loads(answer) | {"LocationIndicatorActive": self.light}).encode()
        if self._mode == "flapping" and path == self._flapping:
            self._flips += 1
            system = json.loads(answer)
            system["PowerState"] = "On" if self._flips % 2 else "Off"
            return json.dumps(system).encode()
        return answer

    @property
    def fails(self) -> bool:
        """Whether it answers everything with HTTP 503."""
        return self._mode == "fails"

    def takes(self, change: dict[str, Any]) -> bool:
        """Whether a change of a system ends here: what lies does nothing."""
        self.light = bool(change.get("LocationIndicatorActive", self.light))
        return self._mode == "lies" or "LocationIndicatorActive" in change


class _Handler(BaseHTTPRequestHandler):
    door: FrontDoor

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""

    def handle(self) -> None:
        try:
            super().handle()
        except (OSError, ssl.SSLError):
            self.close_connection = True  # the other side has gone, or does not trust this one

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PATCH(self) -> None:
        self._answer("PATCH")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.door.hold()
        path = self.path.rstrip("/")
        if self.door.fails:
            self._send(503, b'{"error": {"message": "starting"}}')
        elif self.door.has_sessions and path == SESSIONS and method == "POST":
            token = self.door.log_in(json.loads(body))
            if token is None:
                self._send(401, b'{"error": {"message": "NoValidSession"}}')
            else:
                self._send(201, b"{}", {"X-Auth-Token": token, "Location": f"{SESSIONS}/{token}"})
        elif path != "/redfish/v1" and not self.door.knows(self.headers):
            self._send(401, b'{"error": {"message": "NoValidSession"}}')
        elif path.startswith(SESSIONS) and method == "DELETE":
            self.door.log_out(path.rpartition("/")[2])
            self._send(204, b"")
        elif path.endswith("/Actions/ComputerSystem.Reset"):
            self._send(*self.door.reset(path, body))
        elif method == "PATCH" and self.door.takes(json.loads(body)):
            self._send(204, b"")
        else:
            status, answer = self.door.emulator.ask(method, self.path, body)
            self._send(status, self.door.changed(path, answer))

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if body:
            self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def free_port() -> int:
    """A TCP port of loopback."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
