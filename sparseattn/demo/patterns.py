"""The patterns that the demo compares: by position, and by content (blocks of keys chosen for each query)."""

from __future__ import annotations

import numpy as np

import sparseattn as sa

CHUNK = 1024  # queries scored at once; small products would wait for BLAS threads on a busy machine


def by_position(n_tokens, n_heads):
    """Name -> Pattern, dense causal first."""
    causal = sa.patterns.causal(n_tokens)
    bigbird = sa.patterns.bigbird(n_tokens, block_size=64, n_random=6, n_global=1, n_heads=n_heads)
    return {
        "dense causal": causal,
        "window 128": window(n_tokens, 128),
        "window 1024": window(n_tokens, 1024),
        "window 256 + first 4": window(n_tokens, 256) | first(n_tokens, 4),
        "strided 64": sa.patterns.strided(n_tokens, stride=64),
        "bigbird, blocks of 64": bigbird & causal,
    }


def by_content():
    """Name -> function of (q, k) that returns a Pattern."""
    return {
        "window 64 + first 4 + 32 blocks of 8": lambda q, k: near_and_chosen(q, k, block_size=8, n_blocks=32),
    }


def window(n_tokens, size):
    """The last `size` keys, self included."""
    return sa.patterns.sliding_window(n_tokens, left=size - 1)


def first(n_tokens, count):
    """The first `count` keys, as far as they lie behind."""
    return sa.patterns.global_tokens(n_tokens, range(min(count, n_tokens))) & sa.patterns.causal(n_tokens)


def near_and_chosen(q, k, *, block_size, n_blocks, size=64, n_first=4):
    """A window, the first keys and, for each query and head, the best `n_blocks` blocks that begin before it."""
    n_tokens = k.shape[1]
    layout = choose_blocks(q, k, block_size=block_size, n_blocks=n_blocks, behind=size)
    chosen = sa.Pattern.from_blocks(layout, block_size=(1, block_size), shape=(n_tokens, n_tokens))
    return window(n_tokens, size) | first(n_tokens, n_first) | chosen


def choose_blocks(q, k, *, block_size, n_blocks, behind):
    """Bool (n_heads, n_queries, n_key_blocks): the blocks that could hold the largest product with the query.

    A block counts by the bound of Quest [1]_: the largest product with q that any key inside the box around the block's
    keys could have. Only blocks that begin at least `behind` keys before the query take part. Queries are scored in
    chunks, so that scores of all queries are never held at once.

    References
    ----------
    .. [1] Tang et al., Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference, arXiv:2406.10774.
    """
    n_heads, n_queries, _ = q.shape
    starts = np.arange(0, k.shape[1], block_size)
    boxes = np.concatenate((np.maximum.reduceat(k, starts, axis=1), np.minimum.reduceat(k, starts, axis=1)), axis=-1)
    layout = np.zeros((n_heads, n_queries, len(starts)), bool)
    for begin in range(behind, n_queries, CHUNK):
        q_pos = np.arange(begin, min(begin + CHUNK, n_queries))
        eligible = starts[: (q_pos[-1] - behind) // block_size + 1] <= q_pos[:, None] - behind
        part = q[:, q_pos]
        signed = np.concatenate((np.maximum(part, 0), np.minimum(part, 0)), axis=-1)
        score = signed @ boxes[:, : eligible.shape[1]].transpose(0, 2, 1)
        np.copyto(score, -np.inf, where=~eligible)
        kept = layout[:, begin : begin + len(q_pos), : eligible.shape[1]]
        if eligible.shape[1] > n_blocks:
            best = np.argpartition(score, -n_blocks, axis=-1)[..., -n_blocks:]
            np.put_along_axis(kept, best, True, axis=-1)
            kept &= eligible
        else:
            kept[:] = eligible
    return layout
