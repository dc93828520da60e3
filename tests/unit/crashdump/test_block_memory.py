"""Memory made of pieces of a file: order, gaps, overlaps, and pieces that are not there."""

from __future__ import annotations

from crashdump_analysis.dump.triage import BlockMemory


def memory_of(layers: list[list[tuple[int, bytes]]]) -> BlockMemory:
    """Memory of (address, bytes) in layers, those that win first."""
    file, placed = bytearray(b"\xee" * 16), []
    for layer in layers:
        pieces = []
        for address, data in layer:
            pieces.append((address, len(file), len(data)))
            file += data
        placed.append(pieces)
    return BlockMemory(memoryview(bytes(file)), placed)  # type: ignore[arg-type]


A = 0xFFFFAB00_00001000


def test_pieces_that_touch_are_one_piece_of_memory() -> None:
    memory = memory_of([[(A + 4, b"efgh"), (A, b"abcd"), (A + 12, b"mnop")]])
    assert memory.read(A, 8) == b"abcdefgh"
    assert memory.read_some(A + 2, 100) == b"cdefgh"
    assert memory.read(A, 9) is None
    assert memory.read(A + 12, 4) == b"mnop"
    assert memory.read_some(A - 1, 4) == b""
    assert memory.read_some(A + 8, 4) == b""
    assert memory.read_some(A, 0) == b""
    assert memory.u32(A + 2) == int.from_bytes(b"cdef", "little")


def test_earlier_layers_win_and_later_ones_fill_the_gaps() -> None:
    memory = memory_of(
        [
            [(A + 8, b"BBBB"), (A + 16, b"CCCC")],
            [(A, b"0123456789abcdefghijklmn")],
            [(A - 4, b"................................")],
        ]
    )
    assert memory.read(A - 4, 32) == b"....01234567BBBBcdefCCCCklmn...."


def test_overlapping_pieces_of_one_layer() -> None:
    memory = memory_of([[(A, b"aaaaaaaa"), (A + 2, b"bb"), (A + 4, b"cccccccc"), (A, b"dd")]])
    assert memory.read(A, 12) in (b"aaaaaaaacccc", b"ddbbcccccccc", b"ddaaaaaacccc")
    assert memory.read_some(A, 13) == memory.read(A, 12)


def test_pieces_outside_the_file_or_beyond_all_addresses() -> None:
    top = (1 << 64) - 8
    memory = BlockMemory(
        memoryview(b"0123456789"),  # type: ignore[arg-type]
        [
            [
                (A, 6, 100),
                (A + 0x100, 10, 4),
                (A + 0x200, 1 << 40, 4),
                (top, 0, 10),
                (top, 0, 8),
                (A + 0x300, 0, 0),
            ]
        ],
    )
    assert memory.read_some(A, 100) == b"6789"
    assert memory.read_some(A + 0x100, 1) == b""
    assert memory.read_some(A + 0x200, 1) == b""
    assert memory.read_some(top, 100) == b"01234567"
