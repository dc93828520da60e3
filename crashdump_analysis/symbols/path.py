"""A symbol path as Windows' debuggers read it, and files looked for along it.

Source: Microsoft's "Symbol path for Windows debuggers" and "Advanced SymSrv Use". Elements are
separated by semicolons and tried from left to right:

    FOLDER                          files as they are in it, or as in a symbol store
    srv*STORE*...*SERVER            a chain: what is found is copied into the stores before it
    symsrv*symsrv.dll*...           the same
    srv*                            Microsoft's server, with the default cache
    cache*STORE, cache*             a store for what any later element gives

An empty place in a chain is the default cache. SERVER is a folder, or a URL, which needs a cache:
where the chain has none before it, the default one.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from crashdump_analysis.symbols.download import STALL_SECONDS, Progress
from crashdump_analysis.symbols.server import Server
from crashdump_analysis.symbols.store import Folder, Problems, Store, Wanted

MICROSOFTS_SERVER: Final = "https://msdl.microsoft.com/download/symbols"
_OF_WINDOWS = re.compile(r"[A-Za-z]:\\|\\\\")
_VARIABLES = ("_NT_ALT_SYMBOL_PATH", "_NT_SYMBOL_PATH")

Chain = Sequence[Folder | Server]


def environment_symbol_path(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The symbol path that Windows' debuggers take from the environment: none or one element."""
    parts = [environment[name].strip() for name in _VARIABLES if environment.get(name, "").strip()]
    return [";".join(parts)] if parts else []


def default_cache(environment: Mapping[str, str] = os.environ) -> Path:
    """The default downstream store, where the debuggers have it if this is Windows."""
    if environment.get("DBGHELP_HOMEDIR"):
        return Path(environment["DBGHELP_HOMEDIR"], "sym")
    if sys.platform == "win32":
        return Path(environment.get("PROGRAMDATA", "C:/ProgramData"), "Dbg", "sym")
    base = environment.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "bugcheck-lab", "symbols")


class SymbolPath:
    """Where symbol files and images are looked for.

    elements: folders, or symbol paths as the debuggers read them. offline: servers are not asked.
    progress: is told of downloads that take more than 2 s. One object may serve many dumps: it
    remembers which servers do not answer and what was not found.
    """

    def __init__(
        self,
        elements: Iterable[str | os.PathLike[str]] = (),
        *,
        offline: bool = False,
        progress: Progress | None = None,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self.problems: list[str] = []
        """What is wrong with the path itself, in words."""
        self._offline = offline
        self._progress = progress
        self._stall_seconds = stall_seconds
        self._servers: dict[tuple[str, Path], Server] = {}
        self._found: dict[tuple[str, str], tuple[Path | None, list[str]]] = {}
        self.chains: list[Chain] = [chain for one in elements for chain in self._element(one)]

    def __bool__(self) -> bool:
        return bool(self.chains)

    def __str__(self) -> str:
        return "; ".join(" * ".join(map(str, chain)) for chain in self.chains)

    @property
    def folders(self) -> list[Path]:
        """The plain folders of the path."""
        return [one.path for chain in self.chains for one in chain[-1:] if type(one) is Folder]

    def find(self, wanted: Wanted) -> tuple[Path | None, list[str]]:
        """The file, if it is somewhere along the path, and in words what stood in the way."""
        key = (wanted.name, wanted.key)
        if key not in self._found:
            problems = Problems()
            path = self._find(wanted, problems) if wanted.allowed else None
            words = problems.always if path else problems.always + problems.not_found
            self._found[key] = (path, words)
        return self._found[key]

    def _find(self, wanted: Wanted, problems: Problems) -> Path | None:
        for chain in self.chains:
            for number, place in enumerate(chain):
                path = place.get(wanted, problems)
                if path is None:
                    continue
                for store in reversed(chain[:number]):
                    if isinstance(store, Store):
                        path = store.put(wanted, path, problems) or path
                return path
        return None

    # Reading a path.

    def _element(self, element: str | os.PathLike[str]) -> Iterator[Chain]:
        if not isinstance(element, str) or os.path.isdir(element):
            yield self._folder(Path(element))
            return
        cache: list[Folder | Server] = []
        for part in map(str.strip, element.split(";")):
            kind, *places = part.strip('"').split("*")
            kind = kind.strip().lower()
            if not part:
                continue
            if not places:
                yield [*cache, *self._folder(Path(part.strip('"')))]
            elif kind == "cache":
                cache = [self._store(places[0].strip())]
            elif kind == "srv":
                yield self._chain(cache, places)
            elif kind == "symsrv" and places[0].strip().lower() == "symsrv.dll":
                yield self._chain(cache, places[1:] or [""])
            else:
                self.problems.append(
                    f'"{part}" in the symbol path is not understood: elements with * begin with '
                    "srv*, symsrv*symsrv.dll* or cache*"
                )

    def _folder(self, path: Path) -> Chain:
        if not os.path.isdir(path):
            self.problems.append(f"symbol folder {path} is not there")
        return [Folder(path)]

    def _store(self, place: str) -> Store:
        if sys.platform != "win32" and _OF_WINDOWS.match(place) and not os.path.isdir(place):
            self.problems.append(f"{place} in the symbol path is a path of Windows; not used here")
            place = ""
        return Store(Path(place) if place else default_cache())

    def _chain(self, cache: Chain, places: Sequence[str]) -> Chain:
        if not any(map(str.strip, places)):
            places = ["", MICROSOFTS_SERVER]
        chain: list[Folder | Server] = list(cache)
        for place in map(str.strip, places):
            if not place.lower().startswith(("http://", "https://")):
                chain.append(self._store(place))
                continue
            _, at, host = place.split("/")[2].rpartition("@")
            if at:
                self.problems.append(
                    f"the symbol server at {host} is left out: an address with a user's name or "
                    "password is not used, for addresses are printed"
                )
                continue
            if not any(isinstance(one, Store) for one in chain):
                chain.insert(0, self._store(""))
            nearest = next(one.path for one in chain if isinstance(one, Store))
            chain.append(self._server(place, nearest))
        return chain

    def _server(self, url: str, nearest: Path) -> Server:
        key = (url.rstrip("/"), nearest)
        if key not in self._servers:
            self._servers[key] = Server(
                url,
                nearest,
                offline=self._offline,
                progress=self._progress,
                stall_seconds=self._stall_seconds,
            )
        return self._servers[key]
