"""Families against labelled crashes: bugs of one driver, in several builds, by several bug checks.

A label is the bug; that two crashes are one bug is a fact of how they were made. Precision: of the
pairs that a key joins, how many are one bug. Recall: of the pairs of one bug, how many it joins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pytest

from crashdump_analysis import Report, triage
from images.test_kernel.build import BUILT
from tests.integration.conftest import CrashFactory
from tests.support.faces import FACES, shown_as
from tests.support.sensor import KINDS, built

BUGS = ("killer", "freed", "exception")
"""Those that fault, and so can be seen by each of the faces."""
ALIKE = ("a-o2", "a-shifted", "b-o2")
"""Builds of the same optimisation, at other addresses or with another function changed."""


@dataclass(frozen=True)
class Labelled:
    """A crash of a known bug in a known build, with and without names."""

    bug: str
    variant: str
    face: int
    report: Report
    without_names: Report


@dataclass(frozen=True)
class Score:
    """How well a key tells bugs apart, and puts one together."""

    precision: float
    recall: float

    @property
    def is_good(self) -> bool:
        """What a family must reach: no bug is taken for another, and few are split."""
        return self.precision == 1.0 and self.recall >= 0.9


def score(crashes: Iterable[Labelled], key: Callable[[Labelled], str]) -> Score:
    """Precision and recall of a key over all pairs of crashes."""
    joined = right = same = 0
    for one, other in combinations(crashes, 2):
        together, is_same = key(one) == key(other), one.bug == other.bug
        joined += together
        same += is_same
        right += together and is_same
    return Score(right / joined if joined else 1.0, right / same)


@pytest.fixture(scope="session")
def labelled_cache() -> dict[tuple[str, str], list[Labelled]]:
    """What was made already, for all tests of this process."""
    return {}


@pytest.fixture
def labelled(
    crash_of: CrashFactory,
    tmp_path: Path,
    labelled_cache: dict[tuple[str, str], list[Labelled]],
) -> list[Labelled]:
    """Every bug in each of its builds by each face: at least 3 by 4 by 3."""
    for bug in BUGS:
        for variant in KINDS[bug].variants:
            if (bug, variant) in labelled_cache:
                continue
            folders = [BUILT, built(variant)]
            dump = crash_of(bug, variant).dump
            report = triage(dump, symbols=folders)
            crashes = []
            for face in FACES:
                path = shown_as(dump, report, face, tmp_path / "face.dmp")
                crashes.append(
                    Labelled(bug, variant, face, triage(path, symbols=folders), triage(path))
                )
            labelled_cache[bug, variant] = crashes
    return [one for crashes in labelled_cache.values() for one in crashes]


@pytest.mark.timeout(900)  # the first to ask makes every crash there is
def test_families_are_one_bug_each(labelled: list[Labelled]) -> None:
    assert len(labelled) >= 3 * 4 * 3
    for one in labelled:
        assert one.report.bug_check.code == one.face
        assert (one.report.culprit.module, one.report.culprit.confidence) == ("sensor", "high")
        assert one.report.bucket.basis == "functions"
    found = score(labelled, lambda one: one.report.bucket.family)
    assert found.is_good, found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("key", ["module", "bug check", "bucket", "offset"])
def test_simpler_keys_fail_the_same_test(labelled: list[Labelled], key: str) -> None:
    keys: dict[str, Callable[[Labelled], str]] = {
        "module": lambda one: one.report.culprit.module or "",
        "bug check": lambda one: f"{one.report.culprit.module} {one.face}",
        "bucket": lambda one: one.report.bucket.id,
        "offset": lambda one: f"{one.report.context.module}+{one.report.context.offset}",
    }
    found = score(labelled, keys[key])
    assert not found.is_good, found
    if key == "module":
        assert (found.precision < 0.5, found.recall) == (True, 1.0)


@pytest.mark.timeout(900)
def test_without_names_shapes_join_builds_of_like_code(labelled: list[Labelled]) -> None:
    """Never two bugs; of one bug those builds that the compiler made alike, so fewer than names."""
    assert {one.without_names.bucket.basis for one in labelled} == {"shapes"}

    def family(one: Labelled) -> str:
        return one.without_names.bucket.family

    found = score(labelled, family)
    offsets = score(labelled, lambda one: f"{one.variant} {one.report.context.offset}")
    assert found.precision == 1.0
    assert found.recall > 2 * offsets.recall
    alike = [one for one in labelled if one.variant in ALIKE]
    assert score(alike, family) == Score(1.0, 1.0)
