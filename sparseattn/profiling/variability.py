"""How much weights differ between inputs."""

from __future__ import annotations

import numpy as np

from sparseattn.xp import compute_dtype, namespace, on_its_device

CHUNK = 1 << 21  # scores at a time, all inputs together


@on_its_device
def variability(q, k, lse, asked) -> np.ndarray | None:
    """``sum |p - mean p| / (2 sum p)`` over batch items, pairs and the rows that every item has, (n_heads,); the mean
    is over items. None for one item. q, k with four axes, lse (batch, n_heads, n_rows) in NumPy."""
    batch, n_heads = q.shape[:2]
    if batch == 1:
        return None
    there = np.flatnonzero(np.all([asked.n_open(b) > 0 for b in range(batch)], axis=0))
    step = max(CHUNK // (batch * k.shape[2]), 1)
    found = np.full(n_heads, np.nan)
    for h in range(n_heads):
        sums = [_differences(q[:, h], k[:, h * k.shape[1] // n_heads], lse[:, h], asked, there[first : first + step])
                for first in range(0, there.size, step)]
        if sums:
            found[h] = np.sum(sums) / (2 * batch * there.size)
    return found


def _differences(q, k, lse, asked, rows):
    """Sum of |p - mean p| over some rows: q (batch, n_queries, head_dim), k (batch, n_keys, head_dim)."""
    xp, dtype = namespace(q), compute_dtype(q.dtype)
    is_open, stops = xp.asarray(asked.is_open), xp.asarray(np.stack([asked.stops(b)[rows] for b in range(len(q))]))
    width = int(stops.max())
    is_open, k = is_open[:, :width], xp.where(is_open[:, :width, None], k[:, :width], 0).astype(dtype)
    p = q[:, xp.asarray(asked.rows[rows])].astype(dtype) @ k.swapaxes(1, 2)
    p *= dtype.type(asked.scale)
    p -= xp.asarray(lse[:, rows, None], dtype)
    p[~(is_open[:, None] & (xp.arange(width) < stops[:, :, None]))] = -np.inf
    xp.exp(p, out=p)
    p -= p.mean(axis=0)
    return float(abs(p).sum(dtype=np.float64))
