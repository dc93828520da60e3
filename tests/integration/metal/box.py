"""The box: QEMU machines behind an SNMP PDU, BMCs by IPMI, a console server and SSH servers.

Made by others: net-snmp's snmpd (the outlets), virtualbmc (power, reset, NMI), ser2net (COM1),
asyncssh's server (guest_door.py). A lab in the box has their addresses in its lab.toml, and nothing
else. The machines' libvirt is the box's own.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import tempfile
import threading
import tty
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from images.test_kernel.build import build_image
from lab.config import load_config
from lab.leases import open_leases
from tests.integration.console.conftest import Process, free_port, listens
from tests.integration.metal.guest_door import PASSWORD, USER, Agent, GuestDoor, guest_door
from tests.integration.power import ipmi_bmc
from tests.integration.power.snmpd import COMMUNITY, FACTS, SnmpPdu
from tests.integration.power.virtual_bmc import virtual_bmc
from tests.support.labs import CONTRACT, TestLab
from tests.support.libvirt import Domain, Libvirt, VirshError

FAMILY = "apc-rpdu"
SWITCH_SECONDS = 0.02
AGENT = 'kind = "qemu-guest-agent"\nchannel = "org.qemu.guest_agent.0"'
IMAGE = "installed-windows"


class SerialLine:
    """A null-modem cable: what goes into one end comes out of the other, machine on or off."""

    def __init__(self) -> None:
        self._files: list[int] = []
        self.machine, self._machine = self._end()
        self.server, self._server = self._end()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _end(self) -> tuple[Path, int]:
        master, slave = os.openpty()
        tty.setraw(slave)
        os.set_blocking(master, False)
        self._files += [master, slave]  # the slave stays open, or the other end would hang up
        return Path(os.ttyname(slave)), master

    def _run(self) -> None:
        ends = {self._machine: self._server, self._server: self._machine}
        while not self._stop.is_set():
            for one in select.select(list(ends), [], [], 0.1)[0]:
                with suppress(BlockingIOError):
                    data = os.read(one, 4096)
                    # Nobody listens at the other end: a line keeps nothing.
                    with suppress(BlockingIOError):
                        os.write(ends[one], data)

    def close(self) -> None:
        """Takes it away."""
        self._stop.set()
        self._thread.join()
        for file in self._files:
            os.close(file)


class MetalDomain(Domain):
    """A machine with a disk of its own and COM1 on a cable; libvirt knows it while it is off."""

    def __init__(self, libvirt: Libvirt, image: Path, line: SerialLine) -> None:
        self.line = line
        super().__init__(libvirt, image, name_prefix="metal")
        libvirt.own(line.machine)
        description = self.folder / "domain.xml"
        description.write_text(self.xml())
        libvirt.virsh("define", str(description))

    def new_overlay(self) -> None:
        """A disk that keeps what is written to it, and can be read while it is in use."""
        self.overlay = self.folder / "disk.raw"
        convert = ["qemu-img", "convert", "-O", "raw", str(self.image), str(self.overlay)]
        subprocess.run(convert, check=True)
        self.libvirt.own(self.overlay)

    def xml(self) -> str:
        """See Domain."""
        before, _, rest = super().xml().partition("    <serial type='pty'>\n      <log")
        after = rest.partition("</serial>\n")[2]
        serial = (
            f"<serial type='dev'><source path='{self.line.machine}'/><target port='0'/></serial>"
        )
        text = f"{before}    {serial}\n{after}"
        return text.replace("type='qcow2'", "type='raw'")

    def start(self) -> None:
        """Gives it power; one that is on already is fine."""
        self._switch("start", on=True)

    def destroy(self) -> None:
        """Cuts the power; one that is off already is fine."""
        self._switch("destroy", on=False)

    def _switch(self, command: str, *, on: bool) -> None:
        try:
            self.virsh(command)
        except VirshError:
            if self.is_on() is not on:  # else the BMC did it
                raise

    def close(self) -> None:
        """Removes it."""
        self.destroy()
        self.virsh("undefine")

    def is_on(self) -> bool:
        """Whether it runs."""
        return self.state().startswith("running")


@dataclass
class MetalMachine:
    """One machine of the box. name: in lab.toml. place: its outlet, in the PDU's terms."""

    name: str
    place: str
    domain: MetalDomain
    door: GuestDoor
    console_port: int
    bmc_port: int
    ser2net: Process
    trace: Path


class Box:
    """Machines and their parts, and the lab that knows of the parts. Made by metal_box()."""

    def __init__(self, folder: Path, pdu: SnmpPdu, machines: list[MetalMachine]) -> None:
        self.folder = folder
        self.pdu = pdu
        self.machines = {machine.name: machine for machine in machines}
        self.lab = TestLab(folder)
        self._stop = threading.Event()
        self._electrician = threading.Thread(target=self._switch, daemon=True)
        self._electrician.start()

    def _switch(self) -> None:
        """Relays have machines behind them: power that comes or goes, comes or goes there."""
        had = {machine.place: False for machine in self.machines.values()}
        while not self._stop.wait(SWITCH_SECONDS):
            for machine in self.machines.values():
                has = self.pdu.is_on(machine.place)
                if has != had[machine.place]:
                    had[machine.place] = has
                    (machine.domain.start if has else machine.domain.destroy)()

    def tidy_up(self) -> None:
        """Cables are in, the disks are as they were, and no machine is out of the pool."""
        pool = open_leases(load_config(self.lab.file))
        for machine in self.machines.values():
            machine.door.unplugged = ""
            self.pdu.switch(machine.place, False)
            machine.domain.destroy()
            machine.domain.new_overlay()
            pool.put_back(machine.name)

    def close(self) -> None:
        """Nobody switches any more."""
        self._stop.set()
        self._electrician.join()


@contextmanager
def metal_box(
    *,
    names: Sequence[str] = ("m1",),
    contract: Sequence[tuple[str, str]] = (),
    tables: Mapping[str, str] | None = None,
    lacks: Mapping[str, Sequence[str]] | None = None,
    **image: Any,
) -> Iterator[Box]:
    """A box with a lab.toml in its folder; all machines are off.

    contract: texts to replace in the contract. tables: the [machines.NAME] tables by name, instead
    of one with all parts; {bmc}, {console} and {ssh} stand there for the parts. lacks: what a
    machine's BMC cannot do. image: what build_image() takes.
    """
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="box-", dir="/var/tmp"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)
        libvirt = stack.enter_context(Libvirt())
        disk = build_image(libvirt.new_image_path(), **image)
        pdu = stack.enter_context(SnmpPdu(FAMILY))
        for place in pdu.places:
            pdu.switch(place, False)
        machines = [
            _machine(stack, folder / name, libvirt, disk, pdu.places[number])
            for number, name in enumerate(names)
        ]
        _write_lab(folder, pdu, machines, contract, (tables or {}, lacks or {}))
        box = Box(folder, pdu, machines)
        stack.callback(box.close)
        yield box


def _machine(stack: ExitStack, own: Path, libvirt: Libvirt, disk: Path, place: str) -> MetalMachine:
    own.mkdir()
    line = SerialLine()
    stack.callback(line.close)
    domain = MetalDomain(libvirt, disk, line)
    stack.callback(domain.close)
    agent = Agent(libvirt.uri, domain.name, domain.overlay)
    stack.callback(agent.close)
    door = stack.enter_context(guest_door(agent, domain.reset_events, own))
    bmc = stack.enter_context(virtual_bmc(libvirt.uri, domain.name))
    port, trace = free_port(), own / "trace"
    settings = own / "ser2net.yaml"
    settings.write_text(
        f"connection: &console\n  accepter: tcp(nodelay),127.0.0.1,{port}\n"
        f"  connector: serialdev,{line.server},115200n81,local\n"
        f"  options:\n    kickolduser: true\n    trace-read: {trace}\n"
    )
    command: list[str | Path] = ["ser2net", "-n", "-u", "-c", settings, "-P", own / "ser2net.pid"]
    ser2net = Process(command, lambda: listens(port))
    stack.callback(ser2net.kill)
    return MetalMachine(own.name, place, domain, door, port, bmc, ser2net, trace)


def _order(pdu: SnmpPdu, state: Literal["on", "off"]) -> str:
    """net-snmp's command that switches {outlet} of the PDU, and tells nothing of it."""
    order = FACTS[FAMILY][f"order_{state}"]
    one = FACTS[FAMILY]["objects"][order["object"]]
    return (
        f"snmpset -v2c -c {COMMUNITY} {pdu.host}:{pdu.port}"
        f" .{one['oid']}.{{outlet}} i {one['values'][order['value']]}"
    )


def _write_lab(
    folder: Path,
    pdu: SnmpPdu,
    machines: list[MetalMachine],
    contract: Sequence[tuple[str, str]],
    tables_and_lacks: tuple[Mapping[str, str], Mapping[str, Sequence[str]]],
) -> None:
    tables, lacks = tables_and_lacks
    text = CONTRACT.read_text()
    for before, after in (('name = "test-kernel"', f'name = "{IMAGE}"'), *contract):
        assert before in text, before
        text = text.replace(before, after, 1)
    assert AGENT in text
    (folder / "contract.toml").write_text(text.replace(AGENT, 'kind = "ssh"'))
    secrets = {"community": COMMUNITY, "bmc": ipmi_bmc.PASSWORD, "login": PASSWORD}
    (folder / "secrets.toml").write_text(
        "".join(f'{name} = "{value}"\n' for name, value in secrets.items())
    )
    symbols = CONTRACT.parent / "built"
    lab = f"""\
schema = 1
store = "store"
secrets = "secrets.toml"
[images.{IMAGE}]
contract = "contract.toml"
installed = true
symbols = ["{symbols}"]
[power.rack]
backend = "snmp_pdu"
address = "127.0.0.1"
port = {pdu.port}
community_secret = "community"
timing = {{ poll_seconds = 0.05, pause_seconds = 0.2 }}
[power.blind]
backend = "exec"
on = "{_order(pdu, "on")}"
off = "{_order(pdu, "off")}"
timing = {{ deadline_seconds = 30, poll_seconds = 0.1, pause_seconds = 0.2 }}
"""
    for number, machine in enumerate(machines, 1):
        parts = {
            "bmc": f'bmc = "{machine.name}-bmc"',
            "console": f'console = {{ url = "socket://127.0.0.1:{machine.console_port}" }}',
            "ssh": f'ssh = {{ host = "127.0.0.1", port = {machine.door.port}, user = "{USER}",'
            f' known_hosts = "{machine.name}/known_hosts", password_secret = "login" }}',
        }
        whole = 'power = "rack:machine-{n}"\n{bmc}\n{console}\n{ssh}\n'
        table = tables.get(machine.name, whole).format(n=number, **parts)
        lab += f"""
[power.{machine.name}-bmc]
backend = "ipmi"
address = "127.0.0.1"
port = {machine.bmc_port}
user = "{ipmi_bmc.USER}"
password_secret = "bmc"
lacks = {json.dumps(list(lacks.get(machine.name, [])))}
timing = {{ poll_seconds = 0.05, answer_seconds = 10 }}
[machines.{machine.name}]
backend = "machine"
{table}"""
    (folder / "lab.toml").write_text(lab)
