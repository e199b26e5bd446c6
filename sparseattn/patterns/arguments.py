"""What families share in reading their arguments: counts, offsets, ranges of all queries."""

import numpy as np

from sparseattn.index_ops.ranges import canonical
from sparseattn.pattern import Pattern, checking
from sparseattn.structure import Ranges


def positive(n, name):
    """A whole number from 1."""
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)):
        raise TypeError(f"{name} is {type(n).__name__}; expected a whole number")
    if n < 1:
        raise ValueError(f"{name} is {n}; expected at least 1")
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
    if offset is None:
        return n_keys - n_queries
    offset = np.asarray(offset)
    if offset.dtype.kind not in "iu" or offset.ndim > 1 or offset.size == 0:
        raise TypeError(f"offset is an array of {offset.dtype} with {offset.ndim} axes; expected a whole number, or "
                        "one per batch item")
    return int(offset) if offset.ndim == 0 else offset.astype(np.int64).reshape(-1, 1, 1)


def tiles(block_size):
    """A block size as (block_q, block_k), or None."""
    return None if block_size is None else checking.block_size(block_size)


def ranges_pattern(starts, stops, shape, block_size=None, q_order=None, k_order=None, batch=None):
    """A Pattern of one Ranges part; bounds, one number for all or an array, are clipped to the key slots and broadcast
    to (1 | batch, 1, n_q_slots)."""
    n_q = shape[0] if q_order is None else q_order.n_slots
    n_k = shape[1] if k_order is None else k_order.n_slots
    starts, stops = _bounded(starts, n_k), _bounded(stops, n_k)
    some = stops > starts
    n_some, lead = np.count_nonzero(some), some.shape[:2]
    if n_some < some.size:
        starts, stops = canonical(*np.broadcast_arrays(starts, stops))
    starts, stops = (x if x.shape == lead + (n_q,) else np.broadcast_to(x, lead + (n_q,)) for x in (starts, stops))
    part = Ranges(shape, starts, stops, q_order, k_order, None, tiles(block_size))
    return Pattern((part,) if n_some and n_q else (), shape, batch or lead[0], part.lead[1])


def _bounded(x, n):
    """A number or an array clipped to 0 <= x <= n, int32 of three axes; np.clip takes long for a single query."""
    if isinstance(x, int):
        return np.array([[[min(max(x, 0), n)]]], np.int32)
    x = np.maximum(x, 0)
    return np.minimum(x, n, out=x).astype(np.int32, copy=False)
