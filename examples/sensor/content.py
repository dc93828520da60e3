"""Content files of the sensor: encode, decode, and the example files under ``content/``.

FORMAT.md describes the layout byte by byte; ``src/content.h`` is the driver's view of it.

``python -m examples.sensor.content`` writes the example files; with ``--check`` it compares them.
"""

from __future__ import annotations

import argparse
import struct
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

MAGIC: Final = 0xAAAAAAAA
FORMAT_VERSION: Final = 1
CHANNEL: Final = 291
MAX_BYTES: Final = 65536
MAX_INSTANCES: Final = 64

HEADER: Final = struct.Struct("<IHHIIII")
INSTANCE: Final = struct.Struct("<III")
CRITERION: Final = struct.Struct("<BBH")

CONTENT_DIRECTORY: Final = Path(__file__).parent / "content"


class ContentError(ValueError):
    """A content file is malformed; the message says what was found, at which byte offset."""


class TemplateType(IntEnum):
    """What the instances of a content file are evaluated against."""

    PROCESS = 1
    RATE = 2
    OWNER = 3
    BURST = 4


class Operator(IntEnum):
    """How a criterion compares its value with the input of its field."""

    WILDCARD = 0
    EQUALS = 1
    PREFIX = 2
    NUMBER = 3


#: The least and the most criteria an instance of each template type may have. The most is the
#: number of fields that the template type defines.
CRITERIA_COUNT: Final[dict[TemplateType, tuple[int, int]]] = {
    TemplateType.PROCESS: (1, 21),
    TemplateType.RATE: (2, 2),
    TemplateType.OWNER: (2, 2),
    TemplateType.BURST: (1, 1),
}

#: The fields that TEMPLATE PROCESS defines, with the type of their values.
PROCESS_FIELDS: Final[tuple[tuple[str, type[int] | type[str]], ...]] = (
    ("event number", int),
    ("process id", int),
    ("parent process id", int),
    ("creating process id", int),
    ("creating thread id", int),
    ("caller's process id", int),
    ("caller's thread id", int),
    ("image path", str),
    ("image directory", str),
    ("image name", str),
    ("image extension", str),
    ("image path length in characters", int),
    ("image path depth", int),
    ("command line", str),
    ("program", str),
    ("arguments", str),
    ("command line length in characters", int),
    ("creation flags", int),
    ("image file is open", int),
    ("performance counter", int),
    ("name the image file was opened by", str),
)


@dataclass(frozen=True)
class Criterion:
    """One criterion; ``value`` is None (wildcard), text (equals, prefix) or a 64-bit number."""

    operator: Operator
    value: str | int | None = None

    def encode(self) -> bytes:
        """The criterion's bytes. Raises ContentError when the value does not fit the operator."""
        match self.operator, self.value:
            case Operator.WILDCARD, None:
                data = b""
            case ((Operator.EQUALS | Operator.PREFIX), str(text)):
                data = text.encode("utf-16-le", "surrogatepass")
            case Operator.NUMBER, int(number) if 0 <= number < 2**64:
                data = struct.pack("<Q", number)
            case _:
                raise ContentError(f"{self.operator.name} cannot have the value {self.value!r}")
        if len(data) > 0xFFFF:
            raise ContentError(f"a value of {len(data)} bytes is above the limit of 65535")
        return CRITERION.pack(self.operator, 0, len(data)) + data


ANY: Final = Criterion(Operator.WILDCARD)


@dataclass(frozen=True)
class Instance:
    """A template instance.

    ``length`` is what its Length field says, in bytes; None (the default) stands for the truth.
    """

    instance_id: int
    criteria: tuple[Criterion, ...]
    length: int | None = None

    def encode(self) -> bytes:
        """The instance's bytes with its criteria."""
        body = b"".join(criterion.encode() for criterion in self.criteria)
        true_length = INSTANCE.size + len(body)
        length = true_length if self.length is None else self.length
        return INSTANCE.pack(self.instance_id, length, len(self.criteria)) + body


@dataclass(frozen=True)
class Content:
    """A content file: instances of one template type."""

    template_type: TemplateType
    content_version: int
    instances: tuple[Instance, ...]

    def encode(self) -> bytes:
        """The file's bytes. Nothing is checked here that the format can express."""
        body = b"".join(instance.encode() for instance in self.instances)
        header = HEADER.pack(
            MAGIC,
            FORMAT_VERSION,
            self.template_type,
            CHANNEL,
            self.content_version,
            len(self.instances),
            HEADER.size + len(body),
        )
        return header + body


def _decode_value(operator: Operator, data: bytes, offset: int) -> str | int | None:
    match operator:
        case Operator.WILDCARD:
            wanted = len(data) == 0
        case Operator.NUMBER:
            wanted = len(data) == 8
        case _:
            wanted = len(data) % 2 == 0
    if not wanted:
        raise ContentError(
            f"criterion at byte {offset}: {operator.name} cannot have a value of {len(data)} bytes"
        )
    if operator is Operator.WILDCARD:
        return None
    if operator is Operator.NUMBER:
        return int.from_bytes(data, "little")
    return data.decode("utf-16-le", "surrogatepass")


def _decode_criterion(data: bytes, offset: int) -> tuple[Criterion, int]:
    start = offset + CRITERION.size
    if start > len(data):
        raise ContentError(f"criterion at byte {offset}: truncated, the file has {len(data)} bytes")
    number, _reserved, length = CRITERION.unpack_from(data, offset)
    end = start + length
    if end > len(data):
        raise ContentError(
            f"criterion at byte {offset}: its value ends at byte {end},"
            f" the file has {len(data)} bytes"
        )
    try:
        operator = Operator(number)
    except ValueError:
        raise ContentError(f"criterion at byte {offset}: unknown operator {number}") from None
    return Criterion(operator, _decode_value(operator, data[start:end], offset)), end


def _decode_instance(data: bytes, offset: int, template_type: TemplateType) -> tuple[Instance, int]:
    if offset + INSTANCE.size > len(data):
        raise ContentError(f"instance at byte {offset}: truncated, the file has {len(data)} bytes")
    instance_id, length, count = INSTANCE.unpack_from(data, offset)
    least, most = CRITERIA_COUNT[template_type]
    if not least <= count <= most:
        raise ContentError(
            f"instance at byte {offset}: {count} criteria,"
            f" {template_type.name} takes {least} to {most}"
        )
    criteria = []
    position = offset + INSTANCE.size
    for _ in range(count):
        criterion, position = _decode_criterion(data, position)
        criteria.append(criterion)
    told = None if length == position - offset else length
    return Instance(instance_id, tuple(criteria), told), position


def decode(data: bytes) -> Content:
    """Decodes a content file with the checks that the driver makes when it loads one.

    Raises ContentError for a malformed file. Like the driver it does not hold an instance's Length
    against the instance: a Length that is not the true one comes back as ``Instance.length``.
    """
    if len(data) < HEADER.size:
        raise ContentError(f"header truncated: {len(data)} bytes, it takes {HEADER.size}")
    if len(data) > MAX_BYTES:
        raise ContentError(f"{len(data)} bytes are above the limit of {MAX_BYTES}")
    magic, version, template, channel, content_version, count, total = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise ContentError(f"wrong magic {magic:#010x} at byte 0, expected {MAGIC:#010x}")
    if version != FORMAT_VERSION:
        raise ContentError(f"format version {version} at byte 4, expected {FORMAT_VERSION}")
    if channel != CHANNEL:
        raise ContentError(f"channel {channel} at byte 8, expected {CHANNEL}")
    if total != len(data):
        raise ContentError(
            f"truncated or extended: the header says {total} bytes, the file has {len(data)}"
        )
    if not 1 <= count <= MAX_INSTANCES:
        raise ContentError(f"{count} instances at byte 16, expected 1 to {MAX_INSTANCES}")
    try:
        template_type = TemplateType(template)
    except ValueError:
        raise ContentError(f"unknown template type {template} at byte 6") from None
    instances = []
    position = HEADER.size
    for _ in range(count):
        instance, position = _decode_instance(data, position, template_type)
        instances.append(instance)
    if position != len(data):
        raise ContentError(f"{len(data) - position} bytes behind the last instance, at {position}")
    return Content(template_type, content_version, tuple(instances))


def file_name(number: int) -> str:
    """The name of the content file with this number; the sensor loads the highest."""
    return f"C-{CHANNEL:08d}-{number:08d}.sys"


def _text(operator: Operator, value: str) -> Criterion:
    return Criterion(operator, value)


def _number(value: int) -> Criterion:
    return Criterion(Operator.NUMBER, value)


def _process(instance_id: int, fields: dict[int, Criterion]) -> Instance:
    """An instance with all 21 criteria: those of ``fields`` (counted from 1), else a wildcard."""
    return Instance(instance_id, tuple(fields.get(field, ANY) for field in range(1, 22)))


def _benign(number: int) -> Content:
    image_name = _text(Operator.EQUALS, "credential_dumper.exe")
    script_host = _text(Operator.EQUALS, "wscript.exe")
    temporary = _text(Operator.PREFIX, "c:\\windows\\temp\\")
    # Compares each text with a prefix that any text has, and goes on to the last input supplied.
    to_the_last_input = {
        field: _text(Operator.PREFIX, "")
        for field, (_name, kind) in enumerate(PROCESS_FIELDS[:20], start=1)
        if kind is str
    } | {20: _number(0)}
    return Content(
        TemplateType.PROCESS,
        number,
        (
            _process(1, {10: image_name}),
            _process(2, {10: script_host, 16: temporary}),
            _process(3, to_the_last_input),
        ),
    )


def _killer(number: int) -> Content:
    # Twenty wildcards, so that any process creation reaches the 21st criterion.
    return Content(
        TemplateType.PROCESS,
        number,
        (
            *_benign(number).instances,
            _process(4, {21: _text(Operator.PREFIX, "\\device\\mup\\")}),
        ),
    )


def example_files() -> dict[str, bytes]:
    """The example files: path under ``content/`` to bytes, the first part naming the kind."""
    killer = _killer(32).encode()
    freed = Content(TemplateType.RATE, 33, (Instance(1, (_number(1024), _number(5))),))
    unknown_owner = Content(
        TemplateType.OWNER,
        34,
        (Instance(1, (_number(1), _number(1))), Instance(2, (_number(9), _number(1)))),
    )
    endless = Content(
        TemplateType.BURST,
        35,
        (Instance(1, (_number(50),)), Instance(2, (_number(100),), length=0)),
    )
    return {
        f"benign/{file_name(31)}": _benign(31).encode(),
        f"killer/{file_name(32)}": killer,
        f"freed/{file_name(33)}": freed.encode(),
        f"exception/{file_name(34)}": unknown_owner.encode(),
        f"hang/{file_name(35)}": endless.encode(),
        f"truncated/{file_name(36)}": killer[: len(killer) * 2 // 3],
        f"wrong_magic/{file_name(37)}": b"\0\0\0\0" + killer[4:],
    }


def main() -> int:
    """Writes or compares the example files; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.sensor.content",
        description="Write the example content files (benign, killer, ...) under content/.",
    )
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if a file differs")
    check = parser.parse_args().check
    stale = 0
    for name, data in example_files().items():
        path = CONTENT_DIRECTORY / name
        if check:
            same = path.is_file() and path.read_bytes() == data
            stale += not same
            print(f"{'same' if same else 'DIFFERS'}  {name}")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            print(f"{len(data):6} bytes  {name}")
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
