"""Tokens that are not there."""

import numpy as np

from sparseattn.pattern import Pattern, checking
from sparseattn.patterns.arguments import tiles
from sparseattn.structure import Order, Ranges
from sparseattn.xp import on_cpu


def padding(valid, query_valid=None, n_queries=None, *, block_size=None):
    """Every valid query attends every valid key: what a batch of sequences of different lengths allows.

    Parameters
    ----------
    valid : array of bool, (batch, n_keys) or (n_keys,)
        True: a real token on the key side. An array of CuPy is copied to the CPU, here and below.
    query_valid : array of bool, (batch, n_queries) or (n_queries,), optional
        The same for queries; None: `valid` where n_queries is n_keys, its last n_queries entries where there are
        fewer queries.
    n_queries : int, optional
        Queries; None: as many as `query_valid` has, else as keys.
    block_size : int or tuple of int, optional
        Tiles for the kernels; speed only.

    Returns
    -------
    Pattern
        Shape (n_queries, n_keys), one per batch item.

    Notes
    -----
    Query i attends key j when ``query_valid[b, i]`` and ``valid[b, j]``; padded queries attend nothing, so their
    output is 0. Meant for ``pattern & padding(valid)``. One range a query, in an order without the holes if there are
    any. O(batch * n) to build. `density_in_tiles` is 0.99 for 3,000 of 4,096 tokens.
    """
    valid = _two_axes(valid, "valid")
    n_keys = valid.shape[1]
    query_valid = _queries(valid, query_valid, n_queries)
    batch = np.broadcast_shapes((valid.shape[0],), (query_valid.shape[0],))[0]
    valid, query_valid = (np.broadcast_to(x, (batch, x.shape[1])) for x in (valid, query_valid))
    count = valid.sum(axis=1)
    first = np.where(count > 0, valid.argmax(axis=1), 0) if n_keys else count
    last = n_keys - valid[:, ::-1].argmax(axis=1) if n_keys else count
    k_order = None
    if ((last - first != count) & (count > 0)).any():
        # valid keys first, in order; nobody behind them
        listed = np.argsort(~valid, axis=1, kind="stable").astype(np.int32)
        listed[np.arange(n_keys) >= count[:, None]] = -1
        k_order, first = Order.listed(listed[:, None], n_keys), np.zeros(batch, np.int64)
    starts = np.where(query_valid & (count > 0)[:, None], first[:, None], 0).astype(np.int32)[:, None]
    stops = np.where(query_valid & (count > 0)[:, None], (first + count)[:, None], 0).astype(np.int32)[:, None]
    shape = (query_valid.shape[1], n_keys)
    return Pattern.from_parts([Ranges(shape, starts, stops, None, k_order, block_size=tiles(block_size))], shape, batch)


def _two_axes(x, name):
    x = on_cpu(x)
    if x.dtype != bool or x.ndim not in (1, 2):
        raise TypeError(f"{name} is an array of {x.dtype} with {x.ndim} axes; expected bool (batch, n) (True: a real "
                        "token)")
    return x if x.ndim == 2 else x[None]


def _queries(valid, query_valid, n_queries):
    """bool (1 | batch, n_queries)."""
    if query_valid is not None:
        query_valid = _two_axes(query_valid, "query_valid")
        if n_queries is not None and n_queries != query_valid.shape[1]:
            raise ValueError(f"query_valid is for {query_valid.shape[1]} queries but n_queries is {n_queries}; leave "
                             "n_queries out")
        if len({valid.shape[0], query_valid.shape[0]} - {1}) > 1:
            raise ValueError(f"valid has {valid.shape[0]} batch items and query_valid {query_valid.shape[0]}; give "
                             "as many of each")
        return query_valid
    n = valid.shape[1] if n_queries is None else checking.count(n_queries, "n_queries")
    if n > valid.shape[1]:
        raise ValueError(f"n_queries is {n} but valid has only {valid.shape[1]} tokens; give query_valid for the "
                         "queries")
    return valid[:, valid.shape[1] - n :]
