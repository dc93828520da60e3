"""Parts of the test kernel, compiled for the machine the tests run on and called through ctypes.

clang-14 compiles the sources the kernel is built from; UndefinedBehaviorSanitizer stops the process
where one errs. ``host.c`` stands for the rest of the kernel.
"""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

KERNEL = Path(__file__).parents[3] / "images/test_kernel/src"
FLAGS = (
    *("-std=gnu17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", f"-I{KERNEL / 'include'}"),
    *("-Wno-multichar", "-Wno-ignored-attributes", "-fdeclspec", "-fshort-wchar"),
    *("-ffreestanding", "-nostdlib", "-fPIC", "-shared", "-fuse-ld=lld", "-Wl,-Bsymbolic"),
    *("-fsanitize=undefined", "-fsanitize-trap=undefined"),
)


def build(folder: Path, *sources: str) -> ctypes.CDLL:
    """The kernel's ``sources`` with its ``rtl``; names without a folder are files of this one."""
    paths = [(KERNEL if "/" in name else Path(__file__).parent) / name for name in sources]
    paths += [Path(__file__).parent / "host.c", KERNEL / "rtl/text.c", KERNEL / "rtl/format.c"]
    target = folder / "kernel.so"
    subprocess.run(["clang-14", *FLAGS, *map(str, paths), "-o", str(target)], check=True)
    return ctypes.CDLL(str(target))


class String(ctypes.Structure):
    """UNICODE_STRING or ANSI_STRING with room for `maximum` bytes, and 8 more that are watched."""

    _fields_ = [
        ("length", ctypes.c_uint16),
        ("maximum_length", ctypes.c_uint16),
        ("buffer", ctypes.c_void_p),
    ]

    def __init__(self, data: bytes = b"", maximum: int = 0) -> None:
        room = max(len(data), maximum)
        self.memory = ctypes.create_string_buffer(data.ljust(room, b"\xaa") + b"\xbb" * 8)
        super().__init__(len(data), room, ctypes.addressof(self.memory))

    @classmethod
    def wide(cls, text: str) -> String:
        """A UNICODE_STRING."""
        return cls(text.encode("utf-16-le"))

    @property
    def data(self) -> bytes:
        """What it holds; raises AssertionError when something was written behind its room."""
        assert self.length <= self.maximum_length
        assert self.memory.raw[self.maximum_length :] == b"\xbb" * 8 + b"\0"
        return ctypes.string_at(self.buffer, self.length)


class ObjectAttributes(ctypes.Structure):
    """OBJECT_ATTRIBUTES."""

    _fields_ = [
        ("length", ctypes.c_uint32),
        ("root_directory", ctypes.c_void_p),
        ("object_name", ctypes.POINTER(String)),
        ("attributes", ctypes.c_uint32),
        ("security_descriptor", ctypes.c_void_p),
        ("security_quality_of_service", ctypes.c_void_p),
    ]
