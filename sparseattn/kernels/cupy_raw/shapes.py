"""Tiles, threads and shared memory of each kernel by dtype and width: what was measured to be best."""

from __future__ import annotations

from typing import NamedTuple

BLOCK_Y = 64  # moving slots of a block
THREADS = 128  # of the kernels that have no tiles of their own size
SPREAD = 8  # thread blocks that share the rows of a cut tile when its pieces are added

# (bits, columns): (stationary rows, the preferred number first), moving rows of a step, thread blocks an SM has room
# for
FORWARD = {
    (16, 32): ((128, 64), 64, 2), (16, 64): ((128, 64), 64, 2), (16, 96): ((128, 64), 64, 2),
    (16, 128): ((128, 64), 64, 2), (16, 192): ((128, 64), 32, 1), (16, 256): ((128, 64), 32, 1),
    (32, 32): ((128, 64), 64, 1), (32, 64): ((128, 64), 64, 1), (32, 96): ((128, 64), 64, 1),
    (32, 128): ((128, 64), 32, 1), (32, 192): ((64,), 32, 1), (32, 256): ((64,), 32, 1),
}
# (bits, columns): stationary rows, moving rows of a step, tiles of them, warps that share a row's columns
BACKWARD = {
    (16, 32): ((128, 64), 64, 2, 1), (16, 64): ((128, 64), 64, 2, 1), (16, 96): ((128, 64), 64, 2, 1),
    (16, 128): ((128, 64), 64, 2, 1), (16, 192): ((64,), 64, 1, 2), (16, 256): ((64,), 64, 1, 2),
    (32, 32): ((64,), 64, 2, 1), (32, 64): ((64,), 32, 2, 2), (32, 96): ((64,), 32, 2, 2),
    (32, 128): ((64,), 32, 2, 2), (32, 192): ((64,), 32, 1, 2), (32, 256): ((32,), 32, 1, 2),
}

# row_forward in 16 bits: thread blocks an SM has room for
ROOM_FOR_ROWS = {32: 4, 64: 4, 96: 3, 128: 3}
# row_backward, (bits, columns): moving rows of a step, tiles of them, thread blocks that share the columns of dk and dv
ROWS_OF_16 = {
    (16, 32): (64, 2, 1), (16, 64): (64, 2, 1), (16, 96): (64, 2, 1), (16, 128): (64, 2, 1), (16, 192): (64, 2, 2),
    (16, 256): (64, 2, 2), (32, 32): (64, 2, 1), (32, 64): (64, 2, 1), (32, 96): (64, 2, 1), (32, 128): (64, 2, 1),
    (32, 192): (32, 2, 2), (32, 256): (32, 1, 2),
}
ROWS_OF_64 = {
    (16, 32): (32, 2, 1), (16, 64): (32, 2, 1), (16, 96): (32, 2, 1), (16, 128): (32, 2, 1), (16, 192): (32, 2, 2),
    (16, 256): (32, 2, 2), (32, 32): (32, 2, 1), (32, 64): (32, 2, 1), (32, 96): (32, 2, 1), (32, 128): (32, 2, 2),
    (32, 192): (32, 1, 2), (32, 256): (16, 1, 2),
}


class Shape(NamedTuple):
    """How a kernel is launched: constants of its text, threads, bytes of shared memory, thread blocks along z."""

    constants: dict
    threads: int
    shared: int = 0
    slices: int = 1


def rows(kernel, bits, bucket, kv):
    """Stationary rows that the tiles of a tile kernel may have, the preferred number first."""
    return (BACKWARD if kernel == "tile_backward" else FORWARD)[bits, bucket][0]


def shape_of(name, constants) -> Shape:
    """The shape of a kernel with these constants."""
    return _SHAPES[name](constants, constants["HEAD_DIM"] * constants["BITS"] // 8 + 16)


def _tile_forward(c, row_bytes):
    _, cols, room = FORWARD[c["BITS"], c["HEAD_DIM"]]
    warp_rows = 32 if c["BITS"] == 16 and c["HEAD_DIM"] <= 128 else 16
    pairs = int(c["BITS"] == 32 and c["HEAD_DIM"] in (32, 64, 128))
    tiles = cols * row_bytes + 2 * cols * c["HEAD_DIM"] * 8 if pairs else 2 * cols * row_bytes
    return Shape({"COLS": cols, "BLOCK_Y": BLOCK_Y, "CTAS": room, "PAIRS": pairs}, 32 * c["ROWS"] // warp_rows,
                 c["ROWS"] * row_bytes + tiles)


def _tile_backward(c, row_bytes):
    _, cols, stages, slices = BACKWARD[c["BITS"], c["HEAD_DIM"]]
    n = c["ROWS"]
    shared = 2 * (n + stages * cols) * row_bytes + stages * cols * (8 + n // 8)
    return Shape({"COLS": cols, "BLOCK_Y": BLOCK_Y, "STAGES": stages, "SLICES": slices}, 2 * n * slices,
                 shared + (4 * n * cols if slices == 2 else 0))


def _row_forward(c, row_bytes):
    cols, stages = 32 if c["BITS"] == 32 and c["HEAD_DIM"] > 128 else 64, 2
    room = ROOM_FOR_ROWS.get(c["HEAD_DIM"], 1) if c["BITS"] == 16 else 1
    return Shape({"COLS": cols, "STAGES": stages, "CTAS": room}, THREADS,
                 (16 + 2 * stages * cols) * row_bytes + (stages + 1) * cols * 4)


def _row_backward(c, row_bytes):
    cols, stages, slices = (ROWS_OF_16 if c["ROWS"] == 16 else ROWS_OF_64)[c["BITS"], c["HEAD_DIM"]]
    slices = slices if c["KV"] else 1
    shared = 2 * (c["ROWS"] + stages * cols) * row_bytes + c["KV"] * stages * cols * 8
    return Shape({"COLS": cols, "STAGES": stages, "SLICES": slices}, THREADS,
                 shared + (stages + 1) * cols * (12 if c["KV"] else 4), slices)


def dot_rows(c, threads):
    """Rows that a thread block of row_dots takes: a row has a power of two of threads, 16 bytes each at least."""
    each = c["HEAD_DIM"] * c["BITS"] // 128
    return threads // min(32, 1 << (each.bit_length() - 1))


_SHAPES = {
    "tile_forward": _tile_forward, "tile_backward": _tile_backward, "row_forward": _row_forward,
    "row_backward": _row_backward,
    "merge": lambda c, row_bytes: Shape({}, THREADS, 0, SPREAD),
    "sum_slots": lambda c, row_bytes: Shape({}, THREADS, 0, SPREAD),
    "row_dots": lambda c, row_bytes: Shape({}, THREADS),
}
