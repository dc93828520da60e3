"""Secondary data: what drivers' bug check callbacks added to a dump, each piece under a GUID.

Written behind what the dump itself holds: "DumpBlob", u32 size of this header, u32 build; then for
each piece u32 size of its header (0x20), GUID, u32 sizes of the data and of the padding before and
after it. A header of another size, or with a GUID of zeros, ends it. As seen in every real triage
dump at hand; drivers add theirs with KeRegisterBugCheckReasonCallback (windows-driver-docs), and
.enumtag lists them. Nothing here looks into the data: it may hold serial numbers and other personal
data.
"""

from __future__ import annotations

import struct
import uuid
from mmap import mmap
from typing import Final

from crashdump_analysis.report import SecondaryData

_MARK: Final = b"DumpBlob"
_FILE_HEADER, _HEADER = 0x10, 0x20  # bytes
_MAX_PIECES: Final = 1024

NAMES: Final = {
    "00afe9c4-940d-4213-8016-cd3719b5bc20": "NTFS state",
    "00dae7ca-6833-45c5-b147-bdaed7b61fd6": "hypervisor boot log",
    "0f1f53f3-561f-42e7-bdb4-ba8e66b726d5": "feature configuration",
    "270a33fd-3da6-460d-ba89-3c1bae21e39b": "display: timeout detection and recovery",
    "2b4ae195-a64d-4f04-8ede-7e4f981bd42a": "triage data blocks of drivers",
    "2b88b710-1c93-4f7c-b06c-655ecc50decc": "event tracing buffers",
    "4ee76bd8-3cf4-44a0-a0ac-3937643e37a3": "code integrity state",
    "54c84888-01d1-4c1e-bed6-282c98241303": "WDF log of one driver",
    "65755a40-f146-43ea-8c91-36b85728fd35": "crash dump driver",
    "6c7ac389-4313-47dc-9f34-a8800a0fb56c": "firmware settings",
    "80cc79cf-a719-4af1-bf97-fe29ff76ebc1": "logon state",
    "9276c055-eb87-425c-b8b5-04e4d247f6cd": "PCI configuration",
    "9282756a-ab95-4d24-a137-ecddc5de53f5": "secure kernel failure log",
    "b0692a5e-6b7b-4073-8a7c-604e35032970": "secure kernel crash data",
    "b7631941-532a-4cd6-b1b1-edb5917d4557": "Plug and Play state",
    "bc5c008f-1e3a-44d7-988d-86f6884c6758": "SMBIOS tables",
    "bf2297dc-34ba-11dc-868a-e19155d89593": "NVIDIA display driver",
    "c939c73b-17dc-4a44-904c-e2d987f52649": "storage port: paging device",
    "d00ce1f5-d60c-41c2-af75-a4370c9976a3": "video port",
    "d03dc06f-d88e-44c5-ba2a-fae035172d19": "processor registers",
    "da82441d-7142-4bc1-b844-0807c5a4b67f": "storage port: device",
    "e83b40d2-b0a0-4842-abea-71c9e3463dd1": "ACPI tables",
    "f57308df-cc45-4e01-ad76-29a4ebb010ec": "boot status",
    "f87e4a4c-c5a1-4d2f-bff0-d5de63a5e4c3": "WDF drivers and their versions",
}
"""What is under a GUID, by the names that Windows' public symbols and headers give it."""


def secondary_data(data: mmap, offset: int) -> tuple[tuple[SecondaryData, ...], list[str]]:
    """The pieces in a file, and in words what is wrong with them.

    offset: where the dump itself ends. A file that ends there, or goes on with something else, has
    none.
    """
    if data[offset : offset + len(_MARK)] != _MARK:
        return (), []
    (size,) = struct.unpack("<I", data[offset + 8 : offset + 12].ljust(4, b"\0"))
    at, pieces = offset + max(size, _FILE_HEADER), list[SecondaryData]()
    while len(pieces) < _MAX_PIECES:
        header = data[at : at + _HEADER]
        if len(header) < _HEADER:
            break
        size, guid, length, before, behind = struct.unpack("<I16sIII", header)
        if size != _HEADER or not any(guid):
            break
        start = at + _HEADER + before
        tag = str(uuid.UUID(bytes_le=guid))
        if start + length > len(data):
            return tuple(pieces), [f"secondary data {tag} at 0x{at:x} is cut"]
        pieces.append(SecondaryData(tag, NAMES.get(tag), length))
        at = start + length + behind
    if len(pieces) == _MAX_PIECES:
        return tuple(pieces), [f"more than {_MAX_PIECES} pieces of secondary data; the rest is out"]
    return tuple(pieces), []
