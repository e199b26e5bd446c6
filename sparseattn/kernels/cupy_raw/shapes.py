"""Tiles, threads and shared memory of each kernel by dtype and width: what was measured to be best, and what fits where
a thread block has less memory.

`memory`: bytes of shared memory that a GPU allows a thread block.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from sparseattn.kernels.gpu.terms import BY_CODE

BLOCK_Y = 64  # moving slots of a block
THREADS = 128  # of the kernels that have no tiles of their own size
SPREAD = 8  # thread blocks that share the rows of a cut tile when its pieces are added

# (bits, columns): (stationary rows, the preferred number first), moving rows of a step, thread blocks an SM has room
# for. More tiles were slower: what these leave free is cache for lists and masks that many tiles read.
FORWARD = {
    (16, 32): ((128, 64), 64, 2), (16, 64): ((128, 64), 64, 2), (16, 96): ((128, 64), 64, 2),
    (16, 128): ((128, 64), 64, 2), (16, 192): ((128, 64), 32, 1), (16, 256): ((128, 64), 32, 1),
    (32, 32): ((128, 64), 64, 1), (32, 64): ((128, 64), 64, 1), (32, 96): ((128, 64), 64, 1),
    (32, 128): ((128, 64), 64, 1), (32, 192): ((128, 64), 32, 1), (32, 256): ((128, 64), 32, 1),
}
# (bits, columns): stationary rows, moving rows of a step, tiles of them, warps that share a row's columns
BACKWARD = {
    (16, 32): ((128, 64), 64, 2, 1), (16, 64): ((128, 64), 64, 2, 1), (16, 96): ((128, 64), 64, 2, 1),
    (16, 128): ((128, 64), 64, 2, 1), (16, 192): ((64,), 64, 1, 2), (16, 256): ((64,), 64, 1, 2),
    (32, 32): ((128, 64), 64, 2, 1), (32, 64): ((128, 64), 64, 2, 1), (32, 96): ((128, 64), 32, 2, 1),
    (32, 128): ((128, 64), 32, 2, 1), (32, 192): ((64,), 32, 1, 2), (32, 256): ((64,), 32, 1, 2),
}
# (bits, columns): the gradient of 128 queries with 32 a warp, where so many thread blocks fit: moving rows of a step,
# tiles of them, thread blocks an SM has room for
QUERIES_BACKWARD = {(16, 32): (64, 2, 2), (16, 64): (64, 2, 2), (16, 96): (32, 2, 2), (16, 128): (32, 2, 2)}
# (bits, columns): by stationary rows: moving rows of a step, tiles of them, thread blocks an SM has room for
ROW_FORWARD = {
    (16, 32): {16: (64, 2, 4)}, (16, 64): {16: (64, 2, 4)}, (16, 96): {16: (64, 2, 3)}, (16, 128): {16: (64, 2, 3)},
    (16, 192): {16: (64, 2, 1)}, (16, 256): {16: (64, 2, 1)}, (32, 32): {16: (64, 2, 1)}, (32, 64): {16: (64, 2, 1)},
    (32, 96): {16: (64, 2, 1)}, (32, 128): {16: (64, 2, 1)}, (32, 192): {16: (32, 2, 1)}, (32, 256): {16: (32, 2, 1)},
}
# (bits, columns): by stationary rows: moving rows of a step, tiles of them, thread blocks that share the columns of dk
# and dv
ROW_BACKWARD = {
    (16, 32): {64: (32, 2, 1), 16: (64, 2, 1)}, (16, 64): {64: (32, 2, 1), 16: (64, 2, 1)},
    (16, 96): {64: (32, 2, 1), 16: (64, 2, 1)}, (16, 128): {64: (32, 2, 1), 16: (64, 2, 1)},
    (16, 192): {64: (32, 2, 2), 16: (64, 2, 2)}, (16, 256): {64: (32, 2, 2), 16: (64, 2, 2)},
    (32, 32): {64: (32, 2, 1), 16: (64, 2, 1)}, (32, 64): {64: (32, 2, 1), 16: (64, 2, 1)},
    (32, 96): {64: (32, 2, 1), 16: (64, 2, 1)}, (32, 128): {64: (32, 2, 2), 16: (64, 2, 1)},
    (32, 192): {64: (32, 1, 2), 16: (32, 2, 2)}, (32, 256): {64: (16, 1, 2), 16: (32, 1, 2)},
}

# The same where those do not fit into the 163 KB that GPUs of compute capability 8.0 allow, then where these do not
# fit into the 99 KB that all newer ones allow. Chosen by what memory and registers hold, not measured. Of 99 KB, two of
# float32 have no memory for all options: (32, 192) forward none for labels with codes of 64 bits, (32, 256) backward
# none for a table's gradient and for dropout beside labels or such codes.
MEDIUM_FORWARD = {(32, 256): ((64,), 32, 1)}
MEDIUM_BACKWARD = {(32, 128): ((64,), 32, 2, 2), (32, 256): ((32,), 32, 1, 2)}
SMALL_FORWARD = {
    (16, 256): ((64,), 32, 1), (32, 96): ((128, 64), 32, 1), (32, 128): ((64,), 32, 1), (32, 192): ((64,), 32, 1),
    (32, 256): ((16,), 32, 1),
}
SMALL_BACKWARD = {
    (16, 96): ((128, 64), 64, 1, 1), (16, 128): ((128, 64), 32, 1, 1), (16, 192): ((64,), 32, 1, 2),
    (16, 256): ((32,), 32, 1, 2), (32, 32): ((128, 64), 64, 1, 1), (32, 64): ((64,), 32, 2, 1),
    (32, 96): ((64,), 32, 1, 1), (32, 128): ((32,), 32, 1, 2), (32, 192): ((16,), 32, 1, 2),
    (32, 256): ((16,), 32, 1, 1),
}
SMALL_ROW_FORWARD = {
    (16, 192): {16: (64, 1, 1)}, (16, 256): {16: (64, 1, 1)}, (32, 96): {16: (32, 2, 1)}, (32, 128): {16: (32, 2, 1)},
    (32, 192): {16: (32, 1, 1)}, (32, 256): {16: (32, 1, 1)},
}
SMALL_ROW_BACKWARD = {
    (16, 192): {64: (32, 1, 2), 16: (64, 1, 2)}, (16, 256): {64: (16, 1, 2), 16: (64, 1, 2)},
    (32, 96): {64: (32, 1, 1), 16: (32, 2, 1)}, (32, 128): {64: (16, 1, 2), 16: (32, 2, 1)},
    (32, 192): {16: (32, 1, 2)}, (32, 256): {16: (32, 1, 2)},
}


class Shape(NamedTuple):
    """How a kernel is launched."""

    constants: dict  # of its text
    threads: int
    shared: int = 0  # bytes of shared memory that the launch asks for
    slices: int = 1  # thread blocks along z
    declared: int = 0  # bytes of shared memory that the text declares besides, at most


def rows(memory, name, bits, columns, kv):
    """Stationary rows that the tiles of a kernel may have, the preferred number first."""
    name = "tile_backward" if name == "tile_values" else name  # walks its structures
    return (16,) if name == "row_backward" and not kv else _rows(_entry(memory, name, bits, columns))


def shape_of(memory, name, constants) -> Shape:
    """The shape of a kernel with these constants."""
    if name == "row_dots":
        return _row_dots(constants)
    if name == "grain":
        return Shape({}, THREADS, declared=THREADS // 8)
    if name == "tile_values":
        return _tile_values(constants, memory)
    if name not in _KERNELS:
        return Shape({}, THREADS, slices=SPREAD if name in ("merge", "sum_slots") else 1)
    shape = _KERNELS[name][0](_entry(memory, name, constants["BITS"], constants["HEAD_DIM"]), constants)
    if name == "tile_forward" and constants.get("BIAS") == BY_CODE:
        return _staged(shape, constants, memory)
    return _of_queries(shape, constants, memory) if name == "tile_backward" and not constants["KV"] else shape


def _staged(shape, c, memory):
    """The shape with room for the values of a step, where there is; in float32 products take longer than reading."""
    values = c["ROWS"] * (shape.constants["COLS"] + 8) * 4
    if c["BITS"] == 32 or shape.shared + shape.declared + values > memory // shape.constants["CTAS"]:
        return shape
    return shape._replace(constants={**shape.constants, "STAGED": 1}, shared=shape.shared + values)


def _of_queries(shape, c, memory):
    """The shape with more rows a warp, where there is one that fits."""
    cols, stages, ctas = QUERIES_BACKWARD.get((c["BITS"], c["HEAD_DIM"]), (0, 0, 0))
    if not ctas or c["ROWS"] < 128:  # two warps a block are too few
        return shape
    wide = _backward_walk(c, cols, stages, 1, ctas, 32)
    return wide if (wide.shared + wide.declared) * ctas <= memory else shape


@functools.cache
def _entry(memory, name, bits, columns):
    """The first entry in a kernel's tables all tiles of which fit, or the last one."""
    make, *tables = _KERNELS[name]
    entries = [table[bits, columns] for table in tables if (bits, columns) in table]
    for entry in entries:
        shapes = [make(entry, {"BITS": bits, "HEAD_DIM": columns, "ROWS": n, "KV": 1}) for n in _rows(entry)]
        if all(shape.shared + shape.declared <= memory for shape in shapes):
            break
    return entry


def _rows(entry):
    return tuple(entry) if isinstance(entry, dict) else entry[0]


def _row_bytes(c):
    return c["HEAD_DIM"] * c["BITS"] // 8 + 16


def _halved_row_bytes(c):
    """Short rows of float32 have a third part."""
    return _row_bytes(c) + (2 * c["HEAD_DIM"] if (c["BITS"], c["HEAD_DIM"]) == (32, 32) else 0)


def _declared(cols, steps, sides, more):
    """Bytes of some steps' tokens and sides, with all options, and of what is more, up to where tiles can begin."""
    return -(-(steps * (4 * cols + 16) + sides * 20 * cols + more) // 128) * 128


def _places(c, cols):
    """Sums of a bias' gradient that a step keeps: a power of two, for tokens side by side; with room, for grids."""
    needed = (c["ROWS"] + cols - 1) * (2 if cols == 64 and c["BITS"] == 16 else 1)
    return 1 << (needed - 1).bit_length()


def _tile_forward(entry, c):
    _, cols, ctas = entry
    warp_rows = 32 if c["BITS"] == 16 and c["HEAD_DIM"] <= 128 else 16
    words = c["ROWS"] * (cols // 8 + (8 if c["BITS"] == 16 else 0))  # of masks, and codes of rows
    constants = {"COLS": cols, "BLOCK_Y": BLOCK_Y, "CTAS": ctas, "HALVES": int(c["BITS"] == 32)}
    return Shape(constants, 32 * c["ROWS"] // warp_rows, (c["ROWS"] + 2 * cols) * _halved_row_bytes(c),
                 declared=_declared(cols, 2, 2, words))


def _tile_backward(entry, c):
    _, cols, stages, slices = entry
    return _backward_walk(c, cols, stages, slices)


def _backward_walk(c, cols, stages, slices, ctas=1, warp_rows=16):
    n = c["ROWS"]
    shared = 2 * (n + stages * cols) * _halved_row_bytes(c) + stages * cols * (8 + n // 8)
    places = _places(c, cols)
    constants = {"COLS": cols, "BLOCK_Y": BLOCK_Y, "STAGES": stages, "SLICES": slices, "PLACES": places,
                 "HALVES": int(c["BITS"] == 32), "CTAS": ctas, "WARP_ROWS": warp_rows}
    return Shape(constants, 32 * n * slices // warp_rows, shared + (4 * n * cols if slices == 2 else 0),
                 declared=_declared(cols, 4, 2, max(16 * places, 40 * cols) + 128))  # sums, or larger sides


def _tile_values(c, memory):
    """The first of some shapes, by their blocks of keys, whether values of the bias are kept, and tiles of each array,
    that fits with at most 256 threads: more would have too few registers."""
    n = c["ROWS"]
    for entries, staged, buffers in ((2, 1, 2), (2, 0, 2), (1, 1, 2), (1, 0, 2), (1, 1, 1), (1, 0, 1)):
        cols = entries * BLOCK_Y
        warp_rows = 32 if c["BITS"] == 16 and n == 128 and entries == 2 else 16
        shared = buffers * (n + cols) * _halved_row_bytes(c) + staged * 4 * n * cols
        shape = Shape({"ENTRIES": entries, "STAGED": staged, "BUFFERS": buffers, "WARP_ROWS": warp_rows,
                       "HALVES": int(c["BITS"] == 32)},
                      32 * n // warp_rows * entries, shared, 2 // entries,
                      declared=-(-(n * (28 + 8 * entries) + 17 * cols) // 128) * 128)
        if shape.threads <= 256 and shape.shared + shape.declared <= memory:
            break
    return shape


def _row_forward(entry, c):
    cols, stages, ctas = entry[16]
    return Shape({"COLS": cols, "STAGES": stages, "CTAS": ctas}, THREADS,
                 (16 + 2 * stages * cols) * _row_bytes(c) + (stages + 1) * cols * 4)


def _row_backward(entry, c):
    cols, stages, slices = entry[c["ROWS"]]
    slices = slices if c["KV"] else 1
    shared = 2 * (c["ROWS"] + stages * cols) * _row_bytes(c) + c["KV"] * stages * cols * 8
    return Shape({"COLS": cols, "STAGES": stages, "SLICES": slices}, THREADS,
                 shared + (stages + 1) * cols * (12 if c["KV"] else 4), slices)


def _row_dots(c):
    rows = 64 if c["HEAD_DIM"] * c["BITS"] <= 4096 else 32
    return Shape({"ROWS": rows, "HALVES": int(c["BITS"] == 32)}, 2 * rows, 2 * rows * _halved_row_bytes(c))


def too_large(name, constants, memory):
    """Why a GPU does not take a kernel that all tables are too large for."""
    return (f"{name} for {constants['HEAD_DIM']} columns of {constants['BITS']} bits needs more shared memory with "
            f"these options than the {memory} bytes that the GPU allows a thread block; use float16 or bfloat16, or "
            f"backend='numba_cuda'")


# of each kernel that has tiles: the function of an entry and constants that gives its shape, its tables
_KERNELS: dict[str, tuple[Any, ...]] = {
    "tile_forward": (_tile_forward, FORWARD, MEDIUM_FORWARD, SMALL_FORWARD),
    "tile_backward": (_tile_backward, BACKWARD, MEDIUM_BACKWARD, SMALL_BACKWARD),
    "row_forward": (_row_forward, ROW_FORWARD, SMALL_ROW_FORWARD),
    "row_backward": (_row_backward, ROW_BACKWARD, SMALL_ROW_BACKWARD),
}
