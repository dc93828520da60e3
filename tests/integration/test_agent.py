"""The guest agent: its commands, and the programs it runs, as a harness uses them."""

from __future__ import annotations

import base64
import struct
import time
from collections.abc import Iterator

import pefile
import pytest

from images.contract import CATALOG, Contract, load_contract
from images.test_kernel.build import DRIVERS_FOLDER, build_image
from images.test_kernel.registry import CURRENT_VERSION, SERVICES, ServiceStart
from tests.integration.conftest import MachineFactory
from tests.support.libvirt import Domain, Libvirt, VirshError
from tests.support.sensor import (
    SENSOR,
    SENSOR_PATH,
    built,
    content_files,
    loaded_drivers,
    sensor_driver,
)
from tests.support.waiting import wait_for

SYSTEM32 = r"C:\Windows\System32"
SC, REG, PNPUTIL = (rf"{SYSTEM32}\{name}.exe" for name in ("sc", "reg", "pnputil"))
SHUTDOWN = rf"{SYSTEM32}\shutdown.exe"
SENSOR_KEY = rf"{SERVICES}\sensor"
STARTED = "STATE              : 4  RUNNING"
STOPPED = "STATE              : 1  STOPPED"


@pytest.fixture(scope="module")
def machine(libvirt: Libvirt) -> Iterator[Domain]:
    """A running machine without drivers; tests that leave it as they found it share it."""
    contract = load_contract(CATALOG.parent / "test_kernel/contract.toml")
    domain = Domain(libvirt, build_image(libvirt.new_image_path()))
    domain.start()
    domain.wait_for_agent(contract.deadlines.boot_to_agent)
    yield domain
    assert domain.crash_count() == 0
    domain.close()


@pytest.fixture
def with_sensor(libvirt: Libvirt, domain_of: MachineFactory, contract: Contract) -> Domain:
    """A running machine with the sensor and benign content."""
    image = build_image(
        libvirt.new_image_path(), drivers=[sensor_driver("a-o2")], files=content_files("benign")
    )
    domain = domain_of(image)
    domain.start()
    domain.wait_for_agent(contract.deadlines.boot_to_agent)
    return domain


# The protocol


def test_sync_and_ping(machine: Domain) -> None:
    assert machine.agent("guest-sync", id=123456789) == 123456789
    assert machine.agent("guest-ping") == {}


def test_unknown_command_and_wrong_arguments_are_told(machine: Domain) -> None:
    with pytest.raises(VirshError, match="guest-dance has not been found"):
        machine.agent("guest-dance")
    with pytest.raises(VirshError, match="'id' is missing"):
        machine.agent("guest-sync")
    with pytest.raises(VirshError, match="'colour' is unexpected"):
        machine.agent("guest-ping", colour="blue")
    assert machine.agent("guest-ping") == {}


def test_os_name_and_time(machine: Domain, contract: Contract) -> None:
    osinfo = machine.agent("guest-get-osinfo")
    assert osinfo["id"] == contract.os.id
    assert osinfo["kernel-release"] == str(contract.os.build)
    assert machine.agent("guest-get-host-name") == {"host-name": "BUGCHECK-LAB"}
    assert abs(machine.agent("guest-get-time") / 1e9 - time.time()) < 60
    # What libvirt makes of it.
    assert f"os.id               : {contract.os.id}" in machine.virsh("guestinfo", "--os")


def test_powerdown(libvirt: Libvirt, domain_of: MachineFactory, contract: Contract) -> None:
    domain = domain_of(build_image(libvirt.new_image_path()))
    domain.start()
    domain.wait_for_agent(contract.deadlines.boot_to_agent)
    domain.virsh("shutdown", "--mode", "agent")
    domain.wait_for_power_off(contract.deadlines.shutdown)
    domain.start()
    domain.wait_for_agent(contract.deadlines.boot_to_agent)
    domain.virsh("reboot", "--mode", "agent")
    domain.wait_for_restart(contract.deadlines.shutdown)
    domain.wait_for_agent(contract.deadlines.boot_to_agent)
    domain.virsh("shutdown", "--mode", "acpi")  # the power button
    domain.wait_for_power_off(contract.deadlines.shutdown)


# Files


def test_files_of_many_chunks(machine: Domain) -> None:
    content = bytes(number * 7 % 251 for number in range(200_000))
    path = r"C:\Windows\Temp\A long name with spaces.data"
    machine.write_file(path, content)
    assert machine.read_file(path) == content
    machine.write_file(path, b"short")  # "w" cuts it off
    assert machine.read_file(path) == b"short"
    with machine.disk() as disk:
        assert disk.read(path) == b"short"


def test_update_append_and_end_of_file(machine: Domain) -> None:
    path = r"C:\Windows\Temp\update.txt"
    machine.write_file(path, b"0123456789")
    handle = machine.agent("guest-file-open", path=path, mode="r+")
    machine.agent("guest-file-write", handle=handle, buf_b64=base64.b64encode(b"ab").decode())
    read = machine.agent("guest-file-read", handle=handle, count=100)
    assert base64.b64decode(read["buf-b64"]) == b"23456789"
    read = machine.agent("guest-file-read", handle=handle, count=100)
    assert (read["count"], read["eof"]) == (0, True)
    machine.agent("guest-file-flush", handle=handle)
    machine.agent("guest-file-close", handle=handle)
    with pytest.raises(VirshError, match="has not been found"):
        machine.agent("guest-file-read", handle=handle)
    handle = machine.agent("guest-file-open", path=path, mode="a")
    machine.agent("guest-file-write", handle=handle, buf_b64=base64.b64encode(b"!").decode())
    machine.agent("guest-file-close", handle=handle)
    assert machine.read_file(path) == b"ab23456789!"


@pytest.mark.parametrize(
    ("path", "mode", "reason"),
    [
        (r"C:\Windows\Temp\missing.txt", "r", "cannot find the file"),
        (r"C:\No\Such\Folder\file.txt", "w", "cannot find the path"),
        (r"C:\Windows", "r", "Access is denied"),
        (r"C:\Windows\Temp\file.txt", "x", "invalid file open mode"),
    ],
)
def test_file_that_cannot_be_opened(machine: Domain, path: str, mode: str, reason: str) -> None:
    with pytest.raises(VirshError, match=reason):
        machine.agent("guest-file-open", path=path, mode=mode)


# Programs


def test_program_that_is_not_there(machine: Domain) -> None:
    for path in (r"C:\Windows\System32\notepad.exe", "sc.exe"):
        with pytest.raises(VirshError, match="cannot find the file"):
            machine.agent("guest-exec", path=path)
    with pytest.raises(VirshError, match="Invalid parameter 'pid'"):
        machine.agent("guest-exec-status", pid=999_999)


def test_reg(machine: Domain) -> None:
    key = r"HKLM\SOFTWARE\Bugcheck Lab"
    full = r"HKEY_LOCAL_MACHINE\SOFTWARE\Bugcheck Lab"
    for name, kind, data in (("Text", "REG_SZ", "two words"), ("Number", "REG_DWORD", "0x1f")):
        added = machine.execute(REG, "add", key, "/v", name, "/t", kind, "/d", data, "/f")
        assert (added.exit_code, added.output.strip()) == (
            0,
            "The operation completed successfully.",
        )
    shown = machine.execute(REG, "query", key)
    assert [line.strip() for line in shown.output.splitlines() if line.strip()] == [
        full,
        "Text    REG_SZ    two words",
        "Number    REG_DWORD    0x1f",
    ]
    missing = machine.execute(REG, "query", key, "/v", "Colour")
    assert missing.exit_code == 1
    assert missing.errors.startswith("ERROR: The system was unable to find the specified registry")
    kept = machine.execute(REG, "add", key, "/v", "Number", "/t", "REG_DWORD", "/d", "2")
    assert kept.exit_code == 1  # asks, and nobody answers
    wrong = machine.execute(REG, "add", key, "/v", "N", "/t", "REG_DWORD", "/d", "many", "/f")
    assert wrong.exit_code == 1
    assert machine.execute(REG, "query", key + r"\Nothing").exit_code == 1
    build = machine.execute(REG, "query", CURRENT_VERSION, "/v", "CurrentBuildNumber")
    assert build.output.split()[-2:] == ["REG_SZ", "19041"]


def test_a_registry_change_outlives_a_power_cut(
    libvirt: Libvirt, domain_of: MachineFactory, contract: Contract
) -> None:
    domain = domain_of(build_image(libvirt.new_image_path()))
    domain.start()
    domain.wait_for_agent(contract.deadlines.boot_to_agent)
    key = r"HKLM\SOFTWARE\Bugcheck Lab"
    assert domain.execute(REG, "add", key, "/v", "Kept", "/d", "yes", "/f").exit_code == 0
    domain.destroy()
    domain.start()
    domain.wait_for_agent(contract.deadlines.boot_to_agent)
    shown = domain.execute(REG, "query", key, "/v", "Kept")
    assert shown.output.split()[-3:] == ["Kept", "REG_SZ", "yes"]


def test_sc_creates_starts_stops_and_deletes(machine: Domain) -> None:
    with pefile.PE(str(built("a-o2") / "sensor.sys"), fast_load=True) as image:
        timestamp, size = image.FILE_HEADER.TimeDateStamp, image.OPTIONAL_HEADER.SizeOfImage
    machine.write_file(SENSOR_PATH, (built("a-o2") / "sensor.sys").read_bytes())
    assert machine.execute(SC, "query", "sensor").exit_code == 1060  # no such service
    options = ("type=", "kernel", "start=", "demand", "binPath=", SENSOR_PATH)
    created = machine.execute(SC, "create", "sensor", *options)
    assert (created.exit_code, created.output.strip()) == (0, "[SC] CreateService SUCCESS")
    assert machine.execute(SC, "create", "sensor", *options).exit_code == 1073  # exists
    assert STOPPED in machine.execute(SC, "query", "sensor").output
    assert machine.execute(SC, "stop", "sensor").exit_code == 1062  # not started
    assert "sensor" not in loaded_drivers(machine)

    for _ in range(3):
        started = machine.execute(SC, "start", "sensor")
        assert (started.exit_code, STARTED in started.output) == (0, True)
        assert machine.execute(SC, "start", "sensor").exit_code == 1056  # runs already
        driver = loaded_drivers(machine)["sensor"]
        assert int(driver["Time Stamp"], 16) == timestamp
        assert int(driver["Image Size(bytes)"].replace(",", "")) == size
        assert int(driver["Base Address"], 16) % 0x1000 == 0
        assert int(driver["Base Address"], 16) > 0xFFFF8000_00000000
        stopped = machine.execute(SC, "stop", "sensor")
        assert (stopped.exit_code, STOPPED in stopped.output) == (0, True)
        assert "sensor" not in loaded_drivers(machine)

    assert machine.execute(SC, "delete", "sensor").exit_code == 0
    assert machine.execute(SC, "query", "sensor").exit_code == 1060


def test_sc_without_sense(machine: Domain) -> None:
    assert machine.execute(SC, "dance").exit_code == 1639
    unknown = machine.execute(SC, "start", "nobody")
    assert unknown.exit_code == 1060
    assert "FAILED 1060" in unknown.output


def test_pnputil_installs_the_sensor(
    libvirt: Libvirt, domain_of: MachineFactory, contract: Contract
) -> None:
    domain = domain_of(build_image(libvirt.new_image_path()))
    domain.start()
    domain.wait_for_agent(contract.deadlines.boot_to_agent)
    package = [SENSOR / "sensor.inf", built("b-o2") / "sensor.sys"]
    package += content_files("benign").values()
    for file in package:
        domain.write_file(rf"C:\Windows\Temp\{file.name}", file.read_bytes())
    added = domain.execute(PNPUTIL, "/add-driver", r"C:\Windows\Temp\sensor.inf", "/install")
    assert added.exit_code == 0, added
    assert "Driver package added successfully." in added.output
    assert domain.read_file(SENSOR_PATH) == (built("b-o2") / "sensor.sys").read_bytes()
    for path, source in content_files("benign").items():
        assert domain.read_file(path) == source.read_bytes()
    shown = domain.execute(REG, "query", SENSOR_KEY)
    assert "Start    REG_DWORD    0x0" in shown.output  # boot
    restarts = domain.reset_events()
    domain.agent("guest-exec", path=SHUTDOWN, arg=["/r", "/t", "0"])
    domain.wait_for_restart(contract.deadlines.shutdown, restarts)
    domain.wait_for_agent(contract.deadlines.boot_to_agent)
    assert STARTED in domain.execute(SC, "query", "sensor").output
    # A newer driver over a running one takes a restart.
    domain.write_file(r"C:\Windows\Temp\sensor.sys", (built("a-o2") / "sensor.sys").read_bytes())
    again = domain.execute(PNPUTIL, "/add-driver", r"C:\Windows\Temp\sensor.inf", "/install")
    assert again.exit_code == 3010, again
    missing = domain.execute(PNPUTIL, "/add-driver", r"C:\Windows\Temp\nothing.inf", "/install")
    assert missing.exit_code == 2


def test_shutdown_can_wait_and_is_scheduled_once(
    libvirt: Libvirt, domain_of: MachineFactory, contract: Contract
) -> None:
    domain = domain_of(build_image(libvirt.new_image_path()))
    domain.start()
    domain.wait_for_agent(contract.deadlines.boot_to_agent)
    assert domain.execute(SHUTDOWN).exit_code == 1
    assert domain.execute(SHUTDOWN, "/r", "/t", "3").exit_code == 0
    assert domain.execute(SHUTDOWN, "/r", "/t", "3").exit_code == 1190
    domain.wait_for_restart(contract.deadlines.shutdown)
    domain.wait_for_agent(contract.deadlines.boot_to_agent)


# Drivers that cannot be loaded


def sensor_file() -> bytes:
    """The sensor's driver file."""
    return (built("a-o2") / "sensor.sys").read_bytes()


def with_missing_import() -> bytes:
    """The sensor with an import that no kernel has."""
    wanted, missing = b"PsTerminateSystemThread\0", b"PsTerminateSystemTheatre\0"[:24]
    assert len(wanted) == len(missing)
    assert sensor_file().count(wanted) == 1
    return sensor_file().replace(wanted, missing)


def for_another_machine() -> bytes:
    """The sensor as an ARM64 image says what it is for."""
    image = bytearray(sensor_file())
    (header,) = struct.unpack_from("<I", image, 0x3C)
    struct.pack_into("<H", image, header + 4, 0xAA64)
    return bytes(image)


@pytest.mark.parametrize(
    ("image", "exit_code"),
    [
        pytest.param(with_missing_import(), 127, id="missing import"),
        pytest.param(b"MZ but nothing else", 193, id="no PE"),
        pytest.param(for_another_machine(), 216, id="another machine"),
        pytest.param(sensor_file()[:5000], 193, id="truncated"),
        pytest.param(b"", 193, id="empty"),
    ],
)
def test_driver_is_refused(machine: Domain, image: bytes, exit_code: int) -> None:
    path = rf"{DRIVERS_FOLDER}\broken.sys"
    machine.write_file(path, image)
    before = loaded_drivers(machine)
    created = machine.execute(SC, "create", "broken", "type=", "kernel", "binPath=", path)
    assert created.exit_code == 0
    try:
        started = machine.execute(SC, "start", "broken")
        assert started.exit_code == exit_code, started
        assert f"StartService FAILED {exit_code}:" in started.output
        shown = machine.execute(SC, "query", "broken")
        assert STOPPED in shown.output
        assert f"WIN32_EXIT_CODE    : {exit_code}" in shown.output
        if b"PsTerminateSystemTheatr" in image:
            assert "ntoskrnl.exe!PsTerminateSystemTheatr" in machine.debug_text()
        assert loaded_drivers(machine) == before
    finally:
        assert machine.execute(SC, "delete", "broken").exit_code == 0


def test_boot_goes_on_without_a_refused_driver(
    libvirt: Libvirt, domain_of: MachineFactory, contract: Contract
) -> None:
    image = build_image(
        libvirt.new_image_path(),
        drivers=[sensor_driver("a-o2", start=ServiceStart.AUTO)],
        files={SENSOR_PATH: with_missing_import()},
    )
    domain = domain_of(image)
    domain.start()
    domain.wait_for_agent(contract.deadlines.boot_to_agent)
    shown = domain.execute(SC, "query", "sensor")
    assert STOPPED in shown.output
    assert "WIN32_EXIT_CODE    : 127" in shown.output


# The sensor while it runs


def test_bad_content_files_do_no_harm(with_sensor: Domain, contract: Contract) -> None:
    for name in ("truncated", "wrong_magic"):
        for path, file in content_files(name).items():
            with_sensor.write_file(path, file.read_bytes())
            wait_for(
                f"the sensor's word on {file.name}",
                lambda file=file: file.name in with_sensor.debug_text(),  # type: ignore[misc]
                contract.deadlines.agent_reply,
            )
    assert with_sensor.crash_count() == 0
    assert STARTED in with_sensor.execute(SC, "query", "sensor").output
