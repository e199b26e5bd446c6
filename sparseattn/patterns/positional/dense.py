"""All pairs, and all pairs up to the present."""

from sparseattn.patterns.arguments import ranges_pattern, sizes
from sparseattn.patterns.positional.sliding_window import sliding_window


def dense(n_queries, n_keys=None, *, block_size=None):
    """Every query attends every key.

    Parameters
    ----------
    n_queries, n_keys : int
        Tokens. `n_keys` defaults to `n_queries`.
    block_size : int or tuple of int, optional
        Tiles for the kernels; speed only.

    Returns
    -------
    Pattern
        Shape (n_queries, n_keys), shared by all heads.

    Notes
    -----
    Query i attends every key j. O(n_queries) to build. `density_in_tiles` is 1 where the tiles divide the sequence.
    """
    shape = sizes(n_queries, n_keys)
    return ranges_pattern(0, shape[1], shape, block_size)


def causal(n_queries, n_keys=None, *, offset=None, block_size=None):
    """Each query attends its own key and all before it.

    Parameters
    ----------
    n_queries, n_keys : int
        Tokens. `n_keys` defaults to `n_queries`; the last query sits at the last key.
    offset : int or sequence of int, optional
        The key at which query 0 sits, one for all or one per batch item (caches of different lengths).
        None: ``n_keys - n_queries``.
    block_size : int or tuple of int, optional
        Tiles for the kernels; speed only.

    Returns
    -------
    Pattern
        Shape (n_queries, n_keys), shared by all heads.

    Notes
    -----
    Query i attends key j when ``j <= i + offset``. O(n_queries) to build. `density_in_tiles` is 0.98 for 4,096 tokens,
    0.99 for 16,384. PyTorch's ``is_causal=True`` takes offset 0.
    The next m tokens after caches of `lengths` tokens, in arrays of `capacity` slots:
    ``causal(m, capacity, offset=lengths)``. Slots behind them are not read.

    References
    ----------
    .. [1] Vaswani et al., Attention Is All You Need, arXiv:1706.03762, section 3.2.3.
    """
    return sliding_window(n_queries, n_keys, left=None, right=0, offset=offset, block_size=block_size)
