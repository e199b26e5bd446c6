"""Buckets of locality-sensitive hashing: which of a few random directions a vector points along most."""

import numpy as np

from sparseattn.selection.eights import in_eights, rounding
from sparseattn.xp import compute_dtype, library, namespace

# projections held at a time: few large products, which threads share best, and a GPU takes many
CHUNK = {"numpy": 1 << 22, "cupy": 1 << 26}


def draw_rotations(n_heads, head_dim, n_hashes, factors, seed):
    """Standard normal float32 (n_heads, head_dim, n_hashes, sum(factors) / 2), drawn by `numpy.random.default_rng`."""
    shape = n_heads, head_dim, n_hashes, sum(factors) // 2
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def hash_buckets(x, rotations, factors, heads):
    """The bucket of each token in each round, int32 (batch, n_heads, n_hashes, n_tokens), in x's library.

    x: (batch, any heads, n_tokens, head_dim); rotations: (1 | batch, n_heads, head_dim, n_hashes, columns), of either
    library for CuPy's x, rounded to the dtype that x is computed in; heads: which head of x each of them takes. A
    factor f has f / 2 columns and the number of the largest of [y, -y], ties to the lower one; the first factor counts
    least.
    """
    if library(x) == "cupy":
        return buckets_of_products(x, rotations, factors, heads)
    from sparseattn.selection.compiled import inverse_lengths, strongest

    (_, n_heads, head_dim, n_hashes, columns), (batch, _, n, _) = rotations.shape, x.shape
    dtype, buckets = compute_dtype(x.dtype), np.zeros((batch, n_heads, n_hashes, n), np.int32)
    step, factors = max(CHUNK["numpy"] // (n_hashes * columns), 64), np.array(factors, np.int64)
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


def buckets_of_products(x, rotations, factors, heads):
    """As `hash_buckets`, of either library, by array functions: where two projections are as near as rounding, the
    product decides."""
    xp, (_, n_heads, head_dim, n_hashes, columns), (batch, _, n, _) = namespace(x), rotations.shape, x.shape
    dtype, buckets = compute_dtype(x.dtype), xp.empty((batch, n_heads, n_hashes, n), np.int32)
    rotations, step = xp.asarray(rotations), max(CHUNK[library(x)] // (n_hashes * columns), 64)
    for b, h in np.ndindex(batch, n_heads):
        turns = rotations[b % len(rotations), h].reshape(head_dim, -1).astype(dtype)
        for at in range(0, n, step):
            with np.errstate(over="ignore", invalid="ignore"):
                projected = x[b, heads[h], at : at + step].astype(dtype, copy=False) @ turns
            found = _codes(projected.reshape(-1, n_hashes, columns), factors)
            buckets[b, h, :, at : at + step] = found.T
    return buckets


def _codes(projected, factors):
    """int32 (n, n_hashes) from products (n, n_hashes, columns)."""
    xp, first, weight, codes = namespace(projected), 0, 1, 0
    for factor in factors:
        part = projected[..., first : first + factor // 2]
        both = xp.concatenate([part, -part], axis=2)
        best = xp.where(xp.isnan(both), -np.inf, both).argmax(axis=2)
        codes, first, weight = codes + weight * best, first + factor // 2, weight * factor
    return codes.astype(np.int32)
