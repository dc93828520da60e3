"""The same bad power devices, switched by others and by the lab: what each says, and what is so.

One emulated APC MasterSwitch (net-snmp's snmpd, tests/integration/power) is told to be good, to
lie, to be slow ... and outlet 3 is switched off by fence_apc_snmp (Debian's fence-agents), by
labgrid's NetworkPowerDriver, by pdudaemon (HTTP), and by the lab. Each cell: what the caller was
told, after how long, and which relays are off at that moment.

    python -m benchmarks.power_peers        # root: labgrid and pdudaemon know port 161 only

labgrid and pdudaemon are installed in environments of their own (.work/emulators). pdudaemon is
installed without systemd-python, which is built against libsystemd's headers and only serves its
option --journal.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from lab.outcome import LabError
from lab.power.devices import open_device
from lab.power.outlet import Outlet
from tests.integration.power.outlet_tree import Mode
from tests.integration.power.snmpd import SnmpPdu
from tests.support.emulators import emulator_environment
from tests.support.waiting import wait_for

HOST, PORT = "127.0.0.161", 161
COMMUNITY = "private"
"""labgrid's driver for APC knows no other."""
WRONG_COMMUNITY = "changed"
OUTLET = "3"
HTTP_PORT = 16421
LIMIT = 240.0
"""Seconds until a client is given up."""


@dataclass(frozen=True)
class Case:
    """A device, and what is wrong with it."""

    what: str
    mode: Mode = "good"
    seconds: float = 0.0
    outlet: str = OUTLET
    dead: bool = False
    wrong_community: bool = False


CASES = [
    Case("good"),
    Case("lies: takes the order, does nothing", "lies"),
    Case("slow: follows after 4 s", "slow", 4),
    Case("flapping after the order", "flapping"),
    Case("dead: no answer", dead=True),
    Case("another community", wrong_community=True),
    Case("refuses: the outlet is locked", "refuses"),
    Case("switches the next outlet", "wrong outlet"),
    Case("restarts with the order (3 s)", "restarts", 3),
    Case("outlet 9 of 8", outlet="9"),
]
Client = Callable[[str], str]
"""Switches an outlet off; gives what it told its caller."""


def fence(outlet: str) -> str:
    """fence_apc_snmp, as a cluster calls it."""
    asked = {"ip": HOST, "community": COMMUNITY, "plug": outlet, "action": "off"}
    done = subprocess.run(
        ["fence_apc_snmp"],
        input="\n".join(f"{key}={value}" for key, value in asked.items()),
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    first = (done.stdout or done.stderr).strip().splitlines()[0]
    return _told(done.returncode == 0, re.sub(r"^\S+ \S+ ERROR: ", "", first))


LABGRID = """\
import sys
from labgrid import Environment
driver = Environment(sys.argv[1]).get_target("main").get_driver("PowerProtocol")
driver.off()
"""


def labgrid(folder: Path, outlet: str) -> str:
    """labgrid's driver, as a test calls it."""
    (folder / "labgrid.yaml").write_text(
        "targets:\n  main:\n    resources:\n      NetworkPowerPort:\n"
        f"        model: apc\n        host: {HOST}\n        index: '{outlet}'\n"
        "    drivers:\n      NetworkPowerDriver: {}\n"
    )
    python = emulator_environment("labgrid") / "bin/python"
    done = subprocess.run(
        [python, "-c", LABGRID, folder / "labgrid.yaml"],
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    lines = done.stderr.strip().splitlines() or [""]
    return _told(done.returncode == 0, lines[-1].removeprefix("labgrid.driver.exception."))


@contextmanager
def pdudaemon(folder: Path) -> Iterator[Client]:
    """A running pdudaemon, two tries a second apart; it is asked over HTTP."""
    settings = {
        "daemon": {"hostname": "127.0.0.1", "port": HTTP_PORT, "listener": "http"},
        "pdus": {
            HOST: {
                "driver": "snmpv1",
                "community": COMMUNITY,
                "oid": "1.3.6.1.4.1.318.1.1.4.4.2.1.3.*",
                "onsetting": 1,
                "offsetting": 2,
                "retries": 2,
                "retrydelay": 1,
            }
        },
    }
    (folder / "pdudaemon.conf").write_text(json.dumps(settings))
    program = emulator_environment("pdudaemon") / "bin/pdudaemon"
    with (folder / "pdudaemon.log").open("wb") as log:
        process = subprocess.Popen(
            [program, "--conf", folder / "pdudaemon.conf"], stdout=log, stderr=log
        )

    def ask(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{HTTP_PORT}{path}", timeout=LIMIT
            ) as one:
                return one.status, one.read().decode().strip()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode().strip()
        except urllib.error.URLError:
            return 0, "no answer"

    def off(outlet: str) -> str:
        status, text = ask(f"/power/control/off?hostname={HOST}&port={outlet}")
        return _told(status == 200, f"{status}: {text}")

    try:
        wait_for("pdudaemon", lambda: ask("/")[0] == 404, 60)
        yield off
    finally:
        process.kill()
        process.wait()


def the_lab(outlet: str) -> str:
    """This project, with the timing it has by itself."""
    table = {
        "backend": "snmp_pdu",
        "address": HOST,
        "version": "1",
        "community_secret": "pdu",
    }
    try:
        with closing(open_device("pdu", table, lambda _: SecretStr(COMMUNITY))) as device:
            result = Outlet(device, outlet, lambda _: None).off()
    except LabError as error:
        return _told(False, type(error).__name__)
    return _told(True, f"{result.found}, {result.tries} order{'s' * (result.tries != 1)}")


def _told(success: bool, text: str) -> str:
    said = f" ({text[:70]})" if text else ""
    return f"**{'success' if success else 'failure'}**{said}"


def measure(client: Client, pdu: SnmpPdu, case: Case) -> str:
    """One cell: what was told, after how long, and what the relays are."""
    pdu.reset()
    pdu.behave(case.mode, case.seconds)
    if case.wrong_community:
        pdu.change_community(WRONG_COMMUNITY)
    if case.dead:
        pdu.kill()
    began = time.monotonic()
    try:
        told = client(case.outlet)
    except subprocess.TimeoutExpired:
        told = f"nothing within {LIMIT:g} s"
    seconds = time.monotonic() - began
    off = [place for place in pdu.places if not pdu.is_on(place)]
    if case.dead:
        pdu.start()
    if case.wrong_community:
        pdu.change_community(COMMUNITY)
    truth = f"off: {', '.join(off)}" if off else "all on"
    return f"{told}; {seconds:.0f} s; {'flaps' if case.mode == 'flapping' else truth}"


def main() -> int:
    """Prints the table as Markdown."""
    if os.geteuid() != 0:
        sys.exit(
            "benchmarks.power_peers: port 161 is for root: labgrid and pdudaemon know no other"
        )
    with (
        tempfile.TemporaryDirectory() as name,
        SnmpPdu("apc-masterswitch", HOST, PORT, COMMUNITY) as pdu,
        pdudaemon(Path(name)) as pdudaemon_off,
    ):
        clients: dict[str, Client] = {
            "fence_apc_snmp": fence,
            "labgrid": lambda outlet: labgrid(Path(name), outlet),
            "pdudaemon": pdudaemon_off,
            "Bugcheck Lab": the_lab,
        }
        print(f"| device | {' | '.join(clients)} |")
        print(f"|---{'|---' * len(clients)}|")
        for case in CASES:
            cells = [measure(client, pdu, case) for client in clients.values()]
            print(f"| {case.what} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
