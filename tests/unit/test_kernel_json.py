"""The test kernel's JSON and base64, as its guest agent uses them, against Python's answers."""

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.native.emulator import Emulator, kernel_emulator

DEPTH = 32
MORE, COMPLETE, BROKEN = 0, 1, 2
OUTPUT = struct.Struct("<QII")

text = st.text(st.characters(min_codepoint=1, exclude_categories=["Cs"]), max_size=12)
integer = st.integers(-(1 << 63), (1 << 63) - 1)
scalar = st.none() | st.booleans() | integer | text
value = st.recursive(
    scalar, lambda inner: st.lists(inner) | st.dictionaries(text, inner), max_leaves=12
)
layout = st.sampled_from([(", ", ": "), (",", ":"), (" ,\t", "\r\n:\n ")])


@pytest.fixture(scope="module")
def kernel() -> Emulator:
    return kernel_emulator()


class Document:
    """A text as the kernel reads it."""

    def __init__(self, kernel: Emulator, content: bytes) -> None:
        kernel.reset()
        self.kernel = kernel
        self.root = kernel.allocate(0, bytes(16))
        self.address = kernel.allocate(0, content + b"\0")
        error = kernel.call("JsonCheck", self.address, self.root)
        self.error = kernel.text(error).decode() if error else None

    def source(self, span: int) -> bytes:
        """The part of the text that a JSON structure stands for."""
        start, end = struct.unpack("<2Q", self.kernel.read(span, 16))
        return self.kernel.read(start, end - start)

    def items(self, span: int, name: int) -> list[tuple[Any, Any]]:
        item = self.kernel.allocate(0, bytes(16))
        found = []
        while self.kernel.call("JsonNext", span, name, item) & 0xFF:
            found.append((self.value(name) if name else None, self.value(item)))
        return found

    def value(self, span: int) -> Any:
        source = self.source(span)
        match source[:1]:
            case b"{":
                return dict(self.items(span, self.kernel.allocate(0, bytes(16))))
            case b"[":
                return [each for _, each in self.items(span, 0)]
            case b'"':
                target = self.kernel.allocate(0, b"\xaa" * (len(source) + 8))
                assert self.kernel.call("JsonString", span, target) & 0xFF
                assert self.kernel.read(target + len(source), 8) == b"\xaa" * 8, "wrote too much"
                return self.kernel.text(target).decode()
            case b"t" | b"f" | b"n":
                return {b"true": True, b"false": False, b"null": None}[source]
        number = self.kernel.allocate(0, bytes(8))
        if not self.kernel.call("JsonInteger", span, number) & 0xFF:
            return float(source)
        return struct.unpack("<q", self.kernel.read(number, 8))[0]


def python_accepts(content: str) -> bool:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        json.loads(content, parse_constant=refuse)
    except ValueError:
        return False
    # strings end with a NUL in the kernel, so that it takes none inside
    return "\\u0000" not in content.replace("\\\\", "")


@given(value, layout, st.booleans())
def test_what_python_writes_is_read_back(
    kernel: Emulator, content: Any, separators: tuple[str, str], escaped: bool
) -> None:
    written = json.dumps(content, ensure_ascii=escaped, separators=separators)
    document = Document(kernel, f" {written}\r\n".encode())
    assert document.error is None
    assert document.source(document.root) == written.strip().encode()
    assert document.value(document.root) == content


@given(value, st.data())
def test_damaged_texts_are_refused_as_by_python(
    kernel: Emulator, content: Any, data: st.DataObject
) -> None:
    damaged = list(json.dumps(content))
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.integers(0, len(damaged)))
        length = data.draw(st.integers(0, 2))
        damaged[where : where + length] = data.draw(st.text('{}[],:"\\tun0d8e.-+1 \n', max_size=2))
    written = "".join(damaged)
    assert (Document(kernel, written.encode()).error is None) == python_accepts(written), written


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (rb'"\ud83d\ude00"', "\U0001f600"),
        (rb'"\ud83d\u0041"', "\ufffdA"),
        (rb'"\ude00"', "\ufffd"),
        (rb'"\ud83d"', "\ufffd"),
        (rb'"\"\\\/\b\f\n\r\t\u00e9"', '"\\/\b\f\n\r\t\u00e9'),
        (b"9223372036854775807", (1 << 63) - 1),
        (b"-9223372036854775808", -(1 << 63)),
        (b"9223372036854775808", 9223372036854775808.0),  # no integer: it does not fit
        (b"1e3", 1000.0),
    ],
)  # fmt: skip
def test_particular_values(kernel: Emulator, content: bytes, expected: object) -> None:
    document = Document(kernel, content)
    assert document.error is None
    found = document.value(document.root)
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_nesting_has_a_limit(kernel: Emulator, brackets: str) -> None:
    opening = "[" if brackets == "[]" else '{"a":'
    inner = "1"
    good = Document(kernel, (opening * DEPTH + inner + brackets[1] * DEPTH).encode())
    assert good.error is None
    too_deep = Document(kernel, (opening * 10_000).encode())
    assert too_deep.error == "too deeply nested"
    one_more = (opening * (DEPTH + 1) + inner + brackets[1] * (DEPTH + 1)).encode()
    assert Document(kernel, one_more).error == "too deeply nested"


@given(st.dictionaries(text, scalar, min_size=1), st.data())
def test_members_are_found_by_name(
    kernel: Emulator, content: dict[str, Any], data: st.DataObject
) -> None:
    plain = {name: each for name, each in content.items() if json.dumps(name)[1:-1] == name}
    document = Document(kernel, json.dumps(content).encode())
    found = kernel.allocate(0, bytes(16))
    assert not kernel.call("JsonMember", document.root, b"no such member", found) & 0xFF
    if plain:
        name = data.draw(st.sampled_from(sorted(plain)))
        assert kernel.call("JsonMember", document.root, name.encode(), found) & 0xFF
        assert document.value(found) == plain[name]


@given(st.lists(st.dictionaries(text, value, max_size=3), max_size=4), st.sampled_from(["", "\n"]))
def test_a_stream_is_cut_into_its_texts(
    kernel: Emulator, contents: list[dict[str, Any]], between: str
) -> None:
    kernel.reset()
    frame = kernel.allocate(0, bytes(16))
    received = b""
    cut = []
    for byte in between.join(json.dumps(each) for each in contents).encode():
        received += bytes([byte])
        progress = kernel.call("JsonFrame", frame, byte)
        assert progress in (MORE, COMPLETE)
        if progress == COMPLETE:
            cut.append(json.loads(received))
            received = b""
            kernel.write(frame, bytes(16))
    assert cut == contents
    assert not received.strip()


@pytest.mark.parametrize(
    ("stream", "last"),
    [(b"word\n", COMPLETE), (b"12\n", COMPLETE), (b"}\n", COMPLETE), (b'{"a\n', BROKEN),
     (b'{"a\\\n', BROKEN), (b'{"a": "}]', MORE), (b'{"\\"', MORE), (b" \r\n\n", MORE)],
)  # fmt: skip
def test_where_a_broken_text_ends(kernel: Emulator, stream: bytes, last: int) -> None:
    kernel.reset()
    frame = kernel.allocate(0, bytes(16))
    progress = [kernel.call("JsonFrame", frame, byte) for byte in stream]
    assert progress == [MORE] * (len(stream) - 1) + [last]


@given(text)
def test_strings_are_written_as_json(kernel: Emulator, content: str) -> None:
    kernel.reset()
    output = kernel.allocate(0, bytes(OUTPUT.size))
    kernel.call("JsonPutString", output, content.encode())
    address, length, _ = OUTPUT.unpack(kernel.read(output, OUTPUT.size))
    assert json.loads(kernel.read(address, length)) == content


@given(st.binary(max_size=600))
def test_base64_both_ways(kernel: Emulator, content: bytes) -> None:
    kernel.reset()
    output, decoded = kernel.allocate(0, bytes(OUTPUT.size)), kernel.allocate(0, bytes(8))
    kernel.call("JsonPutBase64", output, kernel.allocate(0, content), len(content))
    address, length, _ = OUTPUT.unpack(kernel.read(output, OUTPUT.size))
    encoded = base64.b64encode(content)
    assert kernel.read(address, length) == b'"' + encoded + b'"'
    place = kernel.allocate(0, encoded + b"\0")
    assert kernel.call("Base64Decode", place, decoded) & 0xFF
    assert struct.unpack("<I", kernel.read(decoded, 4))[0] == len(content)
    assert kernel.read(place, len(content)) == content


@pytest.mark.parametrize(
    "damaged", [b"QQ=", b"QQ", b"Q===", b"QQ==QQ==", b"Q!==", b"=QQQ", b"QQ=Q"]
)
def test_what_is_not_base64_is_refused(kernel: Emulator, damaged: bytes) -> None:
    kernel.reset()
    place = kernel.allocate(0, damaged + b"\0")
    assert not kernel.call("Base64Decode", place, kernel.allocate(0, bytes(8))) & 0xFF
