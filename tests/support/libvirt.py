"""A private libvirt for tests, and its machines driven by virsh processes alone.

The daemons are the lab's private ones (lab/virtual/libvirt_daemon.py): two do not meet, and nothing
is left running. What drives the machines shares nothing with the lab's own backend.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from xml.sax.saxutils import escape

from lab.virtual.libvirt_daemon import open_daemon
from tests.support.disk import DiskFiles
from tests.support.waiting import wait_for

START_DEADLINE = 60.0
"""Seconds for the daemons to answer; the first answer takes about 1.5 s on two cores."""
COMMAND_DEADLINE = 120.0
"""Seconds for one virsh call."""
AGENT_CHUNK = 48 * 1024
"""Bytes in one guest-file-read or -write; half a megabyte kills QEMU's agent channel."""


class VirshError(AssertionError):
    """A virsh command failed; `message` is what it said."""

    def __init__(self, command: Sequence[str], message: str) -> None:
        super().__init__(f"virsh {' '.join(command)}: {message}")
        self.message = message


@dataclass(frozen=True)
class ExecResult:
    """A program that ended in the guest."""

    exit_code: int
    output: str
    errors: str


class Libvirt:
    """A libvirt of its own; a context manager that stops all it started."""

    def __init__(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="libvirt-logs-")
        self._daemon = open_daemon("tests", "private", Path(self._scratch.name))
        self.uri = self._daemon.uri
        socket = Path(self.uri.partition("socket=")[2])
        # Machines' files lie beside the sockets, so that they go when the daemons end.
        self.folder = socket.parents[2]
        self._events_file = self.folder / "events.log"
        self._events: subprocess.Popen[bytes] | None = None
        try:
            wait_for("libvirtd", lambda: self._daemon_alive() and socket.exists(), START_DEADLINE)
            self.virsh("version")
            self._start_events()
        except BaseException:
            self.close()
            raise

    def _daemon_alive(self) -> bool:
        self._daemon.still_there()
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops daemons and machines and removes the folder."""
        if self._events is not None:
            self._events.kill()
            self._events.wait()
        self._daemon.stop()
        self._scratch.cleanup()

    def own(self, path: Path) -> Path:
        """Gives a file or folder to the user the machines run as; returns it."""
        if self._daemon.account:
            self._daemon.account.own(path)
        return path

    def new_image_path(self) -> Path:
        """A path for a disk image where the machines can read it; it goes with this libvirt."""
        return self.folder / f"image-{uuid.uuid4().hex[:8]}.qcow2"

    def virsh(self, *arguments: str, deadline: float = COMMAND_DEADLINE) -> str:
        """Runs one virsh command and returns its output. Raises VirshError."""
        try:
            done = subprocess.run(
                ["virsh", "--quiet", "--connect", self.uri, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=deadline,
            )
        except subprocess.TimeoutExpired:
            raise VirshError(arguments, f"no answer within {deadline:g} s") from None
        if done.returncode:
            raise VirshError(arguments, done.stderr.strip())
        return done.stdout

    def events(self) -> list[str]:
        """Every event of every machine so far, as `virsh event` prints them."""
        return self._events_file.read_text().splitlines()

    def _start_events(self) -> None:
        with self._events_file.open("wb") as file:
            self._events = subprocess.Popen(
                ["virsh", "--connect", self.uri, "event", "--all", "--loop", "--timestamp"],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        # virsh does not say when it listens: make events until one of them arrives.
        probe = self.folder / "probe.xml"
        probe.write_text(
            "<domain type='qemu'><name>probe</name><memory>1024</memory>"
            "<os><type arch='x86_64'>hvm</type></os></domain>"
        )

        def heard() -> bool:
            self.virsh("define", str(probe))
            self.virsh("undefine", "probe")
            return any("'probe'" in line for line in self.events())

        wait_for("virsh event to listen", heard, START_DEADLINE)


class Domain:
    """One virtual machine: an IDE disk that is an overlay on an image, and its devices.

    name_prefix: the start of its name in libvirt. memory_mib: guest memory in MiB.
    hold_restarts: a restart from inside powers the machine off, so that its disk can be looked at
    before the next boot.
    """

    def __init__(
        self,
        libvirt: Libvirt,
        image: Path,
        *,
        name_prefix: str = "m",
        memory_mib: int = 64,
        hold_restarts: bool = False,
    ) -> None:
        self.libvirt = libvirt
        self.image = image
        self.name = f"{name_prefix}-{uuid.uuid4().hex[:8]}"
        self.folder = libvirt.folder / self.name
        self.folder.mkdir()
        libvirt.own(self.folder)
        self.overlay = self.folder / "disk.qcow2"
        self.console_log = self.folder / "com1.log"
        self.debug_log = self.folder / "debug.log"
        self.hold_restarts = hold_restarts
        self._memory_mib = memory_mib
        self.new_overlay()

    def new_overlay(self) -> None:
        """Puts the disk back to the image's state; the machine must be off or about to restore."""
        self.overlay.unlink(missing_ok=True)
        _run(
            "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(self.image),
            str(self.overlay),
        )  # fmt: skip
        self.libvirt.own(self.overlay)

    def xml(self) -> str:
        """The machine as libvirt describes it.

        COM1 is the console, COM2 is kept for a kernel debugger. The QEMU debug console (port
        0xE9) shows the kernel's debug text in reports of failed tests; no test relies on it.
        """
        return f"""<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{escape(self.name)}</name>
  <memory unit='MiB'>{self._memory_mib}</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type><boot dev='hd'/></os>
  <features><acpi/><apic/><vmcoreinfo state='on'/></features>
  <cpu mode='maximum'/>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>{"destroy" if self.hold_restarts else "restart"}</on_reboot>
  <on_crash>preserve</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='unsafe'/>
      <source file='{escape(str(self.overlay))}'/>
      <target dev='hda' bus='ide'/>
    </disk>
    <controller type='usb' model='none'/>
    <controller type='virtio-serial' index='0'/>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <serial type='pty'>
      <log file='{escape(str(self.console_log))}' append='on'/><target port='0'/>
    </serial>
    <serial type='pty'><target port='1'/></serial>
    <input type='keyboard' bus='ps2'/>
    <video><model type='vga' vram='16384' heads='1'/></video>
    <memballoon model='none'/>
    <panic model='isa'/>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-chardev'/>
    <qemu:arg value='file,id=debug,append=on,path={escape(str(self.debug_log))}'/>
    <qemu:arg value='-device'/>
    <qemu:arg value='isa-debugcon,iobase=0xe9,chardev=debug'/>
  </qemu:commandline>
</domain>
"""

    def virsh(self, command: str, *arguments: str, deadline: float = COMMAND_DEADLINE) -> str:
        """One virsh command on this machine."""
        return self.libvirt.virsh(command, self.name, *arguments, deadline=deadline)

    # Power

    def start(self) -> None:
        """Powers the machine on."""
        description = self.folder / "domain.xml"
        description.write_text(self.xml())
        self.libvirt.virsh("create", str(description))

    def destroy(self) -> None:
        """Cuts the power; a machine that is off already is fine."""
        try:
            self.virsh("destroy")
        except VirshError as error:
            if not _is_gone(error):
                raise

    def reset(self) -> None:
        """Presses the reset button."""
        self.virsh("reset")

    def state(self) -> str:
        """As `virsh domstate --reason` says, such as "running (booted)"; "off" when gone."""
        try:
            return self.virsh("domstate", "--reason").strip()
        except VirshError as error:
            if _is_gone(error):
                return "off"
            raise

    def save(self, file: Path) -> None:
        """Saves memory and devices to `file` and powers off."""
        self.virsh("save", str(file))

    def restore(self, file: Path) -> None:
        """Continues from a saved file, with whatever the overlay now holds."""
        self.libvirt.virsh("restore", str(file))

    # What can be seen and pressed

    def screenshot(self, file: Path) -> Path:
        """The screen as PNG (what libvirt 9.0's QEMU driver gives); returns `file`."""
        picture = self.folder / "screen.png"
        self.virsh("screenshot", str(picture))
        shutil.copyfile(picture, file)
        return file

    def screen_text(self) -> str:
        """The screen's lines, of a machine in VGA text mode (80 x 25 cells from 0xB8000)."""
        shown = self.virsh("qemu-monitor-command", "--hmp", "xp /2000hx 0xb8000")
        cells = [int(word, 16) for line in shown.splitlines() for word in line.split()[1:]]
        text = bytes(cell & 0xFF for cell in cells).decode("cp437")
        return "\n".join(text[row : row + 80].rstrip() for row in range(0, 2000, 80))

    def send_keys(self, *keys: str, hold_milliseconds: int = 100) -> None:
        """Presses Linux key names (KEY_RIGHTCTRL ...) at once and lets them go."""
        self.virsh("send-key", "--codeset", "linux", "--holdtime", str(hold_milliseconds), *keys)

    def inject_nmi(self) -> None:
        """Sends a non-maskable interrupt."""
        self.virsh("inject-nmi")

    def console(self) -> str:
        """All that COM1 printed since the first power-on."""
        return _text(self.console_log)

    def debug_text(self) -> str:
        """All that the kernel wrote to the debug console."""
        return _text(self.debug_log)

    def events(self) -> list[str]:
        """This machine's events as `virsh event` prints them, oldest first."""
        return [line for line in self.libvirt.events() if f"'{self.name}'" in line]

    def reset_events(self) -> int:
        """How many resets were seen, by itself or from outside.

        The firmware (SeaBIOS) answers each with one or two of its own before it boots: whether the
        number grows says something, by how much does not.
        """
        return sum("event 'reboot'" in line for line in self.events())

    def crash_count(self) -> int:
        """How many bug checks told the hypervisor that the guest deals with them (CRASHLOADED)."""
        return sum("Crashed Crashloaded" in line for line in self.events())

    def wait_for_crash(self, deadline: float, count: int = 1) -> None:
        """Waits for this machine's `count`-th bug check; `deadline` in seconds."""
        wait_for(f"bug check {count}", lambda: self.crash_count() >= count, deadline)

    def wait_for_restart(self, deadline: float, after: int = 0) -> None:
        """Waits for a reset beyond the first `after` events; `deadline` in seconds."""
        wait_for("a restart", lambda: self.reset_events() > after, deadline)

    def wait_for_power_off(self, deadline: float) -> None:
        """Waits until the machine is off; `deadline` in seconds."""
        wait_for("power off", lambda: self.state() == "off", deadline)

    def limit_disk_writes(self, bytes_per_second: int) -> None:
        """Makes the disk slow to write; 0 takes the limit away."""
        self.virsh("blkdeviotune", "hda", "--write-bytes-sec", str(bytes_per_second), "--live")

    def disk_bytes_written(self) -> int:
        """Bytes the machine has written to its disk since it was started."""
        for line in self.virsh("domblkstat", "hda").splitlines():
            if " wr_bytes " in line:
                return int(line.split()[2])
        raise AssertionError("virsh domblkstat gives no wr_bytes")

    def wait_for_quiet_disk(self, deadline: float, quiet: float = 1.0) -> None:
        """Waits until nothing was written for `quiet` seconds; both times in seconds."""
        written = -1
        since = time.monotonic()

        def is_quiet() -> bool:
            nonlocal written, since
            now = self.disk_bytes_written()
            if now != written:
                written, since = now, time.monotonic()
            return time.monotonic() - since >= quiet

        wait_for("the disk to be quiet", is_quiet, deadline)

    def dump_memory(self, file_format: str = "win-dmp") -> Path:
        """A dump of guest memory taken by the hypervisor; `file_format` as virsh names it."""
        file = self.folder / f"memory.{file_format}"
        self.virsh("dump", str(file), "--memory-only", "--format", file_format)
        return file

    def disk_bytes_at(self, offset: int, size: int) -> bytes:
        """Bytes of the disk as it is now; `offset` and `size` are whole sectors of 512 bytes."""
        part = self.folder / "part"
        _run(
            "qemu-img", "dd", "-U", "-f", "qcow2", "-O", "raw", "bs=512",
            f"skip={offset // 512}", f"count={(offset + size) // 512}",
            f"if={self.overlay}", f"of={part}",
        )  # fmt: skip
        return part.read_bytes()

    def disk(self) -> DiskFiles:
        """The files on the disk as they are now; of a running machine, a snapshot."""
        return DiskFiles(self.overlay, self.folder)

    def last_words(self) -> dict[str, str]:
        """State, events and the ends of both logs, for the report of a failed test."""
        try:
            state = self.state()
        except VirshError as error:
            state = str(error)
        return {
            "state": state,
            "events": "\n".join(self.events()[-20:]),
            "console": self.console()[-3000:],
            "debug text": self.debug_text()[-3000:],
        }

    def close(self) -> None:
        """Cuts the power and removes the machine's files."""
        self.destroy()
        shutil.rmtree(self.folder)

    # Guest agent (QEMU's protocol: qemu-ga's qapi-schema.json)

    def agent(self, command: str, deadline: float = 20.0, /, **arguments: Any) -> Any:
        """One agent command; argument names have "_" for "-". Returns its "return" value."""
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = {name.replace("_", "-"): v for name, v in arguments.items()}
        answer = self.virsh(
            "qemu-agent-command", json.dumps(request), "--timeout", str(max(1, int(deadline)))
        )
        return json.loads(answer)["return"]

    def agent_answers(self) -> bool:
        """Whether the guest agent answers a ping within two seconds."""
        try:
            self.agent("guest-ping", 2.0)
        except VirshError:
            return False
        return True

    def wait_for_agent(self, deadline: float) -> None:
        """Waits until the agent answers; `deadline` in seconds."""
        wait_for(f"the agent of {self.name}", self.agent_answers, deadline)

    def execute(self, program: str, *arguments: str, deadline: float = 30.0) -> ExecResult:
        """Runs a program in the guest by its full path and waits for its end."""
        started = self.agent("guest-exec", path=program, arg=list(arguments), capture_output=True)

        def ended() -> dict[str, Any] | None:
            status: dict[str, Any] = self.agent("guest-exec-status", pid=started["pid"])
            return status if status["exited"] else None

        status = wait_for(f"{program} to end", ended, deadline)
        assert status is not None
        return ExecResult(
            status["exitcode"], _decoded(status, "out-data"), _decoded(status, "err-data")
        )

    def read_file(self, path: str) -> bytes:
        """A file of the running guest, through its agent."""
        handle = self.agent("guest-file-open", path=path, mode="rb")
        content = b""
        try:
            while True:
                part = self.agent("guest-file-read", handle=handle, count=AGENT_CHUNK)
                content += base64.b64decode(part["buf-b64"])
                if part["eof"]:
                    return content
        finally:
            self.agent("guest-file-close", handle=handle)

    def write_file(self, path: str, content: bytes) -> None:
        """Creates or replaces a file of the running guest, through its agent."""
        handle = self.agent("guest-file-open", path=path, mode="wb")
        try:
            for start in range(0, len(content), AGENT_CHUNK):
                part = content[start : start + AGENT_CHUNK]
                written = self.agent(
                    "guest-file-write", handle=handle, buf_b64=base64.b64encode(part).decode()
                )
                assert written["count"] == len(part)
            self.agent("guest-file-flush", handle=handle)
        finally:
            self.agent("guest-file-close", handle=handle)


def _is_gone(error: VirshError) -> bool:
    """Whether the domain was not there: when the command began, or any more when it was done."""
    return "failed to get domain" in error.message or "Domain not found" in error.message


def _text(file: Path) -> str:
    return file.read_text(errors="replace") if file.exists() else ""


def _decoded(status: dict[str, Any], name: str) -> str:
    return base64.b64decode(status.get(name, "")).decode(errors="replace")


def _run(*command: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
