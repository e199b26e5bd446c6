"""Hashing for a few new queries over a cache: keys that share a bucket with them, the most recent first."""

import numpy as np

from sparseattn.selection.topk import top_by_chunks
from sparseattn.xp import namespace

EXACT = 1 << 24  # whole numbers up to here are float32


def recent_in_bucket(q_buckets, k_buckets, most, valid=None):
    """The last `most` keys, up to each query's own place, that are in its bucket in some round.

    q_buckets, k_buckets: int (batch, n_heads, n_hashes, n_queries | n_keys), the last query at the last key; valid:
    bool of NumPy (1 | batch, n_keys) or None. Returns int32 (batch, n_heads, n_queries, at most `most`), rising, -1
    behind them. O(n_hashes * n_keys) a query.
    """
    xp, (_, _, n_hashes, n_queries), n_keys = namespace(q_buckets), q_buckets.shape, k_buckets.shape[3]
    place = xp.arange(n_keys, dtype=np.float32 if n_keys < EXACT else np.float64)
    real = None if valid is None else xp.asarray(valid)

    def lateness(at, rows, n):
        met = (k_buckets[at][:, None, :n] == q_buckets[at][:, rows, None]).any(axis=0)
        if real is not None:
            own = real[at[0] % len(real)]
            met &= own[:n] & own[n_keys - n_queries :][rows, None]
        return xp.where(met, place[:n], -np.inf)

    limits = np.arange(n_keys - n_queries, n_keys) + 1
    return top_by_chunks(lateness, q_buckets.swapaxes(2, 3), n_keys, most, limits, n_hashes * n_keys)
