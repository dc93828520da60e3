"""The test kernel's registry (cm/registry.c), compiled for this machine and judged by other code.

What it writes must read back, by itself and by an independent reader of .reg text, as what was
set; no text may make it touch memory that is not its own.
"""

from __future__ import annotations

import ctypes
import re
import struct
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from images.test_kernel.registry import CONTROL, SERVICES, Service, Settings, registry_text
from tests.unit.native import ObjectAttributes, String, build

HEADER = "Windows Registry Editor Version 5.00\r\n"
HKLM = "HKEY_LOCAL_MACHINE"

REG_SZ, REG_EXPAND_SZ, REG_BINARY, REG_DWORD, REG_MULTI_SZ, REG_QWORD = 1, 2, 3, 4, 7, 11
TEXTS = (REG_SZ, REG_EXPAND_SZ)
STATUS_BUFFER_OVERFLOW = 0x80000005
STATUS_INVALID_HANDLE = 0xC0000008
STATUS_INVALID_PARAMETER = 0xC000000D
STATUS_BUFFER_TOO_SMALL = 0xC0000023
STATUS_OBJECT_NAME_INVALID = 0xC0000033
STATUS_OBJECT_NAME_NOT_FOUND = 0xC0000034
STATUS_DISK_FULL = 0xC000007F
STATUS_KEY_DELETED = 0xC000017C
FULL, PARTIAL = 1, 2  # KEY_VALUE_INFORMATION_CLASS

Value = tuple[int, bytes]
"""Type and data; of texts ASCII with a NUL at the end."""
Contents = dict[str, dict[str, Value]]
"""Values by key path and name."""


class ListEntry(ctypes.Structure):
    """LIST_ENTRY."""

    _fields_ = [("flink", ctypes.c_void_p), ("blink", ctypes.c_void_p)]


class CmKey(ctypes.Structure):
    """CM_KEY of ki.h."""

    _fields_ = [
        ("link", ListEntry),
        ("values", ListEntry),
        ("path", ctypes.c_char_p),
    ]


class CmValue(ctypes.Structure):
    """CM_VALUE of ki.h."""

    _fields_ = [
        ("link", ListEntry),
        ("type", ctypes.c_uint32),
        ("length", ctypes.c_uint32),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    ]


class NtError(Exception):
    """A function failed; `status` is its NTSTATUS."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status:#010x}")
        self.status = status


class Registry:
    """The registry of the compiled kernel source; its file is in memory."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.CmFindKey.restype = ctypes.POINTER(CmKey)
        library.CmNextSubkey.restype = ctypes.POINTER(CmKey)

    def check(self, status: int) -> int:
        status &= 0xFFFFFFFF
        if status >> 30 == 3:
            raise NtError(status)
        return status

    def boot(self, text: str | bytes | None) -> str:
        """Forget everything, read this file (None: the one stored last). Gives the debug print."""
        kept = self.text
        ctypes.c_int32.in_dll(self._library, "HarnessStoreStatus").value = 0
        self._library.CmDeleteKey(HKLM.encode())
        assert ctypes.c_int32.in_dll(self._library, "HarnessPoolBlocks").value == 0
        if text is not None:
            kept = text if isinstance(text, bytes) else text.encode()
        ctypes.c_uint32.in_dll(self._library, "HarnessFileSize").value = len(kept)
        (ctypes.c_char * len(kept)).in_dll(self._library, "HarnessFile").raw = kept
        printed = (ctypes.c_char * (1 << 16)).in_dll(self._library, "HarnessDebugText")
        printed.value = b""
        self._library.CmInitialize()
        assert ctypes.c_int32.in_dll(self._library, "HarnessLockErrors").value == 0
        return printed.value.decode("latin-1")

    @property
    def text(self) -> bytes:
        """The file."""
        size = ctypes.c_uint32.in_dll(self._library, "HarnessFileSize").value
        return (ctypes.c_char * size).in_dll(self._library, "HarnessFile").raw

    def fail_stores(self, status: int) -> None:
        ctypes.c_uint32.in_dll(self._library, "HarnessStoreStatus").value = status

    def subkeys(self, path: str) -> list[str]:
        """Paths of the keys right below, in the order of the file."""
        found, key = [], None
        while key := self._library.CmNextSubkey(path.encode(), key):
            found.append(key.contents.path.decode())
        return found

    def contents(self, path: str = HKLM) -> Contents:
        """Everything at and below a key, as the kernel's own lists have it."""
        key = self._library.CmFindKey(path.encode())
        if not key:
            return {}
        values: dict[str, Value] = {}
        head = ctypes.addressof(key.contents) + CmKey.values.offset
        link = key.contents.values.flink
        while link != head:
            value = CmValue.from_address(link)
            values[value.name.decode()] = (value.type, ctypes.string_at(value.data, value.length))
            link = value.link.flink
        contents = {key.contents.path.decode(): values}
        for subkey in self.subkeys(path):
            contents |= self.contents(subkey)
        return contents

    def set(self, path: str, name: str, kind: int, data: bytes) -> None:
        self.check(
            self._library.CmSetValue(path.encode(), name.encode("latin-1"), kind, data, len(data))
        )

    def delete_value(self, path: str, name: str) -> None:
        self.check(self._library.CmDeleteValue(path.encode(), name.encode()))

    def delete_key(self, path: str) -> None:
        self.check(self._library.CmDeleteKey(path.encode()))

    def dword(self, path: str, name: str, default: int) -> int:
        return int(self._library.CmQueryDword(path.encode(), name.encode(), default) & 0xFFFFFFFF)

    def string(self, path: str, name: str, size: int = 260) -> str:
        buffer = ctypes.create_string_buffer(size)
        self.check(self._library.CmQueryString(path.encode(), name.encode(), buffer, size))
        return buffer.value.decode()

    def open(self, path: str) -> int:
        handle = ctypes.c_void_p()
        name = String.wide(path)
        attributes = ObjectAttributes(48, None, ctypes.pointer(name), 0x240)
        self.check(self._library.ZwOpenKey(ctypes.byref(handle), 0x20019, ctypes.byref(attributes)))
        assert handle.value is not None
        assert handle.value % 4 == 0
        return handle.value

    def close(self, handle: int) -> None:
        self.check(self._library.ZwClose(ctypes.c_void_p(handle)))

    def query(self, handle: int, name: str, kind: int, size: int) -> tuple[int, int, bytes]:
        """Status, length wanted, and the buffer, which is guarded by 0xCC bytes."""
        buffer = ctypes.create_string_buffer(b"\xcc" * (size + 16), size + 16)
        wanted = ctypes.c_uint32(0)
        text = String.wide(name)
        status = self.check(
            self._library.ZwQueryValueKey(
                ctypes.c_void_p(handle), ctypes.byref(text), kind, buffer, size,
                ctypes.byref(wanted),
            )
        )  # fmt: skip
        assert buffer.raw[size:] == b"\xcc" * 16
        return status, wanted.value, buffer.raw[:size]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    sources = ("registry_harness.c", "cm/registry.c", "ob/object.c")
    return build(tmp_path_factory.mktemp("registry"), *sources)


@pytest.fixture
def registry(library: ctypes.CDLL) -> Registry:
    return Registry(library)


def read_reg(text: bytes) -> Contents:
    """An independent reader of what regedit exports, kept to what a correct file can hold."""
    header, *lines = text.decode("ascii").split("\r\n")
    assert header + "\r\n" == HEADER
    contents: Contents = {}
    for line in filter(None, lines):
        if line.startswith("["):
            values = contents.setdefault(line[1 : line.rindex("]")], {})
            continue
        name, rest = "", line[1:]
        if line.startswith('"'):
            name, rest = unquote(line)
        assert rest.startswith("=")
        values[name] = read_data(rest[1:])
    return contents


def unquote(text: str) -> tuple[str, str]:
    """The text in quotation marks at the start, and the rest."""
    out, at = "", 1
    while text[at] != '"':
        at += text[at] == "\\"
        out += text[at]
        at += 1
    return out, text[at + 1 :]


def read_data(text: str) -> Value:
    if text.startswith('"'):
        value, rest = unquote(text)
        assert not rest
        return REG_SZ, value.encode() + b"\0"
    form, _, digits = text.partition(":")
    if form == "dword":
        return REG_DWORD, struct.pack("<I", int(digits, 16))
    data = bytes.fromhex(digits.replace(",", " "))
    kind = int(form[4:-1], 16) if form != "hex" else REG_BINARY
    if kind in TEXTS:
        data = data.decode("utf-16-le").encode("ascii")
    return kind, data


PRINTABLE = st.characters(min_codepoint=0x20, max_codepoint=0x7E)
# Few letters, so that names meet and differ in case only.
KEY_NAMES = st.text(st.sampled_from("aAbB[] ;="), min_size=1, max_size=3) | st.text(
    PRINTABLE.filter(lambda c: c != "\\"), min_size=1, max_size=20
)
PATHS = st.lists(KEY_NAMES, min_size=1, max_size=4).map(lambda parts: "\\".join([HKLM, *parts]))
NAMES = st.text(st.sampled_from('aA"\\@='), max_size=3) | st.text(PRINTABLE, max_size=63)
VALUES = (
    st.text(PRINTABLE, max_size=200).map(lambda text: (REG_SZ, text.encode()))
    | st.text(PRINTABLE, max_size=60).map(lambda text: (REG_SZ, text.encode() + b"\0"))
    | st.text(PRINTABLE, max_size=60).map(lambda text: (REG_EXPAND_SZ, text.encode() + b"\0"))
    | st.integers(0, 0xFFFFFFFF).map(lambda number: (REG_DWORD, struct.pack("<I", number)))
    | st.binary(max_size=200).map(lambda data: (REG_BINARY, data))
    | st.tuples(
        st.sampled_from((0, REG_DWORD, REG_MULTI_SZ, REG_QWORD, 0xFFFF0000)), st.binary(max_size=12)
    )
)
CHANGES = st.lists(
    st.tuples(PATHS, NAMES, VALUES | st.sampled_from(("delete value", "delete key"))), max_size=30
)
MANY = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Model:
    """What the registry should hold, keyed without regard to case."""

    def __init__(self) -> None:
        self.keys: dict[str, dict[str, tuple[str, Value]]] = {}

    def set(self, path: str, name: str, value: Value) -> None:
        kind, data = value
        if kind in TEXTS and not data.endswith(b"\0"):
            data += b"\0"
        parts = path.upper().split("\\")
        for depth in range(1, len(parts) + 1):
            values = self.keys.setdefault("\\".join(parts[:depth]), {})
        spelling = values[name.upper()][0] if name.upper() in values else name
        values[name.upper()] = (spelling, (kind, data))

    def delete_value(self, path: str, name: str) -> bool:
        return self.keys.get(path.upper(), {}).pop(name.upper(), None) is not None

    def delete_key(self, path: str) -> bool:
        start = path.upper()
        gone = [key for key in self.keys if key == start or key.startswith(start + "\\")]
        for key in gone:
            del self.keys[key]
        return bool(gone)

    def contents(self) -> Contents:
        """By upper-case path; values under the spelling that came first."""
        return {key: dict(values.values()) for key, values in self.keys.items()}


def folded(contents: Contents) -> Contents:
    return {path.upper(): values for path, values in contents.items()}


@MANY
@given(changes=CHANGES)
def test_what_is_set_reads_back_after_a_boot(
    registry: Registry, changes: list[tuple[str, str, Value | str]]
) -> None:
    registry.boot(HEADER)
    model = Model()
    for path, name, change in changes:
        if change == "delete value":
            if model.delete_value(path, name):
                registry.delete_value(path, name)
            else:
                assert status_of(registry.delete_value, path, name) == STATUS_OBJECT_NAME_NOT_FOUND
        elif change == "delete key":
            if model.delete_key(path):
                registry.delete_key(path)
            else:
                assert status_of(registry.delete_key, path) == STATUS_OBJECT_NAME_NOT_FOUND
        else:
            assert not isinstance(change, str)
            model.set(path, name, change)
            registry.set(path, name, *change)
    expected = model.contents()
    assert folded(registry.contents()) == expected
    assert folded(read_reg(registry.text)) == expected
    before = registry.text
    assert registry.boot(None) == ""
    assert folded(registry.contents()) == expected
    if expected:  # writing what was read gives the same bytes
        registry.set(f"{HKLM}\\a key of its own", "", REG_DWORD, bytes(4))
        registry.delete_key(f"{HKLM}\\a key of its own")
        assert registry.text == before


def left_out(printed: str) -> list[int]:
    """Numbers of the lines that were reported; every report is one line."""
    found = re.findall(r"SYSTEM\.reg line (\d+) left out: not", printed)
    assert len(found) == printed.count("\n")
    return [int(number) for number in found]


def status_of(function: Callable[..., object], *arguments: object) -> int:
    with pytest.raises(NtError) as error:
        function(*arguments)
    return error.value.status


@MANY
@given(data=st.data())
def test_no_text_does_harm(registry: Registry, data: st.DataObject) -> None:
    pieces = st.sampled_from(
        ['"', "\\", "=", "dword:", "hex:", "hex(2):", "hex(", ")", "0", "41,", "00,", "g", "\r\n",
         "\n", "\r", "  ", ";", "@", "[", "]", HKLM, "\\a", '"n"=', "\0", "\xff", "a" * 300]
    )  # fmt: skip
    text = "".join(data.draw(st.lists(pieces, max_size=60)))
    registry.boot(HEADER + text)
    registry.set(f"{HKLM}\\probe", "x", REG_DWORD, bytes(4))
    found = registry.contents()
    assert folded(read_reg(registry.text)) == folded(found)
    assert registry.boot(None) == ""
    assert registry.contents() == found


def test_reads_what_the_image_builder_writes(registry: Registry) -> None:
    services = [Service("second", r"System32\drivers\second.sys"), Service("first", "x.sys")]
    chosen = Settings(
        dpc_timeout_milliseconds=1234,
        product_name='quo"ted \\ name',
        extra={(SERVICES + r"\first\Parameters", "Blob"): bytes(range(40))},
    )
    text = registry_text(chosen, services)
    assert registry.boot(text) == ""
    assert registry.dword(CONTROL + r"\session manager\KERNEL", "dpcTimeout", 0) == 1234
    assert registry.dword(CONTROL + r"\CrashControl", "Absent", 77) == 77
    assert registry.dword(CONTROL + r"\CrashControl", "DumpFile", 78) == 78
    assert registry.string(CONTROL + r"\CrashControl", "DumpFile") == r"%SystemRoot%\MEMORY.DMP"
    path = r"HKLM\SOFTWARE\Microsoft\Windows NT\CurrentVersion"
    assert registry.string(path, "ProductName") == 'quo"ted \\ name'
    assert [key.rpartition("\\")[2] for key in registry.subkeys(SERVICES)] == [
        "i8042prt", "second", "first",
    ]  # fmt: skip
    assert registry.contents(SERVICES + r"\first\Parameters") == {
        SERVICES + r"\first\Parameters": {"Blob": (REG_BINARY, bytes(range(40)))}
    }
    written = {path: values for path, values in registry.contents().items() if values}
    assert written == {path: values for path, values in read_reg(text.encode()).items() if values}


def test_reads_the_forms_regedit_writes(registry: Registry) -> None:
    printed = registry.boot(
        HEADER + "\r\n"
        f"[{HKLM}\\SOFTWARE\\Forms]\r\n"
        '@="default"\r\n'
        '"path"="C:\\\\Windows\\\\\\"x\\""\r\n'
        '"number"=dword:0000000A\r\n'
        '"expand"=hex(2):25,00,41,00,25,00,00,00\r\n'
        '"several"=hex(7):61,00,00,00\r\n'
        '"big"=hex(b):01,02,03,04,05,06,07,08\r\n'
        '"none"=hex(0):\r\n'
        '"empty"=hex:\r\n'
        '"last"=hex:ff'
    )
    assert printed == ""
    assert registry.contents(f"{HKLM}\\SOFTWARE\\Forms") == {
        f"{HKLM}\\SOFTWARE\\Forms": {
            "": (REG_SZ, b"default\0"),
            "path": (REG_SZ, b'C:\\Windows\\"x"\0'),
            "number": (REG_DWORD, struct.pack("<I", 10)),
            "expand": (REG_EXPAND_SZ, b"%A%\0"),
            "several": (REG_MULTI_SZ, b"a\0\0\0"),
            "big": (REG_QWORD, bytes(range(1, 9))),
            "none": (0, b""),
            "empty": (REG_BINARY, b""),
            "last": (REG_BINARY, b"\xff"),
        }
    }


@pytest.mark.parametrize(
    "line",
    [
        '"x"', '"x"=', '"x"="open', '"x"="lone \\ backslash"', '"x"="more" text', "x=dword:1",
        '"x"=dword:', '"x"=dword:123456789', '"x"=dword:12 3', '"x"=hex:1', '"x"=hex:123',
        '"x"=hex:12 13', '"x"=hexa:12', '"x"=hex(3:12', '"x"=hex:gg', '"x"=hex:12,\\ 13',
        '"x"=hex(:12', '"x"=hex(2):41', '"x"=hex(2):41,30', '"x"=hex(1):e9,00', '"x"="caf\xe9"',
        '"x"="tab\t"', f'"{"n" * 64}"=dword:1', "; a comment",
        "garbage", "=", "[HKEY_CURRENT_USER\\x]", f"[{HKLM}\\x", f"[{HKLM}\\\\x]", f"[{HKLM}\\x\\]",
        f"[{HKLM}\\x] more", f"[{HKLM}\\{'k' * 240}]",
    ],
)  # fmt: skip
def test_a_bad_line_is_reported_and_left_out(registry: Registry, line: str) -> None:
    good = f'[{HKLM}\\k]\r\n"before"=dword:1\r\n'
    printed = registry.boot(HEADER + good + line + f"\r\n[{HKLM}\\k]\r\n" + '"after"=dword:2\r\n')
    assert left_out(printed) == [4]
    assert registry.contents() == {
        HKLM: {},
        f"{HKLM}\\k": {"before": (REG_DWORD, b"\1\0\0\0"), "after": (REG_DWORD, b"\2\0\0\0")},
    }


def test_values_before_any_key_or_under_a_refused_one_are_left_out(registry: Registry) -> None:
    printed = registry.boot(
        HEADER + f'"x"=dword:1\r\n[{HKLM}\\k]\r\n[HKEY_USERS\\u]\r\n"y"=dword:1\r\n'
    )
    assert left_out(printed) == [2, 4, 5]
    assert registry.contents() == {HKLM: {}, f"{HKLM}\\k": {}}


@pytest.mark.parametrize("text", ["REGEDIT4\r\n", "\n", "garbage"])
def test_another_header_is_reported(registry: Registry, text: str) -> None:
    assert left_out(registry.boot(text)) == [1]
    assert registry.contents() == {}


def test_a_missing_file_is_reported(registry: Registry) -> None:
    assert "SYSTEM.reg: status c0000034" in registry.boot(b"")


def test_refusals_change_nothing(registry: Registry) -> None:
    registry.boot(HEADER + f'[{HKLM}\\k]\r\n"x"="kept"\r\n')
    for path, name, status in [
        ("HKCU\\k", "x", STATUS_OBJECT_NAME_INVALID),
        ("HKLMX\\k", "x", STATUS_OBJECT_NAME_INVALID),
        ("HKLM\\a\\\\b", "x", STATUS_OBJECT_NAME_INVALID),
        ("HKLM\\" + "k" * 238, "x", STATUS_OBJECT_NAME_INVALID),
        ("HKLM\\k", "n" * 64, STATUS_OBJECT_NAME_INVALID),
        ("HKLM\\k", "tab\t", STATUS_OBJECT_NAME_INVALID),
        ("HKLM\\k", "caf\xe9", STATUS_OBJECT_NAME_INVALID),
    ]:
        assert status_of(registry.set, path, name, REG_SZ, b"y\0") == status
    for bad in (b"caf\xe9", b"two\nlines", b"two\0texts\0"):
        assert status_of(registry.set, "HKLM\\k", "x", REG_SZ, bad) == STATUS_INVALID_PARAMETER
    assert registry.contents() == {HKLM: {}, f"{HKLM}\\k": {"x": (REG_SZ, b"kept\0")}}
    assert status_of(registry.string, "HKLM\\k", "x", 4) == STATUS_BUFFER_TOO_SMALL
    assert registry.string("HKLM\\k", "x", 5) == "kept"


def test_a_full_disk_is_told(registry: Registry) -> None:
    registry.boot(HEADER + f"[{HKLM}\\k]\r\n")
    registry.fail_stores(STATUS_DISK_FULL)
    assert status_of(registry.set, "HKLM\\k", "x", REG_SZ, b"") == STATUS_DISK_FULL
    registry.fail_stores(0)


@pytest.mark.parametrize(
    "path",
    [r"\Registry\Machine\System\CurrentControlSet\Services\sensor",
     r"\REGISTRY\MACHINE\SYSTEM\currentcontrolset\services\SENSOR"],
)  # fmt: skip
def test_a_driver_opens_its_key(registry: Registry, path: str) -> None:
    registry.boot(registry_text(Settings(), [Service("sensor", r"System32\drivers\sensor.sys")]))
    handle = registry.open(path)
    assert registry.query(handle, "type", PARTIAL, 16) == (
        0, 16, struct.pack("<4I", 0, REG_DWORD, 4, 1),
    )  # fmt: skip
    again = registry.open(path)
    assert handle != again
    assert registry.query(again, "ImagePath", PARTIAL, 0x100)[1] == 12 + 2 * 28
    assert status_of(registry.query, again, "Type", FULL, 16) == STATUS_INVALID_PARAMETER
    assert status_of(registry.open, path + r"\Absent") == STATUS_OBJECT_NAME_NOT_FOUND
    assert status_of(registry.open, r"\Registry\User") == STATUS_OBJECT_NAME_NOT_FOUND
    registry.delete_key(SERVICES)
    assert status_of(registry.query, again, "Type", PARTIAL, 16) == STATUS_KEY_DELETED
    for opened in (handle, again):
        registry.close(opened)
        assert status_of(registry.close, opened) == STATUS_INVALID_HANDLE
    for wrong in (0, 1, handle + 1, 4 * 513, 2**63):
        assert status_of(registry.close, wrong) == STATUS_INVALID_HANDLE


def test_handles_are_used_again_and_run_out(registry: Registry) -> None:
    registry.boot(HEADER + f"[{HKLM}\\k]\r\n")
    handles = [registry.open(r"\Registry\Machine\k") for _ in range(512)]
    assert len(set(handles)) == 512
    assert status_of(registry.open, r"\Registry\Machine\k") == 0xC000009A
    registry.close(handles[100])
    assert registry.open(r"\Registry\Machine\k") == handles[100]
    for handle in handles:
        registry.close(handle)


@MANY
@given(name=NAMES, value=VALUES)
def test_value_information_is_that_of_the_ddk(registry: Registry, name: str, value: Value) -> None:
    registry.boot(HEADER)
    registry.set(f"{HKLM}\\k", name, *value)
    kind, stored = registry.contents()[f"{HKLM}\\k"][name]
    data = stored.decode("ascii").encode("utf-16-le") if kind in TEXTS else stored
    whole = struct.pack("<3I", 0, kind, len(data)) + data
    handle = registry.open(r"\Registry\Machine\k")
    for size in {0, 11, 12, len(whole) - 1, len(whole), len(whole) + 5}:
        buffer = whole[:size].ljust(size, b"\xcc")
        if size < 12:
            status = status_of(registry.query, handle, name, PARTIAL, size)
            assert status == STATUS_BUFFER_TOO_SMALL
            continue
        status = 0 if size >= len(whole) else STATUS_BUFFER_OVERFLOW
        assert registry.query(handle, name, PARTIAL, size) == (status, len(whole), buffer)
    other = "b" if name.upper() != "B" else "c"
    absent = status_of(registry.query, handle, other, PARTIAL, 64)
    assert absent == STATUS_OBJECT_NAME_NOT_FOUND
    registry.close(handle)
