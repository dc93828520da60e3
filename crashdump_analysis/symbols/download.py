"""One file from a symbol server, by HTTP. Whatever the server does, it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin, urlsplit

if TYPE_CHECKING:  # at run time where they are needed: they take longer than a whole triage
    from http.client import HTTPResponse

Progress = Callable[[str], None]

STALL_SECONDS: Final = 10.0
"""How long a server may send nothing of a file before it counts as one that hangs."""
_SLOWEST = 1024  # bytes a second, on average, that count as sending
_MAX_REDIRECTS = 5
MAX_FILE: Final = 4 << 30
"""Bytes of a file at most; the largest PDBs have about that."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_ABSENT = frozenset({404, 410})
_CHUNK = 1 << 16
_TOLD_AFTER = 2.0  # seconds


class DownloadError(Exception):
    """A server did not give a file. Says why; `server` is whether others would fail as well."""

    def __init__(self, message: str, *, server: bool = True) -> None:
        super().__init__(message)
        self.server = server


@dataclass
class _Transfer:
    received: int = 0
    size: int | None = None
    found: bool = False
    error: Exception | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)


def download(
    url: str,
    to: Path,
    *,
    limit: int = MAX_FILE,
    progress: Progress | None = None,
    stall_seconds: float = STALL_SECONDS,
) -> bool:
    """Writes what the server has at the URL into a file; False where it has nothing there.

    limit: bytes to take at most. progress: is told of downloads that take more than 2 s.
    Raises DownloadError where the server hangs, cannot be reached, redirects without end or breaks
    off, and OSError where the file cannot be written.
    """
    transfer = _Transfer()
    # In a thread of its own, which is left alone when it hangs: looking up a name has no time
    # limit, and a server may send a header a byte a second.
    threading.Thread(
        target=_run, args=(transfer, url, to, limit, stall_seconds), daemon=True
    ).start()
    started = moved = told = time.monotonic()
    received = 0
    while not transfer.done.wait(min(0.2, stall_seconds / 4)):
        now = time.monotonic()
        if transfer.received > received:
            received, moved = transfer.received, now
        slow = received < (now - started - stall_seconds) * _SLOWEST
        if now - moved > stall_seconds or slow:
            transfer.stop.set()
            raise DownloadError(f"{url} hangs: {received} bytes in {now - started:.0f} s")
        if progress and now - told > _TOLD_AFTER:
            of = f" of {transfer.size >> 10}" if transfer.size else ""
            progress(f"downloading {url}: {received >> 10}{of} KiB")
            told = now
    if transfer.error is not None:
        raise transfer.error
    return transfer.found


def _run(transfer: _Transfer, url: str, to: Path, limit: int, timeout: float) -> None:
    from http.client import HTTPException  # noqa: PLC0415
    from urllib.error import URLError  # noqa: PLC0415

    try:
        transfer.found = _fetch(transfer, url, to, limit, timeout)
    except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        text = str(reason) or type(reason).__name__
        transfer.error = DownloadError(f"{url} cannot be read: {text}")
    except (DownloadError, OSError) as error:
        transfer.error = error
    except ValueError as error:  # no URL
        transfer.error = DownloadError(f"{url}: {error}")
    finally:
        transfer.done.set()


def _fetch(transfer: _Transfer, url: str, to: Path, limit: int, timeout: float) -> bool:
    from http.client import HTTPResponse  # noqa: PLC0415
    from urllib import request  # noqa: PLC0415

    opener = request.OpenerDirector()
    for handler in (
        *(request.ProxyHandler, request.UnknownHandler),
        *(request.HTTPHandler, request.HTTPSHandler),
    ):
        opener.add_handler(handler())
    place = url
    for _ in range(_MAX_REDIRECTS + 1):
        asked = request.Request(place, headers={"User-Agent": "bugcheck-lab"})  # noqa: S310
        response = opener.open(asked, timeout=timeout)
        if not isinstance(response, HTTPResponse):
            raise DownloadError(f"{url} is no address of a symbol server")
        with response:
            if response.status in _ABSENT:
                return False
            if response.status == 200:
                _copy(transfer, response, url, to, limit)
                return True
            if response.status not in _REDIRECTS:
                raise DownloadError(
                    f"{url} is refused: {response.status} {response.reason[:80]}",
                    server=response.status >= 500,
                )
            place = urljoin(place, response.headers.get("Location", ""))
            if urlsplit(place).scheme not in ("http", "https"):
                raise DownloadError(f"{url} redirects to {place[:200]}, which is not followed")
    raise DownloadError(f"{url} redirects more than {_MAX_REDIRECTS} times")


def _copy(transfer: _Transfer, response: HTTPResponse, url: str, to: Path, limit: int) -> None:
    length = response.length  # of the body; None where the server does not say
    transfer.size = length
    with to.open("wb") as file:
        while not transfer.stop.is_set():
            if transfer.received > limit or (length or 0) > limit:
                raise DownloadError(f"{url} is larger than {limit} bytes", server=False)
            data = response.read1(_CHUNK)
            if not data:
                break
            file.write(data)
            transfer.received += len(data)
    if length is not None and transfer.received < length:
        raise DownloadError(
            f"{url} breaks off after {transfer.received} of {length} bytes", server=False
        )
