"""[analysis_host] in lab.toml, and `lab pykd`."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.cli import main
from lab.config import ConfigError, load_config
from lab.pykd import analysis_host
from tests.support import fake_engine
from tests.unit.test_engines import OPENED


def settings(folder: Path, text: str) -> Path:
    file = folder / "lab.toml"
    file.write_text(f'schema = 1\nsecrets = "secrets.toml"\n[analysis_host]\nhost = "far"\n{text}')
    (folder / "secrets.toml").write_text('login = "open sesame"\n')
    return file


def test_defaults(tmp_path: Path) -> None:
    host = load_config(settings(tmp_path, "")).analysis_host()
    assert host is not None
    assert (str(host), host.key, host.password) == ("far:22", None, None)
    assert host.known_hosts == Path("~/.ssh/known_hosts").expanduser()
    assert (host.python, host.symbols, host.engine) == ("python", "", "")


def test_every_key(tmp_path: Path) -> None:
    (tmp_path / "key").touch()
    file = settings(
        tmp_path,
        'port = 2222\nuser = "triage"\nknown_hosts = "hosts"\nkey = "key"\npassword = "login"\n'
        "python = 'py -3.9'\nsymbols = 'srv*C:\\symbols'\nengine = 'C:\\kits'\nfolder = 'D:/x'\n",
    )
    host = load_config(file).analysis_host()
    assert host is not None
    assert str(host) == "triage@far:2222"
    assert (host.known_hosts, host.key) == (tmp_path / "hosts", tmp_path / "key")
    assert host.password is not None
    assert host.password() == "open sesame"
    assert "sesame" not in repr(host)
    assert (host.python, host.symbols) == ("py -3.9", "srv*C:\\symbols")
    assert (host.engine, host.folder) == ("C:\\kits", "D:/x")


def test_a_key_out_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_SECRET_DEPLOY_KEY", "-----BEGIN")
    host = load_config(settings(tmp_path, 'key_secret = "deploy-key"\n')).analysis_host()
    assert host is not None
    assert callable(host.key)
    assert host.key() == "-----BEGIN"
    assert "BEGIN" not in repr(host)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('key = "none"\n', "analysis_host.key: expected a file"),
        ('key = "lab.toml"\nkey_secret = "login"\n', "expected key or key_secret; found both"),
        ("port = 0\n", "analysis_host.port"),
        ('pasword = "x"\n', "did you mean 'password'"),
    ],
)
def test_what_is_wrong_is_told_before_anything_starts(
    tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=r"lab\.toml:") as caught:
        load_config(settings(tmp_path, text))
    assert words in str(caught.value)


def test_a_secret_that_is_missing(tmp_path: Path) -> None:
    config = load_config(settings(tmp_path, 'password = "none"\n'))
    with pytest.raises(ConfigError, match="LAB_SECRET_NONE"):
        config.analysis_host()


def test_without_a_lab_there_is_no_analysis_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LAB_TOML", raising=False)
    assert analysis_host() is None
    (tmp_path / "lab.toml").write_text("schema = 1\n")
    assert analysis_host() is None


def test_status_and_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LAB_TOML", raising=False)
    printed = {"result": {"output": "Bugcheck code 000000D1", "hresult": 0}}
    fake_engine.install(tmp_path, monkeypatch, open=OPENED, command=printed)
    assert main(["pykd", "status"]) == 0
    assert "Ready on this machine: dbgeng 1.2.3.4" in capsys.readouterr().out
    assert main(["pykd", "command", "MEMORY.DMP", ".bugcheck"]) == 0
    assert capsys.readouterr().out == "Bugcheck code 000000D1\n"
    refusal = fake_engine.error("dump-refused", "no dump")
    fake_engine.install(tmp_path, monkeypatch, open=refusal)
    assert main(["pykd", "command", "MEMORY.DMP", ".bugcheck"]) == 2
    assert "lab pykd command: no dump" in capsys.readouterr().err


def test_setup_wants_the_terms_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LAB_PYKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LAB_ACCEPT_DEBUGGER_TERMS", raising=False)
    assert main(["pykd", "setup"]) == 2
    told = capsys.readouterr().err
    assert "docs/pykd.md" in told
    assert "LAB_ACCEPT_DEBUGGER_TERMS=1 lab pykd setup" in told
    assert not (tmp_path / "cache").exists()
