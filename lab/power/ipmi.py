"""BMCs by IPMI v2.0 (RMCP+), through ipmitool.

[power.m1-bmc]
backend = "ipmi"
address = "m1-bmc.lab"
user = "lab"
password_secret = "m1-bmc"
cipher_suite = 17             # where the BMC takes no 3 any more
lacks = ["nmi"]               # where "chassis power diag" is refused

IPMI's authentication gives whoever asks a hash of the password (CVE-2013-4786): its network has to
be the lab's own. Redfish is better where the BMC has it.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import threading
from typing import Annotated, Literal

from pydantic import Field

from lab.power.base import (
    OutletError,
    PowerError,
    PowerState,
    RefusedError,
    Secrets,
    Timing,
    UnreachableError,
)
from lab.power.bmc import THE_SYSTEM, Bmc, BmcSettings, BootDevice

IPMITOOL = "ipmitool"
LIMIT_SECONDS = 10.0
"""Beyond the time-outs that ipmitool itself keeps: a limit against one that never returns."""
STATES = {"on": PowerState.ON, "off": PowerState.OFF}
BOOT: dict[BootDevice, str] = {"cd": "cdrom", "disk": "disk", "pxe": "pxe", "setup": "bios"}
SELECTORS: dict[int, BootDevice] = {1: "pxe", 2: "disk", 5: "cd", 6: "setup"}
"""Boot device selector of the boot flags (IPMI v2.0, table 28-14, parameter 5, data 2)."""
CREDENTIALS = (
    ("HMAC is invalid", "the password is wrong"),
    ("unauthorized name", "there is no such user, or it may not use IPMI"),
    ("invalid role", "the user may not have this privilege"),
    ("nauthorized role", "the user may not have this privilege"),
    ("nsufficient privilege", "the user's privilege is too low"),
    ("longer than 20 bytes", "IPMI has no passwords longer than 20 bytes"),
    ("too long", "IPMI has no user names longer than 16 bytes"),
    ("invalid authentication algorithm", "it takes no such cipher_suite"),
    ("invalid integrity algorithm", "it takes no such cipher_suite"),
    ("invalid confidentiality algorithm", "it takes no such cipher_suite"),
    ("no matching cipher suite", "it takes no such cipher_suite"),
)
"""What ipmitool 1.8.19 says (lib/ipmi_main.c, src/plugins/lanplus), and what it means."""
BUSY = ("insufficient resources", "Node busy", "Timeout", "BMC initialization", "BMC busy")
"""Refusals that pass; a BMC has few sessions."""
ALREADY = "not supported in present state"
"""Completion code D5h: often, it is off already."""


class IpmiSettings(BmcSettings):
    """[power.NAME] with backend = "ipmi"."""

    port: Annotated[int, Field(ge=1, le=65535)] = 623
    cipher_suite: Annotated[int, Field(ge=0, le=17)] = 3
    """3: SHA-1, 17: SHA-256. Asking the BMC which it has costs two seconds each time."""
    privilege: Literal["USER", "OPERATOR", "ADMINISTRATOR"] = "ADMINISTRATOR"
    """What the session asks for; USER is enough for a BMC that is a witness only."""
    uefi: bool = True
    """Whether boot_once means UEFI's devices; BIOS's if not."""


class Device(Bmc):
    """One BMC, which has one system. Each order is a session of its own."""

    Settings = IpmiSettings
    settings: IpmiSettings
    default_timing = Timing(answer_seconds=3, attempts=2, deadline_seconds=30, poll_seconds=1)

    def __init__(self, name: str, settings: IpmiSettings, secrets: Secrets) -> None:
        super().__init__(name, settings, secrets)
        self._password = secrets(settings.password_secret)
        self._one_command = threading.Lock()

    def locate(self, outlet: str) -> str:
        """There is one only."""
        if outlet != THE_SYSTEM:
            raise OutletError(
                f"{self.address()} has no system {outlet!r}: by IPMI it has one, named"
                f" {THE_SYSTEM!r}; leave outlet away"
            )
        return outlet

    def read(self, place: str) -> PowerState:
        """`chassis power status`."""
        said = self._ipmitool("chassis", "power", "status")
        found = re.search(r"^Chassis Power is (\w+)\s*$", said, re.MULTILINE)
        return STATES.get(found[1], PowerState.UNKNOWN) if found else PowerState.UNKNOWN

    def order(self, place: str, wanted: PowerState) -> None:
        """`chassis power on` or `off`; success if the BMC answers that it is so already."""
        try:
            self._ipmitool("chassis", "power", wanted)
        except RefusedError as error:
            if ALREADY not in str(error) or self.read(place) is not wanted:
                raise

    def pulse(self, place: str, what: Literal["nmi", "reset"]) -> None:
        """`chassis power diag` or `reset`."""
        self._ipmitool("chassis", "power", "diag" if what == "nmi" else "reset", attempts=1)

    def set_next_boot(self, place: str, device: BootDevice) -> None:
        """`chassis bootdev`: for the next boot only, and a minute with some BMCs."""
        options = ["options=efiboot"] if self.settings.uefi else []
        self._ipmitool("chassis", "bootdev", BOOT[device], *options)

    def next_boot(self, place: str) -> BootDevice | None:
        """The selector in the boot flags. Whether they are valid yet, not every BMC says."""
        said = self._ipmitool("chassis", "bootparam", "get", "5")
        flags = re.search(r"^Boot parameter data: [0-9a-f]{2}([0-9a-f]{2})", said, re.MULTILINE)
        return SELECTORS.get(int(flags[1], 16) >> 2 & 0xF) if flags else None

    def set_light(self, place: str, *, on: bool) -> None:
        """`chassis identify`."""
        self._ipmitool("chassis", "identify", "force" if on else "0")

    def about(self, place: str) -> dict[str, str]:
        """`mc info`."""
        lines = [line.partition(":") for line in self._ipmitool("mc", "info").splitlines()]
        return {name.strip(): value.strip() for name, _, value in lines if value.strip()}

    def address(self) -> str:
        """Its address."""
        port = "" if self.settings.port == 623 else f":{self.settings.port}"
        return f"BMC {self.name} (ipmi://{self.settings.address}{port})"

    def _ipmitool(self, *command: str, attempts: int | None = None) -> str:
        """Runs one command and gives what it said. Raises UnreachableError or RefusedError.

        attempts: how often ipmitool sends it while there is no answer; as in the timing if not
        given.
        """
        settings, timing = self.settings, self.timing
        attempts = attempts or timing.attempts
        seconds = max(1, math.ceil(timing.answer_seconds))  # it knows whole ones only
        # Verbose, or a wrong password looks like a BMC that is not there.
        arguments = [
            *(IPMITOOL, "-v", "-I", "lanplus", "-H", settings.address, "-p", str(settings.port)),
            *("-U", settings.user, "-L", settings.privilege, "-C", str(settings.cipher_suite)),
            *("-N", str(seconds), "-R", str(attempts), "-E", *command),
        ]
        # Not on the command line, which every user of this host can read. ipmitool looks for both.
        password = self._password.get_secret_value()
        names = ("IPMITOOL_PASSWORD", "IPMI_PASSWORD")
        limit = seconds * (attempts + 1) * 2 + LIMIT_SECONDS
        try:
            with self._one_command:  # BMCs have few sessions
                done = subprocess.run(
                    arguments,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    env=os.environ | dict.fromkeys(names, password),
                    timeout=limit,
                )
        except FileNotFoundError as error:
            raise PowerError(
                f"{self.address()} cannot be asked: ipmitool is not installed: sudo apt-get install"
                " ipmitool"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise UnreachableError(
                f"{self.address()} did not answer {' '.join(command)!r} within {limit:g} s: look at"
                " the BMC"
            ) from error
        said = done.stdout.decode(errors="replace")
        if done.returncode == 0:
            return said
        raise self._in_words(" ".join(command), said + done.stderr.decode(errors="replace"))

    def _in_words(self, command: str, said: str) -> PowerError:
        for words, meaning in CREDENTIALS:
            if words in said:
                return RefusedError(
                    f"{self.address()} refuses user {self.settings.user}: {meaning}; compare"
                    f" [power.{self.name}] with the BMC's own settings"
                )
        last = (said.strip().splitlines() or ["ipmitool said nothing"])[-1]
        if "failed: " in last and not any(words in last for words in BUSY):
            return RefusedError(
                f"{self.address()} refuses {command!r}: {last}; if it cannot do that, say so with"
                f" lacks in [power.{self.name}]"
            )
        return UnreachableError(
            f"{self.address()} does not answer {command!r} ({last}): look whether the BMC has power"
            " and network, whether IPMI over LAN is enabled there, and whether its address is right"
        )
