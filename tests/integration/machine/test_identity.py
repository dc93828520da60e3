"""Whether what runs is what was given, and whether changes behind the lab's back are found."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from images.test_kernel.build import build_image
from lab.candidate import Candidate, ContentSet, load_content, sha256
from lab.identity import check_gone, check_identity
from lab.machine import Machine
from lab.outcome import CandidateError, Outcome, TamperedError
from tests.integration.machine.conftest import CandidateMaker, Rig, RigFactory
from tests.support.sensor import (
    CONTENT_FOLDER,
    SENSOR,
    SENSOR_PATH,
    built,
    content_files,
    sensor_driver,
)

BENIGN = "C-00000291-00000031.sys"


@pytest.fixture(scope="session")
def disk_with_sensor(lab_folder: Path) -> Path:
    """The disk of a machine that has the sensor and benign content already."""
    return build_image(
        lab_folder / "sensor.qcow2",
        drivers=[sensor_driver("a-o2")],
        files=content_files("benign"),
    )


@pytest.fixture
def rig(rig_of: RigFactory, disk_with_sensor: Path) -> Rig:
    """A running machine with the sensor."""
    return rig_of(disk_with_sensor)


@pytest.fixture(scope="session")
def benign() -> ContentSet:
    """The content that the machine has."""
    return load_content(SENSOR / "content/benign")


def with_contract(machine: Machine, **changes: object) -> Machine:
    """The machine as another contract describes it."""
    contract = machine.contract.model_copy(update=changes)
    image = dataclasses.replace(machine.image, contract=contract)
    return Machine(machine._backend, machine._lease, image, machine.signals, machine.folder)


def refusal(rig: Rig, candidate: Candidate, content: ContentSet | None) -> str:
    """What is said to differ."""
    with pytest.raises(TamperedError) as error:
        check_identity(rig.machine, candidate, content)
    assert error.value.outcome is Outcome.TAMPERED
    return str(error.value)


def test_what_was_given_runs(rig: Rig, inf_candidate: Candidate, benign: ContentSet) -> None:
    driver = sha256(built("a-o2") / "sensor.sys")
    for _ in range(2):  # from a dump, and from memory as the machine runs
        found = check_identity(rig.machine, inf_candidate, benign)
        assert (found.driver, found.boot) == (driver, rig.machine.boot)
        assert found.content == {BENIGN: benign.files[0].sha256}
        assert not found.loaded_is_weak
        assert found.loaded.startswith("sensor.sys at 0xffff")
        assert found.loaded.endswith("of read-only sections in memory are the file's")
        assert found.listing == "from the disk as a power cut now would leave it"
    assert list(rig.machine.folder.glob("*.dmp")) == []


def test_only_asked_for_where_memory_is_not_seen(rig: Rig, inf_candidate: Candidate) -> None:
    machine = with_contract(rig.machine, capabilities=["guest-exec", "guest-files"])
    found = check_identity(machine, inf_candidate, None)
    assert found.loaded_is_weak
    assert "driverquery lists" in found.loaded
    assert "could not be compared" in found.loaded
    assert found.content is None
    assert rig.machine.guest.run(r"C:\Windows\System32\sc.exe", ["stop", "sensor"]).exit_code == 0
    with pytest.raises(TamperedError, match="expected in driverquery's list"):
        check_identity(machine, inf_candidate, None)


def test_driver_replaced_on_the_disk(rig: Rig, inf_candidate: Candidate) -> None:
    other = built("b-o2") / "sensor.sys"
    rig.machine.guest.write_file(SENSOR_PATH, other.read_bytes())
    said = refusal(rig, inf_candidate, None)
    assert f"{SENSOR_PATH}: expected sha256 {sha256(inf_candidate.image)}" in said
    assert f"found sha256 {sha256(other)}" in said
    assert "in memory" not in said


@pytest.mark.parametrize("variant", ["b-o2", "a-shifted", "a-o0"])
def test_loaded_image_is_not_the_file(rig: Rig, candidates: CandidateMaker, variant: str) -> None:
    """The file is the candidate's; what runs is still the version before."""
    data = (built(variant) / "sensor.sys").read_bytes()
    candidate = candidates.make("candidate.toml", driver=data)
    rig.machine.guest.write_file(SENSOR_PATH, data)
    said = refusal(rig, candidate, None)
    assert SENSOR_PATH not in said
    assert "sensor.sys at 0xffff" in said
    rig.steps(candidate).restart("to load it")
    assert not check_identity(rig.machine, candidate, None).loaded_is_weak


def test_driver_that_is_not_loaded(rig: Rig, inf_candidate: Candidate) -> None:
    assert rig.machine.guest.run(r"C:\Windows\System32\sc.exe", ["stop", "sensor"]).exit_code == 0
    said = refusal(rig, inf_candidate, None)
    assert "sensor.sys: expected in the running kernel, found only ntoskrnl.exe" in said


def test_driver_file_that_is_not_there(rig: Rig, candidates: CandidateMaker) -> None:
    candidate = candidates.make("candidate.toml", (r"drivers\sensor.sys'", r"drivers\gone.sys'"))
    assert r"gone.sys: expected sha256" in refusal(rig, candidate, None)


def other_bytes(rig: Rig) -> None:
    rig.machine.guest.write_file(rf"{CONTENT_FOLDER}\{BENIGN}", b"\xaa" * 40)


def one_more(rig: Rig) -> None:
    data = (SENSOR / "content/wrong_magic/C-00000291-00000037.sys").read_bytes()
    rig.machine.guest.write_file(rf"{CONTENT_FOLDER}\C-00000291-00000037.sys", data)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(other_bytes, rf"{BENIGN}: expected sha256 2d40295075c90c66", id="changed"),
        pytest.param(
            one_more, r"C-00000291-00000037.sys: expected no such file, found sha256", id="added"
        ),
    ],
)
def test_content_changed_behind_our_back(
    rig: Rig,
    inf_candidate: Candidate,
    benign: ContentSet,
    change: Callable[[Rig], None],
    said: str,
) -> None:
    check_identity(rig.machine, inf_candidate, benign)
    change(rig)
    assert said in refusal(rig, inf_candidate, benign)


def test_content_that_was_taken_away(
    rig: Rig, inf_candidate: Candidate, benign: ContentSet
) -> None:
    rig.steps(inf_candidate).remove_content()
    said = refusal(rig, inf_candidate, benign)
    assert f"{BENIGN}: expected sha256 2d40295075c90c66" in said
    assert "found no such file" in said


def test_what_an_uninstall_leaves_is_named(rig: Rig, inf_candidate: Candidate) -> None:
    with pytest.raises(CandidateError) as error:
        check_gone(rig.machine, inf_candidate)
    for said in ("sensor.sys is loaded at 0xffff", f"{SENSOR_PATH} is there", f"{BENIGN} is there"):
        assert said in str(error.value)
    machine = with_contract(rig.machine, capabilities=["guest-exec", "guest-files"])
    with pytest.raises(CandidateError, match=r"sensor\.sys is loaded;"):
        check_gone(machine, inf_candidate)
