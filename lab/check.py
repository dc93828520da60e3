"""What this machine lacks for a lab, and the command or the edit that mends each."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from images.contract import Contract, ContractError, load_contract
from lab.config import Config, HostSettings
from lab.images import MIB, ImageStore, worst_case_dump_bytes
from lab.leases import open_leases
from lab.outcome import LabError
from lab.power.wiring import open_power, wire_of
from lab.virtual.domain_xml import kvm_is_usable

DAEMON_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where daemons are; not in an ordinary user's PATH."""
HOST_SECONDS = 30.0
"""For a hypervisor's answer; libvirt's first one takes 8 s, when it asks QEMU what it can do."""
LIBVIRT_PACKAGES = "libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients"
PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "libvirtd": LIBVIRT_PACKAGES,
    "virtlogd": LIBVIRT_PACKAGES,
}
"""What every lab needs, and the Debian packages that have it."""
EDIT_PROGRAMS = {
    "qemu-storage-daemon": "qemu-system-common",
    "mdel": "mtools",
    "ntfs-3g": "ntfs-3g",
    "unshare": "util-linux",
}
"""What offline edits of a machine's disk use."""
BUILD_PROGRAMS = {"mcopy": "mtools", "mkfs.fat": "dosfstools"}
"""What builds of images with FAT32 use."""
PIP = "pip install 'bugcheck-lab[lab]'"
MODULES = {
    "libvirt": f"apt-get install libvirt-dev pkg-config gcc python3-dev && {PIP}",
    "pytsk3": PIP,
    "symbolic": "pip install 'bugcheck-lab[symbols]'",
}
OPTIONAL_MODULES = {"symbolic": "reports name no functions, files and lines without it"}
FIRMWARE_FILES = ("/usr/share/OVMF", "/usr/share/edk2", "/usr/share/qemu/edk2-x86_64-code.fd")


@dataclass(frozen=True)
class Finding:
    """One thing looked at. fix: a command, or what to edit. required: no lab works without it."""

    what: str
    ok: bool
    detail: str
    fix: str = ""
    required: bool = True


def check(config: Config | None) -> list[Finding]:
    """Looks at this machine, and at all that lab.toml names, if there is one."""
    has_builds = config is not None and any(config.image(name).build for name in config.images)
    findings = [_program(name, package) for name, package in PROGRAMS.items()]
    findings += [
        _program(name, package, required=has_builds) for name, package in BUILD_PROGRAMS.items()
    ]
    findings += [_program(name, package, required=False) for name, package in EDIT_PROGRAMS.items()]
    findings.append(_fuse())
    findings += [_module(name, fix) for name, fix in MODULES.items()]
    findings.append(_acceleration())
    if config is None:
        fix = "cp examples/lab.toml . (and name your own images in it)"
        return [*findings, Finding("lab.toml", False, "there is none", fix, required=False)]
    return [*findings, *_of_config(config)]


def is_ready(findings: Sequence[Finding]) -> bool:
    """Whether all that is required is there."""
    return all(finding.ok for finding in findings if finding.required)


def print_findings(findings: Sequence[Finding], file: TextIO | None = None) -> bool:
    """A line each, and how to mend what is wrong. Returns is_ready()."""
    for finding in findings:
        word = "ok" if finding.ok else "LACKS" if finding.required else "lacks"
        detail = finding.detail.replace("\n", "\n        ")
        print(f"{word:6}  {finding.what}: {detail}", file=file)
        if not finding.ok and finding.fix:
            print(f"        fix: {finding.fix}", file=file)
    ready = is_ready(findings)
    print("\nReady." if ready else "\nNot ready: see the lines that begin with LACKS.", file=file)
    return ready


def _program(name: str, package: str, *, required: bool = True) -> Finding:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{DAEMON_FOLDERS}")
    fix = f"apt-get install {package}"
    return Finding(name, found is not None, found or "not installed", fix, required)


def _module(name: str, fix: str) -> Finding:
    required = name not in OPTIONAL_MODULES
    try:
        importlib.import_module(name)
    except ImportError as error:  # absent, or its shared libraries are
        why = "" if required else f"; {OPTIONAL_MODULES[name]}"
        return Finding(f"Python's {name}", False, f"{error}{why}", fix, required)
    return Finding(f"Python's {name}", True, "can be imported", required=required)


def _fuse() -> Finding:
    device = Path("/dev/fuse")
    if not device.exists():
        detail, fix = "there is none", "modprobe fuse, as root"
    elif not os.access(device, os.R_OK | os.W_OK):
        detail, fix = "you may not open it", "chmod 0666 /dev/fuse, as root (udev sets it so)"
    else:
        return Finding("/dev/fuse", True, "can be opened")
    return Finding("/dev/fuse", False, f"{detail}; disks cannot be edited", fix, required=False)


def _acceleration() -> Finding:
    if kvm_is_usable(own_user=os.geteuid() != 0):
        return Finding("acceleration", True, "KVM")
    there = "/dev/kvm is there, but" if Path("/dev/kvm").exists() else "no /dev/kvm:"
    detail = f"{there} KVM cannot run guests at full speed; QEMU emulates them (TCG), which is slow"
    return Finding("acceleration", True, detail, required=False)


def _of_config(config: Config) -> Iterator[Finding]:
    hosts = {slot.host_name: slot for slot in config.slots().values()}
    for slot in hosts.values():
        if slot.host is not None:
            yield _host(config, slot.host_name, slot.host)
    yield _store(config)
    yield _leases(config)
    if config.secrets_file is not None and config.secrets_file.stat().st_mode & 0o077:
        what, detail = f"secrets {config.secrets_file}", "other users can read it"
        yield Finding(what, False, detail, f"chmod 600 {config.secrets_file}", required=False)
    for name in config.images:
        yield from _image(config, name)
    yield from _power(config)
    consoles = [machine.console for machine in config.settings.machines.values()]
    if any(console is not None and console.url.startswith("sol:") for console in consoles):
        yield _program("ipmitool", "ipmitool")


def _power(config: Config) -> Iterator[Finding]:
    """Each machine's outlet and BMC, asked all at once: one that is dead takes its time-outs."""
    wires = [
        (slot, part, wire)
        for slot in config.slots()
        for part in ("power", "bmc")
        if (wire := wire_of(config, slot, part)) is not None
    ]
    if wires:
        with ThreadPoolExecutor(len(wires)) as pool:
            yield from pool.map(lambda one: _outlet(config, *one), wires)


def _outlet(config: Config, slot: str, part: str, wire: tuple[str, str]) -> Finding:
    name, outlet = wire
    what = f"{part} of {slot}, outlet {outlet} of {name}"
    try:
        with closing(open_power(config, name)) as device:
            place = device.locate(outlet)
            said = f"{device.address()} reads {device.read(place)}" if device.reads_back else ""
    except LabError as error:
        fix = f"see above, or correct {config.where('power', name)}"
        return Finding(what, False, str(error), fix, required=False)
    return Finding(what, True, said or "cannot be read back: the machine itself is its witness")


def _host(config: Config, name: str, host: HostSettings) -> Finding:
    what, uri = f"host {name}", host.uri
    if uri == "private":
        return Finding(what, True, "the lab starts its own libvirt when a machine is needed")
    # In a process of its own: a remote host may take minutes to fail.
    ask = "import libvirt, sys; libvirt.open(sys.argv[1]).getLibVersion()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", ask, uri],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=HOST_SECONDS,
        )
    except subprocess.TimeoutExpired:
        said = f"no answer within {HOST_SECONDS:g} s"
    else:
        if done.returncode == 0:
            return Finding(what, True, f"{uri} answers")
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    started_by_lab = uri == "qemu:///system" and not Path("/run/systemd/system").is_dir()
    if started_by_lab and os.geteuid() == 0:
        return Finding(what, True, f"{uri} does not answer; the lab starts it when needed")
    fix = f"systemctl start libvirtd, or correct {config.where('hosts', name, 'uri')}"
    return Finding(what, False, f"{uri}: {said}", fix)


def _store(config: Config) -> Finding:
    what = f"store {config.store}"
    try:
        config.store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=config.store):
            free = shutil.disk_usage(config.store).free
    except OSError as error:
        fix = f"make it writable, or name another: {config.where('store')}"
        return Finding(what, False, f"cannot be written: {error.strerror}", fix)
    return Finding(what, True, f"can be written; {free // MIB} MiB are free")


def _leases(config: Config) -> Finding:
    try:
        held = sum(holding.alive for holding in open_leases(config).holdings())
    except LabError as error:
        return Finding("leases", False, str(error), f"make {config.store} usable")
    return Finding("leases", True, f"{held} of {len(config.slots())} machines are held")


def _image(config: Config, name: str) -> Iterator[Finding]:
    what, source, store = f"image {name}", config.image(name), ImageStore(config)
    try:
        contract = load_contract(source.contract)
        if source.build is not None and not store.built_disk(source).exists():
            yield Finding(what, True, "is built when it is first needed")
        else:
            disk = store.image(name, lambda _: None).disk
            yield Finding(what, True, str(disk or "is installed on its machines already"))
    except (ContractError, LabError) as error:
        yield Finding(what, False, str(error), f"correct {config.where('images', name)}")
        return
    yield from _firmware(what, contract)
    yield _room(config, what, contract)


def _firmware(what: str, contract: Contract) -> Iterator[Finding]:
    if contract.hardware.firmware == "bios":
        return
    found = [file for file in FIRMWARE_FILES if Path(file).exists()]
    detail = found[0] if found else "there is no UEFI firmware for QEMU"
    yield Finding(f"{what}: firmware", bool(found), detail, "apt-get install ovmf")
    if contract.hardware.firmware == "uefi-secure-boot":
        yield _program("swtpm", "swtpm swtpm-tools")


def _room(config: Config, what: str, contract: Contract) -> Finding:
    needed = worst_case_dump_bytes(contract)
    folder = next(one for one in (config.store, *config.store.parents) if one.exists())
    free = shutil.disk_usage(folder).free
    detail = f"the dumps of one run can take {needed // MIB} MiB, {free // MIB} MiB are free"
    fix = f"make room on {folder}, or name another store in {config.file}"
    return Finding(f"{what}: room", free >= needed, detail, fix)
