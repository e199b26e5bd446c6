"""What families share in reading their arguments: counts, offsets, ranges of all queries."""

import numpy as np

from sparseattn.index_ops.ranges import canonical
from sparseattn.pattern import Pattern, checking
from sparseattn.structure import Ranges
from sparseattn.xp import on_cpu


def positive(n, name):
    """A whole number from 1."""
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)):
        raise TypeError(f"{name} is {type(n).__name__}; expected a whole number")
    if n < 1:
        raise ValueError(f"{name} is {n}; expected at least 1")
    return int(n)


def at_least_0(n, name):
    """A whole number from 0."""
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 0:
        raise ValueError(f"{name} is {n!r}; expected a whole number from 0")
    return int(n)


def reach(n, name):
    """Tokens on one side of a window: a whole number from 0, or None for no limit."""
    if n is None:
        return None
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)):
        raise TypeError(f"{name} is {type(n).__name__}; expected a whole number of tokens, or None for no limit")
    if n < 0:
        raise ValueError(f"{name} is {n}; expected at least 0, or None for no limit")
    return int(n)


def sizes(n_queries, n_keys):
    """(n_queries, n_keys), the second the first where it is None."""
    n_queries = checking.count(n_queries, "n_queries")
    return n_queries, n_queries if n_keys is None else checking.count(n_keys, "n_keys")


def offsets(offset, n_queries, n_keys):
    """Where query 0 sits among the keys: a whole number for all, or int64 (batch, 1, 1)."""
    return n_keys - n_queries if offset is None else per_batch(offset, "offset")


def per_batch(x, name):
    """A whole number for all, or int64 (batch, 1, 1)."""
    x = on_cpu(x)
    if x.dtype.kind not in "iu" or x.ndim > 1 or x.size == 0:
        raise TypeError(f"{name} is an array of {x.dtype} with {x.ndim} axes; expected a whole number, or one per "
                        "batch item")
    return int(x) if x.ndim == 0 else x.astype(np.int64).reshape(-1, 1, 1)


def tiles(block_size):
    """A block size as (block_q, block_k), or None."""
    return None if block_size is None else checking.block_size(block_size)


def ranges_pattern(starts, stops, shape, block_size=None, q_order=None, k_order=None, batch=None):
    """A Pattern of one Ranges part; bounds, one number for all or an array, are clipped to the key slots and broadcast
    to (1 | batch, 1, n_q_slots)."""
    n_q = shape[0] if q_order is None else q_order.n_slots
    n_k = shape[1] if k_order is None else k_order.n_slots
    bounds = _same_range if isinstance(starts, int) and isinstance(stops, int) else _own_ranges
    starts, stops, some = bounds(starts, stops, n_q, n_k)
    part = Ranges(shape, starts, stops, q_order, k_order, None, tiles(block_size))
    return Pattern((part,) if some and n_q else (), shape, batch or starts.shape[0], part.lead[1])


def _same_range(start, stop, n_q, n_k):
    """One range for all query slots as int32 (1, 1, n_q) twice, and whether it has keys. A decoding step asks this."""
    start, stop = min(max(start, 0), n_k), min(max(stop, 0), n_k)
    some = start < stop
    if n_q == 1:
        return np.array([[[start * some]]], np.int32), np.array([[[stop * some]]], np.int32), some
    return np.full((1, 1, n_q), start * some, np.int32), np.full((1, 1, n_q), stop * some, np.int32), some


def _own_ranges(starts, stops, n_q, n_k):
    """A range for each query slot as int32 (1 | batch, 1, n_q) twice, and whether any has keys."""
    starts, stops = np.broadcast_arrays(_bounded(starts, n_k), _bounded(stops, n_k))
    some = np.count_nonzero(stops > starts)
    if some < starts.size:
        starts, stops = canonical(starts, stops)
    whole = starts.shape[:2] + (n_q,)
    return np.broadcast_to(starts, whole), np.broadcast_to(stops, whole), some


def _bounded(x, n):
    """An array clipped to 0 <= x <= n, int32 of three axes; np.clip would need more memory."""
    x = np.maximum(x, 0)
    x = np.minimum(x, n, out=x if x.ndim else None).astype(np.int32, copy=False)
    return x.reshape((1,) * (3 - x.ndim) + x.shape)
