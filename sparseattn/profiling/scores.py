"""Products of a few queries with all keys, compiled by Numba on first use: the register tiles of the kernels, on keys
that were laid side by side once for all rows. Imported inside functions alone."""

import numpy as np

from sparseattn.kernels.numba_cpu.compile import cached
from sparseattn.kernels.numba_cpu.simd import data, shift
from sparseattn.kernels.numba_cpu.steps import matmul

SIDE = 64  # keys side by side
LOWEST = np.float32(-3e38)  # a score that gets no weight


@cached
def panels_of(k):
    """Keys (n_keys, head_dim) as panels (n_panels, head_dim, SIDE); 0 where the last one has no key."""
    panels = np.zeros((-(-k.shape[0] // SIDE), k.shape[1], SIDE), k.dtype)
    for p in range(panels.shape[0]):
        own = k[p * SIDE : (p + 1) * SIDE]
        for d in range(own.shape[1]):
            for j in range(own.shape[0]):
                panels[p, d, j] = own[j, d]
    return panels


@cached
def score(q, panels, stops, closed, scores):
    """scores (n_rows, some panels) = q . k, LOWEST in row i for keys from stops[i] on and those in `closed`."""
    dim, width = panels.shape[1], scores.shape[1]
    for p in range(width // SIDE):
        matmul(shift(data(scores), p * SIDE), width, data(q), dim, 1, data(panels[p]), SIDE, q.shape[0], SIDE, dim,
               False)
    for i in range(q.shape[0]):
        scores[i, stops[i] :] = LOWEST
        for key in closed:
            if key < width:
                scores[i, key] = LOWEST
