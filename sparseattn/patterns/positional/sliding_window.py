"""Windows around each query, plain and dilated."""

import numpy as np

from sparseattn.pattern import Pattern
from sparseattn.patterns.arguments import offsets, positive, ranges_pattern, reach, sizes
from sparseattn.structure import Order


def sliding_window(n_queries, n_keys=None, *, left, right=0, dilation=1, offset=None, block_size=None):
    """Each query attends its own key, the `left` keys before it and the `right` keys after it.

    Parameters
    ----------
    n_queries, n_keys : int
        Tokens. `n_keys` defaults to `n_queries`; the last query sits at the last key.
    left, right : int or None
        Keys on each side, self extra; None: no limit. A causal window of W keys, as in Mistral, is ``left=W - 1``.
    dilation : int or sequence of int
        Distance d between attended keys, so that the window reaches d times as far; one for all or one per head.
    offset : int or sequence of int, optional
        The key at which query 0 sits, one for all or one per batch item. None: ``n_keys - n_queries``.
    block_size : int or tuple of int, optional
        Tiles for the kernels; speed only.

    Returns
    -------
    Pattern
        Shape (n_queries, n_keys), shared by all heads, or one head per dilation.

    Raises
    ------
    ValueError
        If `left` or `right` is negative or a dilation is below 1.

    Notes
    -----
    Query i attends key ``j = i + offset + dilation * t`` for every whole t with ``-left <= t <= right``.
    O(n_queries) to build. With dilation d, keys of different ``j mod d`` never meet, so the pattern is stored in the
    order of these classes, where it is a plain window; `density_in_tiles` is over 0.6 for windows of 128 keys. The same
    d > 1 in every head and layer never exchanges anything between classes.

    FlashAttention's ``window_size=(left, right)`` means the same. Mistral's text has W + 1 keys, its code W; a causal
    ``LocalAttention(window_size=w)`` of xFormers has ``left=w``; Longformer counts the whole window, ``left = right =
    window // 2``.

    A step of decoding for caches of `lengths` tokens in one batch, the new one included, in arrays of `capacity` slots:
    ``sliding_window(1, capacity, left=..., offset=[n - 1 for n in lengths])``. Slots behind them are not read.

    References
    ----------
    .. [1] Beltagy et al., Longformer, arXiv:2004.05150, section 3.1.
    .. [2] Jiang et al., Mistral 7B, arXiv:2310.06825, section 2.
    """
    if not isinstance(dilation, (int, np.integer)) and np.ndim(dilation) == 1:
        heads = {d: _one(n_queries, n_keys, left, right, d, offset, block_size) for d in map(int, dilation)}
        return Pattern.per_head([heads[int(d)] for d in dilation])
    return _one(n_queries, n_keys, left, right, dilation, offset, block_size)


def _one(n_queries, n_keys, left, right, dilation, offset, block_size):
    shape = sizes(n_queries, n_keys)
    left, right, dilation = reach(left, "left"), reach(right, "right"), positive(dilation, "dilation")
    first = offsets(offset, *shape)
    batch = 1 if isinstance(first, int) else first.shape[0]
    if dilation == 1:
        starts = 0 if left is None else _rising(first, -left, *shape)
        stops = shape[1] if right is None else _rising(first, right + 1, *shape)
        return ranges_pattern(starts, stops, shape, block_size, batch=batch)
    return _by_residue(shape, left, right, dilation, first, batch, block_size)


def _rising(first, shift, n_queries, n_keys):
    """first + shift + i for each query i, right where it meets a key, (1 | batch, 1, n_queries), int32 if that does.

    One query at one place: a plain number, which costs a step of decoding less.
    """
    places = [first] if isinstance(first, int) else first.ravel().tolist()
    begins = [min(max(place + shift, -n_queries), n_keys) for place in places]
    if n_queries == len(begins) == 1:
        return begins[0]
    dtype = np.int32 if n_queries + n_keys < 2**31 else np.int64
    if len(begins) == 1:
        return np.arange(begins[0], begins[0] + n_queries, dtype=dtype).reshape(1, 1, -1)
    return np.arange(n_queries, dtype=dtype) + np.array(begins, dtype).reshape(-1, 1, 1)


def by_residue(n_tokens, stride):
    """The order (residue, index) of tokens ``residue + stride * index``, and its slots per residue."""
    length = -(-n_tokens // stride)
    return Order.affine((n_tokens,), ((0, stride, 1), (0, length, stride))), length


def _by_residue(shape, left, right, dilation, first, batch, block_size):
    """A plain window inside each class of keys with equal remainder."""
    q_order, _ = by_residue(shape[0], dilation)
    k_order, length = by_residue(shape[1], dilation)
    query = q_order.listing()
    index, residue = np.divmod(query + first, dilation)
    count = np.maximum(-(-(shape[1] - residue) // dilation), 0)  # keys of that class
    low = 0 if left is None else np.clip(index - left, 0, count)
    high = count if right is None else np.clip(index + right + 1, 0, count)
    there = query >= 0
    starts, stops = (np.where(there, residue * length + x, 0) for x in (low, high))
    return ranges_pattern(starts, stops, shape, block_size, q_order, k_order, batch=batch)
