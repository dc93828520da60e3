"""A machine's disk as blocks, wherever it lies, and the errors of everything built on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, Self

from lab.outcome import InfrastructureError


class DiskError(InfrastructureError):
    """A disk, or a file on it, could not be read or edited; the message says why.

    `reason` names the refusals that callers and reports tell apart.
    """

    reason: ClassVar[str] = "unreadable"


class NoPartitionError(DiskError):
    """There is no partition table, or no partition in it."""

    reason = "no-partition"


class UnknownFilesystemError(DiskError):
    """No partition holds FAT32 or NTFS."""

    reason = "unknown-filesystem"


class BitLockerError(DiskError):
    """The system volume is encrypted by BitLocker: neither read nor edited."""

    reason = "bitlocker"


class EncryptedFileError(DiskError):
    """The file is encrypted by EFS: its bytes on the disk are not its content."""

    reason = "encrypted-file"


class CompactFileError(DiskError):
    """The file is stored by Compact OS (WOF), which is not read here; plain reading gives zeros."""

    reason = "compact-file"


class DirtyLogError(DiskError):
    """NTFS was not shut down cleanly: changes wait in its log. Read with a warning, not edited."""

    reason = "dirty-log"


class HibernatedError(DiskError):
    """Windows hibernated (fast start-up is that too). Read with a warning, not edited."""

    reason = "hibernated"


class BaseImageError(DiskError):
    """The disk has no backing file: it is a base that other machines may stand on."""

    reason = "base-image"


class DiskInUseError(DiskError):
    """A machine, or another edit, has the disk open."""

    reason = "in-use"


@dataclass(frozen=True)
class Extent:
    """A part of a disk, in bytes; what is not allocated reads as zeros."""

    offset: int
    length: int
    allocated: bool


class BlockSource(ABC):
    """The bytes of one disk, read-only; a context manager. Methods may be called by any thread."""

    size: int
    """Of the disk, in bytes."""

    @abstractmethod
    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`; fewer only at the end of the disk. Raises DiskError."""

    @abstractmethod
    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """What is allocated between `offset` and `offset + length`, in order and without gaps.

        Ends at the end of the disk. Raises DiskError.
        """

    @abstractmethod
    def close(self) -> None:
        """Ends all that serves the disk; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
