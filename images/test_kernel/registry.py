"""Settings of a test kernel image, written as the text registry the kernel reads at boot.

Format: the text of "Windows Registry Editor Version 5.00" (a .reg export, see Microsoft's "How to
add, modify, or delete registry subkeys and values by using a .reg file"), in UTF-8 with CRLF line
ends where Windows writes UTF-16. Keys and values have the names Windows gives them, so that
`reg add` changes them as it would there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

RegistryValue = str | int | bytes
"""REG_SZ, REG_DWORD or REG_BINARY."""

_HEADER = "Windows Registry Editor Version 5.00"
CONTROL = r"HKEY_LOCAL_MACHINE\SYSTEM\CurrentControlSet\Control"
SERVICES = r"HKEY_LOCAL_MACHINE\SYSTEM\CurrentControlSet\Services"
CURRENT_VERSION = r"HKEY_LOCAL_MACHINE\SOFTWARE\Microsoft\Windows NT\CurrentVersion"


class CrashDump(IntEnum):
    r"""CrashControl\CrashDumpEnabled: which dump a bug check writes."""

    NONE = 0
    COMPLETE = 1
    KERNEL = 2
    AUTOMATIC = 7


class ServiceStart(IntEnum):
    r"""Services\<name>\Start: who starts a driver, and when."""

    BOOT = 0
    SYSTEM = 1
    AUTO = 2
    DEMAND = 3
    DISABLED = 4


@dataclass(frozen=True)
class Service:
    r"""One driver under CurrentControlSet\Services; boot-start drivers load in the order given.

    image_path is relative to C:\Windows, as Windows stores it for drivers.
    """

    name: str
    image_path: str
    start: ServiceStart = ServiceStart.BOOT
    parameters: Mapping[str, RegistryValue] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """What the registry of an image says. The defaults are Windows' own unless noted."""

    auto_reboot: bool = True
    dump: CrashDump = CrashDump.KERNEL
    overwrite_dump: bool = True
    dump_file: str = r"%SystemRoot%\MEMORY.DMP"
    dpc_timeout_milliseconds: int = 20_000
    """Time at DISPATCH_LEVEL before bug check 0x133; 0 turns the watchdog off."""
    crash_on_ctrl_scroll: bool = True
    """Off in a fresh Windows; a lab image has it on."""
    computer_name: str = "BUGCHECK-LAB"
    product_name: str = "Bugcheck Lab test kernel"
    build_number: int = 19041
    """The Windows build whose structure layouts the kernel follows."""
    os_id: str = "mswindows"
    """What the guest agent's guest-get-osinfo calls `id`; QEMU's agent says this on Windows."""
    user: str = "Administrator"
    password: str = "bugcheck-lab"  # noqa: S105 - of a machine that holds nothing
    """Whom a command prompt on the console takes; Windows has AutoAdminLogon's account there."""
    extra: Mapping[tuple[str, str], RegistryValue] = field(default_factory=dict)
    """More values by (key path, value name); they are written last."""


def _format_value(value: RegistryValue) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, int):
        if not 0 <= value <= 0xFFFFFFFF:
            raise ValueError(f"a REG_DWORD holds 0 to 4294967295, not {value}")
        return f"dword:{value:08x}"
    return "hex:" + ",".join(f"{byte:02x}" for byte in value)


def registry_text(settings: Settings, services: Sequence[Service]) -> str:
    """The whole registry file. Raises ValueError for a value a REG_DWORD cannot hold."""
    keys: dict[str, dict[str, RegistryValue]] = {
        CONTROL + r"\CrashControl": {
            "AutoReboot": int(settings.auto_reboot),
            "CrashDumpEnabled": int(settings.dump),
            "Overwrite": int(settings.overwrite_dump),
            "DumpFile": settings.dump_file,
        },
        CONTROL + r"\Session Manager\Kernel": {"DpcTimeout": settings.dpc_timeout_milliseconds},
        CONTROL + r"\ComputerName\ComputerName": {"ComputerName": settings.computer_name},
        CURRENT_VERSION: {
            "ProductName": settings.product_name,
            "CurrentBuildNumber": str(settings.build_number),
            "CurrentMajorVersionNumber": 10,
            "CurrentMinorVersionNumber": 0,
        },
        CURRENT_VERSION + r"\Winlogon": {
            "DefaultUserName": settings.user,
            "DefaultPassword": settings.password,
        },
        r"HKEY_LOCAL_MACHINE\SOFTWARE\QEMU\GuestAgent": {"OsId": settings.os_id},
        SERVICES + r"\i8042prt\Parameters": {
            "CrashOnCtrlScroll": int(settings.crash_on_ctrl_scroll)
        },
    }
    for service in services:
        keys[f"{SERVICES}\\{service.name}"] = {
            "Type": 1,  # SERVICE_KERNEL_DRIVER
            "Start": int(service.start),
            "ErrorControl": 1,  # SERVICE_ERROR_NORMAL
            "ImagePath": service.image_path,
        }
        if service.parameters:
            keys[f"{SERVICES}\\{service.name}\\Parameters"] = dict(service.parameters)
    for (key, name), value in settings.extra.items():
        keys.setdefault(key, {})[name] = value
    lines = [_HEADER, ""]
    for key, values in keys.items():
        lines.append(f"[{key}]")
        lines += [f'"{name}"={_format_value(value)}' for name, value in values.items()]
        lines.append("")
    return "\r\n".join(lines)
