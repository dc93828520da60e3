"""Physical machines in lab.toml: the one of docs/hardware.md, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from images.contract import CATALOG
from lab.config import ConfigError, load_config
from lab.lab import Lab
from lab.outcome import LabError

TEXT = (Path(__file__).parents[3] / "docs/hardware.md").read_text()
(EXAMPLE,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)


def written(folder: Path, *changes: tuple[str, str]) -> Path:
    """The lab.toml of docs/hardware.md with texts replaced, and the files that it names."""
    contract = (CATALOG.parent / "test_kernel/contract.toml").read_text()
    (folder / "windows-11.toml").write_text(
        contract.replace('kind = "qemu-guest-agent"', 'kind = "ssh"')
    )
    (folder / "secrets.toml").write_text('pdu-auth = "a"\npdu-priv = "b"\nm1-bmc = "c"\n')
    (folder / "m1_key").write_text("a key")
    text = EXAMPLE.replace("/srv/lab", "store").replace('"5A:0C:..."', f'"{"5A:" * 31}0C"')
    for before, after in changes:
        assert before in text, before
        text = text.replace(before, after, 1)
    file = folder / "lab.toml"
    file.write_text(text)
    return file


def test_the_example_can_be_used_as_it_is(tmp_path: Path) -> None:
    with Lab(load_config(written(tmp_path))) as lab:
        assert lab.features_of("m1") == {"console-log", "console-type", "nmi", "reset", "ssh"}
        assert lab.slots(image="windows-11-24h2") == ["m1"]
        image = lab.images.image("windows-11-24h2", lambda _: None)
        assert image.disk is None
        assert lab.images.identity(image).keys() == {"contract"}


@pytest.mark.parametrize(
    ("changes", "features"),
    [
        ([('bmc = "m1-bmc"\n', "")], {"console-log", "console-type", "ssh"}),
        (
            [('bmc = "m1-bmc"\n', ""), ('power = "rack-a:7"', 'power = "m1-bmc"')],
            {"console-log", "console-type", "nmi", "reset", "ssh"},
        ),
        (
            [('password_secret = "m1-bmc"', 'password_secret = "m1-bmc"\nlacks = ["nmi"]')],
            {"console-log", "console-type", "reset", "ssh"},
        ),
        ([("[machines.m1.console]\nurl", "[machines.m1.x]\nurl")], None),
    ],
)
def test_a_machine_has_what_its_parts_have(
    tmp_path: Path, changes: list[tuple[str, str]], features: set[str] | None
) -> None:
    file = written(tmp_path, *changes)
    if features is None:
        with pytest.raises(ConfigError, match=r"machines\.m1\.x"):
            load_config(file)
        return
    with Lab(load_config(file)) as lab:
        assert lab.features_of("m1") == features


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ('power = "rack-a:7"\n', "", "machines.m1: expected power = "),
        ('bmc = "m1-bmc"', 'bmc = "rack-a:8"', "machines.m1.bmc: expected the [power.NAME] of a B"),
        ('bmc = "m1-bmc"', 'bmc = "m2-bmc"', 'no [power.m2-bmc]; did you mean "m1-bmc"'),
        ('bmc = "m1-bmc"', 'bmc = "m1-bmc"\ncount = 2', "a count of 1"),
        ("installed = true", 'installed = true\ndisk = "a.qcow2"', "found disk and installed"),
        ('key = "m1_key"', 'key = "absent"', "machines.m1.ssh.key: expected a file"),
        ('backend = "machine"', 'backend = "libvirt"', "machines.m1: expected a host"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, before: str, after: str, told: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        load_config(written(tmp_path, (before, after)))
    assert told in str(wrong.value)


def test_an_image_with_a_disk_is_refused_and_so_is_an_installed_one(tmp_path: Path) -> None:
    (tmp_path / "base.qcow2").write_bytes(b"QFI\xfb" + bytes(512))
    file = written(tmp_path, ("installed = true", 'disk = "base.qcow2"'))
    refused = pytest.raises(LabError, match="does not fit m1: it has a disk, and nothing can be wr")
    with Lab(load_config(file)) as lab, refused:
        lab.slots(image="windows-11-24h2")
    virtual = '[machines.vm]\nbackend = "libvirt"\nhost = "here"\n[hosts.here]\nuri = "private"\n'
    file = written(tmp_path, ("[machines.m1]", f"{virtual}[machines.m1]"))
    with Lab(load_config(file)) as lab:
        assert lab.slots(image="windows-11-24h2") == ["m1"]
        with pytest.raises(LabError, match="does not fit vm: it is installed on physical machine"):
            lab.slots("vm", image="windows-11-24h2")
