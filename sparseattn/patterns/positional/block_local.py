"""Chunks that attend themselves and their neighbours."""

import numpy as np

from sparseattn.pattern import checking
from sparseattn.patterns.arguments import positive, ranges_pattern, reach


def block_local(n_tokens, *, block, back=1, forward=0, causal=False, exact=False, wrap=False, block_size=None):
    """Each chunk of `block` tokens attends itself, the `back` chunks before and the `forward` chunks after it.

    Parameters
    ----------
    n_tokens : int
        Tokens; the last chunk may be short.
    block : int
        Tokens of a chunk.
    back, forward : int
        Neighbouring chunks on each side. Chunks that do not exist are absent.
    causal : bool
        Keys after the query are left out.
    exact : bool
        Also ``i - j <= block * back`` and ``j - i <= block * forward``.
    wrap : bool
        Neighbours beyond an end are those at the other end.
    block_size : int or tuple of int, optional
        Tiles for the kernels; speed only.

    Returns
    -------
    Pattern
        Shape (n_tokens, n_tokens), shared by all heads.

    Raises
    ------
    ValueError
        For `exact` and `wrap` together: distances across the ends are not defined.

    Notes
    -----
    Query i attends key j when ``-back <= j // block - i // block <= forward``, with `wrap` modulo the number of chunks.
    The package local-attention with ``autopad`` lets queries see its padding; here there is none. O(n_tokens) to build.
    `density_in_tiles` is 1 for chunks of 128, and 0.92 if causal.

    References
    ----------
    .. [1] Roy et al., Efficient Content-Based Sparse Attention with Routing Transformers, arXiv:2003.05997, section
       4.1.
    .. [2] Kitaev et al., Reformer, arXiv:2001.04451 (chunks that wrap around).
    """
    n, block = checking.count(n_tokens, "n_tokens"), positive(block, "block")
    back, forward = reach(back, "back") or 0, reach(forward, "forward") or 0
    if exact and wrap:
        raise ValueError("block_local takes exact or wrap, not both: distances across the ends are not defined")
    i = np.arange(n)
    chunk, n_chunks = i // block, -(-n // block)
    pattern = _within(n, chunk - back, chunk + forward, block, causal, block_size, (back, forward) if exact else None)
    if wrap and n_chunks:
        if back + forward + 1 >= n_chunks:
            return _within(n, 0 * chunk, 0 * chunk + n_chunks - 1, block, causal, block_size)
        before = _within(n, chunk - back + n_chunks, 0 * chunk + n_chunks - 1, block, causal, block_size)
        after = _within(n, 0 * chunk, chunk + forward - n_chunks, block, causal, block_size)
        pattern = pattern | before | after
    return pattern


def _within(n, first, last, block, causal, block_size, reaches=None):
    """Query i attends the chunks first[i] to last[i], trimmed to the past and to exact distances."""
    i = np.arange(n)
    starts, stops = np.maximum(first, 0) * block, np.maximum(last + 1, 0) * block
    if reaches is not None:
        starts, stops = np.maximum(starts, i - block * reaches[0]), np.minimum(stops, i + block * reaches[1] + 1)
    if causal:
        stops = np.minimum(stops, i + 1)
    return ranges_pattern(starts[None, None], stops[None, None], (n, n), block_size)
