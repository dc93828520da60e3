"""The process that parses a disk's file system (The Sleuth Kit), run by lab/disks/files.py.

    python -IS file_reader.py FOLDER_OF_PYTSK3

A disk that crashed is hostile input, so it is parsed here: few rights, bounded memory and processor
time, and no files but standard input and output. Through these come questions and go answers, as
frames of one type byte, a big-endian 32-bit length and that many bytes:

    question   JSON: {"ask": "open" | "stat" | "list" | "read", ...}
    wanted     16 bytes: offset and length on the disk; answered by `blocks` or an empty `failure`
    answer     JSON, or `blocks`: the bytes of a file
    failure    JSON: {"reason", "message"}; reasons are those of lab/disks/blocks.py, or "not-found"

It ends when standard input does, so with the process that started it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import struct
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

QUESTION, WANTED, BLOCKS, ANSWER, FAILURE = b"Q", b"W", b"B", b"A", b"F"

MEMORY_LIMIT = 512 << 20
"""Bytes of address space; Python and The Sleuth Kit take 30 MiB of it."""
PROCESSOR_LIMIT = 30
"""Seconds of processor time for one question; 4 MiB of a file take about 0.01."""
LIST_LIMIT = 200_000
"""Names in one folder."""
NOBODY = 65534
FAT_LABEL = b" (Volume Label Entry)"
"""How The Sleuth Kit ends the name of a FAT32 volume's label, which it lists as a file."""
KIT_ERRORS = (OSError, RuntimeError)
"""What The Sleuth Kit raises; RuntimeError where a block could not be read."""
LOG_FILE, VOLUME_FILE, FIRST_ORDINARY_FILE = 2, 3, 16
"""Records of NTFS's master file table: $LogFile, $Volume, the first that is no metadata."""


class RefusedError(Exception):
    """What the one who asked is told."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def send(stream: BinaryIO, kind: bytes, payload: bytes) -> None:
    """Writes one frame."""
    stream.write(kind + struct.pack(">I", len(payload)))
    stream.write(payload)
    stream.flush()


def receive(stream: BinaryIO, limit: int = 1 << 32) -> tuple[bytes, bytes]:
    """Reads one frame of at most `limit` bytes. Raises EOFError."""
    header = stream.read(5)
    length = int.from_bytes(header[1:], "big")
    if len(header) < 5 or length > limit:
        raise EOFError
    payload = stream.read(length)
    if len(payload) < length:
        raise EOFError
    return header[:1], payload


def answer(volume: Volume, question: dict[str, Any]) -> Any:
    """The JSON answer to a question, or bytes."""
    match question["ask"]:
        case "open":
            return volume.open()
        case "stat":
            return volume.describe(*volume.find(question["path"]))
        case "list":
            return volume.list_folder(question["path"], question["pattern"])
        case "read":
            return volume.read(
                question["path"],
                question["offset"],
                question["length"],
                past_valid_data=question["past_valid_data"],
            )
    raise RefusedError("unreadable", f"unknown question {question!r}")


class Volume:
    """The file system that holds Windows; every path is a list of names below its root."""

    def __init__(self, disk: Any, kit: Any) -> None:
        self._disk = disk
        self._kit = kit
        self._files: Any = None
        self._is_ntfs = False
        self._last: tuple[list[str], tuple[Any, list[str]]] | None = None

    # Finding it

    def open(self) -> dict[str, object]:
        r"""Chooses the volume with \Windows, else the first; says what state it is in."""
        found, refused, seen = [], "", []
        for start, length, description in self._partitions():
            boot = self._disk.read(start, 512)
            seen.append(description)
            if _is_bitlocker(boot):
                refused = f"the partition at byte {start:#x} is encrypted by BitLocker"
            elif boot[3:11] == b"NTFS    " or boot[82:87] == b"FAT32":
                found.append((start, length, boot[3:11] == b"NTFS    "))
        broken = None
        usable = []
        for start, length, is_ntfs in found:
            try:
                files = self._kit.FS_Info(self._disk, start)
            except KIT_ERRORS as error:
                broken = broken or f"the file system at byte {start:#x}: {_said(error)}"
                continue
            usable.append((start, length, files, is_ntfs))
            offset, size, self._files, self._is_ntfs = usable[-1]
            if self._child(files.info.root_inum, "Windows"):
                break
        else:
            if refused:
                raise RefusedError("bitlocker", refused)
            if not usable and broken:
                raise RefusedError("unreadable", broken)
            if not usable:
                kinds = ", ".join(seen)
                raise RefusedError("unknown-filesystem", f"neither FAT32 nor NTFS in: {kinds}")
            offset, size, self._files, self._is_ntfs = usable[0]
        return {
            "offset": offset,
            "length": size,
            "filesystem": "ntfs" if self._is_ntfs else "fat32",
            "dirty": self._dirty() if self._is_ntfs else "",
            "hibernated": self._is_hibernated(),
        }

    def _partitions(self) -> Iterator[tuple[int, int, str]]:
        """(offset, length, description) of each, in bytes."""
        table = None
        # By name: a search would need the disk's last sector and may find other machines' tables.
        for kind in (self._kit.TSK_VS_TYPE_GPT, self._kit.TSK_VS_TYPE_DOS):
            with contextlib.suppress(*KIT_ERRORS):
                table = table or self._kit.Volume_Info(self._disk, kind)
        if table is None:
            raise RefusedError("no-partition", "neither a GPT nor an MBR can be read")
        count = 0
        for part in table:
            if int(part.flags) == int(self._kit.TSK_VS_PART_FLAG_ALLOC):
                count += 1
                sector = table.info.block_size
                yield part.start * sector, part.len * sector, _text(part.desc)
        if not count:
            raise RefusedError("no-partition", "the partition table is empty")

    def _dirty(self) -> str:
        """Why the volume is not clean, or nothing."""
        volume = self._files.open_meta(VOLUME_FILE)
        for attribute in volume:
            if attribute.info.type == self._kit.TSK_FS_ATTR_TYPE_NTFS_VINFO:
                data = volume.read_random(0, 12, attribute.info.type, attribute.info.id)
                # VOLUME_INFORMATION: 8 reserved bytes, version, flags; flag 1 is "dirty".
                if int.from_bytes(data[10:12], "little") & 1:
                    return "the volume is marked dirty"
        log = self._files.open_meta(LOG_FILE)
        size = min(log.info.meta.size, 2 * 65536)
        return _log_state(log.read_random(0, size) if size else b"")

    def _is_hibernated(self) -> bool:
        try:
            file, _ = self.find(["hiberfil.sys"])
            start = file.read_random(0, 4) if file.info.meta.size >= 4 else b""
        except (RefusedError, *KIT_ERRORS):
            return False  # absent, or not even its first bytes can be read: nothing to resume
        return bool(start.lower() == b"hibr")

    # Files

    def find(self, path: list[str]) -> tuple[Any, list[str]]:
        """The file of that name, upper or lower case, and its names as the disk spells them."""
        if self._last and self._last[0] == path:
            return self._last[1]
        number, spelled = self._files.info.root_inum, []
        for name in path:
            entry = self._child(number, name)
            if entry is None:
                raise RefusedError("not-found", "")
            number = entry.info.meta.addr
            spelled.append(_text(entry.info.name.name))
        found = (self._files.open_meta(number), spelled)
        if found[0].info.meta is None:
            raise RefusedError("unreadable", "the file's entry is damaged")
        self._last = (path, found)
        return found

    def describe(self, file: Any, spelled: list[str]) -> dict[str, object]:
        """What FileInfo holds."""
        meta = file.info.meta
        content = self._content(file)
        return {
            "names": spelled,
            "folder": self._is_folder(meta),
            "size": 0 if self._is_folder(meta) else self._size(file, content),
            "seconds": meta.mtime,
            "nanoseconds": meta.mtime_nano,
            "allocated": self._allocated(content),
        }

    def _allocated(self, content: Any) -> int:
        """Bytes of the clusters that hold it."""
        if content is None or not content.info.flags & self._kit.TSK_FS_ATTR_NONRES:
            return 0
        empty = int(self._kit.TSK_FS_ATTR_RUN_FLAG_SPARSE) | int(
            self._kit.TSK_FS_ATTR_RUN_FLAG_FILLER
        )
        clusters = sum(run.len for run in content if not int(run.flags) & empty)
        return int(clusters * self._files.info.block_size)

    def _size(self, file: Any, content: Any) -> int:
        """How many bytes there are. FAT knows no holes: where the chain ends, the file does.

        Its entry says more after a power cut while it grew.
        """
        size = int(file.info.meta.size)
        return size if self._is_ntfs else min(size, self._allocated(content))

    def list_folder(self, path: list[str], pattern: str) -> list[dict[str, object]]:
        """What is in a folder and matches."""
        folder, spelled = self.find(path)
        if not self._is_folder(folder.info.meta):
            raise RefusedError("unreadable", "this is a file, not a folder")
        parts = {"*": ".*", "?": "."}
        wanted = re.compile("".join(parts.get(c, re.escape(c)) for c in _upper(pattern)), re.DOTALL)
        return [
            self.describe(entry, [*spelled, _text(entry.info.name.name)])
            for entry in self._entries(folder.info.meta.addr)
            if wanted.fullmatch(_upper(_text(entry.info.name.name)))
        ]

    def read(self, path: list[str], offset: int, length: int, *, past_valid_data: bool) -> bytes:
        """Bytes of a file; fewer only at its end."""
        file, _ = self.find(path)
        if self._is_folder(file.info.meta):
            raise RefusedError("unreadable", "this is a folder, not a file")
        content = self._content(file)
        if content is not None and content.info.flags & self._kit.TSK_FS_ATTR_ENC:
            raise RefusedError("encrypted-file", "encrypted by EFS")
        if self._is_compact(file):
            raise RefusedError("compact-file", "stored by Compact OS (WOF), which is not read here")
        if content is None and file.info.meta.size:
            raise RefusedError("unreadable", "the file has a size and no content")
        length = min(length, self._size(file, content) - offset)
        if length <= 0:
            return b""
        flags = self._kit.TSK_FS_FILE_READ_FLAG_NONE
        if past_valid_data:
            flags = self._kit.TSK_FS_FILE_READ_FLAG_SLACK
        data = file.read_random(offset, length, content.info.type, content.info.id, flags)
        if len(data) != length:
            raise RefusedError("unreadable", f"only {len(data)} of {length} bytes at {offset:#x}")
        return bytes(data)

    def _content(self, file: Any) -> Any:
        """The attribute that holds a file's bytes; None for a folder."""
        kind = self._kit.TSK_FS_ATTR_TYPE_DEFAULT
        if self._is_ntfs:
            kind = self._kit.TSK_FS_ATTR_TYPE_NTFS_DATA
        for attribute in file:
            named = attribute.info.name not in (None, b"", b"$Data", b"N/A")
            if attribute.info.type == kind and not named:
                return attribute
        return None

    def _is_compact(self, file: Any) -> bool:
        return any(attribute.info.name == b"WofCompressedData" for attribute in file)

    def _is_folder(self, meta: Any) -> bool:
        return meta.type in (
            self._kit.TSK_FS_META_TYPE_DIR,
            self._kit.TSK_FS_META_TYPE_VIRT_DIR,
        )

    def _child(self, folder: int, name: str) -> Any:
        """The entry with that long or short name, or None."""
        wanted = _upper(name)
        for entry in self._entries(folder):
            names = (entry.info.name.name, entry.info.name.shrt_name)
            if wanted in (_upper(_text(given)) for given in names if given):
                return entry
        return None

    def _entries(self, folder: int) -> Iterator[Any]:
        """The entries Windows shows: no deleted ones, no metadata, no "." or ".." either."""
        for count, entry in enumerate(self._files.open_dir(inode=folder)):
            if count >= LIST_LIMIT:
                raise RefusedError("unreadable", f"a folder with more than {LIST_LIMIT} entries")
            name, meta = entry.info.name, entry.info.meta
            virtual = (self._kit.TSK_FS_NAME_TYPE_VIRT, self._kit.TSK_FS_NAME_TYPE_VIRT_DIR)
            if (
                meta is not None
                and name.flags == self._kit.TSK_FS_NAME_FLAG_ALLOC
                and name.type not in virtual
                and name.name not in (b".", b"..")
                and not (self._is_ntfs and meta.addr < FIRST_ORDINARY_FILE)
                and not (name.name.endswith(FAT_LABEL) and not name.shrt_name)
            ):
                yield entry


def _is_bitlocker(boot: bytes) -> bool:
    """A BitLocker volume's boot sector, or BitLocker To Go's, which looks like FAT32.

    Source: https://github.com/libyal/libbde/blob/main/documentation
    """
    to_go = bytes.fromhex("3bd66749292ed84a8399f6a339e3d001")
    return boot[3:11] == b"-FVE-FS-" or (boot[3:11] == b"MSWIN4.1" and boot[424:440] == to_go)


def _log_state(log: bytes) -> str:
    """Why NTFS's log is not clean, or nothing.

    $LogFile starts with two restart pages, of which the one with the higher sequence number counts.
    Its restart area is at the offset in the page's bytes 0x18; there 0x00 is the sequence number,
    0x0C the list of clients in use (0xFFFF: none) and 0x0E flags (2: cleanly dismounted). A log
    never used is all 0xFF. Source: https://flatcap.github.io/linux-ntfs/ntfs/files/logfile.html
    """
    if not log.strip(b"\xff"):
        return ""
    page = int.from_bytes(log[0x10:0x14], "little")
    best = None
    for start in (0, page if 512 <= page <= 65536 else 4096):
        area = start + int.from_bytes(log[start + 0x18 : start + 0x1A], "little")
        fields = log[area : area + 16]
        if log[start : start + 4] in (b"RSTR", b"CHKD") and len(fields) == 16:
            restart = struct.unpack("<Q4xHH", fields)
            best = max(best or restart, restart)
    if best is None:
        return "its log ($LogFile) is damaged"
    _, clients, flags = best
    return "" if clients == 0xFFFF or flags & 2 else "changes wait in its log ($LogFile)"


def _upper(name: str) -> str:
    """Upper case as Windows compares names: character by character, none becoming two."""
    return "".join(up if len(up := c.upper()) == 1 else c for c in name)


def _text(name: bytes) -> str:
    return name.decode(errors="replace")


def _said(error: Exception) -> str:
    """The Sleuth Kit's message without the place in its source."""
    return re.sub(r"^\w+: \(\S+\) ", "", str(error))


def _open_disk(kit: Any, size: int, source: BinaryIO, sink: BinaryIO) -> Any:
    class Disk(kit.Img_Info):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(url="", type=kit.TSK_IMG_TYPE_EXTERNAL)

        def read(self, offset: int, length: int) -> bytes:
            send(sink, WANTED, struct.pack(">QQ", offset, length))
            kind, payload = receive(source)
            if kind == FAILURE or len(payload) != length:
                # A short answer would not do: The Sleuth Kit takes what is missing for zeros.
                raise OSError(f"bytes {offset:#x} to {offset + length:#x} cannot be read")
            return payload

        def get_size(self) -> int:
            return size

    return Disk()


def _give_up_rights() -> None:
    """No new files, bounded memory, and not root."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))


def _limit_processor_time() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + PROCESSOR_LIMIT + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))


def main() -> None:
    """See the module."""
    sys.path.append(sys.argv[1])
    import pytsk3  # noqa: PLC0415  the other end imports this module for its frames alone

    source, sink = sys.stdin.buffer, sys.stdout.buffer
    _give_up_rights()
    volume: Volume | None = None
    while True:
        try:
            _, payload = receive(source)
        except EOFError:
            return
        _limit_processor_time()
        question = json.loads(payload)
        try:
            if volume is None:
                volume = Volume(_open_disk(pytsk3, question["size"], source, sink), pytsk3)
            found = answer(volume, question)
        except EOFError:
            return
        except RefusedError as refusal:
            failure = {"reason": refusal.reason, "message": str(refusal)}
            send(sink, FAILURE, json.dumps(failure).encode())
        except KIT_ERRORS as error:
            failure = {"reason": "unreadable", "message": _said(error)}
            send(sink, FAILURE, json.dumps(failure).encode())
        except MemoryError:
            failure = {"reason": "unreadable", "message": "reading it takes too much memory"}
            send(sink, FAILURE, json.dumps(failure).encode())
        else:
            if isinstance(found, bytes):
                send(sink, BLOCKS, found)
            else:
                send(sink, ANSWER, json.dumps(found).encode())


if __name__ == "__main__":
    main()
