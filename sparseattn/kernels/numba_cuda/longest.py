"""The square of the length of the longest row of an array, into place `place` of `longest`, which holds 0 or more
before. A row whose square is no number does not count.

Grid: (tiles of 16 rows, batch * n_heads), 8 threads a row.
"""

from __future__ import annotations

import functools

import numpy as np

from sparseattn.kernels.numba_cuda.shapes import ACROSS, DOWN, Constants
from sparseattn.kernels.numba_cuda.target import compiled, cuda
from sparseattn.kernels.numba_cuda.tiles import POS_INF, ZERO, widened

F32 = np.float32


@functools.cache
def make(c: Constants):
    """The kernel for these constants."""
    wide, shares_shape = widened(c.BITS, c.FP16), (DOWN, ACROSS + 1)

    def longest(x, batch, n_heads, n_rows, width, longest, place, first_place):
        thread = cuda.threadIdx.x
        own, part = thread // ACROSS, thread % ACROSS
        row = cuda.blockIdx.x * DOWN + own
        there = row < n_rows
        number = first_place + cuda.blockIdx.y
        b, h = number // n_heads, number % n_heads
        shares = cuda.shared.array(shares_shape, F32)

        total = ZERO
        if there:
            for column in range(part, width, ACROSS):
                number = wide(x[b, h, row, column])
                total += number * number
        shares[own, part] = total
        cuda.syncthreads()
        if there and part == 0:
            square = ZERO
            for i in range(ACROSS):
                square += shares[own, i]
            if longest[place] < square < POS_INF:
                cuda.atomic.max(longest, place, square)

    return compiled(longest)
