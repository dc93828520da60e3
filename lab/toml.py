"""TOML files as typed models; what is wrong in one is said with file, line, key and expectation."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from lab.outcome import LabError

MAXIMUM_BYTES = 1024 * 1024
"""A file that a person wrote is far smaller."""


class Section(BaseModel):
    """A table of such a file: no unknown keys, no silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Model = TypeVar("Model", bound=BaseModel)


def load_toml(path: Path, model: type[Model], error_type: type[LabError]) -> Model:
    """Reads a file. Raises `error_type` with one line for each thing that is wrong in it."""
    try:
        if path.stat().st_size > MAXIMUM_BYTES:
            raise error_type(f"{path}: expected a TOML file of at most {MAXIMUM_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise error_type(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise error_type(f"{path}: expected a TOML file in UTF-8: {error}") from None
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:  # says line and column
        raise error_type(f"{path}: not TOML: {error}") from None
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = [_in_words(path, text, data, model, dict(one)) for one in error.errors()]
        raise error_type("\n".join(problems)) from None


def line_of(text: str, key: Sequence[str | int]) -> int:
    """The line on which a key's statement begins; numbers are places in arrays. 1 if nowhere.

    The statement is what turns a prefix of the file without the key into one that has it.
    """
    lines = text.splitlines()
    first = 1
    for end in range(1, len(lines) + 1):
        try:
            data = tomllib.loads("\n".join(lines[:end]))
        except tomllib.TOMLDecodeError:
            continue  # in the middle of a value of several lines
        if len(_present(data, key)) == len(key):
            return first
        first = end + 1
    return 1


def _in_words(
    path: Path, text: str, data: dict[str, Any], model: type[BaseModel], problem: dict[str, Any]
) -> str:
    place: tuple[str | int, ...] = problem["loc"]
    present = _present(data, place)
    # A missing key is told at its table; a union's branches are in `place` and in no file.
    key = [*present, place[-1]] if problem["type"] == "missing" else present
    said = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        known = sorted(_keys_of(model, [part for part in place[:-1] if isinstance(part, str)]))
        close = difflib.get_close_matches(str(place[-1]), known, 1)
        expected = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"
        said = f"no such key; {expected}" if known else "no such key"
    elif problem["type"] == "missing":
        said = "this key must be given"
    elif present and not isinstance(problem["input"], dict):
        said += f" (found {problem['input']!r})"
    where = f"{path}:{line_of(text, present)}"
    return f"{where}: {dotted(key)}: {said}" if key else f"{where}: {said}"


def _present(data: object, place: Sequence[str | int]) -> list[str | int]:
    """The parts of a place that the file has."""
    found: list[str | int] = []
    for part in place:
        in_table = isinstance(data, dict) and part in data
        in_array = isinstance(data, list) and isinstance(part, int) and part < len(data)
        if in_table or in_array:
            data = data[part]  # type: ignore[index]
            found.append(part)
    return found


def dotted(key: Sequence[str | int]) -> str:
    """A key for a person: "install[2].run"; places in arrays count from 1."""
    text = "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in key)
    return text.removeprefix(".")


def _keys_of(model: type[BaseModel], place: Sequence[str]) -> set[str]:
    """The keys of the table at a place, as files spell them."""
    for number, name in enumerate(place):
        for field_name, field in model.model_fields.items():
            if name == (field.alias or field_name):
                nested = list(_models_in(field.annotation))
                # In a table by free names the next part is such a name and no field.
                return set().union(*(_keys_of(one, place[number + 1 :]) for one in nested))
    return {field.alias or name for name, field in model.model_fields.items()}


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
