"""Hashing for a few new queries over a cache: keys that share a bucket with them, the most recent first."""

import numpy as np


def recent_in_bucket(q_buckets, k_buckets, most, valid=None):
    """The last `most` keys, up to each query's own place, that are in its bucket in some round.

    q_buckets, k_buckets: int (batch, n_heads, n_hashes, n_queries | n_keys), the last query at the last key; valid:
    bool (1 | batch, n_keys) or None. Returns int32 (batch, n_heads, n_queries, at most `most`), rising, -1 behind them.
    O(n_hashes * n_keys) a query.
    """
    (batch, n_heads, _, n_queries), n_keys = q_buckets.shape, k_buckets.shape[3]
    chosen = np.full((batch, n_heads, n_queries, min(most, n_keys)), -1, np.int32)
    for b, h, i in np.ndindex(batch, n_heads, n_queries):
        place = n_keys - n_queries + i
        if valid is not None and not valid[b % len(valid), place]:
            continue
        met = (k_buckets[b, h, :, : place + 1] == q_buckets[b, h, :, i, None]).any(axis=0)
        if valid is not None:
            met &= valid[b % len(valid), : place + 1]
        keys = np.flatnonzero(met)[-most:]
        chosen[b, h, i, : keys.size] = keys
    return chosen
