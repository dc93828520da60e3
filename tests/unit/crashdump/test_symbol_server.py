"""Symbol servers on loopback that answer, that do not, and that answer badly."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from crashdump_analysis.symbols import SymbolPath, Symbols
from crashdump_analysis.symbols.download import DownloadError, download
from crashdump_analysis.symbols.server import MISSING_HOURS
from tests.support.sensor import built
from tests.unit.crashdump.test_symbol_path import PDB, SYS, identity, sensor_module

STALL = 0.4
"""Seconds after which a server hangs, in these tests."""

Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class SymbolServer:
    """A server on loopback. `files` by path; `answers` by path for whatever else it does."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    answer: Answer | None = None
    asked: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def put(self, content: bytes, place: str | None = None) -> str:
        """Puts a file where a store has the sensor's PDB."""
        place = place or f"/sensor.pdb/{identity().key}/sensor.pdb"
        self.files[place] = content
        return place


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SymbolServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("DBGHELP_HOMEDIR", str(tmp_path / "home"))
    symbol_server = SymbolServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            symbol_server.asked.append(self.path)
            try:
                if symbol_server.answer and self.path != "/index2.txt":
                    symbol_server.answer(self)
                elif self.path in symbol_server.files:
                    give(self, symbol_server.files[self.path])
                else:
                    self.send_error(404)
            except (BrokenPipeError, ConnectionResetError):
                return  # the client had enough

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            return

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    symbol_server.url = f"http://127.0.0.1:{http.server_address[1]}"
    yield symbol_server
    symbol_server.over.set()
    http.shutdown()
    thread.join()
    http.server_close()


def give(handler: BaseHTTPRequestHandler, content: bytes, length: int | None = None) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content) if length is None else length))
    handler.end_headers()
    handler.wfile.write(content)


def path_to(server: SymbolServer, cache: Path, **options: bool) -> SymbolPath:
    return SymbolPath([f"srv*{cache}*{server.url}"], stall_seconds=STALL, **options)  # type: ignore[arg-type]


def in_cache(cache: Path) -> Path:
    return cache / "sensor.pdb" / identity().key / "sensor.pdb"


def test_a_pdb_is_downloaded_once(server: SymbolServer, tmp_path: Path) -> None:
    place = server.put(PDB.read_bytes())
    for _ in range(2):
        symbols = Symbols(path_to(server, tmp_path / "c"))
        found = symbols.pdb(identity())
        assert found is not None
        assert found.path == in_cache(tmp_path / "c")
        assert found.path.read_bytes() == PDB.read_bytes()
        assert symbols.warnings == []
    assert server.asked == ["/index2.txt", place]


def test_an_image_is_downloaded(server: SymbolServer, tmp_path: Path) -> None:
    module, timestamp = sensor_module()
    key = f"{timestamp:08X}{module.size:x}"
    server.put(SYS.read_bytes(), f"/sensor.sys/{key}/sensor.sys")
    image = Symbols(path_to(server, tmp_path)).image(module, timestamp)
    assert image is not None
    assert (tmp_path / "sensor.sys" / key / "sensor.sys").read_bytes() == SYS.read_bytes()


def test_a_server_of_two_levels(server: SymbolServer, tmp_path: Path) -> None:
    server.put(b"", "/index2.txt")
    server.put(PDB.read_bytes(), f"/se/sensor.pdb/{identity().key}/sensor.pdb")
    found = Symbols(path_to(server, tmp_path)).pdb(identity())
    assert found is not None
    assert found.path == in_cache(tmp_path)  # the cache has one level


def test_without_a_cache_the_default_one_is_used(server: SymbolServer, tmp_path: Path) -> None:
    server.put(PDB.read_bytes())
    found = Symbols([f"srv*{server.url}"]).pdb(identity())
    assert found is not None
    assert found.path == in_cache(tmp_path / "home" / "sym")


def test_what_is_missing_is_not_asked_for_again(server: SymbolServer, tmp_path: Path) -> None:
    symbols = Symbols(path_to(server, tmp_path))
    assert symbols.pdb(identity()) is None
    assert f"no PDB {identity()}" in symbols.warnings[0]
    folder = f"/sensor.pdb/{identity().key}"
    once = [
        "/index2.txt",
        *(f"{folder}/{name}" for name in ("sensor.pdb", "sensor.pd_", "file.ptr")),
    ]
    assert server.asked == once
    server.put(PDB.read_bytes())
    # Neither by this process nor by the next, for a day.
    assert Symbols(path_to(server, tmp_path)).pdb(identity()) is None
    assert server.asked == once
    (mark,) = [one for one in (tmp_path / ".missing").rglob("*") if one.is_file()]
    before = time.time() - MISSING_HOURS * 3600 - 1
    os.utime(mark, (before, before))
    assert Symbols(path_to(server, tmp_path)).pdb(identity()) is not None


def test_offline_nothing_is_asked(server: SymbolServer, tmp_path: Path) -> None:
    server.put(PDB.read_bytes())
    symbols = Symbols(path_to(server, tmp_path, offline=True))
    assert symbols.pdb(identity()) is None
    assert f"offline: {server.url} was not asked" in symbols.warnings[0]
    assert server.asked == []
    Symbols(path_to(server, tmp_path)).pdb(identity())
    assert Symbols(path_to(server, tmp_path, offline=True)).pdb(identity()) is not None


def hang(handler: BaseHTTPRequestHandler) -> None:
    """Takes the request, and that is all."""
    handler.server.over.wait()  # type: ignore[attr-defined]


def drip_header(handler: BaseHTTPRequestHandler) -> None:
    """A byte of a header every now and then: no read ever times out."""
    handler.wfile.write(b"HTTP/1.0 200 OK\r\nX-Slow: ")
    while not handler.server.over.wait(STALL / 8):  # type: ignore[attr-defined]
        handler.wfile.write(b"x")


def drip_body(handler: BaseHTTPRequestHandler) -> None:
    give(handler, b"Microsoft", length=1 << 20)
    while not handler.server.over.wait(STALL / 8):  # type: ignore[attr-defined]
        handler.wfile.write(b"x")


def stop_half_way(handler: BaseHTTPRequestHandler) -> None:
    give(handler, PDB.read_bytes()[:5000], length=PDB.stat().st_size)
    hang(handler)


@pytest.mark.parametrize("answer", [hang, drip_header, drip_body, stop_half_way])
def test_a_server_that_hangs_is_given_up(
    server: SymbolServer, tmp_path: Path, answer: Answer
) -> None:
    def with_end(handler: BaseHTTPRequestHandler) -> None:
        handler.server.over = server.over  # type: ignore[attr-defined]
        answer(handler)

    server.answer = with_end
    path = path_to(server, tmp_path)
    symbols = Symbols(path)
    started = time.monotonic()
    assert symbols.pdb(identity()) is None
    assert time.monotonic() - started < 10 * STALL
    assert "not asked again" in symbols.warnings[0]
    # The next file costs nothing, also of the next dump.
    asked = len(server.asked)
    module, timestamp = sensor_module()
    assert Symbols(path).image(module, timestamp) is None
    assert len(server.asked) == asked
    # It is not kept as missing: the next process asks.
    assert not (tmp_path / ".missing").exists()


def test_a_server_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    symbols = Symbols([f"srv*{tmp_path}*http://127.0.0.1:9"])
    assert symbols.pdb(identity()) is None
    assert "http://127.0.0.1:9" in symbols.warnings[0]
    assert "refused" in symbols.warnings[0].lower()


def redirect_for_ever(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(302)
    handler.send_header("Location", handler.path + "x")
    handler.end_headers()


def redirect_to_a_file(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(301)
    handler.send_header("Location", PDB.as_uri())
    handler.end_headers()


def forbid(handler: BaseHTTPRequestHandler) -> None:
    handler.send_error(403)


def break_down(handler: BaseHTTPRequestHandler) -> None:
    handler.send_error(500)


def talk_nonsense(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"\0\1\2 no HTTP at all\r\n\r\n")


def cut_short(handler: BaseHTTPRequestHandler) -> None:
    give(handler, PDB.read_bytes()[:5000], length=PDB.stat().st_size)


def rubbish(handler: BaseHTTPRequestHandler) -> None:
    give(handler, b"<html>Please sign in</html>")


def other_build(handler: BaseHTTPRequestHandler) -> None:
    give(handler, (built("a-shifted") / "sensor.pdb").read_bytes())


def cut_without_length(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(PDB.read_bytes()[:300])


def nothing(handler: BaseHTTPRequestHandler) -> None:
    give(handler, b"")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (redirect_for_ever, "redirects more than 5 times"),
        (redirect_to_a_file, "which is not followed"),
        (forbid, "403"),
        (break_down, "500"),
        (talk_nonsense, "cannot be read"),
        (cut_short, "breaks off after 5000 of"),
        (rubbish, "is no PDB"),
        (other_build, "is of another build"),
        (cut_without_length, "is damaged or cut"),
        (nothing, "is empty"),
    ],
)
def test_a_server_that_answers_badly(
    server: SymbolServer, tmp_path: Path, answer: Answer, told: str
) -> None:
    server.answer = answer
    symbols = Symbols(path_to(server, tmp_path / "c"))
    assert symbols.pdb(identity()) is None
    assert told in symbols.warnings[0]
    assert server.url in symbols.warnings[0]
    assert not in_cache(tmp_path / "c").exists()


def test_a_few_redirects_are_followed(server: SymbolServer, tmp_path: Path) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.path.startswith("/there"):
            give(handler, PDB.read_bytes())
            return
        handler.send_response(302)
        handler.send_header("Location", "/there" + handler.path)
        handler.end_headers()

    server.answer = answer
    assert Symbols(path_to(server, tmp_path)).pdb(identity()) is not None


def test_compressed_files_and_pointers_are_named(server: SymbolServer, tmp_path: Path) -> None:
    folder = f"/sensor.pdb/{identity().key}"
    server.put(b"MSCF", f"{folder}/sensor.pd_")
    symbols = Symbols(path_to(server, tmp_path / "a"))
    assert symbols.pdb(identity()) is None
    assert "compressed (a cabinet), which is not supported" in symbols.warnings[0]
    server.files.clear()
    server.put(b"MSG: moved to another server", f"{folder}/file.ptr")
    symbols = Symbols(path_to(server, tmp_path / "b"))
    assert symbols.pdb(identity()) is None
    assert "moved to another server" in symbols.warnings[0]
    server.put(b"x" * 100_000, f"{folder}/file.ptr")
    symbols = Symbols(path_to(server, tmp_path / "d"))
    assert symbols.pdb(identity()) is None
    assert "larger than 4096 bytes" in symbols.warnings[0]


def test_a_cache_that_cannot_be_written(server: SymbolServer, tmp_path: Path) -> None:
    (tmp_path / "c").write_text("a file is in its way")
    server.put(PDB.read_bytes())
    path = path_to(server, tmp_path / "c")
    symbols = Symbols(path)
    found = symbols.pdb(identity())
    assert found is not None
    assert found.path.read_bytes() == PDB.read_bytes()
    assert f"cannot be kept in {tmp_path / 'c'}" in symbols.warnings[0]
    assert symbols.functions(found, 0x1000)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_disk_that_is_full(server: SymbolServer) -> None:
    server.put(PDB.read_bytes(), "/a")
    with pytest.raises(OSError, match="No space left"):
        download(f"{server.url}/a", Path("/dev/full"))


def test_a_chain_with_a_server_fills_all_its_stores(server: SymbolServer, tmp_path: Path) -> None:
    server.put(PDB.read_bytes())
    near, middle = tmp_path / "near", tmp_path / "middle"
    found = Symbols([f"srv*{near}*{middle}*{server.url}"]).pdb(identity())
    assert found is not None
    assert found.path == in_cache(near)
    assert in_cache(middle).read_bytes() == PDB.read_bytes()


def test_the_next_server_is_asked_where_one_fails(server: SymbolServer, tmp_path: Path) -> None:
    server.put(PDB.read_bytes())
    path = f"srv*{tmp_path / 'a'}*http://127.0.0.1:9;srv*{tmp_path / 'b'}*{server.url}"
    found = Symbols([path]).pdb(identity())
    assert found is not None
    assert found.path == in_cache(tmp_path / "b")


ANOTHER_PROCESS = """
import sys, uuid
from pathlib import Path
from crashdump_analysis.image import PdbIdentity
from crashdump_analysis.symbols import Symbols
path, guid, age, expected = sys.argv[1:]
found = Symbols([path]).pdb(PdbIdentity("sensor.pdb", uuid.UUID(guid), int(age)))
assert found.path.read_bytes() == Path(expected).read_bytes()
"""


def test_several_processes_at_once(server: SymbolServer, tmp_path: Path) -> None:
    """Each sees the file whole or downloads it itself; nothing is left beside it."""

    def slowly(handler: BaseHTTPRequestHandler) -> None:
        data = PDB.read_bytes()
        give(handler, data[:1000], length=len(data))
        for at in range(1000, len(data), 20_000):
            server.over.wait(0.01)
            handler.wfile.write(data[at : at + 20_000])

    server.answer = slowly
    which = identity()
    path = f"srv*{tmp_path}*{server.url}"
    command: list[str | Path] = [
        sys.executable,
        "-c",
        ANOTHER_PROCESS,
        path,
        str(which.guid),
        str(which.age),
        PDB,
    ]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [one.wait(60) for one in processes] == [0] * 3
    assert [one.name for one in in_cache(tmp_path).parent.iterdir()] == ["sensor.pdb"]


def test_progress_of_what_takes_long(
    server: SymbolServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crashdump_analysis.symbols.download._TOLD_AFTER", 0.05)

    def slowly(handler: BaseHTTPRequestHandler) -> None:
        data = PDB.read_bytes()
        give(handler, data[:50_000], length=len(data))
        server.over.wait(0.3)
        handler.wfile.write(data[50_000:])

    server.answer = slowly
    told: list[str] = []
    path = SymbolPath([f"srv*{tmp_path}*{server.url}"], stall_seconds=1, progress=told.append)
    assert Symbols(path).pdb(identity()) is not None
    assert told
    assert f"downloading {server.url}/sensor.pdb" in told[0]
    assert "of 168 KiB" in told[-1]


def test_a_file_that_is_too_large(server: SymbolServer, tmp_path: Path) -> None:
    server.put(b"x" * 5000, "/a")
    with pytest.raises(DownloadError, match="larger than 4000 bytes"):
        download(f"{server.url}/a", tmp_path / "a", limit=4000)

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(b"x" * 1000)

    server.answer = endless
    with pytest.raises(DownloadError, match="larger than 4000 bytes"):
        download(f"{server.url}/a", tmp_path / "a", limit=4000)
