"""The content validator: what content passes before it is released.

It has the blind spot of the validator that let Channel File 291 through on 19 July 2024, on
purpose: it judges content by what the template types *define*, not by what the sensor does.

- PROCESS: each criterion is tried against sample inputs for all 21 fields that are defined. The
  sensor supplies 20. So the 21st criterion is always within the inputs, here.
- RATE: a lifetime is judged as a number. Nobody runs it to its end.
- OWNER: an owner is a number. The table of owners is the driver's.
- BURST: instances are found by their criteria. Their Length, which the driver goes by, is not read.

``python -m examples.sensor.validator FILE...`` prints a line for each file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from examples.sensor.content import (
    PROCESS_FIELDS,
    Content,
    ContentError,
    Criterion,
    Instance,
    Operator,
    TemplateType,
    decode,
)

#: Sample inputs, one for each field of the PROCESS template type. This is the blind spot.
SAMPLE_INPUTS: Final = tuple(kind() for _name, kind in PROCESS_FIELDS)

BUCKETS: Final = range(512, 4097)


def _check_process(instance: Instance) -> None:
    for index, criterion in enumerate(instance.criteria):
        if criterion.operator is Operator.WILDCARD:
            continue
        sample = SAMPLE_INPUTS[index]
        if not isinstance(criterion.value, type(sample)):
            raise ContentError(
                f"instance {instance.instance_id}: field {index + 1} ({PROCESS_FIELDS[index][0]})"
                f" cannot be compared by {criterion.operator.name}"
            )


def _check_numbers(instance: Instance) -> None:
    for index, criterion in enumerate(instance.criteria):
        if criterion.operator not in (Operator.WILDCARD, Operator.NUMBER):
            raise ContentError(
                f"instance {instance.instance_id}: criterion {index + 1} is"
                f" {criterion.operator.name}, expected a number or a wildcard"
            )


def _check_buckets(instance: Instance, buckets: Criterion) -> None:
    if buckets.operator is Operator.NUMBER and buckets.value not in BUCKETS:
        raise ContentError(
            f"instance {instance.instance_id}: {buckets.value} buckets,"
            f" expected {BUCKETS.start} to {BUCKETS.stop - 1}"
        )


def validate(data: bytes) -> Content:
    """Decodes a content file and judges its instances.

    Raises ContentError, with what is wrong and where, for content that must not be released.
    """
    content = decode(data)
    for instance in content.instances:
        if content.template_type is TemplateType.PROCESS:
            _check_process(instance)
        else:
            _check_numbers(instance)
        if content.template_type is TemplateType.RATE:
            _check_buckets(instance, instance.criteria[0])
    return content


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.sensor.validator",
        description="Judge content files of the sensor before they are released.",
        epilog="Exit codes: 0 all valid; 1 at least one refused; 2 a file cannot be read."
        " This validator is blind to some fatal content on purpose: see README.md.",
    )
    parser.add_argument("file", nargs="+", type=Path, help="a C-00000291-*.sys file")
    files: list[Path] = parser.parse_args(arguments).file
    code = 0
    for path in files:
        try:
            content = validate(path.read_bytes())
        except OSError as error:
            print(f"{path}: cannot be read: {error.strerror}")
            code = 2
        except ContentError as error:
            print(f"{path}: refused: {error}")
            code = max(code, 1)
        else:
            print(
                f"{path}: valid: {content.template_type.name}, version {content.content_version},"
                f" {len(content.instances)} instances"
            )
    return code


if __name__ == "__main__":
    raise SystemExit(main())
