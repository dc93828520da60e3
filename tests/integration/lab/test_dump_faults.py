"""Dumps that are missing, old, cut short or somebody else's: none counts, each has its reason."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import libvirt
import pytest

from crashdump_analysis.dump.header import HEADER_SIZE
from images.test_kernel.build import MIB
from images.test_kernel.registry import CrashDump, Settings
from lab.disks.edit import Replace, edit
from lab.dumps import DumpStatus
from lab.evidence import Collector
from lab.outcome import Outcome
from tests.support.disk import SYSTEM_TIME
from tests.support.labs import TestLab, crash_by_nmi, lab_folder, make_lab, run_in
from tests.support.sensor import content_files, sensor_driver
from tests.support.waiting import wait_for

NMI = 0x80
MEMORY_DUMP = r"C:\Windows\MEMORY.DMP"
PAGEFILE = r"C:\pagefile.sys"
MINIDUMPS = r"C:\Windows\Minidump"
BUG_CHECK_CODE = 0x38
"""Offset in DUMP_HEADER64."""
SECOND = 10_000_000
"""In a FILETIME."""
SLOW_DISK = 4 * MIB


@pytest.fixture(scope="module")
def module_folder() -> Iterator[Path]:
    """A folder for files that several tests use."""
    with lab_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def whole_dump(module_folder: Path) -> bytes:
    """A dump as a machine wrote it, an hour before."""
    folder = module_folder / "first"
    folder.mkdir()
    lab = make_lab(folder)
    with run_in(lab) as run:
        run.failed("NMI", crash_by_nmi(run))
    (evidence,) = lab.evidence()
    (dump,) = [one for one in evidence["dumps"] if one["file"]]
    assert (dump["status"], dump["path"]) == (DumpStatus.THIS_BOOT, PAGEFILE)
    file: Path = lab.runs[-1] / "evidence" / evidence["folder"] / dump["file"]
    return changed(file.read_bytes(), seconds=-3600)


def changed(dump: bytes, *, code: int = NMI, seconds: int = 0) -> bytes:
    """The same dump with another stop code, or written so much later."""
    copy = bytearray(dump)
    struct.pack_into("<I", copy, BUG_CHECK_CODE, code)
    (time,) = struct.unpack_from("<Q", dump, SYSTEM_TIME)
    struct.pack_into("<Q", copy, SYSTEM_TIME, time + seconds * SECOND)
    return bytes(copy)


def crash(lab: TestLab) -> dict[str, Any]:
    """A machine of the lab crashes; gives evidence.json."""
    with run_in(lab) as run:
        run.failed("NMI", crash_by_nmi(run))
    record = lab.record()
    assert (record.verdict, record.outcome) == ("hold", Outcome.CRASHED)
    assert not list(lab.runs[-1].glob("disk.qcow2*"))
    (evidence,) = lab.evidence()
    return evidence


def by_path(evidence: dict[str, Any]) -> dict[str, str]:
    return {one["path"]: one["status"] for one in evidence["dumps"]}


@pytest.mark.parametrize("pagefile_bytes", [0, 256 * 1024])
def test_no_room_for_a_dump(folder: Path, pagefile_bytes: int) -> None:
    lab = make_lab(folder, pagefile_bytes=pagefile_bytes)
    evidence = crash(lab)
    assert by_path(evidence) == {PAGEFILE: DumpStatus.NO_DUMP, MEMORY_DUMP: DumpStatus.NO_DUMP}
    assert PAGEFILE in evidence["no_dump"]
    assert evidence["stop_code_on_console"] == NMI
    (found,) = lab.record().crashes
    assert found.bug_check == "0x80"
    assert "told on the console" in found.summary


def test_dumps_that_are_off_stop_the_machine(folder: Path) -> None:
    lab = make_lab(
        folder,
        settings=Settings(dump=CrashDump.NONE),
        contract=[('setting = "kernel"', 'setting = "none"')],
    )
    evidence = crash(lab)
    assert "dumps are set to 'none'" in evidence["no_dump"]
    assert [rung["result"] for rung in evidence["rungs"] if rung["name"] == "power off"] == [
        "power cut"
    ]
    assert (lab.runs[-1] / "evidence" / evidence["folder"] / "screen.png").exists()
    assert lab.record().crashes[0].bug_check == "0x80"


def test_what_the_image_brought_is_not_this_boots(folder: Path, whole_dump: bytes) -> None:
    lab = make_lab(
        folder,
        pagefile_bytes=256 * 1024,
        memory_dump=bytes(MIB),
        files={
            rf"{MINIDUMPS}\old.dmp": whole_dump,
            rf"{MINIDUMPS}\cut.dmp": whole_dump[: len(whole_dump) // 2],
            rf"{MINIDUMPS}\header.dmp": whole_dump[: HEADER_SIZE // 2],
            rf"{MINIDUMPS}\empty.dmp": b"",
        },
    )
    evidence = crash(lab)
    assert by_path(evidence) == {
        PAGEFILE: DumpStatus.NO_DUMP,
        MEMORY_DUMP: DumpStatus.ALL_ZERO,
        rf"{MINIDUMPS}\old.dmp": DumpStatus.STALE,
        rf"{MINIDUMPS}\cut.dmp": DumpStatus.HALF_COPIED,
        rf"{MINIDUMPS}\header.dmp": DumpStatus.NO_DUMP,
        rf"{MINIDUMPS}\empty.dmp": DumpStatus.NO_DUMP,
    }
    assert "before this run began" in evidence["no_dump"]
    # Kept all the same, as nobody knows for sure that the guest's clock is right; never counted.
    assert [one["file"] for one in evidence["dumps"] if one["file"]] == ["old.dmp"]
    assert "told on the console" in lab.record().crashes[0].summary


def test_a_new_dump_beside_an_old_one(folder: Path, whole_dump: bytes) -> None:
    lab = make_lab(folder, memory_dump=whole_dump)
    evidence = crash(lab)
    assert by_path(evidence) == {PAGEFILE: DumpStatus.THIS_BOOT, MEMORY_DUMP: DumpStatus.STALE}
    assert [one["path"] for one in evidence["dumps"] if one["file"]] == [PAGEFILE]
    assert lab.record().crashes[0].bug_check == "0x80"


def test_a_dump_counts_only_if_time_and_bug_check_are_the_boots(folder: Path) -> None:
    lab = make_lab(folder, files={rf"{MINIDUMPS}\spare.dmp": b""})
    with run_in(lab) as run:
        error = crash_by_nmi(run)
        machine = run.machine
        wait_for("the end of its dump", lambda: not machine.is_on(), 60)
        with machine.files() as files:
            (size,) = struct.unpack("<Q", files.read(PAGEFILE, 0xFA0, 8, past_valid_data=True))
            dump = files.read(PAGEFILE, 0, size, past_valid_data=True)
        others = {
            rf"{MINIDUMPS}\code.dmp": changed(dump, code=0x50),
            rf"{MINIDUMPS}\late.dmp": changed(dump, seconds=600),
            rf"{MINIDUMPS}\early.dmp": changed(dump, seconds=-600),
            PAGEFILE: b"",
        }
        edit(machine.overlay(), [Replace(path, content) for path, content in others.items()])
        run.failed("NMI", error)
    (evidence,) = lab.evidence()
    assert {path: status for path, status in by_path(evidence).items() if MINIDUMPS in path} == {
        rf"{MINIDUMPS}\spare.dmp": DumpStatus.NO_DUMP,
        rf"{MINIDUMPS}\code.dmp": DumpStatus.OTHER,
        rf"{MINIDUMPS}\late.dmp": DumpStatus.OTHER,
        rf"{MINIDUMPS}\early.dmp": DumpStatus.STALE,
    }
    assert "but the console said 0x80" in evidence["no_dump"]
    assert "after the crash was seen" in evidence["no_dump"]
    kept = {one["path"] for one in evidence["dumps"] if one["file"]}
    assert kept == {path for path in others if MINIDUMPS in path}  # kept, and never counted
    assert lab.record().crashes[0].bug_check == "0x80"  # the console's


def test_a_free_running_loop_counts_the_dumps_it_overwrote(folder: Path) -> None:
    lab = make_lab(folder, drivers=[sensor_driver("a-o2")], files=content_files("killer"))
    with run_in(lab) as run:
        machine = run.machine
        machine.start(hold_restart=False)
        machine.signals.wait("the boot after three crashes", lambda: machine.boot == 4, 60)
        machine.cut_power()  # before it crashes, too
        evidence = Collector(
            machine, run.folder / "evidence", datetime.fromisoformat(run.record.began), run.say
        ).collect("power-cut")
    (dump,) = [one for one in evidence.dumps if one.file]
    assert dump.stop_code == 0x50
    assert (evidence.crashes, evidence.overwritten) == (3, 2)


def test_power_cut_while_the_dump_is_copied(folder: Path) -> None:
    lab = make_lab(folder, settings=Settings(dump=CrashDump.COMPLETE))
    with run_in(lab) as run:
        machine = run.machine
        crash_by_nmi(run, hold_restart=False)
        wait_for("the next boot", lambda: machine.boot == 2, 60)
        name, _, uri = machine.address().partition(" on ")
        connection = libvirt.open(uri)
        connection.lookupByName(name).setBlockIoTune("hda", {"write_bytes_sec": SLOW_DISK})
        connection.close()
        before = machine.disk_bytes_written()
        wait_for(
            "a part of the copy", lambda: machine.disk_bytes_written() > before + SLOW_DISK, 60
        )
        machine.cut_power()
        evidence = Collector(
            machine, run.folder / "evidence", datetime.fromisoformat(run.record.began), run.say
        ).collect("power-cut")
    found = {one.path: one for one in evidence.dumps}
    assert found[MEMORY_DUMP].status == DumpStatus.HALF_COPIED
    (source,) = [one for path, one in found.items() if path.upper().startswith("C:\\DUMP")]
    assert source.status == DumpStatus.EARLIER
    assert [one.path for one in evidence.dumps if one.file] == [source.path]
    assert found[MEMORY_DUMP].file is None
