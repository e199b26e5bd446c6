"""One walk over the keys that a pattern gives to some rows, compiled by Numba on first use. Imported inside functions
alone."""

import math

import numpy as np
from numba import njit

from sparseattn.profiling.compiled import WHOLE

NEXT = 256  # keys that are gathered before they are computed


@njit(cache=True, nogil=True, fastmath=WHOLE)
def dot(x, y):
    s = x.dtype.type(0)
    for d in range(x.size):
        s += x[d] * y[d]
    return s


@njit(cache=True, nogil=True)
def take(tokens, n, q, k, v, scale, lse, weights, out):
    """Mass of n keys, whose weighted values are added to out."""
    mass = 0.0
    for t in range(n):
        weights[t] = math.exp(scale * dot(q, k[tokens[t]]) - lse)
        mass += weights[t]
    for t in range(n, -(-n // 4) * 4):
        tokens[t], weights[t] = tokens[0], 0.0
    if out.size:
        for t in range(0, n, 4):
            a, b, c, d = weights[t], weights[t + 1], weights[t + 2], weights[t + 3]
            v0, v1, v2, v3 = v[tokens[t]], v[tokens[t + 1]], v[tokens[t + 2]], v[tokens[t + 3]]
            for i in range(out.size):
                out[i] += a * v0[i] + b * v1[i] + c * v2[i] + d * v3[i]
    return mass


@njit(cache=True, nogil=True)
def walk(q, k, v, scale, lse, stops, is_open, slots, indptr, indices, mask_ids, masks, order, sizes, mass, first_mass,
         kept, out):
    """Add what a part of a pattern holds of some rows: mass, that of key 0, kept keys, each (n_rows,), and weighted
    values out (n_rows, v_head_dim), which may be no column wide.

    Keys from stops[i] on and those that are not open do not count. slots (n_rows,): where a row sits in the part, -1
    for nowhere. indptr is that of one head; mask_ids and order may be empty; sizes: (block_q, block_k, n_k_slots).
    """
    block_q, block_k, n_slots = sizes
    tokens, weights = np.empty(NEXT + 4, np.int64), np.empty(NEXT + 4)
    for i in range(q.shape[0]):
        if slots[i] < 0:
            continue
        line, within, n = slots[i] // block_q, slots[i] % block_q, 0
        for at in range(indptr[line], indptr[line + 1]):
            first = np.int64(indices[at]) * block_k
            which = mask_ids[at] if mask_ids.size else 0
            for j in range(min(block_k, n_slots - first)):
                if which and not (masks[which, within, j >> 5] >> np.uint32(j & 31)) & np.uint32(1):
                    continue
                token = np.int64(order[first + j]) if order.size else first + j
                if token < 0 or token >= stops[i] or not is_open[token]:
                    continue
                if not token:
                    first_mass[i] = math.exp(scale * dot(q[i], k[0]) - lse[i])
                tokens[n] = token
                n += 1
                if n == NEXT:
                    mass[i] += take(tokens, n, q[i], k, v, scale, lse[i], weights, out[i])
                    kept[i] += n
                    n = 0
        mass[i] += take(tokens, n, q[i], k, v, scale, lse[i], weights, out[i])
        kept[i] += n
