"""Images: found, built once, hashed, and held to what a record says; wrong ones are explained."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from images.contract import CATALOG, load_catalog, load_contract
from lab.config import ConfigError, load_config
from lab.images import (
    MIB,
    SETTLED_NANOSECONDS,
    ImageError,
    ImageStore,
    disk_format,
    sha256_of,
    worst_case_dump_bytes,
)
from lab.outcome import Outcome
from tests.support.waiting import wait_for

ROOT = CATALOG.parent.parent
KNOWN = next(iter(load_catalog().values()))
CONTRACT = (CATALOG.parent / KNOWN.contract).read_text()
Opener = Callable[..., ImageStore]
DEADLINE = 60.0


def silent(_text: str) -> None:
    """For those who want no progress."""


def make_disk(path: Path, *, size: str = "1M", backing: Path | None = None) -> Path:
    options = [] if backing is None else ["-F", "qcow2", "-b", str(backing)]
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", *options, str(path), size], check=True
    )
    return path


def age(path: Path) -> None:
    """Makes a file old enough for its hash to be kept."""
    old = path.stat().st_mtime_ns - 10 * SETTLED_NANOSECONDS
    os.utime(path, ns=(old, old))


@pytest.fixture
def open_images(tmp_path: Path) -> Opener:
    """The images of a lab.toml whose [images.own] has some keys; its contract is a known one."""
    (tmp_path / "own.toml").write_text(CONTRACT)

    def open_images(keys: str) -> ImageStore:
        file = tmp_path / "lab.toml"
        file.write_text(
            f'schema = 1\nstore = "store"\n[images.own]\ncontract = "own.toml"\n{keys}\n'
        )
        return ImageStore(load_config(file))

    return open_images


def builder(folder: Path, body: str) -> str:
    """A build command: a Python program that gets the disk's path and runs `body`."""
    (folder / "build.py").write_text(
        "import subprocess, sys, time\n"
        "from pathlib import Path\n"
        "output = Path(sys.argv[1])\n"
        "def disk():\n"
        "    command = ['qemu-img', 'create', '-q', '-f', 'qcow2', output, '1M']\n"
        "    subprocess.run(command, check=True)\n"
        f"{body}\n"
    )
    return 'build = "python build.py OUTPUT.qcow2"'


# Found


def test_a_configured_image_has_its_contract_and_files(open_images: Opener, tmp_path: Path) -> None:
    make_disk(tmp_path / "own.qcow2")
    (tmp_path / "own.nvram").write_bytes(b"variables")
    for folder in ("tpm", "pdbs"):
        (tmp_path / folder).mkdir()
    image = open_images(
        'disk = "own.qcow2"\nnvram = "own.nvram"\ntpm = "tpm"\nsymbols = ["pdbs"]'
    ).image("own", silent)
    assert image.contract == load_contract(tmp_path / "own.toml")
    assert image.disk == tmp_path / "own.qcow2"
    assert (image.nvram, image.tpm) == (tmp_path / "own.nvram", tmp_path / "tpm")
    assert image.symbols == (tmp_path / "pdbs",)


@pytest.mark.parametrize(
    ("key", "what"), [("nvram", "no file"), ("tpm", "no folder"), ("symbols", "no folder")]
)
def test_a_missing_part_is_named(open_images: Opener, tmp_path: Path, key: str, what: str) -> None:
    make_disk(tmp_path / "own.qcow2")
    value = '["absent"]' if key == "symbols" else '"absent"'
    with pytest.raises(ImageError, match=rf"lab\.toml:6: images\.own\.{key}: there is {what}"):
        open_images(f'disk = "own.qcow2"\n{key} = {value}').image("own", silent)


def test_a_missing_disk_names_the_line_of_lab_toml(open_images: Opener, tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        open_images('disk = "absent.qcow2"').image("own", silent)
    assert caught.value.outcome is Outcome.INFRASTRUCTURE
    assert f"{tmp_path / 'lab.toml'}:5: images.own.disk" in str(caught.value)
    assert str(tmp_path / "absent.qcow2") in str(caught.value)


def test_a_wrong_contract_is_the_harness_fault(open_images: Opener, tmp_path: Path) -> None:
    make_disk(tmp_path / "own.qcow2")
    images = open_images('disk = "own.qcow2"')
    (tmp_path / "own.toml").write_text("schema = 1")
    with pytest.raises(ConfigError, match=r"own\.toml.*wrong"):
        images.image("own", silent)


@pytest.mark.parametrize("content", [b"", b"KDMV" + bytes(2000), b"vhdxfile" + bytes(2000)])
def test_a_disk_of_another_kind_is_refused(
    open_images: Opener, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "own.vmdk").write_bytes(content)
    with pytest.raises(ImageError, match=r"expected a qcow2 disk.*qemu-img convert"):
        open_images('disk = "own.vmdk"').image("own", silent)


def test_a_raw_disk_is_known_by_its_partition_table(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(510) + b"\x55\xaa" + bytes(512))
    assert disk_format(disk) == "raw"
    with pytest.raises(ImageError, match="cannot be read"):
        disk_format(tmp_path)


def test_an_expected_hash_is_asked_for(open_images: Opener, tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "own.qcow2")
    right = hashlib.sha256(disk.read_bytes()).hexdigest()
    open_images(f'disk = "own.qcow2"\nsha256 = "{right}"').image("own", silent)
    images = open_images(f'disk = "own.qcow2"\nsha256 = "{"0" * 64}"')
    with pytest.raises(ImageError, match=rf"lab\.toml:6: images\.own\.sha256.*found {right}"):
        images.image("own", silent)


# Hashed


def test_a_hash_is_kept_until_the_file_changes(tmp_path: Path) -> None:
    file, cache = tmp_path / "file", tmp_path / "store" / "hashes.json"
    file.write_bytes(b"one")
    age(file)
    one = hashlib.sha256(b"one").hexdigest()
    assert sha256_of(file, cache) == one
    # That it is the cache that answers is seen by what was put there.
    kept = json.loads(cache.read_text())
    kept[str(file)] = kept[str(file)].replace(one, "kept")
    cache.write_text(json.dumps(kept))
    assert sha256_of(file, cache) == "kept"
    file.write_bytes(b"two")
    assert sha256_of(file, cache) == hashlib.sha256(b"two").hexdigest()


def test_a_file_of_the_same_size_and_time_in_another_place_is_another(tmp_path: Path) -> None:
    file, other, cache = tmp_path / "file", tmp_path / "other", tmp_path / "hashes.json"
    file.write_bytes(b"one")
    other.write_bytes(b"two")
    age(file)
    time = file.stat().st_mtime_ns
    os.utime(other, ns=(time, time))
    assert sha256_of(file, cache) == hashlib.sha256(b"one").hexdigest()
    other.rename(file)
    assert sha256_of(file, cache) == hashlib.sha256(b"two").hexdigest()


def test_a_file_that_changed_just_now_is_not_kept(tmp_path: Path) -> None:
    file, cache = tmp_path / "file", tmp_path / "hashes.json"
    file.write_bytes(b"one")
    ahead = file.stat().st_mtime_ns + 3600 * 10**9  # for ever "just now"
    os.utime(file, ns=(ahead, ahead))
    assert sha256_of(file, cache) == hashlib.sha256(b"one").hexdigest()
    file.write_bytes(b"two")
    os.utime(file, ns=(ahead, ahead))
    assert sha256_of(file, cache) == hashlib.sha256(b"two").hexdigest()


def test_a_damaged_cache_is_made_anew_and_a_missing_file_named(tmp_path: Path) -> None:
    file, cache = tmp_path / "file", tmp_path / "hashes.json"
    file.write_bytes(b"one")
    age(file)
    for damage in ("{", "[]", json.dumps({str(file): 5}), "\x00"):
        cache.write_text(damage)
        assert sha256_of(file, cache) == hashlib.sha256(b"one").hexdigest()
    with pytest.raises(ImageError, match="absent: cannot be read"):
        sha256_of(tmp_path / "absent", cache)


def test_many_processes_share_a_cache(tmp_path: Path) -> None:
    files = [tmp_path / f"file-{number}" for number in range(20)]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]))
        age(file)
    program = (
        "import sys; from pathlib import Path; from lab.images import sha256_of\n"
        "for file in sys.argv[2:]: sha256_of(Path(file), Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "hashes.json"), *map(str, files)]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    for entry in json.loads((tmp_path / "hashes.json").read_text()).values():
        assert len(entry.split()[1]) == 64
    assert [file.name for file in tmp_path.glob("hashes.json*")] == ["hashes.json"]


# Identity


def test_an_unchanged_image_is_what_its_record_says(open_images: Opener, tmp_path: Path) -> None:
    base = make_disk(tmp_path / "base.qcow2")
    make_disk(tmp_path / "own.qcow2", backing=base)
    (tmp_path / "own.nvram").write_bytes(b"variables")
    (tmp_path / "tpm").mkdir()
    (tmp_path / "tpm/state").write_bytes(b"tpm")
    images = open_images('disk = "own.qcow2"\nnvram = "own.nvram"\ntpm = "tpm"')
    image = images.image("own", silent)
    identity = images.identity(image)
    assert set(identity) == {"disk", "backing-1", "nvram", "tpm/state", "contract"}
    assert identity["backing-1"]["path"] == str(base)
    assert identity["nvram"]["sha256"] == hashlib.sha256(b"variables").hexdigest()
    images.verify(image, json.loads(json.dumps(identity)))


@pytest.mark.parametrize(
    ("part", "file"),
    [
        ("disk", "own.qcow2"),
        ("backing-1", "base.qcow2"),
        ("nvram", "own.nvram"),
        ("tpm/state", "tpm/state"),
        ("tpm/new", "tpm/new"),
        ("contract", "own.toml"),
    ],
)
def test_a_changed_image_is_told_by_file(
    open_images: Opener, tmp_path: Path, part: str, file: str
) -> None:
    base = make_disk(tmp_path / "base.qcow2")
    make_disk(tmp_path / "own.qcow2", backing=base)
    (tmp_path / "own.nvram").write_bytes(b"variables")
    (tmp_path / "tpm").mkdir()
    (tmp_path / "tpm/state").write_bytes(b"tpm")
    images = open_images('disk = "own.qcow2"\nnvram = "own.nvram"\ntpm = "tpm"')
    identity = images.identity(images.image("own", silent))
    with (tmp_path / file).open("ab") as changed:
        changed.write(b"\n[[requires]]\nname = 'x'\nprogram = 'C:\\x'\nfix = 'x'\n")
    with pytest.raises(ImageError, match="changed since the record") as caught:
        images.verify(images.image("own", silent), identity)
    assert str(tmp_path / file) in str(caught.value)
    assert part in str(caught.value)


def test_a_comment_in_the_contract_is_no_change(open_images: Opener, tmp_path: Path) -> None:
    make_disk(tmp_path / "own.qcow2")
    images = open_images('disk = "own.qcow2"')
    identity = images.identity(images.image("own", silent))
    (tmp_path / "own.toml").write_text(f"# a remark\n{CONTRACT}")
    images.verify(images.image("own", silent), identity)


def test_a_disk_without_its_backing_file_is_named(open_images: Opener, tmp_path: Path) -> None:
    base = make_disk(tmp_path / "base.qcow2")
    make_disk(tmp_path / "own.qcow2", backing=base)
    images = open_images('disk = "own.qcow2"')
    base.unlink()
    with pytest.raises(ImageError, match=r"base\.qcow2"):
        images.identity(images.image("own", silent))


# Built


def test_an_image_is_built_once_with_its_progress_told(open_images: Opener, tmp_path: Path) -> None:
    count = "Path('built').open('a').write('x')"
    images = open_images(builder(tmp_path, f"print('half of it', flush=True)\ndisk()\n{count}"))
    said: list[str] = []
    first = images.image("own", said.append)
    assert images.image("own", silent).disk == first.disk
    assert (tmp_path / "built").read_text() == "x"
    assert said == ["Building image own: python build.py OUTPUT.qcow2", "  half of it"]
    assert first.base.parent == tmp_path / "store/images"
    assert not os.stat(first.base).st_mode & 0o222


def test_an_image_is_built_anew_when_command_contract_or_inputs_change(
    open_images: Opener, tmp_path: Path
) -> None:
    keys = builder(tmp_path, "disk()") + '\ninputs = ["sources"]'
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources/kernel").write_text("one")
    disks = [open_images(keys).image("own", silent).disk]
    (tmp_path / "sources/kernel").write_text("two")
    disks.append(open_images(keys).image("own", silent).disk)
    (tmp_path / "own.toml").write_text(f"{CONTRACT}\n# changed")
    disks.append(open_images(keys).image("own", silent).disk)
    changed = keys.replace("OUTPUT.qcow2", "OUTPUT.qcow2 more")
    disks.append(open_images(changed).image("own", silent).disk)
    assert len(set(disks)) == 4


def test_two_who_want_an_image_build_it_once(open_images: Opener, tmp_path: Path) -> None:
    count = "Path('built').open('a').write('x')"
    os.mkfifo(tmp_path / "go")
    wait = "open('go').read()"  # until somebody writes to it
    images = open_images(builder(tmp_path, f"{count}\nprint('there', flush=True)\n{wait}\ndisk()"))
    said: list[str] = []
    threads = [threading.Thread(target=images.image, args=("own", said.append)) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_for(
        "one to build and one to wait",
        lambda: "  there" in said and any("Waiting for" in text for text in said),
        DEADLINE,
    )
    (tmp_path / "go").write_text("")
    for thread in threads:
        thread.join(DEADLINE)
    assert (tmp_path / "built").read_text() == "x"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("print('no room on device'); sys.exit(3)", ["ended with 3", "  no room on device"]),
        ("[print(n) for n in range(50)]; sys.exit(1)", ["\n  30\n", "  49"]),
        ("pass", ["wrote no qcow2 disk"]),
        ("output.write_bytes(bytes(510) + b'\\x55\\xaa')", ["wrote no qcow2 disk"]),
        ("output.write_bytes(b'text')", ["expected a qcow2 disk"]),
    ],
)
def test_a_failed_build_is_explained_and_leaves_nothing(
    open_images: Opener, tmp_path: Path, body: str, told: list[str]
) -> None:
    images = open_images(builder(tmp_path, body))
    with pytest.raises(ImageError) as caught:
        images.image("own", silent)
    for part in told:
        assert part in str(caught.value)
    assert "  29\n" not in str(caught.value)
    assert list((tmp_path / "store/images").glob("*.qcow2")) == []


def test_a_build_command_that_is_not_there_is_named(open_images: Opener) -> None:
    with pytest.raises(ImageError, match=r"cannot be built \(no-such-program"):
        open_images('build = "no-such-program OUTPUT.qcow2"').image("own", silent)


def test_an_interrupted_build_is_ended_with_all_it_started(
    open_images: Opener, tmp_path: Path
) -> None:
    body = (
        "child = subprocess.Popen(['sleep', '600'])\nprint(child.pid, flush=True)\ntime.sleep(600)"
    )
    images = open_images(builder(tmp_path, body))
    pids: list[int] = []

    def interrupt(text: str) -> None:
        if text.startswith("  "):
            pids.append(int(text))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        images.image("own", interrupt)

    def ended() -> bool:
        stat = Path(f"/proc/{pids[0]}/stat")
        return not stat.exists() or ") Z" in stat.read_text()

    wait_for("the build's own child to end", ended, DEADLINE)


def test_the_leavings_of_a_killed_build_are_removed(open_images: Opener, tmp_path: Path) -> None:
    builder(tmp_path, "output.touch()\nprint('there', flush=True)\ntime.sleep(600)")
    keys = 'build = "python build.py OUTPUT.qcow2"\n'
    images = open_images(keys)
    program = (
        "import sys; from pathlib import Path; from lab.config import load_config\n"
        "from lab.images import ImageStore\n"
        "def say(text): print(text, flush=True)\n"
        "ImageStore(load_config(Path(sys.argv[1]))).image('own', say)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "lab.toml")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        while process.stdout.readline() != "  there\n":
            pass
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGKILL)
    builder(tmp_path, "disk()")
    said: list[str] = []
    waiting = threading.Thread(target=images.image, args=("own", said.append))
    waiting.start()
    # The build itself outlived its lab: no second one begins beside it.
    wait_for("the second to wait", lambda: any("Waiting for" in text for text in said), DEADLINE)
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    waiting.join(DEADLINE)
    found = sorted(file.name for file in (tmp_path / "store/images").glob("*.qcow2"))
    assert found == [images.image("own", silent).base.name]


# Contracts


def test_the_worst_case_counts_each_dump_of_each_crash() -> None:
    contract = load_contract(CATALOG.parent / KNOWN.contract)
    hardware = contract.hardware.model_copy(update={"memory_mib": 1000})
    boot = contract.boot.model_copy(update={"loop_after_crashes": 2})
    dump = contract.dump.model_copy(update={"staged_bytes": 100 * MIB})
    changed = contract.model_copy(update={"hardware": hardware, "boot": boot, "dump": dump})
    assert worst_case_dump_bytes(changed) == (3 * (2 * 100 + 1064) + 64) * MIB
    dump = contract.dump.model_copy(update={"staged_bytes": 5000 * MIB})
    changed = changed.model_copy(update={"dump": dump})
    assert worst_case_dump_bytes(changed) == (3 * 3 * 1064 + 64) * MIB


def test_the_windows_contract_is_one_and_says_that_it_was_never_tried() -> None:
    file = CATALOG.parent / "windows/contract.toml"
    contract = load_contract(file)
    assert "NEVER TRIED" in file.read_text()
    asked = " ".join(
        " ".join([requirement.program, *requirement.arguments, requirement.name])
        for requirement in contract.requires
    )
    for part in (
        "QEMU-GA", "CrashDumpEnabled", "AutoReboot", "Emergency Management", "HiberbootEnabled",
        "BitLocker", "PVPanic", "FwCfg", "test-signed",
    ):  # fmt: skip
        assert part in asked
    names = [requirement.name for requirement in contract.requires]
    assert len(set(names)) == len(names)
    # What the pagefile is set to and what the contract promises of it are one number.
    (pagefile,) = [r for r in contract.requires if "PagingFiles" in r.arguments]
    assert pagefile.expect is not None
    assert f"{contract.dump.staged_bytes // MIB} " in pagefile.expect
    assert contract.dump.staged_bytes == (contract.hardware.memory_mib + 257) * MIB
