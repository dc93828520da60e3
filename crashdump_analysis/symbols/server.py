"""A symbol server: a store that is reached by HTTP, and what it was found not to have."""

from __future__ import annotations

import shutil
import tempfile
import time
import urllib.parse
import weakref
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Final

from crashdump_analysis.symbols.download import (
    MAX_FILE,
    STALL_SECONDS,
    DownloadError,
    Progress,
    download,
)
from crashdump_analysis.symbols.store import (
    MAX_POINTER,
    POINTER,
    TWO_TIER_MARK,
    Problems,
    Wanted,
    place_in_store,
    pointed_at,
)

MISSING_HOURS: Final = 24.0
"""How long it is remembered, between processes, that a server does not have a file."""
_MISSING = ".missing"  # folder in the nearest store; holds an empty file for each


class Server:
    """A server by its URL. `nearest`: the store in which is kept what it does not have.

    A server that does not answer is not asked again by this object. offline: it is never asked.
    """

    def __init__(
        self,
        url: str,
        nearest: Path,
        *,
        offline: bool = False,
        progress: Progress | None = None,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self.url = url.rstrip("/")
        self._nearest = nearest
        self._offline = offline
        self._progress = progress
        self._stall_seconds = stall_seconds
        self._silent = False

    def __str__(self) -> str:
        return self.url

    def get(self, wanted: Wanted, problems: Problems) -> Path | None:
        """Downloads a file and checks it; None where the server has it not, or not now.

        The file is a temporary one, which is there as long as this object.
        """
        if self._silent or self._known_missing(wanted):
            return None
        if self._offline:
            problems.not_found.append(f"offline: {self.url} was not asked for {wanted}")
            return None
        target = self._folder / f"{wanted.key}-{wanted.name}"
        try:
            if self._download(wanted, target, problems):
                reason = wanted.check(target)
                if not reason:
                    return target
                problems.not_found.append(f"{self.url} gave another file: {reason}")
            else:
                self._keep_missing(wanted)
        except DownloadError as error:
            self._silent = error.server
            if error.server:
                problems.always.append(f"{error}; it is not asked again")
            else:
                problems.not_found.append(str(error))
        except OSError as error:
            problems.not_found.append(
                f"{wanted.name} cannot be written to {target}: {error.strerror}"
            )
        with suppress(OSError):
            target.unlink(missing_ok=True)
        return None

    @cached_property
    def _folder(self) -> Path:
        """Where downloads go, as long as this object is there."""
        folder = tempfile.mkdtemp(prefix="bugcheck-lab-symbols-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)

    def _download(self, wanted: Wanted, target: Path, problems: Problems) -> bool:
        if self._fetch(wanted, wanted.name, target):
            return True
        if self._fetch(wanted, wanted.compressed_name, target):
            problems.not_found.append(
                f"{self.url} has {wanted.name} compressed (a cabinet), which is not supported"
            )
        elif self._fetch(wanted, POINTER, target, limit=MAX_POINTER):
            place, message = pointed_at(target.read_text("utf-8", "replace"))
            text = f"says: {message}" if message else f"points at {place}, which is not followed"
            problems.not_found.append(f"{self.url} has a {POINTER} for {wanted.name}; it {text}")
        return False

    def _fetch(self, wanted: Wanted, name: str, target: Path, limit: int = MAX_FILE) -> bool:
        place = place_in_store(wanted, two_tier=self._two_tier) / name
        return self._get(str(place), target, limit)

    def _get(self, place: str, target: Path, limit: int = MAX_FILE) -> bool:
        return download(
            f"{self.url}/{urllib.parse.quote(place)}",
            target,
            progress=self._progress,
            stall_seconds=self._stall_seconds,
            limit=limit,
        )

    @cached_property
    def _two_tier(self) -> bool:
        target = self._folder / TWO_TIER_MARK
        try:
            return self._get(TWO_TIER_MARK, target)
        except DownloadError as error:
            if error.server:
                raise
            return False

    # What the server does not have.

    def _mark(self, wanted: Wanted) -> Path:
        server = urllib.parse.quote(self.url, safe="")
        return self._nearest / _MISSING / server[:200] / f"{wanted.name}-{wanted.key}"

    def _known_missing(self, wanted: Wanted) -> bool:
        try:
            age = time.time() - self._mark(wanted).stat().st_mtime
        except OSError:
            return False
        return 0 <= age < MISSING_HOURS * 3600

    def _keep_missing(self, wanted: Wanted) -> None:
        mark = self._mark(wanted)
        with suppress(OSError):  # a store that cannot be written to has no such memory
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
