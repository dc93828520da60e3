"""Images as known states: found or built, named by hash, held to what a record says of them."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from images.contract import Contract, ContractError, load_contract
from lab.backend import Image
from lab.config import OUTPUT, Config, ConfigError, ImageSource
from lab.outcome import InfrastructureError

MIB = 1 << 20
DUMP_HEADROOM = 64 * MIB
"""What a dump can hold beside memory: headers, bitmap, secondary data."""
OTHER_EVIDENCE = 64 * MIB
"""For screens, logs, reports and the record of one run."""
SETTLED_NANOSECONDS = 100_000_000
"""A file that changed later than this before it was hashed may change again unseen: file times
move in steps of some milliseconds."""
LAST_LINES = 20
"""Of a failed build's output, in the error."""

Say = Callable[[str], None]
Identity = dict[str, dict[str, str]]
"""What an image is made of: part ("disk", "backing-1", "tpm/..." ...) to path and sha256."""


class ImageError(InfrastructureError):
    """An image is missing, broken, changed or cannot be built; says which file, and what to do."""


def worst_case_dump_bytes(contract: Contract) -> int:
    """Bytes that one run's evidence can take at most.

    A run ends with a boot loop's crashes and one more at most. Each may leave a dump where it was
    staged (pagefile or DedicatedDumpFile), its copy made by the next boot, and a dump taken by the
    hypervisor. None is larger than memory and its headers; the first two fit the staging file, too.
    """
    crashes = contract.boot.loop_after_crashes + 1
    memory = contract.hardware.memory_mib * MIB + DUMP_HEADROOM
    staged = min(contract.dump.staged_bytes, memory)
    return crashes * (2 * staged + memory) + OTHER_EVIDENCE


def sha256_of(path: Path, cache: Path) -> str:
    """A file's hash in hex, taken from `cache` if inode, size and time of change are the same.

    cache: a JSON file, made if absent, shared by any number of processes. Raises ImageError.
    """
    key = str(path.absolute())
    try:
        stamp, changed = _stamp(path)
        known_stamp, _, known = _read_cache(cache).get(key, "").partition(" ")
        if known_stamp == stamp:
            return known
        began = time.time_ns()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if _stamp(path)[0] != stamp:
            raise ImageError(f"{path}: changed while it was read; end what writes to it")
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror}") from None
    if began - changed > SETTLED_NANOSECONDS:
        try:
            # Another process may write at the same time: then one entry is lost and made again.
            _replace(cache, json.dumps({**_read_cache(cache), key: f"{stamp} {digest}"}, indent=1))
        except OSError as error:
            raise ImageError(f"{cache}: cannot be written: {error.strerror}") from None
    return digest


def disk_format(disk: Path) -> Literal["qcow2", "raw"]:
    """The format of a base disk. Raises ImageError for one that no machine could start from."""
    try:
        with disk.open("rb") as file:
            start = file.read(512)
    except FileNotFoundError:
        raise ImageError(f"{disk}: there is no such disk") from None
    except OSError as error:
        raise ImageError(f"{disk}: cannot be read: {error.strerror}") from None
    if start.startswith(b"QFI\xfb"):
        return "qcow2"
    if start[510:] == b"\x55\xaa":  # a master boot record, or the protective one of a GPT
        return "raw"
    raise ImageError(
        f"{disk}: expected a qcow2 disk, or a raw one with a partition table; found a file that "
        f"begins with {start[:8]!r}. Make one of it: qemu-img convert -O qcow2 {disk} NEW.qcow2"
    )


class ImageStore:
    """The images of a lab.toml; what is built and hashed is kept in the lab's store."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._folder = config.store / "images"
        self._cache = self._folder / "hashes.json"

    def image(self, name: str, say: Say) -> Image:
        """An image, built first if it has to be; `say` is told the progress of that.

        Raises ConfigError if lab.toml or the contract is wrong, ImageError for the rest.
        """
        source = self._config.image(name)
        try:
            contract = load_contract(source.contract)
        except ContractError as error:
            raise ConfigError(str(error)) from None
        if source.installed:
            return Image(name, contract, None, symbols=source.symbols)
        disk = source.disk or self._built(source, say)
        self._check_file(name, "disk", disk)
        disk_format(disk)
        if source.sha256 is not None and (found := sha256_of(disk, self._cache)) != source.sha256:
            raise ImageError(
                f"{self._config.where('images', name, 'sha256')}: {disk} is not the disk it was: "
                f"expected {source.sha256}, found {found}"
            )
        if source.nvram is not None:
            self._check_file(name, "nvram", source.nvram)
        for key, folders in (("tpm", [source.tpm]), ("symbols", source.symbols)):
            for folder in folders:
                if folder is not None and not folder.is_dir():
                    raise self._missing(name, key, f"there is no folder {folder}")
        return Image(
            name, contract, disk, nvram=source.nvram, tpm=source.tpm, symbols=source.symbols
        )

    def identity(self, image: Image) -> Identity:
        """Path and hash of all that makes the image what it is. Raises ImageError.

        Of one that is installed on a machine already nobody knows more than its contract.
        """
        chain = _backing_chain(image.disk) if image.disk else []
        parts = {
            f"backing-{number}" if number else "disk": file for number, file in enumerate(chain)
        }
        if image.nvram is not None:
            parts["nvram"] = image.nvram
        if image.memory is not None:
            parts["memory"] = image.memory
        if image.tpm is not None:
            parts |= {f"tpm/{file.relative_to(image.tpm)}": file for file in _files_in(image.tpm)}
        found = {
            part: {"path": str(file.absolute()), "sha256": sha256_of(file, self._cache)}
            for part, file in parts.items()
        }
        contract = image.contract.model_dump_json(by_alias=True, exclude_unset=True).encode()
        path = str(self._config.image(image.name).contract.absolute())
        return {**found, "contract": {"path": path, "sha256": hashlib.sha256(contract).hexdigest()}}

    def verify(self, image: Image, identity: Identity) -> None:
        """Returns if the image is what identity() said once. Raises ImageError naming the file."""
        now = self.identity(image)
        for part in [*identity, *(part for part in now if part not in identity)]:
            was, found = identity.get(part), now.get(part)
            if was is None or found is None:
                path = (was or found or {})["path"]
                what = "is new" if was is None else "is gone"
                raise ImageError(
                    f"{path}: image {image.name} changed since the record: {part} {what}"
                )
            if was["sha256"] != found["sha256"]:
                raise ImageError(
                    f"{found['path']}: image {image.name} changed since the record: the {part} had "
                    f"sha256 {was['sha256']}, now {found['sha256']}"
                )

    def built_disk(self, source: ImageSource) -> Path:
        """Where the disk of an image with a build command is or will be. Raises ImageError."""
        assert source.build is not None
        recipe = hashlib.sha256(source.build.encode())
        for file in (source.contract, *source.inputs):
            for one in _files_in(file):
                recipe.update(
                    f"{one.relative_to(file.parent)}\0{sha256_of(one, self._cache)}".encode()
                )
        return self._folder / f"{source.name}-{recipe.hexdigest()[:16]}.qcow2"

    def _built(self, source: ImageSource, say: Say) -> Path:
        disk = self.built_disk(source)
        lock = disk.with_suffix(".lock")
        with locked(lock, lambda: say(f"Waiting for another process to build {disk}")) as held:
            if not disk.exists():
                say(f"Building image {source.name}: {source.build}")
                _build(source, disk, held, say)
        return disk

    def _check_file(self, name: str, key: str, file: Path) -> None:
        if not file.is_file():
            raise self._missing(name, key, f"there is no file {file}")

    def _missing(self, name: str, key: str, text: str) -> ImageError:
        return ImageError(f"{self._config.where('images', name, key)}: {text}")


def _build(source: ImageSource, disk: Path, lock: int, say: Say) -> None:
    """Runs the build command; `disk` is there when all of it is."""
    for left in disk.parent.glob(f"{disk.stem}.part-*"):  # of a build that was killed
        left.unlink()
    part = disk.with_name(f"{disk.stem}.part-{os.getpid()}.qcow2")
    assert source.build is not None
    command = [word.replace(OUTPUT, str(part.absolute())) for word in shlex.split(source.build)]
    if command[0] == "python":
        command[0] = sys.executable
    last: deque[str] = deque(maxlen=LAST_LINES)
    try:
        with subprocess.Popen(
            command,
            cwd=source.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            pass_fds=[lock],  # if only this process is killed, no second build begins beside it
        ) as building:
            try:
                assert building.stdout is not None
                for line in building.stdout:
                    last.append(line.rstrip())
                    say(f"  {line.rstrip()}")
            except BaseException:
                os.killpg(building.pid, signal.SIGKILL)
                raise
        if building.returncode:
            raise ImageError(
                f"image {source.name}: its build command ended with {building.returncode}: "
                f"{shlex.join(command)}\n" + "\n".join(f"  {line}" for line in last)
            )
        if not part.exists() or disk_format(part) != "qcow2":
            raise ImageError(
                f"image {source.name}: its build command ended well and wrote no qcow2 disk to "
                f"{OUTPUT}: {shlex.join(command)}"
            )
        part.chmod(0o444)  # machines write to their clones, and may run as another user
        part.rename(disk)
    except OSError as error:
        raise ImageError(
            f"image {source.name}: cannot be built ({shlex.join(command)}): {error.strerror}"
        ) from None
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[int]:
    """Holds a file lock; it ends with the processes that have it, whatever ends them."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("a")
    except OSError as error:
        raise ImageError(f"{path}: cannot be written: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def _backing_chain(disk: Path) -> list[Path]:
    """The disk and what it is a clone of, in order."""
    command = ["qemu-img", "info", "--output=json", "--backing-chain", "-U", str(disk)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except FileNotFoundError:
        raise ImageError("there is no qemu-img; apt-get install qemu-utils") from None
    if done.returncode:
        raise ImageError(f"{disk}: {done.stderr.strip().removeprefix('qemu-img: ')}")
    return [Path(layer["filename"]) for layer in json.loads(done.stdout)]


def _files_in(path: Path) -> list[Path]:
    """The file, or a folder's files without Python's byte code, in a fixed order."""
    if not path.is_dir():
        return [path]
    files = (file for file in path.rglob("*") if file.is_file())
    return sorted(file for file in files if "__pycache__" not in file.parts)


def _stamp(path: Path) -> tuple[str, int]:
    """What a file has as long as it is the same, and when it last changed (ns since 1970)."""
    status = path.stat()
    changed = status.st_mtime_ns
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{changed}", changed


def _read_cache(cache: Path) -> dict[str, str]:
    """Path to "STAMP SHA256"; nothing if the file is absent or damaged."""
    try:
        return TypeAdapter(dict[str, str]).validate_json(cache.read_bytes())
    except (OSError, ValidationError):
        return {}


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f"{path.name}.", delete=False
    ) as new:
        new.write(text)
    Path(new.name).rename(path)
