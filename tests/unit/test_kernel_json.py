"""The test kernel's JSON and base64, as its guest agent uses them, against Python's answers."""

from __future__ import annotations

import base64
import ctypes
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.native import build

DEPTH = 32
# Up to U+FFFF: escaped pairs beyond it come out as U+FFFD (test_particular_values).
text = st.text(
    st.characters(min_codepoint=1, max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=12
)
scalar = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | text
value = st.recursive(
    scalar, lambda inner: st.lists(inner) | st.dictionaries(text, inner), max_leaves=12
)
layout = st.sampled_from([(", ", ": "), (",", ":"), (" ,\t", "\r\n:\n ")])


class Json(ctypes.Structure):
    """JSON of agent.h: a part of the text."""

    _fields_ = [("text", ctypes.c_void_p), ("end", ctypes.c_void_p)]

    @property
    def source(self) -> bytes:
        return ctypes.string_at(self.text, self.end - self.text)


class Output(ctypes.Structure):
    """OUTPUT of agent.h."""

    _fields_ = [("text", ctypes.c_char_p), ("length", ctypes.c_uint32), ("size", ctypes.c_uint32)]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = build(tmp_path_factory.mktemp("json"), "agent/json.c", "agent/output.c")
    library.JsonCheck.restype = ctypes.c_char_p
    for name in ("JsonNext", "JsonMember", "JsonString", "JsonInteger", "Base64Decode"):
        getattr(library, name).restype = ctypes.c_bool
    return library


class Document:
    """A text as the kernel reads it."""

    def __init__(self, kernel: ctypes.CDLL, content: bytes) -> None:
        self.kernel, self.root = kernel, Json()
        self.memory = ctypes.create_string_buffer(content)
        self.error = kernel.JsonCheck(self.memory, ctypes.byref(self.root))

    def items(self, container: Json, name: Json | None) -> Iterator[tuple[Any, Any]]:
        item, where = Json(), name and ctypes.byref(name)
        while self.kernel.JsonNext(container, where, ctypes.byref(item)):
            yield name and self.value(name), self.value(item)

    def value(self, part: Json) -> Any:
        source = part.source
        match source[:1]:
            case b"{":
                return dict(self.items(part, Json()))
            case b"[":
                return [each for _, each in self.items(part, None)]
            case b'"':
                target = ctypes.create_string_buffer(b"\xaa" * (len(source) + 8))
                assert self.kernel.JsonString(part, target)
                assert target.raw[len(source) :] == b"\xaa" * 8 + b"\0", "wrote too much"
                return target.value.decode()
            case b"t" | b"f" | b"n":
                return json.loads(source)
        number = ctypes.c_int64()
        fits = self.kernel.JsonInteger(part, ctypes.byref(number))
        return number.value if fits else float(source)


def python_accepts(content: str) -> bool:
    try:
        json.loads(content, parse_constant=int)  # which refuses NaN and Infinity
    except ValueError:
        return False
    # strings end with a NUL in the kernel, so that it takes none inside
    return "\\u0000" not in content.replace("\\\\", "")


@given(value, layout, st.booleans())
def test_what_python_writes_is_read_back(
    kernel: ctypes.CDLL, content: Any, separators: tuple[str, str], escaped: bool
) -> None:
    written = json.dumps(content, ensure_ascii=escaped, separators=separators)
    document = Document(kernel, f" {written}\r\n".encode())
    assert document.error is None
    assert document.root.source == written.strip().encode()
    assert document.value(document.root) == content


@given(value, st.data())
def test_damaged_texts_are_refused_as_by_python(
    kernel: ctypes.CDLL, content: Any, data: st.DataObject
) -> None:
    damaged = list(json.dumps(content))
    for length in data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=3)):
        where = data.draw(st.integers(0, len(damaged)))
        damaged[where : where + length] = data.draw(st.text('{}[],:"\\tun0d8e.-+1 \n', max_size=2))
    written = "".join(damaged)
    assert (Document(kernel, written.encode()).error is None) == python_accepts(written), written


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (rb'"\ud83d\ude00"', "\ufffd\ufffd"),  # each half of a pair by itself
        (rb'"\ud83d\u0041"', "\ufffdA"),
        (rb'"\ude00"', "\ufffd"),
        (rb'"\ud83d"', "\ufffd"),
        (rb'"\"\\\/\b\f\n\r\t\u00e9"', '"\\/\b\f\n\r\t\u00e9'),
        (b"9223372036854775807", (1 << 63) - 1),
        (b"-9223372036854775808", -(1 << 63)),
        (b"9223372036854775808", 9223372036854775808.0),  # no integer: it does not fit
        (b"1e3", 1000.0),
    ],
)
def test_particular_values(kernel: ctypes.CDLL, content: bytes, expected: object) -> None:
    document = Document(kernel, content)
    assert document.error is None
    assert repr(document.value(document.root)) == repr(expected)


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_nesting_has_a_limit(kernel: ctypes.CDLL, opening: str, closing: str) -> None:
    texts = [opening * depth + "1" + closing * depth for depth in (DEPTH, DEPTH + 1)]
    assert Document(kernel, texts[0].encode()).error is None
    for refused in (texts[1], opening * 10_000):
        assert Document(kernel, refused.encode()).error == b"too deeply nested"


@given(st.dictionaries(text, scalar, min_size=1))
def test_members_are_found_by_name(kernel: ctypes.CDLL, content: dict[str, Any]) -> None:
    document, found = Document(kernel, json.dumps(content).encode()), Json()
    assert not kernel.JsonMember(document.root, b"no such member", ctypes.byref(found))
    for name, expected in content.items():
        if json.dumps(name)[1:-1] == name:  # no escapes
            assert kernel.JsonMember(document.root, name.encode(), ctypes.byref(found))
            assert document.value(found) == expected


@given(text)
def test_strings_are_written_as_json(kernel: ctypes.CDLL, content: str) -> None:
    output = Output()
    kernel.JsonPutString(ctypes.byref(output), content.encode())
    assert json.loads(output.text) == content


@given(st.binary(max_size=600))
def test_base64_both_ways(kernel: ctypes.CDLL, content: bytes) -> None:
    output, decoded, encoded = Output(), ctypes.c_uint32(), base64.b64encode(content)
    kernel.JsonPutBase64(ctypes.byref(output), content, len(content))
    assert output.text == b'"' + encoded + b'"'
    place = ctypes.create_string_buffer(encoded)
    assert kernel.Base64Decode(place, ctypes.byref(decoded))
    assert place.raw[: decoded.value] == content


@pytest.mark.parametrize("damaged", ["QQ=", "QQ", "Q===", "QQ==QQ==", "Q!==", "=QQQ", "QQ=Q"])
def test_what_is_not_base64_is_refused(kernel: ctypes.CDLL, damaged: str) -> None:
    place, decoded = ctypes.create_string_buffer(damaged.encode()), ctypes.c_uint32()
    assert not kernel.Base64Decode(place, ctypes.byref(decoded))
