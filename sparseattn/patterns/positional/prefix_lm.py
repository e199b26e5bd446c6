"""A prefix that sees itself whole, and a causal rest."""

import numpy as np

from sparseattn.pattern import checking
from sparseattn.patterns.arguments import per_batch, positive, ranges_pattern


def prefix_lm(n_tokens, prefix, *, window=None, block_size=None):
    """Tokens of the prefix attend the whole prefix, those behind it all tokens up to their own.

    Parameters
    ----------
    n_tokens : int
        Tokens.
    prefix : int or sequence of int
        Tokens of the prefix, one number for all or one per batch item. 0: causal; `n_tokens` or more: all pairs.
    window : int, optional
        Tokens behind the prefix attend at most so many keys up to their own.
    block_size : int or tuple of int, optional
        Tiles for the kernels; speed only.

    Returns
    -------
    Pattern
        Shape (n_tokens, n_tokens), shared by all heads; one per batch item where `prefix` is.

    Raises
    ------
    TypeError, ValueError
        If `prefix` is no whole number from 0, or no sequence of them, or `window` is below 1.

    Notes
    -----
    Query i attends key j when i and j are both below `prefix`, or ``i - window < j <= i``. With a window, queries
    behind the prefix see what of it lies inside the window, as in Transformers; to keep all of it visible add its keys:
    ``prefix_lm(n, p, window=w) | Pattern.from_ranges([0] * n, [p] * n, n)``. One range a query; O(n_tokens) to build.
    `density_in_tiles` is 0.98 for a prefix of 1,024 of 4,096 tokens.

    References
    ----------
    .. [1] Raffel et al., T5, arXiv:1910.10683, section 3.2.1.
    """
    n = checking.count(n_tokens, "n_tokens")
    prefix, window = np.asarray(per_batch(prefix, "prefix")), n if window is None else positive(window, "window")
    if prefix.min() < 0:
        raise ValueError(f"prefix is {prefix.min()}; expected at least 0 tokens")
    i = np.arange(n).reshape(1, 1, -1)
    starts = np.where(i < prefix, 0, i + 1 - window)
    return ranges_pattern(starts, np.where(i < prefix, prefix, i + 1), (n, n), block_size)
