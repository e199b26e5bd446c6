"""StreamingLLM's cache: the first tokens, and the recent ones."""

import numpy as np

from sparseattn.pattern import Pattern, checking
from sparseattn.patterns.arguments import offsets, ranges_pattern, sizes


def attention_sinks(n_queries, n_keys=None, *, n_sinks, recent, offset=None, block_size=None):
    """Each query attends its own key, the `recent` keys before it and the first `n_sinks` keys of all.

    Parameters
    ----------
    n_queries, n_keys : int
        Tokens. `n_keys` defaults to `n_queries`; the last query sits at the last key.
    n_sinks : int
        Keys at the beginning that every later query attends.
    recent : int
        Keys before the query's own.
    offset : int or sequence of int, optional
        The key at which query 0 sits, one for all or one per batch item (caches of different lengths).
        None: ``n_keys - n_queries``.
    block_size : int or tuple of int, optional
        Tiles for the kernels; speed only.

    Returns
    -------
    Pattern
        Shape (n_queries, n_keys), shared by all heads.

    Raises
    ------
    TypeError, ValueError
        If `n_sinks` or `recent` is no whole number from 0.

    Notes
    -----
    Query i attends key j when ``j <= i + offset``, and either ``i + offset - j <= recent`` or ``j < n_sinks``: at most
    n_sinks + recent + 1 keys, each once. That is the published evaluation loop, which cuts its cache after a step; one
    that cuts it before the step (the n_sinks + recent keys of the paper) is ``recent - 1``. The released code rotates
    keys by their place in the cache, which is the caller's affair; the pattern is the same. A prompt of p tokens that
    is processed in one step is causal: ``Pattern.concatenate([causal(n)[:, :, :p], attention_sinks(n, ...)[:, :, p:]],
    axis=2)``. Not to be confused with ``attend(..., sinks=)``, logits without a key. Two ranges a query; O(n_queries)
    to build. `density_in_tiles` is 0.89 for 4 sinks and 511 recent keys of 16,384.

    References
    ----------
    .. [1] Xiao et al., Efficient Streaming Language Models with Attention Sinks, arXiv:2309.17453, section 3.2.
    """
    shape = sizes(n_queries, n_keys)
    n_sinks, recent = checking.count(n_sinks, "n_sinks"), checking.count(recent, "recent")
    place = offsets(offset, *shape) + np.arange(shape[0]).reshape(1, 1, -1)
    window = ranges_pattern(place - recent, place + 1, shape, block_size)
    # the sinks that the window does not hold already
    sinks = ranges_pattern(0, np.minimum(place - recent, n_sinks), shape, block_size)
    return Pattern.from_parts(window.parts + sinks.parts, shape, window.batch)
