"""Dumps in .gz, .zst and .zip open as they are, within limits, and no file is changed."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import struct
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from crashdump_analysis import DumpError, State, check_dump, triage
from crashdump_analysis.dump import dump_paths, open_dump, unpack, zip_members
from tests.support.synthetic_dump import FULL, crashed_machine

KEY = b"secret"


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, 1)


def two_members(data: bytes) -> bytes:
    """As parallel compressors write it, and with the zeros behind it that tapes have."""
    return gzipped(data[:0x5000]) + gzipped(data[0x5000:]) + bytes(5000)


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=1).compress(data)


def zstd_stream(data: bytes) -> bytes:
    """Without a size in its header, with a checksum, behind a frame that says nothing."""
    writer = zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compressobj()
    return struct.pack("<II", 0x184D2A55, 3) + b"abc" + writer.compress(data) + writer.flush()


def two_frames(data: bytes) -> bytes:
    return zstd(data[:0x5000]) + zstd_stream(data[0x5000:])


def zipped(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method, compresslevel=1) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return out.getvalue()


def zip_of_one(data: bytes) -> bytes:
    return zipped(("readme.txt", b"hello"), ("folder/a b.DMP", data), ("folder/", b""))


def stored(data: bytes) -> bytes:
    return zipped(("no extension", data), method=zipfile.ZIP_STORED)


every_compression = pytest.mark.parametrize(
    "compressed",
    [gzipped, two_members, zstd, zstd_stream, two_frames, zip_of_one, stored],
    ids=lambda one: one.__name__,
)


def written(folder: Path, data: bytes, name: str = "no-extension") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def refusal(path: Path) -> str:
    """Why the file is refused; `check_dump` says the same."""
    with pytest.raises(DumpError) as caught, open_dump(path):
        pytest.fail("was opened")
    assert str(path) in str(caught.value)
    found = check_dump(path)
    assert (found.state, found.words) == (State.NOT_A_DUMP, str(caught.value))
    return str(caught.value)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, which stays empty: the files have no name."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@every_compression
def test_a_compressed_dump_has_the_report_of_the_dump(
    tmp_path: Path, temporary: Path, compressed: Callable[[bytes], bytes]
) -> None:
    data = crashed_machine().dump(FULL)
    plain = written(tmp_path, data, "plain.dmp")
    path = written(tmp_path, compressed(data))
    before = (hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns)
    expected, report = triage(plain), triage(path)
    assert report.dump.path == str(path)
    assert (report.dump.size, report.stack) == (len(data), expected.stack)
    assert report.bucket == expected.bucket
    found = check_dump(path)
    assert (found.state, found.size, found.required) == (State.COMPLETE, len(data), len(data))
    with open_dump(path) as dump, open_dump(plain) as other:
        assert dump.contents.data[:] == other.contents.data[:]
        assert not list(temporary.iterdir())
    assert before == (hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns)


@every_compression
def test_a_cut_file_is_refused_and_says_so(
    tmp_path: Path, compressed: Callable[[bytes], bytes]
) -> None:
    whole = compressed(crashed_machine().dump(FULL)).rstrip(b"\0")
    for size in (len(whole) - 1, len(whole) - 9, len(whole) // 2, 20):
        refusal(written(tmp_path, whole[:size]))


@every_compression
def test_a_changed_bit_is_noticed(tmp_path: Path, compressed: Callable[[bytes], bytes]) -> None:
    """By a checksum where there is one. zstd needs none: then the dump may differ."""
    data = crashed_machine().dump(FULL)
    whole = compressed(data)
    for at in range(len(whole) // 3, len(whole), len(whole) // 7):
        changed = bytearray(whole)
        changed[at] ^= 0x10
        path = written(tmp_path, bytes(changed))
        try:
            with open_dump(path) as dump:
                same = dump.contents.data[:] == data
        except DumpError:
            continue
        assert same or compressed in (zstd, two_frames)


def zip_of_three(machine_code: int = 0xD1) -> bytes:
    data = crashed_machine(machine_code).dump(FULL)
    return zipped(
        ("Minidump/1.dmp", data),
        ("notes.txt", b"what I did"),
        ("Minidump/2.dmp", crashed_machine(0x50, (1, 0, 0, 2)).dump()),
        ("memory", data),
        ("broken.dmp", bytes(0x2000)),
    )


def test_every_dump_of_an_archive_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, zip_of_three(), "three.zip")
    names = dump_paths(path)
    members = ["Minidump/1.dmp", "Minidump/2.dmp", "memory", "broken.dmp"]
    assert names == [f"{path}!{one}" for one in members]
    codes = []
    for name in names[:3]:
        report = triage(name)
        assert report.dump.path == name
        codes.append(report.bug_check.code)
    assert codes == [0xD1, 0x50, 0xD1]
    with pytest.raises(DumpError, match="only zeros"):
        triage(names[3])
    assert check_dump(names[3]).state is State.ALL_ZERO
    words = refusal(path)
    assert "a zip with 4 dumps" in words
    assert names[0] in words


def test_a_file_that_is_no_archive_is_its_own_dump(tmp_path: Path) -> None:
    for data in (crashed_machine().dump(), b"", gzipped(b"x"), b"MZ"):
        path = written(tmp_path, data)
        assert dump_paths(path) == [str(path)]
    assert dump_paths(tmp_path / "none") == [str(tmp_path / "none")]
    assert dump_paths(tmp_path) == [str(tmp_path)]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.zip!2.dmp", "4 members: "),
        ("a.zip!", "4 members: "),
        ("a.zip!twice.dmp", "2 members of that name"),
        ("plain!1.dmp", "expected a zip archive"),
        ("none.zip!1.dmp", "nothing there"),
        ("none.zip!a!b!c", "nothing there"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_is_not_there(tmp_path: Path, name: str, found: str) -> None:
    data = crashed_machine().dump()
    members = [("1.dmp", data), ("twice.dmp", data), ("twice.dmp", data), ("!", b"")]
    written(tmp_path, zipped(*members), "a.zip")
    written(tmp_path, data, "plain")
    assert found in refusal(tmp_path / name)


@pytest.mark.parametrize(
    "member",
    ["../../etc/dump.dmp", "/etc/dump.dmp", "C:\\dump.dmp", "a!b.dmp", "a//b.dmp", "\x1b[31m.dmp"],
)
def test_a_name_is_never_a_path(tmp_path: Path, temporary: Path, member: str) -> None:
    path = written(tmp_path, zipped((member, crashed_machine().dump())), "a!b.zip")
    before = sorted(tmp_path.rglob("*"))
    (name,) = dump_paths(path)
    assert name.isprintable()
    assert triage(name).bug_check.code == triage(path).bug_check.code == 0xD1
    assert sorted(tmp_path.rglob("*")) == before


def encrypted() -> bytes:
    data = bytearray(zipped(("a.dmp", crashed_machine().dump())))
    for at in (data.find(b"PK\3\4") + 6, data.find(b"PK\1\2") + 8):
        data[at] |= 1
    return bytes(data)


def with_method(number: int) -> bytes:
    data = bytearray(zipped(("a.dmp", crashed_machine().dump())))
    for at in (data.find(b"PK\3\4") + 8, data.find(b"PK\1\2") + 10):
        data[at] = number
    return bytes(data)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (encrypted, "a member that only a password opens"),
        (lambda: with_method(9), "compression method deflate64"),
        (lambda: with_method(14), "compression method LZMA"),
        (lambda: with_method(77), "compression method 77"),
        (zipped, "0 members"),
        (lambda: zipped(("a.txt", b"x"), ("b.txt", b"y")), "2 members: a.txt, b.txt"),
        (lambda: zipped(*((f"{n}.txt", b"") for n in range(9))), "4.txt and 4 others"),
        (lambda: zipped(("a.dmp", b"")), "an empty file"),
        (lambda: zipped(("a.dmp", zipped(("b.dmp", b"PAGEDU64")))), "a zip archive"),
        (lambda: zipped(("a.dmp", gzipped(crashed_machine().dump()))), "a gzip file"),
        (lambda: gzipped(zstd(crashed_machine().dump())), "a zstd file"),
        (lambda: zstd(zip_of_three()), "a zip archive"),
        (lambda: gzipped(crashed_machine().dump()) + b"rubbish", "incorrect header check"),
        (lambda: gzipped(b""), "an empty file"),
        (lambda: zstd(b""), "an empty file"),
        (lambda: gzipped(b"\x7fELF" * 100), "an ELF file"),
        (lambda: b"PK\3\4" + bytes(100), "not a zip file"),
        (lambda: b"\x1f\x8b" + bytes(100), "unknown compression method"),
        (lambda: b"\x28\xb5\x2f\xfd" + b"\xff" * 100, "expected zstd data"),
    ],
)
def test_what_cannot_be_unpacked_is_named(
    tmp_path: Path, make: Callable[[], bytes], expected: str
) -> None:
    found = check_dump(written(tmp_path, make()))
    assert expected in found.words
    with pytest.raises(DumpError, match="no-extension"):
        triage(tmp_path / "no-extension")


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ratio of 20 from 1 MiB on, and 8 MiB at most."""
    monkeypatch.setattr(unpack, "ANY_RATIO", 1 << 20)
    monkeypatch.setattr(unpack, "MAX_RATIO", 20)
    monkeypatch.setattr(unpack, "MAX_SIZE", 8 << 20)


def dump_of_size(size: int, noise: int) -> bytes:
    """A full dump with so many bytes behind it, some of which cannot be compressed."""
    data = crashed_machine().dump(FULL) + os.urandom(noise)
    return data + bytes(size - len(data))


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize(
    "compressed", [gzipped, zstd_stream, zip_of_one], ids=lambda one: one.__name__
)
def test_the_limits(tmp_path: Path, compressed: Callable[[bytes], bytes]) -> None:
    for size, noise, allowed in (
        (1 << 20, 0, True),  # small: any ratio
        ((1 << 20) + 1, 0, False),
        (4 << 20, 400_000, True),  # ratio 10
        (4 << 20, 90_000, False),  # ratio over 20
        (8 << 20, 2 << 20, True),
        ((8 << 20) + 1, 2 << 20, False),
    ):
        path = written(tmp_path, compressed(dump_of_size(size, noise)))
        if allowed:
            assert triage(path).dump.size == size
        else:
            words = refusal(path)
            assert "bytes out of" in words
            assert "20 times as large, 1 MiB at any ratio" in words


@pytest.mark.usefixtures("small_limits")
def test_a_zip_that_lies_about_sizes(tmp_path: Path) -> None:
    """What it unpacks to counts, and not what it says; nor what it says it takes."""
    whole = bytearray(zip_of_one(dump_of_size(3 << 20, 0)))
    entry = whole.find(b"PK\1\2", whole.find(b"PK\1\2") + 1)
    lying = bytearray(whole)
    struct.pack_into("<I", lying, entry + 24, 1000)  # the size in the directory
    assert "Bad CRC" in refusal(written(tmp_path, bytes(lying)))
    lying = bytearray(whole)
    struct.pack_into("<I", lying, entry + 20, 1 << 30)
    assert "members that do not overlap" in refusal(written(tmp_path, bytes(lying)))


def test_a_directory_behind_where_it_says(tmp_path: Path) -> None:
    """Members lie before the start of the file then (found by fuzzing)."""
    whole = bytearray(zipped(("a.dmp", crashed_machine().dump())))
    end = whole.find(b"PK\5\6")
    (start,) = struct.unpack_from("<I", whole, end + 16)
    struct.pack_into("<I", whole, end + 16, start + 100)
    assert "an offset of -100" in refusal(written(tmp_path, bytes(whole)))


def test_a_member_without_a_name(tmp_path: Path) -> None:
    """Found by fuzzing."""
    whole = bytearray(zipped(("a", crashed_machine().dump())))
    for at in (26, whole.find(b"PK\1\2") + 28):
        struct.pack_into("<HH", whole, at, 0, 1)  # the name is other data of the member
    path = written(tmp_path, bytes(whole))
    assert dump_paths(path) == [f"{path}!"]
    assert triage(f"{path}!").bug_check.code == triage(path).bug_check.code == 0xD1


def test_members_that_overlap(tmp_path: Path) -> None:
    """The quoted zip bomb: one compressed block, and a thousand members that all are it."""
    one = zipped(("a.dmp", crashed_machine().dump()))
    at, end = one.find(b"PK\1\2"), one.find(b"PK\5\6")
    tail = bytearray(one[end:])
    struct.pack_into("<HHII", tail, 8, 1000, 1000, 1000 * (end - at), at)
    path = written(tmp_path, one[:at] + one[at:end] * 1000 + bytes(tail))
    for action in (dump_paths, triage):
        with pytest.raises(DumpError, match="members that do not overlap"):
            action(path)


def test_a_directory_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_members, "_MAX_DIRECTORY", 0x10000)
    members = [(f"{number}.dmp", b"") for number in range(2000)]
    assert "a directory of more than 65536 bytes" in refusal(written(tmp_path, zipped(*members)))


def test_progress_is_told_of_what_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack, "_SECONDS", 0.0)
    said: list[str] = []
    path = written(tmp_path, zipped(("a.dmp", dump_of_size(4 << 20, 0))))
    with open_dump(path, said.append):
        pass
    assert said[1] == f"unpacking {path}: 2 of 4 MiB"
    assert len(said) == 4
    assert check_dump(path, said.append).state is State.COMPLETE
    assert len(said) == 8
    assert triage(path, progress=said.append).bug_check.code == 0xD1
    assert len(said) == 12


def no_space(*_: object, **__: object) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_temporary_folder_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, gzipped(crashed_machine().dump()))
    monkeypatch.setattr(unpack, "_SPARE", 1 << 60)
    with pytest.raises(OSError, match="no room to unpack") as caught, open_dump(path):
        pytest.fail("was opened")
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == tempfile.gettempdir()
    assert "TMPDIR" in str(caught.value)
    monkeypatch.setattr(unpack, "_SPARE", 0)
    monkeypatch.setattr(unpack, "_write", no_space)
    with pytest.raises(OSError, match="no room to unpack"), open_dump(path):
        pytest.fail("was opened")


def test_zeros_take_no_room(tmp_path: Path, temporary: Path) -> None:
    path = written(tmp_path, zstd(dump_of_size(128 << 20, 0)))
    began = time.monotonic()
    with open_dump(path) as dump:
        assert dump.size == 128 << 20
        used = sum(os.fstat(number).st_blocks for number in open_files(temporary))
        assert 0 < used * 512 < 8 << 20
    assert time.monotonic() - began < 5


def test_what_is_no_dump_is_not_unpacked(tmp_path: Path) -> None:
    """A bomb of 200 MiB that begins as something else costs one piece of it."""
    path = written(tmp_path, zstd(b"MZ" + bytes(200 << 20)))
    began = time.process_time()
    found = check_dump(path)
    assert "a PE image" in found.words
    assert found.size <= 1 << 20
    assert time.process_time() - began < 0.5


def open_files(folder: Path) -> Iterator[int]:
    """Descriptors of this process whose files lie, or lay, in a folder."""
    for link in Path("/proc/self/fd").iterdir():
        if link.is_symlink() and os.readlink(link).startswith(str(folder)):
            yield int(link.name)
