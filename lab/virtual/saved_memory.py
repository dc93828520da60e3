"""libvirt's file of a saved machine, with another description in it.

libvirt restores a saved machine under the name and UUID it was saved with only. Here a copy is made
whose description is another slot's. The format is libvirt's src/qemu/qemu_saveimage.h: a header,
the description as XML with a zero byte after it, a cookie, and QEMU's migration stream.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from xml.etree.ElementTree import ParseError

from lab.backend import BackendError

HEADER = struct.Struct("=16s5I56x")
"""Magic, version, bytes of XML and cookie, was running, compression, the cookie's place or 0."""
MAGIC = b"LibvirtQemudSave"
VERSION = 2
LARGEST_DESCRIPTION = 16 << 20


def copy_with_description(source: Path, destination: Path, change: Callable[[str], str]) -> None:
    """Copies a saved machine; `change` gets its description and returns the copy's.

    Raises BackendError when `source` is no saved machine, or not one that `change` can deal with.
    """
    try:
        with source.open("rb") as saved:
            raw = saved.read(HEADER.size)
            fields = HEADER.unpack(raw) if len(raw) == HEADER.size else (b"",) + (0,) * 5
            magic, version, length, running, compression, cookie_at = fields
            if magic != MAGIC or version != VERSION or not 0 < length <= LARGEST_DESCRIPTION:
                raise BackendError(
                    f"{source} is not memory saved by libvirt (version {VERSION} of its format):"
                    " save it again with this libvirt"
                )
            data = saved.read(length)
            xml = data.split(b"\0", 1)[0].decode()
            cookie = data[cookie_at:] if cookie_at else b""
            new_xml = change(xml).encode() + b"\0"
            header = HEADER.pack(
                magic,
                version,
                len(new_xml) + len(cookie),
                running,
                compression,
                len(new_xml) if cookie else 0,
            )
            with destination.open("xb") as copy:
                copy.write(header + new_xml + cookie)
                copy.flush()
                _append_rest(saved.fileno(), HEADER.size + length, copy.fileno())
    except OSError as error:
        raise BackendError(f"copy saved memory {source} to {destination}: {error}") from error
    except (UnicodeDecodeError, ParseError, LookupError) as error:
        raise BackendError(
            f"{source}: its description of the machine is not one the lab made: {error}"
        ) from error


def _append_rest(source: int, start: int, destination: int) -> None:
    os.lseek(source, start, os.SEEK_SET)
    left = os.fstat(source).st_size - start
    while left > 0 and (copied := os.copy_file_range(source, destination, left)):
        left -= copied
