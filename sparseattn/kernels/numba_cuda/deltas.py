"""delta of each query as its row sums tell it. The one that the walk over queries took, sum(dout * out) - dlse, has the
rounding of `out`, off by some e; then the row's sum of gradients is off by (share - 1) e, share: that of its sink. So
(1 - share) delta + sum - dlse is off by nothing. A row that attends nothing stays as it is.

Grid: (tiles of THREADS queries, batch * n_heads).
"""

from __future__ import annotations

import functools
import math

import numpy as np

from sparseattn.kernels.numba_cuda.shapes import THREADS, Constants
from sparseattn.kernels.numba_cuda.target import compiled, cuda
from sparseattn.kernels.numba_cuda.tiles import NEG_INF, ONE, ZERO

F32 = np.float32


@functools.cache
def make(c: Constants):
    """The kernel for these constants."""
    def deltas(lse, dlse, sinks, row_sums, grain, batch, n_heads, n_queries, v_dim, stats, first_place):
        query = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
        number = first_place + cuda.blockIdx.y
        b, h = number // n_heads, number % n_heads
        if query < n_queries:
            e = lse[b, h, query]
            if e != NEG_INF:
                share, own = ZERO, ZERO
                if sinks.shape[0] > 0:
                    share = F32(math.exp(sinks[h] - e))
                if dlse.shape[0] > 0:
                    own = dlse[b, h, query]
                total = F32(row_sums[b, h, query] / grain[0])
                stats[b, h, query, 1] = (ONE - share) * stats[b, h, query, 1] + total - own

    return compiled(deltas)
