"""lab.toml: what a right one gives, and how a wrong one is explained."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from images.contract import CATALOG, load_catalog
from lab.config import Config, ConfigError, load_config
from lab.outcome import Outcome

ROOT = CATALOG.parent.parent
KNOWN_IMAGE = next(iter(load_catalog()))
GOOD = f"""schema = 1
store = "state"

[images.{KNOWN_IMAGE}]

[images.own]
contract = "own.toml"
disk = "own.qcow2"

[hosts.here]
uri = "private"

[machines.vm]
backend = "libvirt"
host = "here"
count = 2
tags = [
    "virtual",
    "small",
]

[machines.single]
backend = "libvirt"
host = "here"

[leases]
expiry_seconds = 30
margin_seconds = 3
"""
SECRET = "hunter2-" * 4
Writer = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """Writes a lab.toml beside the files that it may name."""
    (tmp_path / "own.toml").write_text("# a contract")

    def write(text: str) -> Path:
        file = tmp_path / "lab.toml"
        file.write_text(text)
        return file

    return write


def message(file: Path) -> str:
    """What is said of a wrong lab.toml."""
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert caught.value.outcome is Outcome.HARNESS
    return str(caught.value)


def test_a_right_file_gives_slots_images_and_lease_times(write: Writer, tmp_path: Path) -> None:
    config = load_config(write(GOOD))
    slots = config.slots()
    assert list(slots) == ["vm-1", "vm-2", "single"]
    host = slots["vm-2"].host
    assert host is not None
    assert host.uri == "private"
    assert slots["vm-2"].tags == {"virtual", "small"}
    assert config.store == tmp_path / "state"
    assert config.leases.expiry_seconds == 30
    own = config.image("own")
    assert (own.contract, own.disk) == (tmp_path / "own.toml", tmp_path / "own.qcow2")
    assert own.build is None


def test_an_image_of_the_catalog_needs_no_keys(write: Writer) -> None:
    source = load_config(write(GOOD)).image(KNOWN_IMAGE)
    entry = load_catalog()[KNOWN_IMAGE]
    assert source.contract == CATALOG.parent / entry.contract
    assert (source.build, source.folder) == (entry.build, ROOT)


def test_the_example_is_right() -> None:
    config = load_config(ROOT / "examples/lab.toml")
    assert list(config.slots()) == ["vm-1", "vm-2"]
    for name in config.images:
        source = config.image(name)
        for file in (source.contract, *source.inputs, *source.symbols):
            assert file.exists()


@pytest.mark.parametrize(
    ("before", "after", "line", "told"),
    [
        ("schema = 1", "schema = 2", 1, ["schema", "1", "found 2"]),
        ("schema = 1\n", "", 1, ["schema", "must be given"]),
        ("count = 2", "cuont = 2", 16, ["machines.vm.cuont", "no such key", "count"]),
        ("count = 2", 'count = "2"', 16, ["machines.vm.count", "integer", "found '2'"]),
        ("count = 2", "count = 0", 16, ["machines.vm.count", "greater than or equal to 1"]),
        ('    "small",', "    5,", 17, ["machines.vm.tags", "string", "found 5"]),
        ("[leases]", "[leaces]", 26, ["leaces", "no such key", "leases"]),
        ('uri = "private"', 'uri = "privat"', 11, ["hosts.here.uri", "qemu:///system", "'privat'"]),
        ("[machines.vm]", '[machines."a b"]', 13, ["machines.a b", "name of letters"]),
        ('host = "here"', 'host = "hear"', 15, ["machines.vm.host", 'did you mean "here"']),
        ('backend = "libvirt"', 'backend = "libvrit"', 14, ["machines.vm.backend", "lab/virtual"]),
        ("[machines.single]", "[machines.vm-2]", 22, ["machines.vm-2", "vm-2", "[machines.vm]"]),
        ('"own.toml"', '"absent.toml"', 7, ["images.own.contract", "a file", "absent.toml"]),
        ('contract = "own.toml"\n', "", 6, ["images.own", "expected a contract", KNOWN_IMAGE]),
        ('disk = "own.qcow2"', "", 6, ["images.own", "disk, build or installed", "none of them"]),
        (
            'disk = "own.qcow2"',
            'disk = "own.qcow2"\nbuild = "make OUTPUT.qcow2"',
            9,
            ["images.own.build", "disk, build or installed", "found disk and build"],
        ),
        ('disk = "own.qcow2"', 'build = "make"', 8, ["images.own.build", "OUTPUT.qcow2", "'make'"]),
        (
            'disk = "own.qcow2"',
            'build = "make \'OUTPUT.qcow2"',
            8,
            ["images.own.build", "quotation"],
        ),
        ("margin_seconds = 3", "margin_seconds = 20", 26, ["leases", "a third", "20 and 30"]),
        ("[hosts.here]", "[hosts.here", 10, ["not TOML"]),
    ],
)
def test_a_wrong_file_names_line_key_expected_and_found(
    write: Writer, before: str, after: str, line: int, told: list[str]
) -> None:
    assert before in GOOD
    file = write(GOOD.replace(before, after, 1))
    said = message(file)
    assert re.search(rf":{line}: |line {line}\b", said), said
    for part in [str(file), *told]:
        assert part in said


def test_every_mistake_is_told_at_once(write: Writer) -> None:
    said = message(write(GOOD.replace("count = 2", "cuont = 2").replace("= 30", '= "30"')))
    assert "machines.vm.cuont" in said
    assert "leases.expiry_seconds" in said
    assert len(said.splitlines()) == 2


def test_a_file_that_is_no_text_is_refused(write: Writer, tmp_path: Path) -> None:
    file = tmp_path / "lab.toml"
    file.write_bytes(b"schema = 1\n\xff\xfe")
    assert "UTF-8" in message(file)
    assert "cannot be read" in message(tmp_path / "absent.toml")


def test_an_unknown_image_gets_the_nearest_name(write: Writer) -> None:
    config = load_config(write(GOOD))
    with pytest.raises(ConfigError, match='did you mean "own"'):
        config.image("won")


def test_where_the_file_is_looked_for(
    write: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(GOOD)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.delenv("LAB_TOML", raising=False)
    with pytest.raises(ConfigError, match=r"no lab\.toml .* LAB_TOML"):
        load_config()
    monkeypatch.setenv("LAB_TOML", str(file))
    assert load_config().file == file
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAB_TOML", str(tmp_path / "absent.toml"))
    assert load_config().slots()


def with_secrets(write: Writer, tmp_path: Path, text: str) -> Config:
    (tmp_path / "secrets.toml").write_text(text)
    return load_config(write(GOOD.replace("store =", 'secrets = "secrets.toml"\nstore =')))


def test_secrets_come_from_the_file_or_the_environment(
    write: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_secrets(write, tmp_path, f'KEY = "{SECRET}"\n')
    assert config.secret("KEY").get_secret_value() == SECRET
    monkeypatch.setenv("LAB_SECRET_API_TOKEN", "other")
    assert config.secret("api-token").get_secret_value() == "other"
    with pytest.raises(ConfigError) as caught:
        config.secret("ABSENT")
    assert str(tmp_path / "secrets.toml") in str(caught.value)
    assert "LAB_SECRET_ABSENT" in str(caught.value)


def test_a_secret_is_never_shown(
    write: Writer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = with_secrets(write, tmp_path, f'KEY = "{SECRET}"\n')
    secret = config.secret("KEY")
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("test").warning("%s %r %s", config, secret, vars(config))
    try:
        config.secret("ABSENT")
    except ConfigError as error:
        trace = traceback.TracebackException.from_exception(error, capture_locals=True)
        shown = "".join(trace.format())
    assert "ABSENT" in shown
    for text in (caplog.text, shown, repr(config), str(secret), repr(config.settings)):
        assert SECRET not in text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f'KEY = ["{SECRET}"]\n', "KEY: expected text in quotes"),
        ("KEY = 271828182\n", "KEY: expected text in quotes"),
        (f"\nKEY = {SECRET}\n", "not TOML"),
        (f'KEY = "{SECRET}"\nKEY = "{SECRET}"\n', "not TOML"),
    ],
)
def test_a_wrong_secrets_file_is_explained_without_its_values(
    write: Writer, tmp_path: Path, text: str, told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        with_secrets(write, tmp_path, text)
    said = str(caught.value)
    assert told in said
    assert "secrets.toml" in said
    assert SECRET not in said
    assert "271828182" not in said


def test_a_secrets_file_that_is_named_must_be_there(write: Writer) -> None:
    said = message(write(GOOD.replace("store =", 'secrets = "absent.toml"\nstore =')))
    assert ":2: secrets: expected a file" in said
