"""Buckets of locality-sensitive hashing: which of a few random directions a vector points along most."""

import numpy as np

from sparseattn.selection.eights import in_eights, rounding
from sparseattn.xp import compute_dtype

CHUNK = 1 << 22  # projections held at a time: few large products, which threads share best


def draw_rotations(n_heads, head_dim, n_hashes, factors, seed):
    """Standard normal float32 (n_heads, head_dim, n_hashes, sum(factors) / 2), drawn by `numpy.random.default_rng`."""
    shape = n_heads, head_dim, n_hashes, sum(factors) // 2
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def hash_buckets(x, rotations, factors, heads):
    """The bucket of each token in each round, int32 (batch, n_heads, n_hashes, n_tokens).

    x: (batch, any heads, n_tokens, head_dim); rotations: (1 | batch, n_heads, head_dim, n_hashes, columns), rounded to
    the dtype that x is computed in; heads: which head of x each of them takes. A factor f has f / 2 columns and the
    number of the largest of [y, -y], ties to the lower one; the first factor counts least.
    """
    from sparseattn.selection.compiled import inverse_lengths, strongest

    (_, n_heads, head_dim, n_hashes, columns), (batch, _, n, _) = rotations.shape, x.shape
    dtype, buckets = compute_dtype(x.dtype), np.zeros((batch, n_heads, n_hashes, n), np.int32)
    step, factors = max(CHUNK // (n_hashes * columns), 64), np.array(factors, np.int64)
    products = np.empty((n_hashes * columns, min(step, n)), dtype)
    for b, h in np.ndindex(batch, n_heads):
        turns = in_eights(rotations[b % len(rotations), h].transpose(1, 2, 0), dtype)
        reach = rounding(head_dim, dtype) * np.sqrt((turns * turns).sum(axis=(2, 3)).max(axis=1))
        for at in range(0, n, step):
            tokens = in_eights(x[b, heads[h], at : at + step], dtype)
            flat = tokens.reshape(len(tokens), -1)
            inverse = np.empty(len(flat), dtype)
            inverse_lengths(flat, inverse)
            # a token that overflows has a bucket like any other
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                slack = (reach[:, None] / inverse).astype(dtype)
                np.matmul(turns.reshape(n_hashes * columns, -1), flat.T, out=products[:, : len(flat)])
            projected = products[:, : len(flat)].reshape(n_hashes, columns, -1)
            strongest(projected, factors, tokens, turns, slack, buckets[b, h, :, at : at + step])
    return buckets
