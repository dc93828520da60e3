"""The fuzzer's seeds open, its target notices what must not happen, its changes reach far."""

from __future__ import annotations

from pathlib import Path

import pytest

import fuzz.target
from crashdump_analysis import DumpError, triage
from fuzz.mutate import mutated
from fuzz.seeds import write_seeds
from fuzz.target import TooSlowError, check


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    write_seeds(folder)
    return folder


def test_the_seeds_are_whole(seeds: Path, tmp_path: Path) -> None:
    refused = set()
    for seed in seeds.iterdir():
        check(seed.read_bytes(), tmp_path)
        try:
            triage(seed)
        except DumpError:
            refused.add(seed.name)
    assert refused == {"32-bit", "image", "pdb", "zip", "stored"}  # the archives hold two


def test_another_exception_is_a_finding(
    seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise IndexError("a mistake")

    monkeypatch.setattr(fuzz.target, "triage", fails)
    with pytest.raises(IndexError):
        check((seeds / "type-1").read_bytes(), tmp_path)


def test_a_slow_input_is_a_finding(
    seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz.target, "SECONDS", 0.0)
    with pytest.raises(TooSlowError, match="bytes took"):
        check((seeds / "pdb").read_bytes(), tmp_path)


def test_changes_keep_within_the_size_and_change_something(seeds: Path) -> None:
    data = (seeds / "triage-50").read_bytes()

    def reversed_bytes(some: bytes, most: int) -> bytes:
        return some[::-1][:most]

    changes = [mutated(data, len(data), seed, reversed_bytes) for seed in range(100)]
    assert sum(one != data for one in changes) > 90
    assert all(len(one) <= len(data) for one in changes)
    assert any(one[0x2000:0x2080] != data[0x2000:0x2080] for one in changes)
    assert mutated(b"", 10, 1, lambda _, most: b"x" * most) == b"x" * 10
