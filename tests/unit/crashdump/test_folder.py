"""A folder of dumps: families, counts, times, builds, and what was refused."""

from __future__ import annotations

import gzip
import json
import os
import signal
import struct
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jsonschema
import pytest

from crashdump_analysis import DumpError, Report, triage
from crashdump_analysis.triage.folder import SCHEMA, dumps_in, triage_folder
from tests.support.synthetic_dump import (
    DRIVER_BASE,
    ENTRY,
    FAULT,
    FAULT_RIP,
    FAULT_RSP,
    FILETIME,
    RETURN_TO_ENTRY,
    crashed_machine,
    pe_image,
)

DAY = 24 * 3600 * 10_000_000  # in 100 ns
START = datetime(1601, 1, 1, tzinfo=UTC) + timedelta(microseconds=FILETIME // 10)


def dump(code: int, *, day: int = 0, timestamp: int = 0x669A0000) -> bytes:
    """A crash in victim.sys of that build, so many days later."""
    parameters = (0xBAD, 2, 0, FAULT_RIP)
    machine = crashed_machine(code, parameters)
    machine.space.write(DRIVER_BASE, pe_image([FAULT, ENTRY], timestamp=timestamp))
    if code == 0xA0000001:
        machine.registers["rsp"] = FAULT_RSP + 0x1000
        machine.write_u64(FAULT_RSP + 0x1000, RETURN_TO_ENTRY, code, *parameters)
    data = bytearray(machine.dump())
    struct.pack_into("<Q", data, 0xFA8, FILETIME + day * DAY)
    return bytes(data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two families in three forms of file, with broken ones and others among them."""
    path = tmp_path / "dumps"
    (path / "older").mkdir(parents=True)
    (path / "a.dmp").write_bytes(dump(0xD1, day=3))
    (path / "older" / "b.DMP").write_bytes(dump(0x0A, day=1, timestamp=0x12345678))
    (path / "c.dmp.gz").write_bytes(gzip.compress(dump(0xD1, day=2)))
    with zipfile.ZipFile(path / "d.zip", "w") as archive:
        archive.writestr("x/1.dmp", dump(0xA0000001, day=5))
        archive.writestr("2.dmp", dump(0xA0000001, day=4))
        archive.writestr("readme.txt", "no dump")
    (path / "e").write_bytes(dump(0xE2))
    (path / "zero.dmp").write_bytes(bytes(0x3000))
    (path / "notes.txt").write_text("no dump")
    return path


def test_families_counts_times_and_builds(folder: Path) -> None:
    found = triage_folder(folder)
    first, second, third = found.most_frequent_first
    assert len(first.dumps) == 3
    assert first.module == "victim"
    assert first.builds == {"669A00004000": 2, "123456784000": 1}
    assert set(first.bug_checks) == {
        "0xD1 DRIVER_IRQL_NOT_LESS_OR_EQUAL",
        "0xA IRQL_NOT_LESS_OR_EQUAL",
    }
    assert first.first_seen == START + timedelta(days=1)
    assert first.last_seen == START + timedelta(days=3)
    assert second.family == f"victim raises 0xA0000001 ({0xBAD:x})"
    assert sorted(second.dumps) == [f"{folder}/d.zip!2.dmp", f"{folder}/d.zip!x/1.dmp"]
    assert (third.family, third.module, third.basis) == ("no culprit: 0xE2", None, "bug check")
    assert list(found.refused) == [f"{folder}/zero.dmp"]
    assert "zeros" in found.refused[f"{folder}/zero.dmp"]
    assert found.count == 6


def test_which_files_are_dumps(folder: Path) -> None:
    names = [path.removeprefix(f"{folder}/") for path in dumps_in(folder)]
    assert sorted(names) == sorted(
        ["a.dmp", "c.dmp.gz", "d.zip!2.dmp", "d.zip!x/1.dmp", "e", "older/b.DMP", "zero.dmp"]
    )
    with zipfile.ZipFile(folder / "empty.zip", "w") as archive:
        archive.writestr("readme.txt", "no dump")
    assert f"{folder}/empty.zip" in dumps_in(folder)
    assert f"{folder}/empty.zip" in triage_folder(folder).refused


def test_as_json_and_as_text(folder: Path) -> None:
    found = triage_folder(folder)
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(json.loads(found.to_json()))
    data = found.to_dict()
    assert [one["count"] for one in data["families"]] == [3, 2, 1]
    assert data["reported"] == 6
    assert data["refused"][0]["dump"].endswith("zero.dmp")
    text = found.to_text()
    assert text.startswith(f"{folder}: 6 dumps, 3 families")
    for words in ("3 x victim!", "669A00004000 (2), 123456784000 (1)", "1 refused", "zero.dmp"):
        assert words in text
    assert text.index("3 x victim") < text.index("2 x victim") < text.index("1 x no culprit")


def test_several_processes_find_the_same(tmp_path: Path) -> None:
    data = dump(0xD1)
    for number in range(40):
        (tmp_path / f"{number:02}.dmp").write_bytes(data if number % 8 else bytes(0x2000))
    done: list[int] = []
    several = triage_folder(tmp_path, processes=2, progress=done.append)
    assert several.to_dict() == triage_folder(tmp_path, processes=1).to_dict()
    assert (several.count, len(several.refused)) == (35, 5)
    assert done == list(range(1, 41))


def end_over_one(path: str) -> Report:
    """As the system does where memory runs out, or a mapped file becomes shorter."""
    if path.endswith("17.dmp"):
        os.kill(os.getpid(), signal.SIGKILL)
    return triage(path)


def test_a_process_that_ends_takes_one_dump_with_it(tmp_path: Path) -> None:
    data = dump(0xD1)
    for number in range(40):
        (tmp_path / f"{number:02}.dmp").write_bytes(data)
    found = triage_folder(tmp_path, end_over_one, processes=2)
    assert found.count == 39
    (refused,) = found.refused.items()
    assert refused[0].endswith("17.dmp")
    assert "was ended" in refused[1]


def test_reports_of_another_engine(folder: Path) -> None:
    asked = []

    def report_on(path: str) -> Report:
        asked.append(path)
        if path.endswith("a.dmp"):
            raise OSError("the engine is gone")
        return triage(path)

    found = triage_folder(folder, report_on, processes=1)
    assert asked == list(dumps_in(folder))
    assert found.refused[f"{folder}/a.dmp"] == "the engine is gone"


def test_owner_rules_and_what_is_wrong_with_them(folder: Path, tmp_path: Path) -> None:
    rules = tmp_path / "owners.ini"
    rules.write_text("victim=ignore\n")
    found = triage_folder(folder, owners=[str(rules)])
    assert found.to_dict() == triage_folder(folder, owners=str(rules)).to_dict()
    assert triage(folder / "a.dmp", owners=rules) == triage(folder / "a.dmp", owners=[rules])
    assert "victim" not in {one.module for one in found.groups.values()}
    assert found.count == 6
    broken = tmp_path / "broken.ini"
    broken.write_text("victim\n")
    with pytest.raises(DumpError, match="line 1"):
        triage_folder(folder, owners=[str(broken)])


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DumpError, match="a folder of dumps"):
        triage_folder(tmp_path / "missing")
    assert triage_folder(tmp_path).to_text().endswith(": 0 dumps, 0 families")


def test_pipes_are_not_waited_for_and_links_to_nothing_are_told(folder: Path) -> None:
    os.mkfifo(folder / "pipe.dmp")
    (folder / "gone.dmp").symlink_to("nowhere")
    found = triage_folder(folder)
    assert sorted(found.refused) == [f"{folder}/gone.dmp", f"{folder}/zero.dmp"]
