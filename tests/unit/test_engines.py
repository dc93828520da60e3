"""lab triage with each engine: what it prints, and what becomes of it when an engine fails."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from crashdump_analysis.comparison import DifferenceKind
from crashdump_analysis.engines.analysis_host import AnalysisHost
from crashdump_analysis.report import SCHEMA
from crashdump_analysis.triage.command import main
from lab.cli import main as lab
from tests.support import fake_engine
from tests.support.synthetic_dump import (
    DRIVER_BASE,
    FAULT_RIP,
    FAULT_RSP,
    NT_BASE,
    TIMESTAMP,
    TRAP_FRAME,
    crashed_machine,
)


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    return crashed_machine().write(tmp_path / "MEMORY.DMP")


def module(name: str, image: str, base: int, size: int) -> dict[str, object]:
    return {
        **{"name": name, "image": image, "base": base, "size": size, "timestamp": TIMESTAMP},
        **{"checksum": 0, "unloaded": False, "symbols": "pdb", "symbols_mismatch": False},
        **{"symbol_file": f"C:\\symbols\\{name}.pdb", "loaded_image": image, "flags": 0},
    }


def engine_frame(instruction: int, child_sp: int) -> dict[str, object]:
    return {
        **{"instruction": instruction, "return": 0, "child_sp": child_sp, "frame": 0},
        **{"inline": False, "module": None, "function": None, "displacement": None},
        **{"file": None, "line": None},
    }


REPORT: dict[str, object] = {
    "engine": {"name": "dbgeng", "version": "1.2.3.4"},
    "bug_check": {"code": 0xD1, "parameters": [0xFFFF8000DEAD0000, 2, 0, FAULT_RIP]},
    "system": {
        **{"machine": 0x8664, "build": 19041, "build_text": "", "checked": False},
        **{"processors": 1, "time": 1721362140, "uptime": 90},
    },
    "modules": [
        module("nt", "ntoskrnl.exe", NT_BASE, 0x3000),
        module("victim", "victim.sys", DRIVER_BASE, 0x3000),
    ],
    "registers": {"rip": NT_BASE + 0x1000, "rsp": TRAP_FRAME - 8, "efl": 0x246, "cs": 0x10},
    "stack": [
        engine_frame(NT_BASE + 0x1000, TRAP_FRAME - 8),
        engine_frame(FAULT_RIP, FAULT_RSP),
    ],
    "warnings": ["a warning of the engine's"],
}
OPENED = {"result": {"dump_class": "active", "output": ""}}


def run(capsys: pytest.CaptureFixture[str], *arguments: object, **keywords: Any) -> Any:
    """Exit code, what was printed as JSON (or text), and stderr."""
    status = main(list(map(str, arguments)), **keywords)
    printed = capsys.readouterr()
    if "--json" not in arguments:
        return status, printed.out, printed.err
    reports = [json.loads(line) for line in printed.out.splitlines()]
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    for one in reports:
        validator.validate(one)
    return status, reports, printed.err


def test_pykds_answer_becomes_the_same_report(
    dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    symbols = {"symbols_mismatch": False, "symbol_file": "C:\\symbols\\victim.pdb"}
    symbols["loaded_image"] = "C:\\symbols\\victim.sys"
    names = {"module": "victim", "function": "Fault", "displacement": 15, "file": "C:\\v.c"}
    places = [
        # Of a kernel without symbols the engine knows exports, none of which is the function.
        {**names, **symbols, "function": "SomeExport", "line": 1, "symbols": "export"},
        {**names, **symbols, "line": 12, "symbols": "pdb"},
    ]
    fake_engine.install(
        tmp_path,
        monkeypatch,
        open=OPENED,
        report={"result": REPORT},
        lookup={"result": {"places": places}},
    )
    status, (report,), _ = run(capsys, dump, "--json", "--engine", "pykd")
    assert status == 0
    assert report["engine"] == "pykd"
    assert (report["dump"]["type"], report["dump"]["path"]) == (6, str(dump))
    assert report["bug_check"]["name"] == "DRIVER_IRQL_NOT_LESS_OR_EQUAL"
    assert report["bug_check"]["parameters"][3]["value"] == FAULT_RIP
    assert [one["name"] for one in report["modules"]] == ["nt", "victim"]
    assert report["modules"][1]["symbols"] == "C:\\symbols\\victim.pdb"
    first, second = report["stack"]
    assert (first["module"], first["function"]) == ("nt", None)
    assert (second["function"], second["file"], second["line"]) == ("Fault", "C:\\v.c", 12)
    assert second["stack_pointer"] == FAULT_RSP
    assert report["culprit"]["module"] == "victim"
    assert report["bucket"]["id"] == "AV_victim!Fault"
    assert "a warning of the engine's" in report["warnings"]
    assert any("no !analyze" in one for one in report["warnings"])
    assert report["analyze"] is None


def test_a_pdb_that_was_found_by_its_name_alone_names_nothing(
    dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a triage dump without the image the engine takes whatever is called so."""
    place = {
        **{"module": "victim", "function": "Wrong", "displacement": 1, "file": "x.c", "line": 1},
        **{"symbols": "pdb", "symbols_mismatch": False, "symbol_file": "C:\\victim.pdb"},
        "loaded_image": "victim.sys",
    }
    answers = {"open": OPENED, "report": {"result": REPORT}}
    fake_engine.install(
        tmp_path, monkeypatch, **answers, lookup={"result": {"places": [place, place]}}
    )
    _, (report,), _ = run(capsys, dump, "--json", "--engine", "pykd")
    assert [one["function"] for one in report["stack"]] == [None, None]
    assert report["modules"][1]["symbols"] is None
    assert any("found by their name alone" in one for one in report["warnings"])


def test_analyze_is_taken_in_where_the_host_has_it(
    dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "FAILURE_BUCKET_ID:  AV_victim!Fault\nIMAGE_NAME:  victim.sys\n"
    fake_engine.install(
        tmp_path,
        monkeypatch,
        open=OPENED,
        report={"result": REPORT},
        command={"result": {"output": text, "hresult": 0}},
    )
    status, (report,), _ = run(capsys, dump, "--json", "--engine", "both")
    assert status == 0
    assert report["analyze"]["bucket_id"] == "AV_victim!Fault"
    assert report["analyze"]["text"] == text
    status, text, _ = run(capsys, dump, "--engine", "both")
    assert "!ANALYZE AV_victim!Fault" in text
    assert "image victim.sys" in text


def test_both_tells_what_differs(
    dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = {**REPORT, "bug_check": {"code": 0xD1, "parameters": [1, 2, 0, FAULT_RIP]}}
    fake_engine.install(tmp_path, monkeypatch, open=OPENED, report={"result": changed})
    status, (report,), _ = run(capsys, dump, "--json", "--engine", "both")
    assert status == 0
    assert report["engine"] == "portable"
    kinds = {one["kind"] for one in report["comparison"]["differences"]}
    # The engine was given no memory, so it has no fault either.
    assert kinds >= {DifferenceKind.BUG_CHECK_PARAMETERS, DifferenceKind.FAULT}


@pytest.mark.parametrize("engine", ["pykd", "both"])
@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"open": "killed"}, "wine: out of memory"),
        ({"open": OPENED, "report": "rubbish"}, "the worker wrote b'rubbish"),
        ({"open": OPENED, "report": fake_engine.error("engine-failed", "no stack")}, "no stack"),
        ({"open": fake_engine.error("dump-refused", "HRESULT 0x80070570")}, "0x80070570"),
    ],
    ids=["killed", "rubbish", "failed", "refused"],
)
def test_where_the_engine_fails_the_portable_report_is_given(
    dump: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    engine: str,
    answers: dict[str, object],
    words: str,
) -> None:
    starts = fake_engine.install(tmp_path, monkeypatch, **answers)
    status, reports, told = run(capsys, dump, dump, "--json", "--engine", engine)
    assert status == 3
    assert told.count(words) == 2
    assert [one["culprit"]["module"] for one in reports] == ["victim", "victim"]
    assert {one["engine"] for one in reports} == {"portable"}
    refused_by_it = "refused" in str(answers) or "engine-failed" in str(answers)
    for one in reports:
        if engine == "pykd":
            assert any(words in warning for warning in one["warnings"])
        else:
            kinds = [each["kind"] for each in one["comparison"]["differences"]]
            assert kinds == ([DifferenceKind.REFUSED] if refused_by_it else [])
            assert one["comparison"]["failure"]
    # One worker for both dumps; one that died is started again.
    assert len(starts.read_text().splitlines()) == (1 if refused_by_it else 2)


def test_a_dump_that_only_microsofts_engine_takes(
    dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with dump.open("r+b") as file:
        file.seek(0xF98)
        file.write(b"\x63\0\0\0")  # a dump type of the future
    fake_engine.install(tmp_path, monkeypatch, open=OPENED, report={"result": REPORT})
    assert run(capsys, dump)[0] == 3
    status, (report,), told = run(capsys, dump, "--json", "--engine", "both")
    assert status == 3
    assert "a dump type that is supported" in told
    assert (report["engine"], report["dump"]["type"]) == ("pykd", 0x63)
    (difference,) = report["comparison"]["differences"]
    assert difference["kind"] == DifferenceKind.REFUSED
    assert "a dump type that is supported" in difference["portable"]
    status, (report,), told = run(capsys, dump, "--json", "--engine", "pykd")
    assert (status, report["engine"], told) == (0, "pykd", "")


@pytest.mark.parametrize("engine", ["pykd", "both"])
def test_what_is_no_dump_is_refused_by_every_engine(
    dump: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    engine: str,
) -> None:
    fake_engine.install(tmp_path, monkeypatch, open=OPENED, report={"result": REPORT})
    (tmp_path / "empty.dmp").touch()
    (tmp_path / "core.dmp").write_bytes(b"\x7fELF".ljust(0x3000))
    missing = tmp_path / "missing.dmp"
    paths = [tmp_path / "empty.dmp", tmp_path / "core.dmp", missing, dump]
    status, reports, told = run(capsys, *paths, "--json", "--engine", engine)
    assert status == 3
    assert len(reports) == 1
    for words in ("an empty file", "an ELF core", "nothing there"):
        assert words in told


def test_an_engine_that_is_not_there_is_looked_for_once(
    dump: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LAB_PYKD_PYTHON", "/nowhere/python")
    status, reports, told = run(capsys, dump, dump, "--json", "--engine", "both")
    assert status == 3
    assert told.count("/nowhere/python cannot be started") == 2
    assert told.count(f"refused: {dump}: engine-missing") == 2
    assert [one["culprit"]["module"] for one in reports] == ["victim", "victim"]
    assert all("engine-missing" in one["comparison"]["failure"] for one in reports)


def test_an_engine_that_was_never_set_up_names_the_command(
    dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LAB_PYKD_CACHE", str(tmp_path / "none"))
    monkeypatch.delenv("LAB_PYKD_PYTHON", raising=False)
    status, _, told = run(capsys, dump, "--engine", "pykd")
    assert status == 3
    assert "LAB_ACCEPT_DEBUGGER_TERMS=1 lab pykd setup" in told
    assert "docs/pykd.md" in told


@pytest.mark.parametrize("engine", ["pykd", "both"])
def test_an_analysis_host_that_does_not_answer(
    dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], engine: str
) -> None:
    (tmp_path / "known_hosts").touch()
    host = AnalysisHost("127.0.0.1", tmp_path / "known_hosts", port=1)
    status, (report,), told = run(
        capsys, dump, "--json", "--engine", engine, analysis_host=lambda: host
    )
    assert status == 3
    assert "host-unreachable: analysis host 127.0.0.1:1" in told
    assert report["culprit"]["module"] == "victim"


def test_lab_toml_names_the_analysis_host(
    dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "known_hosts").touch()
    settings = 'schema = 1\n[analysis_host]\nhost = "127.0.0.1"\nport = 1\nuser = "triage"\n'
    (tmp_path / "lab.toml").write_text(settings + 'known_hosts = "known_hosts"\n')
    monkeypatch.chdir(tmp_path)
    assert lab(["triage", str(dump), "--engine", "pykd"]) == 3
    assert "host-unreachable: analysis host triage@127.0.0.1:1" in capsys.readouterr().err
    assert lab(["pykd", "status"]) == 2
    assert "not ready: analysis host triage@127.0.0.1:1" in capsys.readouterr().err
    (tmp_path / "lab.toml").write_text(settings + 'pasword = "x"\n')
    assert lab(["triage", str(dump), "--engine", "pykd"]) == 3
    assert "did you mean 'password'" in capsys.readouterr().err
    assert lab(["triage", str(dump)]) == 0  # which needs no lab


def test_archives_and_folders(
    dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_engine.install(tmp_path, monkeypatch, open=OPENED, report={"result": REPORT})
    folder = tmp_path / "dumps"
    (folder / "deep").mkdir(parents=True)
    packed = folder / "deep" / "MEMORY.DMP.gz"
    packed.write_bytes(gzip.compress(dump.read_bytes()))
    with zipfile.ZipFile(folder / "two.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a.dmp", "b.dmp"):
            archive.write(dump, name)
    status, reports, _ = run(capsys, packed, folder / "two.zip", "--json", "--engine", "pykd")
    assert status == 0
    assert [Path(one["dump"]["path"]).name for one in reports] == [
        "MEMORY.DMP.gz",
        "two.zip!a.dmp",
        "two.zip!b.dmp",
    ]
    for engine in ("portable", "pykd"):
        status = main([str(folder), "--json", "--engine", engine])
        grouped = json.loads(capsys.readouterr().out)
        assert (status, grouped["reported"], grouped["refused"]) == (0, 3, [])
    status, reports, _ = run(capsys, folder, "--json", "--engine", "both")
    assert (status, len(reports)) == (0, 3)
    (folder / "core.dmp").write_bytes(b"\x7fELF".ljust(0x3000))
    assert main([str(folder)]) == 3
    assert "an ELF core" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    for engine in ("portable", "pykd", "both"):
        assert main([str(tmp_path / "empty"), str(dump), "--engine", engine]) == 3
        printed = capsys.readouterr()
        assert "no dump below this folder" in printed.err
        assert "CULPRIT  victim" in printed.out


def test_owner_rules_of_a_lab(
    dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = tmp_path / "ours.ini"
    rules.write_text("victim=ignore\n")
    status, (report,), _ = run(capsys, dump, "--json", "--owners", rules)
    assert status == 0
    assert report["culprit"]["module"] == "nt"
    (tmp_path / "wrong.ini").write_text("victim\n")
    status, _, told = run(capsys, dump, "--owners", tmp_path / "wrong.ini")
    assert status == 2
    assert "wrong.ini line 1" in told
    status, _, told = run(capsys, dump, "--owners", tmp_path / "none.ini")
    assert status == 2
    assert "none.ini" in told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "PATH"),
        (["a.dmp", "--engine", "windbg"], "invalid choice: 'windbg'"),
        (["a.dmp", "--color"], "unrecognized arguments"),
    ],
)
def test_wrong_usage(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_help_says_what_engines_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        lab(["triage", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for word in ("portable", "pykd", "both", "analysis_host", "exit code", "examples:"):
        assert word in text


def test_a_reader_that_has_enough_ends_the_command(dump: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "crashdump_analysis.triage", *[str(dump)] * 50],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 3


def test_what_takes_long_is_told(
    dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe that nobody writes to is no dump file; an engine that is slow is what takes long."""
    fake_engine.install(tmp_path, monkeypatch, open="killed")
    program = Path(os.environ["LAB_PYKD_PYTHON"])
    os.mkfifo(go := tmp_path / "go")
    program.write_text(
        program.read_text().replace("import json,", f"open({str(go)!r}).read()\nimport json,")
    )
    with subprocess.Popen(
        [sys.executable, "-m", "crashdump_analysis.triage", str(dump), "--engine", "pykd"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        told = process.stderr.readline()
        go.write_text("")
        process.stderr.read()
    assert process.returncode == 3
    assert f"{dump}: Microsoft's engine opens it, on this machine (2 s)" in told
