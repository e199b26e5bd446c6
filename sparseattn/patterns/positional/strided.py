"""Sparse Transformer's strided pattern: the recent keys, and every stride-th one before them."""

import numpy as np

from sparseattn.pattern import checking
from sparseattn.patterns.arguments import positive, ranges_pattern
from sparseattn.patterns.positional.sliding_window import by_residue, sliding_window


def strided(n_tokens, *, stride, factor=None, block_size=None):
    """Each query attends the last `stride` keys, and the keys whole strides before it.

    Parameters
    ----------
    n_tokens : int
        Tokens.
    stride : int
        Keys of the local part, and distance between the keys of the column part.
    factor : {"local", "column"}, optional
        One of the two alone, for models that give them to different heads or layers; None: both.
    block_size : int or tuple of int, optional
        Tiles for the kernels; speed only.

    Returns
    -------
    Pattern
        Shape (n_tokens, n_tokens), causal, shared by all heads.

    Notes
    -----
    Query i attends key j <= i when ``i - j < stride`` (local) or ``(i - j) % stride == 0`` (column). The paper's text
    has stride + 1 local keys, its code `stride`; this follows the code. Columns are stored in the order (position in
    the stride, stride), where they are causal blocks. O(n_tokens) to build. `density_in_tiles` is 0.79 for a stride of
    128 and 16,384 tokens.

    References
    ----------
    .. [1] Child et al., Generating Long Sequences with Sparse Transformers, arXiv:1904.10509, section 4.3.
    """
    n, stride = checking.count(n_tokens, "n_tokens"), positive(stride, "stride")
    if factor not in (None, "local", "column"):
        raise ValueError(f'factor is {factor!r}; expected "local", "column" or None for both')
    local = sliding_window(n, left=stride - 1, block_size=block_size)
    if factor == "local":
        return local
    column = _columns(n, stride, block_size)
    return column if factor == "column" else local | column


def _columns(n, stride, block_size):
    """Causal inside each class of tokens with equal remainder."""
    order, length = by_residue(n, stride)
    slot = np.arange(order.n_slots)
    there = order.listing() >= 0
    starts, stops = np.where(there, slot // length * length, 0), np.where(there, slot + 1, 0)
    return ranges_pattern(starts, stops, (n, n), block_size, order, order)
