"""virtualbmc: a BMC by IPMI for a machine of libvirt's; unlike ipmi_sim it has NMI."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.integration.power.ipmi_bmc import PASSWORD, USER, free_udp_port, is_rmcp_there
from tests.integration.power.redfish_bmc import free_port
from tests.support.emulators import emulator_environment
from tests.support.waiting import wait_for

START_DEADLINE = 60.0


@contextmanager
def virtual_bmc(libvirt_uri: str, domain: str) -> Iterator[int]:
    """Runs it; gives its port on UDP 127.0.0.1."""
    program = emulator_environment("virtualbmc") / "bin/vbmcd"
    with tempfile.TemporaryDirectory(prefix="vbmc-") as folder:
        port = free_udp_port()
        machine = Path(folder, "machines", domain)
        machine.mkdir(parents=True)
        # What `vbmc add` and `vbmc start` write.
        (machine / "config").write_text(
            f"[VirtualBMC]\nusername = {USER}\npassword = {PASSWORD}\naddress = 127.0.0.1\n"
            f"port = {port}\ndomain_name = {domain}\nlibvirt_uri = {libvirt_uri}\nactive = True\n"
        )
        settings, log = Path(folder, "vbmc.conf"), Path(folder, "log")
        settings.write_text(
            f"[default]\nconfig_dir = {machine.parent}\npid_file = {folder}/pid\n"
            f"server_port = {free_port()}\nserver_response_timeout = 200\n"
        )
        with log.open("wb") as output:
            process = subprocess.Popen(
                [program, "--foreground"],
                env=os.environ | {"VIRTUALBMC_CONFIG": str(settings)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

        def answers() -> bool:
            assert process.poll() is None, log.read_text()
            return is_rmcp_there(port)

        try:
            wait_for("virtualbmc", answers, START_DEADLINE)
            yield port
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # it runs a process for each BMC
            process.wait()
