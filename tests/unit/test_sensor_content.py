"""The sensor's content format and its validator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.sensor import content, validator
from examples.sensor.content import (
    ANY,
    CONTENT_DIRECTORY,
    CRITERIA_COUNT,
    HEADER,
    PROCESS_FIELDS,
    Content,
    ContentError,
    Criterion,
    Instance,
    Operator,
    TemplateType,
    decode,
    example_files,
)

UINT32 = st.integers(0, 2**32 - 1)
NUMBERS = st.builds(Criterion, st.just(Operator.NUMBER), st.integers(0, 2**64 - 1))
TEXTS = st.builds(
    Criterion, st.sampled_from([Operator.EQUALS, Operator.PREFIX]), st.text(max_size=20)
)
CRITERIA = st.one_of(st.just(ANY), NUMBERS, TEXTS)


@st.composite
def any_content(draw: st.DrawFn) -> Content:
    """Content of any template type, decodable but not always meaningful."""
    template_type = draw(st.sampled_from(TemplateType))
    least, most = CRITERIA_COUNT[template_type]
    criteria = st.lists(CRITERIA, min_size=least, max_size=most).map(tuple)
    instances = st.lists(st.builds(Instance, UINT32, criteria), min_size=1, max_size=5).map(tuple)
    return Content(template_type, draw(UINT32), draw(instances))


@st.composite
def valid_process_content(draw: st.DrawFn) -> Content:
    """PROCESS content whose criteria suit the fields that are defined, the 21st included."""
    fields = [
        st.one_of(st.just(ANY), NUMBERS if kind is int else TEXTS) for _, kind in PROCESS_FIELDS
    ]
    instances = st.lists(st.builds(Instance, UINT32, st.tuples(*fields)), min_size=1, max_size=3)
    return Content(TemplateType.PROCESS, draw(UINT32), tuple(draw(instances)))


@given(any_content())
def test_what_is_encoded_is_decoded(original: Content) -> None:
    assert decode(original.encode()) == original


@given(any_content(), UINT32)
def test_a_false_length_is_kept_and_not_judged(original: Content, length: int) -> None:
    first = original.instances[0]
    changed = replace(original, instances=(replace(first, length=length), *original.instances[1:]))
    assert decode(changed.encode()).encode() == changed.encode()


@given(any_content(), st.data())
def test_content_cut_anywhere_is_refused(original: Content, data: st.DataObject) -> None:
    encoded = original.encode()
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(ContentError, match="truncated"):
        decode(encoded[:cut])


@given(any_content(), st.data())
def test_content_cut_anywhere_is_refused_even_if_the_header_is_mended(
    original: Content, data: st.DataObject
) -> None:
    encoded = original.encode()
    cut = data.draw(st.integers(HEADER.size, len(encoded) - 1))
    mended = encoded[:20] + cut.to_bytes(4, "little") + encoded[24:cut]
    with pytest.raises(ContentError, match=r"truncated|its value ends"):
        decode(mended)


@given(any_content(), st.binary(min_size=1, max_size=40))
def test_bytes_behind_the_last_instance_are_refused(original: Content, more: bytes) -> None:
    encoded = original.encode() + more
    mended = encoded[:20] + len(encoded).to_bytes(4, "little") + encoded[24:]
    with pytest.raises(ContentError, match="behind the last instance"):
        decode(mended)


@given(st.binary(max_size=200))
def test_noise_is_refused_or_decodes_to_the_same_bytes_and_nothing_else(noise: bytes) -> None:
    header = HEADER.pack(content.MAGIC, 1, 1, content.CHANNEL, 1, 1, HEADER.size + len(noise))
    for data in (noise, header + noise):
        try:
            decoded = decode(data)
        except ContentError:
            continue
        # The reserved byte of a criterion is not read: everything else comes back.
        assert len(decoded.encode()) == len(data)


@given(valid_process_content())
def test_the_validator_accepts_any_criterion_for_the_21st_field(original: Content) -> None:
    assert validator.validate(original.encode()) == original


@pytest.mark.parametrize("path", sorted(example_files()))
def test_checked_in_content_is_what_the_encoder_makes(path: str) -> None:
    assert (CONTENT_DIRECTORY / path).read_bytes() == example_files()[path]


def example(kind: str) -> Path:
    (path,) = (CONTENT_DIRECTORY / kind).iterdir()
    return path


@pytest.mark.parametrize("kind", ["benign", "killer", "freed", "exception", "hang"])
def test_the_validator_accepts(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert validator.main([str(example(kind))]) == 0
    assert ": valid: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("truncated", "the header says 536 bytes, the file has 357"), ("wrong_magic", "wrong magic")],
)
def test_the_validator_refuses(kind: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert validator.main([str(example(kind))]) == 1
    assert reason in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["benign", "killer", "freed", "exception", "hang"])
def test_the_validator_refuses_a_file_truncated_at_every_byte(kind: str) -> None:
    data = example(kind).read_bytes()
    for length in range(len(data)):
        with pytest.raises(ContentError):
            validator.validate(data[:length])


def test_a_missing_file_has_its_own_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert validator.main([str(tmp_path / "none.sys"), str(example("truncated"))]) == 2
    assert "cannot be read: No such file" in capsys.readouterr().out


def test_killer_differs_from_benign_in_one_instance_with_a_21st_criterion() -> None:
    benign = decode(example("benign").read_bytes())
    killer = decode(example("killer").read_bytes())
    assert all(instance.criteria[20] == ANY for instance in benign.instances)
    assert any(instance.criteria[19] != ANY for instance in benign.instances)
    (extra,) = killer.instances[len(benign.instances) :]
    assert killer.instances[: len(benign.instances)] == benign.instances
    # Nothing before the 21st may stop the evaluation: every process reaches it.
    assert extra.criteria[:20] == (ANY,) * 20
    assert extra.criteria[20].operator is Operator.PREFIX


def test_each_kind_supersedes_those_before_it() -> None:
    names = [Path(path).name for path in example_files()]
    assert names == sorted(names)
    assert all(name.startswith("C-00000291-") for name in names)


@pytest.mark.parametrize(
    ("instance", "reason"),
    [
        (Instance(7, (ANY,) * 7 + (Criterion(Operator.NUMBER, 1),)), r"field 8 \(image path\)"),
        (Instance(7, (Criterion(Operator.EQUALS, "a"),)), r"field 1 \(event number\)"),
    ],
)
def test_the_validator_refuses_an_operator_that_does_not_suit_the_field(
    instance: Instance, reason: str
) -> None:
    with pytest.raises(ContentError, match=reason):
        validator.validate(Content(TemplateType.PROCESS, 1, (instance,)).encode())


@pytest.mark.parametrize("buckets", [511, 4097])
def test_the_validator_refuses_a_number_of_buckets_the_driver_refuses(buckets: int) -> None:
    instance = Instance(1, (Criterion(Operator.NUMBER, buckets), ANY))
    with pytest.raises(ContentError, match="buckets"):
        validator.validate(Content(TemplateType.RATE, 1, (instance,)).encode())


@pytest.mark.parametrize(
    "criterion",
    [
        Criterion(Operator.WILDCARD, "text"),
        Criterion(Operator.EQUALS, 1),
        Criterion(Operator.NUMBER, 2**64),
        Criterion(Operator.NUMBER, -1),
        Criterion(Operator.PREFIX, "x" * 32768),
    ],
)
def test_a_criterion_the_format_cannot_hold_is_not_encoded(criterion: Criterion) -> None:
    with pytest.raises(ContentError):
        criterion.encode()
