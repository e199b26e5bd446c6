"""What the backward needs of each query row: {lse, delta} with delta = sum(dout * out) - dlse, the derivative of the
loss by a row's common factor (Dao, "FlashAttention-2", 2023, arXiv:2307.08691, section 3.1). A row that attends nothing
(lse = -inf) gets {+inf, 0}, so that its weights are 0 in the backward.

Grid: (tiles of 16 queries, batch * n_heads), 8 threads a row.
"""

from __future__ import annotations

import functools

import numpy as np

from sparseattn.kernels.numba_cuda.shapes import ACROSS, DOWN, Constants
from sparseattn.kernels.numba_cuda.target import compiled, cuda
from sparseattn.kernels.numba_cuda.tiles import NEG_INF, POS_INF, ZERO, widened

F32 = np.float32


@functools.cache
def make(c: Constants):
    """The kernel for these constants."""
    wide, shares_shape = widened(c.BITS, c.FP16), (DOWN, ACROSS + 1)

    def row_dots(dout, out, lse, dlse, batch, n_heads, n_queries, v_dim, unit, stats, first_place):
        thread = cuda.threadIdx.x
        own, part = thread // ACROSS, thread % ACROSS
        query = cuda.blockIdx.x * DOWN + own
        there = query < n_queries
        number = first_place + cuda.blockIdx.y
        b, h = number // n_heads, number % n_heads
        shares = cuda.shared.array(shares_shape, F32)

        total = ZERO
        if there:
            for column in range(part, v_dim, ACROSS):
                y = wide(out[b, h, query, column])
                if y != ZERO:  # the out of a query without keys is 0, whatever its dout holds
                    total += wide(dout[b, h, query, column]) * y
        shares[own, part] = total
        cuda.syncthreads()
        if there and part == 0:
            delta = ZERO
            for i in range(ACROSS):
                delta += shares[own, i]
            if dlse.shape[0] > 0:
                delta -= dlse[b, h, query]
            e = lse[b, h, query]
            stats[b, h, query, 0] = POS_INF if e == NEG_INF else e
            stats[b, h, query, 1] = ZERO if e == NEG_INF else delta

    return compiled(row_dots)
