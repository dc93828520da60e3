"""sol://HOST[:PORT]: a BMC's Serial over LAN (IPMI v2.0, section 15), by ipmitool.

ipmitool runs on a pseudo-terminal of its own. A BMC has one Serial over LAN session: one that is
active already (of a lab that died, of a forgotten terminal) is deactivated first, and the log says
so. What ipmitool itself prints at the end of a session is in the log and marked as not the
machine's.
"""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
import tty
from urllib.parse import urlsplit

from lab.console.transport import (
    READ_SECONDS,
    Connection,
    ConsoleError,
    ConsoleGone,
    Line,
    Mark,
    Transport,
)

CHUNK = 65536
COMMAND_SECONDS = 30.0
"""For a command to a BMC; slow ones need several seconds to open a session."""
BANNER = re.compile(rb"\[SOL Session operational\.[^\]]*\]\r?\n")
FAREWELL = re.compile(
    rb"(?:\r?\n)?(?:\[SOL session closed by BMC\]|\[terminated ipmitool\]"
    rb"|Error sending SOL data: FAIL|SOL session closed by BMC|Error: No response[^\r\n]*"
    rb"|SOL payload [^\r\n]*|\[error received\]: [^\r\n]*)\r?\n?"
)
"""What ipmitool 1.8.19 says when a session ends (its source, lib/ipmi_sol.c)."""
ESCAPE = b"\x1f"
"""ipmitool's escape character, instead of "~": no key of a console makes it by accident."""


class SolConnection(Connection):
    """A running `ipmitool sol activate`."""

    def __init__(
        self, child: subprocess.Popen[bytes], terminal: int, host: str, mark: Mark
    ) -> None:
        self._child = child
        self._terminal = terminal
        self._host = host
        self._mark = mark
        self._early = b""
        """Received and not yet read."""

    def wait_until_operational(self) -> None:
        """Reads up to ipmitool's banner; what follows it is the machine's. Raises ConsoleGone."""
        said = b""
        end = time.monotonic() + COMMAND_SECONDS
        while not (banner := BANNER.search(said)):
            if time.monotonic() > end:
                raise ConsoleGone(f"{self._named()}: no session within {COMMAND_SECONDS:g} s")
            try:
                said += self._receive()
            except ConsoleGone as error:
                why = " ".join(said.decode(errors="replace").split())
                raise ConsoleGone(f"{error}: {why or 'ipmitool said nothing'}") from None
        self._early = said[banner.end() :]

    def read(self) -> bytes:
        """See Connection."""
        data, self._early = self._early or self._receive(), b""
        farewell = FAREWELL.search(data)
        if farewell is None:
            return data
        # Alone, so that the mark stands where its text will be in the log.
        end = farewell.start() or farewell.end()
        if farewell.start() == 0:
            said = " ".join(farewell[0].decode(errors="replace").split())
            self._mark("not-the-machine", length=end, why=f"ipmitool: {said}")
        self._early = data[end:]
        return data[:end]

    def _receive(self) -> bytes:
        if not select.select([self._terminal], [], [], READ_SECONDS)[0]:
            if self._child.poll() is not None:
                raise ConsoleGone(f"{self._named()}: ipmitool ended ({self._child.returncode})")
            return b""
        try:
            data = os.read(self._terminal, CHUNK)
        except OSError:  # EIO: the child has ended
            data = b""
        if not data:
            raise ConsoleGone(f"{self._named()}: ipmitool ended")
        return data

    def _named(self) -> str:
        return f"console sol://{self._host}"

    def write(self, data: bytes) -> None:
        """See Connection. The byte 0x1F cannot be typed: it is ipmitool's escape character."""
        if ESCAPE in data:
            raise ConsoleError(f"{self._named()}: byte 0x1F cannot be typed over ipmitool")
        try:
            while data:
                data = data[os.write(self._terminal, data) :]
        except OSError as error:
            raise ConsoleGone(f"{self._named()}: type on it: {error}") from error

    def close(self) -> None:
        """See Connection. ipmitool is asked to end, so that the BMC knows."""
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)
            try:
                self._child.wait(5)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        os.close(self._terminal)


class SolTransport(Transport):
    """The session of one BMC."""

    def __init__(self, line: Line) -> None:
        parts = urlsplit(line.url)
        if not parts.hostname:
            raise ConsoleError(f"console {line.url}: expected sol://HOST or sol://HOST:PORT")
        self._host = parts.netloc
        self._line = line
        self._command = ["ipmitool", "-I", "lanplus", "-H", parts.hostname, "-E"]
        self._command += ["-p", str(parts.port)] if parts.port else []
        self._command += ["-U", line.user] if line.user else []
        if line.cipher_suite is not None:
            self._command += ["-C", str(line.cipher_suite)]

    @property
    def _environment(self) -> dict[str, str]:
        # Not on the command line, which every user of this host can read.
        password = self._line.password
        text = password.get_secret_value() if password else ""
        # ipmitool prefers the first; the shell's must not win.
        return {**os.environ, "IPMITOOL_PASSWORD": text, "IPMI_PASSWORD": text}

    def open(self, mark: Mark) -> Connection:
        """See Transport."""
        self._deactivate(mark)
        terminal, childs_end = pty.openpty()
        tty.setraw(childs_end)
        try:
            child = subprocess.Popen(
                [*self._command, "-e", ESCAPE.decode(), "sol", "activate", "usesolkeepalive"],
                stdin=childs_end, stdout=childs_end, stderr=childs_end,
                env=self._environment, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            os.close(terminal)
            raise ConsoleError(f"console sol://{self._host}: start ipmitool: {error}") from error
        finally:
            os.close(childs_end)
        connection = SolConnection(child, terminal, self._host, mark)
        try:
            connection.wait_until_operational()
        except BaseException:
            connection.close()
            raise
        return connection

    def _deactivate(self, mark: Mark) -> None:
        """Ends the BMC's session, if it has one."""
        try:
            done = subprocess.run(
                [*self._command, "sol", "deactivate"],
                stdin=subprocess.DEVNULL, capture_output=True, text=True,
                env=self._environment, timeout=COMMAND_SECONDS,
            )  # fmt: skip
        except FileNotFoundError as error:
            raise ConsoleError(
                "ipmitool is not installed: sudo apt-get install ipmitool"
            ) from error
        except subprocess.TimeoutExpired:
            raise ConsoleGone(
                f"console sol://{self._host}: the BMC did not answer within {COMMAND_SECONDS:g} s"
            ) from None
        if done.returncode == 0:
            mark("took-over", why="an active Serial over LAN session was deactivated")
        elif "already de-activated" not in (said := done.stderr + done.stdout):
            raise ConsoleGone(
                f"console sol://{self._host}: {' '.join(said.split())}; check address, user,"
                " password and cipher suite with: ipmitool -I lanplus ... mc info"
            )


def open_line(line: Line) -> Transport:
    """See lab.console.transport."""
    return SolTransport(line)
