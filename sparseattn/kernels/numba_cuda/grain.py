"""Grains to a unit, in whole numbers of which gradients are summed. No weights of a row add up to more than 1, so
neither dP nor delta, nor their sum over a row, exceeds a bound made of the longest rows of dout and v, whose squares
are given, and of the largest dlse. The bound has at most 2**bits grains.

Grid: one thread block.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from sparseattn.kernels.numba_cuda.shapes import THREADS, Constants
from sparseattn.kernels.numba_cuda.target import compiled, cuda
from sparseattn.kernels.numba_cuda.tiles import ZERO

F32, F64 = np.float32, np.float64


@functools.cache
def make(c: Constants):
    """The kernel for these constants."""
    shares_shape = THREADS

    def grain(longest, dlse, n_dlse, kept, bits, grain):
        thread = cuda.threadIdx.x
        shares = cuda.shared.array(shares_shape, F32)
        most = ZERO
        if dlse.shape[0] > 0:
            n_heads, n_queries = dlse.shape[1], dlse.shape[2]
            for i in range(thread, n_dlse, THREADS):
                at = i // n_queries
                x = abs(dlse[at // n_heads, at % n_heads, i % n_queries])
                if x > most:  # not where it is no number
                    most = x
        shares[thread] = most
        cuda.syncthreads()
        if thread == 0:
            for i in range(1, THREADS):
                most = max(most, shares[i])
            bound = F64(2) * F64(kept) * math.sqrt(F64(longest[0]) * F64(longest[1])) + F64(most) + 1e-25
            grain[0] = 2.0 ** (bits - math.ceil(math.log2(bound)))

    return compiled(grain)
