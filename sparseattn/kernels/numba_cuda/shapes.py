"""Tiles and threads of the kernels, equal for all dtypes and widths, and the constants that kernels are made for."""

from __future__ import annotations

import os
from typing import NamedTuple

from sparseattn.kernels.gpu.target import ROW, ROW_KEYS

# Numba's simulator runs each thread in Python, one after the other: its tiles are small
SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")
BLOCK_Y = 32 if SIMULATED else 64  # moving slots of a block, rows of a moving tile
ROWS = 16 if SIMULATED else 64  # stationary rows of a tile kernel
THREADS = 32 if SIMULATED else 128
SLICE = 8 if SIMULATED else 64  # columns of q, k or v that are in shared memory at a time, at most
HEAD_DIMS = 32, 64, 128, 256  # columns that kernels are made for
ACROSS = 8  # threads that share a row of a tile; each has every ACROSS-th column of it
DOWN = THREADS // ACROSS
COLUMNS = BLOCK_Y // ACROSS  # columns of scores that a thread has
AT_ONCE = 8  # numbers that a thread asks the memory for at once
PITCH = max(BLOCK_Y, SLICE) + 1  # numbers from one row of a tile to the next: neighbours in other banks
REGISTERS = 168  # of a thread of the kernels with tiles, so that an SM has room for three thread blocks


class Constants(NamedTuple):
    """What a kernel is compiled for; see the kernels."""

    HEAD_DIM: int  # columns of q, k and v are at most this
    BITS: int = 32
    FP16: int = 0
    ROWS: int = ROWS
    SHAPED: int = 0
    BIAS: int = 0
    DROPOUT: int = 0
    KV: int = 0
    OUT32: int = 1
    BIAS_GRAD: int = 0
    ROW_SUMS: int = 0
    BY_HEADS: int = 0

    @property
    def own_rows(self):
        """Rows of a tile that a thread has, one after the other."""
        return self.ROWS // DOWN

    @property
    def width(self):
        """Columns of q, k or v that are in shared memory at a time: a slice."""
        return min(SLICE, self.HEAD_DIM)

    @property
    def sums(self):
        """The shape of a thread's part of a result: slices, its rows, its columns of a slice."""
        return self.HEAD_DIM // self.width, self.own_rows, self.width // ACROSS


def constants_of(chosen) -> Constants:
    """The constants of a kernel from some of a call's; most widths share a kernel with the next larger one."""
    columns = next(size for size in HEAD_DIMS if size >= chosen.get("HEAD_DIM", 0))
    return Constants(**{**chosen, "HEAD_DIM": columns})


def rows(kernel, bits, bucket, kv):
    """Stationary rows that the tiles of a kernel may have, the preferred number first."""
    return (ROW_KEYS, ROW) if kernel == "row_backward" else (ROWS,)
