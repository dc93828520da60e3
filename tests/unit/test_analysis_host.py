"""Microsoft's engine on an analysis host: a real OpenSSH server, with and without the engine."""

from __future__ import annotations

import base64
import gzip
import hashlib
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from crashdump_analysis.engines import EngineError
from crashdump_analysis.engines.analysis_host import AnalysisHost
from crashdump_analysis.engines.ssh import SshEngine
from crashdump_analysis.engines.worker import WORKER
from tests.support.small_store import mount_namespace
from tests.support.sshd import Sshd, fake_python, make_key, sshd
from tests.support.waiting import wait_for


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with sshd(tmp_path_factory.mktemp("sshd")) as started:
        yield started


@pytest.fixture
def host(server: Sshd, tmp_path: Path) -> AnalysisHost:
    """A host whose Python runs the real worker with a fake engine, in a folder of the test's."""
    return server.host(fake_python(tmp_path / "windows-python"), folder=tmp_path / "there")


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    """A file of some MiB that does not become small."""
    path = tmp_path / "MEMORY.DMP"
    path.write_bytes(random.Random(1).randbytes(5_000_000) + bytes(3_000_000))
    return path


def received(there: Path) -> list[Path]:
    return list(there.glob("received-*"))


def refused(host: AnalysisHost, dump: Path) -> EngineError:
    with pytest.raises(EngineError) as caught:
        SshEngine(host, start_deadline=30).open(dump)
    assert host.host in str(caught.value)
    return caught.value


def test_the_dump_comes_there_whole_and_is_deleted(
    host: AnalysisHost, dump: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    with SshEngine(replace(host, symbols=r"srv*C:\symbols"), say=said.append) as engine:
        for _ in range(2):
            assert engine.open(dump) == hashlib.sha256(dump.read_bytes()).hexdigest()
            (folder,) = received(tmp_path / "there")
            assert (folder / "MEMORY.DMP").read_bytes() == dump.read_bytes()
        assert engine.version == "1.2.3.4"
        engine.close()
        assert received(tmp_path / "there") == []
        engine.open(dump)
    wait_for("the worker to delete the dump", lambda: not received(tmp_path / "there"), 30)
    assert f"sending it to {host}: 100%" in said


def test_the_worker_there_is_this_one(host: AnalysisHost, tmp_path: Path) -> None:
    with SshEngine(host):
        (there,) = (tmp_path / "there").glob("*.py")
        assert there.read_bytes() == WORKER.read_bytes()
    there.write_text("raise SystemExit('not the worker')")
    with SshEngine(host) as engine:
        assert engine.version == "1.2.3.4"
        assert list((tmp_path / "there").glob("*.py*")) == [there]
        assert there.read_bytes() == WORKER.read_bytes()


def test_nobody_listens(host: AnalysisHost, dump: Path) -> None:
    error = refused(replace(host, port=1), dump)
    assert error.kind == "host-unreachable"


def test_a_host_with_another_key_is_never_spoken_to(
    host: AnalysisHost, dump: Path, tmp_path: Path
) -> None:
    make_key(tmp_path / "other")
    kind, key, *_ = (tmp_path / "other.pub").read_text().split()
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{host.port} {kind} {key}\n")
    assert refused(replace(host, known_hosts=known), dump).kind == "host-key"
    known.write_text("")
    error = refused(replace(host, known_hosts=known), dump)
    assert error.kind == "host-key"
    assert "ssh-keyscan" in str(error)
    known.unlink()
    assert refused(replace(host, known_hosts=known), dump).kind == "host-key"
    assert not (tmp_path / "there").exists()


def test_a_key_that_is_not_taken(host: AnalysisHost, dump: Path, tmp_path: Path) -> None:
    make_key(tmp_path / "other")
    assert refused(replace(host, key=tmp_path / "other"), dump).kind == "host-refused"
    assert refused(replace(host, key=tmp_path / "missing"), dump).kind == "host-refused"
    assert refused(replace(host, key=None, password=lambda: "wrong"), dump).kind == "host-refused"


def test_a_key_with_a_passphrase(host: AnalysisHost, server: Sshd, tmp_path: Path) -> None:
    make_key(tmp_path / "locked", "-t", "ecdsa", "-m", "PKCS8", "-N", "open sesame")
    with (server.folder / "authorized_keys").open("a") as file:
        file.write((tmp_path / "locked.pub").read_text())
    locked = replace(host, key=tmp_path / "locked")
    with SshEngine(replace(locked, password=lambda: "open sesame")) as engine:
        assert engine.version == "1.2.3.4"
    wrong = SshEngine(replace(locked, password=lambda: "wrong"))
    with pytest.raises(EngineError) as caught:
        wrong.request("close")
    assert caught.value.kind == "host-refused"


def test_no_python_there(host: AnalysisHost, dump: Path) -> None:
    error = refused(replace(host, python="/nowhere/python"), dump)
    assert error.kind == "worker-died"
    assert "/nowhere/python" in str(error)


def test_no_engine_there(host: AnalysisHost, dump: Path) -> None:
    with pytest.raises(EngineError) as caught:
        SshEngine(replace(host, python="python3")).open(dump)
    assert caught.value.kind == "engine-missing"


def test_a_folder_that_cannot_be_made(host: AnalysisHost, dump: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    error = refused(replace(host, folder=str(tmp_path / "file" / "folder")), dump)
    assert error.kind == "host-setup"


def test_the_host_goes_half_way(
    host: AnalysisHost, server: Sshd, dump: Path, tmp_path: Path
) -> None:
    calls = 0

    def cut(text: str) -> None:
        nonlocal calls
        calls += text.startswith("sending")
        if calls == 3:
            server.cut_connections()

    engine = SshEngine(host, say=cut)
    with pytest.raises(EngineError) as caught:
        engine.open(dump)
    assert caught.value.kind == "host-gone"
    assert host.host in str(caught.value)
    wait_for("the worker to delete the dump", lambda: not received(tmp_path / "there"), 30)
    # The next dump connects again.
    assert engine.open(dump) == hashlib.sha256(dump.read_bytes()).hexdigest()
    engine.shut_down()


def test_a_worker_that_is_killed_there(host: AnalysisHost, dump: Path, tmp_path: Path) -> None:
    engine = SshEngine(host)
    engine.open(dump)
    with pytest.raises(EngineError) as caught:
        engine.command("print('out of memory', file=sys.stderr); os.kill(os.getpid(), 9)")
    assert caught.value.kind == "worker-died"
    assert "out of memory" in str(caught.value)
    assert received(tmp_path / "there")
    with SshEngine(host):
        assert received(tmp_path / "there") == []


def test_an_answer_that_does_not_come(host: AnalysisHost, dump: Path, tmp_path: Path) -> None:
    """Nothing is left there: neither the worker that hangs nor the dump."""
    engine = SshEngine(host)
    engine.open(dump)
    pid = tmp_path / "pid"
    with pytest.raises(EngineError, match=r"within 0\.5 s") as caught:
        engine.command(
            f"print(os.getpid(), file=open({str(pid)!r}, 'w'), flush=True); signal.pause()",
            deadline=0.5,
        )
    assert caught.value.kind == "deadline"
    worker = Path("/proc", pid.read_text().strip())
    wait_for("the worker to end", lambda: not worker.exists(), 30)
    assert received(tmp_path / "there") == []
    assert engine.open(dump)
    engine.shut_down()


def test_a_full_disk_there(dump: Path, tmp_path: Path) -> None:
    with mount_namespace() as namespace:
        namespace.small_folder(tmp_path / "there", 4)
        with sshd(tmp_path / "sshd", namespace.command) as server:
            host = server.host(fake_python(tmp_path / "windows-python"), folder=tmp_path / "there")
            engine = SshEngine(host)
            with pytest.raises(EngineError) as caught:
                engine.open(dump)
            assert caught.value.kind == "disk-full"
            assert str(dump.stat().st_size) in str(caught.value)
            # Where the room goes while the dump is on its way.
            namespace.resize(tmp_path / "there", 64)
            fill = namespace.seen(tmp_path / "there") / "other"
            said: list[str] = []

            def say(text: str) -> None:
                said.append(text)
                if len(said) == 4:
                    fill.write_bytes(bytes(62_000_000))

            engine = SshEngine(host, say=say)
            with pytest.raises(EngineError) as caught:
                engine.open(dump)
            assert caught.value.kind == "disk-full"
            assert received(namespace.seen(tmp_path / "there")) == []
            engine.shut_down()


def test_a_stream_that_is_wrong(host: AnalysisHost) -> None:
    def kind(method: str, **parameters: object) -> str:
        with pytest.raises(EngineError) as caught:
            engine.request(method, deadline=None, **parameters)
        return caught.value.kind

    with SshEngine(host) as engine:
        assert kind("chunk", data="") == "bad-request"
        engine.request("receive", size=10)
        assert kind("received", sha256="00") == "dump-damaged"
        engine.request("receive", size=10)
        assert kind("chunk", data="AAAA") == "dump-damaged"
        engine.request("receive", size=10)
        too_much = base64.b64encode(gzip.compress(bytes(11))).decode()
        assert kind("chunk", data=too_much) == "dump-damaged"


def test_the_users_environment_is_not_asked(
    host: AnalysisHost, dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No ~/.ssh: neither its keys nor its hosts."""
    home = tmp_path / "home/.ssh"
    home.mkdir(parents=True)
    (home / "config").write_text("Host *\n  Port 1\n")
    monkeypatch.setenv("HOME", str(home.parent))
    with SshEngine(host) as engine:
        assert engine.open(dump)
    assert os.listdir(home) == ["config"]
