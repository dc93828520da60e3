"""The test kernel's text, formatting and time functions, against libc's and Python's answers."""

import ctypes
import struct
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.native.emulator import KERNEL_BASE, Emulator, kernel_emulator

EPOCH = datetime(1601, 1, 1, tzinfo=UTC)
LIBC = ctypes.CDLL(None)
narrow = st.text(st.characters(min_codepoint=1, max_codepoint=0x7E), max_size=40).map(str.encode)
wide = st.text(st.characters(min_codepoint=1, exclude_categories=["Cs"]), max_size=40)
flags = st.lists(st.sampled_from("-0"), max_size=3).map("".join)


@pytest.fixture(scope="module")
def kernel() -> Emulator:
    return kernel_emulator()


def utf16(text: str) -> bytes:
    return text.encode("utf-16-le")


def to_question_marks(text: str) -> bytes:
    """What the kernel makes of wide text: it knows ASCII only, unit by unit."""
    units = struct.unpack(f"<{len(utf16(text)) // 2}H", utf16(text))
    return bytes(unit if unit < 0x80 else ord("?") for unit in units)


def formatted(kernel: Emulator, size: int, template: str, *arguments: int | bytes) -> bytes:
    kernel.reset()
    buffer = kernel.allocate(0, b"\xaa" * (size + 16))
    length = kernel.call("RtlFormat", buffer, size, template.encode(), *arguments)
    assert kernel.read(buffer + size, 16) == b"\xaa" * 16, "wrote past the buffer"
    text = kernel.text(buffer)
    assert length == len(text)
    return text


def libc_formatted(size: int, template: str, *arguments: int | bytes) -> bytes:
    buffer = ctypes.create_string_buffer(size)
    values = [ctypes.c_int64(each) if isinstance(each, int) else each for each in arguments]
    LIBC.snprintf(buffer, ctypes.c_size_t(size), template.encode(), *values)
    return buffer.value


@given(
    flags=flags,
    alternate=st.booleans(),
    width=st.integers(0, 30),
    precision=st.none() | st.integers(0, 25),
    length=st.sampled_from([("", ""), ("l", ""), ("ll", "ll"), ("I64", "ll"), ("h", "h"),
                            ("I", "ll")]),
    kind=st.sampled_from("diuxX"),
    value=st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(-2, 2),
    size=st.integers(1, 64),
)  # fmt: skip
def test_integers_are_formatted_as_libc_does(  # noqa: PLR0917
    kernel: Emulator, flags: str, alternate: bool, width: int, precision: int | None,
    length: tuple[str, str], kind: str, value: int, size: int,
) -> None:  # fmt: skip
    start = (
        "<%" + flags + ("#" if alternate and kind in "xX" else "") + (str(width) if width else "")
    )
    start += "" if precision is None else f".{precision}"
    windows, posix = (f"{start}{part}{kind}>" for part in length)
    assert formatted(kernel, size, windows, value) == libc_formatted(size, posix, value)


@given(
    template=st.sampled_from(["%s", "%-12s|", "%12s", "%.3s", "%-7.2s|", "%hs"]),
    text=narrow,
    size=st.integers(1, 50),
)
def test_text_is_formatted_as_libc_does(
    kernel: Emulator, template: str, text: bytes, size: int
) -> None:
    expected = libc_formatted(size, template.replace("h", ""), text)
    assert formatted(kernel, size, template, text) == expected


@given(width=st.integers(-20, 20), precision=st.integers(-3, 20), text=narrow)
def test_width_and_precision_can_be_arguments(
    kernel: Emulator, width: int, precision: int, text: bytes
) -> None:
    expected = libc_formatted(64, "%*.*s|", width, precision, text)
    assert formatted(kernel, 64, "%*.*s|", width, precision, text) == expected


@given(template=st.sampled_from(["%ls", "%ws", "%S"]), text=wide)
def test_wide_text(kernel: Emulator, template: str, text: str) -> None:
    assert formatted(kernel, 200, template, utf16(text)) == to_question_marks(text)


@given(text=wide)
def test_counted_strings(kernel: Emulator, text: str) -> None:
    data = utf16(text) + b"X\0"  # not terminated where it ends
    buffer = kernel.allocate(0, data)
    string = struct.pack("<HHIQ", len(data) - 2, len(data), 0, buffer)
    assert formatted(kernel, 200, "[%wZ]", string) == b"[" + to_question_marks(text) + b"]"


def test_other_conversions(kernel: Emulator) -> None:
    template = "%p %c%C %% %d"
    text = formatted(kernel, 99, template, KERNEL_BASE + 0xAB, ord("a"), ord("b"), 7)
    assert text == b"FFFFF803120000AB ab % 7"
    assert formatted(kernel, 99, "%s %wZ %S", 0, 0, 0) == b"(null) (null) (null)"
    assert formatted(kernel, 99, "100%") == b"100"


def test_debug_text_goes_to_the_port_and_into_the_ring(kernel: Emulator) -> None:
    """DbgPrintEx as a driver calls it; KdPrintCircularBuffer as `!dbgprint` reads it."""
    kernel.debug_output = b""
    size = 0x2000
    lines = [f"line {number:04}\n".encode() for number in range(1000)]
    for number in range(1000):
        kernel.reset()
        kernel.call("DbgPrintEx", 77, 0, b"line %04u\n", number)
    assert kernel.debug_output == b"".join(lines)
    memory = kernel.read(kernel.kernel.base, len(kernel.kernel.memory))
    end = memory.index(lines[-1]) + len(lines[-1])  # where the write pointer must point
    assert struct.pack("<Q", kernel.kernel.base + end) in memory
    newest = memory[end - len(b"".join(lines)) % size : end]
    assert newest == b"".join(lines)[-len(newest) :]
    start = end - len(newest)
    assert memory[end : start + size] in b"".join(lines), "older text after the newest"

    kernel.debug_output = b""
    kernel.call("DbgPrint", b"%s", b"x" * 600)
    assert kernel.debug_output == b"x" * 511, "Windows cuts at 512 bytes"


@given(
    when=st.datetimes(
        EPOCH.replace(tzinfo=None), datetime(9999, 12, 31, 23, 59, 59), timezones=st.just(UTC)
    )
)
def test_dates_are_python_s(kernel: Emulator, when: datetime) -> None:
    when = when.replace(microsecond=when.microsecond // 1000 * 1000)
    ticks = (when - EPOCH) // timedelta(microseconds=1) * 10
    kernel.reset()
    date = kernel.allocate(32)
    kernel.call("KiTimeToDate", ticks + 9999, date)
    fields = struct.unpack("<8I", kernel.read(date, 32))
    milliseconds = when.microsecond // 1000
    assert fields == (*when.timetuple()[:6], milliseconds, when.isoweekday() % 7)
    assert kernel.call("KiDateToTime", date) == ticks


def sign(value: int) -> int:
    """Of a C int in eax."""
    value &= 0xFFFFFFFF
    return 0 if value == 0 else -1 if value >> 31 else 1


@given(a=narrow, b=narrow, count=st.integers(0, 50))
def test_comparing_text(kernel: Emulator, a: bytes, b: bytes, count: int) -> None:
    def order(a: bytes, b: bytes) -> int:
        return (a > b) - (a < b)

    kernel.reset()
    assert sign(kernel.call("strcmp", a, b)) == order(a, b)
    assert sign(kernel.call("strncmp", a, b, count)) == order(a[:count], b[:count])
    assert sign(kernel.call("memcmp", a, b, min(len(a), len(b)))) == order(a[: len(b)], b[: len(a)])
    assert sign(kernel.call("RtlCompareTextInsensitive", a, b)) == order(a.lower(), b.lower())
    assert sign(kernel.call("RtlCompareTextInsensitive", a, a.swapcase())) == 0
    assert sign(kernel.call("RtlCompareTextInsensitiveN", a, b, count)) == order(
        a.lower()[:count], b.lower()[:count]
    )


@given(
    text=st.text("ab", max_size=30),
    part=st.text("ab", max_size=4),
    character=st.sampled_from("abc"),
)
def test_searching_text(kernel: Emulator, text: str, part: str, character: str) -> None:
    def place(found: int) -> int:
        return found - start if found else -1

    kernel.reset()
    start = kernel.allocate(0, text.encode() + b"\0")
    assert kernel.call("strlen", start) == len(text)
    assert place(kernel.call("strstr", start, part.encode())) == text.find(part)
    assert place(kernel.call("strchr", start, ord(character))) == text.find(character)
    assert place(kernel.call("strchr", start, 0)) == len(text)


@given(data=st.binary(max_size=80), source=st.integers(0, 80), target=st.integers(0, 80))
def test_moving_memory(kernel: Emulator, data: bytes, source: int, target: int) -> None:
    kernel.reset()
    before = data.ljust(240, b"\x55")
    block = kernel.allocate(0, before)
    assert kernel.call("memmove", block + target, block + source, len(data)) == block + target
    expected = bytearray(before)
    expected[target : target + len(data)] = before[source : source + len(data)]
    assert kernel.read(block, 240) == expected
    assert kernel.call("memset", block + target, 0x1AB, len(data)) == block + target
    expected[target : target + len(data)] = b"\xab" * len(data)
    assert kernel.read(block, 240) == expected
    other = kernel.allocate(0, data + b"\x77" * 16)
    assert kernel.call("memcpy", block, other, len(data)) == block
    expected[: len(data)] = data
    assert kernel.read(block, 240) == expected
    assert kernel.call("RtlCompareMemory", block, other, len(data) + 16) >= len(data)


@given(text=narrow, size=st.integers(0, 50))
def test_copying_text(kernel: Emulator, text: bytes, size: int) -> None:
    kernel.reset()
    target = kernel.allocate(0, b"\xaa" * 64)
    kernel.call("RtlCopyText", target, size, text)
    copied = text[: size - 1] + b"\0" if size else b""
    assert kernel.read(target, 64) == copied.ljust(64, b"\xaa")
    assert kernel.text(kernel.call("RtlDuplicateText", text)) == text


@given(
    text=st.integers(0, 1 << 65).flatmap(
        lambda value: st.sampled_from([f"{value}", f"{value:x}", f"0x{value:X}"])
    )
    | st.text("0189aAfFgxX- ", max_size=5),
    base=st.sampled_from([0, 10, 16]),
)
def test_integers_from_text(kernel: Emulator, text: str, base: int) -> None:
    digits, radix = text, base or 10
    if base != 10 and text[:2] in ("0x", "0X"):
        digits, radix = text[2:], 16
    allowed = set("0123456789abcdefABCDEF"[: 10 if radix == 10 else 22])
    valid = bool(digits) and set(digits) <= allowed and int(digits, radix) < 1 << 64
    kernel.reset()
    value = kernel.allocate(8)
    assert kernel.call("RtlTextToInteger", text.encode(), base, value) & 0xFF == valid
    if valid:
        assert struct.unpack("<Q", kernel.read(value, 8)) == (int(digits, radix),)


class Strings:
    """UNICODE_STRING and ANSI_STRING structures in the emulated memory."""

    def __init__(self, kernel: Emulator) -> None:
        self.kernel = kernel
        kernel.reset()

    def make(self, data: bytes, maximum: int | None = None) -> int:
        """A counted string of `data` with room for `maximum` bytes; 0xAA fills the rest."""
        room = len(data) if maximum is None else maximum
        buffer = self.kernel.allocate(0, data.ljust(room, b"\xaa") + b"\xbb" * 8)
        return self.kernel.allocate(0, struct.pack("<HHIQ", len(data), room, 0, buffer))

    def get(self, string: int) -> bytes:
        """The text of a counted string; what lies behind its room must be untouched."""
        length, room, _, buffer = struct.unpack("<HHIQ", self.kernel.read(string, 16))
        assert length <= room
        return self.kernel.read(buffer, length) if length else b""

    def is_intact(self, string: int) -> bool:
        """Whether nothing was written behind its room."""
        _, room, _, buffer = struct.unpack("<HHIQ", self.kernel.read(string, 16))
        return self.kernel.read(buffer + room, 8) == b"\xbb" * 8


@given(target=wide, source=wide, room=st.integers(0, 120))
def test_copying_and_appending_counted_strings(
    kernel: Emulator, target: str, source: str, room: int
) -> None:
    strings = Strings(kernel)
    room = max(room & ~1, len(utf16(target)))
    left, right = strings.make(utf16(target), room), strings.make(utf16(source))
    fits = len(utf16(target + source)) <= room
    status = kernel.call("RtlAppendUnicodeStringToString", left, right) & 0xFFFFFFFF
    assert status == (0 if fits else 0xC0000023)
    assert strings.get(left) == utf16(target + source if fits else target)
    left = strings.make(utf16(target), room)
    status = kernel.call("RtlAppendUnicodeToString", left, utf16(source)) & 0xFFFFFFFF
    assert status == (0 if fits else 0xC0000023)
    kernel.call("RtlCopyUnicodeString", left, right)
    assert strings.get(left) == utf16(source)[:room]
    assert strings.is_intact(left)
    kernel.call("RtlInitUnicodeString", left, utf16(source))
    assert strings.get(left) == utf16(source)


latin = st.text(st.characters(min_codepoint=1, max_codepoint=0xFF), max_size=20)


@given(a=latin, b=latin)
def test_comparing_counted_strings(kernel: Emulator, a: str, b: str) -> None:
    def fold(text: str) -> str:
        # one character stays one; micro sign and sharp s have no capital in Latin-1
        return "".join(c if c in "\xb5\xdf" else c.upper() for c in text)

    def order(a: str, b: str) -> int:
        return (a > b) - (a < b)

    strings = Strings(kernel)
    left, right, folded = (strings.make(utf16(text)) for text in (a, b, fold(a)))
    assert sign(kernel.call("RtlCompareUnicodeString", left, right, 0)) == order(a, b)
    assert sign(kernel.call("RtlCompareUnicodeString", left, right, 1)) == order(fold(a), fold(b))
    assert kernel.call("RtlEqualUnicodeString", left, right, 1) & 0xFF == (fold(a) == fold(b))
    assert kernel.call("RtlEqualUnicodeString", left, folded, 1) & 0xFF == 1


@given(text=wide, room=st.integers(0, 50))
def test_converting_counted_strings(kernel: Emulator, text: str, room: int) -> None:
    strings = Strings(kernel)
    source, target = strings.make(utf16(text)), strings.make(b"", room)
    ascii_text = to_question_marks(text)
    status = kernel.call("RtlUnicodeStringToAnsiString", target, source, 0) & 0xFFFFFFFF
    assert status == (0 if len(ascii_text) < room else 0x80000005)
    assert strings.get(target) == ascii_text[: max(room - 1, 0)]
    assert strings.is_intact(target)
    assert kernel.call("RtlUnicodeStringToAnsiString", target, source, 1) == 0
    assert strings.get(target) == ascii_text
    back = strings.make(b"")
    assert kernel.call("RtlAnsiStringToUnicodeString", back, target, 1) == 0
    assert strings.get(back) == utf16(ascii_text.decode())
    kernel.call("RtlFreeUnicodeString", back)
    assert strings.get(back) == b""
    plain = kernel.allocate(0, b"\xaa" * 64)
    kernel.call("RtlUnicodeToText", source, plain, 64)
    assert kernel.text(plain) == ascii_text[:63]
    assert kernel.call("RtlTextToUnicode", plain, back) == 0
    assert strings.get(back) == utf16(ascii_text[:63].decode())
