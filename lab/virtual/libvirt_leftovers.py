"""What of the lab's runs a libvirt still has: machines, and links to their TPMs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import libvirt

from lab.virtual.domain_xml import METADATA_NAMESPACE
from lab.virtual.libvirt_connection import Connection, asking
from lab.virtual.libvirt_daemon import Daemon
from lab.virtual.machine_files import TPM_FOLDER


@dataclass(frozen=True)
class Leftover:
    """Something that carries a run's id, in words, and how it is removed."""

    run_id: str
    what: str
    remove: Callable[[], object]


def leftovers(connection: Connection, daemon: Daemon) -> Iterator[Leftover]:
    """Everything that carries the lab's mark, and nothing else. Raises BackendError."""
    with asking(f"list the machines of {daemon.uri}"):
        for domain in connection.open.listAllDomains():
            if run_id := _run_of(domain):
                what = f"machine {domain.name()} on {daemon.uri}"
                yield Leftover(run_id, what, domain.destroy)
    if daemon.tpm_states and daemon.tpm_states.is_dir():
        for link in daemon.tpm_states.iterdir():
            if link.is_symlink() and link.readlink().name.startswith(TPM_FOLDER):
                run_id = link.readlink().name.removeprefix(TPM_FOLDER)
                yield Leftover(run_id, f"TPM link {link}", link.unlink)


def _run_of(domain: Any) -> str:
    """The run a domain belongs to; empty if it is not the lab's."""
    try:
        metadata = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, METADATA_NAMESPACE)
    except libvirt.libvirtError as error:
        if error.get_error_code() in {
            libvirt.VIR_ERR_NO_DOMAIN_METADATA,
            libvirt.VIR_ERR_NO_DOMAIN,
        }:
            return ""
        raise
    return ElementTree.fromstring(metadata).get("run", "")  # noqa: S314 - libvirt's
