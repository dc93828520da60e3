"""`lab check`: finds what is missing, says how to mend it, and is content with what is there."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import lab.check
from images.contract import CATALOG, load_catalog
from lab.check import Finding, check, is_ready, print_findings
from lab.config import Config, load_config
from lab.leases import open_leases

KNOWN = next(iter(load_catalog().values()))
CONTRACT = (CATALOG.parent / KNOWN.contract).read_text()
Loader = Callable[..., Config]


@pytest.fixture
def load(tmp_path: Path) -> Loader:
    """A lab.toml with one private host, one image and what else a test adds."""
    (tmp_path / "own.toml").write_text(CONTRACT)
    (tmp_path / "own.qcow2").write_bytes(b"QFI\xfb" + bytes(508))

    def load(uri: str = "private", disk: str = "own.qcow2", more: str = "") -> Config:
        file = tmp_path / "lab.toml"
        file.write_text(
            f"""schema = 1
store = "store"
{more}
[images.own]
contract = "own.toml"
disk = "{disk}"
[hosts.here]
uri = "{uri}"
[machines.vm]
backend = "libvirt"
host = "here"
"""
        )
        return load_config(file)

    return load


def find(findings: list[Finding], what: str) -> Finding:
    (found,) = [finding for finding in findings if finding.what.startswith(what)]
    return found


def test_a_machine_that_runs_these_tests_is_ready(load: Loader) -> None:
    findings = check(load())
    assert is_ready(findings), [finding for finding in findings if not finding.ok]
    printed = io.StringIO()
    assert print_findings(findings, printed)
    assert printed.getvalue().endswith("Ready.\n")


@pytest.mark.parametrize(
    ("program", "package"), [("qemu-img", "qemu-utils"), ("virtlogd", "libvirt-daemon")]
)
def test_a_missing_program_comes_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, package: str
) -> None:
    for name in {*lab.check.PROGRAMS, "mcopy"} - {program}:
        found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
        assert found is not None
        (tmp_path / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(lab.check, "DAEMON_FOLDERS", str(tmp_path))
    findings = check(None)
    finding = find(findings, program)
    assert not finding.ok
    assert finding.fix.startswith("apt-get install ")
    assert package in finding.fix
    assert not is_ready(findings)
    printed = io.StringIO()
    assert not print_findings(findings, printed)
    assert f"LACKS   {program}: not installed\n        fix: {finding.fix}\n" in printed.getvalue()


@pytest.mark.parametrize(("module", "ready"), [("pytsk3", False), ("symbolic", True)])
def test_a_missing_module_matters_if_it_is_required(
    load: Loader, monkeypatch: pytest.MonkeyPatch, module: str, ready: bool
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # what import takes for "not there"
    findings = check(load())
    finding = find(findings, f"Python's {module}")
    assert not finding.ok
    assert "pip install" in finding.fix
    assert is_ready(findings) is ready


def test_without_lab_toml_the_machine_alone_is_looked_at() -> None:
    findings = check(None)
    assert find(findings, "lab.toml").fix.startswith("cp examples/lab.toml")
    assert is_ready(findings)


def test_a_missing_disk_is_found_with_its_line(load: Loader) -> None:
    findings = check(load(disk="absent.qcow2"))
    finding = find(findings, "image own")
    assert not finding.ok
    assert "absent.qcow2" in finding.detail
    assert "lab.toml:4: images.own" in finding.fix
    assert not is_ready(findings)


def test_a_wrong_contract_is_found(load: Loader, tmp_path: Path) -> None:
    config = load()
    (tmp_path / "own.toml").write_text(CONTRACT.replace("[boot]", "[boat]"))
    finding = find(check(config), "image own")
    assert not finding.ok
    assert "boat" in finding.detail


def test_an_image_that_is_not_built_yet_is_fine_and_stays_so(tmp_path: Path, load: Loader) -> None:
    (tmp_path / "lab.toml").write_text(
        'schema = 1\n[images.own]\ncontract = "own.toml"\nbuild = "touch OUTPUT.qcow2"\n'
    )
    findings = check(load_config(tmp_path / "lab.toml"))
    assert find(findings, "image own:").ok
    assert [f.detail for f in findings if f.what == "image own"] == [
        "is built when it is first needed"
    ]
    assert list(tmp_path.rglob("own-*.qcow2")) == []


def test_an_image_too_big_for_the_store_is_found(load: Loader, tmp_path: Path) -> None:
    config = load()
    (tmp_path / "own.toml").write_text(
        CONTRACT.replace("memory_mib = 64", "memory_mib = 1_000_000_000")
    )
    findings = check(config)
    finding = find(findings, "image own: room")
    assert not finding.ok
    assert "MiB are free" in finding.detail
    assert not is_ready(findings)


def test_a_host_that_does_not_answer_is_found(load: Loader) -> None:
    findings = check(load(uri="qemu+unix:///session?socket=/nonexistent/socket"))
    finding = find(findings, "host here")
    assert not finding.ok
    assert "/nonexistent/socket" in finding.detail
    assert "lab.toml:8: hosts.here.uri" in finding.fix


def test_a_host_that_never_answers_is_given_up(
    load: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab.check, "HOST_SECONDS", 0.001)
    assert "no answer within" in find(check(load(uri="test:///default")), "host here").detail


def test_a_host_that_answers_is_fine(load: Loader) -> None:
    assert find(check(load(uri="test:///default")), "host here").ok


def test_a_store_that_cannot_be_written_is_found(load: Loader, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where a folder should be")
    findings = check(load())
    assert not find(findings, "store").ok
    assert not find(findings, "leases").ok


def test_held_machines_are_counted_and_a_damaged_database_is_found(
    load: Loader, tmp_path: Path
) -> None:
    config = load()
    with open_leases(config).acquire(["vm"], holder="me", purpose="x", run_id="x", wait=0):
        assert find(check(config), "leases").detail == "1 of 1 machines are held"
    (tmp_path / "store/leases.sqlite").write_bytes(b"damaged" * 100)
    finding = find(check(config), "leases")
    assert not finding.ok
    assert "leases.sqlite" in finding.detail


def test_secrets_that_others_can_read_are_told(load: Loader, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets.toml"
    secrets.write_text('KEY = "value"\n')
    secrets.chmod(0o644)
    config = load(more='secrets = "secrets.toml"')
    finding = find(check(config), "secrets")
    assert (finding.ok, finding.fix) == (False, f"chmod 600 {secrets}")
    secrets.chmod(0o600)
    assert not [f for f in check(config) if f.what.startswith("secrets")]


def test_power_is_read_and_a_device_that_does_not_answer_is_named(
    load: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAB_SECRET_BMC", "secret")
    config = load(
        more="""[machines.m1]
backend = "machine"
power = "good:1"
bmc = "absent"
[machines.m2]
backend = "machine"
power = "blind:2"
[power.good]
backend = "exec"
status = "echo {outlet} is on"
on = "true"
off = "true"
on_pattern = "is on"
off_pattern = "is off"
[power.blind]
backend = "exec"
on = "true"
off = "true"
[power.absent]
backend = "redfish"
address = "127.0.0.1:9"
user = "lab"
password_secret = "bmc"
"""
    )
    findings = check(config)
    good = find(findings, "power of m1, outlet 1 of good")
    assert (good.ok, good.detail[-8:]) == (True, "reads on")
    blind = find(findings, "power of m2")
    assert blind.ok
    assert "its witness" in blind.detail
    absent = find(findings, "bmc of m1")
    assert (absent.ok, absent.required) == (False, False)
    assert "127.0.0.1:9" in absent.detail
    assert absent.fix.endswith("lab.toml:21: power.absent")


def test_what_takes_long_is_told(load: Loader, tmp_path: Path) -> None:
    os.mkfifo(answer := tmp_path / "answer")
    config = load(
        more=f"""[machines.m1]
backend = "machine"
power = "slow:1"
[power.slow]
backend = "exec"
status = "cat {answer}"
on = "true"
off = "true"
on_pattern = "is on"
off_pattern = "is off"
"""
    )
    command = [sys.executable, "-m", "lab", "check", "--lab", str(config.file)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        told = process.stdout.readline()
        answer.write_text("is on")
        said = process.stdout.read()
    assert "Still at the look at this machine" in told
    assert "reads on" in said
