"""A screenshot as PNG (W3C PNG, third edition), whichever of its two formats QEMU gives."""

from __future__ import annotations

import re
import struct
import zlib

from lab.backend import BackendError

PNG = b"\x89PNG\r\n\x1a\n"
_PPM = re.compile(rb"P6\s+(\d{1,5})\s+(\d{1,5})\s+255\s")


def as_png(picture: bytes) -> bytes:
    """PNG stays; binary PPM, which QEMU before 7.1 gives, is converted. Raises BackendError."""
    if picture.startswith(PNG):
        return picture
    header = _PPM.match(picture)
    if not header:
        raise BackendError(f"the screenshot is neither PNG nor PPM: it begins {picture[:8]!r}")
    width, height = int(header[1]), int(header[2])
    pixels = picture[header.end() :]
    if not width or len(pixels) < 3 * width * height:
        raise BackendError(f"the screenshot ends before its {width} x {height} pixels")
    rows = (pixels[3 * width * row : 3 * width * (row + 1)] for row in range(height))
    return (
        PNG
        + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + _chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
