"""Kernel objects that bug checks point to, as far as public headers lay them out (wdm.h, x64).

Not a rule, but what rules share. Offsets in bytes. Everything is hostile input.
"""

from __future__ import annotations

from typing import Final

from crashdump_analysis.memory import Memory
from crashdump_analysis.modules import Module, Modules, printable

_DRIVER_TYPE, _DEVICE_TYPE, _IRP_TYPE = 4, 3, 6  # IO_TYPE_DRIVER, IO_TYPE_DEVICE, IO_TYPE_IRP
_DEVICE_DRIVER: Final = 0x08  # DEVICE_OBJECT.DriverObject
_DEVICE_ATTACHED: Final = 0x18  # DEVICE_OBJECT.AttachedDevice: the next one up
_DRIVER_START: Final = 0x18  # DRIVER_OBJECT.DriverStart: base of its image
_IRP_STACK_COUNT: Final = 0x42  # IRP.StackCount; CurrentLocation follows
_IRP_CURRENT: Final = 0xB8  # IRP.Tail.Overlay.CurrentStackLocation
_STACK_LOCATION_DEVICE: Final = 0x28  # IO_STACK_LOCATION.DeviceObject
_MAX_ATTACHED = 32  # devices in one stack
_MAX_NAME = 512  # bytes


def driver_of_device(memory: Memory, modules: Modules, device: int) -> Module | None:
    """The module of the driver that a DEVICE_OBJECT belongs to."""
    if memory.u16(device) != _DEVICE_TYPE:
        return None
    driver = memory.u64(device + _DEVICE_DRIVER)
    if not driver or memory.u16(driver) != _DRIVER_TYPE:
        return None
    start = memory.u64(driver + _DRIVER_START)
    return modules.at(start) if start else None


def device_stack(memory: Memory, device: int) -> list[int]:
    """A device and those attached to it, from the lowest up."""
    devices: list[int] = []
    upper: int | None = device
    while upper and upper not in devices and len(devices) < _MAX_ATTACHED:
        if memory.u16(upper) != _DEVICE_TYPE:
            break
        devices.append(upper)
        upper = memory.u64(upper + _DEVICE_ATTACHED)
    return devices


def device_of_irp(memory: Memory, irp: int) -> tuple[int, int] | None:
    """The device whose driver has an IRP now, and the IRP's major function."""
    if memory.u16(irp) != _IRP_TYPE:
        return None
    counts = memory.read(irp + _IRP_STACK_COUNT, 2)
    location = memory.u64(irp + _IRP_CURRENT)
    # A location above the count: the IRP was completed, or given to nobody yet.
    if counts is None or not location or not 0 < counts[1] <= counts[0]:
        return None
    device = memory.u64(location + _STACK_LOCATION_DEVICE)
    major = memory.read(location, 1)
    return (device, major[0]) if device and major else None


def ascii_text(memory: Memory, address: int) -> str:
    """The zero-terminated text at an address; empty where there is none that can be printed."""
    text, end, _ = memory.read_some(address, _MAX_NAME).partition(b"\0")
    if not end or not text or not all(0x20 <= byte < 0x7F for byte in text):
        return ""
    return text.decode("ascii")


def unicode_string(memory: Memory, address: int) -> str:
    """The text of the UNICODE_STRING at an address; empty where there is none."""
    size, buffer = memory.u16(address), memory.u64(address + 8)
    if not size or size % 2 or size > _MAX_NAME or not buffer:
        return ""
    data = memory.read(buffer, size)
    return printable(data) if data else ""


def module_of_file(modules: Modules, text: str) -> Module | None:
    """The module that a file name or path is of."""
    name = text.replace("/", "\\").rpartition("\\")[2].lower()
    return next((one for one in modules if name and one.image.lower() == name), None)
