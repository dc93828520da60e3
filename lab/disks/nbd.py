"""A block source that asks a network block device server on a connected socket.

Only what reading takes of the protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
(fixed newstyle handshake, structured replies, block status). Numbers are big-endian.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

from lab.disks.blocks import BlockSource, DiskError, Extent

GREETING = b"NBDMAGICIHAVEOPT"
FIXED_NEWSTYLE_NO_ZEROES = 3
OPTION_REPLY = 0x3E889045565A9
OPTION_GO, OPTION_STRUCTURED_REPLY, OPTION_SET_META_CONTEXT = 7, 8, 10
REPLY_ACK, REPLY_INFO, REPLY_META_CONTEXT, REPLY_ERRORS = 1, 3, 4, 1 << 31
INFO_EXPORT = 0
ALLOCATION = b"base:allocation"

REQUEST = 0x25609513
COMMAND_READ, COMMAND_DISCONNECT, COMMAND_BLOCK_STATUS = 0, 2, 7
STRUCTURED_REPLY = 0x668E33EF
CHUNK_IS_LAST = 1
CHUNK_NONE, CHUNK_DATA, CHUNK_HOLE, CHUNK_BLOCK_STATUS, CHUNK_ERRORS = 0, 1, 2, 5, 1 << 15
STATUS_READS_ZERO = 2

READ_BYTES = 4 << 20
"""Most bytes asked for at once; servers may refuse more than 32 MiB."""
STATUS_BYTES = 1 << 30
CHUNK_LIMIT = READ_BYTES + 4096
"""Most bytes taken as one chunk of a reply."""


class NetworkBlocks(BlockSource):
    """The export named "" of the server at the other end of `connection`, which it now owns."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._cookie = 0
        self.size = self._shake_hands()

    def read(self, offset: int, length: int) -> bytes:
        """See BlockSource."""
        end = min(offset + length, self.size)
        pieces = [
            self._read_piece(start, min(READ_BYTES, end - start))
            for start in range(offset, end, READ_BYTES)
        ]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """See BlockSource."""
        end = min(offset + length, self.size)
        pending: Extent | None = None
        while offset < end:
            for described, flags in self._block_status(offset, min(end - offset, STATUS_BYTES)):
                piece = Extent(offset, min(described, end - offset), not flags & STATUS_READS_ZERO)
                offset += piece.length
                if pending and pending.allocated == piece.allocated:
                    whole = pending.length + piece.length
                    piece = Extent(pending.offset, whole, piece.allocated)
                elif pending:
                    yield pending
                pending = piece
        if pending:
            yield pending

    def close(self) -> None:
        """Says goodbye and closes the connection."""
        if self._connection.fileno() != -1:
            goodbye = struct.pack(">IHHQQI", REQUEST, 0, COMMAND_DISCONNECT, 0, 0, 0)
            with contextlib.suppress(OSError):  # the server may be gone already
                self._connection.sendall(goodbye)
            self._connection.close()

    # The handshake

    def _shake_hands(self) -> int:
        """Opens the export; returns its size in bytes."""
        greeting = self._receive(18)
        if greeting[:16] != GREETING:
            raise DiskError(f"the block server greets with {greeting!r}, not with NBD's handshake")
        self._send(struct.pack(">I", FIXED_NEWSTYLE_NO_ZEROES))
        self._option(OPTION_STRUCTURED_REPLY)
        query = struct.pack(">III", 0, 1, len(ALLOCATION)) + ALLOCATION
        contexts = [kind for kind, _ in self._option(OPTION_SET_META_CONTEXT, query)]
        if REPLY_META_CONTEXT not in contexts:
            raise DiskError("the block server does not say what is allocated (base:allocation)")
        for kind, data in self._option(OPTION_GO, struct.pack(">IH", 0, 0)):
            if kind == REPLY_INFO and data[:2] == struct.pack(">H", INFO_EXPORT):
                return int.from_bytes(data[2:10], "big")
        raise DiskError("the block server does not say the size of the disk")

    def _option(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Sends an option; returns the replies before the acknowledgement."""
        self._send(GREETING[8:] + struct.pack(">II", option, len(data)) + data)
        replies: list[tuple[int, bytes]] = []
        while True:
            magic, _, kind, length = struct.unpack(">QIII", self._receive(20))
            if magic != OPTION_REPLY or length > CHUNK_LIMIT:
                raise DiskError("the block server answers an option with something else")
            payload = self._receive(length)
            if kind & REPLY_ERRORS:
                message = payload.decode(errors="replace")
                raise DiskError(f"the block server refuses option {option}: {message}")
            if kind == REPLY_ACK:
                return replies
            replies.append((kind, payload))

    # Commands

    def _read_piece(self, offset: int, length: int) -> bytes:
        chunks = self._command(COMMAND_READ, offset, length)
        if len(chunks) == 1 and chunks[0][0] == CHUNK_DATA and len(chunks[0][1]) == 8 + length:
            return chunks[0][1][8:]  # all of it, the common case: not copied once more
        found = bytearray(length)
        for kind, payload in chunks:
            start = int.from_bytes(payload[:8], "big") - offset
            data = payload[8:]
            if kind == CHUNK_DATA and 0 <= start <= length - len(data):
                found[start : start + len(data)] = data
            elif kind != CHUNK_HOLE:  # a hole's bytes are zero as they stand
                raise DiskError(f"the block server answers a read with chunk type {kind}")
        return bytes(found)

    def _block_status(self, offset: int, length: int) -> list[tuple[int, int]]:
        """(bytes, flags) of consecutive pieces from `offset`; the last may reach beyond."""
        for kind, payload in self._command(COMMAND_BLOCK_STATUS, offset, length):
            pieces = list(struct.iter_unpack(">II", payload[4:]))
            if kind == CHUNK_BLOCK_STATUS and pieces and all(size for size, _ in pieces):
                return pieces
        raise DiskError(f"the block server does not say what is allocated at byte {offset:#x}")

    def _command(self, command: int, offset: int, length: int) -> list[tuple[int, bytes]]:
        """Sends a command; returns (type, payload) of its reply's chunks."""
        chunks: list[tuple[int, bytes]] = []
        failure = ""
        with self._lock:
            self._cookie += 1
            self._send(struct.pack(">IHHQQI", REQUEST, 0, command, self._cookie, offset, length))
            flags = 0
            while not flags & CHUNK_IS_LAST:
                magic, flags, kind, cookie, size = struct.unpack(">IHHQI", self._receive(20))
                if magic != STRUCTURED_REPLY or cookie != self._cookie or size > CHUNK_LIMIT:
                    raise DiskError("the block server's reply is out of step")
                payload = self._receive(size)
                if kind & CHUNK_ERRORS:
                    failure = payload[6 : 6 + int.from_bytes(payload[4:6], "big")].decode(
                        errors="replace"
                    )
                    failure = failure or f"error {int.from_bytes(payload[:4], 'big')}"
                elif kind != CHUNK_NONE:
                    chunks.append((kind, payload))
        if failure:
            raise DiskError(f"the disk cannot be read at byte {offset:#x}: {failure}")
        return chunks

    def _send(self, data: bytes) -> None:
        try:
            self._connection.sendall(data)
        except OSError as error:
            raise DiskError(f"the block server is gone: {error}") from error

    def _receive(self, length: int) -> bytes:
        found = bytearray(length)
        view = memoryview(found)
        try:
            while view:
                count = self._connection.recv_into(view)
                if not count:
                    raise DiskError("the block server has ended")
                view = view[count:]
        except TimeoutError:
            raise DiskError(
                f"the block server did not answer in {self._connection.gettimeout():g} s"
            ) from None
        except OSError as error:
            raise DiskError(f"the block server is gone: {error}") from error
        return bytes(found)
