"""The debugger engine's worker, the Linux side of it, and what it says of real dumps."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from crashdump_analysis.engines import EngineError, wine, wine_setup
from crashdump_analysis.engines.pykd_worker import ERROR_KINDS
from crashdump_analysis.engines.wine import WineEngine
from crashdump_analysis.engines.worker import WORKER
from tests.oracle.dbgeng import judge

DUMPS = Path(__file__).parents[3] / "shared" / "dumps"


# -- Without an engine -------------------------------------------------------------------------


def test_worker_is_one_file_for_python_3_8_and_its_standard_library() -> None:
    tree = ast.parse(WORKER.read_text(), feature_version=(3, 8))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or "relative"]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= sys.stdlib_module_names


def test_worker_without_an_engine_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(WORKER), "--engine", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    error = json.loads(done.stdout)["error"]
    assert error["kind"] == "engine-missing"
    assert str(tmp_path) in error["message"]


def test_setup_refuses_until_the_terms_are_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(wine_setup.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv(wine_setup.TERMS_VARIABLE, raising=False)
    assert wine.main(["setup"]) == 3
    message = capsys.readouterr().err
    assert "terms" in message
    assert "docs/pykd.md" in message
    assert wine_setup.SETUP_COMMAND in message
    assert not (tmp_path / "cache").exists()


def test_engine_that_is_not_set_up_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(wine_setup.CACHE_VARIABLE, str(tmp_path))
    with pytest.raises(EngineError) as caught:
        WineEngine().open(tmp_path / "MEMORY.DMP")
    assert caught.value.kind == "engine-missing"
    assert wine_setup.SETUP_COMMAND in str(caught.value)


def test_symbol_paths_are_translated_and_servers_kept() -> None:
    assert wine.windows_symbol_path(["/a/b", Path("/c")]) == r"Z:\a\b;Z:\c"
    assert (
        wine.windows_symbol_path(["srv*/cache*https://symbols.example/x;cache*/d"])
        == r"srv*Z:\cache*https://symbols.example/x;cache*Z:\d"
    )
    assert wine.windows_symbol_path([]) == ""


def test_second_set_up_waits_for_the_first(tmp_path: Path) -> None:
    said: list[str] = []
    waiting, entered = threading.Event(), threading.Event()

    def say(text: str) -> None:
        said.append(text)
        waiting.set()

    def second() -> None:
        with wine_setup.locked(tmp_path / "lock", say):
            entered.set()

    thread = threading.Thread(target=second)
    with wine_setup.locked(tmp_path / "lock", said.append):
        thread.start()
        assert waiting.wait(10)
        assert not entered.is_set()
    thread.join(10)
    assert entered.is_set()
    assert said == ["another process is setting pykd up; waiting for it"]


@dataclass
class Peer:
    """Puts a script in Wine's place: the host's side of the pipes, without Microsoft's."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch

    def start(self, body: str, deadline: float = 60.0) -> WineEngine:
        for landmark in wine_setup._LANDMARKS:
            (self.folder / landmark).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / landmark).touch()
        (self.folder / "complete.json").write_text(json.dumps(wine_setup._contents()))
        peer = self.folder / "wine64"
        peer.write_text(
            f"#!{sys.executable}\nimport json, signal, sys\n"
            "def send(message): print(json.dumps(message), flush=True)\n" + body
        )
        peer.chmod(0o755)
        self.monkeypatch.setenv(wine_setup.CACHE_VARIABLE, str(self.folder))
        self.monkeypatch.setenv("PATH", str(self.folder), prepend=os.pathsep)
        return WineEngine(start_deadline=60, deadline=deadline)


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Peer:
    return Peer(tmp_path, monkeypatch)


HELLO = 'send({"hello": {"protocol": 2, "engine": {"name": "dbgeng", "version": "1.2.3.4"}}})\n'
ECHO = 'for line in sys.stdin: send({"id": json.loads(line)["id"], "result": json.loads(line)})\n'


def test_large_requests_and_answers_pass_the_pipes(peer: Peer) -> None:
    with peer.start(HELLO + ECHO) as engine:
        assert engine.version == "1.2.3.4"
        assert engine.request("echo", text="x" * 3_000_000)["params"]["text"] == "x" * 3_000_000


def test_peer_that_hangs_is_ended_at_the_deadline_and_started_again(peer: Peer) -> None:
    with peer.start(HELLO + "signal.pause()\n", deadline=0.5) as engine:
        first = engine.process_id
        assert first
        began = time.monotonic()
        with pytest.raises(EngineError, match=r"within 0\.5 s") as caught:
            engine.report()
        assert caught.value.kind == "deadline"
        assert time.monotonic() - began < 10
        assert engine.process_id is None
        assert not Path(f"/proc/{first}").exists()
        with pytest.raises(EngineError, match="within"):
            engine.report()


def test_peer_that_hangs_before_it_has_read_a_large_request(peer: Peer) -> None:
    with (
        peer.start(HELLO + "signal.pause()\n", deadline=0.5) as engine,
        pytest.raises(EngineError, match="within"),
    ):
        engine.request("echo", text="x" * 3_000_000)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (HELLO + "sys.exit('wine: out of memory')\n", "wine: out of memory"),
        ("sys.exit(1)\n", "without a word"),
        (HELLO + "print('not JSON', flush=True)\nsys.stdin.read()\n", "not JSON"),
        (HELLO + 'send({"id": 99, "result": {}})\nsys.stdin.read()\n', "another request"),
    ],
)
def test_peer_that_dies_or_babbles(peer: Peer, body: str, words: str) -> None:
    engine = peer.start(body)
    with pytest.raises(EngineError) as caught:
        engine.report()
    assert caught.value.kind == "worker-died"
    assert words in str(caught.value)
    assert engine.process_id is None


# -- With Microsoft's engine -------------------------------------------------------------------


@pytest.fixture
def engine() -> WineEngine:
    return judge()


def kind_of(engine: WineEngine, dump: Path) -> str:
    """The error kind that opening a file gives."""
    with pytest.raises(EngineError) as caught:
        engine.open(dump)
    assert dump.name in str(caught.value)
    return caught.value.kind


def test_files_that_are_no_dumps_are_refused_by_name(engine: WineEngine, tmp_path: Path) -> None:
    (tmp_path / "empty.dmp").touch()
    (tmp_path / "zero.dmp").write_bytes(bytes(1 << 20))
    (tmp_path / "text.dmp").write_text("not a dump\n" * 1000)
    (tmp_path / "header.dmp").write_bytes(b"PAGEDU64" + bytes(4096))
    assert kind_of(engine, tmp_path / "missing.dmp") == "dump-missing"
    for name in ("empty.dmp", "zero.dmp", "text.dmp", "header.dmp"):
        assert kind_of(engine, tmp_path / name) == "dump-refused"


def test_requests_that_make_no_sense_leave_the_worker_alive(engine: WineEngine) -> None:
    version = engine.version
    before = engine.process_id
    engine.close()
    for method, params, kind in (
        ("report", {}, "no-dump-open"),
        ("read", {"ranges": [[0, 8]]}, "no-dump-open"),
        ("nonsense", {}, "bad-request"),
        ("open", {}, "bad-request"),
        ("open", {"path": 7, "color": "red"}, "bad-request"),
    ):
        with pytest.raises(EngineError) as caught:
            engine.request(method, **params)
        assert caught.value.kind == kind in ERROR_KINDS
    assert (engine.version, engine.process_id) == (version, before)


@dataclass(frozen=True)
class Known:
    """A row of the table in the dumps' README."""

    name: str
    code: int
    parameters: tuple[int, ...]
    modules: int


def known_dumps() -> list[Known]:
    """The dumps' README, parsed; names in a row stand for a prefix and the dumps it lists."""
    readme = DUMPS / "README.md"
    if not readme.is_file():
        return []
    found = []
    for line in readme.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 5 or not cells[2].startswith("0x"):
            continue
        names = re.findall(r"[\w-]*\d{6}-\d+-\d+", cells[0])
        prefix = names[0].split("_")[0] + "_"
        for name, modules in zip(names, cells[4].split(), strict=True):
            parameters = tuple(int(value, 16) for value in cells[3].split())
            full = name if name.startswith(prefix) else prefix + name
            found.append(Known(full, int(cells[2], 16), parameters, int(modules)))
    return found


needs_dumps = pytest.mark.skipif(not DUMPS.is_dir(), reason="no ../shared/dumps here")


@needs_dumps
def test_all_known_dumps_are_tested() -> None:
    assert {one.name for one in known_dumps()} == {
        file.stem for file in (DUMPS / "kernel").iterdir()
    }


@needs_dumps
@pytest.mark.parametrize("known", known_dumps(), ids=lambda known: known.name)
def test_real_triage_dump_says_what_is_known_of_it(engine: WineEngine, known: Known) -> None:
    assert engine.open(DUMPS / "kernel" / f"{known.name}.dmp") == "triage"
    report = engine.report()
    assert report["bug_check"] == {"code": known.code, "parameters": list(known.parameters)}
    assert sum(not module["unloaded"] for module in report["modules"]) == known.modules
    nt = next(module for module in report["modules"] if module["name"] == "nt")
    assert nt["base"] <= report["stack"][0]["instruction"] < 1 << 64
    assert report["registers"]["rip"] == report["stack"][0]["instruction"]


@needs_dumps
def test_files_of_the_negative_set(engine: WineEngine) -> None:
    for name in (
        "7nani_IRQL_32bit.dmp",
        "7nani_PAGE_FAULT_IN_NONPAGED_AREA.dmp",
        "crocket_111217-47250-01.dmp",
    ):
        assert kind_of(engine, DUMPS / "negative" / name) == "dump-refused"
    for file in (DUMPS / "user").iterdir():
        assert kind_of(engine, file) == "not-a-kernel-dump"
    # The engine does not judge a header that holds text where the bug check belongs; the report
    # says that nothing is behind it.
    engine.open(DUMPS / "negative" / "imhex_dumpit_header16k.dmp")
    warnings = " ".join(engine.report()["warnings"])
    assert "no modules" in warnings
    assert "no stack" in warnings


@pytest.fixture
def opened(engine: WineEngine) -> WineEngine:
    if not DUMPS.is_dir():
        pytest.skip("no ../shared/dumps here")
    engine.open(DUMPS / "kernel" / f"{known_dumps()[-1].name}.dmp")
    return engine


def test_memory_is_read_where_the_dump_has_it(opened: WineEngine) -> None:
    stack = opened.report()["registers"]["rsp"]
    first, beyond, again = opened.read([(stack, 16), (0x10, 8), (stack + 8, 8)])
    assert first is not None
    assert first[8:] == again
    assert beyond is None


def test_commands_and_scripts_see_the_open_dump(opened: WineEngine) -> None:
    report = opened.report()
    code, parameters = report["bug_check"]["code"], report["bug_check"]["parameters"]
    assert f"{code:08X}" in opened.command(".bugcheck")
    assert opened.script("print(*pykd.bugCheckData())").split() == [
        str(value) for value in (code, *parameters)
    ]
    # pykd's own stack is the one of the report.
    assert opened.script("print(*(frame.ip for frame in pykd.getStack()))").split() == [
        str(frame["instruction"]) for frame in report["stack"]
    ]
    with pytest.raises(EngineError, match="ZeroDivisionError") as caught:
        opened.script("1 / 0")
    assert caught.value.kind == "script-failed"


def test_scope_that_is_not_there_is_an_error(opened: WineEngine) -> None:
    for scope in (opened.trap_frame, opened.context_record):
        with pytest.raises(EngineError) as caught:
            scope(0xFFFF_8000_0000_1000)
        assert caught.value.kind == "engine-failed"
    assert opened.report()["stack"]


def test_engine_that_hangs_is_ended_and_the_next_dump_opens(opened: WineEngine) -> None:
    before = opened.process_id
    with pytest.raises(EngineError, match="within 1 s") as caught:
        opened.request("command", deadline=1, text=".sleep 0n60000")
    assert caught.value.kind == "deadline"
    assert not Path(f"/proc/{before}").exists()
    with pytest.raises(EngineError) as lost:
        opened.report()
    assert lost.value.kind == "no-dump-open"
    assert opened.open(DUMPS / "kernel" / f"{known_dumps()[0].name}.dmp") == "triage"
