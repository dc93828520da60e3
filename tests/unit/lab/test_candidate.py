"""candidate.toml: its shapes, and what is said of a wrong one before anything starts."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from lab.candidate import (
    Candidate,
    CandidateFileError,
    ContentError,
    load_candidate,
    load_content,
    sha256,
)
from lab.outcome import Outcome
from tests.support.sensor import SENSOR, SENSOR_PATH, built

MSIEXEC = r"'C:\Windows\System32\msiexec.exe'"
HEAD = """\
schema = 1
name = "agent"
version = "7.16"
"""
DRIVER = r"""
[driver]
image = "agent.sys"
module = "agent.sys"
installed = 'C:\Windows\System32\drivers\agent.sys'
"""
MSI = rf"""{HEAD}secrets = ["CUSTOMER_ID"]
{DRIVER}
[[files]]
source = "*.msi"
target = 'C:\Windows\Temp\'

[[install]]
run = [{MSIEXEC}, "/i", 'C:\Windows\Temp\agent.msi', "/qn", "CID=${{secret:CUSTOMER_ID}}"]
reboot = [3010, 1641]
seconds = 600

[[update]]
run = [{MSIEXEC}, "/i", 'C:\Windows\Temp\agent.msi', "/qn", "REINSTALLMODE=vomus"]

[[uninstall]]
run = [{MSIEXEC}, "/x", 'C:\Windows\Temp\agent.msi', "/qn"]
restart = "always"
"""
EXE = rf"""{HEAD}{DRIVER}
[[files]]
source = "setup.exe"
target = 'C:\Windows\Temp\agent-setup.exe'

[[install]]
run = ['C:\Windows\Temp\agent-setup.exe', "/quiet", "/norestart"]
success = [0, 2]

[content]
folder = 'C:\ProgramData\Agent\Rules'
pattern = "*.rules"
files = "rules/*"
activation = "next-boot"
settle_seconds = 10

[[content.verify]]
name = "rules are current"
run = ['C:\Program Files\Agent\status.exe', "--rules"]
expect = '^rules: current'

[recovery]
delete = ['C:\ProgramData\Agent\Rules\*.rules']
replace = {{ 'C:\Windows\System32\drivers\agent.sys' = "agent.sys" }}
"""
EXE = EXE.replace("{{", "{").replace("}}", "}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files that the shapes above name."""
    (tmp_path / "agent.sys").write_bytes((built("a-o2") / "sensor.sys").read_bytes())
    (tmp_path / "agent.msi").write_bytes(b"an installer")
    (tmp_path / "setup.exe").write_bytes(b"another")
    (tmp_path / "rules").mkdir()
    for name in ("b.rules", "a.rules"):
        (tmp_path / "rules" / name).write_bytes(name.encode())
    return tmp_path


def load(folder: Path, text: str) -> Candidate:
    """The text as a candidate.toml."""
    file = folder / "candidate.toml"
    file.write_text(text)
    return load_candidate(file)


def refusal(folder: Path, text: str) -> str:
    """What is said of a wrong candidate.toml, without the folder's name."""
    with pytest.raises(CandidateFileError) as error:
        load(folder, text)
    assert error.value.outcome is Outcome.HARNESS
    return str(error.value).replace(f"{folder}/", "")


# Shapes


def test_inf() -> None:
    candidate = load_candidate(SENSOR / "candidate.toml")
    temporary = r"C:\Windows\Temp" + "\\"
    assert candidate.copies() == [
        (SENSOR / "sensor.inf", temporary + "sensor.inf"),
        (SENSOR / "built/a-o2/sensor.sys", temporary + "sensor.sys"),
        (
            SENSOR / "content/benign/C-00000291-00000031.sys",
            temporary + "C-00000291-00000031.sys",
        ),
    ]
    assert candidate.install[0].run[0].endswith("pnputil.exe")
    assert candidate.driver.installed == SENSOR_PATH
    content = candidate.default_content()
    assert content is not None
    assert [file.name for file in content.files] == ["C-00000291-00000031.sys"]
    assert candidate.symbol_folders == [SENSOR / "built/a-o2"]


def test_sc() -> None:
    candidate = load_candidate(SENSOR / "candidate-sc.toml")
    assert candidate.copies() == [(SENSOR / "built/a-o2/sensor.sys", SENSOR_PATH)]
    assert candidate.default_content() is None
    assert [step.run[1] for step in candidate.install] == ["create", "start"]


def test_msi(folder: Path) -> None:
    candidate = load(folder, MSI)
    (step,) = candidate.install
    assert (step.success, step.reboot, step.seconds) == ([0], [3010, 1641], 600)
    assert step.restart == "if-asked"
    assert candidate.uninstall[0].restart == "always"
    assert candidate.roll_back == []


def test_exe(folder: Path) -> None:
    candidate = load(folder, EXE)
    assert candidate.copies() == [(folder / "setup.exe", r"C:\Windows\Temp\agent-setup.exe")]
    content = candidate.default_content()
    assert content is not None
    assert [file.name for file in content.files] == ["a.rules", "b.rules"]
    assert [probe.name for probe in candidate.probes()] == ["rules are current"]
    assert candidate.recovery is not None
    assert candidate.recovery.replace == {r"C:\Windows\System32\drivers\agent.sys": "agent.sys"}


def test_identity_is_of_every_file_that_matters(folder: Path) -> None:
    before = load(folder, EXE).identity()
    assert before == {
        name: sha256(folder / name)
        for name in ("agent.sys", "candidate.toml", "rules/a.rules", "rules/b.rules", "setup.exe")
    }
    (folder / "rules/b.rules").write_bytes(b"changed")
    after = load(folder, EXE).identity()
    assert {name for name in after if after[name] != before[name]} == {"rules/b.rules"}


# Wrong ones


def changed(text: str, old: str, new: str) -> str:
    assert text.count(old) >= 1
    return text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "agent"\n', "", "candidate.toml:1: name: this key must be given"),
        ("schema = 1", "schema = 2", "candidate.toml:1: schema: Input should be 1 (found 2)"),
        (
            'module = "agent.sys"',
            "module = 7",
            "candidate.toml:8: driver.module: Input should be a valid string (found 7)",
        ),
        (
            'restart = "always"',
            'restart = "maybe"',
            "candidate.toml:25: uninstall[1].restart: Input should be 'always', 'if-asked' or"
            " 'never' (found 'maybe')",
        ),
        (
            "seconds = 600",
            "timeout = 600",
            "candidate.toml:18: install[1].timeout: no such key; expected one of delete, reboot,"
            " replace, restart, run, seconds, success",
        ),
        (
            "seconds = 600",
            "seconds = 0",
            "candidate.toml:18: install[1].seconds: Input should be greater than 0 (found 0)",
        ),
        (
            r"installed = 'C:\Windows",
            r"installed = 'Windows",
            "candidate.toml:9: driver.installed: String should match pattern",
        ),
        (
            MSIEXEC,
            '"msiexec.exe"',
            "candidate.toml:16: install[1].run: expected a program by its full guest path",
        ),
        (
            '"CUSTOMER_ID"',
            '"CUSTOMER"',
            "candidate.toml:1: a run uses secret 'CUSTOMER_ID': name it in secrets",
        ),
        ("[[install]]", "[[setup]]", "candidate.toml:15: setup: no such key; expected one of"),
        ("schema = 1", "schema =", "candidate.toml: not TOML: Invalid value (at line 1,"),
        (
            '"*.msi"',
            '"*.exe2"',
            "candidate.toml:12: files[1].source: no file at *.exe2",
        ),
        (
            '"agent.sys"',
            '"missing.sys"',
            "candidate.toml:7: driver.image: expected a kernel driver for x64: missing.sys cannot"
            " be read: No such file or directory",
        ),
    ],
)
def test_wrong_key(folder: Path, old: str, new: str, said: str) -> None:
    assert said in refusal(folder, changed(MSI, old, new))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            'run = [\'C:\\Windows\\Temp\\agent-setup.exe\', "/quiet", "/norestart"]\n',
            "",
            "candidate.toml:14: install[1]: expected either run, or delete and replace",
        ),
        (
            "'^rules: current'",
            "'^rules: ('",
            "content.verify[1].expect: expected a regular expression: missing ), unterminated",
        ),
        ('files = "rules/*"', 'files = "nothing/*"', "expected at least one content file"),
        ("[recovery]\n", "[recovery]\nblame = 1\n", "recovery.blame: no such key"),
        ('= "agent.sys" }', '= "old.sys" }', "no file at old.sys"),
        (
            "'C:\\Windows\\Temp\\agent-setup.exe'\n",
            "'agent-setup.exe'\n",
            "files[1].target: String should match pattern",
        ),
    ],
)
def test_wrong_key_of_the_exe_shape(folder: Path, old: str, new: str, said: str) -> None:
    assert said in refusal(folder, changed(EXE, old, new))


def test_all_that_is_wrong_is_said_at_once(folder: Path) -> None:
    text = changed(changed(MSI, 'name = "agent"\n', ""), "schema = 1", "schema = 2")
    assert len(refusal(folder, text).splitlines()) == 2
    text = changed(changed(EXE, '"setup.exe"', '"none.exe"'), '"rules/*"', '"none/*"')
    assert len(refusal(folder, text).splitlines()) == 2


def test_several_files_need_a_folder(folder: Path) -> None:
    (folder / "other.msi").write_bytes(b"2")
    text = changed(MSI, "'C:\\Windows\\Temp\\'", "'C:\\Windows\\Temp\\x.msi'")
    assert "expected a folder, ending with a backslash, for 2 files" in refusal(folder, text)


def test_candidate_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CandidateFileError, match=r"none\.toml: cannot be read: No such file"):
        load_candidate(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe4"')
    with pytest.raises(CandidateFileError, match="expected a TOML file in UTF-8"):
        load_candidate(tmp_path / "latin.toml")


# Drivers


def with_field(data: bytes, offset: int, form: str, value: int) -> bytes:
    """The image with a field of its PE header changed; offset from "PE"."""
    image = bytearray(data)
    (header,) = struct.unpack_from("<I", image, 0x3C)
    struct.pack_into(form, image, header + offset, value)
    return bytes(image)


SYS = (built("a-o2") / "sensor.sys").read_bytes()


@pytest.mark.parametrize(
    ("image", "said"),
    [
        pytest.param(b"", "is no PE", id="empty"),
        pytest.param(b"MZ but nothing else", "is no PE", id="no PE"),
        pytest.param(b"\x7fELF" + SYS[4:], "is no PE", id="ELF"),
        pytest.param(b"MZ" + b"\xff" * 200, "is no PE", id="header nowhere"),
        pytest.param(
            with_field(SYS, 4, "<H", 0x14C), "is for another machine: i386", id="another machine"
        ),
        pytest.param(with_field(SYS, 4, "<H", 0xAA64), "another machine: ARM64", id="ARM64"),
        pytest.param(
            with_field(SYS, 24 + 68, "<H", 3),
            "is a console program, no kernel driver",
            id="program",
        ),
        pytest.param(SYS[:5000], "is cut off: 5000 bytes, and a section ends at", id="cut off"),
    ],
)
def test_file_that_is_no_driver(folder: Path, image: bytes, said: str) -> None:
    (folder / "agent.sys").write_bytes(image)
    text = refusal(folder, MSI)
    assert re.match(r"candidate\.toml:7: driver\.image: expected a kernel driver for x64", text)
    assert said in text


# Content


def test_content_of_a_folder_and_of_a_file() -> None:
    killer = load_content(SENSOR / "content/killer", "C-*.sys")
    assert killer.name == "killer"
    (file,) = killer.files
    assert file.sha256 == sha256(file.path)
    assert load_content(file.path).files == (file,)


def test_content_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ContentError, match="nowhere: expected a content file or a folder"):
        load_content(tmp_path / "nowhere")
    with pytest.raises(ContentError, match="expected at least one content file, found none"):
        load_content(tmp_path)
    (tmp_path / "README").write_text("no content")
    with pytest.raises(ContentError, match="found none"):
        load_content(tmp_path, "*.sys")
    (tmp_path / "C-1.sys").write_bytes(b"")
    with pytest.raises(ContentError, match=r"C-1\.sys: expected content, found 0 bytes"):
        load_content(tmp_path, "*.sys")
