"""A machine as libvirt describes it (libvirt.org/formatdomain.html), from its image's contract."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

from images.contract import Contract
from lab.backend import Image

METADATA_NAMESPACE = "urn:bugcheck-lab:domain"
"""Marks the lab's domains: <lab:machine xmlns:lab="..." run="RUN ID" slot="SLOT"/>."""
DISK_TARGETS = {"ide": "hda", "sata": "sda", "scsi": "sda", "virtio": "vda", "nvme": "nvme0n1"}
PANIC_MODELS = {"pvpanic-isa": "isa", "pvpanic-pci": "pvpanic", "hyper-v": "hyperv"}


@dataclass(frozen=True)
class DomainFiles:
    """Where the machine's files lie. nvram is used with UEFI only.

    layers: what edits left between `disk` and `base`, the nearest first (lab.disks.edit).
    """

    base: Path
    layers: tuple[Path, ...]
    disk: Path
    console: Path
    nvram: Path

    @property
    def base_format(self) -> str:
        """Read off its first bytes, which no guest has ever written."""
        with self.base.open("rb") as base:
            return "qcow2" if base.read(4) == b"QFI\xfb" else "raw"


@dataclass(frozen=True)
class DomainIdentity:
    """Who the domain is, for libvirt and for `lab clean`."""

    uuid: str
    slot: str
    run_id: str

    @property
    def name(self) -> str:
        """libvirt's name of the domain."""
        return f"lab-{self.slot}-{self.run_id}"


def kvm_is_usable(*, own_user: bool) -> bool:
    """Whether KVM runs guests at the processor's speed here.

    /dev/kvm alone says nothing: without VMX or SVM, or under the kvm_pvm module, guests are
    emulated by KVM a thousand times slower than by QEMU. own_user: QEMU runs as the lab's user.
    """
    if Path("/sys/module/kvm_pvm").exists() or not Path("/dev/kvm").exists():
        return False
    if own_user and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    return bool(re.search(r"\b(vmx|svm)\b", Path("/proc/cpuinfo").read_text()))


def disk_target(contract: Contract) -> str:
    """The disk's name in libvirt."""
    return DISK_TARGETS[contract.hardware.disk_bus]


def has_tpm(image: Image) -> bool:
    """Whether the machine has a TPM 2.0: the image's own, or a new one beside secure boot."""
    return image.tpm is not None or image.contract.hardware.firmware == "uefi-secure-boot"


def domain_xml(
    identity: DomainIdentity,
    image: Image,
    files: DomainFiles,
    *,
    kvm: bool,
    hold_restart: bool,
) -> str:
    """The whole domain.

    It has no network interface. COM1 is the console, COM2 the kernel debugger's. The disk's cache
    is "writeback": what the guest flushed is in the overlay, and on the host's disk. An error of
    the host's disk stops the machine and is told, so that nobody takes it for a hang. libvirt must
    not give the base to its own user, as it does with the disk. The clock runs in UTC: a Windows
    image must have RealTimeIsUniversal set.
    """
    contract = image.contract
    hardware = contract.hardware
    bus = hardware.disk_bus
    return f"""<domain type='{"kvm" if kvm else "qemu"}'>
  <name>{escape(identity.name)}</name>
  <uuid>{identity.uuid}</uuid>
  <title>Bugcheck Lab: {escape(identity.slot)}, run {escape(identity.run_id)}</title>
  <metadata>{_metadata(identity)}</metadata>
  <memory unit='MiB'>{hardware.memory_mib}</memory>
  <vcpu>{hardware.processors}</vcpu>
  {_operating_system(contract, files)}
  <features>{_features(contract, kvm)}</features>
  <cpu mode='{"host-passthrough" if kvm else "maximum"}'/>
  <clock offset='utc'>{_timers(kvm)}</clock>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>{"destroy" if hold_restart else "restart"}</on_reboot>
  <on_crash>preserve</on_crash>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='writeback'
        error_policy='stop' rerror_policy='stop'/>
      <source file={quoteattr(str(files.disk))}/>
      {_backing(files)}
      <target dev='{disk_target(contract)}' bus='{bus}'/>
    </disk>
    {"<controller type='scsi' model='virtio-scsi'/>" if bus == "scsi" else ""}
    <controller type='usb' model='none'/>
    <controller type='virtio-serial' index='0'/>
    <channel type='unix'><target type='virtio' name={quoteattr(contract.agent.channel)}/></channel>
    <serial type='pty'>
      <log file={quoteattr(str(files.console))} append='on'/><target port='0'/>
    </serial>
    <serial type='pty'><target port='1'/></serial>
    <input type='keyboard' bus='ps2'/>
    <video><model type='vga' vram='16384' heads='1'/></video>
    {_tpm(image)}
    <memballoon model='none'/>
    {_panic(contract)}
  </devices>
</domain>
"""


def _backing(files: DomainFiles) -> str:
    """The files below the disk. The base's own backing files are for libvirt to find."""
    below = ""
    for file, file_format in (
        (files.base, files.base_format),
        *((layer, "qcow2") for layer in reversed(files.layers)),
    ):
        below = (
            f"<backingStore type='file'><format type='{file_format}'/>"
            f"<source file={quoteattr(str(file))}><seclabel model='dac' relabel='no'/></source>"
            f"{below}</backingStore>"
        )
    return below


def _metadata(identity: DomainIdentity) -> str:
    return (
        f"<lab:machine xmlns:lab='{METADATA_NAMESPACE}' run={quoteattr(identity.run_id)}"
        f" slot={quoteattr(identity.slot)}/>"
    )


def _operating_system(contract: Contract, files: DomainFiles) -> str:
    hardware = contract.hardware
    kind = f"<type arch='x86_64' machine='{hardware.machine}'>hvm</type><boot dev='hd'/>"
    if hardware.firmware == "bios":
        return f"<os>{kind}</os>"
    secure = "yes" if hardware.firmware == "uefi-secure-boot" else "no"
    return (
        f"<os firmware='efi'>{kind}<firmware>"
        f"<feature enabled='{secure}' name='secure-boot'/>"
        f"<feature enabled='{secure}' name='enrolled-keys'/>"
        f"</firmware><nvram>{escape(str(files.nvram))}</nvram></os>"
    )


def _features(contract: Contract, kvm: bool) -> str:
    found = "<acpi/><apic/>"
    if contract.panic.vmcoreinfo:
        found += "<vmcoreinfo state='on'/>"
    if contract.hardware.firmware == "uefi-secure-boot":
        found += "<smm state='on'/>"
    if kvm:
        # Without these a Windows guest on a busy host stops with 0x101, CLOCK_WATCHDOG_TIMEOUT.
        found += (
            "<hyperv mode='custom'><relaxed state='on'/><vapic state='on'/>"
            "<spinlocks state='on' retries='8191'/></hyperv>"
        )
    return found


def _timers(kvm: bool) -> str:
    return "<timer name='hypervclock' present='yes'/>" if kvm else ""


def _tpm(image: Image) -> str:
    if not has_tpm(image):
        return ""
    return (
        "<tpm model='tpm-crb'><backend type='emulator' version='2.0' persistent_state='yes'/></tpm>"
    )


def _panic(contract: Contract) -> str:
    model = PANIC_MODELS.get(contract.panic.device)
    return f"<panic model='{model}'/>" if model else ""


def moved(xml: str, identity: DomainIdentity, files: DomainFiles, *, hold_restart: bool) -> str:
    """A saved domain's description with another identity and other files.

    Raises xml.etree.ElementTree.ParseError, or LookupError for a domain that is not the lab's.
    """
    ElementTree.register_namespace("lab", METADATA_NAMESPACE)
    domain = ElementTree.fromstring(xml)  # noqa: S314 - libvirt wrote it

    def find(path: str) -> ElementTree.Element:
        if (found := domain.find(path)) is None:
            raise LookupError(f"no {path}")
        return found

    find("name").text = identity.name
    find("uuid").text = identity.uuid
    find("title").text = f"Bugcheck Lab: {identity.slot}, run {identity.run_id}"
    find("on_reboot").text = "destroy" if hold_restart else "restart"
    machine = find(f"metadata/{{{METADATA_NAMESPACE}}}machine")
    machine.set("run", identity.run_id)
    machine.set("slot", identity.slot)
    find("devices/disk/source").set("file", str(files.disk))
    find("devices/disk").remove(find("devices/disk/backingStore"))
    find("devices/disk").append(ElementTree.fromstring(_backing(files)))  # noqa: S314 - ours
    find("devices/serial/log").set("file", str(files.console))
    if (nvram := domain.find("os/nvram")) is not None:
        nvram.text = str(files.nvram)
    return ElementTree.tostring(domain, encoding="unicode")
