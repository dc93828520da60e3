"""The image builder: what it puts on the disk, byte by byte, and what it refuses."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from images.test_kernel.build import (
    MIB,
    PARTITION_LBA,
    Driver,
    ImageError,
    boot_status,
    build_image,
)
from images.test_kernel.registry import CrashDump, Service, ServiceStart, Settings, registry_text
from tests.support.disk import DiskFiles

MBR = bytes(range(1, 201))
LOADER = b"loader" * 5000


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A stand-in for the checked-in kernel: the builder only lays bytes out."""
    folder = tmp_path / "built"
    folder.mkdir()
    (folder / "mbr.bin").write_bytes(MBR)
    (folder / "loader.bin").write_bytes(LOADER)
    (folder / "ntoskrnl.exe").write_bytes(b"MZ kernel")
    return folder


def test_boot_record_loader_and_partition(tmp_path: Path, built: Path) -> None:
    image = build_image(tmp_path / "i.qcow2", built=built, volume_id=0x12345678)
    with DiskFiles(image, tmp_path) as disk:
        record = disk.bytes_at(0, 512)
        assert record[: len(MBR)] == MBR
        assert not any(record[len(MBR) : 440])
        assert struct.unpack("<I", record[440:444]) == (0x12345678,)
        active, kind, first, sectors = struct.unpack("<B3xB3xII", record[446:462])
        assert (active, kind, first) == (0x80, 0x0C, PARTITION_LBA)
        assert (first + sectors) * 512 == 512 * MIB
        assert not any(record[462:510])
        assert record[510:] == b"\x55\xaa"
        assert disk.bytes_at(512, len(LOADER)) == LOADER
        boot_sector = disk.bytes_at(PARTITION_LBA * 512, 512)
        assert boot_sector[82:87] == b"FAT32"
        assert boot_sector[13] * 512 == 4096
        assert struct.unpack("<I", boot_sector[28:32]) == (PARTITION_LBA,)


def test_file_system_is_sound_and_holds_every_file(tmp_path: Path, built: Path) -> None:
    on_host = tmp_path / "content.bin"
    on_host.write_bytes(b"content" * 10_000)
    image = build_image(
        tmp_path / "i.qcow2",
        drivers=[Driver("sensor", b"MZ sensor"), Driver("second", b"MZ second")],
        files={
            r"C:\Windows\System32\drivers\Sensor\C-00000291-00000001.sys": on_host,
            r"c:\WINDOWS\system32\Config\system.reg": b"replaced",
        },
        memory_dump=b"PAGEDU64 old",
        failed_boot_limit=3,
        pagefile_extents=4,
        built=built,
    )
    with DiskFiles(image, tmp_path) as disk:
        assert disk.read(r"C:\Windows\System32\ntoskrnl.exe") == b"MZ kernel"
        assert disk.read(r"C:\Windows\System32\drivers\second.sys") == b"MZ second"
        content = r"C:\Windows\System32\drivers\Sensor\C-00000291-00000001.sys"
        assert disk.read(content) == on_host.read_bytes()
        assert disk.read(r"C:\Windows\System32\config\SYSTEM.reg") == b"replaced"
        assert disk.read(r"C:\Windows\MEMORY.DMP") == b"PAGEDU64 old"
        assert disk.read(r"C:\Windows\bootstat.dat") == boot_status(3)
        assert sorted(disk.names("C:\\")) == ["Windows", "pagefile.sys"]
    volume = tmp_path / "volume"
    partition = (
        f"driver=raw,offset={PARTITION_LBA * 512},file.driver=qcow2,file.file.filename={image}"
    )
    subprocess.run(
        ["qemu-img", "convert", "-O", "raw", "--image-opts", partition, volume], check=True
    )
    checked = subprocess.run(["/usr/sbin/fsck.fat", "-n", volume], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("extents", [1, 2, 9])
def test_pagefile_is_zeroed_and_lies_in_as_many_pieces(
    tmp_path: Path, built: Path, extents: int
) -> None:
    size = 20 * MIB
    image = build_image(
        tmp_path / "i.qcow2", pagefile_bytes=size, pagefile_extents=extents, built=built
    )
    with DiskFiles(image, tmp_path) as disk:
        assert disk.read(r"C:\pagefile.sys") == bytes(size)
        pieces = disk.extents(r"C:\pagefile.sys")
    assert len(pieces) == extents
    assert sum(length for _, length in pieces) == size


def test_image_is_reproducible_and_sparse(tmp_path: Path, built: Path) -> None:
    first, second = (
        build_image(tmp_path / name, drivers=[Driver("sensor", b"MZ")], built=built)
        for name in ("first.qcow2", "second.qcow2")
    )
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size < 2 * MIB


def test_registry_text() -> None:
    text = registry_text(
        Settings(
            auto_reboot=False,
            dump=CrashDump.COMPLETE,
            dpc_timeout_milliseconds=1500,
            extra={(r"HKEY_LOCAL_MACHINE\SYSTEM\Setup", "Quoted"): 'a "b" \\c'},
        ),
        [
            Service("first", r"System32\drivers\first.sys", parameters={"Nonce": 0xDEADBEEF}),
            Service("second", r"System32\drivers\second.sys", ServiceStart.DEMAND),
        ],
    )
    lines = text.split("\r\n")
    assert lines[0] == "Windows Registry Editor Version 5.00"
    assert "\n" not in text.replace("\r\n", "")
    control = lines.index(r"[HKEY_LOCAL_MACHINE\SYSTEM\CurrentControlSet\Control\CrashControl]")
    assert '"AutoReboot"=dword:00000000' in lines[control + 1 : control + 5]
    assert '"CrashDumpEnabled"=dword:00000001' in lines[control + 1 : control + 5]
    assert '"DpcTimeout"=dword:000005dc' in lines
    assert r'"Quoted"="a \"b\" \\c"' in lines
    services = r"[HKEY_LOCAL_MACHINE\SYSTEM\CurrentControlSet\Services"
    first = lines.index(rf"{services}\first]")
    assert lines.index(rf"{services}\second]") > first
    assert lines[lines.index(rf"{services}\first\Parameters]") + 1] == '"Nonce"=dword:deadbeef'
    assert '"Start"=dword:00000003' in lines[lines.index(rf"{services}\second]") :]


def test_too_large_a_dword_is_refused() -> None:
    with pytest.raises(ValueError, match="4294967296"):
        registry_text(Settings(dpc_timeout_milliseconds=1 << 32), [])


def test_what_cannot_be_built_is_explained(tmp_path: Path, built: Path) -> None:
    output = tmp_path / "i.qcow2"
    with pytest.raises(ImageError, match=r"relative\.sys.*absolute"):
        build_image(output, files={"relative.sys": b""}, built=built)
    with pytest.raises(ImageError, match=r"absent\.sys, wanted as C:\\a\.sys, is no file"):
        build_image(output, files={r"C:\a.sys": tmp_path / "absent.sys"}, built=built)
    with pytest.raises(ImageError, match="9 extents for 1 clusters"):
        build_image(output, pagefile_bytes=4096, pagefile_extents=9, built=built)
    (built / "loader.bin").write_bytes(bytes(PARTITION_LBA * 512))
    with pytest.raises(ImageError, match=r"loader\.bin has 1048576 bytes"):
        build_image(output, built=built)
    (built / "mbr.bin").unlink()
    with pytest.raises(ImageError, match=r"mbr\.bin is missing.*make kernel"):
        build_image(output, built=built)
    assert not output.exists()
