"""The test kernel's text, formatting and time functions, against libc's and Python's answers."""

from __future__ import annotations

import ctypes
import re
from array import array
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.native import String, build

EPOCH = datetime(1601, 1, 1)
LIBC = ctypes.CDLL(None)
STATUS_BUFFER_OVERFLOW, STATUS_BUFFER_TOO_SMALL = 0x80000005, 0xC0000023
narrow = st.text(st.characters(min_codepoint=1, max_codepoint=0x7E), max_size=40).map(str.encode)
utf16 = partial(str.encode, encoding="utf-16-le")
bases = st.sampled_from([0, 10, 16])
wide = st.text(st.characters(min_codepoint=1, exclude_categories=["Cs"]), max_size=40)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = build(tmp_path_factory.mktemp("rtl"))
    for name in ("strlen", "memmove", "memcpy", "memset", "RtlCompareMemory", "KiDateToTime"):
        getattr(library, name).restype = ctypes.c_size_t
    library.strstr.restype = library.strchr.restype = ctypes.c_char_p
    return library


def to_question_marks(text: str) -> bytes:
    """What the kernel makes of wide text: it knows ASCII only, unit by unit."""
    return bytes(min(unit, 0x80) for unit in array("H", utf16(text))).replace(b"\x80", b"?")


def order(a: Any, b: Any) -> int:
    """-1, 0 or 1, as a comes before, is equal to or comes after b."""
    return int(a > b) - int(a < b)


def formatted(function: Any, size: int, template: str, *arguments: object) -> bytes:
    """What RtlFormat or libc's snprintf puts into a buffer of this size."""
    buffer = ctypes.create_string_buffer(b"\xaa" * (size + 16), size + 16)
    values = [ctypes.c_int64(each) if isinstance(each, int) else each for each in arguments]
    length = function(buffer, ctypes.c_size_t(size), template.encode(), *values)
    assert buffer.raw[size:] == b"\xaa" * 16, "wrote past the buffer"
    assert min(length, size - 1) == len(buffer.value)
    return buffer.value


@given(
    st.from_regex(r"-?0?[12]?[0-9]?(\.1?[0-9])?", fullmatch=True),
    st.sampled_from([size + kind for size in ("", "l", "ll", "I64") for kind in "diuxX"]),
    st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(-2, 2),
    st.integers(1, 64),
)
def test_integers_are_formatted_as_libc_does(
    kernel: ctypes.CDLL, options: str, conversion: str, value: int, size: int
) -> None:
    posix = re.sub("^l(?!l)", "", conversion).replace("I64", "ll")  # long: 32 bits on Windows
    expected = formatted(LIBC.snprintf, size, f"<%{options}{posix}>", value)
    assert formatted(kernel.RtlFormat, size, f"<%{options}{conversion}>", value) == expected


@given(st.integers(-20, 20), st.integers(-3, 20), narrow, st.integers(1, 64))
def test_text_is_formatted_as_libc_does(
    kernel: ctypes.CDLL, width: int, precision: int, text: bytes, size: int
) -> None:
    literal = (f"%{width or ''}.{max(precision, 0)}s| 100%% %s", text, text)
    for arguments in (literal, ("%*.*s|", width, precision, text)):
        expected = formatted(LIBC.snprintf, size, *arguments)
        assert formatted(kernel.RtlFormat, size, *arguments) == expected


@given(text=wide)
def test_wide_text(kernel: ctypes.CDLL, text: str) -> None:
    expected, terminated = to_question_marks(text), utf16(text) + b"\0\0"
    for template in ("%ls", "%ws", "%S"):
        assert formatted(kernel.RtlFormat, 200, template, terminated) == expected
    counted = ctypes.byref(String(utf16(text)))  # not terminated where it ends
    assert formatted(kernel.RtlFormat, 200, "[%wZ]", counted) == b"[" + expected + b"]"


def test_other_conversions(kernel: ctypes.CDLL) -> None:
    text = formatted(kernel.RtlFormat, 99, "%p %c %d", 0xFFFFF803120000AB, ord("a"), 7)
    assert text == b"FFFFF803120000AB a 7"
    counted = ctypes.byref(String(b"abc"))
    text = formatted(kernel.RtlFormat, 99, "%.2Z %s %wZ %S%c 100%", counted, 0, 0, 0, 0)
    assert text == b"ab (null) (null) (null) 100"


def test_debug_text_goes_to_the_port_and_into_the_ring(kernel: ctypes.CDLL) -> None:
    """DbgPrintEx as a driver calls it; KdPrintCircularBuffer as `!dbgprint` reads it."""
    size = 0x2000
    port = (ctypes.c_char * (1 << 16)).in_dll(kernel, "HarnessDebugText")
    ring = (ctypes.c_char * size).in_dll(kernel, "KdPrintCircularBuffer")
    for number in range(1000):
        kernel.DbgPrintEx(77, 0, b"line %04u\n", number)
    assert (lines := port.value) == b"".join(b"line %04u\n" % number for number in range(1000))
    end = ctypes.c_size_t.in_dll(kernel, "KdPrintWritePointer").value - ctypes.addressof(ring)
    assert end == len(lines) % size
    assert ring.raw[end:] + ring.raw[:end] == lines[-size:]
    assert ctypes.c_uint32.in_dll(kernel, "KdPrintRolloverCount").value == len(lines) // size
    port.value = b""
    kernel.DbgPrint(b"%s", b"x" * 600)
    assert port.value == b"x" * 511, "Windows cuts at 512 bytes"
    assert ctypes.c_int32.in_dll(kernel, "HarnessLockErrors").value == 0


@given(when=st.datetimes(EPOCH, datetime(9999, 12, 31, 23, 59, 59), timezones=st.just(UTC)))
def test_dates_are_python_s(kernel: ctypes.CDLL, when: datetime) -> None:
    milliseconds = when.microsecond // 1000
    when = when.replace(microsecond=milliseconds * 1000)
    ticks = (when - EPOCH.replace(tzinfo=UTC)) // timedelta(microseconds=1) * 10
    date = (ctypes.c_uint32 * 8)()
    kernel.KiTimeToDate(ctypes.c_int64(ticks + 9999), date)
    assert [*date] == [*when.timetuple()[:6], milliseconds, when.isoweekday() % 7]
    assert kernel.KiDateToTime(date) == ticks


@given(a=narrow, b=narrow, count=st.integers(0, 50))
def test_comparing_and_searching_text(kernel: ctypes.CDLL, a: bytes, b: bytes, count: int) -> None:
    most, left, right = ctypes.c_size_t(count), a.upper(), b.upper()
    assert order(kernel.strcmp(a, b), 0) == order(a, b)
    assert order(kernel.strncmp(a, b, most), 0) == order(a[:count], b[:count])
    assert order(kernel.RtlCompareTextInsensitive(a, b), 0) == order(left, right)
    found = order(kernel.RtlCompareTextInsensitiveN(a, b, most), 0)
    assert found == order(left[:count], right[:count])
    assert kernel.strlen(a) == len(a)
    for part in (b, a[count : count + 2]):
        assert kernel.strstr(a, part) == (a[a.find(part) :] if part in a else None)
    for byte in b"aA":
        assert kernel.strchr(a, byte) == (a[a.find(byte) :] if byte in a else None)


@given(data=st.binary(max_size=80), source=st.integers(0, 80), target=st.integers(0, 80))
def test_moving_and_comparing_memory(
    kernel: ctypes.CDLL, data: bytes, source: int, target: int
) -> None:
    expected = bytearray(data.ljust(240, b"\x55"))
    block = ctypes.create_string_buffer(bytes(expected), 240)
    start, size = ctypes.addressof(block), ctypes.c_size_t(len(data))
    to, at = ctypes.c_void_p(start + target), ctypes.c_void_p(start + source)
    assert kernel.memmove(to, at, size) == to.value
    expected[target : target + len(data)] = expected[source : source + len(data)]
    assert block.raw == expected
    assert kernel.memset(to, 0x1AB, size) == to.value
    expected[target : target + len(data)] = b"\xab" * len(data)
    assert block.raw == expected
    assert kernel.memcpy(block, data, size) == start
    assert block.raw == data + expected[len(data) :]
    other = data[:target] + bytes(255 - byte for byte in data[target:])
    assert kernel.RtlCompareMemory(block, other, size) == min(target, len(data))
    assert order(kernel.memcmp(block, other, size), 0) == order(data, other)


@given(st.from_regex("(0[xX])?[0-9]{0,20}([a-fA-F]{0,9}[gx ]?)?", fullmatch=True), bases)
def test_integers_from_text(kernel: ctypes.CDLL, text: str, base: int) -> None:
    prefix = base != 10 and text[:2] in {"0x", "0X"}
    digits, radix = (text[2:], 16) if prefix else (text, base or 10)
    allowed = set("0123456789abcdefABCDEF"[: 10 if radix == 10 else 22])
    valid = bool(digits) and set(digits) <= allowed and int(digits, radix) < 1 << 64
    value = ctypes.c_uint64()
    assert kernel.RtlTextToInteger(text.encode(), base, ctypes.byref(value)) & 0xFF == valid
    assert not valid or value.value == int(digits, radix)


@given(target=wide, source=wide, room=st.integers(0, 60))
def test_appending_counted_strings(
    kernel: ctypes.CDLL, target: str, source: str, room: int
) -> None:
    both, terminated = utf16(target + source), utf16(source) + b"\0\0"
    counted = ctypes.byref(String(utf16(source)))
    for name, argument in (("StringToString", counted), ("ToString", terminated)):
        string = String(utf16(target), 2 * room)
        append = getattr(kernel, f"RtlAppendUnicode{name}")
        status = append(ctypes.byref(string), argument) & 0xFFFFFFFF
        fits = len(both) <= string.maximum_length
        assert status == (0 if fits else STATUS_BUFFER_TOO_SMALL)
        assert string.data == (both if fits else utf16(target))
    kernel.RtlInitUnicodeString(ctypes.byref(string), terminated)
    assert ctypes.string_at(string.buffer, string.maximum_length) == terminated


@given(a=wide, b=wide)
def test_comparing_counted_strings(kernel: ctypes.CDLL, a: str, b: str) -> None:
    def folded(text: str) -> str:
        return "".join(each.upper() if each.isascii() else each for each in text)

    texts = [utf16(text) for text in (a, b, folded(a), folded(b))]
    left, right, upper, _ = (ctypes.byref(String(text)) for text in texts)
    units = [array("H", text) for text in texts]
    expected = order(units[2], units[3])
    assert order(kernel.RtlCompareUnicodeString(left, right, 0), 0) == order(*units[:2])
    assert order(kernel.RtlCompareUnicodeString(left, right, 1), 0) == expected
    assert kernel.RtlEqualUnicodeString(left, right, 1) & 0xFF == (expected == 0)
    assert kernel.RtlEqualUnicodeString(left, upper, 1) & 0xFF == 1


@given(text=wide, room=st.integers(1, 50))
def test_converting_counted_strings(kernel: ctypes.CDLL, text: str, room: int) -> None:
    target, plain = String(), to_question_marks(text)
    place = ctypes.create_string_buffer(room)
    kernel.RtlUnicodeToText(ctypes.byref(String(utf16(text))), place, ctypes.c_uint64(room))
    assert place.value == plain.split(b"\0")[0][: room - 1]
    assert kernel.RtlTextToUnicode(plain, ctypes.byref(target)) == 0
    assert ctypes.string_at(target.buffer, target.maximum_length) == utf16(plain.decode() + "\0")
    kernel.RtlFreeUnicodeString(ctypes.byref(target))
    assert ctypes.c_int32.in_dll(kernel, "HarnessPoolBlocks").value == 0
